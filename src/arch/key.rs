//! Metadata keys of GGUF, and the fields of a config that they stand for.

/// One or several metadata keys and the config fields that they stand for. Names of keys come
/// without the architecture before them.
pub(crate) enum Key {
    /// Several, in order.
    Group(&'static [Key]),
    /// A whole number, from the first of the fields that is there.
    U32(&'static str, &'static [&'static str]),
    /// A number as float32, from the first of the fields that is there.
    F32(&'static str, &'static [&'static str]),
    /// As `F32`, but zero counts as absent.
    Scale(&'static str, &'static str),
    /// A truth value, `default` where the config has none.
    Bool(&'static str, &'static str, bool),
    /// A text that is always the same.
    Text(&'static str, &'static str),
    /// A number that is always the same.
    Const(&'static str, u32),
    /// A truth value that is always the same.
    Flag(&'static str, bool),
    /// `feed_forward_length`: the field, or four times the model's width where it says nothing.
    FeedForward(&'static str),
    /// `attention.key_length` and `attention.value_length`, where the config has `head_dim`.
    HeadDim,
    /// `rope.dimension_count`: a whole head.
    RopeWholeHead,
    /// `rope.dimension_count`: the part of a head that `partial_rotary_factor` says.
    RopePart,
    /// Type, factor and yarn's numbers of rotary scaling.
    RopeScaling,
    /// A number among the rotary parameters.
    Rope(&'static str, &'static str),
    /// `rope.freq_base`.
    RopeBase,
    /// `rope.freq_base_swa`, for architectures with another base in local layers.
    RopeBaseLocal,
    /// `rope.scaling.original_context_length` of Phi-3.
    OriginalContext,
    /// `attention.sliding_window`: 0 where there is none.
    WindowOrZero,
    /// `attention.sliding_window`, where a layer sees no more; llama.cpp lets every so many-th see everything.
    LocalWindow { every: usize },
    /// `general.file_type`.
    FileType,
    /// `{arch}.pooling_type` of sentence-transformers folders.
    Pooling,
    /// `attention.causal` false, where `is_causal` says so.
    NotCausal,
    /// `classifier.output_labels`, from `id2label` of more than the default labels.
    Labels,
    /// `context_length`: the positions that are used, which begin after `pad_token_id`.
    ContextAfterPadding,
    /// `attention.layer_norm_epsilon`, a number that is always the same.
    Epsilon(f32),
}

/// Tensors that come from the config, not from the checkpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extra {
    Nothing,
    /// Llama 3's divisors of the rotary frequencies: `rope_freqs.weight`.
    RopeFreqs,
    /// Phi-3's factors of short and long contexts, `rope_factors_long.weight` and `_short`, with the
    /// key `rope.scaling.attn_factor`.
    LongFactors,
}

/// The keys that most architectures begin with (conversion/base.py, `TextModel.set_gguf_parameters`).
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
