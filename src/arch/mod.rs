//! Model families: one table for each class of transformers, which every other room asks.
//!
//! A table (`Family`) says how the class is called, which tensors it has, what each of them is
//! (`Role`) and what becomes of it in GGUF, which metadata keys hold which fields of its config, and what
//! transformers takes for fields that a config.json leaves out. `Params` is a config
//! read by its table; `lookup` answers what a tensor's name means and which tensors a config asks for;
//! `Naming` answers the same of any checkpoint, by names alone where its class has no table.
//!
//! Reference: llama.cpp `conversion/*.py`, `gguf-py/gguf/tensor_mapping.py` and `constants.py`;
//! transformers `models/*/configuration_*.py` for the defaults.

mod config;
pub(crate) mod experts;
mod families;
mod fields;
mod folder;
mod key;
mod layout;
mod linear_layer;
pub(crate) mod lookup;
pub(crate) mod names;
pub(crate) mod params;
pub(crate) mod rope;
mod tensor;
pub(crate) mod windows;
pub(crate) mod wrapper;

use std::collections::HashSet;

pub use config::{ModelConfig, Rope, RopeScaling};
pub(crate) use fields::INERT;
pub use folder::HfFolder;
pub(crate) use key::{BASE, Extra, Key};
pub use layout::{check_tensors, expected_tensors};
pub use linear_layer::{LinearLayer, Module};
pub(crate) use names::Naming;
pub use names::is_buffer;
pub(crate) use tensor::{Dim, Presence, Role, Tensor, Transform};

use crate::formats::gguf::Metadata;
use crate::tokenizer::Vocab;

/// config.json.
pub(crate) type Config = serde_json::Map<String, serde_json::Value>;

/// A table for every config of its class.
const fn always(_: &Config) -> bool {
    true
}

/// What a GGUF file has, for [`Family::fits`].
pub(crate) struct GgufContents<'a> {
    pub(crate) metadata: &'a Metadata,
    pub(crate) tensors: HashSet<&'a str>,
}

impl GgufContents<'_> {
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
pub(crate) struct Family {
    /// The class: the first of config.json's `architectures`.
    pub(crate) class: &'static str,
    /// Which configs of the class, where there are several tables for one.
    pub(crate) when: fn(&Config) -> bool,
    /// Which GGUF files of the architecture go back to this class.
    pub(crate) fits: fn(&GgufContents) -> bool,
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

/// Every table. The first of a `general.architecture` that fits is what a GGUF goes back to.
pub(crate) const ALL: &[&Family] = &[
    &families::llama::MIXTRAL,
    &families::llama::LLAMA,
    &families::llama::MISTRAL,
    &families::llama::MINISTRAL3,
    &families::llama::GRANITE,
    &families::llama::SMOLLM3,
    &families::llama::OLMO2,
    &families::llama::PHI3,
    &families::qwen::QWEN2,
    &families::qwen::QWEN2MOE,
    &families::qwen::QWEN3,
    &families::qwen::QWEN3MOE,
    &families::gemma::GEMMA,
    &families::gemma::GEMMA2,
    &families::gemma::GEMMA3,
    &families::gpt::GPT2,
    &families::gpt::GPT_NEOX,
    &families::gpt::FALCON_NEW,
    &families::gpt::FALCON,
    &families::gpt::STABLELM,
    &families::gpt::STARCODER2,
    &families::bert::BERT,
    &families::bert::ROBERTA,
    &families::bert::XLM_ROBERTA,
    &families::bert::DISTILBERT,
];

/// Which layers of a decoder see only a window, where its config has one and no `layer_types`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Windows {
    /// The class has no windows.
    Never,
    /// Every layer, unless `use_sliding_window` says otherwise.
    EveryLayer,
    /// Those from `max_window_layers` on, where `use_sliding_window` says so.
    UpperLayers,
}

/// The families that this crate runs and trains. Biases and norms of queries and keys follow from their tables.
pub(crate) const DECODERS: &[(&Family, Windows)] = &[
    (&families::llama::LLAMA, Windows::Never),
    (&families::llama::MISTRAL, Windows::EveryLayer),
    (&families::qwen::QWEN2, Windows::UpperLayers),
    (&families::qwen::QWEN3, Windows::UpperLayers),
];

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.class)
    }
}

impl Family {
    /// The rows of the table.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &'static Tensor> {
        self.tensors.iter().copied().flatten()
    }

    /// The first row with this role.
    pub(crate) fn row(&self, role: Role) -> Option<&'static Tensor> {
        self.rows().find(|row| row.role == role)
    }
}

/// The table of a class of transformers with this config.
pub(crate) fn of_class(class: &str, config: &Config) -> Option<&'static Family> {
    let named = |family: &&&Family| family.class == class || family.also.contains(&class);
    ALL.iter().filter(named).copied().find(|family| (family.when)(config))
}

/// The table of the class that transformers makes of a config of this `model_type`.
pub(crate) fn of_model_type(model_type: &str, config: &Config) -> Option<&'static Family> {
    ALL.iter().copied().find(|family| family.model_type == model_type && (family.when)(config))
}

/// The table that a GGUF file goes back to.
pub(crate) fn of_gguf(architecture: &str, found: &GgufContents) -> Option<&'static Family> {
    ALL.iter().copied().find(|family| family.gguf == architecture && (family.fits)(found))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn decoders_call_their_linear_layers_alike() {
        for (family, _) in DECODERS {
            for module in Module::ALL {
                let row = family.row(module.role()).unwrap();
                let layer = LinearLayer { layer: 3, module };
                assert_eq!(row.hf.replace("{}", "3"), layer.to_string(), "{}", family.class);
                assert_eq!(row.gguf.replace("{}", "3") + ".weight", layer.gguf_name(), "{}", family.class);
                assert!(row.role.is_linear() && row.hf.ends_with(module.name()));
            }
        }
    }

    #[test]
    fn tables_are_well_formed() {
        for family in ALL {
            let defaults: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(family.defaults).unwrap_or_else(|e| panic!("{}: {e}", family.class));
            for assumed in family.assumed {
                assert!(defaults.contains_key(assumed.field), "{}: {}", family.class, assumed.field);
                for value in assumed.values.split('|') {
                    serde_json::from_str::<serde_json::Value>(value).unwrap();
                }
            }
            let (mut hf, mut gguf) = (HashSet::new(), HashSet::new());
            for tensor in family.tensors.iter().copied().flatten() {
                assert!(hf.insert(tensor.hf), "{}: {} twice", family.class, tensor.hf);
                assert!(gguf.insert(tensor.gguf), "{}: {} twice", family.class, tensor.gguf);
                assert_eq!(tensor.hf.contains("{}"), tensor.gguf.contains("{}"), "{}: {}", family.class, tensor.hf);
                assert_eq!(tensor.hf.contains("{e}"), matches!(tensor.transform, Transform::Stack(_)), "{}", tensor.hf);
            }
        }
    }
}
