//! What a tensor of a family is to a decoder.

use super::row::{Role, Row};

/// What a tensor is to a decoder. The order of linear layers is that of a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Part {
    Embedding,
    Positions,
    EmbeddingNorm,
    LastNorm,
    Head,
    AttentionNorm,
    /// Where it is there, it is the norm before attention, and [`Part::AttentionNorm`] the one before the feed-forward
    /// block.
    SecondNorm,
    FeedForwardNorm,
    AfterAttention,
    AfterFeedForward,
    QNorm,
    KNorm,
    /// The norms of latent queries, and of latent keys and values.
    QaNorm,
    KvNorm,
    Sinks,
    Q,
    Qa,
    Qb,
    K,
    V,
    Qkv,
    KvA,
    KvB,
    O,
    Gate,
    Up,
    GateUp,
    Down,
    SharedRouter,
    SharedGate,
    SharedUp,
    SharedDown,
    Router,
    /// What is added to the scores of experts when they are chosen.
    RouterBias,
    ExpertGate,
    ExpertUp,
    ExpertDown,
}

/// Parts by the name of their tensor in GGUF, which is the same in all families; `blk.{l}.` and the ending left out.
const NAMES: &[(&str, Part)] = &[
    ("token_embd", Part::Embedding),
    ("position_embd", Part::Positions),
    ("token_embd_norm", Part::EmbeddingNorm),
    ("output_norm", Part::LastNorm),
    ("output", Part::Head),
    ("attn_norm", Part::AttentionNorm),
    ("attn_norm_2", Part::SecondNorm),
    ("ffn_norm", Part::FeedForwardNorm),
    ("post_attention_norm", Part::AfterAttention),
    ("post_ffw_norm", Part::AfterFeedForward),
    ("attn_q_norm", Part::QNorm),
    ("attn_k_norm", Part::KNorm),
    ("attn_q_a_norm", Part::QaNorm),
    ("attn_kv_a_norm", Part::KvNorm),
    ("attn_sinks", Part::Sinks),
    ("attn_q", Part::Q),
    ("attn_q_a", Part::Qa),
    ("attn_q_b", Part::Qb),
    ("attn_k", Part::K),
    ("attn_v", Part::V),
    ("attn_qkv", Part::Qkv),
    ("attn_kv_a_mqa", Part::KvA),
    ("attn_k_b", Part::KvB),
    ("attn_v_b", Part::KvB),
    ("attn_output", Part::O),
    ("ffn_gate", Part::Gate),
    ("ffn_up", Part::Up),
    ("ffn_down", Part::Down),
    ("ffn_gate_inp_shexp", Part::SharedRouter),
    ("ffn_gate_shexp", Part::SharedGate),
    ("ffn_up_shexp", Part::SharedUp),
    ("ffn_down_shexp", Part::SharedDown),
    ("ffn_gate_inp", Part::Router),
    ("exp_probs_b", Part::RouterBias),
    ("ffn_gate_exps", Part::ExpertGate),
    ("ffn_up_exps", Part::ExpertUp),
    ("ffn_down_exps", Part::ExpertDown),
];

impl Part {
    /// What the tensor of a row is; `None` for what no decoder here has.
    pub(crate) fn of(row: &Row) -> Option<Self> {
        match row.role {
            Role::FusedGateUp => return Some(Part::GateUp),
            // gpt-oss has it under the name of the norm behind attention.
            Role::FeedForwardNorm => return Some(Part::FeedForwardNorm),
            _ => {}
        }
        let name = row.gguf.text();
        let name = name.strip_prefix("blk.{l}.").unwrap_or(name);
        let name = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias")).unwrap_or(name);
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, part)| *part)
    }
}
