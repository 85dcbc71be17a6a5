//! Layout: the shard and offset of every tensor, before any data is written.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, json};

use super::FORMAT;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::formats::shards::{index, shard_name, split};
use crate::plan::{Alias, FileLayout, Layout, Place, PlannedTensor};

/// The name of the index file, which says in which shard each tensor is.
pub const SHARD_INDEX: &str = "model.safetensors.index.json";

/// Lays out `tensors` as one `{stem}.safetensors` or, if they exceed `shard_bytes`, as shards with
/// an index, split in the tensors' order as in transformers.
///
/// Within a file, wider types come first and names are sorted, as in the reference writer, so that
/// every tensor is aligned to the size of its elements.
///
/// # Errors
/// [`crate::Error::Unsupported`] for a type that safetensors can't hold.
pub fn layout(tensors: &[PlannedTensor], stem: &str, shard_bytes: u64) -> Result<Layout> {
    let metadata = BTreeMap::from([(FORMAT.to_owned(), "pt".to_owned())]);
    layout_with_metadata(tensors, stem, shard_bytes, &metadata, &[])
}

/// Like [`layout`], with this `__metadata__` in every file, unless it is empty. Of `aliases`, those of a file's tensors
/// stand in the file's `__metadata__`, as `safetensors.torch.save_model` writes them.
///
/// # Errors
/// As [`layout`].
pub fn layout_with_metadata(
    tensors: &[PlannedTensor],
    stem: &str,
    shard_bytes: u64,
    metadata: &BTreeMap<String, String>,
    aliases: &[Alias],
) -> Result<Layout> {
    for tensor in tensors {
        if !tensor.dtype.in_safetensors() {
            return Err(Finding::new(format!("{stem}.safetensors"), format!("tensor {:?}", tensor.name))
                .expected("a type of safetensors")
                .found(tensor.dtype)
                .unsupported());
        }
    }
    let shards = split(tensors, shard_bytes);
    let mut places = vec![Place { file: 0, offset: 0 }; tensors.len()];
    let mut files = Vec::with_capacity(shards.len() + 1);
    let mut weight_map: Vec<(&str, String)> = Vec::new();
    let mut others: HashMap<&str, Vec<&str>> = HashMap::new();
    for alias in aliases {
        others.entry(&alias.of).or_default().push(&alias.name);
    }
    for (number, mut shard) in shards.iter().cloned().enumerate() {
        let name = shard_name(stem, number, shards.len(), "safetensors");
        shard.sort_by_key(|&i| (std::cmp::Reverse(alignment(tensors[i].dtype)), &tensors[i].name));
        let mut header = Map::new();
        let mut metadata = metadata.clone();
        for tensor in shard.iter().map(|&i| &tensors[i]) {
            for other in others.get(tensor.name.as_str()).into_iter().flatten() {
                metadata.insert((*other).to_owned(), tensor.name.clone());
            }
        }
        if !metadata.is_empty() {
            header.insert("__metadata__".into(), json!(metadata));
        }
        let mut offset = 0;
        for &i in &shard {
            let tensor = &tensors[i];
            let end = offset + tensor.byte_len();
            header.insert(
                tensor.name.clone(),
                json!({ "dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [offset, end] }),
            );
            places[i] = Place { file: number, offset };
            offset = end;
            weight_map.push((&tensor.name, name.clone()));
        }
        let head = with_length(serde_json::to_string(&header).expect("strings and numbers serialize"));
        for &i in &shard {
            places[i].offset += head.len() as u64;
        }
        let byte_len = head.len() as u64 + offset;
        files.push(FileLayout::new(name, head, byte_len));
    }
    if shards.len() > 1 {
        files.push(index(format!("{stem}.safetensors.index.json"), tensors, weight_map));
    }
    Ok(Layout { files, places, recode: None })
}

fn alignment(dtype: DType) -> usize {
    dtype.block_bytes()
}

/// The length and the header, padded with spaces so that the data starts at a multiple of 8.
fn with_length(mut header: String) -> Vec<u8> {
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut head = (header.len() as u64).to_le_bytes().to_vec();
    head.extend(header.as_bytes());
    head
}
