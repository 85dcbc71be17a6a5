//! A model's config, read by its architecture's table: defaults filled in, every field known.
//!
//! The reference reads configs through transformers, which completes them; here the families' tables hold the defaults.
//! A field that no family lists gets a note where the model is converted. Where the model is run, it is refused if it
//! could change what is computed.
//!
//! Reference: llama.cpp `conversion/base.py` (`load_hparams`, `TextModel.__init__`); transformers
//! `modeling_rope_utils.py` for the two spellings of the rotary fields.

mod complete;
mod facts;
mod formulas;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value as Json};

pub(super) use complete::Purpose;

use super::language::Function;
use super::lookup::class_spelling;
use super::{Config, Family, registry, wrapper};
use crate::checkpoint::Checkpoint;
use crate::error::{Finding, Result};
use crate::formats::gguf::Metadata;
use crate::json::is_off;
use crate::plan::PlannedTensor;
use crate::tokenizer::Tokens;

/// Which of a model's parts are converted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    /// Without the layers for multi-token prediction.
    pub(crate) no_nextn: bool,
    /// Only the layers for multi-token prediction, with what they share with the model.
    pub(crate) mtp_only: bool,
    /// With the dense layers that sentence-transformers puts behind the model.
    pub(crate) dense_modules: bool,
}

/// The completed config of a model whose class has a family.
#[derive(Debug, Clone)]
pub(crate) struct Params {
    pub(crate) family: &'static Family,
    path: PathBuf,
    fields: Config,
    /// The unchanged content of config.json.
    given: Config,
    /// Fields that no class is known to have and that aren't empty.
    unknown: Vec<String>,
    /// Rotary parameters of layers without a window; empty where the model has none.
    pub(crate) rope: Map<String, Json>,
    /// The rotary base of layers with a window, where it differs.
    pub(crate) rope_local: Option<f64>,
    /// The config field that holds the rotary parameters.
    pub(super) rope_field: &'static str,
    /// The wrapper's config, if the text model's was inside it.
    root: Option<Config>,
    pub(crate) parts: Parts,
    /// The config of the model that drafts are made for.
    target: Option<Config>,
    /// The tokenizer's tokens, if formulas ask for them.
    tokens: Option<Arc<Tokens>>,
    /// The checkpoint's tensors, by the class's names.
    tensors: Arc<HashMap<String, PlannedTensor>>,
    /// The names of a GGUF's tensors, and its keys, on the way back.
    stored: Option<Arc<(HashSet<String>, Metadata)>>,
}

/// Whether `value` can't be a setting: all its texts have several words, and the rest is off or empty.
fn is_note(value: &Json) -> bool {
    match value {
        Json::String(text) => text.contains(char::is_whitespace),
        Json::Array(values) => values.iter().all(|value| is_off(value) || is_note(value)),
        Json::Object(values) => values.values().all(|value| is_off(value) || is_note(value)),
        _ => is_off(value),
    }
}

/// The class that config.json names or, if it names none, the one of its `model_type`.
pub(crate) fn class(config: &Config) -> Option<&str> {
    let by_type = || super::of_model_type(config.get("model_type")?.as_str()?, config);
    named_class(config).or_else(|| by_type().map(Family::class))
}

fn named_class(config: &Config) -> Option<&str> {
    config.get("architectures")?.get(0)?.as_str()
}

impl Params {
    /// Completes and checks the config of `folder` for a conversion; `None` where its class has no family. Adds to
    /// `notes` what GGUF can't express but the reference converts anyway, and fields that no class is known to have.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for an unsupported field or value, [`crate::Error::Format`] for a value of the
    /// wrong kind.
    pub(crate) fn read(folder: &Path, config: &Config, notes: &mut Vec<String>) -> Result<Option<Self>> {
        Self::read_parts(folder, config, Parts::default(), notes)
    }

