//! Helpers for the encoders of IQ blocks: weights of errors, and the scales of runs as small multiples of one scale.
//!
//! Reference: ggml `ggml-quants.c`, the beginnings and ends of `quantize_row_iq2_xxs_impl` and so on.

use std::array::from_fn;

use half::f16;

use super::lanes::Lanes;

/// A block for values or weights so large (values from about 1e13 on) that their distances overflow f32. ggml stops the
/// program there; here the block's scale is NaN, so that checks for NaN find the block.
pub(super) fn unfit<const BYTES: usize>() -> [u8; BYTES] {
    let mut block = [0; BYTES];
    block[..2].copy_from_slice(&f16::NAN.to_le_bytes());
    block
}

/// The sum of the squares of a block's values.
#[inline(always)]
pub(super) fn sum_of_squares(values: &[f32; 256]) -> f32 {
    values.iter().fold(0.0, |sum, v| sum + v * v)
}

/// Weights of errors for values with importance. Large values weigh more than small ones; `sigma2` keeps the weight of
/// small values above zero.
#[inline(always)]
pub(super) fn weighted<const W: usize, const GROUPS: usize>(
    values: &[[f32; W]; GROUPS],
    importance: &[f32],
    sigma2: f32,
) -> [[f32; W]; GROUPS] {
    let importance = &importance[..W * GROUPS];
    from_fn(|g| from_fn(|i| importance[W * g + i] * (sigma2 + values[g][i] * values[g][i]).sqrt()))
}

/// The scale `d` of a block, and the level of each run's scale, which is about `(2 * level + 1) * d`. The largest of
/// `scales` becomes `parts * d`. `None` if all scales are zero.
#[inline(always)]
pub(super) fn scale_levels<const RUNS: usize>(scales: [f32; RUNS], parts: f32, top: i32) -> Option<(f32, [u8; RUNS])> {
    let largest = scales.iter().fold(0.0, |largest, scale| if largest > *scale { largest } else { *scale });
    if largest == 0.0 {
        return None;
    }
    let d = largest / parts;
    let id = Lanes::splat(1.0 / d);
    let levels = (Lanes::splat(0.5) * (id * Lanes(scales) - Lanes::splat(1.0))).nearest().clamp(0, top);
    Some((d, levels.0.map(|level| level as u8)))
}

/// Packs two levels per byte, the first in the low bits.
#[inline(always)]
pub(super) fn pack_nibbles(levels: &[u8], out: &mut [u8]) {
    for (out, [low, high]) in out.iter_mut().zip(levels.as_chunks().0) {
        *out = low | high << 4;
    }
}

#[cfg(test)]
pub(super) mod samples {
    use crate::dtype::DType;

    /// Two blocks of values, and their importance.
    pub(in super::super) fn sample() -> (Vec<f32>, Vec<f32>) {
        let mut state = 1_u32;
        let mut unit = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let values = (0..512).map(|_| (unit() + unit() + unit() + unit() - 2.0) * 0.05).collect();
        (values, (0..512).map(|_| 0.5 + unit()).collect())
    }

    /// Fails if the values that `bytes` decode to differ from those of [`sample`] by more than the share `relative` of
    /// their size.
    pub(in super::super) fn sample_is_near(dtype: DType, bytes: &[u8], relative: f32) {
        let values = sample().0;
        let mut back = vec![0.0; values.len()];
        crate::quant::decode(dtype, bytes, &mut back);
        let error: f32 = values.iter().zip(&back).map(|(v, b)| (v - b) * (v - b)).sum();
        let size: f32 = values.iter().map(|v| v * v).sum();
        let found = (error / size).sqrt();
        assert!(found < relative, "{dtype}: {found}");
    }
}
