//! The donor's rows of shared tokens. They are read some at a time, so that a vocabulary of any size fits into memory.

use rayon::prelude::*;

use super::in_f32;
use crate::error::Result;
use crate::plan::{Expr, PlannedTensor};

/// Values that are read at a time.
const READ_ELEMS: usize = 1 << 21;

/// Rows of a tensor.
pub(super) struct Points {
    rows: PlannedTensor,
}

impl Points {
    /// The rows `rows` of `of`.
    pub(super) fn new(of: &PlannedTensor, rows: Vec<usize>) -> Self {
        Self { rows: picked(of, &rows) }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.rows.rows()
    }

    /// The row in this place.
    pub(super) fn row(&self, place: usize) -> Result<Vec<f32>> {
        self.rows.read_rows(place..place + 1)
    }

    /// Calls `see` for every target with its place, the place of the first point and the products of the target with the
    /// points from there on, in order. `targets` have rows of the points' length.
    pub(super) fn products<T: Send>(
        &self,
        targets: &[f32],
        states: &mut [T],
        see: impl Fn(&mut T, usize, &[f32], &[f32]) + Sync,
    ) -> Result<()> {
        let width = self.rows.row_len();
        let step = (READ_ELEMS / width).max(1);
        for start in (0..self.len()).step_by(step) {
            let points = self.rows.read_rows(start..(start + step).min(self.len()))?;
            states.par_iter_mut().zip(targets.par_chunks_exact(width)).for_each_init(
                Vec::new,
                |products, (state, target)| {
                    products.clear();
                    products.extend(points.chunks_exact(width).map(|point| dot(point, target)));
                    see(state, start, products, &points);
                },
            );
        }
        Ok(())
    }
}

/// The rows `rows` of `of`, in f32.
pub(super) fn picked(of: &PlannedTensor, rows: &[usize]) -> PlannedTensor {
    let shape = vec![rows.len(), of.row_len()];
    let expr = Expr::picked(of.expr.clone(), rows.iter().map(|row| (*row, 1)), shape.clone());
    PlannedTensor { shape, expr, ..in_f32(of) }
}

/// The product of two rows, in several sums that the processor adds at once.
pub(super) fn dot(one: &[f32], other: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    let (ones, others) = (one.chunks_exact(LANES), other.chunks_exact(LANES));
    let rest: f32 = ones.remainder().iter().zip(others.remainder()).map(|(one, other)| one * other).sum();
    for (one, other) in ones.zip(others) {
        sums.iter_mut().zip(one.iter().zip(other)).for_each(|(sum, (one, other))| *sum += one * other);
    }
    sums.iter().sum::<f32>() + rest
}

/// The same in f64.
pub(super) fn exact_dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}
