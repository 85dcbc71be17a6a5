//! Inspection and comparison: the content of a checkpoint, an adapter or a bank, and the differences between two
//! checkpoints, as data that can be printed or serialized.

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
use crate::bank::gguf::ARCHITECTURE;
use crate::bank::{AtomBank, BankReport, FixedBank};
use crate::checkpoint::{ADAPTER_CONFIG, Checkpoint};
use crate::convert::{Description, Input, Opening, class, describe};
use crate::error::Result;
use crate::filter::{FilterBank, FilterReport, PEFT_TYPE};
use crate::formats::gguf::GgufModel;
use crate::output::safetensors_metadata;
use crate::plan::TensorRef;
use crate::source::Source;

/// The report on a path.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Report {
    /// A Hugging Face folder.
    HfFolder {
        /// The class in transformers.
        class: String,
        /// The description from its config, if this crate knows the class.
        model: Option<Description>,
        /// Why the model can't be converted to a GGUF that llama.cpp runs, if it can't.
        problem: Option<String>,
        /// Paths and descriptions of values that aren't tensors.
        others: Vec<(String, String)>,
        /// The tensors in its files.
        tensors: TensorsReport,
    },
    /// Tensors without a config: safetensors or PyTorch files.
    Weights {
        /// The `__metadata__` of safetensors files.
        metadata: BTreeMap<String, String>,
        /// Paths and descriptions of values that aren't tensors.
        others: Vec<(String, String)>,
        /// How the files were read, where their names say otherwise, and classes that were only described.
        notes: Vec<String>,
        /// The tensors in the files.
        tensors: TensorsReport,
    },
    /// A GGUF file, including all its shards.
    Gguf {
        /// The files.
        shards: Vec<PathBuf>,
        /// Its keys in order, with values shortened for printing.
        metadata: Vec<(String, String)>,
        /// Its tensors.
        tensors: TensorsReport,
    },
    /// A LoRA saved by PEFT: plain, DoRA, or activated.
    Lora(Box<AdapterReport>),
    /// An adapter of another kind.
    Adapter(Box<AdapterReport>),
    /// An atom bank.
    Bank(Box<BankReport>),
    /// A bank of filter atoms.
    FilterAtoms(Box<FilterReport>),
}

impl Report {
    /// Why it can't be used, if it can't; the text may name files.
    pub fn problem_mut(&mut self) -> Option<&mut String> {
        match self {
            Report::HfFolder { problem, .. } => problem.as_mut(),
            Report::Lora(adapter) | Report::Adapter(adapter) => adapter.problem.as_mut(),
            _ => None,
        }
    }

    /// Reports what is at `path`.
    ///
    /// # Errors
    /// Errors of opening it; [`crate::Error::Unsupported`] if it is none of these forms.
    pub fn of(path: &Path, opening: Opening) -> Result<Self> {
        if path.file_name().is_some_and(|name| name == ADAPTER_CONFIG) {
            return Self::of_adapter(&AdapterFiles::find(path)?);
        }
        let input = match Input::open_stored(path, opening) {
            // The folder itself may have nothing, and a subfolder an adapter.
            Err(error) if path.is_dir() => return Self::of_adapter(&AdapterFiles::find(path).map_err(|_| error)?),
            found => found?,
        };
        Ok(match input {
            Input::Adapter => Self::of_adapter(&AdapterFiles::find(path)?)?,
            Input::Weights { plan, .. } if path.is_file() && AdapterFiles::is_file(path, &plan) => {
                Self::of_adapter(&AdapterFiles::find(path)?)?
            }
            Input::Model(folder) => Self::of_folder(folder),
            Input::Weights { plan, others, notes } => {
                let metadata = safetensors_metadata(&plan, &mut Vec::new());
                Report::Weights { metadata, others, notes, tensors: TensorsReport::of_plan(&plan) }
            }
            Input::Gguf(model) if is_bank(&model) => Report::Bank(Box::new(BankReport::of(&AtomBank::open(path)?))),
            Input::Gguf(model) => Report::Gguf {
                shards: model.shards().iter().map(|shard| shard.path().to_owned()).collect(),
                metadata: model.metadata().iter().map(|(k, v)| (k.to_owned(), v.to_string())).collect(),
                tensors: TensorsReport::of(model.tensors().iter().map(TensorRef::info)),
            },
        })
    }

    fn of_folder(folder: Checkpoint) -> Self {
        // Tensors are reported as stored, packed or not; the description uses the unpacked weights.
        let (class, others) = (class(&folder), folder.others().to_vec());
        let tensors = TensorsReport::of_plan(folder.weights());
        let (model, problem) = match folder.unpacked().and_then(|folder| describe(&folder)) {
            Ok(Some(model)) => (Some(model), None),
            Ok(None) => (
                None,
                Some(
                    "no family for this class: only a generic GGUF can be written (`jobs::convert` with `generic`)"
                        .to_owned(),
                ),
            ),
            // A config that can't be converted is still reported.
            Err(error) => (None, Some(error.to_string())),
        };
        Report::HfFolder { class, model, problem, others, tensors }
    }

    fn of_adapter(files: &AdapterFiles) -> Result<Self> {
        let kind = files.settings().and_then(|settings| settings.get("peft_type")?.as_str());
        if let (Some(PEFT_TYPE), Some(settings)) = (kind, files.settings()) {
            let config = files.path().join(ADAPTER_CONFIG);
            let bank = FilterBank::read(&config, settings, files.file(), files.tensors().clone())?;
            return Ok(Report::FilterAtoms(Box::new(FilterReport::of(&bank)?)));
        }
        if kind != Some("QUERYABLE_LORA") {
            let report = Box::new(AdapterReport::of(files)?);
            return Ok(if kind == Some("LORA") { Report::Lora(report) } else { Report::Adapter(report) });
        }
        if let Some(bank) = FixedBank::of(files, false)? {
            let mut report = AdapterReport::of(files)?;
            report.modules.retain(|module| module != "atom_bank");
            report.method = format!("a fixed mix of {} atoms", bank.atoms());
            report.problem = bank.at_mix(&[]).err().map(|error| error.to_string());
            return Ok(Report::Adapter(Box::new(report)));
        }
        Ok(Report::Bank(Box::new(BankReport::of(&AtomBank::open(files.path())?))))
    }
}

/// Whether a GGUF holds an atom bank: the same as its folder.
fn is_bank(model: &GgufModel) -> bool {
    model.metadata().text("general.architecture").is_ok_and(|name| name == ARCHITECTURE)
}
