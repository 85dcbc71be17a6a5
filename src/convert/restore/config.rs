//! Makes config.json from metadata keys: the reverse of [`crate::convert::keys`].
//!
//! Fields without a key are derived from the tensors (biases, tied embeddings), or get the value
//! that llama.cpp assumes for the architecture, or are left to transformers' defaults.

mod rope;

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::LazyLock;

use serde_json::{Map, Value as Json, json};

use super::fields::Inverse;
use crate::arch::language::{Facts, Fault, Formula, Function, Scope, Unary};
use crate::arch::{Config, Family, GgufContents, Key, KeyGroup, KeyType, whole_key};
use crate::error::{Finding, Result};
use crate::formats::gguf::{Array, Metadata, Value};

/// Keys of an architecture that don't affect its config.
const WITHOUT_FIELD: &[&str] = &["vocab_size", "rope.dimension_count", "tensor_data_layout"];

/// The config of a model with these keys and tensors. `vocab_size` is the number of rows of its
/// embeddings, `factors` the tensors that scale its rotary frequencies.
pub(super) fn config(
    family: &'static Family,
    found: &GgufContents,
    vocab_size: usize,
    factors: &RopeFactors,
    notes: &mut Vec<String>,
) -> Result<Config> {
    let mut writer = Writer {
        family,
        found,
        factors,
        config: Map::new(),
        taken: HashSet::new(),
        solved: HashSet::new(),
        scaling: Map::new(),
        late: Vec::new(),
    };
    writer.put("architectures", json!([family.class()]));
    writer.put("model_type", json!(family.model_type()));
    // Of several statements for one key, the last one that isn't null is written, so it is solved first.
    for key in family.early_keys.iter().chain(&family.keys).chain(&family.vocab_keys).rev() {
        writer.read(key)?;
    }
    writer.put("vocab_size", json!(vocab_size));
    writer.heads()?;
    writer.flags();
    writer.derived()?;
    writer.own(|field| field.starts_with(ROPE))?;
    writer.rope(notes)?;
    writer.assumed();
    writer.token_ids();
    writer.own(|field| !field.starts_with(ROPE))?;
    writer.refuse_unread()?;
    Ok(writer.whole())
}

/// Tensors that GGUF stores in place of config fields.
#[derive(Default)]
pub(super) struct RopeFactors {
    pub(super) freqs: Option<Vec<f32>>,
    pub(super) long: Option<Vec<f32>>,
    pub(super) short: Option<Vec<f32>>,
}

impl RopeFactors {
    /// The values of a tensor.
    fn named(&self, name: &str) -> Option<&[f32]> {
        let values = match name {
            "rope_freqs.weight" => &self.freqs,
            "rope_factors_long.weight" => &self.long,
            "rope_factors_short.weight" => &self.short,
            _ => return None,
        };
        values.as_deref()
    }
}

struct Writer<'a> {
    family: &'static Family,
    found: &'a GgufContents<'a>,
    factors: &'a RopeFactors,
    config: Config,
    /// Keys that were read.
    taken: HashSet<String>,
    /// Keys from which a field followed.
    solved: HashSet<String>,
    /// The future content of `rope_scaling`.
    scaling: Map<String, Json>,
    /// Fields with a value that other fields may imply: the field, the value, and what is implied.
    late: Vec<(String, Json, &'static Formula)>,
}

/// The config so far, with the GGUF: what formulas of `back` ask.
impl Facts for Writer<'_> {
    fn formula(&self, name: &str) -> Option<&Formula> {
        self.family.lets.get(name)
    }

    fn field(&self, name: &str) -> Option<Cow<'_, Json>> {
        match name {
            "absent" => Some(Cow::Owned(json!(ABSENT))),
            "rope" => Some(Cow::Owned(Json::Object(self.scaling.clone()))),
            _ => self.config.get(name).map(Cow::Borrowed),
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.found.shape(name)
    }

    fn gguf(&self, key: &str) -> Option<Json> {
        self.found.gguf(key)
    }

    fn values(&self, name: &str) -> std::result::Result<Option<Vec<Json>>, Fault> {
        let values = self.factors.named(name);
        Ok(values.map(|values| values.iter().map(|value| decimal(*value)).collect()))
    }
}

/// The number of the model's own layers.
static MAIN: LazyLock<Formula> = LazyLock::new(|| Formula::Name("main".to_owned()));

/// The start of the names of rotary fields.
const ROPE: &str = "rope.";

