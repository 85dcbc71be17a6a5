//! Decomposes the kernels of a model into a bank of filter atoms.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::super::settings::{name_of, setting};
use super::super::{Step, Watch};
use super::open_model;
use crate::convert::{Opening, OutType};
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::filter::{Counts, Decomposition, Missed, Selection, Targets};
use crate::output::{Destination, Output};
use crate::plan::PlannedTensor;

/// Settings of [`decompose`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecomposeSettings {
    /// The model: a folder, or a file of tensors.
    pub model: PathBuf,
    /// The model's name on the hub, if that isn't its path.
    #[serde(default)]
    pub model_id: Option<String>,
    /// The part of a PyTorch file that has the weights, such as `state_dict`.
    #[serde(default)]
    pub key: Option<String>,
    /// The bank's folder.
    pub destination: Destination,
    /// Temporal atoms of each layer; all without it.
    #[serde(default)]
    pub temporal_atoms: Option<usize>,
    /// Spatial atoms of each layer; all without it.
    #[serde(default)]
    pub spatial_atoms: Option<usize>,
    /// The share of a layer's energy that its atoms have to keep, in place of numbers of atoms.
    #[serde(default)]
    pub energy: Option<f64>,
    /// Whether layers of one kernel size share their atoms.
    #[serde(default)]
    pub shared: bool,
    /// A pattern for the ends of the paths of modules to decompose.
    #[serde(default)]
    pub targets: Option<String>,
    /// A pattern for those to leave dense.
    #[serde(default)]
    pub exclude: Option<String>,
    /// The type of the bank's tensors: f32, f16 or bf16.
    #[serde(default)]
    pub r#type: Option<String>,
    /// Whether the output is only described. The errors are measured all the same.
    #[serde(default)]
    pub dry_run: bool,
}

impl DecomposeSettings {
    /// Settings to decompose `model` with all atoms.
    pub fn new(model: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            model_id: None,
            key: None,
            destination: Destination::new(output),
            temporal_atoms: None,
            spatial_atoms: None,
            energy: None,
            shared: false,
            targets: None,
            exclude: None,
            r#type: None,
            dry_run: false,
        }
    }

    fn counts(&self) -> Result<Counts> {
        let given = [("temporal_atoms", self.temporal_atoms), ("spatial_atoms", self.spatial_atoms)];
        if let Some((field, _)) = given.iter().find(|(_, count)| *count == Some(0)) {
            return Err(setting(field).expected("a number above 0").found(0).setting());
        }
        let Some(energy) = self.energy else {
            return Ok(Counts::Given { temporal: self.temporal_atoms, spatial: self.spatial_atoms });
        };
        if !(energy > 0.0 && energy <= 1.0) {
            return Err(setting("energy").expected("a share above 0, and 1 at most").found(energy).setting());
        }
        if let Some((field, _)) = given.iter().find(|(_, count)| count.is_some()) {
            let finding = setting(field).expected("none with `energy`, which chooses the numbers of atoms");
            return Err(finding.found("both").setting());
        }
        Ok(Counts::Energy(energy))
    }

    fn dtype(&self) -> Result<DType> {
        let Some(name) = &self.r#type else { return Ok(DType::F32) };
        match name.parse() {
            Ok(OutType::F32) => Ok(DType::F32),
            Ok(OutType::F16) => Ok(DType::F16),
            Ok(OutType::BF16) => Ok(DType::BF16),
            _ => Err(setting("type").expected("f32, f16 or bf16 for a bank").found(name).setting()),
        }
    }
}

/// What became of one convolution.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerRow {
    /// The module's path.
    pub module: String,
    /// Other modules whose kernel is the same storage.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    /// The kernel size: `3x3x3`.
    pub kernel: String,
    /// The number of temporal atoms.
    pub temporal: usize,
    /// The number of spatial atoms.
    pub spatial: usize,
    /// Values of the bank for this layer.
    pub values: usize,
    /// Values of the dense kernel.
    pub of: usize,
    /// The share of the kernel's squared norm that is kept.
    pub energy: f64,
    /// The relative error in the Frobenius norm.
    pub error: f64,
    /// The kernel's norm.
    pub norm: f64,
}

