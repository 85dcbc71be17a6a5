//! Sidecars: what a checkpoint holds in addition to its tensors, and how keys of a GGUF store it.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Finding, IoContext, Result};
use crate::formats::gguf::{Array, Metadata, Value};
use crate::plan::{Alias, Plan};
use crate::source::Step;

/// Extensions of weight files, including those of other frameworks. Such files aren't copied.
pub(crate) const WEIGHT_EXTENSIONS: &[&str] =
    &["safetensors", "bin", "pt", "pth", "ckpt", "gguf", "h5", "msgpack", "onnx", "ot"];

/// The largest file that is stored in a GGUF. Tokenizers of the largest vocabularies have about half of this. Programs
/// that read GGUF hold all keys in memory.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// The largest total size of files that are stored in a GGUF.
pub const MAX_TOTAL_BYTES: u64 = 256 << 20;

/// Keys that follow from the GGUF file itself, or are only its title.
const TECHNICAL: &[&str] = &["architecture", "type", "name", "alignment", "file_type", "quantization_version"];

/// The key, after the prefix, of other names of tensors.
const ALIASES: &str = "aliases";

/// Everything that is written in addition to a checkpoint's tensors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sidecars {
    /// Small files by their path in the folder: config.json, tokenizer files, a README.
    pub files: BTreeMap<String, Vec<u8>>,
    /// `__metadata__` of the safetensors files.
    pub safetensors_metadata: BTreeMap<String, String>,
    /// Other names of the tensors.
    pub aliases: Vec<Alias>,
    /// For names in a PyTorch file, the steps that lead to them, if they are more than a key.
    pub steps: BTreeMap<String, Vec<Step>>,
}

impl Sidecars {
    /// Reads the files of `folder` other than those of `weights`, for storing in a GGUF. Also returns notes on what is
    /// left out and why. Files from which `weights` takes its tensors aren't mentioned.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn read(folder: &Path, weights: &Plan) -> Result<(Self, Vec<String>)> {
        let sources: HashSet<&Path> =
            weights.tensors.iter().flat_map(|tensor| tensor.expr.sources()).map(|source| source.path()).collect();
        let mut paths: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(folder).at(folder, "read")? {
            paths.push(entry.at(folder, "read")?.path());
        }
        paths.sort();
        let mut sidecars = Self::default();
        let mut notes = Vec::new();
        let mut total = 0;
        for path in paths {
            let shown = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let mut left_out = |why: &str| notes.push(format!("{shown} is left out: {why}"));
            let name = path.file_name().and_then(|name| name.to_str());
            let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            if sources.contains(path.as_path()) || shown.ends_with(".index.json") {
                continue;
            }
            let Some(name) = name else {
                left_out("its name is not UTF-8");
                continue;
            };
            if path.is_dir() {
                left_out("folders are not taken along");
            } else if name.starts_with('.') {
                left_out("hidden files are not taken along");
            } else if WEIGHT_EXTENSIONS.contains(&extension) {
                left_out("another file of weights");
            } else if !path.is_file() {
                left_out("not a plain file");
            } else {
                let bytes = fs::metadata(&path).at(&path, "read")?.len();
                if bytes > MAX_FILE_BYTES {
                    left_out(&format!("{bytes} bytes are more than the {MAX_FILE_BYTES} that one file may have"));
                } else if total + bytes > MAX_TOTAL_BYTES {
                    left_out(&format!("all files together may have {MAX_TOTAL_BYTES} bytes"));
                } else {
                    total += bytes;
                    sidecars.files.insert(name.to_owned(), fs::read(&path).at(&path, "read")?);
                }
            }
        }
        sidecars.safetensors_metadata = safetensors_metadata(weights, &mut notes);
        Ok((sidecars, notes))
    }

    /// Sets `{prefix}safetensors_metadata`, a JSON object, and `{prefix}file.NAME` for every file.
    pub(crate) fn put(&self, metadata: &mut Metadata, prefix: &str) {
        if !self.safetensors_metadata.is_empty() {
            metadata.insert(format!("{prefix}safetensors_metadata"), json_text(&self.safetensors_metadata));
        }
        if !self.aliases.is_empty() {
            let pairs: BTreeMap<&str, &str> =
                self.aliases.iter().map(|alias| (alias.name.as_str(), alias.of.as_str())).collect();
            metadata.insert(format!("{prefix}{ALIASES}"), json_text(&pairs));
        }
        self.put_files(metadata, &format!("{prefix}file."));
    }

    /// Reads the keys that [`Sidecars::put`] wrote.
    ///
    /// # Errors
    /// [`crate::Error::Format`] naming the key, for a file that would be written outside the folder or over the
    /// weights, and for values of other types.
    pub(crate) fn take(metadata: &Metadata, prefix: &str) -> Result<Self> {
        let safetensors_metadata = parsed(metadata, &format!("{prefix}safetensors_metadata"))?.unwrap_or_default();
        let pairs: BTreeMap<String, String> = parsed(metadata, &format!("{prefix}{ALIASES}"))?.unwrap_or_default();
        // The places among all names aren't kept: other names follow after the tensors.
        let aliases = pairs.into_iter().map(|(name, of)| Alias { name, of, at: usize::MAX }).collect();
        let files = files(metadata, &format!("{prefix}file."))?;
        Ok(Self { files, safetensors_metadata, aliases, ..Self::default() })
    }

    /// Whether `key` is one of those that [`Sidecars::put`] writes.
    pub(crate) fn owns(key: &str, prefix: &str) -> bool {
        let rest = key.strip_prefix(prefix);
        rest.is_some_and(|rest| rest == "safetensors_metadata" || rest == ALIASES || rest.starts_with("file."))
    }

    /// Sets a key for each file: text as a string, other bytes as an array of uint8.
    fn put_files(&self, metadata: &mut Metadata, prefix: &str) {
        for (name, bytes) in &self.files {
            let value = match std::str::from_utf8(bytes) {
                Ok(text) => Value::from(text),
                Err(_) => Value::Array(Array::U8(bytes.to_vec())),
            };
            metadata.insert(format!("{prefix}{name}"), value);
        }
    }
}

