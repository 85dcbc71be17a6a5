//! GPT-2 and its relatives: GPT-NeoX, Falcon, StableLM, StarCoder2.
//!
//! Reference: llama.cpp `conversion/gpt2.py`, `gptneox.py`, `falcon.py`, `stablelm.py`, `starcoder.py`.

use crate::arch::{
    BASE, Config,
    Dim::{self, *},
    Extra, Family, Key, Presence,
    Role::{self, *},
    Tensor, Transform, always, must, should,
};
use crate::tokenizer::Vocab;

/// A layer norm with weight and bias.
const fn norm(role: Role, hf: &'static str, gguf: &'static str) -> Tensor {
    Tensor::new(role, hf, gguf, &[Hidden]).bias(Presence::Always)
}

/// Embeddings, the last norm and the output head.
const ENDS: &[Tensor] = &[
    Tensor::new(Embedding, "model.embed_tokens", "token_embd", &[Vocab, Hidden]),
    norm(LastNorm, "model.norm", "output_norm"),
    Tensor::new(OutputHead, "lm_head", "output", &[Vocab, Hidden]).presence(Presence::Unless("tie_word_embeddings")),
];

/// A linear layer of GPT-2, whose weight is stored as [in, out].
const fn conv1d(role: Role, hf: &'static str, gguf: &'static str, shape: &'static [Dim]) -> Tensor {
    Tensor::new(role, hf, gguf, shape).transform(Transform::Transposed).bias(Presence::Always)
}

pub(in crate::arch) const GPT2: Family = Family {
    class: "GPT2LMHeadModel",
    also: &[],
    when: always,
    fits: |_| true,
    model_type: "gpt2",
    gguf: "gpt2",
    defaults: r#"{"vocab_size": 50257, "n_positions": 1024, "n_ctx": "auto", "n_embd": 768, "n_layer": 12,
        "n_head": 12, "n_inner": null, "activation_function": "gelu_new", "resid_pdrop": 0.1, "embd_pdrop": 0.1,
        "attn_pdrop": 0.1, "layer_norm_epsilon": 1e-05, "summary_type": "cls_index", "summary_use_proj": true,
        "summary_activation": null, "summary_proj_to_labels": true, "summary_first_dropout": 0.1,
        "scale_attn_weights": true, "scale_attn_by_inverse_layer_idx": false, "reorder_and_upcast_attn": false,
        "add_cross_attention": false, "tie_word_embeddings": true, "bos_token_id": 50256,
        "eos_token_id": 50256, "pad_token_id": null}"#,
    assumed: &[
        must("activation_function", "\"gelu_new\"|\"gelu\"|\"gelu_pytorch_tanh\""),
        must("scale_attn_weights", "true"),
        must("scale_attn_by_inverse_layer_idx", "false"),
        must("add_cross_attention", "false"),
    ],
    keys: &[
        Key::U32("block_count", &["n_layer"]),
        Key::U32("context_length", &["n_positions", "n_ctx"]),
        Key::U32("embedding_length", &["n_embd"]),
        Key::FeedForward("n_inner"),
        Key::U32("attention.head_count", &["n_head"]),
        Key::F32("attention.layer_norm_epsilon", &["layer_norm_epsilon"]),
        Key::FileType,
    ],
    extra: Extra::Nothing,
    tensors: &[&[
        Tensor::new(Embedding, "transformer.wte", "token_embd", &[Vocab, Hidden]),
        Tensor::new(PositionEmbedding, "transformer.wpe", "position_embd", &[Context, Hidden]),
        norm(LastNorm, "transformer.ln_f", "output_norm"),
        Tensor::new(OutputHead, "lm_head", "output", &[Vocab, Hidden])
            .presence(Presence::Unless("tie_word_embeddings")),
        norm(AttentionNorm, "transformer.h.{}.ln_1", "blk.{}.attn_norm"),
        conv1d(FusedQkv, "transformer.h.{}.attn.c_attn", "blk.{}.attn_qkv", &[Hidden, Qkv]),
        conv1d(O, "transformer.h.{}.attn.c_proj", "blk.{}.attn_output", &[Hidden, Hidden]),
        norm(FeedForwardNorm, "transformer.h.{}.ln_2", "blk.{}.ffn_norm"),
        conv1d(Up, "transformer.h.{}.mlp.c_fc", "blk.{}.ffn_up", &[Hidden, FeedForward]),
        conv1d(Down, "transformer.h.{}.mlp.c_proj", "blk.{}.ffn_down", &[FeedForward, Hidden]),
    ]],
    prefixes: &[
        ("wte.", "transformer.wte."),
        ("wpe.", "transformer.wpe."),
        ("ln_f.", "transformer.ln_f."),
        ("h.", "transformer.h."),
    ],
    dropped: &["*.attn.bias", "*.attn.masked_bias"],
    vocab: Vocab::Bpe,
};

