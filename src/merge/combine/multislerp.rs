//! Multi-SLERP: the weighted mean of directions on the sphere, with the weighted mean of lengths.
//!
//! The reference touches the sphere at the weighted mean of the directions, interpolates in the tangent space there and
//! projects back. With the same weights for both, the interpolated tangent vector is zero but for rounding: what is
//! left of each direction along the mean sums to the mean itself. So the result is the point of contact, shortened by
//! the cosine of the small constant that the reference adds to the tangent's length. In 16 bits the rounding is no
//! longer small, so every step is done as there.
//!
//! Reference: mergekit `mergekit/merge_methods/multislerp.py`.

use std::ops::Range;
use std::sync::Arc;

use super::lazy::Measure;
use super::rounded::{length, products, squares};
use super::spherical::{BLOCK, Linear};
use super::statistics::{Gram, scan_all};
use super::working::Working;
use crate::error::{Finding, Result};
use crate::plan::{Expr, RowMap, torch_sum};

/// The operands are the models, or their differences from a base.
#[derive(Debug)]
pub(super) struct MultiSlerp {
    /// One for each operand. They sum to 1 where they are normalized.
    pub(super) weights: Vec<f32>,
    /// What is added to lengths before they divide. A mean that is shorter has no direction.
    pub(super) eps: f64,
    /// The tensor's name, for errors.
    pub(super) tensor: String,
    /// The type of every intermediate result.
    pub(super) working: Working,
}

impl MultiSlerp {
    /// The coefficient of each operand; `None` where the directions cancel each other out.
    fn factors(&self, gram: &Gram) -> Option<Vec<f64>> {
        let weights: Vec<f64> = self.weights.iter().map(|w| f64::from(*w)).collect();
        let lengths: Vec<f64> = (0..gram.len()).map(|i| gram.norm(i)).collect();
        // The shares of the operands in the mean of directions.
        let shares: Vec<f64> = weights.iter().zip(&lengths).map(|(w, length)| w / (length + self.eps)).collect();
        let along = |i: usize| -> f64 { shares.iter().enumerate().map(|(j, share)| share * gram.dot(i, j)).sum() };
        let mean = shares.iter().enumerate().map(|(i, share)| share * along(i)).sum::<f64>().max(0.0).sqrt();
        if mean < self.eps || mean == 0.0 {
            return self.is_straight(lengths.iter().all(|length| *length == 0.0)).then_some(weights);
        }
        let length: f64 = weights.iter().zip(&lengths).map(|(w, length)| w * length).sum();
        Some(shares.iter().map(|share| length * self.eps.cos() * share / mean).collect())
    }
}

impl MultiSlerp {
    /// Whether models without a mean direction are interpolated in a straight line: two opposite ones, and models that
    /// all are nothing.
    fn is_straight(&self, all_are_nothing: bool) -> bool {
        self.weights.len() == 2 || all_are_nothing
    }

    /// The steps in 16 bits; `None` where the directions cancel each other out. Reads the operands four times.
    fn rounded(&self, of: &[Expr]) -> Result<Option<Arc<dyn RowMap>>> {
        let (working, count) = (self.working, of.len());
        let round = |value| working.round(value);
        let eps = self.eps as f32;
        let mut sums = vec![0.0; count];
        scan_all(of, |_, values| sums.iter_mut().zip(values).for_each(|(sum, values)| *sum += squares(values)))?;
        let lengths: Vec<f32> = sums.iter().map(|squares| length(*squares, working)).collect();
        // f16 has no number as small as the constant: a tensor of zeros would be divided by zero.
        let divisor = |length: &f32| Some(round(length + eps)).filter(|divisor| *divisor != 0.0).unwrap_or(1.0);
        let divisors = lengths.iter().map(divisor).collect();
        let mut steps = Rounded { weights: self.weights.clone(), divisors, ..Rounded::new(working, count) };
        let mut sum = 0.0;
        scan_all(of, |_, values| sum += squares(&steps.weighted(&steps.units(values))))?;
        let mean = length(sum, working);
        if mean < round(eps) || mean == 0.0 {
            let is_straight = self.is_straight(lengths.iter().all(|length| *length == 0.0));
            return Ok(is_straight.then(|| Arc::new(Straight { weights: self.weights.clone(), working }) as _));
        }
        steps.mean = mean;
        let (mut dots, mut buffer) = (vec![0.0; count], Vec::new());
        scan_all(of, |_, values| {
            let units = steps.units(values);
            let mean = steps.direction(&units);
            dots.iter_mut().zip(&units).for_each(|(dot, unit)| *dot += products(unit, &mean, working, &mut buffer));
        })?;
        steps.dots = dots.into_iter().map(|dot| round(dot as f32)).collect();
        let mut sum = 0.0;
        scan_all(of, |_, values| {
            let units = steps.units(values);
            let mean = steps.direction(&units);
            sum += squares(&steps.tangent(units, &mean));
        })?;
        let tangent = round(length(sum, working) + eps);
        let rounded = |of: f64| round(of as f32);
        steps.along = rounded(f64::from(tangent).cos());
        steps.aside = if tangent == 0.0 { 1.0 } else { round(rounded(f64::from(tangent).sin()) / tangent) };
        let weighted: Vec<f32> = lengths.iter().zip(&self.weights).map(|(length, w)| round(length * w)).collect();
        steps.length = round(torch_sum(&weighted));
        Ok(Some(Arc::new(steps)))
    }
}

