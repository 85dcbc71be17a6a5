//! The Hugging Face folder: config.json, weights in safetensors or PyTorch files, tokenizer files.

#[cfg(feature = "hub")]
pub mod hub;
mod mistral;
mod prequantized;
mod shards;
mod tokenizer_files;
mod weights;
mod wrapped;
mod write;

use std::fs;
use std::path::{Path, PathBuf};

#[cfg(feature = "hub")]
pub(crate) use shards::read_index;
use tokenizer_files::is_tokenizer_file;
pub(crate) use tokenizer_files::{has_tokenizer, tokenizer_files};
pub(crate) use weights::{FolderWeights, has_weights, open_weights};

use crate::error::{Finding, IoContext, Result};
use crate::json::read_json_object;
use crate::output::{WEIGHT_EXTENSIONS, json_text};
use crate::plan::Plan;

/// Fields of config.json that hold the config of the text model in a model of several parts.
pub(crate) const TEXT_CONFIGS: [&str; 4] = ["text_config", "llm_config", "lm_config", "language_config"];

/// An open Hugging Face model folder of any architecture. Weights stay in their files.
///
/// Weights that were quantized before they were saved are plain tensors here: see [`Checkpoint::open`].
pub struct Checkpoint {
    path: PathBuf,
    /// config.json as it stands in the file, less what it says of packed weights. Of a folder in Mistral's own format,
    /// what config.json would say.
    pub config_json: serde_json::Map<String, serde_json::Value>,
    weights: Plan,
    rounded: Option<Plan>,
    others: Vec<(String, String)>,
    notes: Vec<String>,
    /// The folder of the tokenizer's files, if it is another.
    tokenizer: Option<PathBuf>,
    /// What is known of a folder in Mistral's own format.
    mistral: Option<mistral::Own>,
}

/// Whether a folder says which model it is: in config.json, or in params.json of Mistral's own format.
pub(crate) fn is_model(folder: &Path) -> bool {
    folder.join("config.json").is_file() || mistral::is_own(folder)
}

impl Checkpoint {
    /// Opens the folder: reads config.json, maps every weight file and checks its header. Weights that are quantized,
    /// as config.json says (`quantization_config`), become plain tensors.
    ///
    /// # Errors
    /// Missing or malformed files, an index that does not fit its shards, weights that are quantized in a way that
    /// this version doesn't know.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_stored(path, None)?.unpacked()
    }

    /// Opens the folder with its tensors as they are stored, packed ones too: to be looked at. `key` chooses one part
    /// of PyTorch files: `state_dict`. What programs that wrap a model put before its names is taken off; names of
    /// Mistral's own format are those of transformers here, but rows stand as they are stored.
    ///
    /// # Errors
    /// Missing or malformed files, an index that does not fit its shards.
    pub fn open_stored(path: &Path, key: Option<&str>) -> Result<Self> {
        let mut folder = Self::without_weights(path)?;
        let FolderWeights { plan, others, notes } = open_weights(path, key)?;
        (folder.weights, folder.others) = (plan, others);
        folder.notes.extend(notes);
        wrapped::unwrap_names(path, &mut folder.weights, &mut folder.notes)?;
        if let Some(own) = &mut folder.mistral {
            own.rename(path, &mut folder.weights, &mut folder.notes)?;
        }
        Ok(folder)
    }

    /// Opens the folder for what is in config.json and the tokenizer's files: its weights aren't looked at, and need
    /// not be there.
    ///
    /// # Errors
    /// Missing or malformed files.
    pub fn without_weights(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Err(Finding::new(path, "")
                .expected("a Hugging Face model folder")
                .found(if path.exists() { "a file" } else { "nothing" })
                .mismatch());
        }
        let mut notes = Vec::new();
        let (mistral, config_json) = match mistral::is_own(path) {
            true => mistral::Own::read(path, &mut notes).map(|(own, config)| (Some(own), config))?,
            false => (None, read_json_object(&path.join("config.json"))?),
        };
        let (weights, others) = (Plan::default(), Vec::new());
        let path = path.to_owned();
        Ok(Self { path, config_json, weights, rounded: None, others, notes, tokenizer: None, mistral })
    }

    /// With plain tensors for those that are packed, and every row where transformers has it.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn unpacked(mut self) -> Result<Self> {
        if let Some(unpacked) = prequantized::unpack(&self.path, &mut self.config_json, &self.weights)? {
            (self.weights, self.rounded) = (unpacked.weights, Some(unpacked.rounded));
            self.notes.extend(unpacked.notes);
        }
        if let Some(own) = &self.mistral {
            own.regroup(&mut self.weights)?;
            self.rounded.as_mut().map_or(Ok(()), |rounded| own.regroup(rounded))?;
        }
        Ok(self)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The plan that takes every tensor as it is, in the files' order: what other plans start from.
    pub fn weights(&self) -> &Plan {
        &self.weights
    }

    /// [`Checkpoint::weights`], but for weights that were packed: they are rounded to the type that they get by
    /// default, as the model is when its library has unpacked it. That is what adapters and other models meet; a
    /// conversion alone rounds what the method makes once, to the type of the output.
    pub fn rounded(&self) -> &Plan {
        self.rounded.as_ref().unwrap_or(&self.weights)
    }

    /// The name that the files have for the tensor that transformers calls `name`.
    pub(crate) fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.mistral.as_ref().map_or(name, |own| own.stored_name(name))
    }

    /// Whether the folder is in Mistral's own format: params.json and consolidated files.
    pub(crate) fn is_mistral_format(&self) -> bool {
        self.mistral.is_some()
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// What was done to open it, and what of it was left out: outputs say so.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether `file`, which stands beside the weights, says of them what is true no longer.
    fn is_outdated(&self, file: &str) -> bool {
        self.rounded.is_some() && prequantized::FILES.contains(&file)
            || self.mistral.is_some() && file == mistral::CONFIG
    }

    /// Makes the files beside the weights those of a model with these weights.
    pub(crate) fn bring_up_to_date(&self, files: &mut std::collections::BTreeMap<String, Vec<u8>>) {
        if self.rounded.is_some() || self.mistral.is_some() {
            files.retain(|name, _| !self.is_outdated(name));
            files.insert("config.json".to_owned(), (json_text(&self.config_json) + "\n").into_bytes());
        }
    }

    /// What the weight files hold beside tensors, as path and description: no output takes it along.
    /// Empty for safetensors.
    pub fn others(&self) -> &[(String, String)] {
        &self.others
    }

    /// Everything in the folder that isn't weights: what a converted folder takes along. Weight
    /// files of other frameworks, hidden files and subfolders stay behind.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn companion_files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        if let Some(folder) = &self.tokenizer {
            files.extend(tokenizer_files(folder).into_iter().map(|name| folder.join(name)));
        }
        for entry in fs::read_dir(&self.path).at(&self.path, "read")? {
            let path = entry.at(&self.path, "read")?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if self.tokenizer.is_some() && is_tokenizer_file(&name) {
                continue;
            }
            let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            let skipped =
                name.starts_with('.') || name.ends_with(".index.json") || WEIGHT_EXTENSIONS.contains(&&*extension);
            let skipped = skipped || self.is_outdated(&name);
            if path.is_file() && !skipped {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }
}
