//! Q2_K to Q6_K: 256 values in runs of 16 or 32, whose scales are quantized as well.
//!
//! First, the scale of each run is searched. Then the scales are rounded to small integers times one or two f16 of the
//! block. Finally, the values are rounded again with these scales.
//!
//! Reference: ggml `ggml-quants.c`, `quantize_row_q2_K_ref` and `_impl`, and so on to Q6_K.

use half::f16;

use super::lanes::{Lanes, Runs};
use super::pack::{above, pack};
use super::positive::scale_from_zero;
use super::search::{self, Steps};
use super::strip::{
    self, Importance, Led, Magnitude, MagnitudeInRun, PerRun, STRIP, SUPER, Square, found_levels, levels,
};
use crate::kernel::{Kernel, Routine};

/// A row, the importance of its columns, and the blocks to write.
struct Job<'a, const BYTES: usize, B> {
    row: &'a [f32],
    importance: Option<&'a [f32]>,
    out: &'a mut [u8],
    encode: std::marker::PhantomData<B>,
}

/// Encodes the super-blocks of one type.
trait Strips<const BYTES: usize> {
    /// Encodes up to one strip of super-blocks.
    fn encode<const L: usize, const PAIR: usize>(values: &[f32], importance: Option<&[f32]>, out: &mut [[u8; BYTES]]);
}

impl<const BYTES: usize, B: Strips<BYTES>> Routine for Job<'_, BYTES, B> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        let blocks = self.out.as_chunks_mut::<BYTES>().0;
        for (i, (values, out)) in self.row.chunks(STRIP * SUPER).zip(blocks.chunks_mut(STRIP)).enumerate() {
            let start = i * STRIP * SUPER;
            B::encode::<L, PAIR>(values, self.importance.map(|w| &w[start..start + values.len()]), out);
        }
    }
}

macro_rules! encoders {
    ($($(#[$doc:meta])* $name:ident: $block:ty, $bytes:literal;)*) => {$(
        $(#[$doc])*
        pub(super) fn $name(row: &[f32], importance: Option<&[f32]>, out: &mut [u8], kernel: Kernel) {
            kernel.run(Job::<$bytes, $block> { row, importance, out, encode: std::marker::PhantomData });
        }
    )*};
}
encoders! {
    /// Q2_K: levels of two bits, scales and minima of four bits.
    q2_k: Q2, 84;
    /// Q3_K: levels of three bits around zero, scales of six bits.
    q3_k: Q3, 110;
    /// Q4_K: levels of four bits, scales and minima of six bits.
    q4_k: Q4, 144;
    /// Q5_K: levels of five bits, scales and minima of six bits.
    q5_k: Q5, 176;
    /// Q6_K: levels of six bits around zero, scales of eight bits.
    q6_k: Q6, 210;
}

/// The nearest integer, rounded as in the reference.
#[inline(always)]
fn nearest(value: f32) -> i32 {
    Lanes([value]).nearest().0[0]
}

/// The result of C's `if (max < v) max = v`, starting from zero.
#[inline(always)]
fn highest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max, &v| if v > max { v } else { max })
}

/// The first value with the largest magnitude; zero if all values are zero or NaN.
#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let larger =
        |(max, magnitude): (f32, f32), &v: &f32| if v.abs() > magnitude { (v, v.abs()) } else { (max, magnitude) };
    values.iter().fold((0.0, 0.0), larger).0
}

/// The levels of one block: rounded with the quantized scales, or as found by the search where the quantized scale is
/// zero.
#[inline(always)]
fn block_levels<const N: usize>(
    values: &[f32; SUPER],
    low: i32,
    high: i32,
    under: impl Fn(usize) -> (f32, f32),
    found: impl Fn(usize, &[f32; N]) -> [i32; N],
) -> [u8; SUPER] {
    let mut out = [0; SUPER];
    for (run, (x, out)) in values.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<N>().0).enumerate() {
        let (scale, minimum) = under(run);
        let its = if scale == 0.0 { found(run, x) } else { levels(x, minimum, scale, low, high) };
        for e in 0..N {
            out[e] = (its[e] - low) as u8;
        }
    }
    out
}

