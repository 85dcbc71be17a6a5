//! Metadata keys of GGUF, and the config fields from which they come.

/// One or several metadata keys and the config fields from which they come. Names of keys are given without the
/// architecture prefix.
pub(crate) enum Key {
    /// Several keys, in order.
    Group(&'static [Key]),
    /// A whole number, from the first of the fields that the config has.
    U32(&'static str, &'static [&'static str]),
    /// A float32, from the first of the fields that the config has.
    F32(&'static str, &'static [&'static str]),
    /// As `F32`, but zero counts as absent.
    Scale(&'static str, &'static str),
    /// A boolean, `default` where the config has none.
    Bool(&'static str, &'static str, bool),
    /// A constant text.
    Text(&'static str, &'static str),
    /// A constant number.
    Const(&'static str, u32),
    /// A constant boolean.
    Flag(&'static str, bool),
    /// `feed_forward_length`: the field, or four times the hidden size without it.
    FeedForward(&'static str),
    /// `attention.key_length` and `attention.value_length`, where the config has `head_dim`.
    HeadDim,
    /// `rope.dimension_count`: all dimensions of a head.
    RopeWholeHead,
    /// `rope.dimension_count`: the part of a head that `partial_rotary_factor` gives.
    RopePart,
    /// Type and factor of rotary scaling, and the parameters of yarn.
    RopeScaling,
    /// A number among the rotary parameters.
    Rope(&'static str, &'static str),
    /// `rope.freq_base`.
    RopeBase,
    /// `rope.freq_base_swa`, for architectures whose local layers have another base.
    RopeBaseLocal,
    /// `rope.scaling.original_context_length`, for Phi-3.
    OriginalContext,
    /// `attention.sliding_window`: 0 where there is none.
    WindowOrZero,
    /// `attention.sliding_window`, if some layers have a window; in llama.cpp, each `every`-th layer has none.
    LocalWindow { every: usize },
    /// `general.file_type`.
    FileType,
    /// `{arch}.pooling_type`, for folders of sentence-transformers.
    Pooling,
    /// `attention.causal` = false, where `is_causal` is false.
    NotCausal,
    /// `classifier.output_labels`, from `id2label` if its labels aren't the default ones.
    Labels,
    /// `context_length`: the number of usable positions, which begin after `pad_token_id`.
    ContextAfterPadding,
    /// `attention.layer_norm_epsilon`, a constant number.
    Epsilon(f32),
}

/// Tensors that are computed from the config and not stored in the checkpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extra {
    Nothing,
    /// Llama 3's divisors of the rotary frequencies: `rope_freqs.weight`.
    RopeFreqs,
    /// Phi-3's factors for short and long contexts, `rope_factors_short.weight` and `rope_factors_long.weight`, with
    /// the key `rope.scaling.attn_factor`.
    LongFactors,
}

/// The keys with which most architectures begin (conversion/base.py, `TextModel.set_gguf_parameters`).
pub(crate) const BASE: &[Key] = &[
    Key::U32("block_count", &["num_hidden_layers", "n_layers"]),
    Key::U32("context_length", &["max_position_embeddings"]),
    Key::U32("embedding_length", &["hidden_size", "dim"]),
    Key::U32("feed_forward_length", &["intermediate_size", "hidden_dim"]),
    Key::U32("attention.head_count", &["num_attention_heads", "n_heads"]),
    Key::U32("attention.head_count_kv", &["num_key_value_heads"]),
    Key::NotCausal,
    Key::RopeScaling,
    Key::RopeBase,
    Key::RopeBaseLocal,
    Key::F32("attention.layer_norm_rms_epsilon", &["rms_norm_eps"]),
    Key::F32("attention.layer_norm_epsilon", &["layer_norm_eps", "norm_epsilon"]),
    Key::U32("expert_count", &["num_local_experts", "num_experts"]),
    Key::U32("expert_used_count", &["num_experts_per_tok"]),
    Key::HeadDim,
    Key::FileType,
];
