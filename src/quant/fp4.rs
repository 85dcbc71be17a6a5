//! MXFP4 and NVFP4: four-bit floats (E2M1) with scales that are eight-bit floats.
//!
//! ggml doubles the values of E2M1, so that they are integers, and halves the scales.
//!
//! Reference: ggml `ggml-common.h` (the structs), `ggml-impl.h` (`ggml_e8m0_to_fp32_half`,
//! `ggml_ue4m3_to_fp32`), `ggml-quants.c`; gguf-py `quants.py`, `class MXFP4`, `class NVFP4`.

use super::block::{Block, field, looked_up, scale, unpack};
use crate::dtype::DType;

/// The values of E2M1, doubled.
pub(super) const DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `e: E8M0`, 16 bytes of nibbles: 32 values.
pub(super) struct Mxfp4;

/// Half of `2^(e - 127)`. The two smallest results are subnormal in f32.
pub(super) fn half_of_e8m0(e: u8) -> f32 {
    f32::from_bits(match e {
        0 | 1 => 0x0020_0000 << e,
        _ => u32::from(e - 1) << 23,
    })
}

impl Block<17, 32> for Mxfp4 {
    const DTYPE: DType = DType::MXFP4;

    fn decode(block: &[u8; 17], out: &mut [f32; 32]) {
        let [e] = *field::<0, 1, _>(block);
        let levels = unpack::<4, 16, _, _>(field::<1, 16, _>(block));
        scale::<32, _, _>(&[half_of_e8m0(e)], &looked_up(&levels, &DOUBLED), out);
    }

    /// 255 is NaN in E8M0. ggml's arithmetic treats it as a number, but its check of files refuses it. A few scales
    /// below 255 are finite, but overflow f32 with large enough values.
    fn is_finite(block: &[u8; 17]) -> bool {
        let [e] = *field::<0, 1, _>(block);
        let values_are_finite = || {
            let mut values = [0.0; 32];
            Self::decode(block, &mut values);
            values.iter().all(|v| v.is_finite())
        };
        e < 253 || e < 255 && values_are_finite()
    }
}

/// Four scales of UE4M3, 32 bytes of nibbles: four runs of 16 values.
pub(super) struct Nvfp4;

/// Half of an unsigned E4M3. ggml treats the type's NaN, 127, as zero, and otherwise ignores the sign bit, so every
/// byte is a finite number.
pub(super) fn half_of_ue4m3(x: u8) -> f32 {
    let (exponent, mantissa) = (x >> 3 & 15, x & 7);
    match (x, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => f32::from(mantissa) * (1.0 / 1024.0),
        // 2^(exponent - 8): the bias of 7, and the half.
        _ => f32::from_bits((u32::from(exponent) + 127 - 8) << 23 | u32::from(mantissa) << 20),
    }
}

impl Block<36, 64> for Nvfp4 {
    const DTYPE: DType = DType::NVFP4;

    fn decode(block: &[u8; 36], out: &mut [f32; 64]) {
        let scales = field::<0, 4, _>(block).map(half_of_ue4m3);
        let levels = unpack::<4, 8, _, _>(field::<4, 32, _>(block));
        scale::<16, _, _>(&scales, &looked_up(&levels, &DOUBLED), out);
    }

    fn is_finite(_: &[u8; 36]) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_that_is_nan_or_carries_values_past_f32_is_not_finite() {
        let block = |e: u8, nibbles: u8| {
            let mut block = [nibbles; 17];
            block[0] = e;
            block
        };
        assert!(!Mxfp4::is_finite(&block(255, 0)), "NaN, whatever the values");
        assert!(Mxfp4::is_finite(&block(254, 0x33)), "1.5 * 2^127");
        assert!(!Mxfp4::is_finite(&block(254, 0x34)), "2 * 2^127");
        assert!(Mxfp4::is_finite(&block(253, 0x55)), "3 * 2^126");
        assert!(!Mxfp4::is_finite(&block(253, 0xf0)), "-6 * 2^126");
        assert!(Mxfp4::is_finite(&block(252, 0xff)), "-6 * 2^125");
    }

    #[test]
    fn every_scale_is_half_of_its_value() {
        for (e, value) in [(0, -128), (1, -127), (2, -126), (127, -1), (254, 126)] {
            assert_eq!(half_of_e8m0(e), (f64::from(value)).exp2() as f32, "{e}");
        }
        for (x, value) in [(0, 0.0), (1, 1.0 / 1024.0), (8, 1.0 / 128.0), (0x38, 0.5), (0x7e, 224.0), (0x7f, 0.0)] {
            assert_eq!(half_of_ue4m3(x), value, "{x:#x}");
        }
        assert_eq!(half_of_ue4m3(0x80), 0.0);
        assert_eq!(half_of_ue4m3(0xff), 240.0);
    }
}
