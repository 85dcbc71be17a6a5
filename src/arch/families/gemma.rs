//! Gemma 1, 2 and 3 (text).
//!
//! Reference: llama.cpp `conversion/gemma.py`.

use crate::arch::{
    BASE,
    Dim::*,
    Extra, Family, Key, Presence,
    Role::{self, *},
    Tensor, Transform, always, must, should,
};
use crate::tokenizer::Vocab;

/// A norm whose weight transformers stores as its distance from 1.
const fn norm(role: Role, hf: &'static str, gguf: &'static str) -> Tensor {
    Tensor::new(role, hf, gguf, &[Hidden]).transform(Transform::PlusOne)
}

const BODY: &[Tensor] = &[
    norm(LastNorm, "model.norm", "output_norm"),
    norm(AttentionNorm, "model.layers.{}.input_layernorm", "blk.{}.attn_norm"),
    Tensor::new(Q, "model.layers.{}.self_attn.q_proj", "blk.{}.attn_q", &[Queries, Hidden])
        .bias(Presence::If("attention_bias")),
    Tensor::new(K, "model.layers.{}.self_attn.k_proj", "blk.{}.attn_k", &[Keys, Hidden])
        .bias(Presence::If("attention_bias")),
    Tensor::new(V, "model.layers.{}.self_attn.v_proj", "blk.{}.attn_v", &[Keys, Hidden])
        .bias(Presence::If("attention_bias")),
    Tensor::new(O, "model.layers.{}.self_attn.o_proj", "blk.{}.attn_output", &[Hidden, Queries])
        .bias(Presence::If("attention_bias")),
    Tensor::new(Gate, "model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate", &[FeedForward, Hidden]),
    Tensor::new(Up, "model.layers.{}.mlp.up_proj", "blk.{}.ffn_up", &[FeedForward, Hidden]),
    Tensor::new(Down, "model.layers.{}.mlp.down_proj", "blk.{}.ffn_down", &[Hidden, FeedForward]),
];

const EMBEDDINGS: &[Tensor] = &[Tensor::new(Embedding, "model.embed_tokens", "token_embd", &[Vocab, Hidden])];

const FOUR_NORMS: &[Tensor] = &[
    norm(Norm, "model.layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm"),
    norm(FeedForwardNorm, "model.layers.{}.pre_feedforward_layernorm", "blk.{}.ffn_norm"),
    norm(Norm, "model.layers.{}.post_feedforward_layernorm", "blk.{}.post_ffw_norm"),
];

const COUNTS: &[Key] = &[
    Key::U32("context_length", &["max_position_embeddings"]),
    Key::U32("embedding_length", &["hidden_size"]),
    Key::U32("block_count", &["num_hidden_layers"]),
    Key::U32("feed_forward_length", &["intermediate_size"]),
    Key::U32("attention.head_count", &["num_attention_heads"]),
    Key::U32("attention.head_count_kv", &["num_key_value_heads"]),
    Key::F32("attention.layer_norm_rms_epsilon", &["rms_norm_eps"]),
    Key::HeadDim,
    Key::FileType,
];

pub(in crate::arch) const GEMMA: Family = Family {
    when: always,
    fits: |_| true,
    class: "GemmaForCausalLM",
    also: &[],
    model_type: "gemma",
    gguf: "gemma",
    defaults: r#"{"vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": null, "max_position_embeddings": 8192, "rms_norm_eps": 1e-06,
        "tie_word_embeddings": true, "rope_theta": 10000.0, "rope_parameters": null, "rope_scaling": null,
        "attention_bias": false, "use_bidirectional_attention": null, "bos_token_id": 2, "eos_token_id": 1,
        "pad_token_id": 0}"#,
    assumed: &[
        must("hidden_act", "\"gelu_pytorch_tanh\"|\"gelu\""),
        must("hidden_activation", "null|\"gelu_pytorch_tanh\"|\"gelu\""),
        must("attention_bias", "false"),
        should("tie_word_embeddings", "true"),
    ],
    keys: COUNTS,
    extra: Extra::Nothing,
    tensors: &[
        EMBEDDINGS,
        BODY,
        &[norm(FeedForwardNorm, "model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm")],
    ],
    prefixes: &[],
    dropped: &["lm_head.weight"],
    vocab: Vocab::Gemma,
};

pub(in crate::arch) const GEMMA2: Family = Family {
    class: "Gemma2ForCausalLM",
    model_type: "gemma2",
    gguf: "gemma2",
    defaults: r#"{"vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_act": null, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-06, "tie_word_embeddings": true, "rope_theta": 10000.0, "rope_parameters": null,
        "rope_scaling": null, "attention_bias": false, "query_pre_attn_scalar": 256, "sliding_window": 4096,
        "layer_types": null, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
        "use_bidirectional_attention": null, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
        "cache_implementation": null, "sliding_window_size": null}"#,
    assumed: &[
        must("hidden_activation", "\"gelu_pytorch_tanh\"|\"gelu\""),
        must("attention_bias", "false"),
        should("tie_word_embeddings", "true"),
    ],
    keys: &[
        Key::Group(COUNTS),
        Key::F32("attn_logit_softcapping", &["attn_logit_softcapping"]),
        Key::F32("final_logit_softcapping", &["final_logit_softcapping"]),
        Key::U32("attention.sliding_window", &["sliding_window"]),
    ],
    tensors: &[EMBEDDINGS, BODY, FOUR_NORMS],
    vocab: Vocab::Gemma2,
    ..GEMMA
};

pub(in crate::arch) const GEMMA3: Family = Family {
    class: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    gguf: "gemma3",
    defaults: r#"{"vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 131072, "rms_norm_eps": 1e-06,
        "tie_word_embeddings": true, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
        "rope_parameters": null, "rope_scaling": null, "attention_bias": false, "query_pre_attn_scalar": 256,
        "sliding_window": 4096, "layer_types": null, "sliding_window_pattern": null, "_sliding_window_pattern": 6,
        "final_logit_softcapping": null, "attn_logit_softcapping": null, "use_bidirectional_attention": false,
        "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "cache_implementation": null}"#,
    assumed: &[
        must("hidden_activation", "\"gelu_pytorch_tanh\""),
        must("attention_bias", "false"),
        must("attn_logit_softcapping", "null"),
    ],
    keys: &[
        Key::Group(BASE),
        Key::Scale("final_logit_softcapping", "final_logit_softcapping"),
        Key::LocalWindow { every: 6 },
    ],
    tensors: &[
        &[
            Tensor::new(Embedding, "model.embed_tokens", "token_embd", &[Vocab, Hidden])
                .transform(Transform::TrimVocab),
            // The reference keeps the head's rows past the vocabulary, and llama.cpp refuses the
            // file.
            Tensor::new(OutputHead, "lm_head", "output", &[Vocab, Hidden])
                .transform(Transform::TrimVocab)
                .presence(Presence::Unless("tie_word_embeddings")),
        ],
        BODY,
        FOUR_NORMS,
        &[
            Tensor::new(QNorm, "model.layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm", &[Head])
                .transform(Transform::PlusOne),
            Tensor::new(KNorm, "model.layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm", &[Head])
                .transform(Transform::PlusOne),
        ],
    ],
    dropped: &[],
    vocab: Vocab::Gemma3,
    ..GEMMA
};
