//! A model in one file or several: shards are found by name, compared with each other and joined.
//!
//! Reference: llama.cpp `src/llama-model-loader.cpp` and `tools/gguf-split/gguf-split.cpp`. Keys
//! are in the first shard; the others have `split.*` and their tensors.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{ALIGNMENT_KEY, GgufFile, Metadata, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, shard_suffix};
use crate::error::{Error, Finding, Result};
use crate::plan::TensorRef;
use crate::source::Source;

/// The keys that describe the split of a model. A joined model doesn't have them.
const SPLIT_KEYS: [&str; 3] = [SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS];

/// An open model: its keys, and the tensors of all its shards.
pub struct GgufModel {
    path: PathBuf,
    metadata: Metadata,
    shards: Vec<Arc<GgufFile>>,
    tensors: Vec<TensorRef>,
}

impl GgufModel {
    /// Opens the file at `path`. If it is a shard, the others in its folder are opened too:
    /// `NAME-00001-of-00003.gguf` and so on.
    ///
    /// # Errors
    /// As [`GgufFile::open`] for each shard; [`Error::Mismatch`] for a shard that is missing, whose
    /// number differs from that in its name, that belongs to another model, or that repeats a
    /// tensor.
    pub fn open(path: &Path) -> Result<Self> {
        let opened = Arc::new(GgufFile::open(path)?);
        let shards = match split_of(opened.metadata())? {
            Some(split) => open_all(path, opened, split)?,
            None => vec![opened],
        };
        let tensors = joined_tensors(&shards)?;
        let first = shards.first().map(|shard| shard.metadata());
        let mut metadata = first.cloned().unwrap_or_default();
        if shards.len() > 1 {
            if let Some(total) = metadata.get(SPLIT_TENSORS) {
                let found = tensors.len() as u64;
                if total.as_unsigned() != Some(found) {
                    return Err(metadata
                        .finding(SPLIT_TENSORS)
                        .expected(format_args!("the {found} tensors of all shards"))
                        .found(total)
                        .mismatch());
                }
            }
            same_model(&shards)?;
        }
        for key in SPLIT_KEYS {
            metadata.remove(key);
        }
        Ok(Self { path: path.to_owned(), metadata, shards, tensors })
    }

    /// The path with which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's keys and values: those of the first shard, without `split.*`.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The files, in order; a single one if the model isn't split.
    pub fn shards(&self) -> &[Arc<GgufFile>] {
        &self.shards
    }

    /// All tensors, shard after shard.
    pub fn tensors(&self) -> &[TensorRef] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&TensorRef> {
        self.tensors.iter().find(|tensor| tensor.info().name == name)
    }
}

/// The number and count of a shard, by its keys.
#[derive(Clone, Copy, PartialEq)]
struct Split {
    no: u64,
    count: u64,
}

/// `None` for a whole model. A model joined by gguf-split still has the keys, with a count of 0.
fn split_of(metadata: &Metadata) -> Result<Option<Split>> {
    if metadata.get(SPLIT_COUNT).is_none() {
        return Ok(None);
    }
    let count = u64::from(metadata.u32(SPLIT_COUNT)?);
    if count < 2 {
        return Ok(None);
    }
    let no = u64::from(metadata.u32(SPLIT_NO)?);
    if no >= count {
        let expected = format_args!("a number below {count}, the count of shards").to_string();
        return Err(metadata.finding(SPLIT_NO).expected(expected).found(no).mismatch());
    }
    // Every shard must have the count of tensors.
    metadata.u32(SPLIT_TENSORS)?;
    Ok(Some(Split { no, count }))
}

