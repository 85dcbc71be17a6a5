//! Opens what a path names: a model folder, bare tensors, a GGUF, or an adapter.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::arch::registry;
use crate::checkpoint::ADAPTER_CONFIG;
use crate::checkpoint::{Checkpoint, FolderWeights, has_weights, is_model, open_weights};
use crate::error::{Finding, Result};
use crate::formats::gguf::GgufModel;
use crate::formats::pytorch::PytorchFile;
use crate::formats::safetensors::SafetensorsFile;
use crate::plan::Plan;
use crate::source::Source;

/// An open input for a conversion.
pub enum Input {
    /// A folder with config.json, with params.json of Mistral's own format, or with tensors by which a family knows it.
    Model(Checkpoint),
    /// Tensors without a config: one file, or a folder of shards.
    Weights {
        /// All tensors, unchanged.
        plan: Plan,
        /// Paths and descriptions of values that aren't tensors.
        others: Vec<(String, String)>,
        /// Notes on files that were skipped.
        notes: Vec<String>,
    },
    /// A GGUF file, including its other shards.
    Gguf(GgufModel),
    /// A folder with adapter_config.json: a LoRA or an atom bank.
    Adapter,
}

/// How to read a folder that has both a model and adapter_config.json.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// As a model. This is the default, because a merged model's folder often still has the
    /// adapter's settings.
    Model,
    /// As an adapter or an atom bank.
    Adapter,
}

/// Options for opening an input.
#[derive(Debug, Clone, Copy, Default)]
pub struct Opening<'a> {
    /// The part of a PyTorch file, such as `state_dict`.
    pub key: Option<&'a str>,
    /// How to read a folder that has both a model and adapter_config.json; `None` is as
    /// [`Content::Model`].
    pub content: Option<Content>,
}

/// Extensions of PyTorch files.
pub const PYTORCH_EXTENSIONS: [&str; 4] = ["bin", "pt", "pth", "ckpt"];

/// Whether the folder `path` holds both a model and the settings of an adapter.
pub(crate) fn can_be_either(path: &Path) -> bool {
    path.join(ADAPTER_CONFIG).is_file() && is_model(path) && has_weights(path)
}

/// Whether to read the folder `path` as an adapter. A folder with both a model and
/// adapter_config.json is read as a model, unless `content` says otherwise: the settings are often
/// left over from an adapter that was merged.
pub(crate) fn is_adapter(path: &Path, content: Option<Content>) -> bool {
    match content {
        Some(Content::Model) => false,
        Some(Content::Adapter) => path.join(ADAPTER_CONFIG).is_file(),
        None => path.join(ADAPTER_CONFIG).is_file() && !can_be_either(path),
    }
}

impl Input {
    /// Opens what is at `path`.
    ///
    /// # Errors
    /// Errors of opening it; [`crate::Error::Unsupported`] if it is none of the forms of [`Input`].
    pub fn open(path: &Path, opening: Opening) -> Result<Self> {
        match Self::open_stored(path, opening)? {
            Input::Model(folder) => Ok(Input::Model(folder.unpacked()?)),
            other => Ok(other),
        }
    }

    /// Like [`Input::open`], but packed weights of a model folder stay packed.
    ///
    /// # Errors
    /// As [`Input::open`].
    pub fn open_stored(path: &Path, opening: Opening) -> Result<Self> {
        let Opening { key, content } = opening;
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        let is_pytorch = PYTORCH_EXTENSIONS.contains(&extension.as_str());
        if key.is_some() && !is_pytorch && !path.is_dir() {
            return Err(Finding::new("", "key")
                .expected("a PyTorch file to choose from")
                .found(format_args!("{:?}", path))
                .setting());
        }
        if content.is_some() && path.is_file() {
            let finding = Finding::new("", "as").expected("a folder, which can hold a model and an adapter");
            return Err(finding.found(format_args!("the file {}", path.display())).setting());
        }
        if path.is_dir() {
            if content == Some(Content::Model) && path.join(ADAPTER_CONFIG).is_file() && !is_model(path) {
                let finding = Finding::new(path, "").expected("a model: a folder with config.json");
                return Err(finding.found("an adapter alone").mismatch());
            }
            if is_adapter(path, content) {
                return Ok(Input::Adapter);
            }
            if content == Some(Content::Adapter) {
                let finding =
                    Finding::new(path, "").expected(format_args!("an adapter: a folder with {ADAPTER_CONFIG}"));
                return Err(finding.found("none").mismatch());
            }
            if is_model(path) {
                let mut folder = Checkpoint::open_stored(path, key)?;
                if path.join(ADAPTER_CONFIG).is_file() && content.is_none() {
                    folder.note(format!(
                        "the folder holds a model and {ADAPTER_CONFIG}: the model is taken (`as` chooses)"
                    ));
                }
                return Ok(Input::Model(folder));
            }
            let weights = open_weights(path, key)?;
            if let Some(config) = registry::config_by_tensors(&weights.plan) {
                return Ok(Input::Model(Checkpoint::described(path, config, weights)));
            }
            let FolderWeights { plan, others, notes } = weights;
            return Ok(Input::Weights { plan, others, notes });
        }
        match extension.as_str() {
            "gguf" => Ok(Input::Gguf(GgufModel::open(path)?)),
            "safetensors" => {
                let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(path)?);
                Ok(Input::Weights { plan: Plan::taking(&source), others: Vec::new(), notes: Vec::new() })
            }
            _ if is_pytorch => {
                let file = PytorchFile::open(path, key)?;
                let others = file.others().to_vec();
                if file.tensors().is_empty() {
                    let finding = Finding::new(path, "").expected("tensors").found("none");
                    return Err(finding.hint("`report::Report` shows what is in it").mismatch());
                }
                let source: Arc<dyn Source> = Arc::new(file);
                Ok(Input::Weights { plan: Plan::taking(&source), others, notes: Vec::new() })
            }
            _ => Err(Finding::new(path, "")
                .expected("a model or adapter folder, or a .gguf, .safetensors, .bin, .pt, .pth or .ckpt file")
                .found(if path.exists() { "something else" } else { "nothing" })
                .unsupported()),
        }
    }
}
