//! What stands at a path: a model folder, bare tensors, a GGUF, an adapter.

use std::path::Path;
use std::sync::Arc;

use crate::adapter::CONFIG_FILE;
use crate::checkpoint::{Checkpoint, FolderWeights, has_weights, is_model, open_weights};
use crate::error::{Finding, Result};
use crate::formats::gguf::GgufModel;
use crate::formats::pytorch::PytorchFile;
use crate::formats::safetensors::SafetensorsFile;
use crate::plan::Plan;
use crate::source::Source;

/// Something that can be converted, open.
pub enum Input {
    /// A folder with config.json, or with params.json of Mistral's own format.
    Model(Checkpoint),
    /// Tensors without a config: one file, or a folder of shards.
    Weights {
        /// Every tensor as it is.
        plan: Plan,
        /// Paths and descriptions of what isn't a tensor.
        others: Vec<(String, String)>,
        /// Which files were passed over.
        notes: Vec<String>,
    },
    /// A GGUF file, with its other shards where it has any.
    Gguf(GgufModel),
    /// A folder with adapter_config.json: a LoRA or an atom bank.
    Adapter,
}

/// Names that PyTorch files go by.
pub const PYTORCH_EXTENSIONS: [&str; 4] = ["bin", "pt", "pth", "ckpt"];

/// Whether the folder `path` is an adapter. PEFT's settings are often left over beside a model that the adapter was
/// merged into: then it is a model.
pub(crate) fn is_adapter(path: &Path) -> bool {
    path.join(CONFIG_FILE).is_file() && !(is_model(path) && has_weights(path))
}

impl Input {
    /// Opens what stands at `path`. `key` chooses one part of a PyTorch file: `state_dict`.
    ///
    /// # Errors
    /// What opening it meets; [`crate::Error::Unsupported`] for something else.
    pub fn open(path: &Path, key: Option<&str>) -> Result<Self> {
        match Self::open_stored(path, key)? {
            Input::Model(folder) => Ok(Input::Model(folder.unpacked()?)),
            other => Ok(other),
        }
    }

    /// As [`Input::open`], but for packed weights of a model folder, which stay as they are stored.
    ///
    /// # Errors
    /// As there.
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
            if is_model(path) {
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
