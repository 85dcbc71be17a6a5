//! IQ4_NL and IQ4_XS: nibbles that stand for sixteen unevenly spaced values.
//!
//! Reference: ggml `ggml-common.h` (the structs and `kvalues_iq4nl`), `ggml-quants.c`
//! (`dequantize_row_iq4_nl`, `dequantize_row_iq4_xs`); gguf-py `quants.py`, the classes of these names.
#![allow(non_camel_case_types)] // The names are ggml's.

use super::block::{Block, centred, field, half, half_is_finite, join, looked_up, scale, unpack};
use crate::dtype::DType;

/// The values for which the nibbles stand.
pub(super) const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// `d: f16`, 16 bytes of nibbles: 32 values.
pub(super) struct IQ4_NL;

impl Block<18, 32> for IQ4_NL {
    const DTYPE: DType = DType::IQ4_NL;

    fn decode(block: &[u8; 18], out: &mut [f32; 32]) {
        let levels = unpack::<4, 16, _, _>(field::<2, 16, _>(block));
        scale::<32, _, _>(&[half::<0, _>(block)], &looked_up(&levels, &VALUES), out);
    }

    fn is_finite(block: &[u8; 18]) -> bool {
        half_is_finite::<0, _>(block)
    }
}

/// `d: f16`, eight scales of six bits around 32 (two high bits each in 2 bytes, four low bits in 4),
/// 128 bytes of nibbles: eight runs of 32 values.
pub(super) struct IQ4_XS;

impl Block<136, 256> for IQ4_XS {
    const DTYPE: DType = DType::IQ4_XS;

    fn decode(block: &[u8; 136], out: &mut [f32; 256]) {
        let d = half::<0, _>(block);
        let high = unpack::<2, 1, _, 8>(field::<2, 2, _>(block));
        let low = unpack::<4, 1, _, 8>(field::<4, 4, _>(block));
        let scales = centred(&join::<4, _>(low, &high), 32).map(|s| d * f32::from(s));
        let levels = unpack::<4, 16, _, _>(field::<8, 128, _>(block));
        scale::<32, _, _>(&scales, &looked_up(&levels, &VALUES), out);
    }

    fn is_finite(block: &[u8; 136]) -> bool {
        half_is_finite::<0, _>(block)
    }
}