struct Q2;

impl Strips<84> for Q2 {
    #[inline(always)]
    fn encode<const L: usize, const PAIR: usize>(values: &[f32], importance: Option<&[f32]>, out: &mut [[u8; 84]]) {
        let found = match importance {
            Some(importance) => {
                strip::shifted::<PAIR, 16>(values, Steps::by_importance(3), Led::new(values, importance, 1.0))
            }
            None => {
                let steps = Steps { top: 3, first: -0.5, step: 0.1, last: 15, absolute: true };
                strip::shifted::<PAIR, 16>(values, steps, Magnitude)
            }
        };
        for (i, (block, out)) in values.as_chunks::<SUPER>().0.iter().zip(out).enumerate() {
            let first = i * 16;
            let of_block = |all: &PerRun| all.as_chunks::<16>().0[i];
            let (scales, minima) = (of_block(&found.scale), of_block(&found.minimum));
            let (d, dmin, packed) = if importance.is_some() {
                let w = of_block(&found.weight);
                let (d, scales) = scale_from_zero(&scales, &w, 15);
                let (dmin, minima) = scale_from_zero(&minima, &w, 15);
                (d, dmin, std::array::from_fn(|j| scales[j] | minima[j] << 4))
            } else {
                let (top, low) = (highest(&scales), highest(&minima));
                let (inverse, inverse_min) = (15.0 / top, 15.0 / low);
                let scale = |j: usize| if top > 0.0 { nearest(inverse * scales[j]) as u8 } else { 0 };
                let minimum = |j: usize| if low > 0.0 { (nearest(inverse_min * minima[j]) as u8) << 4 } else { 0 };
                let packed: [u8; 16] = std::array::from_fn(|j| scale(j) | minimum(j));
                (if top > 0.0 { top / 15.0 } else { 0.0 }, if low > 0.0 { low / 15.0 } else { 0.0 }, packed)
            };
            let (d, dmin) = (f16::from_f32(d), f16::from_f32(dmin));
            let under = |j: usize| (d.to_f32() * f32::from(packed[j] & 15), dmin.to_f32() * f32::from(packed[j] >> 4));
            let kept = |j: usize, x: &[f32; 16]| found_levels(x, found.inverse[first + j], found.base[first + j], 0, 3);
            let levels = block_levels::<16>(block, 0, 3, under, kept);
            out[..16].copy_from_slice(&packed);
            pack::<2, 32, SUPER>(&levels, &mut out[16..80]);
            out[80..82].copy_from_slice(&d.to_le_bytes());
            out[82..84].copy_from_slice(&dmin.to_le_bytes());
        }
    }
}