pub(in crate::arch) const GPT_NEOX: Family = Family {
    class: "GPTNeoXForCausalLM",
    model_type: "gpt_neox",
    gguf: "gptneox",
    defaults: r#"{"vocab_size": 50432, "hidden_size": 6144, "num_hidden_layers": 44, "num_attention_heads": 64,
        "intermediate_size": 24576, "hidden_act": "gelu", "attention_dropout": 0.0, "hidden_dropout": 0.0,
        "classifier_dropout": 0.1, "max_position_embeddings": 2048, "layer_norm_eps": 1e-05,
        "tie_word_embeddings": false, "use_parallel_residual": true, "rope_theta": 10000.0, "rotary_emb_base": null,
        "rope_parameters": null, "rope_scaling": null, "rotary_pct": 0.25, "partial_rotary_factor": null,
        "attention_bias": true, "is_decoder": false, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": null}"#,
    assumed: &[must("hidden_act", "\"gelu\"|\"gelu_new\"|\"gelu_fast\"")],
    keys: &[
        Key::U32("context_length", &["max_position_embeddings"]),
        Key::U32("embedding_length", &["hidden_size"]),
        Key::U32("block_count", &["num_hidden_layers"]),
        Key::U32("feed_forward_length", &["intermediate_size"]),
        Key::RopePart,
        Key::U32("attention.head_count", &["num_attention_heads"]),
        Key::Bool("use_parallel_residual", "use_parallel_residual", true),
        Key::F32("attention.layer_norm_epsilon", &["layer_norm_eps"]),
    ],
    tensors: &[&[
        Tensor::new(Embedding, "gpt_neox.embed_in", "token_embd", &[Vocab, Hidden]),
        norm(LastNorm, "gpt_neox.final_layer_norm", "output_norm"),
        Tensor::new(OutputHead, "embed_out", "output", &[Vocab, Hidden])
            .presence(Presence::Unless("tie_word_embeddings")),
        norm(AttentionNorm, "gpt_neox.layers.{}.input_layernorm", "blk.{}.attn_norm"),
        norm(FeedForwardNorm, "gpt_neox.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"),
        Tensor::new(FusedQkv, "gpt_neox.layers.{}.attention.query_key_value", "blk.{}.attn_qkv", &[Qkv, Hidden])
            .transform(Transform::HeadwiseQkv)
            .bias(Presence::If("attention_bias")),
        Tensor::new(O, "gpt_neox.layers.{}.attention.dense", "blk.{}.attn_output", &[Hidden, Hidden])
            .bias(Presence::If("attention_bias")),
        Tensor::new(Up, "gpt_neox.layers.{}.mlp.dense_h_to_4h", "blk.{}.ffn_up", &[FeedForward, Hidden])
            .bias(Presence::Always),
        Tensor::new(Down, "gpt_neox.layers.{}.mlp.dense_4h_to_h", "blk.{}.ffn_down", &[Hidden, FeedForward])
            .bias(Presence::Always),
    ]],
    prefixes: &[],
    dropped: &[],
    ..GPT2
};

const FALCON_BODY: &[Tensor] = &[
    Tensor::new(Embedding, "transformer.word_embeddings", "token_embd", &[Vocab, Hidden]),
    norm(LastNorm, "transformer.ln_f", "output_norm"),
    Tensor::new(OutputHead, "lm_head", "output", &[Vocab, Hidden]).presence(Presence::Unless("tie_word_embeddings")),
    Tensor::new(FusedQkv, "transformer.h.{}.self_attention.query_key_value", "blk.{}.attn_qkv", &[Qkv, Hidden])
        .transform(Transform::GroupedQkv),
    Tensor::new(O, "transformer.h.{}.self_attention.dense", "blk.{}.attn_output", &[Hidden, Hidden]),
    Tensor::new(Up, "transformer.h.{}.mlp.dense_h_to_4h", "blk.{}.ffn_up", &[FeedForward, Hidden]),
    Tensor::new(Down, "transformer.h.{}.mlp.dense_4h_to_h", "blk.{}.ffn_down", &[Hidden, FeedForward]),
];