/// The files in keys with this prefix.
fn files(metadata: &Metadata, prefix: &str) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for (key, value) in metadata.iter() {
        let Some(name) = key.strip_prefix(prefix) else { continue };
        let plain = Path::new(name).file_name().is_some_and(|file| file.to_str() == Some(name));
        let extension = Path::new(name).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let odd = name.starts_with('.') || name.contains('\0') || name.ends_with(".index.json");
        if !plain || odd || WEIGHT_EXTENSIONS.contains(&extension) {
            let finding: Finding = metadata.finding(key);
            return Err(finding.expected("the name of a file beside weights").found(format!("{name:?}")).format());
        }
        let bytes = match value {
            Value::String(bytes) | Value::Array(Array::U8(bytes)) => bytes.clone(),
            other => {
                return Err(metadata.finding(key).expected("a string or an array of uint8").found(other).format());
            }
        };
        files.insert(name.to_owned(), bytes);
    }
    Ok(files)
}

/// The `__metadata__` of all safetensors files from which `weights` come, combined. If they contradict each other, the
/// first one wins, with a note.
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
                notes.push(format!("{path}: __metadata__ {key:?} is left out: another shard has another value"));
            }
        }
    }
    metadata
}

/// Notes on entries of `metadata`, where the output has no place for them. The entry `format` needs no note.
pub fn metadata_left_out(metadata: &BTreeMap<String, String>) -> Vec<String> {
    let keys = metadata.keys().filter(|key| *key != "format");
    keys.map(|key| format!("__metadata__ {key:?} of the weights is left out: the output has no place for it")).collect()
}

/// Notes on keys that aren't used: all except those for which `used` is true and those that every GGUF file has.
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

/// Parses the JSON text at `key`, if there is one.
pub(crate) fn parsed<T: DeserializeOwned>(metadata: &Metadata, key: &str) -> Result<Option<T>> {
    if metadata.get(key).is_none() {
        return Ok(None);
    }
    let text = metadata.text(key)?;
    crate::json::read(text.as_bytes(), || metadata.finding(key).expected("JSON as this crate writes it")).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_back_byte_by_byte_and_what_stays_behind_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let files: [(&str, &[u8]); 4] = [
            ("config.json", b"{}"),
            ("tokenizer.model", b"\n\xff\x00"),
            ("README.md", b""),
            ("merges.txt", b"a b\r\n"),
        ];
        for (name, bytes) in files {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        fs::write(dir.path().join("pytorch_model.bin"), b"x").unwrap();
        fs::write(dir.path().join(".gitattributes"), b"x").unwrap();
        fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        let large = fs::File::create(dir.path().join("large.txt")).unwrap();
        large.set_len(MAX_FILE_BYTES + 1).unwrap();
        let (sidecars, notes) = Sidecars::read(dir.path(), &Plan::default()).unwrap();
        assert_eq!(
            notes,
            [
                ".gitattributes is left out: hidden files are not taken along",
                "1_Pooling is left out: folders are not taken along",
                "large.txt is left out: 67108865 bytes are more than the 67108864 that one file may have",
                "pytorch_model.bin is left out: another file of weights",
            ]
        );
        let mut metadata = Metadata::new("m.gguf");
        sidecars.put(&mut metadata, "x.");
        assert!(matches!(metadata.get("x.file.tokenizer.model"), Some(Value::Array(Array::U8(_)))));
        let back = Sidecars::take(&metadata, "x.").unwrap();
        assert_eq!(back, sidecars);
        let names: Vec<(&str, &[u8])> =
            back.files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        assert_eq!(names, [files[2], files[0], files[3], files[1]]);
    }

    #[test]
    fn refuses_names_that_lead_elsewhere_and_values_that_are_no_file() {
        for name in ["../x", "/etc/passwd", "a/b", "", ".", "..", ".bashrc", "model.safetensors", "a.bin", "a\0b"] {
            let mut metadata = Metadata::new("m.gguf");
            metadata.insert(format!("f.file.{name}"), "text");
            let error = Sidecars::take(&metadata, "f.").unwrap_err().to_string();
            assert!(error.contains("expected the name of a file beside weights"), "{name}: {error}");
        }
        let mut metadata = Metadata::new("m.gguf");
        metadata.insert("f.file.a.txt", 1u32);
        let error = Sidecars::take(&metadata, "f.").unwrap_err().to_string();
        assert!(
            error.contains("key \"f.file.a.txt\": expected a string or an array of uint8, found uint32 1"),
            "{error}"
        );
    }
}