/// Finds scales and minima for the eight runs of Q4_K and Q5_K blocks, and writes the blocks' heads: `d`, `dmin` and
/// twelve bytes of six-bit scales and minima. `finish` gets each block's levels.
#[inline(always)]
fn with_six_bit_scales<const PAIR: usize, const BYTES: usize>(
    values: &[f32],
    importance: Option<&[f32]>,
    steps: Steps,
    out: &mut [[u8; BYTES]],
    finish: impl Fn(&[u8; SUPER], &mut [u8]),
) {
    let found = match importance {
        Some(importance) => {
            strip::shifted::<PAIR, 32>(values, Steps::by_importance(steps.top), Led::new(values, importance, 2.0))
        }
        None => strip::shifted::<PAIR, 32>(values, steps, MagnitudeInRun),
    };
    for (i, (block, out)) in values.as_chunks::<SUPER>().0.iter().zip(out).enumerate() {
        let first = i * 8;
        let of_block = |all: &PerRun| all.as_chunks::<8>().0[i];
        let (scales, minima) = (of_block(&found.scale), of_block(&found.minimum));
        let (d, dmin, scales, minima) = if importance.is_some() {
            let w = of_block(&found.weight);
            let (d, scales) = scale_from_zero(&scales, &w, 63);
            let (dmin, minima) = scale_from_zero(&minima, &w, 63);
            (d, dmin, scales, minima)
        } else {
            let (top, low) = (highest(&scales), highest(&minima));
            let inverse = if top > 0.0 { 63.0 / top } else { 0.0 };
            let inverse_min = if low > 0.0 { 63.0 / low } else { 0.0 };
            let six_bits = |inverse: f32, value: f32| (nearest(inverse * value) as u8).min(63);
            let scales: [u8; 8] = std::array::from_fn(|j| six_bits(inverse, scales[j]));
            let minima: [u8; 8] = std::array::from_fn(|j| six_bits(inverse_min, minima[j]));
            (top / 63.0, low / 63.0, scales, minima)
        };
        let (d, dmin) = (f16::from_f32(d), f16::from_f32(dmin));
        out[..2].copy_from_slice(&d.to_le_bytes());
        out[2..4].copy_from_slice(&dmin.to_le_bytes());
        let packed = six_bit_pairs(&scales, &minima);
        out[4..16].copy_from_slice(&packed);
        let (scales, minima) = six_bit_values(&packed);
        let under = |j: usize| (d.to_f32() * f32::from(scales[j]), dmin.to_f32() * f32::from(minima[j]));
        let kept =
            |j: usize, x: &[f32; 32]| found_levels(x, found.inverse[first + j], found.base[first + j], 0, steps.top);
        finish(&block_levels::<32>(block, 0, steps.top, under, kept), &mut out[16..]);
    }
}

/// Packs scales and minima of eight runs into twelve bytes, in the positions that the decoder describes.
#[inline(always)]
fn six_bit_pairs(scales: &[u8; 8], minima: &[u8; 8]) -> [u8; 12] {
    std::array::from_fn(|i| match i / 4 {
        0 => scales[i] | scales[i + 4] >> 4 << 6,
        1 => minima[i - 4] | minima[i] >> 4 << 6,
        _ => scales[i - 4] & 15 | (minima[i - 4] & 15) << 4,
    })
}

/// The reverse of [`six_bit_pairs`]. Levels above 63, which the reference can produce, lose bits on the way.
#[inline(always)]
fn six_bit_values(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let scale = |j: usize| if j < 4 { packed[j] & 63 } else { packed[j + 4] & 15 | packed[j - 4] >> 6 << 4 };
    let minimum = |j: usize| if j < 4 { packed[j + 4] & 63 } else { packed[j + 4] >> 4 | packed[j] >> 6 << 4 };
    (std::array::from_fn(scale), std::array::from_fn(minimum))
}

struct Q4;

impl Strips<144> for Q4 {
    #[inline(always)]
    fn encode<const L: usize, const PAIR: usize>(values: &[f32], importance: Option<&[f32]>, out: &mut [[u8; 144]]) {
        let steps = Steps { top: 15, first: -1.0, step: 0.1, last: 20, absolute: false };
        with_six_bit_scales::<PAIR, 144>(values, importance, steps, out, pack::<4, 32, SUPER>);
    }
}

struct Q5;

impl Strips<176> for Q5 {
    #[inline(always)]
    fn encode<const L: usize, const PAIR: usize>(values: &[f32], importance: Option<&[f32]>, out: &mut [[u8; 176]]) {
        let steps = Steps { top: 31, first: -0.5, step: 0.1, last: 15, absolute: false };
        with_six_bit_scales::<PAIR, 176>(values, importance, steps, out, |levels, out| {
            pack::<1, 32, SUPER>(&above(levels, 4), &mut out[..32]);
            pack::<4, 32, SUPER>(levels, &mut out[32..]);
        });
    }
}

struct Q3;

