//! Writing: the pickle and zip that torch.save would make of the same tensors.
//!
//! Reference: torch `serialization.py` (`_save`).

use std::collections::{BTreeMap, HashMap};

use super::nesting::nested;
use super::program::{Program, class_of};
use super::zip::ZipLayout;
use crate::error::{Finding, Result};
use crate::formats::shards::{index, shard_name, split};
use crate::plan::{Alias, Layout, Place, PlannedTensor};
use crate::source::Step;

/// The name of the index file, which says in which shard each tensor is.
pub const SHARD_INDEX: &str = "pytorch_model.bin.index.json";

/// The folder in the zip, as torch calls it for files without a name.
const FOLDER: &str = "archive";
/// The content of torch's record `version`: the version of the zip form.
const VERSION: &[u8] = b"3\n";

/// Lays out `tensors` as one `{stem}.bin` or, if they exceed `shard_bytes`, as shards with an index, split in the
/// tensors' order as in transformers. A file holds one dictionary of tensors, in their order, each with its own
/// storage.
///
/// # Errors
/// [`crate::Error::Unsupported`] for a type that torch doesn't have.
pub fn layout(tensors: &[PlannedTensor], stem: &str, shard_bytes: u64) -> Result<Layout> {
    layout_with_names(tensors, stem, shard_bytes, &[], &BTreeMap::new())
}

/// Like [`layout`], with more names: `aliases` are tensors over the storages of others. If there is one file, its
/// dictionary is nested as `steps` says, for the names that have any.
///
/// # Errors
/// As [`layout`].
pub fn layout_with_names(
    tensors: &[PlannedTensor],
    stem: &str,
    shard_bytes: u64,
    aliases: &[Alias],
    steps: &BTreeMap<String, Vec<Step>>,
) -> Result<Layout> {
    let shards = split(tensors, shard_bytes);
    let mut places = vec![Place { file: 0, offset: 0 }; tensors.len()];
    let mut files = Vec::with_capacity(shards.len() + 1);
    let mut weight_map = Vec::new();
    for (number, shard) in shards.iter().enumerate() {
        let name = shard_name(stem, number, shards.len(), "bin");
        let names = names_of(tensors, shard, aliases);
        let mut classes = Vec::with_capacity(shard.len());
        for &i in shard {
            let tensor = &tensors[i];
            classes.push(class_of(tensor.dtype).ok_or_else(|| {
                Finding::new(&name, format!("tensor {:?}", tensor.name))
                    .expected("a type of torch")
                    .found(tensor.dtype)
                    .unsupported()
            })?);
        }
        weight_map.extend(names.iter().map(|(own, _)| (*own, name.clone())));
        let steps_of = |name: &str| steps.get(name).filter(|_| shards.len() == 1).map(Vec::as_slice);
        let whole = |steps: bool| nested(names.iter().map(|(name, _)| (*name, steps_of(name).filter(|_| steps))));
        // Names that don't fit together as they were nested stand side by side.
        let tree = whole(true).or_else(|| whole(false));
        let leaf = |number: usize| {
            let (_, key) = *names.get(number)?;
            Some((&tensors[shard[key]], classes[key], key.to_string()))
        };
        let program = tree.map(|tree| Program::of(&tree, &leaf)).unwrap_or_default();
        let mut zip = ZipLayout::new();
        zip.add_bytes(format!("{FOLDER}/data.pkl"), &program);
        zip.add_bytes(format!("{FOLDER}/byteorder"), b"little");
        for (key, &i) in shard.iter().enumerate() {
            let offset = zip.add_space(format!("{FOLDER}/data/{key}"), tensors[i].byte_len());
            places[i] = Place { file: number, offset };
        }
        zip.add_bytes(format!("{FOLDER}/version"), VERSION);
        files.push(zip.finish(name));
    }
    if shards.len() > 1 {
        files.push(index(format!("{stem}.bin.index.json"), tensors, weight_map));
    }
    Ok(Layout { files, places, recode: None })
}

/// The names of a shard with the place of each one's tensor in it, in order.
fn names_of<'a>(tensors: &'a [PlannedTensor], shard: &[usize], aliases: &'a [Alias]) -> Vec<(&'a str, usize)> {
    let mut names: Vec<(&str, usize)> =
        shard.iter().enumerate().map(|(key, &i)| (tensors[i].name.as_str(), key)).collect();
    let keys: HashMap<&str, usize> = names.iter().copied().collect();
    let is_whole = shard.len() == tensors.len();
    let mut own: Vec<&Alias> = aliases.iter().filter(|alias| keys.contains_key(alias.of.as_str())).collect();
    own.sort_by_key(|alias| alias.at);
    for alias in own {
        // In a shard, places among all names mean nothing.
        let at = if is_whole { alias.at.min(names.len()) } else { names.len() };
        names.insert(at, (alias.name.as_str(), keys[alias.of.as_str()]));
    }
    names
}
