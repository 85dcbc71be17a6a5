//! Blocks of 32 weights, and plain numbers, 32 at a time: one group each, in order.
#![allow(non_camel_case_types)] // The names are ggml's.

use super::lanes::Lanes;
use super::weights::Weights;
use crate::quant::block::field;
use crate::quant::{fp4, iq4};

/// The f16 at the start of a block, in all lanes.
#[inline(always)]
fn first_half<L: Lanes, const BYTES: usize>(lanes: L, block: &[u8; BYTES]) -> (L::Floats, L::Floats) {
    (lanes.half(field::<0, 2, _>(block)), lanes.splat(0.0))
}

/// The two f16 at the start of a block.
#[inline(always)]
fn two_halves<L: Lanes, const BYTES: usize>(lanes: L, block: &[u8; BYTES]) -> (L::Floats, L::Floats) {
    (lanes.half(field::<0, 2, _>(block)), lanes.half(field::<2, 2, _>(block)))
}

pub(super) struct Q8_0;

impl Weights<34, 32, 2> for Q8_0 {
    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8; 34]) -> (L::Floats, L::Floats) {
        first_half(lanes, block)
    }

    #[inline(always)]
    fn group<L: Lanes>(lanes: L, block: &[u8; 34], d: L::Floats, _: usize) -> ([L::Floats; 2], L::Floats) {
        ([lanes.signed(field::<2, 16, _>(block)), lanes.signed(field::<18, 16, _>(block))], d)
    }
}

/// The values for which the nibbles of Q4_0 stand.
const AROUND_8: [i8; 16] = [-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7];

pub(super) struct Q4_0;

impl Weights<18, 32, 2> for Q4_0 {
    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8; 18]) -> (L::Floats, L::Floats) {
        first_half(lanes, block)
    }

    #[inline(always)]
    fn group<L: Lanes>(lanes: L, block: &[u8; 18], d: L::Floats, _: usize) -> ([L::Floats; 2], L::Floats) {
        (lanes.looked_up(field::<2, 16, _>(block), &AROUND_8), d)
    }
}

pub(super) struct IQ4_NL;

impl Weights<18, 32, 2> for IQ4_NL {
    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8; 18]) -> (L::Floats, L::Floats) {
        first_half(lanes, block)
    }

    #[inline(always)]
    fn group<L: Lanes>(lanes: L, block: &[u8; 18], d: L::Floats, _: usize) -> ([L::Floats; 2], L::Floats) {
        (lanes.looked_up(field::<2, 16, _>(block), &iq4::VALUES), d)
    }
}

pub(super) struct Mxfp4;

impl Weights<17, 32, 2> for Mxfp4 {
    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8; 17]) -> (L::Floats, L::Floats) {
        (lanes.splat(fp4::half_of_e8m0(block[0])), lanes.splat(0.0))
    }

    #[inline(always)]
    fn group<L: Lanes>(lanes: L, block: &[u8; 17], d: L::Floats, _: usize) -> ([L::Floats; 2], L::Floats) {
        (lanes.looked_up(field::<1, 16, _>(block), &fp4::DOUBLED), d)
    }
}

/// A level of five bits is 16 less than it seems where its fifth bit, which is stored elsewhere, is not set.
pub(super) struct Q5_0;

impl Weights<22, 32, 2> for Q5_0 {
    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8; 22]) -> (L::Floats, L::Floats) {
        first_half(lanes, block)
    }

    #[inline(always)]
    fn group<L: Lanes>(lanes: L, block: &[u8; 22], d: L::Floats, _: usize) -> ([L::Floats; 2], L::Floats) {
        let [low, high] = lanes.nibbles(field::<6, 16, _>(block));
        let (first, second) = (field::<2, 2, _>(block), field::<4, 2, _>(block));
        let low = lanes.add_where(!u16::from_le_bytes(*first), -16.0, low);
        ([low, lanes.add_where(!u16::from_le_bytes(*second), -16.0, high)], d)
    }
}

/// Weights are made of all numbers before the product, which takes no more instructions than sums would.
pub(super) struct Q4_1;

impl Weights<20, 32, 2> for Q4_1 {
    const SCALED: bool = false;

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8; 20]) -> (L::Floats, L::Floats) {
        first_half(lanes, block)
    }

    #[inline(always)]
    fn group<L: Lanes>(lanes: L, block: &[u8; 20], _: L::Floats, _: usize) -> ([L::Floats; 2], L::Floats) {
        let (d, m) = two_halves(lanes, block);
        let [low, high] = lanes.nibbles(field::<4, 16, _>(block));
        ([lanes.mul_add(low, d, m), lanes.mul_add(high, d, m)], d)
    }
}

pub(super) struct Q5_1;

impl Weights<24, 32, 2> for Q5_1 {
    const SCALED: bool = false;

    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, block: &[u8; 24]) -> (L::Floats, L::Floats) {
        first_half(lanes, block)
    }

    #[inline(always)]
    fn group<L: Lanes>(lanes: L, block: &[u8; 24], _: L::Floats, _: usize) -> ([L::Floats; 2], L::Floats) {
        let (d, m) = two_halves(lanes, block);
        let [low, high] = lanes.nibbles(field::<8, 16, _>(block));
        let (first, second) = (field::<4, 2, _>(block), field::<6, 2, _>(block));
        let low = lanes.add_where(u16::from_le_bytes(*first), 16.0, low);
        let high = lanes.add_where(u16::from_le_bytes(*second), 16.0, high);
        ([lanes.mul_add(low, d, m), lanes.mul_add(high, d, m)], d)
    }
}

pub(super) struct F32;

impl Weights<128, 32, 2> for F32 {
    const SCALED: bool = false;

    #[inline(always)]
    fn group<L: Lanes>(lanes: L, block: &[u8; 128], one: L::Floats, _: usize) -> ([L::Floats; 2], L::Floats) {
        ([lanes.singles(field::<0, 64, _>(block)), lanes.singles(field::<64, 64, _>(block))], one)
    }
}

pub(super) struct F16;

impl Weights<64, 32, 2> for F16 {
    const SCALED: bool = false;

    #[inline(always)]
    fn group<L: Lanes>(lanes: L, block: &[u8; 64], one: L::Floats, _: usize) -> ([L::Floats; 2], L::Floats) {
        ([lanes.halfs(field::<0, 32, _>(block)), lanes.halfs(field::<32, 32, _>(block))], one)
    }
}

pub(super) struct BF16;

impl Weights<64, 32, 2> for BF16 {
    const SCALED: bool = false;

    #[inline(always)]
    fn group<L: Lanes>(lanes: L, block: &[u8; 64], one: L::Floats, _: usize) -> ([L::Floats; 2], L::Floats) {
        ([lanes.brains(field::<0, 32, _>(block)), lanes.brains(field::<32, 32, _>(block))], one)
    }
}
