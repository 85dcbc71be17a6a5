//! Exchanging atoms: for dilated or resampled ones, or for those of another bank. Coefficients stay.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::atoms::Atoms;
use super::bank::{BankConfig, BankLayer, FilterBank, StoredAtoms};
use super::layer::{LayerConfig, Mode};
use super::names::{Part, atoms_name};
use super::size::{KernelSize, MAX_TAPS, tuple};
use crate::error::{Finding, Result};
use crate::linalg::{Matrix, to_rows};
use crate::plan::{Expr, Plan, PlannedTensor};

/// How atoms are dilated and resampled. An axis of one tap stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sampling {
    /// The distance between temporal taps.
    pub dilate_time: Option<usize>,
    /// The distance between spatial taps, along both axes.
    pub dilate_space: Option<usize>,
    /// The new number of temporal taps.
    pub resize_time: Option<usize>,
    /// The new height and width.
    pub resize_space: Option<(usize, usize)>,
}

/// The kernel size of a layer before and after its atoms were exchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeChange {
    /// The module's path.
    pub module: String,
    /// The size before.
    pub before: KernelSize,
    /// The size after.
    pub after: KernelSize,
}

impl SizeChange {
    /// By how much padding grows along each axis; `None` along one where no padding makes up for the change.
    pub fn growth(&self) -> Vec<Option<isize>> {
        let half = |(after, before): (usize, usize)| {
            let more = after as isize - before as isize;
            (more % 2 == 0).then_some(more / 2)
        };
        self.after.axes().into_iter().zip(self.before.axes()).map(half).collect()
    }

    /// The padding that keeps sizes at stride 1; `None` along axes of an even number of taps.
    pub fn padding(&self) -> Vec<Option<usize>> {
        self.after.axes().into_iter().map(|taps| (taps % 2 == 1).then_some(taps / 2)).collect()
    }
}

impl std::fmt::Display for SizeChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { module, before, after } = self;
        if before == after {
            return write!(f, "{module}: kernel {before} as before");
        }
        write!(f, "{module}: kernel {before} -> {after}; build the model with kernel_size {}", after.tuple())?;
        let growth: Option<Vec<isize>> = self.growth().into_iter().collect();
        match growth {
            Some(growth) if growth.iter().all(|more| *more <= 0) => {
                write!(
                    f,
                    ", padding shrinks by {}",
                    tuple(&growth.iter().map(|more| more.unsigned_abs()).collect::<Vec<_>>())
                )?;
            }
            Some(growth) if growth.iter().all(|more| *more >= 0) => {
                write!(
                    f,
                    ", padding grows by {}",
                    tuple(&growth.iter().map(|more| more.unsigned_abs()).collect::<Vec<_>>())
                )?;
            }
            Some(growth) => {
                let signed: Vec<String> = growth.iter().map(|more| format!("{more:+}")).collect();
                write!(f, ", padding changes by ({})", signed.join(", "))?;
            }
            None => {}
        }
        let padding: Option<Vec<usize>> = self.padding().into_iter().collect();
        match padding {
            Some(padding) => write!(f, " (sizes stay at stride 1 with padding {})", tuple(&padding)),
            None => f.write_str(" (no padding keeps sizes along an axis of an even number of taps)"),
        }
    }
}

/// A bank with other atoms.
#[derive(Debug)]
pub struct Swapped {
    /// Its settings.
    pub config: BankConfig,
    /// Its tensors.
    pub plan: Plan,
    /// The sizes of all layers.
    pub sizes: Vec<SizeChange>,
    /// One line for everything that was assumed.
    pub notes: Vec<String>,
}

