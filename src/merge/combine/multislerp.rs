//! Multi-SLERP: the weighted mean of directions on the sphere, with the weighted mean of lengths.
//!
//! The reference touches the sphere at the weighted mean of the directions, interpolates in the tangent space there and
//! projects back. With the same weights for both, the interpolated tangent vector is zero but for rounding: what is
//! left of each direction along the mean sums to the mean itself. So the result is the point of contact, shortened by
//! the cosine of the small constant that the reference adds to the tangent's length.
//!
//! Reference: mergekit `mergekit/merge_methods/multislerp.py`.

use std::sync::Arc;

use super::lazy::Measure;
use super::spherical::Linear;
use super::statistics::Gram;
use crate::error::{Finding, Result};
use crate::plan::{Expr, RowMap};

/// The operands are the models, or their differences from a base.
#[derive(Debug)]
pub(super) struct MultiSlerp {
    /// One for each operand. They sum to 1 where they are normalized.
    pub(super) weights: Vec<f32>,
    /// What is added to lengths before they divide. A mean that is shorter has no direction.
    pub(super) eps: f64,
    /// The tensor's name, for errors.
    pub(super) tensor: String,
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
        // Two opposite models, and models that all are nothing, are interpolated in a straight line.
        if mean < self.eps || mean == 0.0 {
            let is_straight = weights.len() == 2 || lengths.iter().all(|length| *length == 0.0);
            return is_straight.then_some(weights);
        }
        let length: f64 = weights.iter().zip(&lengths).map(|(w, length)| w * length).sum();
        Some(shares.iter().map(|share| length * self.eps.cos() * share / mean).collect())
    }
}

impl Measure for MultiSlerp {
    fn measure(&self, of: &[Expr]) -> Result<Arc<dyn RowMap>> {
        let factors = self.factors(&Gram::of(of)?).ok_or_else(|| {
            Finding::new(of[0].source_path(), format!("tensor {:?}", self.tensor))
                .expected("models whose weighted directions have a mean, for multislerp")
                .found("directions that cancel each other out")
                .hint("choose other weights")
                .mismatch()
        })?;
        Ok(Arc::new(Linear { factors: factors.iter().map(|f| *f as f32).collect(), divisor: None }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(weights: &[f32], of: &[&[f32]]) -> Result<Vec<f32>> {
        let exprs: Vec<Expr> =
            of.iter().map(|v| Expr::Values { shape: vec![v.len()], values: Arc::from(*v) }).collect();
        let others: Vec<Vec<f32>> = of[1..].iter().map(|v| v.to_vec()).collect();
        let mut out = of[0].to_vec();
        let slerp = MultiSlerp { weights: weights.to_vec(), eps: 1e-8, tensor: "w".to_owned() };
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
    fn directions_that_cancel_each_other_out_have_no_mean() {
        near(&mapped(&[0.5, 0.5], &[&[2.0, 0.0], &[-4.0, 0.0]]).unwrap(), &[-1.0, 0.0]);
        near(&mapped(&[0.2, 0.3, 0.5], &[&[0.0], &[0.0], &[0.0]]).unwrap(), &[0.0]);
        let error = mapped(&[0.25, 0.25, 0.5], &[&[2.0], &[3.0], &[-1.0]]).unwrap_err().to_string();
        assert!(error.contains("tensor \"w\"") && error.contains("choose other weights"), "{error}");
    }
}
