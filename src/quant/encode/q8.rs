//! Quantizes to Q8_1 and Q8_K: bytes and their sums, which ggml uses for activations.
//!
//! Reference: ggml `ggml-quants.c`, `quantize_row_q8_1_ref`, `quantize_row_q8_K_ref`.
#![allow(non_camel_case_types)] // The names are ggml's.

use half::f16;

use super::each::{EncodeBlock, each_block, inverse_of_step, largest_magnitude};
use super::lanes::Lanes;
use crate::kernel::Kernel;

/// Encodes one or more rows as Q8_1.
pub(super) fn q8_1(row: &[f32], out: &mut [u8], kernel: Kernel) {
    each_block(Q8_1, row, out, kernel);
}

/// Encodes one or more rows as Q8_K. For blocks of zeros ggml doesn't write the sums; here they are
/// zero.
pub(super) fn q8_k(row: &[f32], out: &mut [u8], kernel: Kernel) {
    each_block(Q8_K, row, out, kernel);
}

struct Q8_1;

/// Rounds to the nearest integer, halves away from zero. Adding the float just below a half carries
/// exactly for fractions of a half and above.
#[inline(always)]
fn round(v: f32) -> i32 {
    (v + 0.499_999_97_f32.copysign(v)) as i32
}

impl EncodeBlock<36, 32> for Q8_1 {
    #[inline(always)]
    fn encode(values: &[f32; 32], out: &mut [u8; 36]) {
        let d = largest_magnitude(values) / 127.0;
        // Numbers that aren't finite overflow the reference's integers, whose low bits are zero.
        let inverse = inverse_of_step(d).unwrap_or(0.0);
        let mut levels = [0; 32];
        for (level, v) in levels.iter_mut().zip(values) {
            *level = round(v * inverse);
        }
        let sum: i32 = levels.iter().sum();
        out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        out[2..4].copy_from_slice(&f16::from_f32(sum as f32 * d).to_le_bytes());
        for (out, level) in out[4..].iter_mut().zip(levels) {
            *out = level as u8;
        }
    }
}

struct Q8_K;

impl EncodeBlock<292, 256> for Q8_K {
    #[inline(always)]
    fn encode(values: &[f32; 256], out: &mut [u8; 292]) {
        let magnitude = largest_magnitude(values);
        let Some(largest) = values.iter().find(|v| v.abs() == magnitude).filter(|v| **v != 0.0) else {
            out.fill(0);
            return;
        };
        let scale = -127.0 / largest;
        // Converted to bytes without a lower limit, as in the reference: an infinite scale gives
        // numbers outside any range.
        let levels = Lanes(values.map(|v| scale * v)).nearest().0.map(|level| level.min(127) as i8);
        out[..4].copy_from_slice(&(1.0 / scale).to_le_bytes());
        let (bytes, sums) = out[4..].split_at_mut(256);
        for (out, level) in bytes.iter_mut().zip(levels) {
            *out = level as u8;
        }
        for (out, levels) in sums.as_chunks_mut().0.iter_mut().zip(levels.as_chunks::<16>().0) {
            *out = levels.iter().map(|level| i16::from(*level)).sum::<i16>().to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_away_from_zero() {
        let values = [0.499_999_97, 0.5, -0.5, 1.5, 2.5, -2.5, 2.499_999_8, 126.5, -127.0, -0.0];
        assert_eq!(values.map(round), [0, 1, -1, 2, 3, -3, 2, 127, -127, 0]);
    }

    #[test]
    fn sums_are_those_of_the_bytes() {
        let row: Vec<f32> = (0..256).map(|i| (i % 11) as f32 - 4.5).collect();
        let mut out = [0; 292];
        q8_k(&row, &mut out, Kernel::best());
        let (bytes, sums) = out[4..].split_at(256);
        for (bytes, sum) in bytes.as_chunks::<16>().0.iter().zip(sums.as_chunks().0) {
            assert_eq!(i16::from_le_bytes(*sum), bytes.iter().map(|b| i16::from(*b as i8)).sum::<i16>());
        }
        let mut out = [0; 36];
        q8_1(&row[..32], &mut out, Kernel::best());
        let sum: i32 = out[4..].iter().map(|b| i32::from(*b as i8)).sum();
        assert_eq!(out[2..4], f16::from_f32(sum as f32 * (5.5 / 127.0)).to_le_bytes());
    }

    #[test]
    fn zeros_and_subnormal_numbers_are_zero() {
        for value in [0.0, 1e-42] {
            let (mut q8_1_out, mut q8_k_out) = ([0xaa; 36], [0xaa; 292]);
            q8_1(&[value; 32], &mut q8_1_out, Kernel::best());
            q8_k(&[value; 256], &mut q8_k_out, Kernel::best());
            assert_eq!(q8_1_out, [0; 36]);
            assert_eq!(q8_k_out[4..], [0; 288]);
        }
    }
}