    /// As [`Params::read`], for some parts of the model.
    ///
    /// # Errors
    /// As [`Params::read`].
    pub(crate) fn read_parts(
        folder: &Path,
        config: &Config,
        parts: Parts,
        notes: &mut Vec<String>,
    ) -> Result<Option<Self>> {
        Self::read_file(&folder.join("config.json"), config, parts, notes)
    }

    /// As [`Params::read`], for the config that the GGUF at `path` becomes. Messages name the GGUF.
    ///
    /// # Errors
    /// As [`Params::read`].
    pub(crate) fn of_gguf(path: &Path, config: &Config, notes: &mut Vec<String>) -> Result<Option<Self>> {
        Self::read_file(path, config, Parts::default(), notes)
    }

    fn read_file(path: &Path, config: &Config, parts: Parts, notes: &mut Vec<String>) -> Result<Option<Self>> {
        let root = config;
        let config = &surrounded(path.parent().unwrap_or(Path::new("")), config);
        let config = &*wrapper::text_config(config);
        // Conditions of families may ask for the wrapper's fields.
        let mut asked = config.clone();
        asked.insert(format!("{HIDDEN}root"), Json::Object(root.clone()));
        let Some(family) = class(config).and_then(|class| super::of_class(class, &asked)) else { return Ok(None) };
        if named_class(config).is_none() {
            notes.push(format!("config.json names no class: read as {} by its model_type", family.class()));
        }
        let mut params = Self::complete(family, path, config, notes, Purpose::Convert)?;
        params.root = Some(root.clone());
        params.parts = parts;
        if !params.unknown.is_empty() {
            notes.push(format!(
                "config.json has fields that this version does not know: {}; if one of them changes what the model \
                 computes, the GGUF does not say so",
                params.unknown.join(", ")
            ));
        }
        Ok(Some(params))
    }

    /// The config of the projector of the multimodal model in `folder`; `None` where its class has no family.
    ///
    /// # Errors
    /// As [`Params::read`].
    pub(crate) fn of_projector(folder: &Path, config: &Config) -> Result<Option<Self>> {
        let inner = config.get("vision_config").and_then(Json::as_object).and_then(named_class);
        let named = inner.or_else(|| class(config));
        let Some(family) = named.and_then(|class| registry::projector_of(class, config)) else { return Ok(None) };
        // The fields of all parts are in this config, most of them in objects: none is checked.
        let mut params =
            Self::complete(family, &folder.join("config.json"), config, &mut Vec::new(), Purpose::Convert)?;
        for (name, value) in config {
            if !params.fields.contains_key(name) {
                params.fields.insert(name.clone(), value.clone());
            }
        }
        Ok(Some(params))
    }

    /// A field's value in config.json itself, whether the class has the field or not.
    pub(super) fn given(&self, name: &str) -> Option<&Json> {
        self.given.get(name).filter(|value| !value.is_null())
    }

    /// Takes over a field of another class that transformers reads in this one too.
    pub(super) fn adopt(&mut self, name: &str) {
        if let Some(value) = self.given(name).cloned() {
            self.fields.insert(name.to_owned(), value);
        }
    }

    /// Refuses a field that no class is known to have and that could change what the model computes. A number, a
    /// boolean and a single word, which may name a method, could. A text of several words can't, nor can objects and
    /// lists of such texts.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`], naming the field.
    pub(super) fn refuse_unknown(&self) -> Result<()> {
        let Some((name, value)) =
            self.unknown.iter().filter_map(|name| self.given.get_key_value(name)).find(|(_, value)| !is_note(value))
        else {
            return Ok(());
        };
        Err(self
            .finding(name)
            .expected("a field this version knows")
            .found(value)
            .hint("remove it if it is only a note and does not change what the model computes")
            .unsupported())
    }

