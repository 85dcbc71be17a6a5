//! Inspection and comparison: what is in a checkpoint, an adapter or a bank, and how two checkpoints
//! differ, as data that prints or serializes.

mod adapter;
pub mod compare;
mod tensors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use adapter::AdapterReport;
pub use compare::Comparison;
pub use tensors::{TensorReport, TensorsReport, TypeReport};

use crate::adapter::AdapterFiles;
use crate::adapter::kohya::is_kohya;
use crate::bank::{AtomBank, BankReport};
use crate::checkpoint::Checkpoint;
use crate::convert::{Description, Input, class, describe};
use crate::error::Result;
use crate::output::safetensors_metadata;
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
    /// A LoRA as PEFT saves it: plain, DoRA, activated.
    Lora(Box<AdapterReport>),
    /// An adapter of another kind.
    Adapter(Box<AdapterReport>),
    /// An atom bank.
    Bank(Box<BankReport>),
}

impl Report {
    /// What can't be done with it, and why: it may name files.
    pub fn problem_mut(&mut self) -> Option<&mut String> {
        match self {
            Report::HfFolder { problem, .. } => problem.as_mut(),
            Report::Lora(adapter) | Report::Adapter(adapter) => adapter.problem.as_mut(),
            _ => None,
        }
    }

    /// Looks at `path` and reports what it is; `key` chooses a part of a PyTorch file.
    ///
    /// # Errors
    /// What opening it meets; [`crate::Error::Unsupported`] for something else.
    pub fn of(path: &Path, key: Option<&str>) -> Result<Self> {
        let input = match Input::open_stored(path, key) {
            // A folder may have nothing itself, and an adapter in a folder below.
            Err(error) if path.is_dir() => return Self::of_adapter(&AdapterFiles::find(path).map_err(|_| error)?),
            found => found?,
        };
        Ok(match input {
            Input::Adapter => Self::of_adapter(&AdapterFiles::find(path)?)?,
            Input::Weights { plan, .. } if path.is_file() && is_kohya(&plan) => {
                Self::of_adapter(&AdapterFiles::find(path)?)?
            }
            Input::Model(folder) => Self::of_folder(folder),
            Input::Weights { plan, others, .. } => {
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

    fn of_folder(folder: Checkpoint) -> Self {
        // What is in the files, packed or not; what the model is goes by the weights that they make.
        let (class, others) = (class(&folder), folder.others().to_vec());
        let tensors = TensorsReport::of_plan(folder.weights());
        let (model, problem) = match folder.unpacked().and_then(|folder| describe(&folder)) {
            Ok(Some(model)) => (Some(model), None),
            Ok(None) => (None, Some("no table for this class: convert writes a generic GGUF".to_owned())),
            // A config that can't be converted can be looked at all the same.
            Err(error) => (None, Some(error.to_string())),
        };
        Report::HfFolder { class, model, problem, others, tensors }
    }

    fn of_adapter(files: &AdapterFiles) -> Result<Self> {
        let kind = files.settings().and_then(|settings| settings.get("peft_type")?.as_str());
        if kind != Some("QUERYABLE_LORA") {
            let report = Box::new(AdapterReport::of(files)?);
            return Ok(if kind == Some("LORA") { Report::Lora(report) } else { Report::Adapter(report) });
        }
        Ok(Report::Bank(Box::new(BankReport::of(&AtomBank::open(files.path())?))))
    }
}
