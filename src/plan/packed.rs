//! Tensors that a quantizer has packed into several others. A packing says how to read such a tensor by rows.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::TensorRef;
use crate::dtype::DType;

/// How the values of a tensor are packed into other tensors, its parts.
pub trait Packing: fmt::Debug + Send + Sync {
    /// Writes the values of rows `rows`, each of `row_len` values, to `out`. If the file changed after it was opened
    /// and an index in it points outside a part, the value is a NaN; this never panics.
    fn unpack(&self, parts: &[TensorRef], rows: Range<usize>, row_len: usize, out: &mut [f32]);

    /// The block type that holds the same values in the same rows, if there is one. Such blocks can be written as they
    /// are, without decoding.
    fn raw_dtype(&self) -> Option<DType> {
        None
    }

    /// Appends the blocks of rows `rows`. Only for packings with a [`Packing::raw_dtype`].
    fn copy(&self, _parts: &[TensorRef], _rows: Range<usize>, _out: &mut Vec<u8>) {
        unreachable!("no blocks of its own: raw_dtype is None")
    }

    /// The packing as llama.cpp's converter reads it, where that differs from the library that packs so.
    fn as_llama_cpp(&self) -> Option<Arc<dyn Packing>> {
        None
    }

    /// The same tensor with its last two dimensions exchanged, if it can be read in that order too.
    fn turned(&self) -> Option<Arc<dyn Packing>> {
        None
    }
}
