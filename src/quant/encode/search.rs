//! Searches for the scale, and in some cases the minimum, with which the values of a run are
//! nearest to integer levels.
//!
//! Each search tries scales around the one that follows from the largest value. The levels for a
//! tried scale determine the best scale for these levels, which is accepted if it lowers the
//! weighted error.
//!
//! Reference: ggml `ggml-quants.c`, `make_qx_quants`, `make_q3_quants`, `make_qkx2_quants`,
//! `make_qkx3_quants`. Every sum is taken in their order, so that the results have the same bits.

use super::lanes::{Ints, Lanes, Runs};

/// Runs in which all values are smaller are zero (`GROUP_MAX_EPS`).
pub(super) const NOTHING: f32 = 1e-15;

/// Which scales a search with a minimum tries, and how it measures errors.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    /// The highest level.
    pub(super) top: i32,
    /// Added to the highest level at the first step.
    pub(super) first: f32,
    /// Added at each further step.
    pub(super) step: f32,
    /// The number of the last step.
    pub(super) last: i32,
    /// Whether errors are measured by their absolute value instead of their square.
    pub(super) absolute: bool,
}

impl Steps {
    /// The steps of all searches with importance.
    pub(super) const fn by_importance(top: i32) -> Self {
        Self { top, first: -0.9, step: 0.05, last: 36, absolute: false }
    }

    #[inline(always)]
    fn error<const L: usize>(self, diff: Lanes<L>) -> Lanes<L> {
        if self.absolute { diff.abs() } else { diff * diff }
    }
}

/// The model `value = scale * level - minimum` for each run, and how its levels were found.
#[derive(Clone, Copy)]
pub(super) struct Shifted<const L: usize> {
    pub(super) scale: Lanes<L>,
    pub(super) minimum: Lanes<L>,
    /// Levels are `inverse * (value - base)`, rounded.
    pub(super) inverse: Lanes<L>,
    pub(super) base: Lanes<L>,
}

