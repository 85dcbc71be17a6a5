//! The architectures: one table for each model class of transformers, read in both directions.
//!
//! A table ([`Arch`]) says how the class is called, which tensors it has and what becomes of them in
//! GGUF, which metadata keys hold which fields of its config, and what transformers takes for
//! fields that a config.json leaves out. Everything else in `convert` only interprets tables.
//!
//! Reference: llama.cpp `conversion/*.py`, `gguf-py/gguf/tensor_mapping.py` and `constants.py`;
//! transformers `models/*/configuration_*.py` for the defaults.

mod bert;
mod config;
mod folder;
mod gemma;
mod gpt;
mod layout;
mod linear_layer;
mod llama;
pub(crate) mod params;
mod qwen;
pub(crate) mod rope;

use std::collections::HashSet;

pub(crate) use config::INERT;
pub use config::{Architecture, ModelConfig, Rope, RopeScaling};
pub use folder::HfFolder;
pub use layout::{check_tensors, expected_tensors, is_buffer};
pub use linear_layer::{LinearLayer, Module};

use crate::formats::gguf::Metadata;
use crate::tokenizer::Vocab;

/// config.json.
pub(crate) type Config = serde_json::Map<String, serde_json::Value>;

/// A table for every config of its class.
const fn always(_: &Config) -> bool {
    true
}

/// What a GGUF file has, for [`Arch::fits`].
pub(crate) struct Found<'a> {
    pub(crate) metadata: &'a Metadata,
    pub(crate) tensors: HashSet<&'a str>,
}

impl Found<'_> {
    fn has(&self, tensor: &str) -> bool {
        self.tensors.contains(tensor)
    }

    fn key(&self, key: &str) -> bool {
        self.metadata.get(key).is_some()
    }

    fn tokenizer(&self, model: &str) -> bool {
        self.metadata.text("tokenizer.ggml.model").is_ok_and(|text| text == model)
    }
}

/// A class of transformers and its counterpart in GGUF.
pub(crate) struct Arch {
    /// The class: the first of config.json's `architectures`.
    pub(crate) class: &'static str,
    /// Which configs of the class, where there are several tables for one.
    pub(crate) when: fn(&Config) -> bool,
    /// Which GGUF files of the architecture go back to this class.
    pub(crate) fits: fn(&Found) -> bool,
    /// Other classes with the same tensors, which are read but never written.
    pub(crate) also: &'static [&'static str],
    /// config.json's `model_type`.
    pub(crate) model_type: &'static str,
    /// `general.architecture`.
    pub(crate) gguf: &'static str,
    /// Every field of the class's config with transformers' default, as a JSON object. `"auto"`
    /// stands for what transformers derives from other fields.
    pub(crate) defaults: &'static str,
    /// What the GGUF takes for granted.
    pub(crate) assumed: &'static [Assumed],
    /// Metadata keys in the reference's order.
    pub(crate) keys: &'static [Key],
    /// Tensors that are made of the config.
    pub(crate) extra: Extra,
    /// Tensors; those of one stack stand in the order in which the reference writes them.
    pub(crate) tensors: &'static [&'static [Tensor]],
    /// Beginnings of names that other classes or older checkpoints have: what they are replaced by.
    pub(crate) prefixes: &'static [(&'static str, &'static str)],
    /// Beginnings and ends of names of tensors that llama.cpp has no use for.
    pub(crate) dropped: &'static [&'static str],
    /// How the tokenizer's files become a vocabulary.
    pub(crate) vocab: Vocab,
}

/// A field whose value GGUF has no key for: llama.cpp computes as if it were one of `values`.
pub(crate) struct Assumed {
    pub(crate) field: &'static str,
    /// As JSON text, separated by bars.
    pub(crate) values: &'static str,
    /// Whether another value is refused, or only pointed out because the reference writes the file
    /// all the same.
    pub(crate) refused: bool,
}

/// A field that must have one of `values`.
pub(crate) const fn must(field: &'static str, values: &'static str) -> Assumed {
    Assumed { field, values, refused: true }
}

/// A field that should have one of `values`.
pub(crate) const fn should(field: &'static str, values: &'static str) -> Assumed {
    Assumed { field, values, refused: false }
}

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
    /// `rope.freq_base`.
    RopeBase,
    /// `rope.freq_base_swa`, for architectures with another base in local layers.
    RopeBaseLocal,
    /// `rope.scaling.original_context_length` of Phi-3.
    OriginalContext,
    /// `attention.sliding_window`: 0 where there is none.
    WindowOrZero,
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

/// A tensor, or a family of them over layers and experts.
pub(crate) struct Tensor {
    /// The name in transformers without `.weight` or `.bias`; `{}` stands for the layer, `{e}` for
    /// the place in a stack.
    pub(crate) hf: &'static str,
    /// The name in GGUF, without `.weight` or `.bias` as well.
    pub(crate) gguf: &'static str,
    /// The shape in transformers.
    pub(crate) shape: &'static [Dim],
    /// What becomes of its values.
    pub(crate) transform: Transform,
    /// Whether it has a bias.
    pub(crate) bias: Presence,
    /// Whether it is there at all.
    pub(crate) presence: Presence,
}

