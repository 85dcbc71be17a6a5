//! Functions of rows that several kinds of adapters are made of.

use std::ops::Range;
use std::sync::Arc;

use crate::plan::{Expr, Pick, RowMap};

/// Every row times a number of its own.
#[derive(Debug)]
pub(in crate::adapter) struct ScaleRows(pub(in crate::adapter) Arc<[f32]>);

impl RowMap for ScaleRows {
    fn apply(&self, rows: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        for (factor, row) in self.0[rows].iter().zip(out.chunks_exact_mut(row_len)) {
            row.iter_mut().for_each(|value| *value *= factor);
        }
    }
}

/// Every column times a number of its own.
#[derive(Debug)]
pub(in crate::adapter) struct ScaleColumns(pub(in crate::adapter) Arc<[f32]>);

impl RowMap for ScaleColumns {
    fn apply(&self, _: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        for row in out.chunks_exact_mut(row_len) {
            row.iter_mut().zip(&*self.0).for_each(|(value, factor)| *value *= factor);
        }
    }
}

/// The elementwise product.
#[derive(Debug)]
pub(super) struct Multiply;

impl RowMap for Multiply {
    fn apply(&self, _: Range<usize>, _: usize, others: &[Vec<f32>], out: &mut [f32]) {
        for other in others {
            out.iter_mut().zip(other).for_each(|(value, factor)| *value *= factor);
        }
    }
}

/// `of` under a function of one operand.
pub(super) fn map(of: Expr, map: impl RowMap + 'static) -> Expr {
    Expr::Map { of: vec![of], map: Arc::new(map) }
}

/// The product of two matrices, unscaled.
pub(in crate::adapter) fn product(left: Expr, right: Expr) -> Expr {
    Expr::Product { scale: 1.0, left: Box::new(left), right: Box::new(right) }
}

/// The first `rows` rows and `cols` columns of a tensor that is taken for a matrix of rows as long as
/// `width`; its caller has seen that it has as many.
pub(super) fn corner(of: Expr, width: usize, rows: usize, cols: usize) -> Expr {
    if of.shape() == [rows, cols] {
        return of;
    }
    let elems: usize = of.shape().iter().product();
    let reshaped = |of: Expr, shape| Expr::Reshape { of: Box::new(of), shape };
    if cols == width {
        return Expr::slice(reshaped(of, vec![elems / width.max(1), width]), 0, rows, vec![rows, cols]);
    }
    // The elements of a vector are its rows, and rows can be picked.
    let picks = (0..rows).map(|row| Pick { of: 0, start: row * width, len: cols }).collect();
    reshaped(Expr::Rows { shape: vec![rows * cols], of: vec![reshaped(of, vec![elems])], picks }, vec![rows, cols])
}
