//! Tests of recipes: on real models, against llama.cpp's snapshots, and on small models for the
//! effects of options.

mod options;
mod snapshots;

use super::*;
use crate::DType;
use crate::formats::gguf::Metadata;
use crate::source::TensorInfo;

/// The keys of a model that recipes read.
fn metadata(architecture: &str, blocks: u32, heads: u32, kv_heads: u32, experts: u32) -> Metadata {
    let mut metadata = Metadata::new("m.gguf");
    metadata.insert("general.architecture", architecture);
    for (key, value) in [
        ("block_count", blocks),
        ("attention.head_count", heads),
        ("attention.head_count_kv", kv_heads),
        ("expert_count", experts),
    ] {
        metadata.insert(format!("{architecture}.{key}"), value);
    }
    metadata
}

fn tensor(name: impl Into<String>, dtype: DType, shape: &[usize]) -> TensorInfo {
    TensorInfo { name: name.into(), dtype, shape: shape.to_vec() }
}

/// The type with this name.
fn dtype(name: &str) -> DType {
    parse_tensor_type("test", name).unwrap()
}
