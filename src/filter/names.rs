//! Names of a bank's tensors.

use super::size::KernelSize;

/// PEFT's prefix of the names of an adapter's tensors.
const PREFIX: &str = "base_model.model.";

/// Which atoms a tensor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Temporal ones.
    Temporal,
    /// Spatial ones.
    Spatial,
}

impl Part {
    /// Both, in the order of the files.
    pub const ALL: [Self; 2] = [Self::Temporal, Self::Spatial];

    fn name(self) -> &'static str {
        match self {
            Self::Temporal => "temporal",
            Self::Spatial => "spatial",
        }
    }

    /// Whether kernels of this size have such atoms.
    pub fn is_of(self, size: KernelSize) -> bool {
        match self {
            Self::Temporal => size.has_time(),
            Self::Spatial => size.has_space(),
        }
    }

    /// The shape of `count` such atoms.
    pub fn shape(self, size: KernelSize, count: usize) -> Vec<usize> {
        match self {
            Self::Temporal => vec![count, size.time],
            Self::Spatial => size.spatial_shape(count),
        }
    }
}

/// The name of the coefficients of `module`.
pub(super) fn coefficients_name(module: &str) -> String {
    format!("{PREFIX}{module}.filter_atoms.coefficients")
}

/// The name of atoms: those of a module, or those that kernels of one size share. `of_base` are those that an adapter's
/// new atoms replace.
pub(super) fn atoms_name(module: Option<&str>, size: KernelSize, part: Part, of_base: bool) -> String {
    let (base, part) = (if of_base { "base_" } else { "" }, part.name());
    match module {
        Some(module) => format!("{PREFIX}{module}.filter_atoms.{base}{part}"),
        None => format!("filter_atoms.{size}.{base}{part}"),
    }
}
