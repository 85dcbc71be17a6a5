//! The best way to encode a run of values with three levels: which values, in ascending order, become low, middle and
//! high, and with which scale. All splits are tried.
//!
//! The levels are -1, 0 and 1, shifted by an eighth up or down.
//!
//! Reference: ggml `ggml-quants.c`, the loops over `i1` and `i2` in `quantize_row_iq1_s_impl`,
//! `quantize_row_iq1_m_impl`.

use std::array::from_fn;

use super::lanes::Lanes;

/// The level values when shifted up.
pub(super) const UP: [f32; 3] = [-0.875, 0.125, 1.125];
/// The level values when shifted down.
pub(super) const DOWN: [f32; 3] = [-1.125, -0.125, 0.875];

/// Number of ends of the middle level that are tried at a time.
const WIDE: usize = 8;
/// Room for prefix sums of up to 32 values, and after them for lanes that have nothing to try.
const ROOM: usize = 33 + WIDE - 1;

/// The best split found.
pub(super) struct Split {
    /// Where, in ascending order, the middle level and the high level start.
    pub(super) starts: [usize; 2],
    /// Negative if the levels must be inverted.
    pub(super) scale: f32,
    /// The way in which levels are shifted: see the functions.
    pub(super) way: usize,
}

/// Sums over the first 0, 1, 2, ... values, and NaN after the last.
type PrefixSums = [f32; ROOM];

/// The indices of values in ascending order: `order[rank]` is the index of a value. Equal values keep their order.
#[inline(always)]
pub(super) fn ascending<const N: usize>(values: &[f32; N]) -> [usize; N] {
    let mut ranks = [0_u32; N];
    for (j, other) in values.iter().enumerate() {
        for (i, value) in values.iter().enumerate() {
            ranks[i] += u32::from(other < value) | u32::from(other == value) & u32::from(j < i);
        }
    }
    let mut order = [0; N];
    for (i, rank) in ranks.iter().enumerate() {
        order[*rank as usize] = i;
    }
    order
}

/// The best split of 32 values with all levels shifted up (way 0) or down (way 1). `None` if all weights are zero.
#[inline(always)]
pub(super) fn in_one_way(values: &[f32; 32], weights: &[f32; 32], order: &[usize; 32]) -> Option<Split> {
    let (mut sum_x, mut sum_w) = ([f32::NAN; ROOM], [f32::NAN; ROOM]);
    (sum_x[0], sum_w[0]) = (0.0, 0.0);
    for (j, i) in order.iter().enumerate() {
        sum_x[j + 1] = sum_x[j] + weights[*i] * values[*i];
        sum_w[j + 1] = sum_w[j] + weights[*i];
    }
    // What the high level adds to both sums, by where it starts.
    let (mut high_x, mut high_w) = ([[f32::NAN; ROOM]; 2], [[f32::NAN; ROOM]; 2]);
    for (way, v) in [UP, DOWN].iter().enumerate() {
        for j in 0..=32 {
            high_x[way][j] = (sum_x[32] - sum_x[j]) * v[2];
            high_w[way][j] = (sum_w[32] - sum_w[j]) * v[2] * v[2];
        }
    }
    let mut best = Best::new();
    for first in 0..=32 {
        for last in (first..=32).step_by(WIDE) {
            let middle_x = lanes(&sum_x, last) - Lanes::splat(sum_x[first]);
            let middle_w = lanes(&sum_w, last) - Lanes::splat(sum_w[first]);
            let mut tried = [Tried::nothing(); 2];
            for (way, (tried, v)) in tried.iter_mut().zip([UP, DOWN]).enumerate() {
                let middle = Lanes::splat(v[1]);
                let (low_x, low_w) = (sum_x[first] * v[0], sum_w[first] * v[0] * v[0]);
                tried.qx = Lanes::splat(low_x) + middle_x * middle + lanes(&high_x[way], last);
                tried.q2 = Lanes::splat(low_w) + middle_w * middle * middle + lanes(&high_w[way], last);
            }
            best.offer(first, last, &tried);
        }
    }
    best.split()
}

