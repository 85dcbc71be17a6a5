//! Element types as numbers: decoding to f32, and encoding from f32 with one rounding.
//!
//! Each file here holds the block types of one family. Decoding gives the bits of gguf-py's `dequantize` or, for types
//! that gguf-py doesn't have, of ggml's `dequantize_row_*`.

pub(crate) mod bitsandbytes;
mod block;
mod brain;
#[cfg(feature = "train")]
pub(crate) mod dot;
mod encode;
mod fp4;
mod fp8;
mod grids;
mod iq;
mod iq4;
mod k_quants;
mod legacy;
mod q8_0;
mod ternary;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::dtype::DType;
use crate::kernel::Kernel;
use block::Coder;
use encode::encoder;
pub use encode::needs_importance;

/// The code for each block type; `None` for plain types.
fn block_coder(dtype: DType) -> Option<Coder> {
    // There is no wildcard, so the compiler reports a new block type that is missing here.
    Some(match dtype {
        DType::F32 | DType::F16 | DType::BF16 | DType::F64 => return None,
        DType::I8 | DType::I16 | DType::I32 | DType::I64 => return None,
        DType::U8 | DType::U16 | DType::U32 | DType::U64 | DType::BOOL | DType::C64 => return None,
        DType::F8_E4M3 | DType::F8_E5M2 | DType::F8_E8M0 | DType::F8_E4M3FNUZ | DType::F8_E5M2FNUZ => return None,
        DType::Q4_0 => Coder::of::<legacy::Q4_0, _, _>(),
        DType::Q4_1 => Coder::of::<legacy::Q4_1, _, _>(),
        DType::Q5_0 => Coder::of::<legacy::Q5_0, _, _>(),
        DType::Q5_1 => Coder::of::<legacy::Q5_1, _, _>(),
        DType::Q8_0 => Coder::of::<q8_0::Q8_0, _, _>(),
        DType::Q8_1 => Coder::of::<legacy::Q8_1, _, _>(),
        DType::Q2_K => Coder::of::<k_quants::Q2_K, _, _>(),
        DType::Q3_K => Coder::of::<k_quants::Q3_K, _, _>(),
        DType::Q4_K => Coder::of::<k_quants::Q4_K, _, _>(),
        DType::Q5_K => Coder::of::<k_quants::Q5_K, _, _>(),
        DType::Q6_K => Coder::of::<k_quants::Q6_K, _, _>(),
        DType::Q8_K => Coder::of::<k_quants::Q8_K, _, _>(),
        DType::IQ2_XXS => Coder::of::<iq::IQ2_XXS, _, _>(),
        DType::IQ2_XS => Coder::of::<iq::IQ2_XS, _, _>(),
        DType::IQ2_S => Coder::of::<iq::IQ2_S, _, _>(),
        DType::IQ3_XXS => Coder::of::<iq::IQ3_XXS, _, _>(),
        DType::IQ3_S => Coder::of::<iq::IQ3_S, _, _>(),
        DType::IQ1_S => Coder::of::<iq::IQ1_S, _, _>(),
        DType::IQ1_M => Coder::of::<iq::IQ1_M, _, _>(),
        DType::IQ4_NL => Coder::of::<iq4::IQ4_NL, _, _>(),
        DType::IQ4_XS => Coder::of::<iq4::IQ4_XS, _, _>(),
        DType::TQ1_0 => Coder::of::<ternary::TQ1_0, _, _>(),
        DType::TQ2_0 => Coder::of::<ternary::TQ2_0, _, _>(),
        DType::Q1_0 => Coder::of::<ternary::Q1_0, _, _>(),
        DType::Q2_0 => Coder::of::<ternary::Q2_0, _, _>(),
        DType::MXFP4 => Coder::of::<fp4::Mxfp4, _, _>(),
        DType::NVFP4 => Coder::of::<fp4::Nvfp4, _, _>(),
    })
}

/// Whether [`decode`] supports `dtype`: F32, F16, BF16, F64, the eight-bit floats and every block type.
pub fn can_decode(dtype: DType) -> bool {
    let float = matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F64);
    float || fp8::table_of(dtype).is_some() || block_coder(dtype).is_some()
}

/// Whether [`encode`] supports `dtype`: F32, F16, BF16 and every block type.
pub fn can_encode(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16) || encoder(dtype).is_some()
}

/// Decodes the little-endian `bytes` of `out.len()` elements into f32.
///
/// F16, BF16 and eight-bit floats are exact; F64 rounds to nearest even. Values of blocks are computed in f32 in the
/// reference's order of operations, so that they have the same bits.
///
/// # Panics
/// If [`can_decode`] is false, or the lengths don't fit. Both are checked when a plan is made, before any byte is read.
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
        DType::BF16 => brain::decode(bytes, out),
        DType::F16 => {
            // Copied through a small aligned buffer, because a map's bytes need not be aligned.
            let mut buffer = [f16::ZERO; 256];
            for (out, bytes) in out.chunks_mut(256).zip(bytes.chunks(512)) {
                let buffer = &mut buffer[..out.len()];
                for (h, b) in buffer.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *h = f16::from_le_bytes(*b);
                }
                buffer.convert_to_f32_slice(out);
            }
        }
        other => match (fp8::table_of(other), block_coder(other)) {
            (Some(table), _) => {
                out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = table[usize::from(*byte)]);
            }
            (None, Some(coder)) => (coder.decode)(bytes, out),
            (None, None) => unreachable!("{other} is not decoded; plans check can_decode"),
        },
    }
}

/// Encodes `values` as `dtype`, little-endian, each rounded once: to nearest even for F16 and BF16, as in numpy and
/// torch. Blocks have the bits of ggml's `ggml_quantize_chunk`.
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
        DType::BF16 => brain::encode(values, out),
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
        other => match encoder(other) {
            Some(encode) => encode(values, None, out, Kernel::in_use()),
            None => unreachable!("{other} is not encoded; plans check can_encode"),
        },
    }
}

/// Encodes one row with the bits of ggml's `ggml_quantize_chunk`. If the type can use importance, errors of values are
/// weighted by the importance of their columns. Without importance, `row` can be several rows.
///
/// # Panics
/// As [`encode`]; also if the importance isn't as long as the row.
pub fn encode_row(dtype: DType, row: &[f32], importance: Option<&[f32]>, out: &mut [u8], kernel: Kernel) {
    let Some(encode) = encoder(dtype) else { return self::encode(dtype, row, out) };
    assert_eq!(dtype.bytes_of(row.len() as u64, row.len() as u64), Some(out.len() as u64), "lengths of {dtype}");
    assert!(importance.is_none_or(|weights| weights.len() == row.len()), "a weight for each column");
    encode(row, importance, out, kernel);
}

/// Whether the bytes of a floating-point `dtype` hold a NaN or an infinity; false for types without such values. In
/// blocks, all scales are checked, even those that decoding doesn't use, and also their products with levels if these
/// can overflow f32.
pub fn has_non_finite(dtype: DType, bytes: &[u8]) -> bool {
    // Both have an exponent of all ones. The fold has no early exit, so that it is vectorized.
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
        other => block_coder(other).is_some_and(|coder| (coder.has_non_finite)(bytes)),
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
