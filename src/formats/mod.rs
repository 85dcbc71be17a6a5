//! File formats: each opens as a [`Source`] of named tensors, or lays out a file to be written.

pub mod gguf;
mod mmap;
pub mod safetensors;

use std::path::Path;

pub(crate) use mmap::MappedFile;

use crate::dtype::DType;

/// Name, type and shape of one tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name as the file has it.
    pub name: String,
    /// The type of its elements.
    pub dtype: DType,
    /// Outermost dimension first, as torch and safetensors have it (GGUF's order reversed).
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// The number of elements. Readers have checked that it doesn't overflow.
    pub fn elems(&self) -> usize {
        self.shape.iter().product()
    }
}

/// An open file of named tensors. It holds a header and a memory map, never a model.
pub trait Source: Send + Sync {
    /// The file, for messages.
    fn path(&self) -> &Path;

    /// What the file holds, in its own order.
    fn tensors(&self) -> &[TensorInfo];

    /// The bytes of tensor number `index`, exactly as many as its type and shape ask for.
    ///
    /// # Panics
    /// Where `index` is not below `self.tensors().len()`.
    fn bytes(&self, index: usize) -> &[u8];
}

/// Writes `shape` the way users read it: `[32, 64]`.
pub(crate) fn show_shape(shape: &[usize]) -> String {
    format!("{shape:?}")
}
