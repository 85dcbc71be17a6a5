//! Q8_0: 32 values as one f16 scale and 32 signed bytes.
//!
//! Reference: ggml `ggml-quants.c`, `dequantize_row_q8_0`; gguf-py `quants.py`, `class Q8_0`.

#![allow(non_camel_case_types)] // The name is ggml's.

use super::block::{Block, centred, field, half, half_is_finite, scale};
use crate::dtype::DType;

const ELEMS: usize = 32;
const BYTES: usize = 34;

/// `d: f16`, 32 signed bytes.
pub(super) struct Q8_0;

impl Block<BYTES, ELEMS> for Q8_0 {
    const DTYPE: DType = DType::Q8_0;

    fn decode(block: &[u8; BYTES], out: &mut [f32; ELEMS]) {
        scale::<ELEMS, _, _>(&[half::<0, _>(block)], &centred(field::<2, ELEMS, _>(block), 0), out);
    }

    fn is_finite(block: &[u8; BYTES]) -> bool {
        half_is_finite::<0, _>(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_away_from_zero_and_zero_blocks_stay_zero() {
        let mut values = [0f32; 64];
        values[0] = 127.0;
        values[1] = 2.5;
        values[2] = -2.5;
        let mut bytes = [0; 68];
        crate::quant::encode(DType::Q8_0, &values, &mut bytes);
        assert_eq!(&bytes[2..5], &[127, 3, -3i8 as u8]);
        assert_eq!(&bytes[34..], &[0; 34]);
        let mut back = [1f32; 64];
        crate::quant::decode(DType::Q8_0, &bytes, &mut back);
        assert_eq!(&back[..3], &[127.0, 3.0, -3.0]);
        assert_eq!(back[63], 0.0);
    }
}
