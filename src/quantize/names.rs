//! What a tensor's name says: its role, whether it is quantized at all, and its position in the file.
//!
//! Reference: llama.cpp `src/llama-quant.cpp` (`tensor_get_category`, `tensor_allows_quantization`) and
//! `src/llama-model-loader.h` (`weight_name_comparer`).

use crate::source::TensorInfo;

pub(super) const OUTPUT: &str = "output.weight";
pub(super) const PER_LAYER_EMBEDDING: &str = "per_layer_token_embd.weight";

/// The part of a model to which a tensor belongs, as far as mixtures distinguish parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Output,
    Embedding,
    /// Values of attention, or a matrix that contains them: the most sensitive part.
    Value,
    Key,
    Query,
    AttentionOutput,
    Up,
    Gate,
    Down,
    Other,
}

/// Parts of names and the corresponding roles; the first match counts.
const ROLES: [(&str, Role); 9] = [
    ("attn_qkv.weight", Role::Value),
    ("attn_kv_b.weight", Role::Value),
    ("attn_v.weight", Role::Value),
    ("attn_k.weight", Role::Key),
    ("attn_q.weight", Role::Query),
    ("attn_output.weight", Role::AttentionOutput),
    ("ffn_up", Role::Up),
    ("ffn_gate", Role::Gate),
    ("ffn_down", Role::Down),
];

impl Role {
    pub fn of(name: &str) -> Self {
        match name {
            OUTPUT => Role::Output,
            "token_embd.weight" | PER_LAYER_EMBEDDING => Role::Embedding,
            _ => ROLES.iter().find(|(part, _)| name.contains(part)).map_or(Role::Other, |(_, role)| *role),
        }
    }
}

/// Names that are never quantized: embeddings of positions and token types.
const KEPT_NAMES: [&str; 2] = ["position_embd.weight", "token_types.weight"];

/// Parts of names that are never quantized.
const KEPT_PARTS: &[&str] = &[
    "_norm.weight",
    // Routers of experts, and the table from tokens to experts.
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    // Small matrices of Gemma 3n.
    "altup",
    "laurel",
    "per_layer_model_proj",
    // Short convolutions.
    "ssm_conv1d",
    "shortconv.conv.weight",
    // MiniMax's indexer.
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    // RWKV's small matrices.
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    // T5's relative positions.
    "attn_rel_b.weight",
    // Encoders of images and sound.
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// Parts of names that are never quantized in one architecture.
const KEPT_PARTS_OF: &[(&str, &[&str])] = &[(
    "glm5-next",
    &[
        "hc_",
        "indexer.attn_q_b",
        "indexer.attn_k",
        "indexer.proj",
        "indexer_compressor_gate",
        "indexer_compressor_ape",
        "ssm_f_a.weight",
        "ssm_f_b.weight",
        "ssm_g_a.weight",
        "ssm_g_b.weight",
        "ssm_beta.weight",
        "attn_kv_a_mqa.weight",
        "attn_k_b.weight",
        "attn_v_b.weight",
    ],
)];

/// Whether a tensor keeps its type whatever the file type: vectors, tensors whose names don't end in `weight`, and
/// matrices that are small or sensitive.
pub(super) fn is_kept(architecture: &str, name: &str, shape: &[usize]) -> bool {
    let has_any = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    dims(shape) < 2
        || !name.ends_with("weight")
        || KEPT_NAMES.contains(&name)
        || has_any(KEPT_PARTS)
        || KEPT_PARTS_OF.iter().any(|(of, parts)| *of == architecture && has_any(parts))
}

/// The number of dimensions as ggml counts them, without outermost ones of length 1.
fn dims(shape: &[usize]) -> usize {
    shape.len() - shape.iter().take_while(|&&len| len == 1).count()
}

/// Whether it holds several matrices, such as those of experts.
pub(super) fn is_stack(shape: &[usize]) -> bool {
    shape.len().checked_sub(3).is_some_and(|outer| shape[outer] > 1)
}

/// The block number at the start of a name, such as 12 in `blk.12.attn_v.weight`.
pub(super) fn block_of(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("blk.")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).map_or(rest, |end| &rest[..end]);
    digits.parse().ok()
}

/// The indices of the tensors in the order in which llama-quantize writes them: tensors outside blocks, then block by
/// block, sorted by name. Mixtures count tensors in this order, too.
pub fn file_order(tensors: &[TensorInfo]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    let key = |&place: &usize| (block_of(&tensors[place].name), tensors[place].name.as_str());
    order.sort_by(|a, b| key(a).cmp(&key(b)));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_roles() {
        for (name, role) in [
            ("output.weight", Role::Output),
            ("output_norm.weight", Role::Other),
            ("token_embd.weight", Role::Embedding),
            ("per_layer_token_embd.weight", Role::Embedding),
            ("blk.0.attn_qkv.weight", Role::Value),
            ("blk.0.attn_kv_b.weight", Role::Value),
            ("blk.0.attn_v.weight", Role::Value),
            ("blk.0.attn_v.bias", Role::Other),
            ("blk.0.attn_output.weight", Role::AttentionOutput),
            ("blk.0.ffn_down_shexp.weight", Role::Down),
            ("blk.0.ffn_gate_up_exps.weight", Role::Gate),
            ("blk.0.ffn_up_exps.weight", Role::Up),
            ("blk.0.ssm_out.weight", Role::Other),
        ] {
            assert_eq!(Role::of(name), role, "{name}");
        }
    }

    #[test]
    fn kept_are_vectors_biases_and_small_matrices() {
        let kept = |name, shape: &[usize]| is_kept("llama", name, shape);
        assert!(kept("blk.0.attn_q.weight", &[64]));
        assert!(kept("blk.0.attn_q.weight", &[1, 64]), "ggml has no outermost dimension of 1");
        assert!(!kept("blk.0.attn_q.weight", &[64, 1]));
        assert!(kept("blk.0.attn_q.bias", &[8, 64]));
        assert!(kept("position_embd.weight", &[8, 64]));
        assert!(kept("v.position_embd.weight", &[8, 64]));
        assert!(!kept("token_embd.weight", &[8, 64]));
        assert!(kept("blk.0.ffn_gate_inp.weight", &[8, 64]));
        assert!(!kept("blk.0.ffn_gate_inp_shexp.weight", &[8, 64]));
        assert!(!kept("blk.0.attn_k_b.weight", &[4, 8, 64]));
        assert!(is_kept("glm5-next", "blk.0.attn_k_b.weight", &[4, 8, 64]));
        assert!(kept("", &[8, 64]) && kept("blk.0.scalar.weight", &[]));
    }

    #[test]
    fn files_go_by_block_then_name() {
        let names = ["blk.10.b", "blk.9.z", "output.weight", "blk.9.a", "enc.blk.0.a", "blk.x"];
        let tensor = |name: &&str| TensorInfo { name: (*name).to_owned(), dtype: crate::DType::F32, shape: vec![1] };
        let tensors: Vec<TensorInfo> = names.iter().map(tensor).collect();
        assert_eq!(file_order(&tensors), [5, 4, 2, 3, 1, 0]);
        assert_eq!(block_of("blk.99999999999999999999.a"), None);
    }

    #[test]
    fn experts_are_stacks() {
        assert!(is_stack(&[4, 8, 64]) && is_stack(&[2, 4, 8, 64]));
        assert!(!is_stack(&[1, 8, 64]) && !is_stack(&[8, 64]) && !is_stack(&[]));
    }
}
