//! Encoders of the BERT family: BERT, RoBERTa, XLM-RoBERTa, DistilBERT.
//!
//! Reference: llama.cpp `conversion/bert.py`.

use crate::arch::{
    BASE,
    Dim::{self, *},
    Extra, Family, Key, Presence,
    Role::{self, *},
    Tensor, Transform, always, must, should,
};
use crate::tokenizer::Vocab;

/// A linear layer or a norm with weight and bias.
const fn biased(role: Role, hf: &'static str, gguf: &'static str, shape: &'static [Dim]) -> Tensor {
    Tensor::new(role, hf, gguf, shape).bias(Presence::Always)
}

const EMBEDDINGS: &[Tensor] = &[
    Tensor::new(Embedding, "embeddings.word_embeddings", "token_embd", &[Vocab, Hidden]),
    Tensor::new(TypeEmbedding, "embeddings.token_type_embeddings", "token_types", &[TokenTypes, Hidden]),
    biased(Norm, "embeddings.LayerNorm", "token_embd_norm", &[Hidden]),
];

const POSITIONS: &[Tensor] =
    &[Tensor::new(PositionEmbedding, "embeddings.position_embeddings", "position_embd", &[Context, Hidden])];

const POSITIONS_AFTER_PADDING: &[Tensor] =
    &[Tensor::new(PositionEmbedding, "embeddings.position_embeddings", "position_embd", &[Context, Hidden])
        .transform(Transform::FromPosition)];

const LAYERS: &[Tensor] = &[
    biased(Q, "encoder.layer.{}.attention.self.query", "blk.{}.attn_q", &[Hidden, Hidden]),
    biased(K, "encoder.layer.{}.attention.self.key", "blk.{}.attn_k", &[Hidden, Hidden]),
    biased(V, "encoder.layer.{}.attention.self.value", "blk.{}.attn_v", &[Hidden, Hidden]),
    biased(O, "encoder.layer.{}.attention.output.dense", "blk.{}.attn_output", &[Hidden, Hidden]),
    biased(Norm, "encoder.layer.{}.attention.output.LayerNorm", "blk.{}.attn_output_norm", &[Hidden]),
    biased(Up, "encoder.layer.{}.intermediate.dense", "blk.{}.ffn_up", &[FeedForward, Hidden]),
    biased(Down, "encoder.layer.{}.output.dense", "blk.{}.ffn_down", &[Hidden, FeedForward]),
    biased(Norm, "encoder.layer.{}.output.LayerNorm", "blk.{}.layer_output_norm", &[Hidden]),
];

const ENCODER_KEYS: &[Key] = &[Key::Group(BASE), Key::Flag("attention.causal", false), Key::Pooling, Key::Labels];

pub(in crate::arch) const BERT: Family = Family {
    class: "BertModel",
    also: &["BertForMaskedLM", "CamembertModel"],
    when: always,
    fits: |gguf| !gguf.tokenizer("gpt2") && !gguf.tokenizer("t5") && gguf.has("token_types.weight"),
    model_type: "bert",
    gguf: "bert",
    defaults: r#"{"vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_key_value_heads": null, "intermediate_size": 3072, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 512, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "classifier_dropout": null, "is_decoder": false, "add_cross_attention": false,
        "position_embedding_type": "absolute", "gradient_checkpointing": false, "directionality": null,
        "pooler_fc_size": null, "pooler_num_attention_heads": null, "pooler_num_fc_layers": null,
        "pooler_size_per_head": null, "pooler_type": null, "bos_token_id": null, "eos_token_id": null,
        "pad_token_id": 0, "tie_word_embeddings": true, "output_past": null}"#,
    assumed: &[
        must("hidden_act", "\"gelu\""),
        must("position_embedding_type", "\"absolute\""),
        must("is_decoder", "false"),
        must("add_cross_attention", "false"),
    ],
    keys: ENCODER_KEYS,
    extra: Extra::Nothing,
    tensors: &[EMBEDDINGS, POSITIONS, LAYERS],
    prefixes: &[("bert.", ""), ("roberta.", "")],
    dropped: &["embeddings.position_ids", "pooler.dense.*", "cls.predictions.*", "cls.seq_relationship.*"],
    vocab: Vocab::WordPiece,
};

