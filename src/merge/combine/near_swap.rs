//! NearSwap: the base moves toward a model, the further the closer the two are.
//!
//! Reference: mergekit `mergekit/merge_methods/nearswap.py`.

use std::ops::Range;

use super::working::Working;
use crate::plan::RowMap;

/// Each value moves by `t` over its distance from the model's, and at most to the model's. The operands are the base,
/// then the model.
#[derive(Debug)]
pub(super) struct NearSwap {
    /// Values that are closer together than this are the model's.
    pub(super) t: f32,
    /// The type of every intermediate result.
    pub(super) working: Working,
}

/// Smaller distances count as this one.
const CLOSEST: f32 = 1e-6;

impl RowMap for NearSwap {
    fn apply(&self, _: Range<usize>, _: usize, others: &[Vec<f32>], out: &mut [f32]) {
        let round = |value| self.working.round(value);
        let closest = round(CLOSEST);
        for (base, model) in out.iter_mut().zip(&others[0]) {
            // torch divides a number by a tensor as the number times the reciprocals.
            let distance = round(*base - model).abs().max(closest);
            let weight = round(round(1.0 / distance) * self.t).clamp(0.0, 1.0);
            *base = round(round(weight * model) + round(round(1.0 - weight) * *base));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_is_swapped() {
        let mut out = [1.0, 1.0, 1.0, 1.0];
        NearSwap { t: 0.5, working: Working::F32 }.apply(0..4, 1, &[vec![1.5, 1.0, 2.0, -3.0]], &mut out);
        assert_eq!(out, [1.5, 1.0, 1.5, 0.5]);
    }
}
