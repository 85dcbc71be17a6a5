//! Vectors of numbers: plain loops over arrays, which compilers turn into vector instructions.
//!
//! Everything here is `#[inline(always)]` and uses no closures: a function that isn't inlined is
//! compiled for the most basic processor, whatever its caller is compiled for.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// `L` numbers, one from each of `L` runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lanes<const L: usize>(pub(super) [f32; L]);

/// `L` integers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ints<const L: usize>(pub(super) [i32; L]);

/// All ones or all zeros in each lane: the lanes in which a condition holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mask<const L: usize>(pub(super) [u32; L]);

macro_rules! lane_by_lane {
    ($($operation:ident $function:ident $symbol:tt),*) => {$(
        impl<const L: usize> $operation for Lanes<L> {
            type Output = Self;
            #[inline(always)]
            fn $function(self, other: Self) -> Self {
                let mut out = self;
                for i in 0..L {
                    out.0[i] = self.0[i] $symbol other.0[i];
                }
                out
            }
        }
    )*};
}
lane_by_lane!(Add add +, Sub sub -, Mul mul *, Div div /);

impl<const L: usize> Neg for Lanes<L> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        let mut out = self;
        for i in 0..L {
            out.0[i] = -self.0[i];
        }
        out
    }
}

impl<const L: usize> Lanes<L> {
    #[inline(always)]
    pub(super) fn splat(value: f32) -> Self {
        Self([value; L])
    }

    /// The result of C's `if (self < other) self = other`: a NaN in `other` is ignored.
    #[inline(always)]
    pub(super) fn max(self, other: Self) -> Self {
        let mut out = self;
        for i in 0..L {
            out.0[i] = if self.0[i] < other.0[i] { other.0[i] } else { self.0[i] };
        }
        out
    }

    /// The result of C's `if (self > other) self = other`.
    #[inline(always)]
    pub(super) fn min(self, other: Self) -> Self {
        let mut out = self;
        for i in 0..L {
            out.0[i] = if self.0[i] > other.0[i] { other.0[i] } else { self.0[i] };
        }
        out
    }

    #[inline(always)]
    pub(super) fn abs(self) -> Self {
        let mut out = self;
        for i in 0..L {
            out.0[i] = self.0[i].abs();
        }
        out
    }

    #[inline(always)]
    pub(super) fn sqrt(self) -> Self {
        let mut out = self;
        for i in 0..L {
            out.0[i] = self.0[i].sqrt();
        }
        out
    }

    /// Rounds to the nearest integer, halves to even: the bits of ggml's `nearest_int`, even for
    /// inputs that are too large for it (infinities, NaN).
    #[inline(always)]
    pub(super) fn nearest(self) -> Ints<L> {
        // Adding 1.5 * 2^23 leaves no bits below one, so the sum is rounded to an integer.
        const SHIFT: f32 = 12_582_912.0;
        let mut out = [0; L];
        for i in 0..L {
            out[i] = ((self.0[i] + SHIFT).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000;
        }
        Ints(out)
    }

    /// Like [`Lanes::nearest`], for |values| up to 2^22, without a conversion to integers.
    #[inline(always)]
    pub(super) fn nearest_small(self) -> Self {
        const SHIFT: f32 = 12_582_912.0;
        let mut out = self;
        for i in 0..L {
            out.0[i] = self.0[i] + SHIFT - SHIFT;
        }
        out
    }

    /// Converts whole numbers to integers.
    #[inline(always)]
    pub(super) fn to_ints(self) -> Ints<L> {
        let mut out = [0; L];
        for i in 0..L {
            out[i] = self.0[i] as i32;
        }
        Ints(out)
    }

    #[inline(always)]
    pub(super) fn above(self, other: Self) -> Mask<L> {
        let mut out = [0; L];
        for i in 0..L {
            out[i] = if self.0[i] > other.0[i] { !0 } else { 0 };
        }
        Mask(out)
    }

    #[inline(always)]
    pub(super) fn equals(self, other: Self) -> Mask<L> {
        let mut out = [0; L];
        for i in 0..L {
            out[i] = if self.0[i] == other.0[i] { !0 } else { 0 };
        }
        Mask(out)
    }
}

impl<const L: usize> Ints<L> {
    #[inline(always)]
    pub(super) fn clamp(self, low: i32, high: i32) -> Self {
        let mut out = self;
        for i in 0..L {
            out.0[i] = self.0[i].max(low).min(high);
        }
        out
    }

