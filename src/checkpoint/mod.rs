//! Hugging Face folders: config.json, weights in safetensors or PyTorch files, tokenizer files.

#[cfg(feature = "hub")]
pub mod hub;
mod mistral;
mod prequantized;
mod shards;
mod tokenizer_files;
mod weights;
mod wrapped;
mod write;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

#[cfg(feature = "hub")]
pub(crate) use shards::read_index;
use tokenizer_files::OtherTokenizer;
#[cfg(feature = "train")]
pub(crate) use tokenizer_files::is_tokenizer_file;
pub(crate) use tokenizer_files::{
    PLAMO_FILE, RWKV_FILE, TEKKEN_FILE, VocabularyForm, has_tokenizer, tokenizer_files, vocabulary_file,
};
pub(crate) use weights::{FolderWeights, has_weights, open_weights};
pub(crate) use wrapped::ANYWHERE as WRAPPED_ANYWHERE;

use crate::error::{Finding, IoContext, Result};
use crate::json::read_json_object;
use crate::output::{WEIGHT_EXTENSIONS, json_text};
use crate::plan::Plan;

/// PEFT's name of the file with an adapter's settings.
pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Lists the parts of a model that are left out, each with the number of its tensors, for a note.
pub(crate) fn counted_parts<K: Display>(parts: &BTreeMap<K, usize>) -> String {
    let tensors = |count: usize| if count == 1 { "tensor" } else { "tensors" };
    let counted: Vec<String> =
        parts.iter().map(|(part, &count)| format!("{part} ({count} {})", tensors(count))).collect();
    counted.join(", ")
}

/// The fields of config.json that may hold the config of the text model, in a model of several parts.
pub(crate) const TEXT_CONFIGS: [&str; 4] = ["text_config", "llm_config", "lm_config", "language_config"];

/// An open Hugging Face model folder of any architecture. Weights stay in their files.
///
/// Weights that were quantized before they were saved appear here as plain tensors: see [`Checkpoint::open`].
pub struct Checkpoint {
    path: PathBuf,
    /// The content of config.json, without its fields about packed weights. For a folder in Mistral's own format, the
    /// equivalent config.json.
    pub config_json: serde_json::Map<String, serde_json::Value>,
    weights: Plan,
    rounded: Option<Plan>,
    others: Vec<(String, String)>,
    notes: Vec<String>,
    /// The tokenizer of another folder, if it has that.
    tokenizer: Option<OtherTokenizer>,
    /// The facts about a folder in Mistral's own format.
    mistral: Option<mistral::Own>,
}

/// Returns whether a folder describes a model: in config.json, or in params.json of Mistral's own format.
pub(crate) fn is_model(folder: &Path) -> bool {
    folder.join("config.json").is_file() || mistral::is_own(folder)
}

