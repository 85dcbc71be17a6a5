//! The safetensors format: an 8-byte length, a JSON header, and the tensors' bytes.
//!
//! Reference: huggingface/safetensors, README "Format" and `safetensors/src/tensor.rs`.

mod reader;
mod writer;

pub use reader::SafetensorsFile;
pub use writer::{SHARD_INDEX, layout, layout_with_metadata};

/// The entry of the metadata that says which program's tensors these are.
pub(crate) const FORMAT: &str = "format";

/// The longest header that readers of the format accept (`MAX_HEADER_SIZE` of the reference).
pub(crate) const MAX_HEADER_BYTES: u64 = 100_000_000;
