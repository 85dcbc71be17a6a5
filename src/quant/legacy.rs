//! Q4_0, Q4_1, Q5_0, Q5_1, Q8_1: 32 values with one f16 scale, some with an f16 shift.
//!
//! Reference: ggml `ggml-common.h` (the structs), `ggml-quants.c` (`dequantize_row_q4_0` and so on);
//! gguf-py `quants.py`, the classes of these names.
#![allow(non_camel_case_types)] // The names are ggml's.

use super::block::{Block, centred, field, half, half_is_finite, join, scale, scale_and_shift, unpack};
use crate::dtype::DType;

/// `d: f16`, 16 bytes of nibbles around 8.
pub(super) struct Q4_0;

impl Block<18, 32> for Q4_0 {
    const DTYPE: DType = DType::Q4_0;

    fn decode(block: &[u8; 18], out: &mut [f32; 32]) {
        let levels = unpack::<4, 16, _, _>(field::<2, 16, _>(block));
        scale::<32, _, _>(&[half::<0, _>(block)], &centred(&levels, 8), out);
    }

    fn is_finite(block: &[u8; 18]) -> bool {
        half_is_finite::<0, _>(block)
    }
}

/// `d: f16`, `m: f16`, 16 bytes of nibbles.
pub(super) struct Q4_1;

impl Block<20, 32> for Q4_1 {
    const DTYPE: DType = DType::Q4_1;

    fn decode(block: &[u8; 20], out: &mut [f32; 32]) {
        let levels = unpack::<4, 16, _, _>(field::<4, 16, _>(block));
        scale_and_shift::<32, _, _>(&[(half::<0, _>(block), half::<2, _>(block))], &levels, out);
    }

    fn is_finite(block: &[u8; 20]) -> bool {
        half_is_finite::<0, _>(block) && half_is_finite::<2, _>(block)
    }
}

/// `d: f16`, 4 bytes of fifth bits in order, 16 bytes of nibbles; levels around 16.
pub(super) struct Q5_0;

impl Block<22, 32> for Q5_0 {
    const DTYPE: DType = DType::Q5_0;

    fn decode(block: &[u8; 22], out: &mut [f32; 32]) {
        let levels = five_bits(field::<2, 4, _>(block), field::<6, 16, _>(block));
        scale::<32, _, _>(&[half::<0, _>(block)], &centred(&levels, 16), out);
    }

    fn is_finite(block: &[u8; 22]) -> bool {
        half_is_finite::<0, _>(block)
    }
}

/// `d: f16`, `m: f16`, 4 bytes of fifth bits in order, 16 bytes of nibbles.
pub(super) struct Q5_1;

impl Block<24, 32> for Q5_1 {
    const DTYPE: DType = DType::Q5_1;

    fn decode(block: &[u8; 24], out: &mut [f32; 32]) {
        let levels = five_bits(field::<4, 4, _>(block), field::<8, 16, _>(block));
        scale_and_shift::<32, _, _>(&[(half::<0, _>(block), half::<2, _>(block))], &levels, out);
    }

    fn is_finite(block: &[u8; 24]) -> bool {
        half_is_finite::<0, _>(block) && half_is_finite::<2, _>(block)
    }
}

fn five_bits(high: &[u8; 4], low: &[u8; 16]) -> [u8; 32] {
    join::<4, _>(unpack::<4, 16, _, _>(low), &unpack::<1, 1, _, _>(high))
}

/// `d: f16`, `s: f16` (`d` times the sum of the levels), 32 signed bytes.
///
/// ggml uses this type for activations in its dot products and has no `dequantize_row_q8_1`; the
/// values are those in the dot products, `d * q`. The sum is redundant and isn't read.
pub(super) struct Q8_1;

impl Block<36, 32> for Q8_1 {
    const DTYPE: DType = DType::Q8_1;

    fn decode(block: &[u8; 36], out: &mut [f32; 32]) {
        scale::<32, _, _>(&[half::<0, _>(block)], &centred(field::<4, 32, _>(block), 0), out);
    }

    fn is_finite(block: &[u8; 36]) -> bool {
        half_is_finite::<0, _>(block) && half_is_finite::<2, _>(block)
    }
}
