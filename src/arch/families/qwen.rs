//! Qwen 2 and 3, dense and with experts.
//!
//! Reference: llama.cpp `conversion/qwen.py`.

use super::llama::{BODY, ENDS, GATED, NORMS};
use crate::arch::{BASE, Dim::*, Extra, Family, Key, Presence, Role::*, Tensor, Transform, always, must, should};
use crate::tokenizer::Vocab;

/// Attention in transformers' rotary layout, which ggml's graphs of these models use too.
const ATTENTION: &[Tensor] = &[
    Tensor::new(Q, "model.layers.{}.self_attn.q_proj", "blk.{}.attn_q", &[Queries, Hidden])
        .bias(Presence::If("qkv_bias")),
    Tensor::new(K, "model.layers.{}.self_attn.k_proj", "blk.{}.attn_k", &[Keys, Hidden]).bias(Presence::If("qkv_bias")),
    Tensor::new(V, "model.layers.{}.self_attn.v_proj", "blk.{}.attn_v", &[Keys, Hidden]).bias(Presence::If("qkv_bias")),
    Tensor::new(O, "model.layers.{}.self_attn.o_proj", "blk.{}.attn_output", &[Hidden, Queries])
        .bias(Presence::If("attention_bias")),
];

/// As [`ATTENTION`], with norms over each head, and one config field for all four biases.
const NORMED: &[Tensor] = &[
    Tensor::new(Q, "model.layers.{}.self_attn.q_proj", "blk.{}.attn_q", &[Queries, Hidden])
        .bias(Presence::If("attention_bias")),
    Tensor::new(K, "model.layers.{}.self_attn.k_proj", "blk.{}.attn_k", &[Keys, Hidden])
        .bias(Presence::If("attention_bias")),
    Tensor::new(V, "model.layers.{}.self_attn.v_proj", "blk.{}.attn_v", &[Keys, Hidden])
        .bias(Presence::If("attention_bias")),
    Tensor::new(O, "model.layers.{}.self_attn.o_proj", "blk.{}.attn_output", &[Hidden, Queries])
        .bias(Presence::If("attention_bias")),
    Tensor::new(QNorm, "model.layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm", &[Head]),
    Tensor::new(KNorm, "model.layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm", &[Head]),
];

const EXPERTS: &[Tensor] = &[
    Tensor::new(Router, "model.layers.{}.mlp.gate", "blk.{}.ffn_gate_inp", &[Experts, Hidden]),
    Tensor::new(
        ExpertDown,
        "model.layers.{}.mlp.experts.{e}.down_proj",
        "blk.{}.ffn_down_exps",
        &[Hidden, ExpertFeedForward],
    )
    .transform(Transform::Stack(Experts)),
    Tensor::new(
        ExpertGate,
        "model.layers.{}.mlp.experts.{e}.gate_proj",
        "blk.{}.ffn_gate_exps",
        &[ExpertFeedForward, Hidden],
    )
    .transform(Transform::Stack(Experts)),
    Tensor::new(
        ExpertUp,
        "model.layers.{}.mlp.experts.{e}.up_proj",
        "blk.{}.ffn_up_exps",
        &[ExpertFeedForward, Hidden],
    )
    .transform(Transform::Stack(Experts)),
];

const SHARED_EXPERT: &[Tensor] = &[
    Tensor::new(SharedRouter, "model.layers.{}.mlp.shared_expert_gate", "blk.{}.ffn_gate_inp_shexp", &[One, Hidden]),
    Tensor::new(
        SharedGate,
        "model.layers.{}.mlp.shared_expert.gate_proj",
        "blk.{}.ffn_gate_shexp",
        &[SharedFeedForward, Hidden],
    ),
    Tensor::new(
        SharedUp,
        "model.layers.{}.mlp.shared_expert.up_proj",
        "blk.{}.ffn_up_shexp",
        &[SharedFeedForward, Hidden],
    ),
    Tensor::new(
        SharedDown,
        "model.layers.{}.mlp.shared_expert.down_proj",
        "blk.{}.ffn_down_shexp",
        &[Hidden, SharedFeedForward],
    ),
];

const MOE_KEYS: &[Key] = &[
    Key::Group(BASE),
    Key::U32("expert_feed_forward_length", &["moe_intermediate_size"]),
    Key::U32("expert_shared_feed_forward_length", &["shared_expert_intermediate_size"]),
];

