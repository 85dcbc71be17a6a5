//! Encodes IQ3_XXS and IQ3_S: patterns of four values, separate signs, and a scale for each 32 values.
//!
//! Reference: ggml `ggml-quants.c`, `quantize_row_iq3_xxs_impl`, `quantize_row_iq3_s_impl`.

use half::f16;

use super::grid::{self, Grid};
use super::grid_search::{Fit, Run, Signs, not_negative, tries};
use super::iq_block::{pack_nibbles, scale_levels, sum_of_squares, unfit, weighted};

/// The number for which the highest level stands.
const HIGHEST: f32 = 15.0;

/// Encodes a row of whole blocks as IQ3_XXS.
#[inline(always)]
pub(super) fn iq3_xxs(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for (b, (out, values)) in out.as_chunks_mut().0.iter_mut().zip(row.as_chunks().0).enumerate() {
        *out = iq3_xxs_block(values, importance.map(|all| &all[256 * b..])).unwrap_or_else(unfit);
    }
}

/// Encodes a row of whole blocks as IQ3_S.
#[inline(always)]
pub(super) fn iq3_s(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for (b, (out, values)) in out.as_chunks_mut().0.iter_mut().zip(row.as_chunks().0).enumerate() {
        *out = iq3_s_block(values, importance.map(|all| &all[256 * b..])).unwrap_or_else(unfit);
    }
}

/// Weights of errors for the 32 values of run `r`.
#[inline(always)]
fn weights(values: &[[f32; 4]; 8], importance: Option<&[f32]>, r: usize, sigma2: f32) -> [[f32; 4]; 8] {
    match importance {
        Some(importance) => weighted(values, &importance[32 * r..], sigma2),
        None => values.map(|group| group.map(|v| v * v)),
    }
}

/// The best of `TRIED` scales around the one that maps `largest` to the highest level.
#[inline(always)]
fn best_of<const TRIED: usize>(run: &Run<4, 8>, grid: &Grid<4, 8>, largest: f32, exact: bool) -> Option<Fit<8>> {
    let inverses = tries::<TRIED>(0.2).map(|shift| (HIGHEST + shift) / largest);
    run.best_of(grid, &inverses, Fit { scale: largest / HIGHEST, keys: [0; 8], exact: [exact; 8] })
}

#[inline(always)]
fn iq3_xxs_block(values: &[f32; 256], importance: Option<&[f32]>) -> Option<[u8; 98]> {
    let sigma2 = 2.0 * sum_of_squares(values) / 256.0;
    let mut scales = [0.0; 8];
    let mut places = [0; 64];
    let mut words = [0_u32; 8];
    let runs = values.as_chunks::<4>().0.as_chunks::<8>().0;
    for (r, values) in runs.iter().enumerate() {
        let (run, mut signs) = Run::new::<4>(*values, weights(values, importance, r, sigma2), Signs::Even);
        let largest = run.largest();
        if largest < 1e-8 {
            continue;
        }
        let mut fit = best_of::<31>(&run, &grid::IQ3_XXS, largest, true)?;
        if fit.exact != [true; 8] && fit.scale > 0.0 {
            let which = fit.exact.map(|exact| !exact);
            run.refine(&grid::IQ3_XXS, &mut fit, which)?;
        }
        scales[r] = not_negative(fit.scale, &mut signs, Signs::Even)?;
        for k in 0..8 {
            places[8 * r + k] = grid::IQ3_XXS.place(fit.keys[k]) as u8;
        }
        words[r] = signs.iter().rev().fold(0, |word, signs| word << 7 | u32::from(*signs));
    }
    let mut block = [0; 98];
    if let Some((d, levels)) = scale_levels(scales, 31.0, 15) {
        block[..2].copy_from_slice(&f16::from_f32(d * 1.0125).to_le_bytes());
        block[2..66].copy_from_slice(&places);
        for ((out, word), level) in block[66..].as_chunks_mut().0.iter_mut().zip(words).zip(levels) {
            *out = (word | u32::from(level) << 28).to_le_bytes();
        }
    }
    Some(block)
}

#[inline(always)]
fn iq3_s_block(values: &[f32; 256], importance: Option<&[f32]>) -> Option<[u8; 110]> {
    let sigma2 = 2.0 * sum_of_squares(values) / 256.0;
    let mut scales = [0.0; 8];
    let mut block = [0; 110];
    let (places, rest) = block[2..].split_at_mut(64);
    let (high, rest) = rest.split_at_mut(8);
    let (all_signs, scale_bytes) = rest.split_at_mut(32);
    // The position of the next run's low bits and signs. For a run of zeros ggml leaves no gap, although readers expect
    // one, so everything after such a run is decoded wrongly. The bytes here are the same as ggml's.
    let mut next = 0;
    let runs = values.as_chunks::<4>().0.as_chunks::<8>().0;
    for (r, values) in runs.iter().enumerate() {
        let (run, mut signs) = Run::new::<4>(*values, weights(values, importance, r, sigma2), Signs::Free);
        let largest = run.largest();
        // A run counts as zero only if every value is exactly zero.
        if largest == 0.0 {
            continue;
        }
        let mut fit = best_of::<19>(&run, &grid::IQ3_S, largest, false)?;
        if fit.exact != [true; 8] && fit.scale > 0.0 {
            run.refine(&grid::IQ3_S, &mut fit, [true; 8])?;
        }
        scales[r] = not_negative(fit.scale, &mut signs, Signs::Free)?;
        for k in 0..8 {
            let [low_bits, high_bit] = grid::IQ3_S.place(fit.keys[k]).to_le_bytes();
            places[8 * next + k] = low_bits;
            high[r] |= high_bit << k;
        }
        all_signs[4 * next..4 * next + 4].copy_from_slice(&signs);
        next += 1;
    }
    if let Some((d, levels)) = scale_levels(scales, 31.0, 15) {
        pack_nibbles(&levels, scale_bytes);
        block[..2].copy_from_slice(&f16::from_f32(d * 1.033).to_le_bytes());
    }
    Some(block)
}

#[cfg(test)]
mod tests {
    use super::super::iq_block::samples::{sample, sample_is_near};
    use super::*;
    use crate::dtype::DType;

    #[test]
    fn decoding_gives_back_nearly_the_same() {
        let (values, importance) = sample();
        for importance in [None, Some(&importance[..])] {
            let mut out = vec![0; 2 * 98];
            iq3_xxs(&values, importance, &mut out);
            sample_is_near(DType::IQ3_XXS, &out, 0.22);
            let mut out = vec![0; 2 * 110];
            iq3_s(&values, importance, &mut out);
            sample_is_near(DType::IQ3_S, &out, 0.19);
        }
    }

    #[test]
    fn runs_of_zeros_leave_no_gap() {
        // Decoders misread these bytes, but they are ggml's.
        let mut values = [0.0; 256];
        values[32..64].copy_from_slice(&sample().0[..32]);
        let mut out = vec![0; 110];
        iq3_s(&values, None, &mut out);
        assert!(out[2..10].iter().any(|b| *b != 0));
        assert_eq!(out[10..66], [0; 56]);
    }
}
