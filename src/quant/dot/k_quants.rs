//! Q2_K to Q6_K, and IQ4_XS: blocks of 256 weights, taken in groups of 64.
//!
//! A group is sixteen words of four bytes. The low half of the words holds its first 32 weights, the high half the
//! others. Where these are other bits of the same bytes, the bytes are loaded into both halves, and each half has a
//! mask of its own. Bits in a higher place stand for a number that is a power of two too large; the scale is divided by
//! it.
#![allow(non_camel_case_types)] // The names are ggml's.

use super::lanes::Lanes;
use super::weights::{Sums, Weights};
use crate::quant::block::field;
use crate::quant::iq4::VALUES;

#[inline(always)]
fn word(bytes: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*bytes)
}

/// The bytes of four words, in order.
#[inline(always)]
fn bytes(words: [u32; 4]) -> [u8; 16] {
    let pair = |low: u32, high: u32| u128::from(low) | u128::from(high) << 32;
    (pair(words[0], words[1]) | pair(words[2], words[3]) << 64).to_le_bytes()
}

/// The scales of the eight runs of Q4_K and Q5_K, then their shifts: see `scales_and_shifts` in
/// [`crate::quant::k_quants`]. Scales of odd runs are divided by `odd`.
#[inline(always)]
fn scales_and_shifts<L: Lanes>(lanes: L, d: &[u8; 2], dmin: &[u8; 2], packed: &[u8; 12], odd: f32) -> L::Floats {
    let (scales, minima) = (word(field::<0, 4, _>(packed)), word(field::<4, 4, _>(packed)));
    let low = word(field::<8, 4, _>(packed));
    let (six, four, two) = (0x3f3f_3f3f, 0x0f0f_0f0f, 0x3030_3030);
    let all = bytes([scales & six, low & four | scales >> 2 & two, minima & six, low >> 4 & four | minima >> 2 & two]);
    let odd = 1.0 / odd;
    let by = [1.0, odd, 1.0, odd, 1.0, odd, 1.0, odd, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0];
    let by = lanes.mul(lanes.halves(lanes.half(d), lanes.half(dmin)), lanes.load(&by));
    lanes.mul(by, lanes.unsigned(&all))
}

pub(super) struct Q4_K;

impl Weights<144, 256, 4> for Q4_K {
    const SUMS: Sums = Sums::Of32;

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8; 144]) -> (L::Floats, L::Floats) {
        let (d, dmin) = (field::<0, 2, _>(block), field::<2, 2, _>(block));
        let all = scales_and_shifts(lanes, d, dmin, field::<4, 12, _>(block), 16.0);
        (all, all)
    }

    #[inline(always)]
    fn group<L: Lanes>(lanes: L, block: &[u8; 144], scales: L::Floats, group: usize) -> ([L::Floats; 4], L::Floats) {
        let packed = field::<16, 128, _>(block).as_chunks::<32>().0;
        let levels = lanes.and(lanes.twice(&packed[group]), 0x0f, 0xf0);
        (lanes.bytes(levels), lanes.two_of(scales, group))
    }
}

pub(super) struct Q5_K;

impl Weights<176, 256, 4> for Q5_K {
    const SUMS: Sums = Sums::Of32;

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8; 176]) -> (L::Floats, L::Floats) {
        let (d, dmin) = (field::<0, 2, _>(block), field::<2, 2, _>(block));
        let all = scales_and_shifts(lanes, d, dmin, field::<4, 12, _>(block), 1.0);
        (all, all)
    }

    #[inline(always)]
    fn group<L: Lanes>(lanes: L, block: &[u8; 176], scales: L::Floats, group: usize) -> ([L::Floats; 4], L::Floats) {
        let packed = field::<48, 128, _>(block).as_chunks::<32>().0;
        let low = lanes.and(lanes.shift(lanes.twice(&packed[group]), 0, -4), 0x0f, 0x0f);
        // The bit of the run's number is moved to place 4.
        let run = 2 * group as i32;
        let high = lanes.shift(lanes.twice(field::<16, 32, _>(block)), 4 - run, 3 - run);
        (lanes.bytes(lanes.or(low, lanes.and(high, 0x10, 0x10))), lanes.two_of(scales, group))
    }
}

pub(super) struct Q6_K;

impl Weights<210, 256, 4> for Q6_K {
    const SUMS: Sums = Sums::Of16;

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8; 210]) -> (L::Floats, L::Floats) {
        let d = lanes.half(field::<208, 2, _>(block));
        let scales = lanes.mul(d, lanes.signed(field::<192, 16, _>(block)));
        (scales, lanes.mul(scales, lanes.splat(-32.0)))
    }

    #[inline(always)]
    fn group<L: Lanes>(lanes: L, block: &[u8; 210], scales: L::Floats, group: usize) -> ([L::Floats; 4], L::Floats) {
        let low = field::<0, 128, _>(block).as_chunks::<64>().0;
        let high = field::<128, 64, _>(block).as_chunks::<32>().0;
        let (half, odd) = (group / 2, group % 2 == 1);
        let low = lanes.shift(lanes.words(&low[half]), if odd { -4 } else { 0 }, if odd { -4 } else { 0 });
        // Two bits of each run, from the lowest ones on, are moved to places 4 and 5.
        let high = lanes.twice(&high[half]);
        let high = if odd { lanes.shift(high, 0, -2) } else { lanes.shift(high, 4, 2) };
        let levels = lanes.or(lanes.and(low, 0x0f, 0x0f), lanes.and(high, 0x30, 0x30));
        (lanes.bytes(levels), lanes.four_of(scales, group))
    }
}

