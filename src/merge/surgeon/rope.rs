//! Matching pursuit with rotations: a row as a combination of points that are turned as if they stood at other positions of a
//! text.
//!
//! Reference: mergekit 0.1.5 `mergekit/tokensurgeon/omp.py` (`batch_mp_rope`), `rope_helpers.py`. Points are chosen by products
//! in f32, as there; positions and what is left over are f64.

use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;

use super::nearest::least_squares;
use super::points::{Points, exact_dot, picked};
use super::pursuit::Chosen;
use crate::checkpoint::Checkpoint;
use crate::error::{Finding, Result};
use crate::plan::PlannedTensor;

/// What divides is at least this.
const LEAST: f64 = 1e-8;

/// A class's base where config.json says none.
const BASE: f64 = 10_000.0;

/// The rotations of a model's attention.
#[derive(Debug, Clone)]
pub(super) struct Rotation {
    /// The angle at position 1 of each pair of a head's values.
    angles: Vec<f64>,
}

impl Rotation {
    /// That of a model whose rows have `width` values.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for rows that aren't made of heads.
    pub(super) fn of(model: &Checkpoint, width: usize) -> Result<Self> {
        let config = &model.config_json;
        let heads = config.get("num_attention_heads").and_then(|heads| heads.as_u64()).unwrap_or_default();
        let heads = usize::try_from(heads).unwrap_or_default();
        if heads == 0 || !width.is_multiple_of(heads) || !(width / heads).is_multiple_of(2) {
            let finding = Finding::new(model.path().join("config.json"), "num_attention_heads");
            let expected = format!("a number of heads of an even size, in rows of {width}, for mp_rope");
            return Err(finding.expected(expected).found(heads).mismatch());
        }
        let theta = config.get("rope_theta").or_else(|| config.get("rope_parameters")?.get("rope_theta"));
        Ok(Self::new(width / heads, theta.and_then(|theta| theta.as_f64()).unwrap_or(BASE)))
    }

    fn new(head: usize, base: f64) -> Self {
        Self { angles: (0..head / 2).map(|pair| base.powf(-((2 * pair) as f64) / head as f64)).collect() }
    }

    /// The position at which `from` comes next to `to`, or to what is opposite: the one that is closer to 0.
    fn position(&self, from: &[f64], to: &[f64]) -> f64 {
        let half = self.angles.len();
        let (mut sums, mut squares) = ([0.0; 2], 0.0);
        for (from, to) in from.chunks_exact(2 * half).zip(to.chunks_exact(2 * half)) {
            for (pair, angle) in self.angles.iter().enumerate() {
                let along = from[pair] * to[pair] + from[half + pair] * to[half + pair];
                let across = from[pair] * to[half + pair] - from[half + pair] * to[pair];
                sums[0] += across.atan2(along) * angle;
                sums[1] += (-across).atan2(-along) * angle;
                squares += angle * angle;
            }
        }
        let length = squares.sqrt();
        let [one, other] = sums.map(|sum| sum / (length + LEAST) / (length + LEAST));
        if one.abs() < other.abs() { one } else { other }
    }

    /// The row at `position`.
    pub(super) fn turn(&self, row: &mut [f64], position: f64) {
        let half = self.angles.len();
        for head in row.chunks_exact_mut(2 * half) {
            for (pair, angle) in self.angles.iter().enumerate() {
                let (sine, cosine) = (position * angle).sin_cos();
                let (one, other) = (head[pair], head[half + pair]);
                (head[pair], head[half + pair]) = (one * cosine - other * sine, other * cosine + one * sine);
            }
        }
    }
}

/// A point of a combination: its place, its weight, and the position at which it stands.
pub(super) type Turned = (usize, f32, f32);

/// A row on the way.
struct Target {
    row: Vec<f64>,
    left: Vec<f64>,
    points: Chosen,
    positions: Vec<f64>,
}

/// For the rows `targets` of `of`, `k` points each.
pub(super) fn weights(
    of: &PlannedTensor,
    targets: &[usize],
    points: &Points,
    k: usize,
    rotation: &Rotation,
) -> Result<Vec<Vec<Turned>>> {
    let width = of.row_len();
    let rows = picked(of, targets).read()?;
    let target = |row: &[f32]| {
        let row: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
        Target { left: row.clone(), row, points: Chosen::default(), positions: Vec::new() }
    };
    let mut states: Vec<Target> = rows.chunks_exact(width).map(target).collect();
    let mut left = rows;
    let turned = |place: usize, position: f64| -> Result<Vec<f64>> {
        let mut point: Vec<f64> = points.row(place)?.into_iter().map(f64::from).collect();
        rotation.turn(&mut point, position);
        Ok(point)
    };
    for _ in 0..k {
        for (left, state) in left.chunks_exact_mut(width).zip(&states) {
            left.iter_mut().zip(&state.left).for_each(|(left, value)| *left = *value as f32);
        }
        points.products(&left, &mut states, |state, start, products, _| state.points.see(start, products))?;
        states.par_iter_mut().try_for_each(|state| -> Result<()> {
            let Some(place) = state.points.take() else { return Ok(()) };
            let position = rotation.position(&turned(place, 0.0)?, &state.left);
            let point = turned(place, position)?;
            let share = exact_dot(&state.left, &point) / exact_dot(&point, &point).max(LEAST);
            state.left.iter_mut().zip(&point).for_each(|(left, value)| *left -= share * value);
            state.positions.push(position);
            Ok(())
        })?;
    }
    let weighted = |state: Target| -> Result<Vec<Turned>> {
        let places = &state.points.places;
        let mut columns = Vec::with_capacity(places.len() * width);
        for (place, position) in places.iter().zip(&state.positions) {
            columns.extend(turned(*place, *position)?);
        }
        let matrix = DMatrix::from_vec(width, places.len(), columns);
        let weights = least_squares(matrix, DVector::from_vec(state.row));
        Ok(places.iter().zip(weights).zip(&state.positions).map(|((place, w), at)| (*place, w, *at as f32)).collect())
    };
    states.into_par_iter().map(weighted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_position_of_a_turned_row_is_found_again() {
        let rotation = Rotation::new(4, 100.0);
        let row = [1.0, 2.0, 0.5, -1.0, 0.25, 1.0, -2.0, 0.5];
        let mut turned = row;
        rotation.turn(&mut turned, 0.75);
        assert!((rotation.position(&row, &turned) - 0.75).abs() < 1e-6);
        let opposite = turned.map(|value| -value);
        assert!((rotation.position(&row, &opposite) - 0.75).abs() < 1e-6);
        assert!((exact_dot(&row, &row) - exact_dot(&turned, &turned)).abs() < 1e-12);
    }
}
