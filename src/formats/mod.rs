//! File formats: readers that open files as a [`crate::source::Source`] of named tensors, and
//! layouts for writing files.

pub mod gguf;
pub mod pytorch;
pub mod safetensors;
mod shards;