    /// Refuses null in a field that has a value in every model of the class: transformers uses its default where the
    /// field is missing, and refuses null. Null passes in fields where some version of transformers gives it a meaning.
    ///
    /// # Errors
    /// [`crate::Error::Format`], naming the field.
    pub(super) fn refuse_nulls(&self) -> Result<()> {
        const NULLABLE: [&str; 11] = [
            "attn_logit_softcapping",
            "bos_token_id",
            "eos_token_id",
            "final_logit_softcapping",
            "n_group",
            "num_key_value_heads",
            "pad_token_id",
            "pretraining_tp",
            "q_lora_rank",
            "sliding_window",
            "topk_group",
        ];
        let null = |&(name, default): &(&String, &Json)| {
            let has_value = !default.is_null() && default != "auto";
            has_value && self.given.get(name.as_str()).is_some_and(Json::is_null) && !NULLABLE.contains(&name.as_str())
        };
        match self.family.defaults.iter().find(null) {
            // transformers 5 stores the base of the frequencies in `rope_parameters`.
            Some((name, _)) if name == "rope_theta" && self.rope.get(name).is_some_and(|theta| !theta.is_null()) => {
                Ok(())
            }
            Some((name, default)) => Err(self
                .finding(name)
                .expected(format_args!("a value; without the field it is {default}"))
                .found("null")
                .format()),
            None => Ok(()),
        }
    }

    /// The first of these fields that has a value.
    pub(crate) fn get(&self, names: &[&str]) -> Option<&Json> {
        names.iter().find_map(|name| self.fields.get(*name).filter(|value| !value.is_null()))
    }

    /// The number in the first of these fields that has a value.
    pub(crate) fn number(&self, names: &[&str]) -> Result<Option<f64>> {
        let Some(value) = self.get(names) else { return Ok(None) };
        let number = value.as_f64().filter(|v| v.is_finite());
        number.map(Some).ok_or_else(|| self.finding(names[0]).expected("a number").found(value).format())
    }

    /// A boolean, `default` where the config has none.
    pub(crate) fn flag(&self, name: &str, default: bool) -> bool {
        self.get(&[name]).and_then(Json::as_bool).unwrap_or(default)
    }

    /// The fields of the config with their defaults.
    pub(crate) fn settings(&self) -> &Config {
        &self.fields
    }

    /// With the tokens of the tokenizer in `folder`, if formulas ask for them.
    ///
    /// # Errors
    /// Errors of reading the tokenizer.
    pub(crate) fn with_tokens_of(mut self, folder: &Checkpoint) -> Result<Self> {
        if self.family.calls(Function::Token) || self.family.calls(Function::ZeroRows) {
            self.tokens = Some(Arc::new(Tokens::of(folder)?));
        }
        Ok(self)
    }

    /// With the config of the model that drafts are made for.
    pub(crate) fn with_target(mut self, target: Config) -> Self {
        self.target = Some(target);
        self
    }

    /// Whether the checkpoint has a tensor of this name in the family's rows.
    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// With the checkpoint's tensors by the class's names, for formulas that ask for them.
    pub(crate) fn with_tensors(mut self, tensors: HashMap<String, PlannedTensor>) -> Self {
        self.tensors = Arc::new(tensors);
        self
    }

    /// With the tensors of a checkpoint under their names there, as [`Params::with_tensors`]. Fields that a family sets for a
    /// model without config.json follow from these tensors.
    ///
    /// # Errors
    /// Errors of the family's formulas.
    pub(crate) fn with_weights<'a>(self, weights: impl Iterator<Item = &'a PlannedTensor>) -> Result<Self> {
        let main = self.size("main")?;
        let spelled = |tensor: &PlannedTensor| (class_spelling(self.family, &tensor.name, main), tensor.clone());
        let tensors = weights.map(spelled).collect();
        let mut params = self.with_tensors(tensors);
        if params.family.detect.is_some() {
            params.set_fields(Purpose::Convert)?;
            params.derive()?;
            params.read_rope()?;
        }
        Ok(params)
    }

    /// With the names of a GGUF's tensors and its keys, on the way back.
    pub(crate) fn with_stored(mut self, names: HashSet<String>, keys: Metadata) -> Self {
        self.stored = Some(Arc::new((names, keys)));
        self
    }

    /// The folder of config.json.
    pub(crate) fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// The path of config.json, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A finding about a field of config.json.
    pub(crate) fn finding(&self, field: &str) -> Finding {
        Finding::new(&self.path, field)
    }
}

