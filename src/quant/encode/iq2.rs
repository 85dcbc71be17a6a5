//! Encodes IQ2_XXS, IQ2_XS and IQ2_S: patterns of eight values, separate signs, and a scale for
//! each 16 or 32 values.
//!
//! Reference: ggml `ggml-quants.c`, `quantize_row_iq2_xxs_impl`, `quantize_row_iq2_xs_impl`,
//! `quantize_row_iq2_s_impl`.

use std::array::from_fn;

use half::f16;

use super::grid;
use super::grid_search::{Fit, Run, Signs, not_negative, tries};
use super::iq_block::{pack_nibbles, scale_levels, sum_of_squares, unfit, weighted};
use super::positive::scale_from_zero;

/// The number for which the highest level stands.
const HIGHEST: f32 = 5.0;

/// Encodes a row of whole blocks as IQ2_XXS. The type needs importance, which callers must provide.
#[inline(always)]
pub(super) fn iq2_xxs(row: &[f32], importance: &[f32], out: &mut [u8]) {
    let blocks = row.as_chunks().0.iter().zip(importance.as_chunks().0);
    for (out, (values, importance)) in out.as_chunks_mut().0.iter_mut().zip(blocks) {
        *out = iq2_xxs_block(values, importance).unwrap_or_else(unfit);
    }
}

/// Encodes a row of whole blocks as IQ2_XS. The type needs importance, which callers must provide.
#[inline(always)]
pub(super) fn iq2_xs(row: &[f32], importance: &[f32], out: &mut [u8]) {
    let blocks = row.as_chunks().0.iter().zip(importance.as_chunks().0);
    for (out, (values, importance)) in out.as_chunks_mut().0.iter_mut().zip(blocks) {
        *out = iq2_xs_block(values, importance).unwrap_or_else(unfit);
    }
}

/// Encodes a row of whole blocks as IQ2_S.
#[inline(always)]
pub(super) fn iq2_s(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for (b, (out, values)) in out.as_chunks_mut().0.iter_mut().zip(row.as_chunks().0).enumerate() {
        *out = iq2_s_block(values, importance.map(|all| &all[256 * b..])).unwrap_or_else(unfit);
    }
}

#[inline(always)]
fn iq2_xxs_block(values: &[f32; 256], importance: &[f32; 256]) -> Option<[u8; 66]> {
    let sigma2 = sum_of_squares(values) / 256.0;
    let mut scales = [0.0; 8];
    let mut words = [[0_u32; 2]; 8];
    let runs = values.as_chunks::<8>().0.as_chunks::<4>().0;
    for (r, values) in runs.iter().enumerate() {
        let weights = weighted(values, &importance[32 * r..], sigma2);
        let (run, mut signs) = Run::new::<4>(*values, weights, Signs::Even);
        if run.largest() < 1e-15 {
            continue;
        }
        let sizes: [f32; 32] = from_fn(|i| run.sizes[i / 8][i % 8]);
        let weights = from_fn(|i| run.weights[i / 8][i % 8]);
        let (scale, _) = scale_from_zero(&sizes, &weights, 4);
        let largest = scale * 3.0;
        if largest <= 0.0 {
            continue;
        }
        let inverses = tries::<13>(0.1).map(|shift| (HIGHEST + shift) / largest);
        let mut fit = run.best_of(&grid::IQ2_XXS, &inverses, Fit { scale, keys: [0; 4], exact: [true; 4] })?;
        if fit.scale > 0.0 {
            run.refine(&grid::IQ2_XXS, &mut fit, [true; 4])?;
        }
        scales[r] = not_negative(fit.scale, &mut signs, Signs::Even)?;
        for (k, (key, signs)) in fit.keys.iter().zip(signs).enumerate() {
            words[r][0] |= u32::from(grid::IQ2_XXS.place(*key)) << (8 * k);
            words[r][1] |= u32::from(signs) << (7 * k);
        }
    }
    let mut block = [0; 66];
    if let Some((d, levels)) = scale_levels(scales, 31.0, 15) {
        block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        for ((out, [places, signs]), level) in block[2..].as_chunks_mut::<8>().0.iter_mut().zip(words).zip(levels) {
            out[..4].copy_from_slice(&places.to_le_bytes());
            out[4..].copy_from_slice(&(signs | u32::from(level) << 28).to_le_bytes());
        }
    }
    Some(block)
}

/// The best fit of 16 values, the largest of which is `largest`.
#[inline(always)]
fn fit_of_16(run: &Run<8, 2>, grid: &grid::Grid<8, 4>, largest: f32) -> Option<Fit<2>> {
    let inverses = tries::<19>(0.1).map(|shift| (HIGHEST + shift) / largest);
    let start = Fit { scale: largest / HIGHEST, keys: [0; 2], exact: [true; 2] };
    let mut fit = run.best_of(grid, &inverses, start)?;
    if fit.exact != [true; 2] && fit.scale > 0.0 {
        let which = fit.exact.map(|exact| !exact);
        run.refine(grid, &mut fit, which)?;
    }
    Some(fit)
}