/// Falcon with one norm per layer, such as the 7B.
pub(in crate::arch) const FALCON: Family = Family {
    class: "FalconForCausalLM",
    also: &["RWForCausalLM"],
    when: |config| !two_norms(config),
    fits: |gguf| !gguf.has("blk.0.attn_norm_2.weight"),
    model_type: "falcon",
    gguf: "falcon",
    defaults: r#"{"vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
        "num_ln_in_parallel_attn": null, "layer_norm_epsilon": 1e-05, "hidden_dropout": 0.0,
        "attention_dropout": 0.0, "num_kv_heads": "auto", "n_head_kv": null, "alibi": false,
        "new_decoder_architecture": false, "multi_query": true, "parallel_attn": true, "bias": false,
        "max_position_embeddings": 2048, "rope_theta": 10000.0, "rope_parameters": null, "rope_scaling": null,
        "ffn_hidden_size": null, "activation": "gelu", "tie_word_embeddings": true, "bos_token_id": 11,
        "eos_token_id": 11, "pad_token_id": null, "apply_residual_connection_post_layernorm": false}"#,
    assumed: &[
        must("alibi", "false"),
        must("parallel_attn", "true"),
        must("bias", "false"),
        must("activation", "\"gelu\""),
        must("apply_residual_connection_post_layernorm", "false"),
    ],
    keys: &[
        // The reference writes this number whatever the config says.
        Key::Const("context_length", 2048),
        Key::Text("tensor_data_layout", "jploski"),
        Key::U32("embedding_length", &["hidden_size"]),
        Key::FeedForward("ffn_hidden_size"),
        Key::U32("block_count", &["num_hidden_layers"]),
        Key::U32("attention.head_count", &["num_attention_heads"]),
        Key::U32("attention.head_count_kv", &["num_kv_heads"]),
        Key::F32("attention.layer_norm_epsilon", &["layer_norm_epsilon"]),
        Key::FileType,
    ],
    tensors: &[FALCON_BODY, &[norm(AttentionNorm, "transformer.h.{}.input_layernorm", "blk.{}.attn_norm")]],
    prefixes: &[],
    dropped: &[],
    ..GPT2
};

/// Falcon with separate norms for attention and feed-forward, such as the 40B.
pub(in crate::arch) const FALCON_NEW: Family = Family {
    when: two_norms,
    fits: |gguf| gguf.has("blk.0.attn_norm_2.weight"),
    tensors: &[
        FALCON_BODY,
        &[
            norm(AttentionNorm, "transformer.h.{}.ln_mlp", "blk.{}.attn_norm"),
            norm(Norm, "transformer.h.{}.ln_attn", "blk.{}.attn_norm_2"),
        ],
    ],
    ..FALCON
};

fn two_norms(config: &Config) -> bool {
    let new = config.get("new_decoder_architecture").and_then(|v| v.as_bool()).unwrap_or(false);
    new && config.get("num_ln_in_parallel_attn").and_then(|v| v.as_u64()) != Some(1)
}

