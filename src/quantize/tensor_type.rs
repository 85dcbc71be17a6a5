//! The requirements of a tensor type: a name, rows that divide into its blocks, and importance.
//!
//! Reference: llama.cpp `src/llama-quant.cpp` (`tensor_type_fallback`, `tensor_requires_imatrix`),
//! `tools/quantize/quantize.cpp` (`parse_ggml_type`) and `ggml/src/ggml.c` (`ggml_quantize_chunk`,
//! `ggml_quantize_requires_imatrix`).

use super::file_type::FileType;
use super::names::Role;
use crate::dtype::DType;
use crate::error::{Finding, Result};

/// Parses the type that `option` gives to tensors, a name that ignores case.
///
/// # Errors
/// [`crate::Error::Setting`] for unknown names, and for types to which nothing is quantized. llama-quantize accepts
/// those (`q8_k`, `i32`) and fails, or writes uninitialised memory.
pub fn parse_tensor_type(option: &str, text: &str) -> Result<DType> {
    let known =
        || (0..u32::from(u8::MAX)).filter_map(DType::from_ggml_id).filter(|dtype| is_quantization_target(*dtype));
    known().find(|dtype| dtype.name().eq_ignore_ascii_case(text)).ok_or_else(|| {
        let names: Vec<&str> = known().map(DType::name).collect();
        let expected = format!("a tensor type: one of {}", names.join(", "));
        Finding::new("", option).expected(expected).found(format_args!("{text:?}")).setting()
    })
}

/// Whether tensors can be quantized to it.
pub(super) fn is_quantization_target(dtype: DType) -> bool {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => true,
        // Only used for activations while a model runs.
        DType::Q8_1 | DType::Q8_K => false,
        other => !other.is_plain(),
    }
}

/// Whether rows of this length divide into blocks of this type.
pub(super) fn divides(row_len: usize, dtype: DType) -> bool {
    row_len.is_multiple_of(dtype.block_elems())
}

/// `preferred_type`, or the type that replaces it if rows don't divide into its blocks; `None` if there is no
/// replacement.
pub(super) fn that_fits(preferred_type: DType, row_len: usize) -> Option<DType> {
    if divides(row_len, preferred_type) {
        return Some(preferred_type);
    }
    let smaller_blocks = match preferred_type {
        DType::IQ1_S | DType::IQ1_M | DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S => DType::IQ4_NL,
        DType::IQ3_XXS | DType::IQ3_S | DType::IQ4_XS => DType::IQ4_NL,
        DType::Q2_0 | DType::Q2_K | DType::Q3_K | DType::TQ1_0 | DType::TQ2_0 => DType::Q4_0,
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K => DType::Q8_0,
        _ if preferred_type.block_elems() <= 32 => DType::F16,
        _ => return None,
    };
    Some(if divides(row_len, smaller_blocks) { smaller_blocks } else { DType::F16 })
}

/// Whether a tensor can't be quantized to `dtype` without importance.
///
/// Output and embeddings only need importance where ggml itself does, because imatrix files seldom contain them. Where
/// it is missing for ggml, llama-quantize stops at an assertion.
pub(super) fn needs_importance(role: Role, dtype: DType, file_type: FileType) -> bool {
    match dtype {
        DType::IQ1_S | DType::IQ2_XXS | DType::IQ2_XS => true,
        _ if matches!(role, Role::Output | Role::Embedding) => false,
        DType::IQ1_M | DType::IQ2_S | DType::IQ3_XXS => true,
        DType::Q2_K => file_type == FileType::Q2_K_S,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_in_either_case() {
        for (text, dtype) in [("q8_0", DType::Q8_0), ("Q4_k", DType::Q4_K), ("bf16", DType::BF16)] {
            assert_eq!(parse_tensor_type("output_tensor_type", text).unwrap(), dtype);
        }
        for text in ["", "q4", "Q4_K_M", "q8_1", "q8_k", "i32", "f64", "u8", "bool"] {
            let message = parse_tensor_type("output_tensor_type", text).unwrap_err().to_string();
            let start = "output_tensor_type: expected a tensor type: one of F32, F16, Q4_0, ";
            assert!(message.starts_with(start), "{message}");
            assert!(message.ends_with(&format!(", found {text:?}")), "{message}");
        }
    }

    #[test]
    fn rows_that_do_not_divide_get_smaller_blocks_or_none() {
        for (preferred_type, of_32, of_1) in [
            (DType::IQ2_XS, Some(DType::IQ4_NL), Some(DType::F16)),
            (DType::IQ4_XS, Some(DType::IQ4_NL), Some(DType::F16)),
            (DType::TQ1_0, Some(DType::Q4_0), Some(DType::F16)),
            (DType::Q3_K, Some(DType::Q4_0), Some(DType::F16)),
            (DType::Q4_K, Some(DType::Q5_0), Some(DType::F16)),
            (DType::Q5_K, Some(DType::Q5_1), Some(DType::F16)),
            (DType::Q6_K, Some(DType::Q8_0), Some(DType::F16)),
            (DType::Q2_0, Some(DType::Q4_0), Some(DType::F16)),
            (DType::Q4_0, Some(DType::Q4_0), Some(DType::F16)),
            (DType::MXFP4, Some(DType::MXFP4), Some(DType::F16)),
            (DType::Q1_0, None, None),
            (DType::NVFP4, None, None),
            (DType::BF16, Some(DType::BF16), Some(DType::BF16)),
        ] {
            assert_eq!(that_fits(preferred_type, 256), Some(preferred_type), "{preferred_type}");
            assert_eq!(that_fits(preferred_type, 96), of_32, "{preferred_type}");
            assert_eq!(that_fits(preferred_type, 33), of_1, "{preferred_type}");
        }
    }

    #[test]
    fn small_types_need_importance() {
        let needs = |role, dtype| needs_importance(role, dtype, FileType::Q4_K_M);
        assert!(needs(Role::Value, DType::IQ3_XXS) && !needs(Role::Value, DType::IQ3_S));
        assert!(needs(Role::Other, DType::IQ1_M) && !needs(Role::Embedding, DType::IQ1_M));
        assert!(needs(Role::Output, DType::IQ1_S) && !needs(Role::Output, DType::IQ3_XXS));
        assert!(!needs(Role::Query, DType::Q2_K));
        assert!(needs_importance(Role::Query, DType::Q2_K, FileType::Q2_K_S));
        assert!(!needs_importance(Role::Embedding, DType::Q2_K, FileType::Q2_K_S));
    }
}