/// Opens all shards in the folder of `path`, which is `opened` already.
fn open_all(path: &Path, opened: Arc<GgufFile>, split: Split) -> Result<Vec<Arc<GgufFile>>> {
    let prefix = prefix_of(path, split)?;
    let total = opened.metadata().get(SPLIT_TENSORS).cloned();
    let mut shards = Vec::new();
    for no in 0..split.count {
        if no == split.no {
            shards.push(opened.clone());
            continue;
        }
        let mut name = prefix.clone();
        name.push(shard_suffix(no, split.count));
        let beside = path.with_file_name(name);
        let shard = match GgufFile::open(&beside) {
            Err(Error::Io { error, .. }) if error.kind() == std::io::ErrorKind::NotFound => {
                let subject = format!("shard {} of {}", no + 1, split.count);
                return Err(Finding::new(&beside, subject)
                    .expected("every shard in one folder")
                    .found("no such file")
                    .hint("is the download complete?")
                    .mismatch());
            }
            other => other?,
        };
        let metadata = shard.metadata();
        let expected = Split { no, count: split.count };
        let found = split_of(metadata)?;
        if found != Some(expected) {
            let show = |Split { no, count }| format!("shard {} of {count}", no + 1);
            return Err(metadata
                .finding(SPLIT_NO)
                .expected(format_args!("{}, as the name says", show(expected)))
                .found(found.map_or("a whole model".to_owned(), show))
                .mismatch());
        }
        if metadata.get(SPLIT_TENSORS) != total.as_ref() {
            let show = |value: Option<&super::Value>| value.map_or("none".to_owned(), ToString::to_string);
            return Err(metadata
                .finding(SPLIT_TENSORS)
                .expected(format_args!("{}, as in {}", show(total.as_ref()), path.display()))
                .found(show(metadata.get(SPLIT_TENSORS)))
                .mismatch());
        }
        shards.push(Arc::new(shard));
    }
    Ok(shards)
}

/// The part of the file's name that all shards share. The rest must match the shard's keys.
fn prefix_of(path: &Path, split: Split) -> Result<OsString> {
    let name = path.file_name().unwrap_or_default();
    let suffix = shard_suffix(split.no, split.count);
    let prefix = name.as_encoded_bytes().strip_suffix(suffix.as_bytes()).filter(|prefix| !prefix.is_empty());
    prefix.map(|prefix| OsStr::from_bytes(prefix).to_owned()).ok_or_else(|| {
        Finding::new(path, format!("shard {} of {}", split.no + 1, split.count))
            .expected(format_args!("a name that ends in {suffix:?}"))
            .found(format_args!("{name:?}"))
            .hint("the other shards are found by name: give the files their names back")
            .mismatch()
    })
}

/// The tensors of all shards. A name in two of them is an error.
fn joined_tensors(shards: &[Arc<GgufFile>]) -> Result<Vec<TensorRef>> {
    let mut tensors: Vec<TensorRef> = Vec::new();
    let mut owners: HashMap<String, usize> = HashMap::new();
    for shard in shards {
        let source: Arc<dyn Source> = shard.clone();
        for tensor in TensorRef::all(&source) {
            let name = &tensor.info().name;
            if let Some(&other) = owners.get(name) {
                let owner = tensors.get(other).map(|t| t.path().display().to_string()).unwrap_or_default();
                return Err(Finding::new(shard.path(), format!("tensor {name:?}"))
                    .expected("each name in one shard")
                    .found(format_args!("it in {owner} too"))
                    .mismatch());
            }
            owners.insert(name.clone(), tensors.len());
            tensors.push(tensor);
        }
    }
    Ok(tensors)
}

/// Checks that keys of later shards are in the first one, too: otherwise they belong to another
/// model, or would be lost. The alignment is separate for each file.
fn same_model(shards: &[Arc<GgufFile>]) -> Result<()> {
    let Some((first, rest)) = shards.split_first() else { return Ok(()) };
    for shard in rest {
        for (key, value) in shard.metadata().iter() {
            if SPLIT_KEYS.contains(&key) || key == ALIGNMENT_KEY {
                continue;
            }
            let expected = match first.metadata().get(key) {
                Some(known) if known == value => continue,
                Some(known) => format!("{known}, as in {}", first.path().display()),
                None => format!("no key that {} lacks", first.path().display()),
            };
            return Err(shard.metadata().finding(key).expected(expected).found(value).mismatch());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
