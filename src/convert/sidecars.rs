//! What stands beside the tensors of a folder, and how GGUF's keys carry it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::companions::Companions;
use crate::error::Result;
use crate::formats::gguf::Metadata;
use crate::plan::Plan;

/// Keys that follow from a GGUF file itself, or are only its title.
const TECHNICAL: &[&str] = &["architecture", "type", "name", "alignment", "file_type", "quantization_version"];

/// What stands beside the tensors of a folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sidecars {
    /// config.json, tokenizer files and the like.
    pub files: Companions,
    /// `__metadata__` of the safetensors files.
    pub safetensors_metadata: BTreeMap<String, String>,
}

impl Sidecars {
    /// What stands in `folder` beside the files of `weights`, and notes on what is left out.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn read(folder: &Path, weights: &Plan) -> Result<(Self, Vec<String>)> {
        let (files, mut notes) = Companions::read(folder, weights)?;
        let safetensors_metadata = safetensors_metadata(weights, &mut notes);
        Ok((Self { files, safetensors_metadata }, notes))
    }

    /// Sets `{prefix}safetensors_metadata`, a JSON object, and `{prefix}file.NAME` for every file.
    pub(crate) fn put(&self, metadata: &mut Metadata, prefix: &str) {
        if !self.safetensors_metadata.is_empty() {
            metadata.insert(format!("{prefix}safetensors_metadata"), json_text(&self.safetensors_metadata));
        }
        self.files.put(metadata, &format!("{prefix}file."));
    }

    /// What [`Sidecars::put`] has set.
    ///
    /// # Errors
    /// [`crate::Error::Format`] naming the key.
    pub(crate) fn take(metadata: &Metadata, prefix: &str) -> Result<Self> {
        let safetensors_metadata = parsed(metadata, &format!("{prefix}safetensors_metadata"))?.unwrap_or_default();
        Ok(Self { files: Companions::take(metadata, &format!("{prefix}file."))?, safetensors_metadata })
    }

    /// Whether [`Sidecars::put`] sets keys like this one.
    pub(crate) fn owns(key: &str, prefix: &str) -> bool {
        let rest = key.strip_prefix(prefix);
        rest.is_some_and(|rest| rest == "safetensors_metadata" || rest.starts_with("file."))
    }
}

/// `__metadata__` of the safetensors files that `weights` come from, as one; where they contradict
/// each other the first one counts, and `notes` say so.
pub fn safetensors_metadata(weights: &Plan, notes: &mut Vec<String>) -> BTreeMap<String, String> {
    let sources = weights.tensors.iter().flat_map(|tensor| tensor.expr.sources());
    let files: BTreeMap<&Path, &BTreeMap<String, String>> =
        sources.filter_map(|source| Some((source.path(), source.text_metadata()?))).collect();
    let mut metadata = BTreeMap::new();
    for (path, texts) in files {
        for (key, text) in texts {
            let kept = metadata.entry(key.clone()).or_insert_with(|| text.clone());
            if kept != text {
                let path = path.display();
                notes.push(format!("{path}: __metadata__ {key:?} is left out: another shard says otherwise"));
            }
        }
    }
    metadata
}

/// Notes on `metadata` where the output has no place for it. That the tensors are torch's (`format`)
/// goes without saying.
pub fn metadata_left_out(metadata: &BTreeMap<String, String>) -> Vec<String> {
    let keys = metadata.keys().filter(|key| *key != "format");
    keys.map(|key| format!("__metadata__ {key:?} of the weights is left out: the output has no place for it")).collect()
}

/// Notes on the keys that nothing is made of: all but those that `used` knows and those that every
/// GGUF file has.
pub(crate) fn left_out_keys(metadata: &Metadata, used: impl Fn(&str) -> bool) -> Vec<String> {
    let technical = |key: &str| {
        key.starts_with("split.") || key.strip_prefix("general.").is_some_and(|rest| TECHNICAL.contains(&rest))
    };
    let keys = metadata.iter().map(|(key, _)| key).filter(|key| !used(key) && !technical(key));
    keys.map(|key| format!("key {key:?} is left out: the folder has no place for it")).collect()
}

pub(crate) fn json_text(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("texts, numbers and parsed JSON serialize")
}

/// The JSON text at `key`, if it is there.
pub(crate) fn parsed<T: DeserializeOwned>(metadata: &Metadata, key: &str) -> Result<Option<T>> {
    if metadata.get(key).is_none() {
        return Ok(None);
    }
    let parsed = serde_json::from_str(metadata.text(key)?);
    parsed.map(Some).map_err(|e| {
        metadata.finding(key).expected("JSON as this crate writes it").found(crate::json::plain(&e)).format()
    })
}