/// Whether something is there.
#[derive(Clone, Copy)]
pub(crate) enum Presence {
    Never,
    Always,
    /// Where this field of the config is true.
    If(&'static str),
    /// Where this field of the config is false.
    Unless(&'static str),
}

/// A dimension of a tensor's shape, by what the config says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dim {
    Vocab,
    Hidden,
    FeedForward,
    /// Gate and up side by side.
    GateUp,
    /// Query heads times their width.
    Queries,
    /// Key heads times their width.
    Keys,
    /// Queries, keys and values side by side.
    Qkv,
    /// One head.
    Head,
    Heads,
    KvHeads,
    Experts,
    ExpertFeedForward,
    SharedFeedForward,
    Context,
    TokenTypes,
    One,
}

/// What becomes of a tensor's values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transform {
    /// Nothing.
    Same,
    /// Rows of each head from halves to pairs: ggml's rotary layout. With the heads' number.
    Pairs(Dim),
    /// One is added to every value: the norm's weight is stored as its distance from 1.
    PlusOne,
    /// Rows and columns exchanged, of the weight alone.
    Transposed,
    /// As many tensors as the dimension says become one.
    Stack(Dim),
    /// Queries, keys and values of each head become all queries, all keys, all values.
    HeadwiseQkv,
    /// The same for groups of several queries with one key and one value.
    GroupedQkv,
    /// Rows past the vocabulary that the tokenizer has are left out.
    TrimVocab,
    /// The rows before the first position that is used (`pad_token_id + 1`) are left out.
    FromPosition,
}

impl Tensor {
    const fn new(hf: &'static str, gguf: &'static str, shape: &'static [Dim]) -> Self {
        Self { hf, gguf, shape, transform: Transform::Same, bias: Presence::Never, presence: Presence::Always }
    }

    const fn transform(self, transform: Transform) -> Self {
        Self { transform, ..self }
    }

    const fn bias(self, bias: Presence) -> Self {
        Self { bias, ..self }
    }

    const fn presence(self, presence: Presence) -> Self {
        Self { presence, ..self }
    }
}

/// Every table. The first of a `general.architecture` that fits is what a GGUF goes back to.
pub(crate) const ALL: &[&Arch] = &[
    &llama::MIXTRAL,
    &llama::LLAMA,
    &llama::MISTRAL,
    &llama::GRANITE,
    &llama::SMOLLM3,
    &llama::OLMO2,
    &llama::PHI3,
    &qwen::QWEN2,
    &qwen::QWEN2MOE,
    &qwen::QWEN3,
    &qwen::QWEN3MOE,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &gpt::GPT2,
    &gpt::GPT_NEOX,
    &gpt::FALCON_NEW,
    &gpt::FALCON,
    &gpt::STABLELM,
    &gpt::STARCODER2,
    &bert::BERT,
    &bert::ROBERTA,
    &bert::XLM_ROBERTA,
    &bert::DISTILBERT,
];

/// The table of a class of transformers with this config.
pub(crate) fn of_class(class: &str, config: &Config) -> Option<&'static Arch> {
    let named = |arch: &&&Arch| arch.class == class || arch.also.contains(&class);
    ALL.iter().filter(named).copied().find(|arch| (arch.when)(config))
}

/// Whether any class has a field of this name.
pub(crate) fn knows_field(name: &str) -> bool {
    ALL.iter().any(|arch| arch.defaults.contains(&format!("\"{name}\":")))
}

/// The table that a GGUF file goes back to.
pub(crate) fn of_gguf(architecture: &str, found: &Found) -> Option<&'static Arch> {
    ALL.iter().copied().find(|arch| arch.gguf == architecture && (arch.fits)(found))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn tables_are_well_formed() {
        for arch in ALL {
            let defaults: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(arch.defaults).unwrap_or_else(|e| panic!("{}: {e}", arch.class));
            for assumed in arch.assumed {
                assert!(defaults.contains_key(assumed.field), "{}: {}", arch.class, assumed.field);
                for value in assumed.values.split('|') {
                    serde_json::from_str::<serde_json::Value>(value).unwrap();
                }
            }
            let (mut hf, mut gguf) = (HashSet::new(), HashSet::new());
            for tensor in arch.tensors.iter().copied().flatten() {
                assert!(hf.insert(tensor.hf), "{}: {} twice", arch.class, tensor.hf);
                assert!(gguf.insert(tensor.gguf), "{}: {} twice", arch.class, tensor.gguf);
                assert_eq!(tensor.hf.contains("{}"), tensor.gguf.contains("{}"), "{}: {}", arch.class, tensor.hf);
                assert_eq!(tensor.hf.contains("{e}"), matches!(tensor.transform, Transform::Stack(_)), "{}", tensor.hf);
            }
        }
    }
}