/// The steps in 16 bits, and the numbers that they need from whole tensors.
#[derive(Debug)]
struct Rounded {
    working: Working,
    weights: Vec<f32>,
    /// The operands' lengths, and the small constant.
    divisors: Vec<f32>,
    /// The length of the mean of directions.
    mean: f32,
    /// The part of each direction along that mean.
    dots: Vec<f32>,
    /// The factors of the mean and of the tangent.
    along: f32,
    aside: f32,
    /// The mean of the lengths.
    length: f32,
}

impl Rounded {
    fn new(working: Working, count: usize) -> Self {
        let (weights, divisors, dots) = (Vec::new(), Vec::new(), vec![0.0; count]);
        Self { working, weights, divisors, mean: 1.0, dots, along: 1.0, aside: 1.0, length: 1.0 }
    }

    /// Pieces of the directions.
    fn units<V: AsRef<[f32]>>(&self, values: &[V]) -> Vec<Vec<f32>> {
        let unit = |(values, divisor): (&V, &f32)| {
            let mut unit: Vec<f32> = values.as_ref().iter().map(|v| v / divisor).collect();
            self.working.round_all(&mut unit);
            unit
        };
        values.iter().zip(&self.divisors).map(unit).collect()
    }

    /// The weighted sum of pieces: torch rounds the products and, once, the sum.
    fn weighted(&self, of: &[Vec<f32>]) -> Vec<f32> {
        let mut sum = vec![0.0; of[0].len()];
        for (of, weight) in of.iter().zip(&self.weights) {
            sum.iter_mut().zip(of).for_each(|(sum, v)| *sum += self.working.round(v * weight));
        }
        self.working.round_all(&mut sum);
        sum
    }

    /// A piece of the mean direction.
    fn direction(&self, units: &[Vec<f32>]) -> Vec<f32> {
        let mut mean = self.weighted(units);
        mean.iter_mut().for_each(|v| *v = self.working.round(*v / self.mean));
        mean
    }

    /// A piece of the interpolated tangent vector.
    fn tangent(&self, mut units: Vec<Vec<f32>>, mean: &[f32]) -> Vec<f32> {
        let round = |value| self.working.round(value);
        for (unit, dot) in units.iter_mut().zip(&self.dots) {
            unit.iter_mut().zip(mean).for_each(|(v, mean)| *v = round(*v - round(dot * mean)));
        }
        self.weighted(&units)
    }
}

impl RowMap for Rounded {
    fn apply(&self, _: Range<usize>, _: usize, others: &[Vec<f32>], out: &mut [f32]) {
        let round = |value| self.working.round(value);
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let others = others.iter().map(|other| &other[block * BLOCK..][..out.len()]);
            let values: Vec<&[f32]> = std::iter::once(&*out).chain(others).collect();
            let units = self.units(&values);
            let mean = self.direction(&units);
            let tangent = self.tangent(units, &mean);
            for ((out, mean), tangent) in out.iter_mut().zip(&mean).zip(&tangent) {
                *out = round(round(round(mean * self.along) + round(tangent * self.aside)) * self.length);
            }
        }
    }
}

/// A straight line in 16 bits: the weighted sum, rounded step by step.
#[derive(Debug)]
struct Straight {
    weights: Vec<f32>,
    working: Working,
}

impl RowMap for Straight {
    fn apply(&self, _: Range<usize>, _: usize, others: &[Vec<f32>], out: &mut [f32]) {
        let round = |value| self.working.round(value);
        out.iter_mut().for_each(|out| *out = round(*out * self.weights[0]));
        for (other, weight) in others.iter().zip(&self.weights[1..]) {
            out.iter_mut().zip(other).for_each(|(out, v)| *out = round(*out + round(v * weight)));
        }
    }
}