/// Searches scale and minimum of runs of weighted values.
#[inline(always)]
pub(super) fn shifted<const L: usize, const N: usize>(x: &Runs<L, N>, w: &Runs<L, N>, steps: Steps) -> Shifted<L> {
    let zero = Lanes::splat(0.0);
    let (mut lowest, mut highest) = (x.0[0], x.0[0]);
    let mut sum_w = w.0[0];
    let mut sum_x = sum_w * x.0[0];
    for e in 1..N {
        lowest = lowest.min(x.0[e]);
        highest = highest.max(x.0[e]);
        sum_w = sum_w + w.0[e];
        sum_x = sum_x + w.0[e] * x.0[e];
    }
    let lowest = lowest.min(zero);
    let range = highest - lowest;
    let flat = highest.equals(lowest);
    let top = Lanes::splat(steps.top as f32);

    let mut inverse = top / range;
    let mut scale = Lanes::splat(1.0) / inverse;
    let mut best = zero;
    for e in 0..N {
        let level = (inverse * (x.0[e] - lowest)).nearest().clamp(0, steps.top).to_f32();
        best = best + w.0[e] * steps.error(scale * level + lowest - x.0[e]);
    }
    // Before it rounds, the search subtracts the minimum that was last accepted.
    let mut minimum = lowest;
    let mut base = lowest;
    for step in 0..=steps.last {
        let tried = Lanes::splat(steps.first + steps.step * step as f32 + steps.top as f32) / (highest - minimum);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        let mut found = [zero; N];
        for e in 0..N {
            let level = (tried * (x.0[e] - minimum)).nearest().clamp(0, steps.top).to_f32();
            found[e] = level;
            let wl = w.0[e] * level;
            sum_l = sum_l + wl;
            sum_l2 = sum_l2 + wl * level;
            sum_xl = sum_xl + wl * x.0[e];
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        let mut its_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let mut its_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        let positive = its_minimum.above(zero);
        its_minimum = positive.pick(zero, its_minimum);
        its_scale = positive.pick(sum_xl / sum_l2, its_scale);
        let mut its_error = zero;
        for e in 0..N {
            its_error = its_error + w.0[e] * steps.error(its_scale * found[e] + its_minimum - x.0[e]);
        }
        let better = determinant.above(zero).and(best.above(its_error));
        best = better.pick(its_error, best);
        inverse = better.pick(tried, inverse);
        base = better.pick(minimum, base);
        scale = better.pick(its_scale, scale);
        minimum = better.pick(its_minimum, minimum);
    }
    Shifted {
        scale: flat.pick(zero, scale),
        minimum: -flat.pick(lowest, minimum),
        inverse: flat.pick(zero, inverse),
        base: flat.pick(zero, base),
    }
}

/// The model `value = scale * level` around zero for each run, and how its levels were found.
#[derive(Clone, Copy)]
pub(super) struct Centred<const L: usize> {
    pub(super) scale: Lanes<L>,
    /// Levels are `inverse * value`, rounded; 0 for a run of zeros.
    pub(super) inverse: Lanes<L>,
}

/// Searches the scale of runs of weighted values, for levels from `-half` to `half - 1`.
#[inline(always)]
pub(super) fn centred<const L: usize, const N: usize>(x: &Runs<L, N>, w: &Runs<L, N>, half: i32) -> Centred<L> {
    let zero = Lanes::splat(0.0);
    let (largest, nothing) = largest(x);
    let mut wx = *x;
    for e in 0..N {
        wx.0[e] = w.0[e] * x.0[e];
    }
    let mut inverse = Lanes::splat(-(half as f32)) / largest;
    let ([sum_lx], [sum_l2]) = level_sums(x, w, &wx, [inverse], half);
    // A NaN doesn't count as zero.
    let mut scale = sum_l2.equals(zero).pick(zero, sum_lx / sum_l2);
    let mut best = scale * sum_lx;
    // Three tries at a time, because each has to wait for its own sums.
    for steps in [[-9, -8, -7], [-6, -5, -4], [-3, -2, -1], [1, 2, 3], [4, 5, 6], [7, 8, 9]] {
        let mut tried = [zero; 3];
        for t in 0..3 {
            tried[t] = Lanes::splat(-(half as f32 + 0.1 * steps[t] as f32)) / largest;
        }
        let (sums_lx, sums_l2) = level_sums(x, w, &wx, tried, half);
        for t in 0..3 {
            let (tried, sum_lx, sum_l2) = (tried[t], sums_lx[t], sums_l2[t]);
            let better = sum_l2.above(zero).and((sum_lx * sum_lx).above(best * sum_l2));
            let its_scale = sum_lx / sum_l2;
            scale = better.pick(its_scale, scale);
            best = better.pick(its_scale * sum_lx, best);
            inverse = better.pick(tried, inverse);
        }
    }
    Centred { scale: nothing.pick(zero, scale), inverse: nothing.pick(zero, inverse) }
}

/// The sums of `w * x * level` and `w * level * level` for the levels from each `inverse`. This is
/// a function and not a closure, because a closure might not be compiled for the caller's vector
/// width.
#[inline(always)]
fn level_sums<const L: usize, const N: usize, const TRIES: usize>(
    x: &Runs<L, N>,
    w: &Runs<L, N>,
    wx: &Runs<L, N>,
    inverse: [Lanes<L>; TRIES],
    half: i32,
) -> ([Lanes<L>; TRIES], [Lanes<L>; TRIES]) {
    // In runs that aren't zero, values are at most a little more than `half` steps, so
    // `nearest_small` suffices.
    let (lowest, highest) = (Lanes::splat(-(half as f32)), Lanes::splat((half - 1) as f32));
    let (mut sum_lx, mut sum_l2) = ([Lanes::splat(0.0); TRIES], [Lanes::splat(0.0); TRIES]);
    for e in 0..N {
        for t in 0..TRIES {
            let level = (inverse[t] * x.0[e]).nearest_small().max(lowest).min(highest);
            sum_lx[t] = sum_lx[t] + wx.0[e] * level;
            sum_l2[t] = sum_l2[t] + w.0[e] * level * level;
        }
    }
    (sum_lx, sum_l2)
}

/// The first value with the largest magnitude in each run, and which runs are zero.
#[inline(always)]
fn largest<const L: usize, const N: usize>(x: &Runs<L, N>) -> (Lanes<L>, super::lanes::Mask<L>) {
    let (mut largest, mut magnitude) = (Lanes::splat(0.0), Lanes::splat(0.0));
    for e in 0..N {
        let larger = x.0[e].abs().above(magnitude);
        magnitude = larger.pick(x.0[e].abs(), magnitude);
        largest = larger.pick(x.0[e], largest);
    }
    (largest, Lanes::splat(NOTHING).above(magnitude))
}

/// Scale and levels (from `-half` to `half - 1`) of runs. Each level is changed as long as that
/// lowers the error, weighted by the squares of values. Levels of runs of zeros are `-half`.
#[inline(always)]
pub(super) fn refined<const L: usize, const N: usize>(x: &Runs<L, N>, half: i32) -> (Lanes<L>, [Ints<L>; N]) {
    let zero = Lanes::splat(0.0);
    let (largest, nothing) = largest(x);
    let inverse = Lanes::splat(-(half as f32)) / largest;
    let mut levels = [zero; N];
    let (mut sum_lx, mut sum_l2) = (zero, zero);
    for e in 0..N {
        let (x, w) = (x.0[e], x.0[e] * x.0[e]);
        levels[e] = (inverse * x).nearest().clamp(-half, half - 1).to_f32();
        sum_lx = sum_lx + w * x * levels[e];
        sum_l2 = sum_l2 + w * levels[e] * levels[e];
    }
    for _ in 0..5 {
        let mut changed = false;
        for e in 0..N {
            let (x, w, level) = (x.0[e], x.0[e] * x.0[e], levels[e]);
            let rest_lx = sum_lx - w * x * level;
            let rest_l2 = sum_l2 - w * level * level;
            let tried = (x * rest_l2 / rest_lx).nearest().clamp(-half, half - 1).to_f32();
            let its_lx = rest_lx + w * x * tried;
            let its_l2 = rest_l2 + w * tried * tried;
            let better = rest_lx
                .above(zero)
                .and(tried.equals(level).not())
                .and(its_l2.above(zero))
                .and((its_lx * its_lx * sum_l2).above(sum_lx * sum_lx * its_l2));
            levels[e] = better.pick(tried, level);
            sum_lx = better.pick(its_lx, sum_lx);
            sum_l2 = better.pick(its_l2, sum_l2);
            changed |= better.any();
        }
        if !changed {
            break;
        }
    }
    let scale = sum_l2.above(zero).pick(sum_lx / sum_l2, zero);
    let low = Lanes::splat(-(half as f32));
    let mut found = [zero.to_ints(); N];
    for e in 0..N {
        found[e] = nothing.pick(low, levels[e]).to_ints();
    }
    (nothing.pick(zero, scale), found)
}
