//! Encodes IQ1_S and IQ1_M: patterns of eight levels -1, 0, 1, shifted by an eighth up or down.
//!
//! Reference: ggml `ggml-quants.c`, `quantize_row_iq1_s_impl`, `quantize_row_iq1_m_impl`.

use std::array::from_fn;

use half::f16;

use super::grid::{self, Grid, Target};
use super::iq_block::{scale_levels, sum_of_squares, unfit, weighted};
use super::split::{DOWN, Split, UP, ascending, in_one_way, in_two_halves};

/// Encodes a row of whole blocks as IQ1_S. The type needs importance, which callers must provide.
#[inline(always)]
pub(super) fn iq1_s(row: &[f32], importance: &[f32], out: &mut [u8]) {
    let blocks = row.as_chunks().0.iter().zip(importance.as_chunks().0);
    for (out, (values, importance)) in out.as_chunks_mut().0.iter_mut().zip(blocks) {
        *out = iq1_s_block(values, importance).unwrap_or_else(unfit);
    }
}

/// Encodes a row of whole blocks as IQ1_M. The type is only useful with importance, but ggml's
/// quantizer works without it.
#[inline(always)]
pub(super) fn iq1_m(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for (b, (out, values)) in out.as_chunks_mut().0.iter_mut().zip(row.as_chunks().0).enumerate() {
        *out = iq1_m_block(values, importance.map(|all| &all[256 * b..])).unwrap_or_else(|| {
            let mut block = [0; 56];
            put_iq1_m_scale(&mut block[48..], f16::NAN);
            block
        });
    }
}

/// A run, encoded as patterns of eight.
struct Fit<const GROUPS: usize> {
    /// Keys of the patterns.
    keys: [u16; GROUPS],
    scale: f32,
}

impl<const GROUPS: usize> Fit<GROUPS> {
    /// The patterns nearest to the levels that `split` gives to the values, sorted by `order`.
    /// `moved` has the three level values of each group. `None` if there is no nearest pattern.
    #[inline(always)]
    fn new<const N: usize>(
        values: &[[f32; 8]; GROUPS],
        weights: &[[f32; 8]; GROUPS],
        order: &[usize; N],
        split: &Split,
        moved: [[f32; 3]; GROUPS],
    ) -> Option<Self> {
        let turned = split.scale < 0.0;
        let mut levels = [[0_u8; 8]; GROUPS];
        for (rank, i) in order.iter().enumerate() {
            let level = u8::from(rank >= split.starts[0]) + u8::from(rank >= split.starts[1]);
            levels[i / 8][i % 8] = if turned { 2 - level } else { level };
        }
        let mut fit = Self { keys: [0; GROUPS], scale: if turned { -split.scale } else { split.scale } };
        let mut exact = true;
        for g in 0..GROUPS {
            let key = Grid::<8, 4>::key(levels[g]);
            fit.keys[g] = if grid::IQ1.has(key) {
                key
            } else {
                exact = false;
                // Maps the grid's 1, 3, 5 to level values. This is exact, because all are multiples
                // of an eighth.
                let number = |n| 0.5 * n + (moved[g][0] - 0.5);
                let target = Target { values: &values[g], weights: &weights[g], scale: fit.scale, number };
                grid::IQ1.nearest(key, target)?
            };
        }
        if !exact {
            let (mut sum_qx, mut sum_q2) = (0.0, 0.0);
            for g in 0..GROUPS {
                add_products(&mut sum_qx, &mut sum_q2, numbers(fit.keys[g], &moved[g]), &values[g], &weights[g]);
            }
            if sum_qx > 0.0 && sum_q2 > 0.0 {
                fit.scale = sum_qx / sum_q2;
            }
        }
        (fit.scale >= 0.0).then_some(fit)
    }
}

/// The numbers for which the levels of a key stand.
#[inline(always)]
fn numbers(key: u16, moved: &[f32; 3]) -> [f32; 8] {
    let [low, middle, high] = *moved;
    Grid::<8, 4>::levels(key).map(|level| [low, middle, high, 0.0][level])
}

/// Adds the products of weights, numbers and values, and of weights and squared numbers.
#[inline(always)]
fn add_products(sum_qx: &mut f32, sum_q2: &mut f32, numbers: [f32; 8], values: &[f32; 8], weights: &[f32; 8]) {
    for (q, (value, weight)) in numbers.iter().zip(values.iter().zip(weights)) {
        *sum_qx += weight * q * value;
        *sum_q2 += weight * q * q;
    }
}

/// Whether the magnitudes of all `values` are below `limit`.
#[inline(always)]
fn below(limit: f32, values: &[f32]) -> bool {
    values.iter().all(|v| v.abs() < limit)
}

/// The way of shifting levels (of `ways`), after a negative scale has inverted the levels.
#[inline(always)]
fn way_of(split: &Split, ways: usize) -> usize {
    if split.scale < 0.0 { ways - 1 - split.way } else { split.way }
}

