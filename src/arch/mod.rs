//! Model families: one file for each class of transformers, used by all other rooms.
//!
//! A family file (`families/*.family`, see docs/families.md) gives the names of a class, its tensors with their role
//! (`Role`) and what they become in GGUF, the metadata keys, and transformers' defaults for fields that config.json
//! leaves out. `language` reads the files, `registry` finds the family of a model. `Params` is a config read by its
//! family. `lookup` finds a tensor's name in a family, and lists the tensors that a config asks for; `steps` are the
//! operations between checkpoint and GGUF, in both directions. `Naming` answers questions about names for any
//! checkpoint: where its class has no family, it goes by names alone.
//!
//! Reference: llama.cpp `conversion/*.py`, `gguf-py/gguf/tensor_mapping.py` and `constants.py`;
//! transformers `models/*/configuration_*.py` for the defaults.

pub(crate) mod chain;
pub(crate) mod computation;
mod config;
mod experts;
mod families;
mod family;
mod fields;
mod folder;
mod index;
pub(crate) mod language;
pub(crate) mod layout;
mod linear_layer;
pub(crate) mod lookup;
pub(crate) mod names;
pub(crate) mod operands;
pub(crate) mod params;
pub(crate) mod parts;
mod procedures;
pub(crate) mod registry;
mod renames;
pub(crate) mod rope;
mod rotary;
mod row;
mod shaping;
mod statement;
pub(crate) mod steps;
pub(crate) mod tasks;
mod tensor_statement;
pub(crate) mod unread;
pub(crate) mod vocabulary;
pub(crate) mod wrapper;

use std::borrow::Cow;
use std::collections::HashMap;

pub use config::{Linear, ModelConfig};
pub use experts::{ExpertParameter, ExpertPart};
pub(crate) use family::{DropCheck, Extra, Family, Key, KeyGroup, KeyType};
pub(crate) use fields::INERT;
pub use folder::HfFolder;
use language::{Facts, Formula};
pub use layout::{check_tensors, expected_tensors};
pub use linear_layer::{LinearLayer, Module};
pub(crate) use names::Naming;
pub use names::is_buffer;
pub(crate) use registry::{of_class, of_gguf, of_model_type};
pub(crate) use renames::Regrouped;
pub use rotary::{Rope, RopeScaling};
pub(crate) use row::{Change, End, KeptType, Operation, Role, Row};
pub(crate) use shaping::permuted;

use crate::formats::gguf::{Metadata, Value};

/// The content of config.json.
pub(crate) type Config = serde_json::Map<String, serde_json::Value>;

/// What a GGUF file contains, for [`Family::fits`].
pub(crate) struct GgufContents<'a> {
    pub(crate) metadata: &'a Metadata,
    /// The shapes of its tensors.
    pub(crate) tensors: HashMap<&'a str, &'a [usize]>,
}

/// Beginnings of keys that have no architecture in front of them.
const WHOLE_KEYS: [&str; 6] = ["general.", "tokenizer.", "clip.", "split.", "diffusion.", "xielu."];

/// A key's whole name.
pub(crate) fn whole_key(architecture: &str, name: &str) -> String {
    // The keys of projectors have their whole names.
    match architecture == "clip" || WHOLE_KEYS.iter().any(|start| name.starts_with(start)) {
        true => name.to_owned(),
        false => format!("{architecture}.{name}"),
    }
}

impl Facts for GgufContents<'_> {
    fn formula(&self, _: &str) -> Option<&Formula> {
        None
    }

    fn field(&self, _: &str) -> Option<Cow<'_, serde_json::Value>> {
        None
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|shape| shape.to_vec())
    }

    fn gguf(&self, key: &str) -> Option<serde_json::Value> {
        let architecture = self.metadata.get("general.architecture").and_then(Value::as_text).unwrap_or_default();
        self.metadata.get(&whole_key(architecture, key)).map(Value::to_json)
    }
}
