//! Llama and the families built like it: Mistral, Mixtral, Granite, SmolLM3, OLMo 2, Phi-3.
//!
//! Reference: llama.cpp `conversion/llama.py`, `granite.py`, `olmo.py`, `phi.py`.

use crate::arch::{BASE, Dim::*, Extra, Family, Key, Presence, Role::*, Tensor, Transform, always, must, should};
use crate::tokenizer::Vocab;

/// Embeddings, the last norm and the output head.
pub(in crate::arch) const ENDS: &[Tensor] = &[
    Tensor::new(Embedding, "model.embed_tokens", "token_embd", &[Vocab, Hidden]),
    Tensor::new(LastNorm, "model.norm", "output_norm", &[Hidden]),
    Tensor::new(OutputHead, "lm_head", "output", &[Vocab, Hidden]).presence(Presence::Unless("tie_word_embeddings")),
];

/// Prefixes of tensor names in checkpoints that hold only the model's body, without the head.
pub(in crate::arch) const BODY: &[(&str, &str)] =
    &[("layers.", "model.layers."), ("embed_tokens.", "model.embed_tokens."), ("norm.", "model.norm.")];

/// The norms before attention and before the feed-forward part.
pub(in crate::arch) const NORMS: &[Tensor] = &[
    Tensor::new(AttentionNorm, "model.layers.{}.input_layernorm", "blk.{}.attn_norm", &[Hidden]),
    Tensor::new(FeedForwardNorm, "model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm", &[Hidden]),
];

/// Attention, with rows of queries and keys regrouped for ggml's rotary layout.
const ROTATED: &[Tensor] = &[
    Tensor::new(Q, "model.layers.{}.self_attn.q_proj", "blk.{}.attn_q", &[Queries, Hidden])
        .transform(Transform::Pairs(Heads))
        .bias(Presence::If("attention_bias")),
    Tensor::new(K, "model.layers.{}.self_attn.k_proj", "blk.{}.attn_k", &[Keys, Hidden])
        .transform(Transform::Pairs(KvHeads))
        .bias(Presence::If("attention_bias")),
    Tensor::new(V, "model.layers.{}.self_attn.v_proj", "blk.{}.attn_v", &[Keys, Hidden])
        .bias(Presence::If("attention_bias")),
    Tensor::new(O, "model.layers.{}.self_attn.o_proj", "blk.{}.attn_output", &[Hidden, Queries])
        .bias(Presence::If("attention_bias")),
];

/// The gated feed-forward part.
pub(in crate::arch) const GATED: &[Tensor] = &[
    Tensor::new(Gate, "model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate", &[FeedForward, Hidden])
        .bias(Presence::If("mlp_bias")),
    Tensor::new(Up, "model.layers.{}.mlp.up_proj", "blk.{}.ffn_up", &[FeedForward, Hidden])
        .bias(Presence::If("mlp_bias")),
    Tensor::new(Down, "model.layers.{}.mlp.down_proj", "blk.{}.ffn_down", &[Hidden, FeedForward])
        .bias(Presence::If("mlp_bias")),
];

const BLOCK_SPARSE: &[Tensor] = &[
    Tensor::new(Router, "model.layers.{}.block_sparse_moe.gate", "blk.{}.ffn_gate_inp", &[Experts, Hidden]),
    Tensor::new(
        ExpertGate,
        "model.layers.{}.block_sparse_moe.experts.{e}.w1",
        "blk.{}.ffn_gate_exps",
        &[FeedForward, Hidden],
    )
    .transform(Transform::Stack(Experts)),
    Tensor::new(
        ExpertDown,
        "model.layers.{}.block_sparse_moe.experts.{e}.w2",
        "blk.{}.ffn_down_exps",
        &[Hidden, FeedForward],
    )
    .transform(Transform::Stack(Experts)),
    Tensor::new(
        ExpertUp,
        "model.layers.{}.block_sparse_moe.experts.{e}.w3",
        "blk.{}.ffn_up_exps",
        &[FeedForward, Hidden],
    )
    .transform(Transform::Stack(Experts)),
];

const LLAMA_KEYS: &[Key] = &[Key::Group(BASE), Key::U32("vocab_size", &["vocab_size"]), Key::RopeWholeHead];