pub(in crate::arch) const QWEN2: Family = Family {
    when: always,
    fits: |_| true,
    class: "Qwen2ForCausalLM",
    also: &["Qwen2Model"],
    model_type: "qwen2",
    gguf: "qwen2",
    defaults: r#"{"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu",
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-06, "tie_word_embeddings": false,
        "rope_theta": 10000.0, "rope_parameters": null, "rope_scaling": null, "use_sliding_window": false,
        "sliding_window": 4096, "max_window_layers": 28, "layer_types": null, "qkv_bias": true, "mlp_bias": false,
        "attention_bias": false, "use_mrope": false, "bos_token_id": null, "eos_token_id": null,
        "pad_token_id": null}"#,
    assumed: &[
        must("hidden_act", "\"silu\""),
        must("qkv_bias", "true"),
        must("mlp_bias", "false"),
        should("use_sliding_window", "false"),
    ],
    keys: &[Key::Group(BASE), Key::Pooling],
    extra: Extra::Nothing,
    tensors: &[
        ENDS,
        NORMS,
        GATED,
        &[
            Tensor::new(Q, "model.layers.{}.self_attn.q_proj", "blk.{}.attn_q", &[Queries, Hidden])
                .bias(Presence::If("qkv_bias")),
            Tensor::new(K, "model.layers.{}.self_attn.k_proj", "blk.{}.attn_k", &[Keys, Hidden])
                .bias(Presence::If("qkv_bias")),
            Tensor::new(V, "model.layers.{}.self_attn.v_proj", "blk.{}.attn_v", &[Keys, Hidden])
                .bias(Presence::If("qkv_bias")),
            Tensor::new(O, "model.layers.{}.self_attn.o_proj", "blk.{}.attn_output", &[Hidden, Queries]),
        ],
    ],
    prefixes: BODY,
    dropped: &[],
    vocab: Vocab::SpmOrBpe,
};

pub(in crate::arch) const QWEN3: Family = Family {
    class: "Qwen3ForCausalLM",
    also: &["Qwen3Model"],
    model_type: "qwen3",
    gguf: "qwen3",
    defaults: r#"{"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "hidden_act": "silu",
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-06, "tie_word_embeddings": false,
        "rope_theta": 10000.0, "rope_parameters": null, "rope_scaling": null, "use_sliding_window": false,
        "sliding_window": 4096, "max_window_layers": 28, "layer_types": null, "attention_bias": false,
        "mlp_bias": false, "bos_token_id": null, "eos_token_id": null, "pad_token_id": null}"#,
    assumed: &[must("hidden_act", "\"silu\""), must("mlp_bias", "false"), should("use_sliding_window", "false")],
    tensors: &[ENDS, NORMS, NORMED, GATED],
    ..QWEN2
};

pub(in crate::arch) const QWEN2MOE: Family = Family {
    class: "Qwen2MoeForCausalLM",
    also: &[],
    model_type: "qwen2_moe",
    gguf: "qwen2moe",
    defaults: r#"{"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16, "hidden_act": "silu",
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-06, "tie_word_embeddings": false,
        "rope_theta": 10000.0, "rope_parameters": null, "rope_scaling": null, "use_sliding_window": false,
        "sliding_window": null, "max_window_layers": 28, "layer_types": null, "decoder_sparse_step": 1,
        "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_experts_per_tok": 4,
        "num_experts": 60, "norm_topk_prob": false, "output_router_logits": false, "router_aux_loss_coef": 0.001,
        "mlp_only_layers": [], "qkv_bias": true, "attention_bias": false, "bos_token_id": null,
        "eos_token_id": null, "pad_token_id": null}"#,
    assumed: &[
        must("hidden_act", "\"silu\""),
        must("decoder_sparse_step", "1"),
        must("mlp_only_layers", "[]|null"),
        must("attention_bias", "false"),
        should("norm_topk_prob", "false"),
        should("use_sliding_window", "false"),
    ],
    keys: MOE_KEYS,
    tensors: &[ENDS, NORMS, ATTENTION, EXPERTS, SHARED_EXPERT],
    vocab: Vocab::Bpe,
    ..QWEN2
};

pub(in crate::arch) const QWEN3MOE: Family = Family {
    class: "Qwen3MoeForCausalLM",
    also: &[],
    model_type: "qwen3_moe",
    gguf: "qwen3moe",
    defaults: r#"{"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": null, "hidden_act": "silu",
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-06, "tie_word_embeddings": false,
        "rope_theta": 10000.0, "rope_parameters": null, "rope_scaling": null, "use_sliding_window": false,
        "sliding_window": null, "max_window_layers": 28, "layer_types": null, "decoder_sparse_step": 1,
        "moe_intermediate_size": 768, "num_experts_per_tok": 8, "num_experts": 128, "num_local_experts": null,
        "norm_topk_prob": false, "output_router_logits": false, "router_aux_loss_coef": 0.001,
        "mlp_only_layers": [], "attention_bias": false, "bos_token_id": null, "eos_token_id": null,
        "pad_token_id": null}"#,
    assumed: &[
        must("hidden_act", "\"silu\""),
        must("decoder_sparse_step", "1"),
        must("mlp_only_layers", "[]|null"),
        should("norm_topk_prob", "true"),
        should("use_sliding_window", "false"),
    ],
    keys: MOE_KEYS,
    tensors: &[ENDS, NORMS, NORMED, EXPERTS],
    ..QWEN2MOE
};
