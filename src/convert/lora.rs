//! LoRA adapters as GGUF files: adds the keys that every GGUF has, from the names and the model card in the adapter's
//! folder.
//!
//! The keys and tensors of the LoRA itself come from the room `adapter`.

use std::path::{Path, PathBuf};

use serde_json::Map;

use super::general::{self, GeneralOptions, TensorTotals};
use super::{OutType, from_gguf as restored};
use crate::adapter::gguf::{ALORA_KEY, ALPHA_KEY, with_expected};
pub use crate::adapter::gguf::{PeftFolder, RowOrder, from_gguf};
use crate::adapter::peft::Base;
use crate::adapter::{AdapterFiles, gguf};
use crate::arch::wrapper::family;
use crate::arch::{Config, Family};
use crate::checkpoint::{Checkpoint, has_weights, is_model};
use crate::error::{Finding, Result};
use crate::formats::gguf::{Array, GgufModel, Metadata, QUANTIZATION_VERSION, QUANTIZATION_VERSION_KEY, Value};
use crate::output::Output;
use crate::plan::Plan;

/// A LoRA's base: a model's folder, its config.json alone, or its GGUF.
pub struct LoraBase {
    path: PathBuf,
    config: Config,
    weights: Plan,
}

impl LoraBase {
    /// Opens the base at `path`: a folder or a GGUF. Without weight files, names and shapes come from config.json.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; for a GGUF, those of [`GgufModel::open`] and of converting it back.
    pub fn open(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|extension| extension == "gguf") {
            let model = GgufModel::open(path)?;
            if model.metadata().get("adapter.type").is_some() {
                let finding = Finding::new(path, "general.type").expected("the GGUF of a model, as the base");
                return Err(finding.found("one of an adapter").mismatch());
            }
            let Some((config, output)) = restored(&model, None)? else {
                let finding = model.metadata().finding("general.architecture");
                let found = model.metadata().text("general.architecture")?;
                return Err(finding.expected("the base model's, which has a family").found(found).unsupported());
            };
            if family(&config).is_some_and(Family::multiplies) {
                let expected =
                    "the folder of the base model: its config.json has factors of weights that a GGUF doesn't say";
                return Err(Finding::new(path, "base").expected(expected).found("its GGUF").unsupported());
            }
            return Self::new(path, config, output.plan);
        }
        let opened = match has_weights(path) || !is_model(path) {
            true => Checkpoint::open(path)?,
            false => Checkpoint::without_weights(path)?,
        };
        Self::new(path, opened.config_json.clone(), opened.weights().clone())
    }

    /// A base with this config and the available part of its weights; errors name `path`.
    ///
    /// # Errors
    /// Those of reading the config.
    pub fn new(path: &Path, config: Config, weights: Plan) -> Result<Self> {
        let weights = with_expected(path, &config, weights)?;
        Ok(Self { path: path.to_owned(), config, weights })
    }

    /// The base in the form that adapters need.
    pub fn base(&self) -> Base<'_> {
        Base::new(&self.path, &self.config, &self.weights)
    }
}

/// The GGUF file of the LoRA at `path`, trained on `base`, with notes on what is left out.
///
/// # Errors
/// [`crate::Error::Unsupported`] for what llama.cpp's adapters can't hold: DoRA, whole weights, biases, modules for
/// which the base's GGUF has no weight; [`crate::Error::Mismatch`] for factors that don't fit each other, the config or
/// the base.
pub fn to_gguf(path: &Path, base: &Base, outtype: OutType) -> Result<Output> {
    let files = AdapterFiles::find(path)?;
    let gguf::GgufLora { architecture, alpha, invocation_tokens, plan, mut notes } =
        gguf::to_gguf(&files, base, outtype.dtype(files.tensors()))?;
    let mut metadata = Metadata::new(path);
    metadata.insert("general.architecture", architecture);
    metadata.insert("general.type", "adapter");
    metadata.insert("adapter.type", "lora");
    // The real folder name is needed even if it is given as `.`.
    let folder: PathBuf = files.path().canonicalize().unwrap_or_else(|_| files.path().to_owned());
    let (totals, options) = (TensorTotals::of(&plan), GeneralOptions::default());
    general::write(&mut metadata, &folder, &Map::new(), architecture, totals, &options, &mut notes)?;
    metadata.insert("general.type", "adapter");
    metadata.insert(ALPHA_KEY, alpha);
    if !invocation_tokens.is_empty() {
        metadata.insert(ALORA_KEY, Value::Array(Array::U32(invocation_tokens)));
    }
    metadata.insert(QUANTIZATION_VERSION_KEY, QUANTIZATION_VERSION);
    Ok(Output::gguf(metadata, plan, notes))
}

#[cfg(test)]
mod tests;