pub(in crate::arch) const LLAMA: Family = Family {
    when: always,
    fits: |_| true,
    class: "LlamaForCausalLM",
    also: &["LLaMAForCausalLM", "LlamaModel", "VLlama3ForCausalLM"],
    model_type: "llama",
    gguf: "llama",
    defaults: r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": "auto", "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-06, "pretraining_tp": 1, "tie_word_embeddings": false,
        "rope_theta": 10000.0, "rope_parameters": null, "rope_scaling": null, "attention_bias": false,
        "mlp_bias": false, "head_dim": "auto", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": null}"#,
    assumed: &[must("hidden_act", "\"silu\"")],
    keys: LLAMA_KEYS,
    extra: Extra::RopeFreqs,
    tensors: &[ENDS, NORMS, ROTATED, GATED],
    prefixes: BODY,
    dropped: &[],
    vocab: Vocab::Llama,
};

pub(in crate::arch) const MISTRAL: Family = Family {
    class: "MistralForCausalLM",
    also: &[],
    model_type: "mistral",
    defaults: r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": "auto", "hidden_act": "silu",
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-06, "tie_word_embeddings": false,
        "rope_theta": 10000.0, "rope_parameters": null, "rope_scaling": null, "sliding_window": 4096,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": null, "attention_bias": false, "mlp_bias": false}"#,
    assumed: &[must("hidden_act", "\"silu\""), must("attention_bias", "false"), should("sliding_window", "null")],
    ..LLAMA
};

/// Ministral 3: yarn, and queries that grow with their position.
pub(in crate::arch) const MINISTRAL3: Family = Family {
    class: "Ministral3ForCausalLM",
    also: &[],
    // Mistral Small 3.1, which is Mistral, has the same architecture in GGUF.
    fits: |gguf| gguf.key("mistral3.attention.temperature_scale"),
    model_type: "ministral3",
    gguf: "mistral3",
    defaults: r#"{"vocab_size": 131072, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 34,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu",
        "max_position_embeddings": 262144, "rms_norm_eps": 1e-05, "tie_word_embeddings": false,
        "rope_theta": null, "rope_scaling": null, "rope_parameters": {"type": "yarn", "rope_theta": 1000000.0,
        "factor": 16.0, "original_max_position_embeddings": 16384, "beta_fast": 32.0, "beta_slow": 1.0,
        "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1}, "sliding_window": null,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11, "attention_bias": false, "mlp_bias": false}"#,
    assumed: &[must("hidden_act", "\"silu\""), must("attention_bias", "false"), should("sliding_window", "null")],
    keys: &[
        Key::Group(LLAMA_KEYS),
        Key::Rope("rope.scaling.yarn_log_multiplier", "mscale_all_dim"),
        Key::Rope("attention.temperature_scale", "llama_4_scaling_beta"),
    ],
    extra: Extra::Nothing,
    ..LLAMA
};

pub(in crate::arch) const MIXTRAL: Family = Family {
    class: "MixtralForCausalLM",
    also: &[],
    fits: |gguf| gguf.key("llama.expert_count"),
    model_type: "mixtral",
    defaults: r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": null, "hidden_act": "silu",
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "tie_word_embeddings": false,
        "rope_theta": 1000000.0, "rope_parameters": null, "rope_scaling": null, "sliding_window": null,
        "num_experts_per_tok": 2, "num_local_experts": 8, "output_router_logits": false, "attention_bias": false,
        "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": null}"#,
    assumed: &[must("hidden_act", "\"silu\""), must("attention_bias", "false"), should("sliding_window", "null")],
    tensors: &[ENDS, NORMS, ROTATED, BLOCK_SPARSE],
    ..LLAMA
};

pub(in crate::arch) const GRANITE: Family = Family {
    class: "GraniteForCausalLM",
    also: &[],
    model_type: "granite",
    gguf: "granite",
    defaults: r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": "auto", "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-06, "tie_word_embeddings": false,
        "rope_theta": 10000.0, "rope_parameters": null, "rope_scaling": null, "attention_bias": false,
        "mlp_bias": false, "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0,
        "attention_multiplier": 1.0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": null}"#,
    assumed: &[must("hidden_act", "\"silu\"")],
    keys: &[
        Key::Group(LLAMA_KEYS),
        Key::Scale("attention.scale", "attention_multiplier"),
        Key::Scale("embedding_scale", "embedding_multiplier"),
        Key::Scale("residual_scale", "residual_multiplier"),
        Key::Scale("logit_scale", "logits_scaling"),
    ],
    ..LLAMA
};