/// The value of `absent` in a `back` statement.
const ABSENT: &str = "\u{0}absent";

impl Writer<'_> {
    fn metadata(&self) -> &Metadata {
        self.found.metadata
    }

    fn put(&mut self, field: &str, value: Json) {
        match field.split_once('.') {
            Some(("rope", inner)) => drop(self.scaling.insert(inner.to_owned(), value)),
            Some((outer, inner)) => {
                let fields = self.config.entry(outer).or_insert_with(|| json!({}));
                if let Some(fields) = fields.as_object_mut() {
                    fields.insert(inner.to_owned(), value);
                }
            }
            None => drop(self.config.insert(field.to_owned(), value)),
        }
    }

    /// The config, with the text model's fields where the class has them.
    fn whole(mut self) -> Config {
        // transformers refuses whole numbers where a class has a number with a point.
        for (field, value) in &mut self.config {
            let is_float = self.family.defaults.get(field).is_some_and(Json::is_f64);
            if let (true, false, Some(number)) = (is_float, value.is_f64(), value.as_f64()) {
                *value = json!(number);
            }
        }
        let Some((field, model_type)) = &self.family.inside else { return self.config };
        let is_of_whole = |name: &str| {
            let of_others = self.family.back.iter().filter_map(|(field, _)| field.split_once('.'));
            matches!(name, "architectures" | "model_type") || of_others.into_iter().any(|(outer, _)| outer == name)
        };
        let (mut whole, mut text): (Config, Config) = self.config.into_iter().partition(|(name, _)| is_of_whole(name));
        // The output head belongs to the whole, and so does what says whether there is one.
        whole.extend(text.get("tie_word_embeddings").map(|tied| ("tie_word_embeddings".to_owned(), tied.clone())));
        text.insert("model_type".to_owned(), json!(model_type));
        whole.insert(field.clone(), Json::Object(text));
        whole
    }

    /// Whether the class has this field.
    fn has_field(&self, field: &str) -> bool {
        self.family.has_field(field.split('.').next().unwrap_or_default()) || field.starts_with("rope.")
    }

    fn full(&mut self, name: &str) -> String {
        let key = whole_key(&self.family.gguf, name);
        self.taken.insert(key.clone());
        key
    }

    fn count(&mut self, name: &str) -> Result<Option<u32>> {
        let key = self.full(name);
        self.metadata().get(&key).is_some().then(|| self.metadata().u32(&key)).transpose()
    }

    fn number(&mut self, name: &str) -> Result<Option<Json>> {
        let key = self.full(name);
        if self.metadata().get(&key).is_none() {
            return Ok(None);
        }
        let value = self.metadata().f64(&key)?;
        if !value.is_finite() {
            return Err(self.metadata().finding(&key).expected("a finite number").found(value).format());
        }
        Ok(Some(decimal(value as f32)))
    }

    fn read(&mut self, key: &'static Key) -> Result<()> {
        match key {
            Key::Value { name, value: formula, kind, .. } => {
                let key = self.full(name);
                if self.solved.contains(&key) {
                    return Ok(());
                }
                let Some(value) = self.metadata().get(&key) else { return Ok(()) };
                let is_finite = match value {
                    Value::F32(v) => v.is_finite(),
                    Value::F64(v) => v.is_finite(),
                    _ => true,
                };
                if !is_finite {
                    return Err(self.metadata().finding(&key).expected("a finite number").found(value).format());
                }
                let json = value.to_json();
                if !is_of_kind(*kind, &json) {
                    let expected = match kind {
                        KeyType::Text => "a text",
                        KeyType::Bool => "true or false",
                        _ => "a number",
                    };
                    return Err(self.metadata().finding(&key).expected(expected).found(value).format());
                }
                self.solve(&key, formula, json)?;
            }
            Key::Group(KeyGroup::Rope) => {
                self.rope_scaling()?;
                self.rope_sections();
                self.rope_bases()?;
            }
            Key::Group(KeyGroup::RopeScaling) => self.rope_scaling()?,
            Key::Group(KeyGroup::RopeBase) => self.rope_bases()?,
            Key::Group(KeyGroup::FileType) => {}
            // Pooling becomes a separate folder: see `pooling` in `restore`.
            Key::Group(KeyGroup::Pooling) => {
                self.full("pooling_type");
            }
            Key::Group(KeyGroup::Labels) => {
                let key = self.full("classifier.output_labels");
                if let Some(Value::Array(Array::String(labels))) = self.metadata().get(&key) {
                    let texts = labels.iter().map(|label| String::from_utf8_lossy(label).into_owned());
                    let labels: Vec<String> = texts.collect();
                    let by_number = labels.iter().enumerate().map(|(i, label)| (i.to_string(), json!(label)));
                    let by_number = by_number.collect();
                    self.put("id2label", Json::Object(by_number));
                    let by_label = labels.iter().enumerate().map(|(i, label)| (label.clone(), json!(i)));
                    self.put("label2id", Json::Object(by_label.collect()));
                }
            }
        }
        Ok(())
    }

    /// Sets the fields that make `formula` have this value.
    fn solve(&mut self, key: &str, formula: &'static Formula, value: Json) -> Result<()> {
        let has_field = |name: &str| self.has_field(name);
        let inverse = Inverse { family: self.family, has_field: &has_field };
        let layers = Formula::Name("layers".to_owned());
        let found = match *formula == layers {
            // Layers for multi-token prediction are counted, too.
            true => {
                let next = self.found.gguf("nextn_predict_layers").and_then(|count| count.as_u64()).unwrap_or(0);
                let main = value.as_u64().map(|count| json!(count.saturating_sub(next)));
                main.and_then(|main| inverse.solve(&MAIN, main))
            }
            false => inverse.solve(formula, value),
        };
        // A computed value replaces what earlier statements for the key say.
        let is_plain = matches!(formula, Formula::Name(_) | Formula::Member(..) | Formula::Coalesce(_));
        if found.is_some() || !is_plain {
            self.solved.insert(key.to_owned());
        }
        if let Some((field, value, implied)) = found {
            match implied {
                Some(implied) => self.late.push((field, value, implied)),
                None => match self.config.get(&field) {
                    Some(known) if !crate::arch::language::equal(known, &value) => {
                        return Err(self
                            .metadata()
                            .finding(key)
                            .expected(format_args!("{known}, as another key says of {field}"))
                            .found(value)
                            .unsupported());
                    }
                    _ => self.put(&field, value),
                },
            }
        }
        Ok(())
    }

    /// Sets the fields whose value other fields don't imply.
    fn derived(&mut self) -> Result<()> {
        for (field, value, implied) in std::mem::take(&mut self.late) {
            if self.config.contains_key(&field) {
                continue;
            }
            let same = {
                let scope = Scope::new(&*self);
                scope.value(implied).is_ok_and(|implied| crate::arch::language::equal(&implied, &value))
            };
            let default = self.family.defaults.get(&field);
            let is_default = default.is_none_or(|default| {
                default.is_null() || default == "auto" || crate::arch::language::equal(default, &value)
            });
            if !same || !is_default {
                self.put(&field, value);
            }
        }
        Ok(())
    }

    /// Fills in the counts that llama.cpp derives where their keys are missing.
    fn heads(&mut self) -> Result<()> {
        let key = format!("{}.attention.head_count", self.family.gguf);
        let Some(heads) = self.metadata().get(&key).and_then(Value::as_unsigned) else { return Ok(()) };
        let is_recurrent = self.metadata().get(&format!("{}.ssm.conv_kernel", self.family.gguf)).is_some();
        let is_fixed = self.family.keys.iter().any(
            |key| matches!(key, Key::Value { name, value: Formula::Literal(_), .. } if name == "attention.head_count"),
        );
        if heads == 0 && !is_recurrent && !is_fixed {
            return Err(self.metadata().finding(&key).expected("at least 1").found(heads).format());
        }
        if heads > 0
            && self.has_field("num_key_value_heads")
            && !self.config.contains_key("num_key_value_heads")
            && self.family.gguf != "bert"
        {
            self.put("num_key_value_heads", json!(heads));
        }
        let width = self.config.get("hidden_size").and_then(Json::as_u64);
        // llama.cpp divides the hidden size by the heads; the class has a fixed default instead.
        let fixed = self.family.defaults.get("head_dim").is_some_and(Json::is_number);
        if let (true, false, Some(width)) = (fixed && heads > 0, self.config.contains_key("head_dim"), width) {
            self.put("head_dim", json!(width / heads));
        }
        Ok(())
    }

    /// Sets the flags that follow from which tensors exist.
    fn flags(&mut self) {
        let defaults = &self.family.defaults;
        let mut flags: Vec<(&str, bool)> = Vec::new();
        for row in &self.family.rows {
            let here = self.found.tensors.contains_key(row.gguf.text().replace("{l}", "0").as_str());
            let (field, value) = match &row.when {
                Some(Formula::Name(field)) => (field, here),
                Some(Formula::Unary(Unary::Not, of)) => match &**of {
                    // Unless a key has set the field already.
                    Formula::Name(field) if !self.config.contains_key(field) => (field, !here),
                    _ => continue,
                },
                _ => continue,
            };
            let field = match self.family.lets.get(field) {
                Some(Formula::Name(field)) => field,
                Some(_) => continue,
                None => field,
            };
            match flags.iter_mut().find(|(known, _)| known == field) {
                Some((_, known)) => *known |= value,
                None => flags.push((field, value)),
            }
        }
        for (field, value) in flags {
            if defaults.get(field).and_then(Json::as_bool) != Some(value) || field == "tie_word_embeddings" {
                self.put(field, json!(value));
            }
        }
        // A model without a separate output head can only use its embeddings.
        if self.has_field("tie_word_embeddings") && !self.config.contains_key("tie_word_embeddings") {
            self.put("tie_word_embeddings", json!(!self.found.tensors.contains_key("output.weight")));
        }
    }

    /// Sets fields without a key whose default isn't the value that llama.cpp assumes.
    fn assumed(&mut self) {
        for assumed in &self.family.assumed {
            if let (Some(value), false) = (assumed.values.first(), self.config.contains_key(&assumed.field))
                && self.family.defaults.get(&assumed.field) != Some(value)
                && self.has_field(&assumed.field)
            {
                self.put(&assumed.field, value.clone());
            }
        }
    }

    /// Sets those of the fields for which the family has formulas that `is_wanted` selects.
    fn own(&mut self, is_wanted: impl Fn(&str) -> bool) -> Result<()> {
        for (field, formula) in self.family.back.iter().filter(|(field, _)| is_wanted(field)) {
            formula.visit(&mut |part| {
                if let Formula::Call(Function::Gguf, arguments) = part
                    && let Some(Formula::Literal(Json::String(key))) = arguments.first()
                {
                    self.taken.insert(whole_key(&self.family.gguf, key));
                }
            });
            let value = {
                let scope = Scope::new(&*self);
                scope.value(formula).map(Cow::into_owned)
            };
            let value = value.map_err(|fault| {
                let finding = Finding::new(self.metadata().file(), fault.subject).expected(fault.expected);
                finding.found(fault.found).mismatch()
            })?;
            match value {
                Json::String(text) if text == ABSENT => drop(self.config.remove(field)),
                // Where nothing is scaled, there is nothing to add to.
                _ if field.starts_with(ROPE) && self.scaling.is_empty() && self.factors.long.is_none() => {}
                value => self.put(field, value),
            }
        }
        Ok(())
    }

    fn token_ids(&mut self) {
        let ids = [("bos", "bos"), ("eos", "eos"), ("pad", "padding")];
        for (name, key) in ids {
            let id = self.metadata().get(&format!("tokenizer.ggml.{key}_token_id")).and_then(Value::as_unsigned);
            self.put(&format!("{name}_token_id"), json!(id));
        }
    }

    /// Refuses a key of the architecture that wasn't read, because it may change what the model
    /// computes.
    fn refuse_unread(&self) -> Result<()> {
        let prefix = format!("{}.", self.family.gguf);
        for (key, value) in self.metadata().iter() {
            let Some(name) = key.strip_prefix(&prefix) else { continue };
            if !self.taken.contains(key) && !WITHOUT_FIELD.contains(&name) {
                return Err(self
                    .metadata()
                    .finding(key)
                    .expected(format_args!("a key that {} has a field for", self.family.class()))
                    .found(value)
                    .unsupported());
            }
        }
        Ok(())
    }
}

/// Whether a key of this type can have the value, or a list of such values.
fn is_of_kind(kind: KeyType, value: &Json) -> bool {
    match (kind, value) {
        (_, Json::Array(values)) => values.iter().all(|value| is_of_kind(kind, value)),
        (KeyType::Text, value) => value.is_string(),
        (KeyType::Bool, value) => value.is_boolean(),
        // Infinity is null in JSON.
        (_, value) => value.is_number() || value.is_null(),
    }
}

/// A float32 as the shortest decimal that parses to it: 1e-6, not 9.99999997e-7.
fn decimal(value: f32) -> Json {
    json!(value.to_string().parse::<f64>().unwrap_or(f64::from(value)))
}
