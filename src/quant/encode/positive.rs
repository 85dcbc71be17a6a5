//! A scale, with levels from zero up, for values that are mostly not negative. The K-quants use it for the scales and
//! minima of runs, and IQ2_XXS as its first scale.
//!
//! Reference: ggml `ggml-quants.c`, `make_qp_quants`.

use std::array::from_fn;

use super::lanes::{Ints, Lanes};
use super::search::NOTHING;

/// A scale for which the weighted squared error of levels 0 to `top` is small, and the levels; zeros if all values are
/// (nearly) zero.
///
/// A negative value can get a negative level. Like ggml, this keeps levels in bytes, where -1 is 255: the scale depends
/// on that.
#[inline(always)]
pub(super) fn scale_from_zero<const N: usize>(values: &[f32; N], weights: &[f32; N], top: i32) -> (f32, [u8; N]) {
    let largest = values.iter().fold(0.0, |largest, v| if largest > *v { largest } else { *v });
    if largest < NOTHING {
        return (0.0, [0; N]);
    }
    let top_f32 = top as f32;
    let mut inverse = top_f32 / largest;

    let Ints(levels) = (Lanes::splat(inverse) * Lanes(*values)).nearest();
    let levels = levels.map(|level| level as u8);
    let scale = 1.0 / inverse;
    let mut least = 0.0;
    for i in 0..N {
        let error = values[i] - scale * f32::from(levels[i]);
        least += weights[i] * error * error;
    }
    // Four scales above and four below, one in each lane.
    let shifts: [f32; 8] = from_fn(|lane| (if lane < 4 { lane as f32 - 4.0 } else { lane as f32 - 3.0 }) * 0.1);
    let inverses = (Lanes(shifts) + Lanes::splat(top_f32)) / Lanes::splat(largest);
    let scales = Lanes::splat(1.0) / inverses;
    let mut errors = Lanes::splat(0.0);
    for (value, weight) in values.iter().zip(weights) {
        let value = Lanes::splat(*value);
        let levels = (inverses * value).nearest().clamp(i32::MIN, top).to_f32();
        let error = value - scales * levels;
        errors = errors + Lanes::splat(*weight) * error * error;
    }
    for (error, tried) in errors.0.iter().zip(inverses.0) {
        if *error < least {
            least = *error;
            inverse = tried;
        }
    }
    Levels::new(values, weights, inverse, top).improve()
}

/// Levels, and the sums that determine their best scale.
struct Levels<'a, const N: usize> {
    values: &'a [f32; N],
    weights: &'a [f32; N],
    top: i32,
    levels: [u8; N],
    /// Sums of weight * value * level, and of weight * level * level; their quotient is the scale.
    sum_vl: f32,
    sum_l2: f32,
}

impl<'a, const N: usize> Levels<'a, N> {
    #[inline(always)]
    fn new(values: &'a [f32; N], weights: &'a [f32; N], inverse: f32, top: i32) -> Self {
        let Ints(levels) = (Lanes::splat(inverse) * Lanes(*values)).nearest().clamp(i32::MIN, top);
        let (mut sum_vl, mut sum_l2) = (0.0, 0.0);
        for i in 0..N {
            let level = levels[i] as f32;
            sum_vl += weights[i] * values[i] * level;
            sum_l2 += weights[i] * level * level;
        }
        Self { values, weights, top, levels: levels.map(|level| level as u8), sum_vl, sum_l2 }
    }

    /// Changes single levels as long as that helps, in at most five rounds. Returns scale and levels.
    #[inline(always)]
    fn improve(mut self) -> (f32, [u8; N]) {
        for _ in 0..5 {
            let mut moved = false;
            for i in 0..N {
                moved |= self.try_to_move(i);
            }
            if !moved {
                break;
            }
        }
        (if self.sum_l2 > 0.0 { self.sum_vl / self.sum_l2 } else { 0.0 }, self.levels)
    }

    /// Gives value `i` the level that follows from the scale of all others, if that is better.
    #[inline(always)]
    fn try_to_move(&mut self, i: usize) -> bool {
        let (value, weight) = (self.values[i], self.weights[i]);
        let level = f32::from(self.levels[i]);
        let mut others_vl = self.sum_vl - weight * value * level;
        let mut others_l2 = self.sum_l2 - weight * level * level;
        if !(others_vl > 0.0 && others_l2 > 0.0) {
            return false;
        }
        let Ints([new]) = Lanes([value * others_l2 / others_vl]).nearest().clamp(i32::MIN, self.top);
        if new == i32::from(self.levels[i]) {
            return false;
        }
        others_vl += weight * value * new as f32;
        others_l2 += weight * new as f32 * new as f32;
        let better = others_vl * others_vl * self.sum_l2 > self.sum_vl * self.sum_vl * others_l2;
        if better {
            self.levels[i] = new as u8;
            self.sum_vl = others_vl;
            self.sum_l2 = others_l2;
        }
        better
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiples_get_their_unit_back() {
        let values: [f32; 32] = from_fn(|i| (i % 5) as f32 * 0.25);
        assert_eq!(scale_from_zero(&values, &[1.0; 32], 4).0, 0.25);
    }

    #[test]
    fn nothing_has_no_scale() {
        assert_eq!(scale_from_zero(&[0.0; 16], &[1.0; 16], 4).0, 0.0);
        assert_eq!(scale_from_zero(&[1.0; 16], &[0.0; 16], 4).0, 0.0);
        assert_eq!(scale_from_zero(&[-1.0; 16], &[1.0; 16], 4).0, 0.0);
    }
}