impl Checkpoint {
    /// Opens the folder: reads config.json, maps every weight file and checks its header. Quantized weights, as
    /// declared in `quantization_config` of config.json, become plain tensors.
    ///
    /// # Errors
    /// Missing or malformed files, an index that does not fit its shards, weights in a quantization that this version
    /// doesn't know.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_stored(path, None)?.unpacked()
    }

    /// Opens the folder with its tensors as they are stored, including packed ones, for inspection. `key` chooses one
    /// part of PyTorch files: `state_dict`. Prefixes that wrapper programs add to names are removed. Names of Mistral's
    /// own format are translated to those of transformers, but the rows keep their stored order.
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

    /// Opens the folder for its config.json and tokenizer files only. Its weights aren't read, and may be missing.
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

    /// The folder of a model without config.json, which is known by its tensors.
    pub(crate) fn described(
        path: &Path,
        config_json: serde_json::Map<String, serde_json::Value>,
        weights: FolderWeights,
    ) -> Self {
        let FolderWeights { plan, others, mut notes } = weights;
        let class = config_json.get("architectures").and_then(|classes| classes.get(0)?.as_str()).unwrap_or_default();
        notes.push(format!("{}: no config.json: read as {class} by the names of its tensors", path.display()));
        let (path, tokenizer, rounded, mistral) = (path.to_owned(), None, None, None);
        Self { path, config_json, weights: plan, rounded, others, notes, tokenizer, mistral }
    }

    /// Converts packed tensors to plain ones, and puts all rows into the order of transformers.
    ///
    /// # Errors
    /// The same as for [`Checkpoint::open`].
    pub fn unpacked(mut self) -> Result<Self> {
        let unpacked = prequantized::unpack(&self.path, &mut self.config_json, &self.weights);
        if let Some(unpacked) = self.in_own_words(unpacked)? {
            (self.weights, self.rounded) = (unpacked.weights, Some(unpacked.rounded));
            self.notes.extend(unpacked.notes);
        }
        if let Some(own) = &self.mistral {
            let regrouped = own.regroup(&mut self.weights);
            let rounded = self.rounded.as_mut().map_or(Ok(()), |rounded| own.regroup(rounded));
            self.in_own_words(regrouped.and(rounded))?;
        }
        Ok(self)
    }

    /// Returns the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the plan that takes every tensor as it is, in the files' order. Other plans start from this one.
    pub fn weights(&self) -> &Plan {
        &self.weights
    }

    /// Returns [`Checkpoint::weights`], but with packed weights rounded to their default type, as when the model's
    /// library unpacks them. Adapters and other models are combined with these values. Only a conversion skips this
    /// step: it rounds the unpacked values once, to the type of the output.
    pub fn rounded(&self) -> &Plan {
        self.rounded.as_ref().unwrap_or(&self.weights)
    }

    /// Returns whether weights were packed, and are plain now.
    pub(crate) fn was_packed(&self) -> bool {
        self.rounded.is_some()
    }

    /// Returns the name in the files of the tensor that transformers calls `name`.
    pub(crate) fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.mistral.as_ref().map_or(name, |own| own.stored_name(name))
    }

    /// Returns whether the folder is in Mistral's own format: params.json and consolidated files.
    pub(crate) fn is_mistral_format(&self) -> bool {
        self.mistral.is_some()
    }

    /// Returns the result, whose error names files, fields and tensors as the folder has them.
    pub(crate) fn in_own_words<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match &self.mistral {
            Some(own) => error.map_texts(&|text| own.own_words(text)),
            None => error,
        })
    }

    /// Does the same for a note.
    pub(crate) fn note_in_own_words(&self, note: String) -> String {
        self.mistral.as_ref().map_or_else(|| note.clone(), |own| own.own_words(&note))
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Returns notes about how it was opened, and what was left out. They become notes of the outputs.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns whether `file`, which isn't a weight file, describes the weights in a way that is no longer true.
    fn is_outdated(&self, file: &str) -> bool {
        self.rounded.is_some() && prequantized::FILES.contains(&file)
            || self.mistral.is_some() && file == mistral::CONFIG
    }

    /// Updates the files other than weights so that they describe these weights.
    pub(crate) fn bring_up_to_date(&self, files: &mut BTreeMap<String, Vec<u8>>) {
        if self.rounded.is_some() || self.mistral.is_some() {
            files.retain(|name, _| !self.is_outdated(name));
            files.insert("config.json".to_owned(), (json_text(&self.config_json) + "\n").into_bytes());
        }
    }

    /// Returns the values in the weight files that aren't tensors, as path and description. No output contains them.
    /// Empty for safetensors.
    pub fn others(&self) -> &[(String, String)] {
        &self.others
    }

    /// Returns everything in the folder that isn't weights, for copying into a converted folder. Weight files of other
    /// frameworks, hidden files and subfolders are left out.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn companion_files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        files.extend(self.tokenizer.iter().flat_map(OtherTokenizer::files));
        for entry in fs::read_dir(&self.path).at(&self.path, "read")? {
            let path = entry.at(&self.path, "read")?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if self.tokenizer.as_ref().is_some_and(|other| other.replaces(&name)) {
                continue;
            }
            let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            let skipped =
                name.starts_with('.') || name.ends_with(".index.json") || WEIGHT_EXTENSIONS.contains(&&*extension);
            // Left over from an adapter that was merged: transformers would look for the adapter's weights.
            let skipped = skipped || self.is_outdated(&name) || name == ADAPTER_CONFIG;
            if path.is_file() && !skipped {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }
}