/// The start of names in a config that are no fields of config.json.
pub(crate) const HIDDEN: char = '\0';

/// The config with what conditions may ask of the folder besides: `card`, the text of README.md in lower case, and
/// `folder`, the folder's name in lower case.
fn surrounded(folder: &Path, config: &Config) -> Config {
    let mut config = config.clone();
    let name = folder.file_name().map(|name| name.to_string_lossy().to_lowercase());
    config.insert(format!("{HIDDEN}folder"), name.unwrap_or_default().into());
    if let Ok(card) = std::fs::read_to_string(folder.join("README.md")) {
        config.insert(format!("{HIDDEN}card"), card.to_lowercase().into());
    }
    config
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    fn notes_of(name: &str, value: Json) -> Result<String> {
        let config = json!({"architectures": ["LlamaForCausalLM"], name: value});
        let mut notes = Vec::new();
        Params::read(Path::new("model"), config.as_object().unwrap(), &mut notes)?;
        Ok(notes.join("\n"))
    }

    #[test]
    fn unknown_fields_are_notes_of_a_conversion() {
        let note = |name: &str| {
            format!(
                "config.json has fields that this version does not know: {name}; if one of them changes what the model \
                 computes, the GGUF does not say so"
            )
        };
        for value in [json!("made on a Sunday"), json!(5.0), json!(true), json!({"kv": {"q4": "float16"}})] {
            assert_eq!(notes_of("some_note", value).unwrap(), note("some_note"));
        }
        assert_eq!(notes_of("some_note", json!("")).unwrap(), "");
        assert_eq!(notes_of("transformers.js_config", json!({"kv_cache_dtype": {"fp16": "float16"}})).unwrap(), "");
        // Packed weights were unpacked when the checkpoint was opened.
        assert_eq!(notes_of("quantization_config", json!({"bits": 4})).unwrap(), "");
    }
    /// Names of fields in config.json of published models; `a.b` is the field `b` of the object `a`.
    #[test]
    fn fields_of_published_models_are_taken_but_for_the_named_few() {
        let table = include_str!("../../../fixtures/published/fields.tsv");
        let (mut refused, mut models) = (BTreeSet::new(), 0);
        for line in table.lines() {
            let [model, class, fields] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let mut config = json!({});
            for field in fields.split(' ') {
                match field.split_once('.') {
                    // transformers.js_config has a dot in its name.
                    Some((outer, inner)) if config[outer].is_object() => config[outer][inner] = 7.into(),
                    _ => config[field] = if fields.contains(&format!(" {field}.")) { json!({}) } else { json!(7) },
                }
            }
            config["architectures"] = json!([class]);
            if config["text_config"].is_object() {
                let kinds = [("Gemma3", "gemma3_text"), ("Qwen2Audio", "qwen2")];
                let kind = kinds.iter().find(|(start, _)| class.starts_with(start)).map_or("llama", |(_, kind)| kind);
                (config["text_config"]["architectures"], config["text_config"]["model_type"]) =
                    (Json::Null, kind.into());
            }
            let config = config.as_object_mut().unwrap();
            let family = wrapper::family(config).unwrap_or_else(|| panic!("{model}: no table"));
            // A field of the class gets its default: the test is of names.
            for (name, value) in &family.defaults {
                if let Some(found) = config.get_mut(name) {
                    *found = value.clone();
                }
                if let Some(found) = config.get_mut("text_config").and_then(|text| text.get_mut(name)) {
                    *found = value.clone();
                }
            }
            models += 1;
            match Params::read(Path::new(model), config, &mut Vec::new()) {
                Ok(params) => assert!(params.is_some(), "{model}"),
                Err(error) => drop(refused.insert(error.to_string())),
            }
        }
        assert!(models >= 100, "{models}");
        assert_eq!(refused, BTreeSet::new());
    }
}
