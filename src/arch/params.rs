//! A model's config, read by its architecture's table: defaults filled in, every field known.
//!
//! The reference reads configs through transformers, which completes them; here the families' tables hold the defaults.
//! A field that no family lists gets a note where the model is converted. Where the model is run, it is refused if it
//! could change what is computed.
//!
//! Reference: llama.cpp `conversion/base.py` (`load_hparams`, `TextModel.__init__`); transformers
//! `modeling_rope_utils.py` for the two spellings of the rotary fields.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::language::{Facts, Fault, Formula, Function, Scope};
use super::lookup::class_spelling;
use super::{Config, Family, INERT, registry, wrapper};
use crate::checkpoint::Checkpoint;
use crate::error::{Finding, Result};
use crate::formats::gguf::{Metadata, Value};
use crate::json::{is_off, read_json_object};
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
#[derive(Debug)]
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
        let mut params = Self::complete(family, path, config, notes)?;
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
        let mut params = Self::complete(family, &folder.join("config.json"), config, &mut Vec::new())?;
        for (name, value) in config {
            if !params.fields.contains_key(name) {
                params.fields.insert(name.clone(), value.clone());
            }
        }
        Ok(Some(params))
    }

    /// Completes and checks `config`, which was read from the file at `path`.
    ///
    /// # Errors
    /// As [`Params::read`].
    pub(super) fn complete(
        family: &'static Family,
        path: &Path,
        config: &Config,
        notes: &mut Vec<String>,
    ) -> Result<Self> {
        let mut unknown = Vec::new();
        let mut fields: Config = family.defaults.clone();
        for (name, value) in config.iter().filter(|(name, _)| !name.starts_with(HIDDEN)) {
            let inert = INERT.contains(&name.as_str());
            if fields.contains_key(name) || inert {
                let default = fields.get(name).and_then(Json::as_object).filter(|_| name.ends_with("_config"));
                // The config of a part has defaults of its own.
                let value = match (default, value) {
                    (Some(default), Json::Object(given)) => {
                        let mut whole = default.clone();
                        whole.extend(given.clone());
                        Json::Object(whole)
                    }
                    _ => value.clone(),
                };
                fields.insert(name.clone(), value);
            } else if TOKEN_IDS.contains(&name.as_str()) {
                fields.insert(name.clone(), value.clone());
            } else if registry::is_known_field(name) && !is_read(family, name) {
                // A field of another class, which transformers ignores in this one.
                notes.push(format!("{}: {name}: no field of {}, ignored", path.display(), family.class()));
            } else {
                if is_read(family, name) {
                    fields.insert(name.clone(), value.clone());
                } else if !is_off(value) {
                    unknown.push(name.clone());
                }
            }
        }
        // A model saved without its head (class `...Model`) has no `lm_head`.
        if class(config).is_some_and(|class| class != family.class() && class.ends_with("Model")) {
            fields.insert("tie_word_embeddings".to_owned(), true.into());
        }
        let mut params = Self {
            family,
            path: path.to_owned(),
            fields,
            given: config.clone(),
            unknown,
            rope: Map::new(),
            rope_local: None,
            rope_field: "rope_parameters",
            root: None,
            parts: Parts::default(),
            target: None,
            tokens: None,
            tensors: Arc::default(),
            stored: None,
        };
        params.set_fields()?;
        params.derive()?;
        params.check_assumed(notes)?;
        params.read_rope()?;
        Ok(params)
    }

    /// Fills in the fields that transformers derives from others.
    fn derive(&mut self) -> Result<()> {
        // transformers derives these also where config.json has null.
        let defaults = &self.family.defaults;
        let is_auto = |fields: &Config, name: &str| {
            defaults.get(name).is_some_and(|v| v == "auto")
                && fields.get(name).is_some_and(|v| v.is_null() || v == "auto")
        };
        if is_auto(&self.fields, "num_key_value_heads") {
            let heads = self.count("heads")?;
            self.fields.insert("num_key_value_heads".into(), heads.into());
        }
        if is_auto(&self.fields, "head_dim") && self.count("hidden").and(self.count("heads"))? > 0 {
            self.fields.remove("head_dim");
            let width = self.count("head")?;
            self.fields.insert("head_dim".into(), width.into());
        }
        if is_auto(&self.fields, "n_ctx") {
            let context = self.count("context")?;
            self.fields.insert("n_ctx".into(), context.into());
        }
        Ok(())
    }

    /// Replaces the fields that the family sets.
    fn set_fields(&mut self) -> Result<()> {
        for (name, formula) in &self.family.sets {
            let value = self.value_of(formula, None)?;
            self.fields.insert(name.clone(), value);
        }
        Ok(())
    }

    fn check_assumed(&self, notes: &mut Vec<String>) -> Result<()> {
        for (what, when) in &self.family.refusals {
            if self.holds(Some(when), None)? {
                let finding = Finding::new(self.folder(), "").expected("what this version can convert").found(what);
                return Err(finding.unsupported());
            }
        }
        for (text, when) in &self.family.notes {
            if self.holds(Some(when), None)? {
                notes.push(text.clone());
            }
        }
        for assumed in &self.family.assumed {
            let value = self.fields.get(&assumed.field).unwrap_or(&Json::Null);
            // transformers has two names for this function.
            let value = if value == "swish" { &Json::from("silu") } else { value };
            if assumed.values.iter().any(|allowed| super::language::equal(allowed, value)) {
                continue;
            }
            if !self.holds(assumed.when.as_ref(), None)? {
                continue;
            }
            let allowed: Vec<String> = assumed.values.iter().map(Json::to_string).collect();
            let finding = self.finding(&assumed.field).expected(allowed.join(" or ")).found(value);
            if assumed.is_refused {
                return Err(finding.unsupported());
            }
            notes.push(format!("{finding}; GGUF has no key for it, so llama.cpp computes as if it were as expected"));
        }
        Ok(())
    }

    /// Unifies the two spellings of the rotary fields: `rope_parameters` of transformers 5, and the separate fields of
    /// older configs.
    fn read_rope(&mut self) -> Result<()> {
        let object = |params: &Self, name: &str| match params.get(&[name]) {
            None => Ok(None),
            Some(Json::Object(map)) => Ok(Some(map.clone())),
            Some(other) => Err(params.finding(name).expected("an object").found(other).format()),
        };
        let mut rope = match object(self, "rope_parameters")? {
            Some(map) => map,
            None => {
                self.rope_field = "rope_scaling";
                object(self, "rope_scaling")?.unwrap_or_default()
            }
        };
        self.rope_local = self.number(&[
            "local_rope_theta",
            "rope_local_theta",
            "rope_theta_local",
            "swa_rope_theta",
            "rope_local_base_freq",
        ])?;
        if let Some(local) = rope.get("sliding_attention").cloned() {
            self.rope_local = local.get("rope_theta").and_then(Json::as_f64).or(self.rope_local);
        }
        if let Some(Json::Object(full)) = rope.get("full_attention") {
            rope = full.clone();
        }
        rope.remove("sliding_attention");
        let mut fill = |params: &Self, name: &str, fields: &[&str]| {
            if let (false, Some(value)) = (rope.contains_key(name), params.get(fields)) {
                rope.insert(name.to_owned(), value.clone());
            }
        };
        fill(
            self,
            "rope_theta",
            &["global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base"],
        );
        let parts = ["partial_rotary_factor", "rotary_pct", "rope_pct", "rope_percent"];
        fill(self, "partial_rotary_factor", &parts);
        fill(self, "original_max_position_embeddings", &["original_max_position_embeddings"]);
        if let (false, Some(kind)) = (rope.contains_key("rope_type"), rope.get("type").cloned()) {
            rope.insert("rope_type".to_owned(), kind);
        }
        self.rope = rope;
        Ok(())
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
        const NULLABLE: [&str; 5] =
            ["bos_token_id", "eos_token_id", "num_key_value_heads", "pretraining_tp", "sliding_window"];
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

    /// The count in the first of these fields that has a value; counts go up to 2^31.
    pub(crate) fn whole(&self, names: &[&str]) -> Result<Option<usize>> {
        let Some(value) = self.get(names) else { return Ok(None) };
        let count = value.as_u64().filter(|v| *v <= 1 << 31).map(|v| v as usize);
        count.map(Some).ok_or_else(|| self.finding(names[0]).expected("a count up to 2^31").found(value).format())
    }

    /// A boolean, `default` where the config has none.
    pub(crate) fn flag(&self, name: &str, default: bool) -> bool {
        self.get(&[name]).and_then(Json::as_bool).unwrap_or(default)
    }

    /// The number of layers. It is limited to 65,536, because each takes memory.
    pub(crate) fn layers(&self) -> Result<usize> {
        let fault = |expected: &str, found: String| {
            let name = self.scope(None).subject(&LAYERS);
            Err(self.finding(&name).expected(expected).found(found).format())
        };
        match self.size("layers")? {
            Some(count @ 1..=65_536) => Ok(count),
            Some(count) if count > 0 => fault("at most 65536", count.to_string()),
            other => {
                let found = other.map_or("none".to_owned(), |count| count.to_string());
                fault("a count from 1 to 65536", found)
            }
        }
    }

    /// The value of a `let` of the family as a size; `None` where it is null.
    pub(crate) fn size(&self, name: &str) -> Result<Option<usize>> {
        let formula = Formula::Name(name.to_owned());
        let count = self.scope(None).count(&formula, 1 << 40);
        count.map_err(|fault| self.fault(fault))
    }

    /// The size of this name, at least 1. A single number may be up to 2^31, a product up to 2^40.
    pub(crate) fn count(&self, name: &str) -> Result<usize> {
        let formula = Formula::Name(name.to_owned());
        self.size_of(&formula, None)
    }

    /// The size that a formula gives in a layer, at least 1.
    pub(crate) fn size_of(&self, formula: &Formula, layer: Option<usize>) -> Result<usize> {
        let scope = self.scope(layer);
        match scope.count(formula, 1 << 40).map_err(|fault| self.fault(fault))? {
            Some(count) if count > 0 => Ok(count),
            other => {
                let found = other.map_or("none".to_owned(), |count| count.to_string());
                let finding = self.finding(&scope.subject(formula)).expected("a count from 1 to 2^31");
                Err(finding.found(found).format())
            }
        }
    }

    /// The number that a formula gives in a layer: zero or more; `None` where it is null.
    pub(crate) fn number_of(&self, formula: &Formula, layer: Option<usize>) -> Result<Option<usize>> {
        self.scope(layer).count(formula, 1 << 40).map_err(|fault| self.fault(fault))
    }

    /// The whole number that a formula gives in a layer.
    pub(crate) fn whole_of(&self, formula: &Formula, layer: Option<usize>) -> Result<i64> {
        let value = self.value_of(formula, layer)?;
        let subject = || self.scope(layer).subject(formula);
        let wrong = || self.finding(&subject()).expected("a whole number").found(&value).format();
        super::language::whole(&value).ok_or_else(wrong)
    }

    /// The value that a formula has in a layer.
    pub(crate) fn value_of(&self, formula: &Formula, layer: Option<usize>) -> Result<Json> {
        self.scope(layer).value(formula).map(Cow::into_owned).map_err(|fault| self.fault(fault))
    }

    /// Whether a condition holds in a layer; no condition always does.
    pub(crate) fn holds(&self, formula: Option<&Formula>, layer: Option<usize>) -> Result<bool> {
        formula.map_or(Ok(true), |formula| self.scope(layer).holds(formula).map_err(|fault| self.fault(fault)))
    }

    /// The config's field that a formula is about.
    pub(crate) fn subject(&self, formula: &Formula, layer: Option<usize>) -> String {
        self.scope(layer).subject(formula)
    }

    fn scope<'a>(&'a self, layer: Option<usize>) -> Scope<'a> {
        Scope::of_layer(self, layer)
    }

    /// Says which statement of the user's family file an error comes from.
    pub(crate) fn of_statement<T>(&self, statement: impl FnOnce() -> String, result: Result<T>) -> Result<T> {
        result.map_err(|error| match &self.family.file {
            Some(file) => error.or_hint(|| format!("asked for by `{}` of {}", statement(), file.display())),
            None => error,
        })
    }

    fn fault(&self, fault: Fault) -> crate::Error {
        self.finding(&fault.subject).expected(fault.expected).found(fault.found).format()
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

    /// The settings of the preprocessor: those of preprocessor_config.json, then those of processor_config.json, each
    /// with its inner settings laid over the outer ones (conversion/base.py, `MmprojModel.__init__`).
    fn preprocessor(&self) -> Config {
        let mut all = Config::new();
        for (file, inner) in
            [("preprocessor_config.json", "media_proc_cfg"), ("processor_config.json", "image_processor")]
        {
            let Ok(fields) = read_json_object(&self.folder().join(file)) else { continue };
            let own = fields.get(inner).and_then(Json::as_object).cloned().unwrap_or_default();
            all.extend(fields);
            all.extend(own);
        }
        all
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
            params.set_fields()?;
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

/// The number of layers, for messages.
/// Fields that the vocabulary's keys are made of, for every class.
const TOKEN_IDS: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

static LAYERS: std::sync::LazyLock<Formula> = std::sync::LazyLock::new(|| Formula::Name("main".to_owned()));

/// Whether the family's file reads the field, which its class may lack.
fn is_read(family: &Family, name: &str) -> bool {
    family.reads().contains(name)
}

impl Facts for Params {
    fn formula(&self, name: &str) -> Option<&Formula> {
        self.family.lets.get(name)
    }

    fn field(&self, name: &str) -> Option<Cow<'_, Json>> {
        Some(match name {
            "rope" => Cow::Owned(Json::Object(self.rope.clone())),
            "rope_local" => Cow::Owned(self.rope_local.map_or(Json::Null, Json::from)),
            "class" => Cow::Owned(self.given.get("architectures")?.get(0)?.clone()),
            "no_nextn" => Cow::Owned(self.parts.no_nextn.into()),
            "mtp_only" => Cow::Owned(self.parts.mtp_only.into()),
            "folder_name" => Cow::Owned(self.folder().file_name()?.to_string_lossy().into()),
            "folder" => Cow::Owned(self.folder().file_name()?.to_string_lossy().to_lowercase().into()),
            "dense_modules" => Cow::Owned(self.parts.dense_modules.into()),
            "pre" if self.family.is_projector => Cow::Owned(Json::Object(self.preprocessor())),
            _ => Cow::Borrowed(self.fields.get(name).filter(|value| *value != "auto")?),
        })
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let Some(stored) = &self.stored else { return self.tensors.get(name).map(|tensor| tensor.shape.clone()) };
        // On the way back, a tensor of the checkpoint is there if what it becomes is there.
        let uses = super::lookup::matches(self.family, name, None);
        let is_there = uses.iter().filter_map(|known| known.gguf_name()).any(|name| stored.0.contains(&name));
        is_there.then(Vec::new)
    }

    fn values(&self, name: &str) -> Result<Option<Vec<Json>>, Fault> {
        let Some(tensor) = self.tensors.get(name) else { return Ok(None) };
        if let Some(whole) = tensor.whole_numbers() {
            return Ok(Some(whole.into_iter().map(Json::from).collect()));
        }
        let values = tensor.read().map_err(|error| Fault::new(name, "values that can be read", error))?;
        Ok(Some(values.into_iter().map(|value| Json::from(f64::from(value))).collect()))
    }

    fn file(&self, name: &str) -> Result<Option<Json>, Fault> {
        if !self.exists(name) {
            return Ok(None);
        }
        let path = self.folder().join(name);
        read_json_object(&path)
            .map(|fields| Some(Json::Object(fields)))
            .map_err(|error| Fault::new(name, "a JSON object", error))
    }

    fn exists(&self, name: &str) -> bool {
        // Files of the model alone.
        let is_inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        is_inside && self.folder().join(name).is_file()
    }

    fn token(&self, text: &str) -> Result<Option<u32>, Fault> {
        Ok(self.tokens.as_ref().and_then(|tokens| tokens.id(text)))
    }

    fn gguf(&self, key: &str) -> Option<Json> {
        let (_, keys) = &**self.stored.as_ref()?;
        keys.get(&super::whole_key(&self.family.gguf, key)).map(Value::to_json)
    }

    fn target(&self, name: &str) -> Option<Json> {
        let target = self.target.as_ref()?;
        let inner = target.get("text_config").and_then(|inner| inner.get(name));
        inner.or_else(|| target.get(name)).cloned()
    }

    fn zero_rows(&self, name: &str) -> Result<Vec<usize>, Fault> {
        let (Some(tensor), Some(tokens)) = (self.tensors.get(name), &self.tokens) else { return Ok(Vec::new()) };
        let mut zeros = Vec::new();
        let (mut values, width) = (Vec::new(), tensor.row_len().max(1));
        for start in (tokens.own()..tensor.rows()).step_by(256) {
            let rows = start..(start + 256).min(tensor.rows());
            let read = tensor.read_rows_into(rows, &mut values);
            read.map_err(|error| Fault::new(name, "values that can be read", error))?;
            let is_zero = |row: &[f32]| row.iter().all(|value| *value == 0.0);
            zeros.extend(values.chunks_exact(width).zip(start..).filter(|(row, _)| is_zero(row)).map(|(_, row)| row));
        }
        Ok(zeros)
    }

    fn root(&self, name: &str) -> Option<Json> {
        self.root.as_ref()?.get(name).cloned()
    }
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
        let table = include_str!("../../fixtures/published/fields.tsv");
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
