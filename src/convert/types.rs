//! The types of a GGUF's tensors.
//!
//! Reference: llama.cpp `conversion/base.py` (`prepare_tensors`, `tensor_force_quant`).

use crate::arch::KeptType;
use crate::dtype::DType;
use crate::plan::Expr;

/// Ends of names of tensors that the reference keeps in F32 although they are matrices called `.weight`.
const ALWAYS_F32: &[&str] = &[
    ".ffn_gate_inp.weight",
    ".ffn_gate_inp_shexp.weight",
    ".ssm_conv1d.weight",
    ".ssm_conv1d_q.weight",
    ".ssm_conv1d_k.weight",
    ".ssm_conv1d_v.weight",
    ".shortconv.conv.weight",
    ".time_mix_first.weight",
    ".time_mix_w1.weight",
    ".time_mix_w2.weight",
    ".time_mix_decay_w1.weight",
    ".time_mix_decay_w2.weight",
    ".time_mix_lerp_fused.weight",
    ".altup_correct_coef.weight",
    ".altup_predict_coef.weight",
    ".indexer.proj.weight",
    ".norm1.weight",
    ".norm2.weight",
];

/// Names of such tensors.
const NAMES_F32: &[&str] =
    &["position_embd.weight", "token_types.weight", "v.position_embd.weight", "a.position_embd.weight"];

/// Whether the reference keeps the tensor in F32 although it is a matrix: routers, positions, token types, convolutions.
fn always_f32(name: &str) -> bool {
    let is_posnet = |end: &&&str| !end.starts_with(".norm") || name.starts_with("posnet.");
    ALWAYS_F32.iter().filter(is_posnet).any(|end| name.ends_with(end)) || NAMES_F32.contains(&name)
}

/// The type of an output tensor. Vectors, norms, routers and tensors not called `.weight` are F32; rows that don't
/// divide into blocks become F16. Without an `outtype`, the source's type is kept if GGUF has it.
pub(super) fn output_dtype(
    kept: Option<KeptType>,
    name: &str,
    shape: &[usize],
    outtype: Option<DType>,
    source: DType,
) -> DType {
    if shape.len() < 2 || name.ends_with("_norm.weight") {
        return DType::F32;
    }
    match kept {
        Some(KeptType::F32) => return DType::F32,
        Some(KeptType::F16) => return DType::F16,
        Some(KeptType::Q8_0) => return DType::Q8_0,
        Some(KeptType::F16OrF32) => return if outtype == Some(DType::F16) { DType::F16 } else { DType::F32 },
        Some(KeptType::I32 | KeptType::I64 | KeptType::Output) | None => {}
    }
    if kept.is_none() && (!name.ends_with(".weight") || always_f32(name)) {
        return DType::F32;
    }
    let dtype = match outtype {
        // The reference keeps these in F16 where matrices are ternary.
        Some(DType::TQ1_0 | DType::TQ2_0) if is_too_fine(name) => DType::F16,
        Some(dtype) => dtype,
        None if source.ggml_id().is_some() => source,
        None => DType::F32,
    };
    let row_len = shape.last().copied().unwrap_or(1);
    if row_len.is_multiple_of(dtype.block_elems()) { dtype } else { DType::F16 }
}

/// The type of a matrix that keeps the checkpoint's: 8-bit floats become Q8_0, other floats stay.
pub(super) fn stored_type(expr: &Expr, asked: DType, dtype: DType) -> DType {
    match expr.packed_in().map(|part| part.info().dtype) {
        Some(DType::F8_E4M3 | DType::F8_E5M2) => DType::Q8_0,
        None if matches!(dtype, DType::F32 | DType::BF16) => dtype,
        _ => asked,
    }
}

/// Whether the values of a tensor are too fine for ternary ones: embeddings, the output head, and small projections.
fn is_too_fine(name: &str) -> bool {
    ["token_embd.weight", "per_layer_token_embd.weight", "output.weight"].contains(&name)
        || [".altup_router.weight", ".laurel_l.weight", ".laurel_r.weight"].iter().any(|end| name.ends_with(end))
}
