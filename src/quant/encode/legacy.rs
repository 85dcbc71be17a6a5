//! Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: 32 values with one f16 scale, some with an f16 shift.
//!
//! Without importance, the scale follows from the largest value, or from the lowest and highest. With importance, it is
//! searched.
//!
//! Reference: ggml `ggml-quants.c`, `quantize_row_q4_0_ref` and `_impl`, and so on.
#![allow(non_camel_case_types)] // The name is ggml's.

use half::f16;

use super::each::{EncodeBlock, each_block, largest_magnitude};
use super::lanes::Runs;
use super::pack::{above, pack};
use super::search::{self, Steps};
use super::strip::found_levels;
use crate::kernel::{Kernel, Routine};

/// Number of values in a block.
const N: usize = 32;

/// A row, the importance of its columns, and the blocks to write. Levels have `BITS` bits, and are around zero or, if
/// `SHIFTED`, above a minimum.
struct Job<'a, const BITS: usize, const SHIFTED: bool, const BYTES: usize> {
    row: &'a [f32],
    importance: Option<&'a [f32]>,
    out: &'a mut [u8],
}

macro_rules! encoders {
    ($($(#[$doc:meta])* $name:ident: $bits:literal, $shifted:literal, $bytes:literal;)*) => {$(
        $(#[$doc])*
        pub(super) fn $name(row: &[f32], importance: Option<&[f32]>, out: &mut [u8], kernel: Kernel) {
            kernel.run(Job::<$bits, $shifted, $bytes> { row, importance, out });
        }
    )*};
}
encoders! {
    /// Q4_0: levels from -8 to 7.
    q4_0: 4, false, 18;
    /// Q4_1: levels from 0 to 15 above a minimum.
    q4_1: 4, true, 20;
    /// Q5_0: levels from -16 to 15.
    q5_0: 5, false, 22;
    /// Q5_1: levels from 0 to 31 above a minimum.
    q5_1: 5, true, 24;
}

impl<const BITS: usize, const SHIFTED: bool, const BYTES: usize> Routine for Job<'_, BITS, SHIFTED, BYTES> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        let (blocks, out) = (self.row.as_chunks::<N>().0, self.out.as_chunks_mut::<BYTES>().0);
        let Some(importance) = self.importance else {
            for (block, out) in blocks.iter().zip(out) {
                let (scale, minimum, levels) =
                    if SHIFTED { from_minimum::<BITS>(block) } else { around_zero::<BITS>(block) };
                finish::<BITS, SHIFTED, BYTES>(scale, minimum, &levels, out);
            }
            return;
        };
        let mut sum = 0.0;
        for x in self.row {
            sum += x * x;
        }
        let spread = sum / self.row.len() as f32;
        for first in (0..blocks.len()).step_by(L) {
            let x = Runs::<L, N>::load(self.row, first);
            let mut w = Runs::<L, N>::load(importance, first);
            for e in 0..N {
                for l in 0..L {
                    w.0[e].0[l] *= (spread + x.0[e].0[l] * x.0[e].0[l]).sqrt();
                }
            }
            if SHIFTED {
                let top = (1 << BITS) - 1;
                let found = search::shifted(&x, &w, Steps::by_importance(top));
                for l in 0..L.min(blocks.len() - first) {
                    let levels = found_levels(&blocks[first + l], found.inverse.0[l], found.base.0[l], 0, top);
                    let levels = bytes(&levels, 0);
                    finish::<BITS, SHIFTED, BYTES>(found.scale.0[l], -found.minimum.0[l], &levels, &mut out[first + l]);
                }
            } else {
                let half = 1 << (BITS - 1);
                let found = search::centred(&x, &w, half);
                for l in 0..L.min(blocks.len() - first) {
                    let levels = match found.inverse.0[l] {
                        // The reference stores the level 0 for a run of zeros, which is the lowest one.
                        0.0 => [-half; N],
                        inverse => found_levels(&blocks[first + l], inverse, 0.0, -half, half - 1),
                    };
                    let levels = bytes(&levels, half);
                    finish::<BITS, SHIFTED, BYTES>(found.scale.0[l], 0.0, &levels, &mut out[first + l]);
                }
            }
        }
    }
}

#[inline(always)]
fn bytes(levels: &[i32; N], zero: i32) -> [u8; N] {
    let mut out = [0; N];
    for e in 0..N {
        out[e] = (levels[e] + zero) as u8;
    }
    out
}