pub(in crate::arch) const ROBERTA: Family = Family {
    class: "RobertaModel",
    also: &[],
    fits: |gguf| gguf.tokenizer("gpt2"),
    model_type: "roberta",
    defaults: r#"{"vocab_size": 50265, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_key_value_heads": null, "intermediate_size": 3072, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 512, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "classifier_dropout": null, "is_decoder": false, "add_cross_attention": false,
        "position_embedding_type": "absolute", "gradient_checkpointing": false, "bos_token_id": 0,
        "eos_token_id": 2, "pad_token_id": 1, "tie_word_embeddings": true, "output_past": null}"#,
    keys: &[Key::Group(ENCODER_KEYS), Key::ContextAfterPadding],
    tensors: &[EMBEDDINGS, POSITIONS_AFTER_PADDING, LAYERS],
    vocab: Vocab::Roberta,
    ..BERT
};

pub(in crate::arch) const XLM_ROBERTA: Family = Family {
    class: "XLMRobertaModel",
    fits: |gguf| gguf.tokenizer("t5"),
    model_type: "xlm-roberta",
    vocab: Vocab::XlmRoberta,
    ..ROBERTA
};

pub(in crate::arch) const DISTILBERT: Family = Family {
    class: "DistilBertModel",
    also: &["DistilBertForMaskedLM"],
    fits: |_| true,
    model_type: "distilbert",
    defaults: r#"{"vocab_size": 30522, "max_position_embeddings": 512, "sinusoidal_pos_embds": false, "n_layers": 6,
        "n_heads": 12, "num_key_value_heads": null, "dim": 768, "hidden_dim": 3072, "dropout": 0.1, "attention_dropout": 0.1,
        "activation": "gelu", "qa_dropout": 0.1, "seq_classif_dropout": 0.2, "pad_token_id": 0,
        "bos_token_id": null, "eos_token_id": null, "tie_word_embeddings": true, "tie_weights_": null,
        "output_past": null, "type_vocab_size": null}"#,
    assumed: &[must("activation", "\"gelu\""), should("sinusoidal_pos_embds", "false")],
    keys: &[Key::Epsilon(1e-12), Key::Group(ENCODER_KEYS)],
    tensors: &[&[
        Tensor::new(Embedding, "embeddings.word_embeddings", "token_embd", &[Vocab, Hidden]),
        Tensor::new(PositionEmbedding, "embeddings.position_embeddings", "position_embd", &[Context, Hidden]),
        biased(Norm, "embeddings.LayerNorm", "token_embd_norm", &[Hidden]),
        biased(Q, "transformer.layer.{}.attention.q_lin", "blk.{}.attn_q", &[Hidden, Hidden]),
        biased(K, "transformer.layer.{}.attention.k_lin", "blk.{}.attn_k", &[Hidden, Hidden]),
        biased(V, "transformer.layer.{}.attention.v_lin", "blk.{}.attn_v", &[Hidden, Hidden]),
        biased(O, "transformer.layer.{}.attention.out_lin", "blk.{}.attn_output", &[Hidden, Hidden]),
        biased(Norm, "transformer.layer.{}.sa_layer_norm", "blk.{}.attn_output_norm", &[Hidden]),
        biased(Up, "transformer.layer.{}.ffn.lin1", "blk.{}.ffn_up", &[FeedForward, Hidden]),
        biased(Down, "transformer.layer.{}.ffn.lin2", "blk.{}.ffn_down", &[Hidden, FeedForward]),
        biased(Norm, "transformer.layer.{}.output_layer_norm", "blk.{}.layer_output_norm", &[Hidden]),
    ]],
    prefixes: &[("distilbert.", "")],
    dropped: &["vocab_*"],
    ..BERT
};
