//! GGUF: typed metadata, a list of tensors, and aligned tensor data. Versions 2 and 3 in either
//! byte order.
//!
//! The reader checks the rules that ggml enforces, and names the one that is broken. The writer
//! lays out version 3, little-endian, as gguf-py does. A model may be split over several files:
//! [`GgufModel`] joins them, [`split_layout`] makes them.
//!
//! Reference: llama.cpp `ggml/include/gguf.h`, `ggml/src/gguf.cpp`, `gguf-py/gguf/gguf_writer.py`.

mod cursor;
mod endian;
mod metadata;
mod model;
mod overrides;
mod reader;
mod split;
mod value;
mod writer;

pub use metadata::Metadata;
pub use model::GgufModel;
pub use overrides::Override;
#[cfg(feature = "hub")]
pub(crate) use reader::header_end;
pub(crate) use reader::metadata_of;
pub use reader::{GgufFile, GgufHeader};
pub use split::{SplitLimits, split_layout};
pub use value::{Array, Value, ValueType};
pub use writer::layout;

use crate::error::{Finding, Result};

/// The first four bytes of every file.
const MAGIC: [u8; 4] = *b"GGUF";

/// The version that is written; version 2 has the same layout and is read too.
const VERSION: u32 = 3;

/// The alignment of tensor data in bytes, without `general.alignment` (`GGUF_DEFAULT_ALIGNMENT`).
const DEFAULT_ALIGNMENT: u64 = 32;

/// The key that overrides [`DEFAULT_ALIGNMENT`].
const ALIGNMENT_KEY: &str = "general.alignment";

/// The key of [`QUANTIZATION_VERSION`].
pub(crate) const QUANTIZATION_VERSION_KEY: &str = "general.quantization_version";

/// The version of quantized blocks' layout (`GGML_QUANT_VERSION`).
pub(crate) const QUANTIZATION_VERSION: u32 = 2;

/// The number of a split model's shard, counted from 0 (`LLM_KV_SPLIT_NO`).
const SPLIT_NO: &str = "split.no";

/// The count of shards (`LLM_KV_SPLIT_COUNT`).
const SPLIT_COUNT: &str = "split.count";

/// The count of tensors in all shards together (`LLM_KV_SPLIT_TENSORS_COUNT`).
const SPLIT_TENSORS: &str = "split.tensors.count";

/// The longest tensor name in bytes: ggml's `GGML_MAX_NAME` is 64 with the closing zero.
pub(crate) const MAX_NAME_BYTES: usize = 63;

/// The most dimensions of a tensor (`GGML_MAX_DIMS`).
pub(crate) const MAX_DIMS: usize = 4;

/// The end of the name of shard `no`, counted from 0, of `count` (`llama_split_path`).
fn shard_suffix(no: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", no.saturating_add(1))
}

/// The alignment of tensor data, in bytes.
fn alignment_of(metadata: &Metadata) -> Result<u64> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(bytes)) if bytes.is_power_of_two() => Ok(u64::from(*bytes)),
        Some(other) => Err(Finding::new(metadata.file(), format!("key {ALIGNMENT_KEY:?}"))
            .expected("a power of two as uint32")
            .found(other)
            .format()),
    }
}

/// Names of ggml types that older files used and that ggml has removed.
fn removed_type(id: u32) -> Option<&'static str> {
    Some(match id {
        4 => "Q4_2",
        5 => "Q4_3",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        _ => return None,
    })
}
