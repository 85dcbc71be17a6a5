//! Helpers for IQ2 and IQ3: a run of values with one scale, and the search for the scale with which the nearest
//! patterns of a grid fit best.
//!
//! ggml tries a few scales one after the other. Here each lane tries one. The sums for each scale keep their order, so
//! their bits are the same.
//!
//! Reference: ggml `ggml-quants.c`, the loops over `is` in `quantize_row_iq2_xxs_impl`,
//! `quantize_row_iq2_xs_impl`, `quantize_row_iq2_s_impl`, `quantize_row_iq3_xxs_impl`,
//! `quantize_row_iq3_s_impl`.

use std::array::from_fn;

use super::grid::{Grid, Target};
use super::lanes::{Ints, Lanes};

/// Number of scales tried at a time. It doesn't affect the bits, because each scale has its own sums.
const WIDE: usize = 8;

/// Values that are encoded with one scale: `GROUPS` patterns of `W` values.
pub(super) struct Run<const W: usize, const GROUPS: usize> {
    /// The values without their signs. If the number of signs must be even, some are negative.
    pub(super) sizes: [[f32; W]; GROUPS],
    /// The weight of each value's squared error.
    pub(super) weights: [[f32; W]; GROUPS],
}

/// A scale, and the keys of the patterns for it.
#[derive(Clone, Copy)]
pub(super) struct Fit<const GROUPS: usize> {
    pub(super) scale: f32,
    pub(super) keys: [u16; GROUPS],
    /// Which of these are the points themselves, not neighbours of points without a pattern.
    pub(super) exact: [bool; GROUPS],
}

/// The possible signs of patterns.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Signs {
    /// Any signs.
    Free,
    /// An even number of minus signs in eight values, so that seven bits suffice.
    Even,
}

impl Signs {
    /// Inverts all signs.
    #[inline(always)]
    fn turned(self, signs: u8) -> u8 {
        match self {
            Self::Free => !signs,
            Self::Even => !signs & 127,
        }
    }
}

impl<const W: usize, const GROUPS: usize> Run<W, GROUPS> {
    /// Makes the run of `values`, and the signs of each eight of them, one bit each.
    #[inline(always)]
    pub(super) fn new<const BYTES: usize>(
        values: [[f32; W]; GROUPS],
        weights: [[f32; W]; GROUPS],
        kind: Signs,
    ) -> (Self, [u8; BYTES]) {
        let mut sizes = values;
        let mut signs = [0; BYTES];
        let eights = sizes.as_flattened_mut().as_chunks_mut().0.iter_mut().zip(weights.as_flattened().as_chunks().0);
        for (signs, (sizes, weights)) in signs.iter_mut().zip(eights) {
            *signs = take_signs(sizes, weights, kind);
        }
        (Self { sizes, weights }, signs)
    }

    /// The largest value without sign.
    #[inline(always)]
    pub(super) fn largest(&self) -> f32 {
        let sizes = self.sizes.as_flattened();
        sizes.iter().fold(sizes[0], |largest, size| if largest > *size { largest } else { *size })
    }

    /// The best of `start` and the scales `1 / inverses`, each with its nearest patterns. `None` where a group has no
    /// nearest pattern.
    #[inline(always)]
    pub(super) fn best_of<const ROWS: usize, const TRIED: usize>(
        &self,
        grid: &Grid<W, ROWS>,
        inverses: &[f32; TRIED],
        start: Fit<GROUPS>,
    ) -> Option<Fit<GROUPS>> {
        let roots = self.weights.map(|group| group.map(f32::sqrt));
        let mut best = start;
        let mut best_score = 0.0;
        for inverses in inverses.chunks(WIDE) {
            let id = Lanes::<WIDE>(from_fn(|lane| inverses.get(lane).copied().unwrap_or(1.0)));
            let scales = Lanes::splat(1.0) / id;
            let mut keys = [[0; WIDE]; GROUPS];
            let mut exact = [[true; WIDE]; GROUPS];
            let mut sum_qx = Lanes::splat(0.0);
            let mut sum_q2 = Lanes::splat(0.0);
            for g in 0..GROUPS {
                let (sizes, weights) = (&self.sizes[g], &self.weights[g]);
                keys[g] = points::<W, ROWS>(id, sizes);
                for lane in 0..inverses.len() {
                    if !grid.has(keys[g][lane]) {
                        exact[g][lane] = false;
                        let target = Target { values: sizes, weights: &roots[g], scale: scales.0[lane], number: |n| n };
                        keys[g][lane] = grid.nearest(keys[g][lane], target)?;
                    }
                }
                for i in 0..W {
                    let q = odd_numbers::<W, ROWS>(&keys[g], i);
                    let weight = Lanes::splat(weights[i]);
                    sum_qx = sum_qx + Lanes::splat(weights[i] * sizes[i]) * q;
                    sum_q2 = sum_q2 + weight * q * q;
                }
            }
            for lane in 0..inverses.len() {
                let (qx, q2) = (sum_qx.0[lane], sum_q2.0[lane]);
                if q2 > 0.0 && qx * qx > best_score * q2 {
                    best = Fit { scale: qx / q2, keys: keys.map(|k| k[lane]), exact: exact.map(|e| e[lane]) };
                    best_score = best.scale * qx;
                }
            }
        }
        Some(best)
    }