/// A new bank, and what it misses of the model's kernels.
#[derive(Debug)]
pub struct Decomposed {
    /// The bank's folder.
    pub output: Output,
    /// The layers, in the model's order.
    pub layers: Vec<LayerRow>,
    /// Values in the bank's file.
    pub values: usize,
    /// Energy and error of all layers together.
    pub missed: Missed,
}

/// Decomposes the kernels of a model. The errors are measured; the output has them up to the rounding to its type.
///
/// # Errors
/// [`crate::Error::Setting`], also where nothing is to be decomposed or an option changes nothing; errors of opening
/// the model; [`crate::Error::NotFinite`] for a NaN or an infinity in a kernel.
pub fn decompose(settings: &DecomposeSettings, watch: Watch) -> Result<Decomposed> {
    let (counts, dtype) = (settings.counts()?, settings.dtype()?);
    let targets = Targets::new(settings.targets.as_deref(), settings.exclude.as_deref())?;
    if !settings.dry_run {
        settings.destination.check()?;
    }
    let model = open_model(&settings.model, Opening { key: settings.key.as_deref(), ..Opening::default() })?;
    let selection = Selection::of(&model.plan, &targets, &settings.model)?;
    check_changes(settings, &selection)?;
    let (total, steps) = (Decomposition::steps(&selection), AtomicU64::new(0));
    let done = || watch(Step { what: "decomposing", done: steps.fetch_add(1, Ordering::Relaxed) + 1, total });
    let found = Decomposition::of(&selection, counts, settings.shared, &done)?;
    let plan = found.plan(dtype);
    let values = plan.tensors.iter().map(PlannedTensor::elems).sum();
    let base = name_of(settings.model_id.as_deref(), &settings.model);
    let mut output = Output::adapter(&found.config(&base).to_json(), plan);
    let of_folder = model.folder.iter().flat_map(|folder| folder.notes().to_vec()).collect();
    output.notes = [model.notes, of_folder, selection.notes.clone()].concat();
    if found.cut > 0 {
        let layers = match found.cut {
            1 => "1 layer has".to_owned(),
            several => format!("{several} layers have"),
        };
        output.notes.push(format!("{layers} fewer taps than atoms were asked for: all that there can be are made"));
    }
    if dtype != DType::F32 {
        output.notes.push(format!("coefficients and atoms are rounded to {dtype}, which the errors don't include"));
    }
    let once = found.layers.iter().enumerate().filter(|(_, layer)| layer.of.twin_of.is_none());
    let rows = once.map(|(place, layer)| {
        let (temporal, spatial) = layer.atoms.counts();
        let twins = found.layers.iter().filter(|other| other.of.twin_of == Some(place));
        LayerRow {
            module: layer.of.module.to_owned(),
            also: twins.map(|twin| twin.of.module.to_owned()).collect(),
            kernel: layer.of.size.to_string(),
            temporal,
            spatial,
            values: layer.values(),
            of: layer.of.weight.elems(),
            energy: layer.missed.energy(),
            error: layer.missed.error(),
            norm: layer.missed.norm_sqr.sqrt(),
        }
    });
    Ok(Decomposed { layers: rows.collect(), values, missed: found.missed(), output })
}

/// Refuses a number of atoms of a kind that no layer has several of.
fn check_changes(settings: &DecomposeSettings, selection: &Selection) -> Result<()> {
    let sizes = || selection.layers.iter().map(|layer| layer.size);
    let options = [
        (settings.temporal_atoms, "temporal_atoms", "in time", sizes().any(|size| size.time > 1)),
        (settings.spatial_atoms, "spatial_atoms", "in height or width", sizes().any(|size| size.area() > 1)),
    ];
    match options.iter().find(|(given, .., changes)| given.is_some() && !changes) {
        None => Ok(()),
        Some((_, option, axis, _)) => {
            let finding = Finding::new(&settings.model, *option);
            let finding = finding.expected(format_args!("a kernel of more than one tap {axis}"));
            Err(finding.found("none: the option changes nothing").setting())
        }
    }
}