/// The best split of 16 values with levels shifted up in both halves (way 0), up and down (1), down and up (2), down in
/// both (3). `None` if all weights are zero.
#[inline(always)]
pub(super) fn in_two_halves(values: &[f32; 16], weights: &[f32; 16], order: &[usize; 16]) -> Option<Split> {
    let (mut sum_x, mut sum_w) = ([[f32::NAN; ROOM]; 2], [[f32::NAN; ROOM]; 2]);
    for half in 0..2 {
        (sum_x[half][0], sum_w[half][0]) = (0.0, 0.0);
        for (j, i) in order.iter().enumerate() {
            let mine = i / 8 == half;
            let (x, w) = (sum_x[half][j], sum_w[half][j]);
            sum_x[half][j + 1] = if mine { x + weights[*i] * values[*i] } else { x };
            sum_w[half][j + 1] = if mine { w + weights[*i] } else { w };
        }
    }
    let mut best = Best::new();
    for first in 0..=16 {
        for last in (first..=16).step_by(WIDE) {
            let mut of_half = [[Tried::nothing(); 2]; 2];
            for half in 0..2 {
                // Levels are one apart, so every sum is the sum with all values at the high level, minus differences.
                let moved_x = Lanes::splat(sum_x[half][first]) + lanes(&sum_x[half], last);
                let middle_w = lanes(&sum_w[half], last);
                for (way, v) in [UP, DOWN].iter().enumerate() {
                    let below = sum_w[half][first] * (v[0] * v[0] - v[1] * v[1]);
                    let all_x = sum_x[half][16] * v[2];
                    let all_w = sum_w[half][16] * v[2] * v[2];
                    of_half[half][way] = Tried {
                        qx: Lanes::splat(all_x) - moved_x,
                        q2: Lanes::splat(all_w + below) + middle_w * Lanes::splat(v[1] * v[1] - v[2] * v[2]),
                    };
                }
            }
            let mut tried = [Tried::nothing(); 4];
            for (way, tried) in tried.iter_mut().enumerate() {
                let (one, other) = (of_half[0][way / 2], of_half[1][way % 2]);
                *tried = Tried { qx: one.qx + other.qx, q2: one.q2 + other.q2 };
            }
            best.offer(first, last, &tried);
        }
    }
    best.split()
}

/// Splits that are tried side by side: their sums of weight * level value * value, and of weight * squared level value.
#[derive(Clone, Copy)]
struct Tried {
    qx: Lanes<WIDE>,
    q2: Lanes<WIDE>,
}

impl Tried {
    #[inline(always)]
    fn nothing() -> Self {
        Self { qx: Lanes::splat(0.0), q2: Lanes::splat(0.0) }
    }
}

#[inline(always)]
fn lanes(sums: &PrefixSums, at: usize) -> Lanes<WIDE> {
    Lanes(from_fn(|lane| sums[at + lane]))
}

/// The best split found so far.
struct Best {
    split: Split,
    score: f32,
    found: bool,
}

impl Best {
    #[inline(always)]
    fn new() -> Self {
        Self { split: Split { starts: [0; 2], scale: 0.0, way: 0 }, score: f32::MIN, found: false }
    }

    #[inline(always)]
    fn split(self) -> Option<Split> {
        self.found.then_some(self.split)
    }

    /// Accepts better splits. Those offered have the middle level from `first` to `last` and the positions after it,
    /// and are compared in this order, then by way.
    #[inline(always)]
    fn offer<const WAYS: usize>(&mut self, first: usize, last: usize, tried: &[Tried; WAYS]) {
        let mut any = 0;
        for tried in tried {
            for lane in 0..WIDE {
                let (qx, q2) = (tried.qx.0[lane], tried.q2.0[lane]);
                any |= i32::from(q2 > 0.0) & i32::from(qx * qx > self.score * q2);
            }
        }
        if any == 0 {
            return;
        }
        for lane in 0..WIDE {
            for (way, tried) in tried.iter().enumerate() {
                let (qx, q2) = (tried.qx.0[lane], tried.q2.0[lane]);
                if q2 > 0.0 && qx * qx > self.score * q2 {
                    let scale = qx / q2;
                    self.split = Split { starts: [first, last + lane], scale, way };
                    self.score = scale * qx;
                    self.found = true;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_ascending_and_keeps_equals() {
        assert_eq!(ascending(&[2.0, -1.0, 0.0, -0.0, 2.0, -3.0]), [5, 1, 2, 3, 0, 4]);
    }

    #[test]
    fn three_heaps_are_found() {
        let values: [f32; 32] = from_fn(|i| [-0.875, 0.125, 1.125][i % 3] * 2.0);
        let split = in_one_way(&values, &[1.0; 32], &ascending(&values));
        let split = split.map(|split| (split.starts, split.scale, split.way));
        assert_eq!(split, Some(([11, 22], 2.0, 0)));
    }

    #[test]
    fn halves_move_apart() {
        let values: [f32; 16] = from_fn(|i| if i < 8 { UP[i % 3] } else { DOWN[i % 3] });
        let split = in_two_halves(&values, &[1.0; 16], &ascending(&values));
        assert_eq!(split.map(|split| (split.scale, split.way)), Some((1.0, 1)));
    }

    #[test]
    fn without_weights_there_is_nothing_to_split() {
        let values: [f32; 32] = from_fn(|i| i as f32);
        assert!(in_one_way(&values, &[0.0; 32], &ascending(&values)).is_none());
    }
}