impl FilterBank {
    /// This bank with its atoms dilated or resampled.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] for an option that changes nothing on this bank; [`crate::Error::Mismatch`] for an
    /// adapter of atoms alone, and for sizes that can't be.
    pub fn sampled(&self, how: Sampling) -> Result<Swapped> {
        self.check_replaces()?;
        let changes_space = |size: KernelSize| size.area() > 1;
        let options = [
            ("dilate_time", how.dilate_time.is_some(), self.sizes().iter().any(|size| size.time > 1)),
            ("resize_time", how.resize_time.is_some(), self.sizes().iter().any(|size| size.time > 1)),
            ("dilate_space", how.dilate_space.is_some(), self.sizes().into_iter().any(changes_space)),
            ("resize_space", how.resize_space.is_some(), self.sizes().into_iter().any(changes_space)),
        ];
        if let Some((option, ..)) = options.iter().find(|(_, given, changes)| *given && !changes) {
            let axis = if option.ends_with("time") { "in time" } else { "in height or width" };
            let finding = Finding::new(&self.path, *option)
                .expected(format_args!("a bank with kernels of more than one tap {axis}"));
            return Err(finding.found("none: the option changes nothing").setting());
        }
        let mut new = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            new.push(StoredAtoms { atoms: Arc::new(self.sampled_atoms(layer, how)?), dtype: layer.atoms.dtype });
        }
        self.with(new, self.config.shared)
    }

    /// This bank with the atoms of `other`, which has as many of them for each layer.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for a layer that `other` doesn't have, or of which it has other numbers of atoms.
    pub fn with_atoms_of(&self, other: &FilterBank) -> Result<Swapped> {
        self.check_replaces()?;
        let mut new = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let finding = Finding::new(&other.path, format!("layers.{}", layer.module));
            let Some(source) = other.layers.iter().find(|source| source.module == layer.module) else {
                return Err(finding
                    .expected("a layer of this name, as in the bank that gets its atoms")
                    .found("none")
                    .mismatch());
            };
            let told = |config: &LayerConfig| {
                let LayerConfig { size, temporal_atoms, spatial_atoms, .. } = config;
                format!("{temporal_atoms} temporal and {spatial_atoms} spatial atoms of {} dimensions", size.dims)
            };
            if told(&layer.config) != told(&source.config) {
                return Err(finding.expected(told(&layer.config)).found(told(&source.config)).mismatch());
            }
            new.push(source.atoms.clone());
        }
        self.with(new, other.config.shared)
    }

    fn check_replaces(&self) -> Result<()> {
        if self.config.mode == Mode::Replace {
            return Ok(());
        }
        let finding = Finding::new(&self.path, "mode").expected("replace, a bank with coefficients");
        Err(finding.found("atoms, whose atoms have the size of the base's").mismatch())
    }

    fn sampled_atoms(&self, layer: &BankLayer, how: Sampling) -> Result<Atoms> {
        let size = layer.config.size;
        let about = |option: &str| {
            Finding::new(&self.path, format!("layers.{}", layer.module))
                .hint(format_args!("`{option}` can't change it"))
        };
        let Sampling { dilate_time, dilate_space, resize_time, resize_space } = how;
        let resized = KernelSize {
            time: resize_time.filter(|_| size.time > 1).unwrap_or(size.time),
            height: resize_space.filter(|_| size.area() > 1).map_or(size.height, |(height, _)| height),
            width: resize_space.filter(|_| size.area() > 1).map_or(size.width, |(_, width)| width),
            ..size
        };
        for (before, after) in size.axes().into_iter().zip(resized.axes()) {
            if before != after && (before == 1 || after == 1) {
                let finding = about("resize_space").expected("more than one tap along an axis, which has an extent");
                return Err(finding.found(format_args!("a kernel of {size}, to become {resized}")).mismatch());
            }
        }
        let far = |taps: usize, factor: Option<usize>| (taps - 1).saturating_mul(factor.unwrap_or(1)).saturating_add(1);
        let after = KernelSize {
            time: far(resized.time, dilate_time),
            height: far(resized.height, dilate_space),
            width: far(resized.width, dilate_space),
            ..size
        };
        if after.taps() > MAX_TAPS {
            let finding = about("dilate_time").expected(format_args!("a kernel of at most {MAX_TAPS} taps"));
            return Err(finding.found(after).mismatch());
        }
        let temporal =
            &layer.atoms.atoms.temporal * resizing(size.time, resized.time) * spreading(resized.time, after.time);
        let along_height = resizing(size.height, resized.height) * spreading(resized.height, after.height);
        let along_width = resizing(size.width, resized.width) * spreading(resized.width, after.width);
        let spatial = &layer.atoms.atoms.spatial * along_height.kronecker(&along_width);
        Ok(Atoms { size: after, temporal, spatial })
    }

    /// The bank with these atoms, one set for each layer.
    fn with(&self, new: Vec<StoredAtoms>, shared: bool) -> Result<Swapped> {
        let (mut notes, mut sizes, mut layers) = (Vec::new(), Vec::new(), Vec::new());
        // Sets of different sizes can have become sets of one.
        let mut by_size: BTreeMap<KernelSize, &StoredAtoms> = BTreeMap::new();
        let same = |stored: &StoredAtoms, other: &StoredAtoms| stored.atoms == other.atoms;
        let can_share = new.iter().all(|stored| same(stored, by_size.entry(stored.atoms.size).or_insert(stored)));
        if shared && !can_share {
            notes.push(
                "kernels of different sizes have become kernels of one: their atoms are no longer shared".to_owned(),
            );
        }
        let shared = shared && can_share;
        let mut tensors: Vec<PlannedTensor> = Vec::new();
        for (layer, stored) in self.layers.iter().zip(&new) {
            let atoms = &stored.atoms;
            let change = SizeChange { module: layer.module.clone(), before: layer.config.size, after: atoms.size };
            layers.push((layer.module.clone(), moved(&layer.config, &change)));
            sizes.push(change);
            tensors.extend(layer.coefficients.clone());
            let own = (!shared).then_some(layer.module.as_str());
            for (part, values) in [(Part::Temporal, &atoms.temporal), (Part::Spatial, &atoms.spatial)] {
                let name = atoms_name(own, atoms.size, part, false);
                if part.is_of(atoms.size) && !tensors.iter().any(|tensor| tensor.name == name) {
                    let shape = part.shape(atoms.size, values.nrows());
                    let expr = Expr::Values { shape: shape.clone(), values: to_rows(values).into() };
                    tensors.push(PlannedTensor { name, dtype: stored.dtype, shape, expr });
                }
            }
        }
        let config = BankConfig { shared, layers, ..self.config.clone() };
        Ok(Swapped { config, plan: Plan { tensors }, sizes, notes })
    }
}

