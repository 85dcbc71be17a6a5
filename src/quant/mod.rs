//! Element types as numbers: decoding to f32, and encoding from f32 with one rounding.

mod q8_0;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::dtype::DType;

/// Whether [`decode`] knows `dtype`.
pub fn can_decode(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F64 | DType::Q8_0)
}

/// Whether [`encode`] knows `dtype`.
pub fn can_encode(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::Q8_0)
}

/// Decodes the little-endian `bytes` of `out.len()` elements into f32.
///
/// F16, BF16 and Q8_0 are exact; F64 rounds to nearest even.
///
/// # Panics
/// Where [`can_decode`] says no, or the lengths don't belong together: both are checked when a
/// plan is made, before any byte is read.
pub fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(dtype.bytes_of(out.len() as u64, out.len() as u64), Some(bytes.len() as u64), "lengths of {dtype}");
    match dtype {
        DType::F32 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*b);
            }
        }
        DType::F64 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *out = f64::from_le_bytes(*b) as f32;
            }
        }
        DType::BF16 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = bf16::from_le_bytes(*b).to_f32();
            }
        }
        DType::F16 => {
            // Through a small aligned buffer: a map's bytes need not be aligned.
            let mut buffer = [f16::ZERO; 256];
            for (out, bytes) in out.chunks_mut(256).zip(bytes.chunks(512)) {
                let buffer = &mut buffer[..out.len()];
                for (h, b) in buffer.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *h = f16::from_le_bytes(*b);
                }
                buffer.convert_to_f32_slice(out);
            }
        }
        DType::Q8_0 => q8_0::decode(bytes, out),
        other => unreachable!("{other} is not decoded; plans check can_decode"),
    }
}

/// Encodes `values` as `dtype`, little-endian, each rounded once (to nearest even for F16 and
/// BF16, as numpy and torch do; Q8_0 as ggml does).
///
/// # Panics
/// As [`decode`].
pub fn encode(dtype: DType, values: &[f32], out: &mut [u8]) {
    assert_eq!(dtype.bytes_of(values.len() as u64, values.len() as u64), Some(out.len() as u64), "lengths of {dtype}");
    match dtype {
        DType::F32 => {
            for (b, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *b = v.to_le_bytes();
            }
        }
        DType::BF16 => {
            for (b, v) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *b = bf16::from_f32(*v).to_le_bytes();
            }
        }
        DType::F16 => {
            let mut buffer = [f16::ZERO; 256];
            for (values, out) in values.chunks(256).zip(out.chunks_mut(512)) {
                let buffer = &mut buffer[..values.len()];
                buffer.convert_from_f32_slice(values);
                for (b, h) in out.as_chunks_mut::<2>().0.iter_mut().zip(&*buffer) {
                    *b = h.to_le_bytes();
                }
            }
        }
        DType::Q8_0 => q8_0::encode(values, out),
        other => unreachable!("{other} is not encoded; plans check can_encode"),
    }
}

/// Whether the bytes of a floating-point `dtype` hold a NaN or an infinity. Types without
/// such values answer false; of Q8_0 the block scales are looked at.
pub fn has_non_finite(dtype: DType, bytes: &[u8]) -> bool {
    // An exponent of all ones is the mark of both. Folded without early exit, which vectorizes.
    let half_words =
        |mask: u16| bytes.as_chunks::<2>().0.iter().fold(false, |bad, b| bad | (u16::from_le_bytes(*b) & mask == mask));
    match dtype {
        DType::F16 => half_words(0x7c00),
        DType::BF16 => half_words(0x7f80),
        DType::F32 => bytes
            .as_chunks::<4>()
            .0
            .iter()
            .fold(false, |bad, b| bad | (u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000)),
        DType::F64 => bytes.as_chunks::<8>().0.iter().fold(false, |bad, b| bad | !f64::from_le_bytes(*b).is_finite()),
        DType::Q8_0 => q8_0::has_non_finite(bytes),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_then_decoding_is_exact_for_values_the_type_holds() {
        let values: Vec<f32> = (0..600).map(|i| (i as f32 - 300.0) * 0.25).collect();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let mut bytes = vec![0; values.len() * dtype.block_bytes()];
            encode(dtype, &values[..], &mut bytes);
            let mut back = vec![0.0; values.len()];
            decode(dtype, &bytes, &mut back);
            let exact = values.iter().zip(&back).filter(|(a, b)| a == b).count();
            assert!(exact == values.len() || dtype == DType::BF16 && exact > 400, "{dtype}: {exact}");
        }
    }

    #[test]
    fn halves_round_to_nearest_even() {
        let mut out = [0; 2];
        encode(DType::BF16, &[f32::from_bits(0x3f80_8000)], &mut out);
        assert_eq!(u16::from_le_bytes(out), 0x3f80);
        encode(DType::BF16, &[f32::from_bits(0x3f81_8000)], &mut out);
        assert_eq!(u16::from_le_bytes(out), 0x3f82);
        encode(DType::F16, &[f32::from_bits(0x3f80_1000)], &mut out);
        assert_eq!(u16::from_le_bytes(out), 0x3c00);
    }

    #[test]
    fn finds_infinities_and_nans_of_every_float() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut bytes = vec![0; 8 * dtype.block_bytes()];
                encode(dtype, &[1.0, -2.0, 0.0, 65504.0, 1e-8, 0.5, bad, 3.0], &mut bytes);
                assert!(has_non_finite(dtype, &bytes), "{dtype} {bad}");
                let rest = bytes.len() - 2 * dtype.block_bytes();
                assert!(!has_non_finite(dtype, &bytes[..rest]), "{dtype}");
            }
        }
    }
}