impl Strips<110> for Q3 {
    #[inline(always)]
    fn encode<const L: usize, const PAIR: usize>(values: &[f32], importance: Option<&[f32]>, out: &mut [[u8; 110]]) {
        let mut first_levels = [0u8; STRIP * SUPER];
        let found = match importance {
            Some(importance) => strip::centred::<L, 16>(values, 4, Led::new(values, importance, 2.0)),
            None => strip::refined::<L, 16>(values, 4, &mut first_levels),
        };
        for (i, (block, out)) in values.as_chunks::<SUPER>().0.iter().zip(out).enumerate() {
            let first = i * 16;
            let scales = &found.scale[first..first + 16];
            let (d, sixes): (f32, [u8; 16]) = if importance.is_some() {
                let x = Runs::<1, 16>::load(scales, 0);
                let w = Runs::<1, 16>::load(&found.weight[first..first + 16], 0);
                let of_scales = search::centred(&x, &w, 32);
                let inverse = of_scales.inverse.0[0];
                let level = |x: Lanes<1>| ((Lanes([inverse]) * x).nearest().clamp(-32, 31).0[0] + 32) as u8;
                // If all scales are zero, the reference stores the level 0, which isn't the middle.
                (of_scales.scale.0[0], x.0.map(|x| if inverse == 0.0 { 0 } else { level(x) }))
            } else {
                let top = largest(scales);
                // The reference converts to a signed byte before it clamps.
                let level = |s: f32| (i32::from(nearest(-32.0 / top * s) as i8).clamp(-32, 31) + 32) as u8;
                let levels = std::array::from_fn(|j| if top != 0.0 { level(scales[j]) } else { 0 });
                (if top != 0.0 { 1.0 / (-32.0 / top) } else { 0.0 }, levels)
            };
            let d = f16::from_f32(d);
            let under = |j: usize| (d.to_f32() * (f32::from(sixes[j]) - 32.0), 0.0);
            let kept = |j: usize, x: &[f32; 16]| match importance {
                // The reference stores the level 0 for a run of zeros, which is the lowest one.
                Some(_) if found.inverse[first + j] == 0.0 => [-4; 16],
                Some(_) => found_levels(x, found.inverse[first + j], 0.0, -4, 3),
                None => {
                    let start = (first + j) * 16;
                    std::array::from_fn(|e| i32::from(first_levels[start + e]) - 4)
                }
            };
            let levels = block_levels::<16>(block, -4, 3, under, kept);
            pack::<1, 32, SUPER>(&above(&levels, 2), &mut out[..32]);
            pack::<2, 32, SUPER>(&levels, &mut out[32..96]);
            pack::<4, 8, 16>(&sixes, &mut out[96..104]);
            pack::<2, 4, 16>(&above(&sixes, 4), &mut out[104..108]);
            out[108..].copy_from_slice(&d.to_le_bytes());
        }
    }
}

struct Q6;

impl Strips<210> for Q6 {
    #[inline(always)]
    fn encode<const L: usize, const PAIR: usize>(values: &[f32], importance: Option<&[f32]>, out: &mut [[u8; 210]]) {
        let found = match importance {
            Some(importance) => strip::centred::<L, 16>(values, 32, Importance(importance)),
            None => strip::centred::<L, 16>(values, 32, Square),
        };
        for (i, (block, out)) in values.as_chunks::<SUPER>().0.iter().zip(out).enumerate() {
            let first = i * 16;
            let top = largest(&found.scale[first..first + 16]);
            if top.abs() < search::NOTHING {
                *out = [0; 210];
                continue;
            }
            let inverse = -128.0 / top;
            let d = f16::from_f32(1.0 / inverse);
            let scales: [i8; 16] = std::array::from_fn(|j| nearest(inverse * found.scale[first + j]).min(127) as i8);
            let under = |j: usize| (d.to_f32() * f32::from(scales[j]), 0.0);
            let kept = |j: usize, x: &[f32; 16]| match found.inverse[first + j] {
                0.0 => [-32; 16],
                inverse => found_levels(x, inverse, 0.0, -32, 31),
            };
            let levels = block_levels::<16>(block, -32, 31, under, kept);
            pack::<4, 64, SUPER>(&levels, &mut out[..128]);
            pack::<2, 32, SUPER>(&above(&levels, 4), &mut out[128..192]);
            out[192..208].copy_from_slice(&scales.map(|s| s as u8));
            out[208..].copy_from_slice(&d.to_le_bytes());
        }
    }
}
