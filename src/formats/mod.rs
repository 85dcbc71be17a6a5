//! File formats: readers that open files as a [`crate::source::Source`] of named tensors, and
//! layouts for writing files.

pub mod gguf;
mod kind;
pub mod pytorch;
pub mod safetensors;
mod shards;

pub use kind::{FileKind, PYTORCH_EXTENSIONS};