    #[inline(always)]
    pub(super) fn to_f32(self) -> Lanes<L> {
        let mut out = [0.0; L];
        for i in 0..L {
            out[i] = self.0[i] as f32;
        }
        Lanes(out)
    }
}

impl<const L: usize> Mask<L> {
    #[inline(always)]
    pub(super) fn and(self, other: Self) -> Self {
        let mut out = self;
        for i in 0..L {
            out.0[i] = self.0[i] & other.0[i];
        }
        out
    }

    #[inline(always)]
    pub(super) fn not(self) -> Self {
        let mut out = self;
        for i in 0..L {
            out.0[i] = !self.0[i];
        }
        out
    }

    #[inline(always)]
    pub(super) fn any(self) -> bool {
        let mut all = 0;
        for i in 0..L {
            all |= self.0[i];
        }
        all != 0
    }

    /// `yes` where the mask is set, `no` elsewhere.
    #[inline(always)]
    pub(super) fn pick(self, yes: Lanes<L>, no: Lanes<L>) -> Lanes<L> {
        let mut out = no;
        for i in 0..L {
            out.0[i] = f32::from_bits(yes.0[i].to_bits() & self.0[i] | no.0[i].to_bits() & !self.0[i]);
        }
        out
    }
}

/// `ELEMS` values of each of `L` runs, with one run per lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Runs<const L: usize, const ELEMS: usize>(pub(super) [Lanes<L>; ELEMS]);

impl<const L: usize, const ELEMS: usize> Runs<L, ELEMS> {
    /// Loads runs from number `first` on; runs past the end of `values` are zero.
    #[inline(always)]
    pub(super) fn load(values: &[f32], first: usize) -> Self {
        const { assert!(ELEMS.is_multiple_of(L)) }
        let mut runs = Self::of(0.0);
        for (k, lanes) in runs.0.as_chunks_mut::<L>().0.iter_mut().enumerate() {
            let mut square = [[0.0; L]; L];
            for (row, run) in square.iter_mut().zip(values[first * ELEMS..].as_chunks::<ELEMS>().0) {
                *row = run.as_chunks().0[k];
            }
            for (lanes, row) in lanes.iter_mut().zip(transposed(square)) {
                *lanes = Lanes(row);
            }
        }
        runs
    }

    /// The same number in all positions.
    #[inline(always)]
    pub(super) fn of(value: f32) -> Self {
        Self([Lanes::splat(value); ELEMS])
    }

    /// The sum of each run, taken in order.
    #[inline(always)]
    pub(super) fn sum(&self) -> Lanes<L> {
        let mut sum = Lanes::splat(0.0);
        for e in 0..ELEMS {
            sum = sum + self.0[e];
        }
        sum
    }
}

/// Transposes by interleaving the first half of the rows with the second, as often as rows can be
/// halved.
#[inline(always)]
fn transposed<const L: usize>(mut rows: [[f32; L]; L]) -> [[f32; L]; L] {
    let half = L / 2;
    for _ in 0..L.ilog2() {
        let mut next = [[0.0; L]; L];
        for i in 0..half {
            for k in 0..half {
                next[2 * i][2 * k] = rows[i][k];
                next[2 * i][2 * k + 1] = rows[half + i][k];
                next[2 * i + 1][2 * k] = rows[i][half + k];
                next[2 * i + 1][2 * k + 1] = rows[half + i][half + k];
            }
        }
        rows = next;
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<const L: usize>() {
        let values: Vec<f32> = (0..L * 32).map(|i| i as f32).collect();
        for runs in 0..=L {
            let loaded = Runs::<L, 32>::load(&values[..runs * 32], 0);
            for (e, lanes) in loaded.0.iter().enumerate() {
                let expected = std::array::from_fn(|l| if l < runs { (l * 32 + e) as f32 } else { 0.0 });
                assert_eq!(lanes.0, expected, "{e} of {runs} runs");
            }
        }
    }

    #[test]
    fn runs_are_loaded_side_by_side() {
        check::<1>();
        check::<8>();
        let values: Vec<f32> = (0..64).map(|i| i as f32).collect();
        assert_eq!(Runs::<2, 16>::load(&values, 2).0[3].0, [35.0, 51.0]);
    }
}