impl Measure for MultiSlerp {
    fn measure(&self, of: &[Expr]) -> Result<Arc<dyn RowMap>> {
        let linear = |factors: Vec<f64>| -> Arc<dyn RowMap> {
            Arc::new(Linear { factors: factors.iter().map(|f| *f as f32).collect(), divisor: None })
        };
        let map = match self.working {
            Working::F32 => self.factors(&Gram::of(of)?).map(linear),
            _ => self.rounded(of)?,
        };
        map.ok_or_else(|| {
            Finding::new(of[0].source_path(), format!("tensor {:?}", self.tensor))
                .expected("models whose weighted directions have a mean, for multislerp")
                .found("directions that cancel each other out")
                .hint("choose other weights")
                .mismatch()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(weights: &[f32], of: &[&[f32]]) -> Result<Vec<f32>> {
        mapped_in(Working::F32, weights, of)
    }

    fn mapped_in(working: Working, weights: &[f32], of: &[&[f32]]) -> Result<Vec<f32>> {
        let exprs: Vec<Expr> =
            of.iter().map(|v| Expr::Values { shape: vec![v.len()], values: Arc::from(*v) }).collect();
        let others: Vec<Vec<f32>> = of[1..].iter().map(|v| v.to_vec()).collect();
        let mut out = of[0].to_vec();
        let slerp = MultiSlerp { weights: weights.to_vec(), eps: 1e-8, tensor: "w".to_owned(), working };
        slerp.measure(&exprs)?.apply(0..out.len(), 1, &others, &mut out);
        Ok(out)
    }

    fn near(found: &[f32], expected: &[f32]) {
        let close = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close && found.len() == expected.len(), "{found:?}");
    }

    #[test]
    fn the_mean_has_the_direction_of_directions_and_the_length_of_lengths() {
        let half = 0.5f32.sqrt();
        near(&mapped(&[0.5, 0.5], &[&[2.0, 0.0], &[0.0, 4.0]]).unwrap(), &[3.0 * half, 3.0 * half]);
        near(&mapped(&[0.25, 0.75], &[&[2.0, 0.0], &[4.0, 0.0]]).unwrap(), &[3.5, 0.0]);
        // Weights that don't sum to 1 lengthen the result.
        near(&mapped(&[1.0, 1.0], &[&[1.0, 0.0], &[0.0, 1.0]]).unwrap(), &[2.0 * half, 2.0 * half]);
    }

    #[test]
    fn every_step_is_rounded_in_16_bits() {
        let of: [&[f32]; 3] = [&[2.0, 0.5, -1.0, 0.25], &[0.25, 4.0, 1.0, -3.0], &[1.5, -0.75, 0.125, 2.0]];
        // torch: the weights 0.4, 0.9 and 0.2 by their sum, and mergekit's steps, in each type.
        let weights = [0.267_578_13, 0.597_656_25, 0.133_789_06];
        let found = mapped_in(Working::BF16, &weights, &of).unwrap();
        assert_eq!(found, [2.125, 3.09375, 0.049_316_406, -1.390625]);
        let weights = [0.266_601_56, 0.600_097_66, 0.133_300_78];
        let found = mapped_in(Working::F16, &weights, &of).unwrap();
        assert_eq!(found, [2.138_671_9, 3.107_421_9, 0.052_642_822, -1.40625]);
        // Zeros, opposite models, and a type without the small constant.
        assert_eq!(mapped_in(Working::F16, &[0.5, 0.5], &[&[0.0, 0.0], &[2.0, 0.0]]).unwrap(), [1.0, 0.0]);
        assert_eq!(mapped_in(Working::BF16, &[0.5, 0.5], &[&[2.0, 0.0], &[-4.0, 0.0]]).unwrap(), [-1.0, 0.0]);
        assert_eq!(mapped_in(Working::BF16, &[0.2, 0.3, 0.5], &[&[0.0], &[0.0], &[0.0]]).unwrap(), [0.0]);
        assert!(mapped_in(Working::F16, &[0.25, 0.25, 0.5], &[&[2.0], &[3.0], &[-1.0]]).is_err());
    }

    #[test]
    fn directions_that_cancel_each_other_out_have_no_mean() {
        near(&mapped(&[0.5, 0.5], &[&[2.0, 0.0], &[-4.0, 0.0]]).unwrap(), &[-1.0, 0.0]);
        near(&mapped(&[0.2, 0.3, 0.5], &[&[0.0], &[0.0], &[0.0]]).unwrap(), &[0.0]);
        let error = mapped(&[0.25, 0.25, 0.5], &[&[2.0], &[3.0], &[-1.0]]).unwrap_err().to_string();
        assert!(error.contains("tensor \"w\"") && error.contains("choose other weights"), "{error}");
    }
}
