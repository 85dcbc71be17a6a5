//! A strip of super-blocks: their runs are searched side by side, then each block is written.

use super::lanes::{Lanes, Runs};
use super::search::{self, Steps};

/// Number of super-blocks in a strip: enough runs for any number of lanes, in little memory.
pub(super) const STRIP: usize = 4;

/// Number of values in a super-block.
pub(super) const SUPER: usize = 256;

/// The largest number of runs in a strip.
const RUNS: usize = STRIP * SUPER / 16;

/// One number for each run of a strip.
pub(super) type PerRun = [f32; RUNS];

/// The results of the searches for the runs of a strip.
pub(super) struct Found {
    pub(super) scale: PerRun,
    pub(super) minimum: PerRun,
    pub(super) inverse: PerRun,
    pub(super) base: PerRun,
    /// The sums of weights in each run.
    pub(super) weight: PerRun,
}

impl Found {
    #[inline(always)]
    fn new() -> Self {
        Self { scale: [0.0; RUNS], minimum: [0.0; RUNS], inverse: [0.0; RUNS], base: [0.0; RUNS], weight: [0.0; RUNS] }
    }
}

/// Stores the lanes for runs from `first` on, but none past the last run.
#[inline(always)]
fn store<const L: usize>(lanes: Lanes<L>, first: usize, runs: usize, out: &mut PerRun) {
    let count = L.min(runs - first);
    out[first..first + count].copy_from_slice(&lanes.0[..count]);
}

/// The weight of each value in a run.
pub(super) trait Weights<const L: usize, const N: usize> {
    /// The weights for `L` runs of a strip from `first` on, whose values are `x`.
    fn of(&self, x: &Runs<L, N>, first: usize) -> Runs<L, N>;
}

/// Weights values by magnitude.
pub(super) struct Magnitude;

impl<const L: usize, const N: usize> Weights<L, N> for Magnitude {
    #[inline(always)]
    fn of(&self, x: &Runs<L, N>, _: usize) -> Runs<L, N> {
        let mut w = *x;
        for e in 0..N {
            w.0[e] = x.0[e].abs();
        }
        w
    }
}

/// Weights values by their magnitude and the root mean square of the run.
pub(super) struct MagnitudeInRun;

impl<const L: usize, const N: usize> Weights<L, N> for MagnitudeInRun {
    #[inline(always)]
    fn of(&self, x: &Runs<L, N>, _: usize) -> Runs<L, N> {
        let mut w = *x;
        for e in 0..N {
            w.0[e] = x.0[e] * x.0[e];
        }
        let average = (w.sum() / Lanes::splat(N as f32)).sqrt();
        for e in 0..N {
            w.0[e] = average + x.0[e].abs();
        }
        w
    }
}

/// Weights values by their square.
pub(super) struct Square;

impl<const L: usize, const N: usize> Weights<L, N> for Square {
    #[inline(always)]
    fn of(&self, x: &Runs<L, N>, _: usize) -> Runs<L, N> {
        let mut w = *x;
        for e in 0..N {
            w.0[e] = x.0[e] * x.0[e];
        }
        w
    }
}

/// Weights values by the columns' importance, which is as long as the strip.
pub(super) struct Importance<'a>(pub(super) &'a [f32]);

impl<const L: usize, const N: usize> Weights<L, N> for Importance<'_> {
    #[inline(always)]
    fn of(&self, _: &Runs<L, N>, first: usize) -> Runs<L, N> {
        Runs::load(self.0, first)
    }
}

/// Weights values by importance and magnitude: importance times the root of the sum of spread and square.
pub(super) struct Led<'a> {
    /// The columns' importance, as long as the strip.
    pub(super) importance: &'a [f32],
    /// The spread of each super-block, which is added to squares.
    pub(super) spread: [f32; STRIP],
}

