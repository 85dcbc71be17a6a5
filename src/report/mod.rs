//! Inspection: what is in a checkpoint, an adapter or a bank, as data that prints or serializes.

mod bank;
mod tensors;

use std::path::Path;

use serde::Serialize;

pub use bank::{AtomReport, BankReport};
pub use tensors::{TensorReport, TensorsReport, TypeReport};

use crate::adapter::{Adapter, AdapterConfig};
use crate::checkpoint::{HfFolder, expected_tensors};
use crate::error::{Finding, Result};
use crate::formats::Source;
use crate::formats::gguf::GgufFile;
use crate::formats::safetensors::SafetensorsFile;

/// What was found at a path.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Report {
    /// A Hugging Face folder.
    HfFolder {
        /// The class in transformers.
        architecture: String,
        /// Decoder layers.
        layers: usize,
        /// Width of the residual stream.
        hidden_size: usize,
        /// Query heads, key and value heads, elements a head.
        heads: [usize; 3],
        /// Tokens.
        vocab_size: usize,
        /// Whether input and output embeddings are one.
        tied_embeddings: bool,
        /// Tensors the config asks for and the files lack.
        missing: Vec<String>,
        /// What the files hold.
        tensors: TensorsReport,
    },
    /// One safetensors file.
    Safetensors {
        /// Its `__metadata__`.
        metadata: std::collections::BTreeMap<String, String>,
        /// What it holds.
        tensors: TensorsReport,
    },
    /// A GGUF file.
    Gguf {
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
    /// Looks at `path` and reports what it is.
    ///
    /// # Errors
    /// What opening it meets; [`crate::Error::Unsupported`] for something else.
    pub fn of(path: &Path) -> Result<Self> {
        if path.is_dir() {
            if path.join("adapter_config.json").is_file() {
                return Ok(Self::of_adapter(&Adapter::open(path)?));
            }
            return Self::of_folder(&HfFolder::open(path)?);
        }
        match path.extension().and_then(|e| e.to_str()) {
            Some("gguf") => {
                let file = GgufFile::open(path)?;
                let metadata = file.metadata().iter().map(|(k, v)| (k.to_owned(), v.to_string())).collect();
                Ok(Report::Gguf { metadata, tensors: TensorsReport::of(file.tensors()) })
            }
            Some("safetensors") => {
                let file = SafetensorsFile::open(path)?;
                let tensors = TensorsReport::of(file.tensors());
                Ok(Report::Safetensors { metadata: file.metadata().clone(), tensors })
            }
            _ => Err(Finding::new(path, "")
                .expected("a model folder, an adapter folder, a .safetensors or a .gguf file")
                .found(if path.exists() { "something else" } else { "nothing" })
                .unsupported()),
        }
    }

    fn of_folder(folder: &HfFolder) -> Result<Self> {
        let c = &folder.config;
        let infos: Vec<_> = folder
            .weights()
            .tensors
            .iter()
            .filter_map(|t| t.expr.sources().first().map(|s| s.info().clone()))
            .collect();
        let missing = expected_tensors(c)
            .into_iter()
            .map(|(name, _)| name)
            .filter(|n| folder.weights().get(n).is_none())
            .collect();
        Ok(Report::HfFolder {
            architecture: c.architecture.name().to_owned(),
            layers: c.num_hidden_layers,
            hidden_size: c.hidden_size,
            heads: [c.num_attention_heads, c.num_key_value_heads, c.head_dim],
            vocab_size: c.vocab_size,
            tied_embeddings: c.tie_word_embeddings,
            missing,
            tensors: TensorsReport::of(&infos),
        })
    }

    fn of_adapter(adapter: &Adapter) -> Self {
        match &adapter.config {
            AdapterConfig::Bank(config) => Report::Bank(Box::new(BankReport::of(adapter, config))),
            AdapterConfig::Lora(config) => {
                let (modules, layers) = bank::modules_and_layers(adapter);
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
