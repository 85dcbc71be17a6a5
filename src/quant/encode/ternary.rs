//! Quantizes to TQ1_0, TQ2_0, Q1_0 and Q2_0: levels of one or two bits, or base-three digits, with one f16 scale.
//!
//! ggml doesn't use importance for these types, and their blocks don't depend on where rows end.
//!
//! Reference: ggml `ggml-quants.c`, `quantize_row_tq1_0_ref`, `quantize_row_tq2_0_ref`,
//! `quantize_row_q1_0_ref`, `quantize_row_q2_0_ref`.
#![allow(non_camel_case_types)] // The names are ggml's.

use half::f16;

use super::each::{EncodeBlock, each_block, inverse_of_step, largest_magnitude};
use crate::kernel::{Kernel, Routine};

/// Encodes one or more rows as TQ1_0.
pub(super) fn tq1_0(row: &[f32], out: &mut [u8], kernel: Kernel) {
    each_block(TQ1_0, row, out, kernel);
}

/// Encodes one or more rows as TQ2_0.
pub(super) fn tq2_0(row: &[f32], out: &mut [u8], kernel: Kernel) {
    each_block(TQ2_0, row, out, kernel);
}

/// Encodes one or more rows as Q2_0.
pub(super) fn q2_0(row: &[f32], out: &mut [u8], kernel: Kernel) {
    each_block(Q2_0, row, out, kernel);
}

/// Encodes one or more rows as Q1_0.
pub(super) fn q1_0(row: &[f32], out: &mut [u8], kernel: Kernel) {
    kernel.run(Q1_0 { blocks: row.as_chunks().0, out: out.as_chunks_mut().0 });
}

/// `scaled`, rounded with halves away from zero, plus 1: 0, 1 or 2. Apart from rounding, `scaled` is from -1 to 1.
#[inline(always)]
fn digit(scaled: f32) -> u8 {
    1 + u8::from(scaled >= 0.5) - u8::from(scaled <= -0.5)
}

/// The digits and the scale of a block. If a value divided by the scale isn't finite, the reference gets zero from the
/// low bits of an overflowed integer, which has the digit 1.
#[inline(always)]
fn digits(values: &[f32; 256]) -> ([u8; 256], [u8; 2]) {
    let d = largest_magnitude(values);
    let inverse = inverse_of_step(d).unwrap_or(0.0);
    (values.map(|v| digit(v * inverse)), f16::from_f32(d).to_le_bytes())
}

struct TQ1_0;

/// Packs five digits per byte in runs of `RUN` bytes: first the first digits of all bytes, then the second ones, and so
/// on. The byte is a fraction: a number `q` out of 243 is rounded up to one out of 256.
#[inline(always)]
fn pack_digits<const RUN: usize>(digits: &[u8], out: &mut [u8]) {
    let mut numbers = [0u16; RUN];
    for digits in digits.as_chunks::<RUN>().0 {
        for (number, digit) in numbers.iter_mut().zip(digits) {
            *number = *number * 3 + u16::from(*digit);
        }
    }
    for (out, number) in out.iter_mut().zip(numbers) {
        *out = (number * 256).div_ceil(243) as u8;
    }
}

impl EncodeBlock<54, 256> for TQ1_0 {
    #[inline(always)]
    fn encode(values: &[f32; 256], out: &mut [u8; 54]) {
        let (digits, d) = digits(values);
        // The last bytes have four digits, and zero for the fifth.
        let mut last = [0; 20];
        last[..16].copy_from_slice(&digits[240..]);
        pack_digits::<32>(&digits[..160], &mut out[..32]);
        pack_digits::<16>(&digits[160..240], &mut out[32..48]);
        pack_digits::<4>(&last, &mut out[48..52]);
        out[52..].copy_from_slice(&d);
    }
}

struct TQ2_0;

impl EncodeBlock<66, 256> for TQ2_0 {
    #[inline(always)]
    fn encode(values: &[f32; 256], out: &mut [u8; 66]) {
        let (digits, d) = digits(values);
        for (out, digits) in out[..64].as_chunks_mut::<32>().0.iter_mut().zip(digits.as_chunks::<128>().0) {
            for (i, out) in out.iter_mut().enumerate() {
                *out = digits[i] | digits[32 + i] << 2 | digits[64 + i] << 4 | digits[96 + i] << 6;
            }
        }
        out[64..].copy_from_slice(&d);
    }
}

struct Q2_0;