impl<'a> Led<'a> {
    /// Computes the spread: the mean square of each super-block, summed in order, times `factor`.
    #[inline(always)]
    pub(super) fn new(values: &[f32], importance: &'a [f32], factor: f32) -> Self {
        let mut spread = [0.0; STRIP];
        for (block, out) in values.as_chunks::<SUPER>().0.iter().zip(&mut spread) {
            let mut sum = 0.0;
            for x in block {
                sum += x * x;
            }
            *out = factor * sum / SUPER as f32;
        }
        Self { importance, spread }
    }
}

impl<const L: usize, const N: usize> Weights<L, N> for Led<'_> {
    #[inline(always)]
    fn of(&self, x: &Runs<L, N>, first: usize) -> Runs<L, N> {
        let last = self.importance.len() / N - 1;
        let mut spread = Lanes::splat(0.0);
        for l in 0..L {
            spread.0[l] = self.spread[(first + l).min(last) * N / SUPER];
        }
        let mut w = Runs::load(self.importance, first);
        for e in 0..N {
            w.0[e] = w.0[e] * (spread + x.0[e] * x.0[e]).sqrt();
        }
        w
    }
}

/// Searches scale and minimum for the runs of `values`, up to one strip.
#[inline(always)]
pub(super) fn shifted<const L: usize, const N: usize>(
    values: &[f32],
    steps: Steps,
    weights: impl Weights<L, N>,
) -> Found {
    let mut found = Found::new();
    let runs = values.len() / N;
    for first in (0..runs).step_by(L) {
        let x = Runs::<L, N>::load(values, first);
        let w = weights.of(&x, first);
        let lanes = search::shifted(&x, &w, steps);
        store(lanes.scale, first, runs, &mut found.scale);
        store(lanes.minimum, first, runs, &mut found.minimum);
        store(lanes.inverse, first, runs, &mut found.inverse);
        store(lanes.base, first, runs, &mut found.base);
        store(w.sum(), first, runs, &mut found.weight);
    }
    found
}

/// Searches a scale around zero for the runs of `values`, up to one strip.
#[inline(always)]
pub(super) fn centred<const L: usize, const N: usize>(values: &[f32], half: i32, weights: impl Weights<L, N>) -> Found {
    let mut found = Found::new();
    let runs = values.len() / N;
    for first in (0..runs).step_by(L) {
        let x = Runs::<L, N>::load(values, first);
        let w = weights.of(&x, first);
        let lanes = search::centred(&x, &w, half);
        store(lanes.scale, first, runs, &mut found.scale);
        store(lanes.inverse, first, runs, &mut found.inverse);
        store(w.sum(), first, runs, &mut found.weight);
    }
    found
}

/// Finds scales around zero for the runs of `values`, up to one strip, and refines levels one by one. Writes them to
/// `levels`, counted from the lowest level.
#[inline(always)]
pub(super) fn refined<const L: usize, const N: usize>(values: &[f32], half: i32, levels: &mut [u8]) -> Found {
    let mut found = Found::new();
    let runs = values.len() / N;
    for first in (0..runs).step_by(L) {
        let (scale, its_levels) = search::refined(&Runs::<L, N>::load(values, first), half);
        store(scale, first, runs, &mut found.scale);
        for l in 0..L.min(runs - first) {
            for e in 0..N {
                levels[(first + l) * N + e] = (its_levels[e].0[l] + half) as u8;
            }
        }
    }
    found
}

/// `(value + shift) / divisor`, rounded to an integer from `low` to `high`.
#[inline(always)]
pub(super) fn levels<const N: usize>(x: &[f32; N], shift: f32, divisor: f32, low: i32, high: i32) -> [i32; N] {
    let shifted = Lanes(*x) + Lanes::splat(shift);
    (shifted / Lanes::splat(divisor)).nearest().clamp(low, high).0
}

/// `inverse * (value - base)`, rounded to an integer from `low` to `high`, as in the searches.
#[inline(always)]
pub(super) fn found_levels<const N: usize>(x: &[f32; N], inverse: f32, base: f32, low: i32, high: i32) -> [i32; N] {
    let shifted = Lanes(*x) - Lanes::splat(base);
    (Lanes::splat(inverse) * shifted).nearest().clamp(low, high).0
}