pub(in crate::arch) const STABLELM: Family = Family {
    class: "StableLmForCausalLM",
    also: &["StableLMEpochForCausalLM"],
    model_type: "stablelm",
    gguf: "stablelm",
    defaults: r#"{"vocab_size": 50304, "intermediate_size": 6912, "hidden_size": 2560, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-05, "norm_eps": null, "tie_word_embeddings": false, "rope_theta": 10000.0,
        "rope_parameters": null, "rope_scaling": null, "partial_rotary_factor": 0.25, "rope_pct": null,
        "use_qkv_bias": false, "qk_layernorm": false, "use_parallel_residual": false, "hidden_dropout": 0.0,
        "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": null}"#,
    assumed: &[must("hidden_act", "\"silu\"")],
    keys: &[
        Key::U32("context_length", &["max_position_embeddings"]),
        Key::U32("embedding_length", &["hidden_size"]),
        Key::U32("block_count", &["num_hidden_layers"]),
        Key::U32("feed_forward_length", &["intermediate_size"]),
        Key::RopePart,
        Key::U32("attention.head_count", &["num_attention_heads"]),
        Key::U32("attention.head_count_kv", &["num_key_value_heads"]),
        Key::Bool("use_parallel_residual", "use_parallel_residual", true),
        Key::F32("attention.layer_norm_epsilon", &["layer_norm_eps", "norm_eps"]),
        Key::FileType,
    ],
    tensors: &[
        ENDS,
        &[
            norm(AttentionNorm, "model.layers.{}.input_layernorm", "blk.{}.attn_norm"),
            norm(FeedForwardNorm, "model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm")
                .presence(Presence::Unless("use_parallel_residual")),
            Tensor::new(Q, "model.layers.{}.self_attn.q_proj", "blk.{}.attn_q", &[Queries, Hidden])
                .bias(Presence::If("use_qkv_bias")),
            Tensor::new(K, "model.layers.{}.self_attn.k_proj", "blk.{}.attn_k", &[Keys, Hidden])
                .bias(Presence::If("use_qkv_bias")),
            Tensor::new(V, "model.layers.{}.self_attn.v_proj", "blk.{}.attn_v", &[Keys, Hidden])
                .bias(Presence::If("use_qkv_bias")),
            Tensor::new(O, "model.layers.{}.self_attn.o_proj", "blk.{}.attn_output", &[Hidden, Queries]),
            Tensor::new(QNorm, "model.layers.{}.self_attn.q_layernorm.norms.{e}", "blk.{}.attn_q_norm", &[Head])
                .transform(Transform::Stack(Heads))
                .presence(Presence::If("qk_layernorm")),
            Tensor::new(KNorm, "model.layers.{}.self_attn.k_layernorm.norms.{e}", "blk.{}.attn_k_norm", &[Head])
                .transform(Transform::Stack(KvHeads))
                .presence(Presence::If("qk_layernorm")),
            Tensor::new(Gate, "model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate", &[FeedForward, Hidden]),
            Tensor::new(Up, "model.layers.{}.mlp.up_proj", "blk.{}.ffn_up", &[FeedForward, Hidden]),
            Tensor::new(Down, "model.layers.{}.mlp.down_proj", "blk.{}.ffn_down", &[Hidden, FeedForward]),
        ],
    ],
    prefixes: &[],
    dropped: &[],
    ..GPT2
};

pub(in crate::arch) const STARCODER2: Family = Family {
    class: "Starcoder2ForCausalLM",
    model_type: "starcoder2",
    gguf: "starcoder2",
    defaults: r#"{"vocab_size": 49152, "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30,
        "num_attention_heads": 24, "num_key_value_heads": 2, "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096, "norm_epsilon": 1e-05, "rope_theta": 10000.0, "rope_parameters": null,
        "rope_scaling": null, "sliding_window": null, "attention_dropout": 0.0, "residual_dropout": 0.0,
        "embedding_dropout": 0.0, "use_bias": true, "tie_word_embeddings": true, "mlp_type": "default",
        "norm_type": "layer_norm", "bos_token_id": 50256, "eos_token_id": 50256, "pad_token_id": null}"#,
    assumed: &[
        must("hidden_act", "\"gelu_pytorch_tanh\""),
        must("mlp_type", "\"default\""),
        must("norm_type", "\"layer_norm\""),
        should("sliding_window", "null"),
    ],
    keys: BASE,
    tensors: &[
        ENDS,
        &[
            norm(AttentionNorm, "model.layers.{}.input_layernorm", "blk.{}.attn_norm"),
            norm(FeedForwardNorm, "model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"),
            Tensor::new(Q, "model.layers.{}.self_attn.q_proj", "blk.{}.attn_q", &[Queries, Hidden])
                .bias(Presence::If("use_bias")),
            Tensor::new(K, "model.layers.{}.self_attn.k_proj", "blk.{}.attn_k", &[Keys, Hidden])
                .bias(Presence::If("use_bias")),
            Tensor::new(V, "model.layers.{}.self_attn.v_proj", "blk.{}.attn_v", &[Keys, Hidden])
                .bias(Presence::If("use_bias")),
            Tensor::new(O, "model.layers.{}.self_attn.o_proj", "blk.{}.attn_output", &[Hidden, Queries])
                .bias(Presence::If("use_bias")),
            Tensor::new(Up, "model.layers.{}.mlp.c_fc", "blk.{}.ffn_up", &[FeedForward, Hidden])
                .bias(Presence::If("use_bias")),
            Tensor::new(Down, "model.layers.{}.mlp.c_proj", "blk.{}.ffn_down", &[Hidden, FeedForward])
                .bias(Presence::If("use_bias")),
        ],
    ],
    prefixes: &[],
    dropped: &[],
    ..GPT2
};