impl EncodeBlock<18, 64> for Q2_0 {
    #[inline(always)]
    fn encode(values: &[f32; 64], out: &mut [u8; 18]) {
        let d = largest_magnitude(values);
        // The reference gets the smallest integer from an overflow here, which has the level 0.
        let levels = match inverse_of_step(d) {
            Some(inverse) => values.map(|v| digit(v * inverse)),
            None => [0; 64],
        };
        out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        for (out, levels) in out[2..].iter_mut().zip(levels.as_chunks().0) {
            // This factor moves the four levels next to each other, into the highest byte.
            const GATHER: u32 = 1 << 24 | 1 << 18 | 1 << 12 | 1 << 6;
            *out = (u32::from_le_bytes(*levels).wrapping_mul(GATHER) >> 24) as u8;
        }
    }
}

struct Q1_0<'a> {
    blocks: &'a [[f32; 128]],
    out: &'a mut [[u8; 18]],
}

impl Routine for Q1_0<'_> {
    /// The scale is a mean, whose sum must be taken in order. Several blocks run side by side, so that additions don't
    /// wait for each other.
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        let (groups, rest) = self.blocks.as_chunks::<8>();
        let (out_groups, out_rest) = self.out.as_chunks_mut::<8>();
        for (blocks, out) in groups.iter().zip(out_groups) {
            signs_and_means(blocks, out);
        }
        for (block, out) in rest.iter().zip(out_rest) {
            signs_and_means(&[*block], std::array::from_mut(out));
        }
    }
}

#[inline(always)]
fn signs_and_means<const N: usize>(blocks: &[[f32; 128]; N], out: &mut [[u8; 18]; N]) {
    let mut sums = [0.0; N];
    for i in 0..128 {
        for (sum, block) in sums.iter_mut().zip(blocks) {
            *sum += block[i].abs();
        }
    }
    for ((block, sum), out) in blocks.iter().zip(sums).zip(out) {
        out[..2].copy_from_slice(&f16::from_f32(sum / 128.0).to_le_bytes());
        let bits = block.map(|v| u8::from(v >= 0.0));
        for (out, bits) in out[2..].iter_mut().zip(bits.as_chunks().0) {
            // This factor moves the eight bits next to each other, into the highest byte.
            const GATHER: u64 = 0x0102_0408_1020_4080;
            *out = (u64::from_le_bytes(*bits).wrapping_mul(GATHER) >> 56) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    type Encode = fn(&[f32], &mut [u8], Kernel);
    const TYPES: [(DType, Encode); 4] =
        [(DType::TQ1_0, tq1_0), (DType::TQ2_0, tq2_0), (DType::Q1_0, q1_0), (DType::Q2_0, q2_0)];

    #[test]
    fn kernels_agree_and_what_a_type_holds_is_kept() {
        let held = |two_levels: bool| {
            move |i: usize| if two_levels { [0.5, -0.5][i * i % 7 % 2] } else { [0.0, 0.5, -0.5][i * i % 7 % 3] }
        };
        for (dtype, encode) in TYPES {
            let row: Vec<f32> = (0..256 * 19).map(held(dtype == DType::Q1_0)).collect();
            let mut out = vec![0xaa; row.len() / dtype.block_elems() * dtype.block_bytes()];
            encode(&row, &mut out, Kernel::SCALAR);
            let mut back = vec![0.0; row.len()];
            crate::quant::decode(dtype, &out, &mut back);
            assert_eq!(back, row, "{dtype}");
            for kernel in Kernel::NAMES.into_iter().filter_map(Kernel::named) {
                let mut other = vec![0xaa; out.len()];
                encode(&row, &mut other, kernel);
                assert!(other == out, "{dtype}");
            }
        }
    }

    #[test]
    fn halves_round_away_from_zero() {
        assert_eq!([-1.0, -0.5, -0.499_999_97, -0.0, 0.499_999_97, 0.5, 1.0].map(digit), [0, 0, 1, 1, 1, 2, 2]);
    }

    #[test]
    fn zeros_and_values_too_small_for_an_inverse() {
        let bytes = |encode: Encode, value: f32, len: usize| {
            let mut out = vec![0xaa; len];
            encode(&[value; 256], &mut out, Kernel::best());
            out
        };
        for value in [0.0, 1e-40] {
            let tq1_0 = bytes(tq1_0, value, 54);
            // Five digits of 1 make 121 of 243, four of them and a zero make 120.
            assert_eq!((&tq1_0[..48], &tq1_0[48..]), (&[128; 48][..], &[127, 127, 127, 127, 0, 0][..]));
            let tq2_0 = bytes(tq2_0, value, 66);
            assert_eq!((&tq2_0[..64], &tq2_0[64..]), (&[0x55; 64][..], &[0; 2][..]));
        }
        assert_eq!(bytes(q2_0, 0.0, 72)[2..18], [0x55; 16]);
        assert_eq!(bytes(q2_0, 1e-40, 72)[2..18], [0; 16]);
        assert_eq!(bytes(q1_0, -0.0, 36)[2..18], [0xff; 16]);
    }
}
