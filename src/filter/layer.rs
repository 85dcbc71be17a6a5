//! The settings of a bank's layers.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::size::{KernelSize, MAX_TAPS};
use crate::error::{Finding, Result};
use crate::json::Fields;

/// What a bank stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Whole kernels: atoms and coefficients.
    Replace,
    /// Other atoms for the base's own coefficients.
    Atoms,
}

impl Mode {
    /// Its name in the settings.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Replace => "replace",
            Mode::Atoms => "atoms",
        }
    }
}

/// Where the layer stands in its model. A state dict doesn't say; where the settings do, numbers are one for each axis.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Geometry {
    /// The steps of the convolution.
    pub stride: Option<Vec<usize>>,
    /// Zeros at each side.
    pub padding: Option<Vec<usize>>,
    /// Steps between taps.
    pub dilation: Option<Vec<usize>>,
    /// Groups of channels.
    pub groups: Option<usize>,
}

/// The settings of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerConfig {
    /// The kernel size.
    pub size: KernelSize,
    /// The number of temporal atoms; 1 for kernels of two dimensions.
    pub temporal_atoms: usize,
    /// The number of spatial atoms; 1 for kernels of one dimension.
    pub spatial_atoms: usize,
    /// Where the layer stands, as far as that is known.
    pub geometry: Geometry,
}

/// The most numbers in the products of a layer's atoms: 256 MB as f32.
const MAX_PRODUCTS: usize = 1 << 26;

impl LayerConfig {
    /// Reads the settings of `module` in the file at `path`.
    pub(super) fn read(path: &Path, module: &str, map: &Map<String, Value>) -> Result<Self> {
        let mut fields = Fields::inside(path, &format!("layers.{module}"), map);
        let kernel: Vec<usize> = fields.need("kernel")?;
        let dims = fields.count("dims")?;
        let about = |name: &str| fields.finding(name);
        let [time, height, width] = *kernel.as_slice() else {
            return Err(about("kernel").expected("three sizes").found(kernel.len()).format());
        };
        let size = KernelSize { time, height, width, dims };
        let found = || format!("{kernel:?}");
        if !(1..=3).contains(&dims) {
            return Err(about("dims").expected("1 to 3").found(dims).format());
        }
        if kernel.contains(&0) || size.taps() > MAX_TAPS {
            return Err(about("kernel").expected(format_args!("1 to {MAX_TAPS} taps")).found(found()).format());
        }
        if dims == 1 && size.area() > 1 || dims == 2 && time > 1 {
            let expected = if dims == 1 { "[T, 1, 1] with `dims` 1" } else { "[1, H, W] with `dims` 2" };
            return Err(about("kernel").expected(expected).found(found()).format());
        }
        let (temporal_atoms, spatial_atoms) = (fields.count("temporal_atoms")?, fields.count("spatial_atoms")?);
        let about = |name: &str| fields.finding(name);
        let only =
            [(size.has_time(), "temporal_atoms", temporal_atoms), (size.has_space(), "spatial_atoms", spatial_atoms)];
        if let Some((_, name, count)) = only.into_iter().find(|(has, _, count)| !has && *count != 1) {
            return Err(about(name).expected(format_args!("1 with `dims` {dims}")).found(count).format());
        }
        if temporal_atoms.saturating_mul(spatial_atoms).saturating_mul(size.taps()) > MAX_PRODUCTS {
            let finding = about("spatial_atoms").expected("products of atoms with at most 67 million numbers");
            return Err(finding
                .found(format_args!("{temporal_atoms} x {spatial_atoms} of {} taps", size.taps()))
                .format());
        }
        let geometry = Geometry {
            stride: axes(&mut fields, "stride", dims)?,
            padding: axes(&mut fields, "padding", dims)?,
            dilation: axes(&mut fields, "dilation", dims)?,
            groups: fields.get::<usize>("groups")?,
        };
        if geometry.groups == Some(0) {
            return Err(fields.finding("groups").expected("a number above 0").found(0).format());
        }
        fields.finish()?;
        Ok(Self { size, temporal_atoms, spatial_atoms, geometry })
    }

    /// The settings as JSON.
    pub(super) fn to_json(&self) -> Value {
        let KernelSize { time, height, width, dims } = self.size;
        let mut json = json!({
            "kernel": [time, height, width], "dims": dims,
            "temporal_atoms": self.temporal_atoms, "spatial_atoms": self.spatial_atoms,
        });
        let Geometry { stride, padding, dilation, groups } = &self.geometry;
        let lists = [("stride", stride), ("padding", padding), ("dilation", dilation)];
        let lists = lists.into_iter().filter_map(|(name, list)| Some((name, json!(list.as_ref()?))));
        for (name, value) in lists.chain(groups.map(|groups| ("groups", json!(groups)))) {
            json[name] = value;
        }
        json
    }
}

/// Reads a number for each axis, or one for all. Numbers may be 0 to 2^16.
fn axes(fields: &mut Fields, name: &'static str, dims: usize) -> Result<Option<Vec<usize>>> {
    const MOST: usize = 1 << 16;
    let values = match fields.get::<Value>(name)? {
        None => return Ok(None),
        Some(Value::Array(_)) => fields.need::<Vec<usize>>(name)?,
        Some(_) => vec![fields.need::<usize>(name)?; dims],
    };
    let finding: Finding = fields.finding(name);
    match values.len() == dims && values.iter().all(|value| *value <= MOST) {
        true => Ok(Some(values)),
        false => {
            let expected = format!("one number, or {dims}, each at most {MOST}");
            Err(finding.expected(expected).found(format_args!("{values:?}")).format())
        }
    }
}
