//! Spherical methods in 16 bits: every step is rounded, as in torch. In f32, lengths and angles are taken in f64 instead,
//! because rounding hardly matters there.
//!
//! Reference: mergekit `mergekit/merge_methods/nuslerp.py`, `model_stock.py`.

use std::ops::Range;
use std::sync::Arc;

use super::statistics::{scan_all, sum_of};
use super::working::Working;
use crate::error::Result;
use crate::plan::{Expr, RowMap};
use crate::source::row_len;

/// Sums over two vectors, of which torch takes squares in f32 and products in the vectors' own type.
pub(super) fn products(a: &[f32], b: &[f32], working: Working, buffer: &mut Vec<f32>) -> f64 {
    buffer.clear();
    buffer.extend(a.iter().zip(b).map(|(a, b)| a * b));
    working.round_all(buffer);
    sum_of(buffer, f64::from)
}

pub(super) fn squares(of: &[f32]) -> f64 {
    sum_of(of, |v| f64::from(v) * f64::from(v))
}

pub(super) fn length(squares: f64, working: Working) -> f32 {
    working.round(squares.sqrt() as f32)
}

/// The position of model stock between the base and the mean of the models, of the models' differences from the base.
#[derive(Debug, Clone)]
pub(super) struct Stock {
    working: Working,
    squares: Vec<f64>,
    /// Of every pair, in order.
    products: Vec<f64>,
}

impl Stock {
    pub(super) fn new(models: usize, working: Working) -> Self {
        Self { working, squares: vec![0.0; models], products: vec![0.0; models * models.saturating_sub(1) / 2] }
    }

    /// Adds pieces of the differences.
    pub(super) fn add(&mut self, updates: &[Vec<f32>]) {
        let mut buffer = Vec::new();
        let mut pairs = self.products.iter_mut();
        for (i, (update, sum)) in updates.iter().zip(&mut self.squares).enumerate() {
            *sum += squares(update);
            for (other, sum) in updates[i + 1..].iter().zip(&mut pairs) {
                *sum += products(update, other, self.working, &mut buffer);
            }
        }
    }

    pub(super) fn position(&self) -> f32 {
        let (round, count) = (|value| self.working.round(value), self.squares.len());
        let lengths: Vec<f32> = self.squares.iter().map(|squares| length(*squares, self.working)).collect();
        let pairs = (0..count).flat_map(|i| (i + 1..count).map(move |j| (i, j)));
        let cosine = |((i, j), product): ((usize, usize), &f64)| {
            let lengths = round(lengths[i] * lengths[j]).max(round(1e-6));
            round(round(*product as f32) / lengths).clamp(-1.0, 1.0)
        };
        let sum: f32 = pairs.zip(&self.products).map(cosine).sum();
        let cosine = round(sum / self.products.len().max(1) as f32);
        let divisor = round(1.0 + round((count - 1) as f32 * cosine));
        if divisor.abs() < 1e-6 { 0.0 } else { round(round(count as f32 * cosine) / divisor) }
    }
}

/// Moves the base to the position `t` toward the mean of the models.
pub(super) fn toward_mean(t: f32, base: &mut [f32], models: &[&[f32]], working: Working) {
    let round = |value| working.round(value);
    let rest = round(1.0 - t);
    for (i, base) in base.iter_mut().enumerate() {
        let sum = models.iter().fold(0.0, |sum, model| round(sum + model[i]));
        let mean = round(sum / models.len() as f32);
        *base = round(round(t * mean) + round(rest * *base));
    }
}

/// NuSLERP's arc from one vector to another, or a straight line between parallel ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arc2 {
    factors: [f32; 2],
    divisor: Option<f32>,
    working: Working,
}

impl Arc2 {
    /// Of vectors with these lengths, whose directions have the cosine `cosine`.
    fn new(t: f64, cosine: f32, working: Working) -> Self {
        let round = |value| working.round(value);
        let (first, second) = ((1.0 - t) as f32, t as f32);
        let cosine = round(cosine).clamp(-1.0, 1.0);
        if round(1.0 - round(cosine * cosine)) <= 1e-16 {
            return Self { factors: [first, second], divisor: None, working };
        }
        let angle = round(f64::from(cosine).acos() as f32);
        let sine = |angle: f32| round(f64::from(angle).sin() as f32);
        let factors = [sine(round(first * angle)), sine(round(second * angle))];
        Self { factors, divisor: Some(sine(angle)), working }
    }

    /// Of whole tensors.
    pub(super) fn of(t: f64, of: &[Expr], working: Working) -> Result<Arc<dyn RowMap>> {
        let mut sums = [0.0; 2];
        scan_all(of, |_, values| sums.iter_mut().zip(values).for_each(|(sum, values)| *sum += squares(values)))?;
        let lengths = sums.map(|squares| length(squares, working).max(working.round(1e-7)));
        let (mut dot, mut buffer) = (0.0, Vec::new());
        scan_all(of, |_, values| {
            let [a, b] = [0, 1].map(|i| unit(&values[i], lengths[i], working));
            dot += products(&a, &b, working, &mut buffer);
        })?;
        Ok(Arc::new(Self::new(t, dot as f32, working)))
    }