/// The settings of a layer with another kernel. Padding grows with it, where it is known and can.
fn moved(config: &LayerConfig, change: &SizeChange) -> LayerConfig {
    let mut config = LayerConfig { size: change.after, ..config.clone() };
    if let Some(padding) = &config.geometry.padding {
        let grown = padding.iter().zip(change.growth()).enumerate().map(|(axis, (padding, more))| {
            let dilation = config.geometry.dilation.as_ref().map_or(1, |dilation| dilation[axis]);
            padding.checked_add_signed(more?.checked_mul(dilation as isize)?)
        });
        config.geometry.padding = grown.collect();
    }
    config
}

/// The matrix that puts zeros between taps: `[before, after]`.
fn spreading(before: usize, after: usize) -> Matrix {
    let step = if before > 1 { (after - 1) / (before - 1) } else { 1 };
    Matrix::from_fn(before, after, |from, to| if from * step == to { 1.0 } else { 0.0 })
}

/// The matrix of linear interpolation from `before` to `after` taps, first and last on each other, `[before, after]`.
/// It is scaled by the ratio of the intervals between taps, so that an atom's integral stays.
fn resizing(before: usize, after: usize) -> Matrix {
    if before == after {
        return Matrix::identity(before, before);
    }
    let ratio = (before - 1) as f64 / (after - 1) as f64;
    let mut matrix = Matrix::zeros(before, after);
    for to in 0..after {
        let at = to as f64 * ratio;
        let low = (at.floor() as usize).min(before - 2);
        let part = at - low as f64;
        matrix[(low, to)] += (1.0 - part) * ratio;
        matrix[(low + 1, to)] += part * ratio;
    }
    matrix
}
