//! Inspection and comparison: what is in a checkpoint, an adapter or a bank, and how two checkpoints
//! differ, as data that prints or serializes.

pub mod compare;
mod tensors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use compare::Comparison;
pub use tensors::{TensorReport, TensorsReport, TypeReport};

use crate::adapter::{Adapter, AdapterConfig};
use crate::bank::BankReport;
use crate::checkpoint::Checkpoint;
use crate::convert::{Description, Input, class, describe, safetensors_metadata};
use crate::error::Result;
use crate::plan::TensorRef;
use crate::source::Source;

/// What was found at a path.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Report {
    /// A Hugging Face folder.
    HfFolder {
        /// The class in transformers.
        class: String,
        /// What the config says, where this crate knows the class.
        model: Option<Description>,
        /// Why the model can't become a GGUF that llama.cpp runs, where it can't.
        problem: Option<String>,
        /// Paths and descriptions of what isn't a tensor.
        others: Vec<(String, String)>,
        /// What the files hold.
        tensors: TensorsReport,
    },
    /// Tensors without a config: safetensors or PyTorch files.
    Weights {
        /// `__metadata__` of safetensors files.
        metadata: BTreeMap<String, String>,
        /// Paths and descriptions of what isn't a tensor.
        others: Vec<(String, String)>,
        /// What the files hold.
        tensors: TensorsReport,
    },
    /// A GGUF file, or all shards of one.
    Gguf {
        /// The files.
        shards: Vec<PathBuf>,
        /// Its keys in order, values shortened for print.
        metadata: Vec<(String, String)>,
        /// What it holds.
        tensors: TensorsReport,
    },
    /// A plain LoRA.
    Lora {
        /// Rank.
        r: usize,
        /// Its alpha.
        lora_alpha: f64,
        /// The factor of its update.
        scale: f32,
        /// Linear layers it changes, by name.
        modules: Vec<String>,
        /// Decoder layers it changes.
        layers: Vec<usize>,
        /// Trained values.
        parameters: usize,
        /// What it holds.
        tensors: TensorsReport,
    },
    /// An atom bank.
    Bank(Box<BankReport>),
}

impl Report {
    /// Looks at `path` and reports what it is; `key` chooses a part of a PyTorch file.
    ///
    /// # Errors
    /// What opening it meets; [`crate::Error::Unsupported`] for something else.
    pub fn of(path: &Path, key: Option<&str>) -> Result<Self> {
        Ok(match Input::open(path, key)? {
            Input::Adapter => Self::of_adapter(&Adapter::open(path)?),
            Input::Model(folder) => Self::of_folder(&folder),
            Input::Weights { plan, others } => {
                let metadata = safetensors_metadata(&plan, &mut Vec::new());
                Report::Weights { metadata, others, tensors: TensorsReport::of_plan(&plan) }
            }
            Input::Gguf(model) => Report::Gguf {
                shards: model.shards().iter().map(|shard| shard.path().to_owned()).collect(),
                metadata: model.metadata().iter().map(|(k, v)| (k.to_owned(), v.to_string())).collect(),
                tensors: TensorsReport::of(model.tensors().iter().map(TensorRef::info)),
            },
        })
    }

    fn of_folder(folder: &Checkpoint) -> Self {
        let (model, problem) = match describe(folder) {
            Ok(Some(model)) => (Some(model), None),
            Ok(None) => (None, Some("no table for this class: convert writes a generic GGUF".to_owned())),
            // A config that can't be converted can be looked at all the same.
            Err(error) => (None, Some(error.to_string())),
        };
        Report::HfFolder {
            class: class(folder),
            model,
            problem,
            others: folder.others().to_vec(),
            tensors: TensorsReport::of_plan(folder.weights()),
        }
    }

    fn of_adapter(adapter: &Adapter) -> Self {
        match &adapter.config {
            AdapterConfig::Bank(config) => Report::Bank(Box::new(BankReport::of(adapter, config))),
            AdapterConfig::Lora(config) => {
                let (modules, layers) = crate::bank::modules_and_layers(adapter);
                Report::Lora {
                    r: config.r,
                    lora_alpha: config.lora_alpha,
                    scale: adapter.config.scale(),
                    modules,
                    layers,
                    parameters: adapter.parameters(),
                    tensors: TensorsReport::of_adapter(adapter),
                }
            }
        }
    }
}
