//! Opens what a path names: a model folder, bare tensors, a GGUF, or an adapter.

use std::path::Path;
use std::sync::Arc;

use crate::adapter::CONFIG_FILE;
use crate::checkpoint::{Checkpoint, FolderWeights, has_weights, open_weights};
use crate::error::{Finding, Result};
use crate::formats::gguf::GgufModel;
use crate::formats::pytorch::PytorchFile;
use crate::formats::safetensors::SafetensorsFile;
use crate::plan::Plan;
use crate::source::Source;

/// An open input for a conversion.
pub enum Input {
    /// A folder with config.json.
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

/// File name extensions of PyTorch files.
pub const PYTORCH_EXTENSIONS: [&str; 4] = ["bin", "pt", "pth", "ckpt"];

/// Whether the folder `path` is an adapter. A folder that also has a model's config and weights is
/// a model: PEFT's settings often remain in the folder of a merged model.
pub(crate) fn is_adapter(path: &Path) -> bool {
    path.join(CONFIG_FILE).is_file() && !(path.join("config.json").is_file() && has_weights(path))
}

impl Input {
    /// Opens what `path` names. `key` selects one part of a PyTorch file, such as `state_dict`.
    ///
    /// # Errors
    /// Those of opening it; [`crate::Error::Unsupported`] for any other kind of file.
    pub fn open(path: &Path, key: Option<&str>) -> Result<Self> {
        match Self::open_stored(path, key)? {
            Input::Model(folder) => Ok(Input::Model(folder.unpacked()?)),
            other => Ok(other),
        }
    }

    /// Like [`Input::open`], but packed weights of a model folder stay packed.
    ///
    /// # Errors
    /// As [`Input::open`].
    pub fn open_stored(path: &Path, key: Option<&str>) -> Result<Self> {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        let is_pytorch = PYTORCH_EXTENSIONS.contains(&extension.as_str());
        if key.is_some() && !is_pytorch && !path.is_dir() {
            return Err(Finding::new("", "key")
                .expected("a PyTorch file to choose from")
                .found(format_args!("{:?}", path))
                .setting());
        }
        if path.is_dir() {
            if is_adapter(path) {
                return Ok(Input::Adapter);
            }
            if path.join("config.json").is_file() {
                let mut folder = Checkpoint::open_stored(path, key)?;
                if path.join(CONFIG_FILE).is_file() {
                    folder.note(format!("the folder holds a model and {CONFIG_FILE}: the model is taken"));
                }
                return Ok(Input::Model(folder));
            }
            let FolderWeights { plan, others, notes } = open_weights(path, key)?;
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
