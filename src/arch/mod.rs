//! Model families: one table for each class of transformers, used by all other rooms.
//!
//! A table (`Family`) gives the class's name, its tensors with their role (`Role`) and their form in GGUF, the metadata
//! keys for the fields of its config, and transformers' defaults for fields that config.json leaves out. `Params` is a
//! config read by its table. `lookup` finds a tensor's name in a table, and lists the tensors that a config asks for.
//! `Naming` answers such questions for any checkpoint: where its class has no table, it goes by names alone.
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
mod renames;
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

/// The content of config.json.
pub(crate) type Config = serde_json::Map<String, serde_json::Value>;

/// [`Family::when`] of a table for every config of its class.
const fn always(_: &Config) -> bool {
    true
}

/// What a GGUF file contains, for [`Family::fits`].
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
    /// Selects configs of the class, where it has several tables.
    pub(crate) when: fn(&Config) -> bool,
    /// Selects the GGUF files of the architecture that convert back to this class.
    pub(crate) fits: fn(&GgufContents) -> bool,
    /// Other classes with the same tensors, which are read but never written.
    pub(crate) also: &'static [&'static str],
    /// config.json's `model_type`.
    pub(crate) model_type: &'static str,
    /// `general.architecture`.
    pub(crate) gguf: &'static str,
    /// Every field of the class's config with transformers' default, as a JSON object. `"auto"` marks a value that
    /// transformers derives from other fields.
    pub(crate) defaults: &'static str,
    /// Field values that the GGUF format assumes.
    pub(crate) assumed: &'static [Assumed],
    /// Metadata keys in the reference's order.
    pub(crate) keys: &'static [Key],
    /// Tensors that are computed from the config.
    pub(crate) extra: Extra,
    /// Tensors; those of one stack are in the order in which the reference writes them.
    pub(crate) tensors: &'static [&'static [Tensor]],
    /// Prefixes of names in other classes or older checkpoints, each with its replacement.
    pub(crate) prefixes: &'static [(&'static str, &'static str)],
    /// Prefixes and suffixes of tensor names that llama.cpp doesn't use.
    pub(crate) dropped: &'static [&'static str],
    /// How the tokenizer's files become a vocabulary.
    pub(crate) vocab: Vocab,
}

/// A field for which GGUF has no key: llama.cpp computes as if it were one of `values`.
pub(crate) struct Assumed {
    pub(crate) field: &'static str,
    /// As JSON text, separated by bars.
    pub(crate) values: &'static str,
    /// Whether another value is refused. If false, it gets a note, because the reference converts such a model too.
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

/// All tables. A GGUF converts back to the first one that has its `general.architecture` and fits.
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

/// Which layers of a decoder have an attention window, where the config gives one but no `layer_types`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Windows {
    /// The class has no windows.
    Never,
    /// Every layer, unless `use_sliding_window` says otherwise.
    EveryLayer,
    /// Layers from `max_window_layers` on, if `use_sliding_window` is true.
    UpperLayers,
}

/// The families that this crate can run and train. Whether they have biases, and norms of queries and keys, follows
/// from their tables.
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

/// The table of the class that transformers builds from a config of this `model_type`.
pub(crate) fn of_model_type(model_type: &str, config: &Config) -> Option<&'static Family> {
    ALL.iter().copied().find(|family| family.model_type == model_type && (family.when)(config))
}

/// The table for converting a GGUF file back.
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