/// Scale and levels from the value with the largest magnitude, which gets the lowest level.
#[inline(always)]
fn around_zero<const BITS: usize>(x: &[f32; N]) -> (f32, f32, [u8; N]) {
    let half = (1 << (BITS - 1)) as f32;
    // The first value of largest magnitude: of 5 and -5, the one that comes first. Zeros count as positive.
    let magnitude = largest_magnitude(x);
    let mut largest = 0.0;
    for &v in x.iter().rev() {
        largest = if v.abs() == magnitude && v != 0.0 { v } else { largest };
    }
    let scale = largest / -half;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut levels = [0; N];
    for e in 0..N {
        levels[e] = cut::<BITS>(x[e] * inverse + (half + 0.5));
    }
    (scale, 0.0, levels)
}

/// Scale, minimum and levels from the lowest and the highest value.
#[inline(always)]
fn from_minimum<const BITS: usize>(x: &[f32; N]) -> (f32, f32, [u8; N]) {
    let (mut lowest, mut highest) = (f32::MAX, -f32::MAX);
    for &v in x {
        lowest = if v < lowest { v } else { lowest };
        highest = if v > highest { v } else { highest };
    }
    let scale = (highest - lowest) / ((1 << BITS) - 1) as f32;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut levels = [0; N];
    for e in 0..N {
        let level = (x[e] - lowest) * inverse + 0.5;
        levels[e] = cut::<BITS>(level);
    }
    (scale, lowest, levels)
}

/// Added to a number below 2^22, this leaves the nearest integer, halves to even, in the low bits. Compilers can't
/// vectorize a plain conversion to integers.
const WHOLE: f32 = 8_388_608.0;

/// Numbers from here on can't be levels. They occur if all values are subnormal, so that the inverse of the scale
/// overflows to an infinity or NaN; the reference's conversion then gives the byte 0.
const TOO_LARGE: f32 = 4_194_304.0;

/// Truncates a non-negative number to an integer, and limits it to the highest level.
#[inline(always)]
fn cut<const BITS: usize>(value: f32) -> u8 {
    let nearest = value + WHOLE;
    let whole = (nearest.to_bits() & 0xffff) as i32 - i32::from(nearest - WHOLE > value);
    if value < TOO_LARGE { whole.min((1 << BITS) - 1) as u8 } else { 0 }
}

/// Writes scale, shift and packed levels.
#[inline(always)]
fn finish<const BITS: usize, const SHIFTED: bool, const BYTES: usize>(
    scale: f32,
    minimum: f32,
    levels: &[u8; N],
    out: &mut [u8; BYTES],
) {
    out[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    let mut at = 2;
    if SHIFTED {
        out[2..4].copy_from_slice(&f16::from_f32(minimum).to_le_bytes());
        at = 4;
    }
    if BITS == 5 {
        let mut fifth = 0u32;
        for (e, high) in above(levels, 4).iter().enumerate() {
            fifth |= u32::from(high & 1) << e;
        }
        out[at..at + 4].copy_from_slice(&fifth.to_le_bytes());
        at += 4;
    }
    pack::<4, 16, N>(levels, &mut out[at..]);
}

/// Q8_0: levels from -127 to 127, rounding halves away from zero. Importance isn't used.
pub(super) fn q8_0(row: &[f32], _: Option<&[f32]>, out: &mut [u8], kernel: Kernel) {
    each_block(Q8_0, row, out, kernel);
}

struct Q8_0;

impl EncodeBlock<34, N> for Q8_0 {
    #[inline(always)]
    fn encode(x: &[f32; N], out: &mut [u8; 34]) {
        let scale = largest_magnitude(x) / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        out[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        for e in 0..N {
            out[2 + e] = half_away(x[e] * inverse);
        }
    }
}

/// The nearest integer as a byte, rounding halves away from zero.
#[inline(always)]
fn half_away(value: f32) -> u8 {
    let magnitude = value.abs();
    let nearest = magnitude + WHOLE;
    // Add one where a half was rounded to the even number below.
    let whole = (nearest.to_bits() as u8).wrapping_add(u8::from(magnitude - (nearest - WHOLE) == 0.5));
    let whole = if magnitude < TOO_LARGE { whole } else { 0 };
    if value < 0.0 { whole.wrapping_neg() } else { whole }
}
