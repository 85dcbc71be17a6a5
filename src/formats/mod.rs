//! File formats: each opens as a [`crate::source::Source`] of named tensors, or lays out a file to be written.

pub mod gguf;
pub mod pytorch;
pub mod safetensors;
mod shards;
