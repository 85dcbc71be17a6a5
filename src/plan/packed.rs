//! Tensors that a quantizer has packed into several others: the packing says how to read them by rows.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::TensorRef;
use crate::dtype::DType;

/// How the values of a tensor are packed into others, its parts.
pub trait Packing: fmt::Debug + Send + Sync {
    /// Writes the values of rows `rows`, each of `row_len` values, to `out`. What a file that has changed meanwhile
    /// says of places that there are not is a NaN, never a panic.
    fn unpack(&self, parts: &[TensorRef], rows: Range<usize>, row_len: usize, out: &mut [f32]);

    /// The block type that holds the same values in the same rows, where there is one: such blocks can be written as
    /// they are, without decoding.
    fn raw_dtype(&self) -> Option<DType> {
        None
    }

    /// Appends the blocks of rows `rows`. Only for packings with a [`Packing::raw_dtype`].
    fn copy(&self, _parts: &[TensorRef], _rows: Range<usize>, _out: &mut Vec<u8>) {
        unreachable!("no blocks of its own: raw_dtype is None")
    }

    /// The same tensor with its last two dimensions exchanged, where it can be read that way round, too.
    fn turned(&self) -> Option<Arc<dyn Packing>> {
        None
    }
}