pub(in crate::arch) const SMOLLM3: Family = Family {
    class: "SmolLM3ForCausalLM",
    also: &[],
    model_type: "smollm3",
    gguf: "smollm3",
    defaults: r#"{"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 4, "hidden_act": "silu",
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-06, "tie_word_embeddings": true,
        "rope_theta": 2000000.0, "rope_parameters": null, "rope_scaling": null, "attention_bias": false,
        "mlp_bias": false, "use_sliding_window": false, "sliding_window": null, "no_rope_layers": null,
        "no_rope_layer_interval": 4, "layer_types": null, "max_window_layers": null, "pretraining_tp": 1,
        "bos_token_id": 128000, "eos_token_id": 128001, "pad_token_id": 128004}"#,
    assumed: &[
        must("hidden_act", "\"silu\""),
        should("use_sliding_window", "false"),
        must("no_rope_layer_interval", "4"),
    ],
    ..LLAMA
};

pub(in crate::arch) const OLMO2: Family = Family {
    class: "Olmo2ForCausalLM",
    also: &[],
    model_type: "olmo2",
    gguf: "olmo2",
    defaults: r#"{"vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": "auto", "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-05, "tie_word_embeddings": false,
        "rope_theta": 10000.0, "rope_parameters": null, "rope_scaling": null, "attention_bias": false,
        "bos_token_id": null, "eos_token_id": 50279, "pad_token_id": 1}"#,
    assumed: &[must("hidden_act", "\"silu\""), must("attention_bias", "false")],
    keys: BASE,
    extra: Extra::Nothing,
    tensors: &[
        ENDS,
        GATED,
        &[
            Tensor::new(Q, "model.layers.{}.self_attn.q_proj", "blk.{}.attn_q", &[Queries, Hidden]),
            Tensor::new(K, "model.layers.{}.self_attn.k_proj", "blk.{}.attn_k", &[Keys, Hidden]),
            Tensor::new(V, "model.layers.{}.self_attn.v_proj", "blk.{}.attn_v", &[Keys, Hidden]),
            Tensor::new(O, "model.layers.{}.self_attn.o_proj", "blk.{}.attn_output", &[Hidden, Queries]),
            Tensor::new(QNorm, "model.layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm", &[Queries]),
            Tensor::new(KNorm, "model.layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm", &[Keys]),
            Tensor::new(Norm, "model.layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm", &[Hidden]),
            Tensor::new(Norm, "model.layers.{}.post_feedforward_layernorm", "blk.{}.post_ffw_norm", &[Hidden]),
        ],
    ],
    vocab: Vocab::Bpe,
    ..LLAMA
};

pub(in crate::arch) const PHI3: Family = Family {
    class: "Phi3ForCausalLM",
    also: &[],
    model_type: "phi3",
    gguf: "phi3",
    defaults: r#"{"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": "auto", "hidden_act": "silu",
        "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
        "tie_word_embeddings": false, "rope_theta": 10000.0, "rope_parameters": null, "rope_scaling": null,
        "partial_rotary_factor": 1.0, "sliding_window": null, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "attention_bias": false, "bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000}"#,
    assumed: &[must("hidden_act", "\"silu\""), must("attention_bias", "false")],
    keys: &[
        Key::U32("context_length", &["max_position_embeddings"]),
        Key::OriginalContext,
        Key::U32("embedding_length", &["hidden_size"]),
        Key::U32("feed_forward_length", &["intermediate_size"]),
        Key::U32("block_count", &["num_hidden_layers"]),
        Key::U32("attention.head_count", &["num_attention_heads"]),
        Key::U32("attention.head_count_kv", &["num_key_value_heads"]),
        Key::F32("attention.layer_norm_rms_epsilon", &["rms_norm_eps"]),
        Key::RopePart,
        Key::RopeBase,
        Key::FileType,
        Key::WindowOrZero,
    ],
    extra: Extra::LongFactors,
    tensors: &[
        ENDS,
        NORMS,
        &[
            Tensor::new(FusedQkv, "model.layers.{}.self_attn.qkv_proj", "blk.{}.attn_qkv", &[Qkv, Hidden]),
            Tensor::new(O, "model.layers.{}.self_attn.o_proj", "blk.{}.attn_output", &[Hidden, Queries]),
            Tensor::new(FusedGateUp, "model.layers.{}.mlp.gate_up_proj", "blk.{}.ffn_up", &[GateUp, Hidden]),
            Tensor::new(Down, "model.layers.{}.mlp.down_proj", "blk.{}.ffn_down", &[Hidden, FeedForward]),
        ],
    ],
    vocab: Vocab::Phi3,
    ..LLAMA
};
