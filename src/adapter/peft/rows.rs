//! Functions of rows that several kinds of adapters share.

use std::ops::Range;
use std::sync::Arc;

use crate::dtype::DType;
use crate::plan::{Expr, Number, Pick, RowMap};
use crate::quant;

/// Numbers of an adapter with which rows are computed.
#[derive(Debug, Clone)]
pub(in crate::adapter) struct Factors {
    narrow: Arc<[f32]>,
    /// The same in f64; empty if they are known in f32 alone.
    wide: Arc<[f64]>,
}

impl Factors {
    pub(in crate::adapter) fn len(&self) -> usize {
        self.narrow.len()
    }

    /// The numbers in the type in which rows are computed: none if they aren't known in it.
    pub(in crate::adapter) fn of<T: Number>(&self) -> &[T] {
        T::either(&self.narrow, &self.wide)
    }

    /// `map`, which has these numbers, where they are known in f64.
    pub(in crate::adapter) fn in_f64<'a>(&self, map: &'a dyn RowMap<f64>) -> Option<&'a dyn RowMap<f64>> {
        (self.wide.len() == self.narrow.len()).then_some(map)
    }
}

impl From<Vec<f64>> for Factors {
    fn from(values: Vec<f64>) -> Self {
        Self { narrow: values.iter().map(|value| *value as f32).collect(), wide: values.into() }
    }
}

impl From<Vec<f32>> for Factors {
    fn from(values: Vec<f32>) -> Self {
        Self { narrow: values.into(), wide: Arc::from([]) }
    }
}

impl FromIterator<f32> for Factors {
    fn from_iter<I: IntoIterator<Item = f32>>(values: I) -> Self {
        values.into_iter().collect::<Vec<f32>>().into()
    }
}

/// Multiplies every row by its own number.
#[derive(Debug)]
pub(in crate::adapter) struct ScaleRows(pub(in crate::adapter) Factors);

impl<T: Number> RowMap<T> for ScaleRows {
    fn apply(&self, rows: Range<usize>, row_len: usize, _: &[Vec<T>], out: &mut [T]) {
        for (factor, row) in self.0.of::<T>()[rows].iter().zip(out.chunks_exact_mut(row_len)) {
            row.iter_mut().for_each(|value| *value *= *factor);
        }
    }

    fn in_f64(&self) -> Option<&dyn RowMap<f64>> {
        self.0.in_f64(self)
    }
}

/// Multiplies every column by its own number.
#[derive(Debug)]
pub(in crate::adapter) struct ScaleColumns(pub(in crate::adapter) Factors);

impl<T: Number> RowMap<T> for ScaleColumns {
    fn apply(&self, _: Range<usize>, row_len: usize, _: &[Vec<T>], out: &mut [T]) {
        for row in out.chunks_exact_mut(row_len) {
            row.iter_mut().zip(self.0.of::<T>()).for_each(|(value, factor)| *value *= *factor);
        }
    }

    fn in_f64(&self) -> Option<&dyn RowMap<f64>> {
        self.0.in_f64(self)
    }
}

/// Multiplies elementwise.
#[derive(Debug)]
pub(super) struct Multiply;

impl<T: Number> RowMap<T> for Multiply {
    fn apply(&self, _: Range<usize>, _: usize, others: &[Vec<T>], out: &mut [T]) {
        for other in others {
            out.iter_mut().zip(other).for_each(|(value, factor)| *value *= *factor);
        }
    }

    fn in_f64(&self) -> Option<&dyn RowMap<f64>> {
        Some(self)
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