pub(super) struct Q2_K;

/// A fourth for each place of two bits: the runs of 16 are in pairs.
const QUARTERS: [f32; 16] = {
    let mut by = [1.0; 16];
    let mut run = 0;
    while run < 16 {
        by[run] = [1.0, 0.25, 0.0625, 0.015625][run / 2 % 4];
        run += 1;
    }
    by
};

impl Weights<84, 256, 4> for Q2_K {
    const SUMS: Sums = Sums::Of16;

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8; 84]) -> (L::Floats, L::Floats) {
        let (d, dmin) = (lanes.half(field::<80, 2, _>(block)), lanes.half(field::<82, 2, _>(block)));
        let [scales, minima] = lanes.nibbles(field::<0, 16, _>(block));
        let d = lanes.mul(d, lanes.load(&QUARTERS));
        (lanes.mul(d, scales), lanes.mul(lanes.mul(dmin, lanes.splat(-1.0)), minima))
    }

    #[inline(always)]
    fn group<L: Lanes>(lanes: L, block: &[u8; 84], scales: L::Floats, group: usize) -> ([L::Floats; 4], L::Floats) {
        let packed = field::<16, 64, _>(block).as_chunks::<32>().0;
        let (low, high) = if group.is_multiple_of(2) { (0x03, 0x0c) } else { (0x30, 0xc0) };
        let levels = lanes.and(lanes.twice(&packed[group / 2]), low, high);
        (lanes.bytes(levels), lanes.four_of(scales, group))
    }
}

pub(super) struct Q3_K;

impl Weights<110, 256, 4> for Q3_K {
    const SUMS: Sums = Sums::Of16;

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8; 110]) -> (L::Floats, L::Floats) {
        let packed = field::<96, 12, _>(block);
        let (first, second) = (word(field::<0, 4, _>(packed)), word(field::<4, 4, _>(packed)));
        let high = word(field::<8, 4, _>(packed));
        let (four, two) = (0x0f0f_0f0f, 0x3030_3030);
        let scales = bytes([
            first & four | high << 4 & two,
            second & four | high << 2 & two,
            first >> 4 & four | high & two,
            second >> 4 & four | high >> 2 & two,
        ]);
        let d = lanes.half(field::<108, 2, _>(block));
        let scales = lanes.mul(d, lanes.add(lanes.unsigned(&scales), lanes.splat(-32.0)));
        (scales, lanes.mul(scales, lanes.splat(-4.0)))
    }

    #[inline(always)]
    fn group<L: Lanes>(lanes: L, block: &[u8; 110], scales: L::Floats, group: usize) -> ([L::Floats; 4], L::Floats) {
        let packed = field::<32, 64, _>(block).as_chunks::<32>().0;
        let place = 4 * (group % 2) as i32;
        let low = lanes.shift(lanes.twice(&packed[group / 2]), -place, -place - 2);
        // The bit of the run's number is moved to place 2.
        let run = 2 * group as i32;
        let high = lanes.shift(lanes.twice(field::<0, 32, _>(block)), 2 - run, 1 - run);
        let levels = lanes.or(lanes.and(low, 0x03, 0x03), lanes.and(high, 0x04, 0x04));
        (lanes.bytes(levels), lanes.four_of(scales, group))
    }
}

pub(super) struct IQ4_XS;

/// The values for which nibbles stand, plus 128.
const ABOVE: [u8; 16] = {
    let mut above = [0; 16];
    let mut i = 0;
    while i < 16 {
        above[i] = (VALUES[i] as i16 + 128) as u8;
        i += 1;
    }
    above
};

impl Weights<136, 256, 4> for IQ4_XS {
    const SUMS: Sums = Sums::Of32;

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8; 136]) -> (L::Floats, L::Floats) {
        let high = u16::from_le_bytes(*field::<2, 2, _>(block));
        let low = word(field::<4, 4, _>(block));
        let mut scales = [0; 16];
        for (lane, scale) in scales.iter_mut().enumerate() {
            let run = lane % 8;
            *scale = (low >> (4 * run) & 15) as u8 | ((high >> (2 * run) & 3) as u8) << 4;
        }
        let scales = lanes.add(lanes.unsigned(&scales), lanes.splat(-32.0));
        let by = lanes.halves(lanes.splat(1.0), lanes.splat(-128.0));
        let all = lanes.mul(lanes.mul(lanes.half(field::<0, 2, _>(block)), by), scales);
        (all, all)
    }

    #[inline(always)]
    fn group<L: Lanes>(lanes: L, block: &[u8; 136], scales: L::Floats, group: usize) -> ([L::Floats; 4], L::Floats) {
        let packed = field::<8, 128, _>(block).as_chunks::<32>().0;
        let nibbles = lanes.shift_quarters(lanes.quarters_twice(&packed[group]), 0, -4);
        let levels = lanes.values_of(lanes.and(nibbles, 0x0f, 0x0f), &ABOVE);
        (lanes.bytes(levels), lanes.two_of(scales, group))
    }
}