#[inline(always)]
fn iq2_xs_block(values: &[f32; 256], importance: &[f32; 256]) -> Option<[u8; 74]> {
    let sigma2 = sum_of_squares(values) / 256.0;
    let mut scales = [0.0; 16];
    let mut words = [0_u16; 32];
    let runs = values.as_chunks::<8>().0.as_chunks::<2>().0;
    for (r, values) in runs.iter().enumerate() {
        let weights = weighted(values, &importance[16 * r..], sigma2);
        let (run, mut signs) = Run::new::<2>(*values, weights, Signs::Even);
        let largest = run.largest();
        if largest < 1e-15 {
            continue;
        }
        let fit = fit_of_16(&run, &grid::IQ2_XS, largest)?;
        scales[r] = not_negative(fit.scale, &mut signs, Signs::Even)?;
        for k in 0..2 {
            words[2 * r + k] = grid::IQ2_XS.place(fit.keys[k]) | u16::from(signs[k]) << 9;
        }
    }
    let mut block = [0; 74];
    if let Some((d, levels)) = scale_levels(scales, 31.0, 15) {
        block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        for (out, word) in block[2..66].as_chunks_mut().0.iter_mut().zip(words) {
            *out = word.to_le_bytes();
        }
        pack_nibbles(&levels, &mut block[66..]);
    }
    Some(block)
}

#[inline(always)]
fn iq2_s_block(values: &[f32; 256], importance: Option<&[f32]>) -> Option<[u8; 82]> {
    let sigma2 = 2.0 * sum_of_squares(values) / 256.0;
    let mut scales = [0.0; 16];
    let mut block = [0; 82];
    let (places, rest) = block[2..].split_at_mut(32);
    let (all_signs, rest) = rest.split_at_mut(32);
    let (high, scale_bytes) = rest.split_at_mut(8);
    let runs = values.as_chunks::<8>().0.as_chunks::<2>().0;
    for (r, values) in runs.iter().enumerate() {
        let weights = match importance {
            Some(importance) => weighted(values, &importance[16 * r..], sigma2),
            None => values.map(|group| group.map(|v| 0.25 * sigma2 + v * v)),
        };
        let (run, mut signs) = Run::new::<2>(*values, weights, Signs::Free);
        let largest = run.largest();
        if largest < 1e-8 {
            continue;
        }
        let fit = fit_of_16(&run, &grid::IQ2_S, largest)?;
        scales[r] = not_negative(fit.scale, &mut signs, Signs::Free)?;
        for (k, (key, signs)) in fit.keys.iter().zip(signs).enumerate() {
            let [low_bits, high_bits] = grid::IQ2_S.place(*key).to_le_bytes();
            let g = 2 * r + k;
            places[g] = low_bits;
            high[g / 4] |= high_bits << (2 * (g % 4));
            all_signs[g] = signs;
        }
    }
    if let Some((d, levels)) = scale_levels(scales, 31.0, 15) {
        pack_nibbles(&levels, scale_bytes);
        block[..2].copy_from_slice(&f16::from_f32(d * 0.9875).to_le_bytes());
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
        let mut out = vec![0; 2 * 66];
        iq2_xxs(&values, &importance, &mut out);
        sample_is_near(DType::IQ2_XXS, &out, 0.40);
        let mut out = vec![0; 2 * 74];
        iq2_xs(&values, &importance, &mut out);
        sample_is_near(DType::IQ2_XS, &out, 0.36);
        for importance in [None, Some(&importance[..])] {
            let mut out = vec![0; 2 * 82];
            iq2_s(&values, importance, &mut out);
            sample_is_near(DType::IQ2_S, &out, 0.33);
        }
    }

    #[test]
    fn zeros_are_blocks_of_zeros() {
        let mut out = vec![1; 66];
        iq2_xxs(&[0.0; 256], &[1.0; 256], &mut out);
        assert_eq!(out, [0; 66]);
        let mut out = vec![1; 82];
        iq2_s(&[0.0; 256], None, &mut out);
        assert_eq!(out, [0; 82]);
    }

    #[test]
    fn where_f32_is_too_small_the_scale_is_nan() {
        let values: [f32; 256] = from_fn(|i| if i % 3 == 0 { 1e36 } else { 2e35 });
        let mut out = vec![0; 82];
        iq2_s(&values, None, &mut out);
        assert!(crate::quant::has_non_finite(DType::IQ2_S, &out));
    }
}