#[inline(always)]
fn iq1_s_block(values: &[f32; 256], importance: &[f32; 256]) -> Option<[u8; 50]> {
    let sigma2 = 2.0 * sum_of_squares(values) / 256.0;
    let mut block = [0; 50];
    let mut scales = [0.0; 8];
    let mut words = [0_u16; 8];
    for (r, run) in values.as_chunks::<32>().0.iter().enumerate() {
        if below(1e-12, run) {
            continue;
        }
        let groups: [[f32; 8]; 4] = from_fn(|g| from_fn(|i| run[8 * g + i]));
        let weights = weighted(&groups, &importance[32 * r..], sigma2);
        let flat_weights: [f32; 32] = from_fn(|i| weights[i / 8][i % 8]);
        let order = ascending(run);
        let Some(split) = in_one_way(run, &flat_weights, &order) else { continue };
        let way = way_of(&split, 2);
        let fit = Fit::new(&groups, &weights, &order, &split, [[UP, DOWN][way]; 4])?;
        scales[r] = fit.scale;
        words[r] = (way as u16) << 15;
        for (k, key) in fit.keys.iter().enumerate() {
            let [low_bits, high_bits] = grid::IQ1.place(*key).to_le_bytes();
            block[2 + 4 * r + k] = low_bits;
            words[r] |= u16::from(high_bits) << (3 * k);
        }
    }
    let mut levels = [0; 8];
    if let Some((d, found)) = scale_levels(scales, 15.0, 7) {
        levels = found;
        block[..2].copy_from_slice(&f16::from_f32(d * 1.125).to_le_bytes());
    } else {
        // If all scales are zero, the direction bits stay zero, too.
        words = words.map(|word| word & 0x7fff);
    }
    for ((out, word), level) in block[34..].as_chunks_mut().0.iter_mut().zip(words).zip(levels) {
        *out = (word | u16::from(level) << 12).to_le_bytes();
    }
    Some(block)
}

#[inline(always)]
fn iq1_m_block(values: &[f32; 256], importance: Option<&[f32]>) -> Option<[u8; 56]> {
    let sigma2 = 2.0 * sum_of_squares(values) / 256.0;
    let mut block = [0; 56];
    let mut scales = [0.0; 16];
    let mut weights = [[[0.0; 8]; 2]; 16];
    // A run without a fit gets the first pattern.
    let first = grid::IQ1.key_at(0);
    let mut keys = [[first; 2]; 16];
    let mut ways = [0; 16];
    let runs = values.as_chunks::<8>().0.as_chunks::<2>().0;
    for (r, groups) in runs.iter().enumerate() {
        weights[r] = match importance {
            Some(importance) => weighted(groups, &importance[16 * r..], sigma2),
            None => groups.map(|group| group.map(|v| v * v)),
        };
        if below(1e-7, groups.as_flattened()) {
            continue;
        }
        let flat_values: [f32; 16] = from_fn(|i| groups[i / 8][i % 8]);
        let flat_weights: [f32; 16] = from_fn(|i| weights[r][i / 8][i % 8]);
        let order = ascending(&flat_values);
        let Some(split) = in_two_halves(&flat_values, &flat_weights, &order) else { continue };
        let way = way_of(&split, 4);
        let fit = Fit::new(groups, &weights[r], &order, &split, moved_halves(way))?;
        (scales[r], keys[r], ways[r]) = (fit.scale, fit.keys, way);
        for (k, key) in fit.keys.iter().enumerate() {
            let [low_bits, high_bits] = grid::IQ1.place(*key).to_le_bytes();
            block[2 * r + k] = low_bits;
            block[32 + r] |= high_bits << (4 * k);
        }
    }
    let Some((mut d, levels)) = scale_levels(scales, 15.0, 7) else { return Some(block) };
    let (mut sum_qx, mut sum_q2) = (0.0, 0.0);
    for r in 0..16 {
        block[32 + r] |= [0x00, 0x80, 0x08, 0x88][ways[r]];
        let step = f32::from(2 * levels[r] + 1);
        for g in 0..2 {
            let numbers = numbers(keys[r][g], &moved_halves(ways[r])[g]).map(|q| q * step);
            add_products(&mut sum_qx, &mut sum_q2, numbers, &runs[r][g], &weights[r][g]);
        }
    }
    if sum_q2 > 0.0 {
        d = sum_qx / sum_q2;
    }
    for (out, levels) in block[48..].as_chunks_mut::<2>().0.iter_mut().zip(levels.as_chunks::<4>().0) {
        *out = levels.iter().rev().fold(0, |word, level| word << 3 | u16::from(*level)).to_le_bytes();
    }
    put_iq1_m_scale(&mut block[48..], f16::from_f32(d * 1.1125));
    Some(block)
}

/// The level values in both halves of a run of IQ1_M.
#[inline(always)]
fn moved_halves(way: usize) -> [[f32; 3]; 2] {
    [[UP, DOWN][way / 2], [UP, DOWN][way % 2]]
}

/// Writes four bits of `d` above the levels in each of four words.
fn put_iq1_m_scale(words: &mut [u8], d: f16) {
    for (k, word) in words.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        word[1] |= ((d.to_bits() >> (4 * k) & 15) << 4) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::super::iq_block::samples::{sample, sample_is_near};
    use super::*;
    use crate::dtype::DType;

    #[test]
    fn decoding_gives_back_nearly_the_same() {
        let (values, importance) = sample();
        let mut out = vec![0; 2 * 50];
        iq1_s(&values, &importance, &mut out);
        sample_is_near(DType::IQ1_S, &out, 0.60);
        for importance in [None, Some(&importance[..])] {
            let mut out = vec![0; 2 * 56];
            iq1_m(&values, importance, &mut out);
            sample_is_near(DType::IQ1_M, &out, 0.60);
        }
    }

    #[test]
    fn the_scale_of_iq1_m_is_above_the_levels() {
        let mut words = [0xff, 0x0f].repeat(4);
        put_iq1_m_scale(&mut words, f16::from_bits(0x1234));
        assert_eq!(words, [0xff, 0x4f, 0xff, 0x3f, 0xff, 0x2f, 0xff, 0x1f]);
    }
}
