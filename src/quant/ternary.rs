//! TQ1_0, TQ2_0, Q1_0, Q2_0: values of one or two bits, or base-three digits, with one f16 scale.
//!
//! Reference: ggml `ggml-common.h` (the structs), `ggml-quants.c` (`dequantize_row_tq1_0` and so on); gguf-py
//! `quants.py`, `class TQ1_0`, `class TQ2_0`. gguf-py has no Q1_0 and Q2_0, so these follow ggml alone.
#![allow(non_camel_case_types)] // The names are ggml's.

use super::block::{Block, centred, field, half, half_is_finite, scale, unpack};
use crate::dtype::DType;

/// 48 bytes of five base-three digits each, 4 bytes of four digits each, `d: f16`; digits around 1.
pub(super) struct TQ1_0;

/// Unpacks the digits in runs of `RUN` bytes: first the first digits of all bytes in a run, then the second ones, and
/// so on.
///
/// A byte is a fraction of 256. Multiplying it by three carries its next digit past 256, and multiplying by a power of
/// three modulo 256 drops the digits before it.
fn digits<const RUN: usize>(packed: &[u8], digits: &mut [i8]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    for (digits, power) in digits.as_chunks_mut::<RUN>().0.iter_mut().zip(POWERS) {
        for (digit, byte) in digits.iter_mut().zip(packed) {
            *digit = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as i8 - 1;
        }
    }
}

impl Block<54, 256> for TQ1_0 {
    const DTYPE: DType = DType::TQ1_0;

    fn decode(block: &[u8; 54], out: &mut [f32; 256]) {
        let mut levels = [0; 256];
        let (first, rest) = levels.split_at_mut(32 * 5);
        let (second, third) = rest.split_at_mut(16 * 5);
        digits::<32>(field::<0, 32, _>(block), first);
        digits::<16>(field::<32, 16, _>(block), second);
        digits::<4>(field::<48, 4, _>(block), third);
        scale::<256, _, _>(&[half::<52, _>(block)], &levels, out);
    }

    fn is_finite(block: &[u8; 54]) -> bool {
        half_is_finite::<52, _>(block)
    }
}

/// 64 bytes of two-bit levels around 1, `d: f16`.
pub(super) struct TQ2_0;

impl Block<66, 256> for TQ2_0 {
    const DTYPE: DType = DType::TQ2_0;

    fn decode(block: &[u8; 66], out: &mut [f32; 256]) {
        let levels = unpack::<2, 32, _, _>(field::<0, 64, _>(block));
        scale::<256, _, _>(&[half::<64, _>(block)], &centred(&levels, 1), out);
    }

    fn is_finite(block: &[u8; 66]) -> bool {
        half_is_finite::<64, _>(block)
    }
}

/// `d: f16`, 16 bytes of bits in order: `d` where set, `-d` where not.
pub(super) struct Q1_0;

impl Block<18, 128> for Q1_0 {
    const DTYPE: DType = DType::Q1_0;

    fn decode(block: &[u8; 18], out: &mut [f32; 128]) {
        let mut levels = centred(&unpack::<1, 1, _, _>(field::<2, 16, _>(block)), 0);
        for level in &mut levels {
            *level = 2 * *level - 1;
        }
        scale::<128, _, _>(&[half::<0, _>(block)], &levels, out);
    }

    fn is_finite(block: &[u8; 18]) -> bool {
        half_is_finite::<0, _>(block)
    }
}

/// `d: f16`, 16 bytes of two-bit levels in order, around 1.
pub(super) struct Q2_0;

impl Block<18, 64> for Q2_0 {
    const DTYPE: DType = DType::Q2_0;

    fn decode(block: &[u8; 18], out: &mut [f32; 64]) {
        let levels = unpack::<2, 1, _, _>(field::<2, 16, _>(block));
        scale::<64, _, _>(&[half::<0, _>(block)], &centred(&levels, 1), out);
    }

    fn is_finite(block: &[u8; 18]) -> bool {
        half_is_finite::<0, _>(block)
    }
}