    /// Of two rows, in place of the first.
    pub(super) fn between(t: f64, a: &mut [f32], b: &[f32], working: Working) {
        let unit = |of: &[f32]| unit(of, length(squares(of), working).max(working.round(1e-7)), working);
        let dot = products(&unit(a), &unit(b), working, &mut Vec::new());
        Self::new(t, dot as f32, working).move_from(a, b);
    }

    /// Of the columns of matrices. Every column keeps a handful of numbers.
    pub(super) fn of_columns(t: f64, of: &[Expr], working: Working) -> Result<Arc<dyn RowMap>> {
        let cols = row_len(&of[0].shape()).max(1);
        let mut sums = vec![[0.0; 2]; cols];
        scan_all(of, |_, values| {
            for (i, values) in values.iter().enumerate() {
                for row in values.chunks(cols) {
                    sums.iter_mut().zip(row).for_each(|(sum, v)| sum[i] += f64::from(*v) * f64::from(*v));
                }
            }
        })?;
        let lengths = |sums: [f64; 2]| sums.map(|squares| length(squares, working).max(working.round(1e-7)));
        let lengths: Vec<[f32; 2]> = sums.into_iter().map(lengths).collect();
        let mut dots = vec![0.0; cols];
        scan_all(of, |_, values| {
            for (a, b) in values[0].chunks(cols).zip(values[1].chunks(cols)) {
                for ((dot, [first, second]), (a, b)) in dots.iter_mut().zip(&lengths).zip(a.iter().zip(b)) {
                    *dot += f64::from(working.round(working.round(a / first) * working.round(b / second)));
                }
            }
        })?;
        Ok(Arc::new(Columns(dots.into_iter().map(|dot| Self::new(t, dot as f32, working)).collect())))
    }

    fn move_from(&self, a: &mut [f32], b: &[f32]) {
        a.iter_mut().zip(b).for_each(|(a, b)| *a = self.between_values(*a, *b));
    }

    fn between_values(&self, a: f32, b: f32) -> f32 {
        let round = |value| self.working.round(value);
        let [first, second] = self.factors;
        let sum = round(round(first * a) + round(second * b));
        self.divisor.map_or(sum, |divisor| round(sum / divisor))
    }
}

/// An arc for each column.
#[derive(Debug)]
struct Columns(Vec<Arc2>);

impl RowMap for Columns {
    fn apply(&self, _: Range<usize>, row_len: usize, others: &[Vec<f32>], out: &mut [f32]) {
        for (a, b) in out.chunks_mut(row_len.max(1)).zip(others[0].chunks(row_len.max(1))) {
            a.iter_mut().zip(b).zip(&self.0).for_each(|((a, b), arc)| *a = arc.between_values(*a, *b));
        }
    }
}

/// The direction of a vector.
fn unit(of: &[f32], length: f32, working: Working) -> Vec<f32> {
    let mut unit: Vec<f32> = of.iter().map(|v| v / length).collect();
    working.round_all(&mut unit);
    unit
}

impl RowMap for Arc2 {
    fn apply(&self, _: Range<usize>, _: usize, others: &[Vec<f32>], out: &mut [f32]) {
        self.move_from(out, &others[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_a_circle_is_halved_in_16_bits() {
        let mut a = [2.0, 0.0];
        Arc2::between(0.5, &mut a, &[0.0, 2.0], Working::BF16);
        // torch: acos(0) is 1.5703125 in bf16, half of it 0.78515625, its sine 0.70703125, that of the whole 1.
        assert_eq!(a, [1.4140625, 1.4140625]);
        let mut a = [2.0, 0.0];
        Arc2::between(0.25, &mut a, &[4.0, 0.0], Working::BF16);
        assert_eq!(a, [2.5, 0.0], "a straight line");
    }

    #[test]
    fn columns_have_arcs_of_their_own_in_16_bits() {
        let values = |v: [f32; 4]| Expr::Values { shape: vec![2, 2], values: Arc::from(v) };
        let (a, b) = ([2.0, 1.0, 0.0, 2.0], [0.0, 4.0, 2.0, 8.0]);
        let arcs = Arc2::of_columns(0.5, &[values(a), values(b)], Working::BF16).unwrap();
        let mut out = a;
        arcs.apply(0..2, 2, &[b.to_vec()], &mut out);
        // The first column is half a right angle, the second a straight line.
        assert_eq!(out, [1.4140625, 2.5, 1.4140625, 5.0]);
    }

    #[test]
    fn stock_is_rounded_step_by_step() {
        let mut stock = Stock::new(2, Working::BF16);
        stock.add(&[vec![1.0, 0.0], vec![1.0, 1.0]]);
        // torch: cos = 1 / 1.4140625 is 0.70703125, 2 cos / (1 + cos) is 1.4140625 / 1.703125.
        assert_eq!(stock.position(), 0.83203125);
        let mut base = [1.0, 3.0];
        toward_mean(0.5, &mut base, &[&[2.0, 3.0], &[4.0, 3.0]], Working::BF16);
        assert_eq!(base, [2.0, 3.0]);
    }
}
