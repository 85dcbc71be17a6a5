//! The weighted sum or mean of models.
//!
//! Reference: mergekit `mergekit/merge_methods/linear.py`. torch's `addcmul` multiplies and adds with one rounding.

use std::ops::Range;

use crate::kernel::{Kernel, Routine};
use crate::plan::RowMap;

/// The sum of the operands, each times a number.
#[derive(Debug)]
pub(super) struct Mean {
    pub(super) factors: Vec<f32>,
    /// The divisor of the sum.
    pub(super) divisor: Option<f32>,
}

impl RowMap for Mean {
    fn apply(&self, _: Range<usize>, _: usize, others: &[Vec<f32>], out: &mut [f32]) {
        Kernel::in_use().run_wide(AddUp { of: self, others, out });
    }
}

/// The number of elements that are summed at a time, so that they stay in the processor's cache.
const BLOCK: usize = 1 << 12;

struct AddUp<'a> {
    of: &'a Mean,
    others: &'a [Vec<f32>],
    out: &'a mut [f32],
}

impl Routine for AddUp<'_> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        let Self { of: Mean { factors, divisor }, others, out } = self;
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            // Sums begin with 0, so none is -0.
            out.iter_mut().for_each(|sum| *sum = factors[0].mul_add(*sum, 0.0));
            for (factor, other) in factors[1..].iter().zip(others) {
                let other = &other[block * BLOCK..][..out.len()];
                out.iter_mut().zip(other).for_each(|(sum, value)| *sum = factor.mul_add(*value, *sum));
            }
            if let Some(divisor) = divisor {
                out.iter_mut().for_each(|sum| *sum /= divisor);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_added_with_one_rounding() {
        let (one, third) = (1.0f32, 1.0f32 / 3.0);
        let mut out = [one, -0.0];
        Mean { factors: vec![1.0, third], divisor: None }.apply(0..2, 1, &[vec![third, 0.0]], &mut out);
        let exact = (1.0 + f64::from(third) * f64::from(third)) as f32;
        assert_eq!(out.map(f32::to_bits), [exact, 0.0].map(f32::to_bits));
        let mut out = [3.0, 1.0];
        Mean { factors: vec![1.0, 0.5], divisor: Some(1.5) }.apply(0..2, 1, &[vec![6.0, 4.0]], &mut out);
        assert_eq!(out, [4.0, 2.0]);
    }
}
