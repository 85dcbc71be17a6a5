//! Types that are quantized without a search: one block at a time, in plain loops that compilers vectorize.

use std::marker::PhantomData;

use crate::kernel::{Kernel, Routine};

/// Encodes one block of `ELEMS` values in `BYTES` bytes.
pub(super) trait EncodeBlock<const BYTES: usize, const ELEMS: usize> {
    /// Mark it `#[inline(always)]`, so that it is compiled for the caller's vector width.
    fn encode(values: &[f32; ELEMS], out: &mut [u8; BYTES]);
}

/// Encodes all blocks of `row`.
pub(super) fn each_block<E: EncodeBlock<BYTES, ELEMS>, const BYTES: usize, const ELEMS: usize>(
    _: E,
    row: &[f32],
    out: &mut [u8],
    kernel: Kernel,
) {
    kernel.run(EachBlock::<E, BYTES, ELEMS> {
        blocks: row.as_chunks().0,
        out: out.as_chunks_mut().0,
        code: PhantomData,
    });
}

struct EachBlock<'a, E, const BYTES: usize, const ELEMS: usize> {
    blocks: &'a [[f32; ELEMS]],
    out: &'a mut [[u8; BYTES]],
    code: PhantomData<E>,
}

impl<E: EncodeBlock<BYTES, ELEMS>, const BYTES: usize, const ELEMS: usize> Routine for EachBlock<'_, E, BYTES, ELEMS> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        for (values, out) in self.blocks.iter().zip(self.out) {
            E::encode(values, out);
        }
    }
}

/// The largest magnitude. The bits of magnitudes have the same order as their values. Unlike floats, integers may be
/// compared in any order, so this can be vectorized.
#[inline(always)]
pub(super) fn largest_magnitude(values: &[f32]) -> f32 {
    f32::from_bits(values.iter().fold(0, |largest, v| largest.max(v.to_bits() & 0x7fff_ffff)))
}

/// The factor that expresses values in steps of `step`. `None` if it is too large for f32 because the step is
/// subnormal.
#[inline(always)]
pub(super) fn inverse_of_step(step: f32) -> Option<f32> {
    let inverse = if step == 0.0 { 0.0 } else { 1.0 / step };
    inverse.is_finite().then_some(inverse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_magnitude_of_any_sign() {
        assert_eq!(largest_magnitude(&[]), 0.0);
        assert_eq!(largest_magnitude(&[-0.0, 0.0]).to_bits(), 0);
        assert_eq!(largest_magnitude(&[1.0, -3.0, 2.5]), 3.0);
        assert_eq!(largest_magnitude(&[1e-45, -1e-44]), 1e-44);
        assert_eq!(largest_magnitude(&[f32::MIN, f32::MAX]), f32::MAX);
    }

    #[test]
    fn steps_too_small_have_no_inverse() {
        assert_eq!(inverse_of_step(0.0), Some(0.0));
        assert_eq!(inverse_of_step(4.0), Some(0.25));
        assert_eq!(inverse_of_step(3e-39), Some(1.0 / 3e-39));
        assert_eq!(inverse_of_step(2e-39), None);
    }
}
