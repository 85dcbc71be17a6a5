//! Functions of rows that several kinds of adapters share.

use std::ops::Range;
use std::sync::Arc;

use crate::dtype::DType;
use crate::plan::{Expr, Pick, RowMap};
use crate::quant;

/// Multiplies every row by its own number.
#[derive(Debug)]
pub(in crate::adapter) struct ScaleRows(pub(in crate::adapter) Arc<[f32]>);

impl RowMap for ScaleRows {
    fn apply(&self, rows: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        for (factor, row) in self.0[rows].iter().zip(out.chunks_exact_mut(row_len)) {
            row.iter_mut().for_each(|value| *value *= factor);
        }
    }
}

/// Multiplies every column by its own number.
#[derive(Debug)]
pub(in crate::adapter) struct ScaleColumns(pub(in crate::adapter) Arc<[f32]>);

impl RowMap for ScaleColumns {
    fn apply(&self, _: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        for row in out.chunks_exact_mut(row_len) {
            row.iter_mut().zip(&*self.0).for_each(|(value, factor)| *value *= factor);
        }
    }
}

/// Multiplies elementwise.
#[derive(Debug)]
pub(super) struct Multiply;

impl RowMap for Multiply {
    fn apply(&self, _: Range<usize>, _: usize, others: &[Vec<f32>], out: &mut [f32]) {
        for other in others {
            out.iter_mut().zip(other).for_each(|(value, factor)| *value *= factor);
        }
    }
}

/// Divides every value by a number.
#[derive(Debug)]
pub(super) struct Divide(pub(super) f32);

impl RowMap for Divide {
    fn apply(&self, _: Range<usize>, _: usize, _: &[Vec<f32>], out: &mut [f32]) {
        out.iter_mut().for_each(|value| *value /= self.0);
    }
}

/// Rounds every value to `dtype` and back, if there is one.
pub(super) fn round(values: &mut [f32], dtype: Option<DType>) {
    let Some(dtype) = dtype else { return };
    let mut bytes = vec![0; values.len() / dtype.block_elems() * dtype.block_bytes()];
    quant::encode(dtype, values, &mut bytes);
    quant::decode(dtype, &bytes, values);
}

/// The matrix of `shape` whose rows `map` makes out of rows of zeros.
pub(super) fn made(shape: [usize; 2], map: impl RowMap + 'static) -> Expr {
    let zeros = Expr::Values { shape: vec![1, shape[1]], values: vec![0.0; shape[1]].into() };
    let picks = vec![Pick { of: 0, start: 0, len: 1 }; shape[0]].into();
    let rows = Expr::Rows { shape: shape.to_vec(), of: vec![zeros], picks };
    Expr::Map { of: vec![rows], map: Arc::new(map) }
}

/// Applies a function of one operand to `of`.
pub(super) fn map(of: Expr, map: impl RowMap + 'static) -> Expr {
    Expr::Map { of: vec![of], map: Arc::new(map) }
}

/// The first `rows` rows and `cols` columns of a tensor, seen as a matrix with rows of `width`. The
/// caller must make sure that it has that many.
pub(super) fn corner(of: Expr, width: usize, rows: usize, cols: usize) -> Expr {
    if of.shape() == [rows, cols] {
        return of;
    }
    let elems: usize = of.shape().iter().product();
    let reshaped = |of: Expr, shape| Expr::Reshape { of: Box::new(of), shape };
    if cols == width {
        return Expr::slice(reshaped(of, vec![elems / width.max(1), width]), 0, rows, vec![rows, cols]);
    }
    // The rows of a vector are its elements, so parts of rows can be picked.
    let picks = (0..rows).map(|row| Pick { of: 0, start: row * width, len: cols }).collect();
    reshaped(Expr::Rows { shape: vec![rows * cols], of: vec![reshaped(of, vec![elems])], picks }, vec![rows, cols])
}
