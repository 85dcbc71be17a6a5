//! Orthogonal matching pursuit: a row as a combination of points, each chosen as the one that is most like what the others
//! leave over.
//!
//! Reference: mergekit 0.1.5 `mergekit/tokensurgeon/omp.py` (`batch_omp`). Points are chosen by products in f32, as there;
//! the basis is orthogonalized in f64. Where what is left over is nothing, no more points are chosen: mergekit goes on with
//! rounding errors.

use rayon::prelude::*;

use super::points::{Points, exact_dot, picked};
use crate::error::Result;
use crate::plan::PlannedTensor;

/// Below this share of its own length, what a point adds to the basis is a rounding error.
const NOTHING: f64 = 1e-6;

/// How many rows are approximated at a time.
pub(super) fn batch(max_memory_bytes: u64, width: usize, k: usize) -> usize {
    const MOST: usize = 1024;
    let each = (width.saturating_mul(k).saturating_mul(8)).saturating_add(k.saturating_mul(k).saturating_mul(8)).max(1);
    usize::try_from(max_memory_bytes / 2).unwrap_or(usize::MAX).checked_div(each).unwrap_or(1).clamp(1, MOST)
}

/// The points that a row is made of so far, and the one that would come next.
#[derive(Default)]
pub(super) struct Chosen {
    pub(super) places: Vec<usize>,
    best: Option<(f32, usize)>,
}

impl Chosen {
    /// Looks at the products with the points from `start` on.
    pub(super) fn see(&mut self, start: usize, products: &[f32]) {
        for (place, product) in products.iter().enumerate() {
            let (place, size) = (start + place, product.abs());
            if self.best.is_none_or(|(best, _)| size > best) && !self.places.contains(&place) {
                self.best = Some((size, place));
            }
        }
    }

    /// Takes the point with the largest product, if there is one.
    pub(super) fn take(&mut self) -> Option<usize> {
        let (_, place) = self.best.take()?;
        self.places.push(place);
        Some(place)
    }
}

/// A row on the way.
struct Target {
    row: Vec<f64>,
    left: Vec<f64>,
    chosen: Chosen,
    basis: Vec<Vec<f64>>,
    /// The points by the basis: the column of each.
    columns: Vec<Vec<f64>>,
    /// The row by the basis.
    shares: Vec<f64>,
    is_done: bool,
}

impl Target {
    fn new(row: &[f32]) -> Self {
        let row: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
        let (left, is_done) = (row.clone(), row.iter().all(|value| *value == 0.0));
        let (chosen, basis, columns, shares) = (Chosen::default(), Vec::new(), Vec::new(), Vec::new());
        Self { row, left, chosen, basis, columns, shares, is_done }
    }

    /// Takes the best point into the basis.
    fn take(&mut self, points: &Points) -> Result<()> {
        let Some(place) = self.chosen.take() else {
            self.is_done = true;
            return Ok(());
        };
        let point: Vec<f64> = points.row(place)?.into_iter().map(f64::from).collect();
        let mut rest = point.clone();
        let mut column: Vec<f64> = vec![0.0; self.basis.len()];
        // Twice, so that the basis stays orthogonal.
        for _ in 0..2 {
            for (part, of) in column.iter_mut().zip(&self.basis) {
                let share = exact_dot(of, &rest);
                *part += share;
                rest.iter_mut().zip(of).for_each(|(rest, of)| *rest -= share * of);
            }
        }
        let length = exact_dot(&rest, &rest).sqrt();
        if length <= NOTHING * exact_dot(&point, &point).sqrt() {
            self.chosen.places.pop();
            self.is_done = true;
            return Ok(());
        }
        rest.iter_mut().for_each(|value| *value /= length);
        column.push(length);
        let share = exact_dot(&rest, &self.row);
        self.left.iter_mut().zip(&rest).for_each(|(left, of)| *left -= share * of);
        self.basis.push(rest);
        self.columns.push(column);
        self.shares.push(share);
        Ok(())
    }

    /// The weights of the chosen points: the triangular system of the columns, solved from its end.
    fn weights(&self) -> Vec<(usize, f32)> {
        let mut weights = self.shares.clone();
        for at in (0..weights.len()).rev() {
            weights[at] /= self.columns[at][at];
            for before in 0..at {
                weights[before] -= self.columns[at][before] * weights[at];
            }
        }
        self.chosen.places.iter().copied().zip(weights.iter().map(|weight| *weight as f32)).collect()
    }
}

/// For the rows `targets` of `of`, the places of at most `k` points and their weights.
pub(super) fn weights(
    of: &PlannedTensor,
    targets: &[usize],
    points: &Points,
    k: usize,
) -> Result<Vec<Vec<(usize, f32)>>> {
    let width = of.row_len();
    let rows = picked(of, targets).read()?;
    let mut states: Vec<Target> = rows.chunks_exact(width).map(Target::new).collect();
    let mut left = vec![0.0f32; rows.len()];
    for _ in 0..k {
        if states.iter().all(|state| state.is_done) {
            break;
        }
        for (left, state) in left.chunks_exact_mut(width).zip(&states) {
            left.iter_mut().zip(&state.left).for_each(|(left, value)| *left = *value as f32);
        }
        points.products(&left, &mut states, |state, start, products, _| {
            if !state.is_done {
                state.chosen.see(start, products);
            }
        })?;
        states.par_iter_mut().filter(|state| !state.is_done).try_for_each(|state| state.take(points))?;
    }
    Ok(states.iter().map(Target::weights).collect())
}
