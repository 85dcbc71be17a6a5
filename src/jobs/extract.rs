//! Extracts a LoRA from a base and a model finetuned from it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::settings::setting;
use super::{OutputKind, OutputSettings, Step, Watch};
use crate::adapter::peft::Base;
use crate::checkpoint::Checkpoint;
use crate::convert::{Input, Opening};
use crate::error::{Finding, Result};
use crate::linalg::Sketch;
use crate::merge::extract::{ExtractOptions, Extraction, Pairs};
use crate::output::Output;
use crate::plan::Plan;

/// Settings of [`extract`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtractSettings {
    /// The base model's folder, or a PyTorch or safetensors file of tensors alone.
    pub base: PathBuf,
    /// The finetuned model, in one of the same forms.
    pub finetuned: PathBuf,
    /// The part of the base's PyTorch file, such as `state_dict`.
    #[serde(default)]
    pub key_a: Option<String>,
    /// The part of the finetuned model's PyTorch file.
    #[serde(default)]
    pub key_b: Option<String>,
    /// What is taken off the names of tensors alone that begin with it, such as `module.`.
    #[serde(default)]
    pub strip_prefix: Option<String>,
    /// Where the LoRA is written.
    pub output: OutputSettings,
    /// The base's name on the hub, if it was downloaded from there. The LoRA names it as its base.
    #[serde(default)]
    pub base_id: Option<String>,
    /// The largest rank of each module's update.
    #[serde(default = "rank")]
    pub rank: usize,
    /// The share of a module's change to keep: it gets the smallest rank that keeps it.
    #[serde(default)]
    pub energy: Option<f64>,
    /// The seed of random numbers.
    #[serde(default)]
    pub seed: u64,
}

fn rank() -> usize {
    32
}

impl ExtractSettings {
    /// Settings for a LoRA of rank 32.
    pub fn new(base: impl Into<PathBuf>, finetuned: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            base: base.into(),
            finetuned: finetuned.into(),
            key_a: None,
            key_b: None,
            strip_prefix: None,
            output: OutputSettings { to: Some(OutputKind::Lora), ..OutputSettings::new(output) },
            base_id: None,
            rank: rank(),
            energy: None,
            seed: 0,
        }
    }
}

/// A LoRA and its errors.
#[derive(Debug)]
pub struct Extracted {
    /// The LoRA's folder.
    pub output: Output,
    /// Ranks and errors by module and in total.
    pub extraction: Extraction,
}

/// One of the two models.
enum Side {
    Model(Box<Checkpoint>),
    Tensors { plan: Plan, notes: Vec<String> },
}

impl Side {
    fn open(path: &Path, opening: Opening) -> Result<Self> {
        // A folder is a model's, with the errors for what it lacks.
        if !path.is_file() && opening.key.is_none() && opening.strip_prefix.is_none() {
            return Ok(Side::Model(Box::new(Checkpoint::open(path)?)));
        }
        match Input::open(path, opening)? {
            Input::Model(folder) => Ok(Side::Model(Box::new(folder))),
            Input::Weights { plan, notes, .. } => Ok(Side::Tensors { plan, notes }),
            Input::Gguf(_) | Input::Adapter => Err(Finding::new(path, "")
                .expected("a model's folder, or a file of tensors in safetensors or PyTorch's form")
                .found("another input")
                .mismatch()),
        }
    }

    fn base<'a>(&'a self, path: &Path) -> Base<'a> {
        match self {
            Side::Model(folder) => Base::of(folder),
            Side::Tensors { plan, .. } => Base::of_tensors(path, plan),
        }
    }

    /// Notes on how tensors alone were read.
    fn notes(&self) -> &[String] {
        match self {
            Side::Model(_) => &[],
            Side::Tensors { notes, .. } => notes,
        }
    }
}

/// Extracts the LoRA that approximately turns the base into the finetuned model.
///
/// # Errors
/// [`crate::Error::Setting`]; errors of opening the models; those of [`Pairs::extract`].
pub fn extract(settings: &ExtractSettings, watch: Watch) -> Result<Extracted> {
    if !settings.output.kind().is_lora() || settings.output.is_file() {
        return Err(setting("output").expected("a LoRA's folder").found("another kind").setting());
    }
    if !(1..=65536).contains(&settings.rank) {
        return Err(setting("rank").expected("1 to 65536").found(settings.rank).setting());
    }
    if let Some(energy) = settings.energy.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
        return Err(setting("energy").expected("a share above 0, and 1 at most").found(energy).setting());
    }
    settings.output.check()?;
    let strip_prefix = settings.strip_prefix.as_deref();
    let open = |path: &Path, key: &Option<String>| {
        Side::open(path, Opening { key: key.as_deref(), strip_prefix, ..Opening::default() })
    };
    let (before, after) = (open(&settings.base, &settings.key_a)?, open(&settings.finetuned, &settings.key_b)?);
    let (base, finetuned) = (before.base(&settings.base), after.base(&settings.finetuned));
    let pairs = Pairs::new(&base, &finetuned)?;
    let options = ExtractOptions {
        rank: settings.rank,
        energy: settings.energy,
        dtype: settings.output.lora_type()?,
        sketch: Sketch { seed: settings.seed, ..Sketch::default() },
        max_memory_bytes: settings.output.destination.max_memory,
    };
    let (total, done) = (pairs.modules.len() as u64, AtomicU64::new(0));
    let extraction = pairs.extract(&options, &|| {
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        watch(Step { what: "extracting", done, total });
    })?;
    let mut lora = extraction.lora(&base)?;
    let name = settings.base_id.clone().unwrap_or_else(|| settings.base.display().to_string());
    lora.config.insert("base_model_name_or_path".to_owned(), name.into());
    let notes = [before.notes(), after.notes(), &pairs.notes].concat();
    let output = settings.output.lora(&lora.config, &lora.tensors)?;
    Ok(Extracted { output: Output { notes, ..output }, extraction })
}
