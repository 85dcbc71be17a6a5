//! Q2_K to Q6_K and Q8_K: 256 values in runs of 16 or 32, whose scales are quantized as well.
//!
//! A run's scale is an f16 times a small integer, rounded to f32 before it is multiplied by the level. In types with
//! minima, an f16 times a small integer of the run is subtracted.
//!
//! Reference: ggml `ggml-common.h` (the structs), `ggml-quants.c` (`dequantize_row_q2_K` and so on);
//! gguf-py `quants.py`, the classes of these names.
#![allow(non_camel_case_types)] // The names are ggml's.

use super::block::{Block, centred, field, half, half_is_finite, join, scale, scale_and_shift, unpack};
use crate::dtype::DType;

/// 16 bytes of scale (low nibble) and minimum (high nibble), 64 bytes of two-bit levels, `d: f16`, `dmin: f16`.
pub(super) struct Q2_K;

impl Block<84, 256> for Q2_K {
    const DTYPE: DType = DType::Q2_K;

    fn decode(block: &[u8; 84], out: &mut [f32; 256]) {
        let (d, dmin) = (half::<80, _>(block), half::<82, _>(block));
        let scales = field::<0, 16, _>(block).map(|s| (d * f32::from(s & 15), -(dmin * f32::from(s >> 4))));
        let levels = unpack::<2, 32, _, _>(field::<16, 64, _>(block));
        scale_and_shift::<16, _, _>(&scales, &levels, out);
    }

    fn is_finite(block: &[u8; 84]) -> bool {
        half_is_finite::<80, _>(block) && half_is_finite::<82, _>(block)
    }
}

/// 32 bytes with the third bits of levels, 64 bytes with two low bits each, 12 bytes of six-bit scales around 32, `d:
/// f16`; levels around 4.
pub(super) struct Q3_K;

impl Q3_K {
    /// The low four bits are nibbles of the first eight bytes; the high two bits are in the other four bytes.
    fn scales(packed: &[u8; 12]) -> [i8; 16] {
        let low = unpack::<4, 8, _, _>(field::<0, 8, _>(packed));
        let high = unpack::<2, 4, _, _>(field::<8, 4, _>(packed));
        centred(&join::<4, _>(low, &high), 32)
    }
}

impl Block<110, 256> for Q3_K {
    const DTYPE: DType = DType::Q3_K;

    fn decode(block: &[u8; 110], out: &mut [f32; 256]) {
        let d = half::<108, _>(block);
        let scales = Self::scales(field::<96, 12, _>(block)).map(|s| d * f32::from(s));
        let low = unpack::<2, 32, _, _>(field::<32, 64, _>(block));
        let high = unpack::<1, 32, _, _>(field::<0, 32, _>(block));
        scale::<16, _, _>(&scales, &centred(&join::<2, _>(low, &high), 4), out);
    }

    fn is_finite(block: &[u8; 110]) -> bool {
        half_is_finite::<108, _>(block)
    }
}

/// Scales and negated minima of the eight runs of Q4_K and Q5_K, six bits each in 12 bytes.
///
/// Bytes 0 to 3 hold the scales of the first four runs, 4 to 7 their minima. The two high bits of these eight bytes
/// belong to the other four runs, whose low bits are the nibbles of bytes 8 to 11.
fn scales_and_shifts(d: f32, dmin: f32, packed: &[u8; 12]) -> [(f32, f32); 8] {
    let (scales, minima) = (field::<0, 4, _>(packed), field::<4, 4, _>(packed));
    let low = field::<8, 4, _>(packed);
    let mut runs = [(0.0, 0.0); 8];
    let (first, last) = runs.split_at_mut(4);
    let packed = scales.iter().zip(minima).zip(low);
    for (((s, m), low), (first, last)) in packed.zip(first.iter_mut().zip(last)) {
        let pair = |s: u8, m: u8| (d * f32::from(s), -(dmin * f32::from(m)));
        *first = pair(s & 63, m & 63);
        *last = pair(low & 15 | s >> 2 & 48, low >> 4 | m >> 2 & 48);
    }
    runs
}

/// `d: f16`, `dmin: f16`, 12 bytes of scales and minima, 128 bytes of nibbles.
pub(super) struct Q4_K;

impl Block<144, 256> for Q4_K {
    const DTYPE: DType = DType::Q4_K;

    fn decode(block: &[u8; 144], out: &mut [f32; 256]) {
        let runs = scales_and_shifts(half::<0, _>(block), half::<2, _>(block), field::<4, 12, _>(block));
        let levels = unpack::<4, 32, _, _>(field::<16, 128, _>(block));
        scale_and_shift::<32, _, _>(&runs, &levels, out);
    }

    fn is_finite(block: &[u8; 144]) -> bool {
        half_is_finite::<0, _>(block) && half_is_finite::<2, _>(block)
    }
}

/// As [`Q4_K`], with 32 bytes of fifth bits before the nibbles.
pub(super) struct Q5_K;

impl Block<176, 256> for Q5_K {
    const DTYPE: DType = DType::Q5_K;

    fn decode(block: &[u8; 176], out: &mut [f32; 256]) {
        let runs = scales_and_shifts(half::<0, _>(block), half::<2, _>(block), field::<4, 12, _>(block));
        let high = unpack::<1, 32, _, _>(field::<16, 32, _>(block));
        let levels = join::<4, _>(unpack::<4, 32, _, _>(field::<48, 128, _>(block)), &high);
        scale_and_shift::<32, _, _>(&runs, &levels, out);
    }

    fn is_finite(block: &[u8; 176]) -> bool {
        half_is_finite::<0, _>(block) && half_is_finite::<2, _>(block)
    }
}

/// 128 bytes of low nibbles, 64 bytes of two high bits, 16 signed bytes of scales, `d: f16`; levels around 32.
pub(super) struct Q6_K;

impl Block<210, 256> for Q6_K {
    const DTYPE: DType = DType::Q6_K;

    fn decode(block: &[u8; 210], out: &mut [f32; 256]) {
        let d = half::<208, _>(block);
        let scales = field::<192, 16, _>(block).map(|s| d * f32::from(s as i8));
        let low = unpack::<4, 64, _, _>(field::<0, 128, _>(block));
        let high = unpack::<2, 32, _, _>(field::<128, 64, _>(block));
        scale::<16, _, _>(&scales, &centred(&join::<4, _>(low, &high), 32), out);
    }

    fn is_finite(block: &[u8; 210]) -> bool {
        half_is_finite::<208, _>(block)
    }
}

/// `d: f32`, 256 signed bytes, 16 sums of 16 levels each, which are redundant.
///
/// ggml uses this type for activations in its dot products; gguf-py has no such class.
pub(super) struct Q8_K;

impl Q8_K {
    fn d(block: &[u8; 292]) -> f32 {
        f32::from_le_bytes(*field::<0, 4, _>(block))
    }
}

impl Block<292, 256> for Q8_K {
    const DTYPE: DType = DType::Q8_K;

    fn decode(block: &[u8; 292], out: &mut [f32; 256]) {
        scale::<256, _, _>(&[Self::d(block)], &centred(field::<4, 256, _>(block), 0), out);
    }

    /// An f32 scale can, unlike an f16 one, be finite and still give infinite values.
    fn is_finite(block: &[u8; 292]) -> bool {
        let largest = field::<4, 256, _>(block).iter().fold(0, |max: u8, q| max.max((*q as i8).unsigned_abs()));
        // The scale is checked alone as well: NaN and infinity are wrong even with levels of zero.
        Self::d(block).is_finite() && (Self::d(block) * f32::from(largest)).is_finite()
    }
}