    /// Selects the patterns of the groups in `which` again, for the fitted scale, then computes the best scale for
    /// these patterns.
    #[inline(always)]
    pub(super) fn refine<const ROWS: usize>(
        &self,
        grid: &Grid<W, ROWS>,
        fit: &mut Fit<GROUPS>,
        which: [bool; GROUPS],
    ) -> Option<()> {
        let id = 1.0 / fit.scale;
        for (g, again) in which.into_iter().enumerate() {
            if again {
                let (sizes, weights) = (&self.sizes[g], &self.weights[g]);
                fit.keys[g] = point::<W, ROWS>(id, sizes);
                if !grid.has(fit.keys[g]) {
                    let roots = weights.map(f32::sqrt);
                    let target = Target { values: sizes, weights: &roots, scale: fit.scale, number: |n| n };
                    fit.keys[g] = grid.nearest(fit.keys[g], target)?;
                }
            }
        }
        let (mut sum_qx, mut sum_q2) = (0.0, 0.0);
        for g in 0..GROUPS {
            for (i, level) in Grid::<W, ROWS>::levels(fit.keys[g]).into_iter().enumerate() {
                let (weight, q) = (self.weights[g][i], (2 * level + 1) as f32);
                sum_qx += weight * self.sizes[g][i] * q;
                sum_q2 += weight * q * q;
            }
        }
        if sum_q2 > 0.0 {
            fit.scale = sum_qx / sum_q2;
        }
        Some(())
    }
}

/// Removes the signs of eight values and returns them.
#[inline(always)]
fn take_signs(values: &mut [f32; 8], weights: &[f32; 8], kind: Signs) -> u8 {
    let signed = *values;
    let mut signs = 0;
    for (i, value) in values.iter_mut().enumerate() {
        // Minus zero counts as positive and stays.
        let minus = *value < 0.0;
        *value = if minus { -*value } else { *value };
        signs |= u8::from(minus) << i;
    }
    if kind == Signs::Free {
        return signs;
    }
    if signs.count_ones() % 2 == 1 {
        // The number of signs is odd: the value with the smallest weight gets the wrong sign.
        let counts: [f32; 8] = from_fn(|i| weights[i] * signed[i] * signed[i]);
        let least = (1..8).fold(0, |least, i| if counts[i] < counts[least] { i } else { least });
        values[least] = -values[least];
        signs ^= 1 << least;
    }
    signs & 127
}

/// The scale without its sign; if it was negative, `signs` are inverted. `None` for NaN.
#[inline(always)]
pub(super) fn not_negative<const BYTES: usize>(scale: f32, signs: &mut [u8; BYTES], kind: Signs) -> Option<f32> {
    if scale < 0.0 {
        *signs = signs.map(|signs| kind.turned(signs));
        return Some(-scale);
    }
    (!scale.is_nan()).then_some(scale)
}

/// The shifts of the highest level that give the tried scales: `TRIED` shifts around zero, `step` apart.
#[inline(always)]
pub(super) fn tries<const TRIED: usize>(step: f32) -> [f32; TRIED] {
    from_fn(|t| (t as i32 - TRIED as i32 / 2) as f32 * step)
}

/// The keys of the points nearest to `sizes`, for each scale.
#[inline(always)]
fn points<const W: usize, const ROWS: usize>(id: Lanes<WIDE>, sizes: &[f32; W]) -> [u16; WIDE] {
    let (half, one) = (Lanes::splat(0.5), Lanes::splat(1.0));
    let mut keys = [0; WIDE];
    for (i, size) in sizes.iter().enumerate() {
        let Ints(levels) = (half * (id * Lanes::splat(*size) - one)).nearest().clamp(0, Grid::<W, ROWS>::TOP as i32);
        for (key, level) in keys.iter_mut().zip(levels) {
            *key |= level << (Grid::<W, ROWS>::BITS as usize * i);
        }
    }
    keys.map(|key| key as u16)
}

/// The key of the point nearest to `sizes`, for one scale.
#[inline(always)]
fn point<const W: usize, const ROWS: usize>(id: f32, sizes: &[f32; W]) -> u16 {
    let (half, one) = (Lanes::splat(0.5), Lanes::splat(1.0));
    let levels = (half * (Lanes::splat(id) * Lanes(*sizes) - one)).nearest().clamp(0, Grid::<W, ROWS>::TOP as i32);
    Grid::<W, ROWS>::key(levels.0.map(|level| level as u8))
}

/// The numbers for which the levels of value `i` stand.
#[inline(always)]
fn odd_numbers<const W: usize, const ROWS: usize>(keys: &[u16; WIDE], i: usize) -> Lanes<WIDE> {
    let level = |key: u16| i32::from(key) >> (Grid::<W, ROWS>::BITS as usize * i) & (ROWS as i32 - 1);
    Ints(keys.map(|key| 2 * level(key) + 1)).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_taken_off() {
        let mut values = [1.0, -2.0, 3.0, -0.0, 5.0, -6.0, 7.0, 8.0];
        assert_eq!(take_signs(&mut values, &[1.0; 8], Signs::Even), 0b10_0010);
        assert_eq!(values, [1.0, 2.0, 3.0, 0.0, 5.0, 6.0, 7.0, 8.0]);
    }

    #[test]
    fn one_sign_too_many_goes_to_what_counts_least() {
        let mut values = [1.0, -2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let weights = [9.0, 9.0, 9.0, 9.0, 0.1, 9.0, 9.0, 9.0];
        assert_eq!(take_signs(&mut values, &weights, Signs::Even), 0b1_0010);
        assert_eq!(values, [1.0, 2.0, 3.0, 4.0, -5.0, 6.0, 7.0, 8.0]);
    }

    #[test]
    fn a_negative_scale_turns_signs_round() {
        let mut signs = [1, 127];
        assert_eq!(not_negative(-2.0, &mut signs, Signs::Even), Some(2.0));
        assert_eq!(signs, [126, 0]);
        assert_eq!(not_negative(f32::NAN, &mut signs, Signs::Free), None);
    }
}
