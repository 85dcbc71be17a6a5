//! Bakes a bank with a fixed mix of its atoms into a model of any class, or into tensors alone. No model is run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::merge::merge_at_mix;
use super::settings::{name_of, setting};
use super::{MergeInput, MergeSettings, OutputKind, OutputSettings};
use crate::adapter::AdapterFiles;
use crate::arch::HfFolder;
use crate::bank::{AtMix, BlockAlphas, FixedBank};
use crate::checkpoint::is_model;
use crate::error::{Finding, Result};
use crate::formats::FileKind;
use crate::output::Output;
use crate::plan::{Plan, PlannedTensor};

/// Settings of [`bake_mix`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BakeMixSettings {
    /// The model: a folder, a GGUF, or tensors alone in a PyTorch or safetensors file.
    pub base: PathBuf,
    /// The model's name on the hub, if that isn't its path.
    #[serde(default)]
    pub base_id: Option<String>,
    /// The part of a PyTorch file that has the weights, such as `state_dict`.
    #[serde(default)]
    pub key: Option<String>,
    /// What is taken off the names of tensors alone that begin with it, such as `module.`.
    #[serde(default)]
    pub strip_prefix: Option<String>,
    /// The bank's folder.
    pub bank: PathBuf,
    /// The bank's name on the hub, if that isn't its path.
    #[serde(default)]
    pub bank_id: Option<String>,
    /// The weights of its atoms; where there are none, those of its settings.
    #[serde(default)]
    pub alphas: Vec<BlockAlphas>,
    /// Where the result is written, and in which form.
    pub output: OutputSettings,
}

/// A model with a fixed mix of a bank's atoms.
#[derive(Debug)]
pub struct BakedMix {
    /// The output to write.
    pub output: Output,
    /// The weights of the atoms in each block that has modules, each `[K]`.
    pub alphas: BTreeMap<usize, Vec<f32>>,
}

/// Whether the bank at `bank` gets its mix without a model that runs: it has no router, or its mix is `given` and the model
/// at `base` can't be run.
pub fn needs_no_model(base: &Path, bank: &Path, given: bool) -> Result<bool> {
    if FixedBank::is_at(bank)? {
        return Ok(true);
    }
    let is_gguf = || matches!(FileKind::of(base), Ok(Some(FileKind::Gguf)));
    Ok(given && if base.is_file() { !is_gguf() } else { !is_model(base) || HfFolder::open(base).is_err() })
}

/// Bakes a bank with a fixed mix of its atoms.
///
/// # Errors
/// [`crate::Error::Setting`]; errors of opening model and bank; those of [`FixedBank::at_mix`];
/// [`crate::Error::Mismatch`] for factors that don't fit the model.
pub fn bake_mix(settings: &BakeMixSettings) -> Result<BakedMix> {
    BlockAlphas::check(&settings.alphas, || setting("alphas"), Finding::setting)?;
    let mut merged = MergeSettings::new(&settings.base, [&settings.bank], &settings.output.destination.path);
    merged.base_id.clone_from(&settings.base_id);
    merged.key.clone_from(&settings.key);
    merged.strip_prefix.clone_from(&settings.strip_prefix);
    merged.others = vec![MergeInput { path: settings.bank.clone(), id: settings.bank_id.clone(), weight: 1.0 }];
    merged.output = settings.output.clone();
    let files = AdapterFiles::find(&settings.bank)?;
    let Some(bank) = FixedBank::of(&files, true)? else {
        let finding = Finding::new(&settings.bank, "").expected("an atom bank's folder");
        return Err(finding.found("another adapter").mismatch());
    };
    let AtMix { lora, alphas } = bank.at_mix(&settings.alphas)?;
    if settings.output.kind() != OutputKind::Lora {
        return Ok(BakedMix { output: merge_at_mix(&merged, &settings.alphas, &|_| ())?.output, alphas });
    }
    // The factors are the bank's own, with its rank and alpha: no sum of several LoRAs has to be made. The plan of the merged
    // model shows whether they fit.
    settings.output.check()?;
    merged.output = OutputSettings { to: Some(OutputKind::Safetensors), dry_run: true, ..OutputSettings::new("model") };
    merge_at_mix(&merged, &settings.alphas, &|_| ())?;
    Ok(BakedMix { output: as_lora(settings, &lora)?, alphas })
}

/// The folder of `lora`, a bank at a mix.
fn as_lora(settings: &BakeMixSettings, lora: &AdapterFiles) -> Result<Output> {
    let dtype = settings.output.lora_type()?;
    let mut config = lora.settings().cloned().unwrap_or_default();
    let base = name_of(settings.base_id.as_deref(), &settings.base);
    config.insert("base_model_name_or_path".to_owned(), base.into());
    let tensors = lora.tensors().tensors.iter().map(|tensor| PlannedTensor { dtype, ..tensor.clone() });
    let notes = lora.notes().to_vec();
    Ok(Output { notes, ..Output::adapter(&config, Plan { tensors: tensors.collect() }) })
}
