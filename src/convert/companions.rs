//! Files beside the weights, carried in a GGUF file's keys: each under its own name, byte by byte.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::checkpoint::WEIGHT_EXTENSIONS;
use crate::error::{Finding, IoContext, Result};
use crate::formats::gguf::{Array, Metadata, Value};
use crate::plan::{Plan, Staging};

/// The largest file that is taken along. Tokenizers of the largest vocabularies have about half.
/// Readers of GGUF hold all keys in memory.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// The most that is taken along in all.
pub const MAX_TOTAL_BYTES: u64 = 256 << 20;

/// Small files by name: config.json, tokenizer files, a README.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Companions {
    files: BTreeMap<String, Vec<u8>>,
}

impl Companions {
    /// Reads the files of `folder` that aren't weights, and says which ones are left out and why.
    /// The files that `weights` takes its tensors from are not mentioned.
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
        let mut companions = Self::default();
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
                    companions.files.insert(name.to_owned(), fs::read(&path).at(&path, "read")?);
                }
            }
        }
        Ok((companions, notes))
    }

    /// The file called `name`.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(Vec::as_slice)
    }

    /// Adds or replaces a file.
    pub fn insert(&mut self, name: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.files.insert(name.into(), bytes.into());
    }

    /// Takes a file out.
    pub fn remove(&mut self, name: &str) -> Option<Vec<u8>> {
        self.files.remove(name)
    }

    /// Names and bytes, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
    }

    /// Writes every file into the folder being staged.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn write(&self, staging: &Staging) -> Result<()> {
        self.iter().try_for_each(|(name, bytes)| staging.write(name, bytes))
    }

    /// Sets a key for each file: text as a string, other bytes as an array of uint8.
    pub(super) fn put(&self, metadata: &mut Metadata, prefix: &str) {
        for (name, bytes) in self.iter() {
            let value = match std::str::from_utf8(bytes) {
                Ok(text) => Value::from(text),
                Err(_) => Value::Array(Array::U8(bytes.to_vec())),
            };
            metadata.insert(format!("{prefix}{name}"), value);
        }
    }

    /// The files that [`Companions::put`] has set keys for.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for a name that would be written elsewhere than beside the weights,
    /// or over them, and for values of other types.
    pub(super) fn take(metadata: &Metadata, prefix: &str) -> Result<Self> {
        let mut companions = Self::default();
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
            companions.files.insert(name.to_owned(), bytes);
        }
        Ok(companions)
    }
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
        let (companions, notes) = Companions::read(dir.path(), &Plan::default()).unwrap();
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
        companions.put(&mut metadata, "x.file.");
        assert!(matches!(metadata.get("x.file.tokenizer.model"), Some(Value::Array(Array::U8(_)))));
        let back = Companions::take(&metadata, "x.file.").unwrap();
        assert_eq!(back, companions);
        let names: Vec<(&str, &[u8])> = back.iter().collect();
        assert_eq!(names, [files[2], files[0], files[3], files[1]]);
    }

    #[test]
    fn refuses_names_that_lead_elsewhere_and_values_that_are_no_file() {
        for name in ["../x", "/etc/passwd", "a/b", "", ".", "..", ".bashrc", "model.safetensors", "a.bin", "a\0b"] {
            let mut metadata = Metadata::new("m.gguf");
            metadata.insert(format!("f.{name}"), "text");
            let error = Companions::take(&metadata, "f.").unwrap_err().to_string();
            assert!(error.contains("expected the name of a file beside weights"), "{name}: {error}");
        }
        let mut metadata = Metadata::new("m.gguf");
        metadata.insert("f.a.txt", 1u32);
        let error = Companions::take(&metadata, "f.").unwrap_err().to_string();
        assert!(error.contains("key \"f.a.txt\": expected a string or an array of uint8, found uint32 1"), "{error}");
    }
}
