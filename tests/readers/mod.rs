//! Other implementations of GGUF readers.

use std::path::Path;

use atombank::formats::gguf::{GgufFile, Value};
use atombank::source::Source;
use serde_json::json;

/// Checks that gguf-rs, which shares no code with this crate, finds the same tensors at the same
/// offsets.
pub fn another_reader_agrees(path: &Path, file: &GgufFile) {
    let path = path.to_str().unwrap();
    let model = gguf_rs::get_gguf_container_array_size(path, u64::MAX).unwrap().decode().unwrap();
    assert_eq!(model.num_kv(), file.metadata().len() as u64);
    assert_eq!(model.tensors().len(), file.tensors().len());
    let start = file.range(0).start as u64;
    for (i, (theirs, ours)) in model.tensors().iter().zip(file.tensors()).enumerate() {
        assert_eq!(theirs.name, ours.name);
        assert_eq!(Some(theirs.kind), ours.dtype.ggml_id(), "{}", ours.name);
        assert_eq!(theirs.offset + start, file.range(i).start as u64, "{}", ours.name);
        let shape: Vec<u64> = ours.shape.iter().rev().map(|d| *d as u64).collect();
        assert!(theirs.shape.starts_with(&shape), "{}: {:?}", ours.name, theirs.shape);
    }
    for (key, value) in file.metadata().iter() {
        if let Value::U32(number) = value {
            assert_eq!(model.metadata()[key], json!(number), "{key}");
        }
    }
}

/// Checks that candle's reader finds the same keys and tensors, for types that it supports: all
/// types that conversions write.
#[cfg(feature = "train")]
#[allow(dead_code)] // Not every test file that has the other reader asks this one.
pub fn candle_agrees(path: &Path, file: &GgufFile) {
    let mut opened = std::fs::File::open(path).unwrap();
    let theirs = candle_core::quantized::gguf_file::Content::read(&mut opened).unwrap();
    assert_eq!(theirs.metadata.len(), file.metadata().len());
    assert_eq!(theirs.tensor_infos.len(), file.tensors().len());
    for (i, ours) in file.tensors().iter().enumerate() {
        let found = &theirs.tensor_infos[&ours.name];
        assert_eq!(found.shape.dims(), ours.shape, "{}", ours.name);
        assert_eq!(found.offset + theirs.tensor_data_offset, file.range(i).start as u64, "{}", ours.name);
    }
}
