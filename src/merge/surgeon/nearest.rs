//! The points that are nearest to a row, and their weights.
//!
//! Reference: mergekit 0.1.5 `mergekit/tokensurgeon/common_interpolation.py`. Its systems of equations are solved in f64: in
//! f32, the bordered one of barycentric weights has few correct digits.

use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;

use super::points::{Points, dot, picked};
use super::{Distance, Weighting};
use crate::error::Result;
use crate::linalg::{Svd, svd};
use crate::plan::PlannedTensor;

/// Distances and sums below this count as this.
const LEAST: f32 = 1e-6;

/// A row, and the nearest points so far.
struct Target {
    square: f32,
    /// Distances and places, in order.
    nearest: Vec<(f32, usize)>,
}

impl Target {
    fn see(&mut self, k: usize, distance: f32, place: usize) {
        if self.nearest.len() == k && self.nearest.last().is_some_and(|(last, _)| distance >= *last) {
            return;
        }
        let at = self.nearest.partition_point(|(other, _)| *other <= distance);
        self.nearest.insert(at, (distance, place));
        self.nearest.truncate(k);
    }
}

/// For the rows `targets` of `of`, the places of the `k` nearest points and their weights.
pub(super) fn weights(
    of: &PlannedTensor,
    targets: &[usize],
    points: &Points,
    k: usize,
    distance: Distance,
    weighting: Weighting,
) -> Result<Vec<Vec<(usize, f32)>>> {
    let width = of.row_len();
    let rows = picked(of, targets).read()?;
    let mut states: Vec<Target> =
        rows.chunks_exact(width).map(|row| Target { square: dot(row, row), nearest: Vec::new() }).collect();
    points.products(&rows, &mut states, |state, start, products, points| {
        for (place, (product, point)) in products.iter().zip(points.chunks_exact(width)).enumerate() {
            let square = dot(point, point);
            let distance = match distance {
                Distance::Euclidean => (state.square + square - 2.0 * product).max(0.0).sqrt(),
                Distance::Cosine => 1.0 - product / (state.square.sqrt() * square.sqrt()).max(LEAST),
            };
            state.see(k, distance, start + place);
        }
    })?;
    let weighted = |(state, row): (Target, &[f32])| {
        let places: Vec<usize> = state.nearest.iter().map(|(_, place)| *place).collect();
        let weights = match weighting {
            Weighting::DistanceProportional => by_distance(&state.nearest, distance),
            Weighting::LeastSquares => {
                let matrix = matrix(points, &places, width)?;
                least_squares(matrix, DVector::from_iterator(width, row.iter().map(|value| f64::from(*value))))
            }
            Weighting::Barycentric => barycentric(&matrix(points, &places, width)?, row),
        };
        Ok(places.into_iter().zip(weights).collect())
    };
    states.into_par_iter().zip(rows.par_chunks_exact(width)).map(weighted).collect()
}

fn by_distance(nearest: &[(f32, usize)], distance: Distance) -> Vec<f32> {
    let weight = |(of, _): &(f32, usize)| match distance {
        Distance::Euclidean => 1.0 / of.max(LEAST),
        Distance::Cosine => 1.0 - of,
    };
    let weights: Vec<f32> = nearest.iter().map(weight).collect();
    let sum = weights.iter().sum::<f32>().max(LEAST);
    weights.iter().map(|weight| weight / sum).collect()
}

/// The points as columns.
fn matrix(points: &Points, places: &[usize], width: usize) -> Result<DMatrix<f64>> {
    let mut values = Vec::with_capacity(places.len() * width);
    for place in places {
        values.extend(points.row(*place)?.into_iter().map(f64::from));
    }
    Ok(DMatrix::from_vec(width, places.len(), values))
}

/// The shortest of the solutions of `matrix x = of` that come nearest.
pub(super) fn least_squares(matrix: DMatrix<f64>, of: DVector<f64>) -> Vec<f32> {
    let Svd { u, s, vt } = svd(matrix);
    let mut along = u.tr_mul(&of);
    along.iter_mut().zip(&s).for_each(|(share, s)| *share /= s);
    vt.tr_mul(&along).iter().map(|value| *value as f32).collect()
}

/// Weights with the sum of 1, from the products of the points, bordered with ones.
fn barycentric(points: &DMatrix<f64>, row: &[f32]) -> Vec<f32> {
    let count = points.ncols();
    let row = DVector::from_iterator(row.len(), row.iter().map(|value| f64::from(*value)));
    let mut bordered = DMatrix::from_element(count + 1, count + 1, 1.0);
    bordered[(count, count)] = 0.0;
    bordered.view_mut((0, 0), (count, count)).copy_from(&points.tr_mul(points));
    let mut of = DVector::from_element(count + 1, 1.0);
    of.rows_mut(0, count).copy_from(&points.tr_mul(&row));
    // The bordered matrix is symmetric: the shortest solution by its eigenvectors.
    let eigen = bordered.symmetric_eigen();
    let least = f64::EPSILON * (count + 1) as f64 * eigen.eigenvalues.amax();
    let mut weights = eigen.eigenvectors.tr_mul(&of);
    for (share, value) in weights.iter_mut().zip(&eigen.eigenvalues) {
        *share = if value.abs() > least { *share / value } else { 0.0 };
    }
    (eigen.eigenvectors * weights).iter().take(count).map(|weight| *weight as f32).collect()
}
