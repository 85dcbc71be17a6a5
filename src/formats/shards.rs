//! Shards: which tensors go into which file, and the index of them.
//!
//! Reference: transformers `modeling_utils.py` and huggingface_hub `serialization` (`split_torch_state_dict_into_shards`).

use serde_json::{Map, Value, json};

use crate::plan::{FileLayout, PlannedTensor};

/// The indices of the tensors in each shard, in order. A tensor larger than the limit gets its own
/// shard.
pub(super) fn split(tensors: &[PlannedTensor], shard_bytes: u64) -> Vec<Vec<usize>> {
    let mut shards: Vec<Vec<usize>> = vec![Vec::new()];
    let mut filled = 0;
    for (i, tensor) in tensors.iter().enumerate() {
        let bytes = tensor.byte_len();
        let last = shards.last_mut().expect("never empty");
        if !last.is_empty() && filled + bytes > shard_bytes {
            shards.push(vec![i]);
            filled = bytes;
        } else {
            last.push(i);
            filled += bytes;
        }
    }
    shards
}

/// The name of shard `number` (from 0) of `count`, without numbers if it is the only one.
pub(super) fn shard_name(stem: &str, number: usize, count: usize, extension: &str) -> String {
    match count {
        1 => format!("{stem}.{extension}"),
        count => format!("{stem}-{:05}-of-{count:05}.{extension}", number + 1),
    }
}

/// The index file `name` of a sharded model, which says in which file each tensor is.
pub(super) fn index(name: String, tensors: &[PlannedTensor], mut weight_map: Vec<(&str, String)>) -> FileLayout {
    weight_map.sort();
    let weight_map: Map<String, Value> = weight_map.into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect();
    let total: u64 = tensors.iter().map(PlannedTensor::byte_len).sum();
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    let text = serde_json::to_string_pretty(&index).expect("strings and numbers serialize") + "\n";
    FileLayout::text(name, text)
}
