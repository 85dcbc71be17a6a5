//! Makes config.json from metadata keys: the reverse of [`crate::convert::keys`].
//!
//! Fields without a key are derived from the tensors (biases, tied embeddings), or get the value
//! that llama.cpp assumes for the architecture, or are left to transformers' defaults.

use std::collections::HashSet;

use serde_json::{Map, Value as Json, json};

use crate::arch::rope::{Llama3, YARN};
use crate::arch::{Assumed, Config, Extra, Family, GgufContents, Key, Presence};
use crate::error::{Finding, Result};
use crate::formats::gguf::{Array, Metadata, Value};

/// Keys of an architecture that don't affect its config.
const WITHOUT_FIELD: &[&str] = &["vocab_size", "rope.dimension_count", "tensor_data_layout"];

/// The config of a model with these keys and tensors. `vocab_size` is the number of rows of its
/// embeddings, `factors` the tensors that scale its rotary frequencies.
pub(super) fn config(
    family: &Family,
    found: &GgufContents,
    vocab_size: usize,
    factors: &RopeFactors,
    notes: &mut Vec<String>,
) -> Result<Config> {
    let metadata = found.metadata;
    let mut writer = Writer { family, metadata, config: Map::new(), taken: HashSet::new(), scaling: Map::new() };
    writer.put("architectures", json!([family.class]));
    writer.put("model_type", json!(family.model_type));
    for key in family.keys {
        writer.read(key)?;
    }
    writer.put("vocab_size", json!(vocab_size));
    writer.heads()?;
    writer.flags(found);
    writer.rope(factors, notes)?;
    writer.assumed();
    writer.own(found)?;
    writer.token_ids();
    writer.refuse_unread()?;
    Ok(writer.config)
}

/// Tensors that GGUF stores in place of config fields.
#[derive(Default)]
pub(super) struct RopeFactors {
    pub(super) freqs: Option<Vec<f32>>,
    pub(super) long: Option<Vec<f32>>,
    pub(super) short: Option<Vec<f32>>,
}

struct Writer<'a> {
    family: &'a Family,
    metadata: &'a Metadata,
    config: Config,
    /// Keys that were read, without the architecture prefix.
    taken: HashSet<String>,
    /// The future content of `rope_scaling`.
    scaling: Map<String, Json>,
}

impl Writer<'_> {
    fn put(&mut self, field: &str, value: Json) {
        self.config.insert(field.to_owned(), value);
    }

    /// Whether the class has this field.
    fn has_field(&self, field: &str) -> bool {
        self.family.has_field(field)
    }

    /// The first of these names that is a field of the class.
    fn field(&self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().copied().find(|name| self.has_field(name))
    }

    fn full(&mut self, name: &str) -> String {
        self.taken.insert(name.to_owned());
        format!("{}.{name}", self.family.gguf)
    }

    fn count(&mut self, name: &str) -> Result<Option<u32>> {
        let key = self.full(name);
        self.metadata.get(&key).is_some().then(|| self.metadata.u32(&key)).transpose()
    }

    fn number(&mut self, name: &str) -> Result<Option<Json>> {
        let key = self.full(name);
        if self.metadata.get(&key).is_none() {
            return Ok(None);
        }
        let value = self.metadata.f64(&key)?;
        if !value.is_finite() {
            return Err(self.metadata.finding(&key).expected("a finite number").found(value).format());
        }
        Ok(Some(decimal(value as f32)))
    }

    fn truth(&mut self, name: &str) -> Result<Option<bool>> {
        let key = self.full(name);
        self.metadata.get(&key).is_some().then(|| self.metadata.bool(&key)).transpose()
    }

    fn read(&mut self, key: &Key) -> Result<()> {
        match *key {
            Key::Group(keys) => keys.iter().try_for_each(|key| self.read(key))?,
            Key::U32(name, fields) => {
                if let (Some(value), Some(field)) = (self.count(name)?, self.field(fields)) {
                    self.put(field, json!(value));
                }
            }
            Key::F32(name, fields) => {
                if let (Some(value), Some(field)) = (self.number(name)?, self.field(fields)) {
                    self.put(field, value);
                }
            }
            Key::Scale(name, field) => {
                if let Some(value) = self.number(name)? {
                    self.put(field, value);
                }
            }
            Key::Bool(name, field, default) => {
                let value = self.truth(name)?.unwrap_or(default);
                self.put(field, json!(value));
            }
            // Constants don't affect the config.
            Key::Text(name, _) | Key::Const(name, _) | Key::Flag(name, _) => {
                self.full(name);
            }
            Key::Epsilon(_) => {
                self.full("attention.layer_norm_epsilon");
            }
            Key::FeedForward(field) => {
                if let Some(value) = self.count("feed_forward_length")? {
                    self.put(field, json!(value));
                }
            }
            Key::HeadDim => {
                let (width, values) = (self.count("attention.key_length")?, self.count("attention.value_length")?);
                if width != values {
                    let shown = |count: Option<_>| count.map_or("none".to_owned(), |count| format!("{count}"));
                    return Err(self
                        .metadata
                        .finding(&self.full("attention.value_length"))
                        .expected(format_args!("{}, as attention.key_length", shown(width)))
                        .found(shown(values))
                        .unsupported());
                }
                if let Some(width) = width {
                    self.put("head_dim", json!(width));
                }
            }
            Key::RopeWholeHead => {
                let width = self.count("rope.dimension_count")?;
                let of = |name: &str| self.config.get(name).and_then(Json::as_u64);
                let divided = of("hidden_size").zip(of("num_attention_heads")).and_then(|(h, n)| h.checked_div(n));
                let known = self.config.contains_key("head_dim") || !self.has_field("head_dim");
                if let (Some(width), false) = (width, known || width.map(u64::from) == divided) {
                    self.put("head_dim", json!(width));
                }
            }
            // `rope` handles this, because it needs the width of a head.
            Key::RopePart => {
                self.full("rope.dimension_count");
            }
            Key::RopeScaling => self.rope_scaling()?,
            Key::Rope(name, field) => {
                if let Some(value) = self.number(name)? {
                    self.scaling.insert(field.to_owned(), value);
                }
            }
            Key::RopeBase => {
                if let Some(theta) = self.number("rope.freq_base")? {
                    self.put("rope_theta", theta);
                }
            }
            Key::RopeBaseLocal => {
                if let Some(theta) = self.number("rope.freq_base_swa")?
                    && self.has_field("rope_local_base_freq")
                {
                    self.put("rope_local_base_freq", theta);
                }
            }
            Key::OriginalContext => {
                if let Some(context) = self.count("rope.scaling.original_context_length")? {
                    self.put("original_max_position_embeddings", json!(context));
                }
            }
            Key::WindowOrZero => {
                let window = self.count("attention.sliding_window")?.filter(|window| *window > 0);
                self.put("sliding_window", json!(window));
            }
            Key::LocalWindow { .. } => match self.count("attention.sliding_window")?.filter(|window| *window > 0) {
                Some(window) => self.put("sliding_window", json!(window)),
                None => self.put("sliding_window_pattern", json!(1)),
            },
            Key::ContextAfterPadding => {
                let padding = self.metadata.get("tokenizer.ggml.padding_token_id").and_then(Value::as_unsigned);
                let padding = padding.filter(|id| *id < 1 << 31).unwrap_or(1);
                if let Some(context) = self.count("context_length")? {
                    self.put("max_position_embeddings", json!(u64::from(context) + padding + 1));
                }
            }
            Key::FileType => {}
            Key::NotCausal => {
                let always = self.family.keys.iter().any(|key| matches!(key, Key::Flag("attention.causal", _)));
                if self.truth("attention.causal")? == Some(false) && !always && self.family.gguf != "bert" {
                    self.put("is_causal", json!(false));
                }
            }
            // Pooling becomes a separate folder: see `pooling` in `restore`.
            Key::Pooling => {
                self.full("pooling_type");
            }
            Key::Labels => {
                let key = self.full("classifier.output_labels");
                if let Some(Value::Array(Array::String(labels))) = self.metadata.get(&key) {
                    let texts = labels.iter().map(|label| String::from_utf8_lossy(label).into_owned());
                    let labels: Vec<String> = texts.collect();
                    let by_number = labels.iter().enumerate().map(|(i, label)| (i.to_string(), json!(label)));
                    self.put("id2label", Json::Object(by_number.collect()));
                    let by_label = labels.iter().enumerate().map(|(i, label)| (label.clone(), json!(i)));
                    self.put("label2id", Json::Object(by_label.collect()));
                }
            }
        }
        Ok(())
    }

    /// Fills in the counts that llama.cpp derives where their keys are missing.
    fn heads(&mut self) -> Result<()> {
        let key = format!("{}.attention.head_count", self.family.gguf);
        let heads = self.metadata.u32(&key)?;
        if heads == 0 {
            return Err(self.metadata.finding(&key).expected("at least 1").found(heads).format());
        }
        if self.has_field("num_key_value_heads") && !self.config.contains_key("num_key_value_heads") {
            let encoder = self.family.gguf == "bert";
            if !encoder {
                self.put("num_key_value_heads", json!(heads));
            }
        }
        let width = self.config.get("hidden_size").and_then(Json::as_u64);
        let defaults = self.family.default_fields();
        // llama.cpp divides the hidden size by the heads; the class has a fixed default instead.
        let fixed = defaults.get("head_dim").is_some_and(Json::is_number);
        if let (true, false, Some(width)) = (fixed, self.config.contains_key("head_dim"), width) {
            self.put("head_dim", json!(width / u64::from(heads)));
        }
        Ok(())
    }

    /// Sets the flags that follow from which tensors exist.
    fn flags(&mut self, found: &GgufContents) {
        let defaults = self.family.default_fields();
        let mut flags: Vec<(&str, bool)> = Vec::new();
        let mut note = |field: &'static str, value: bool| match flags.iter_mut().find(|(known, _)| *known == field) {
            Some((_, known)) => *known |= value,
            None => flags.push((field, value)),
        };
        for tensor in self.family.tensors.iter().copied().flatten() {
            let here =
                |suffix: &str| found.tensors.contains(format!("{}.{suffix}", tensor.gguf.replace("{}", "0")).as_str());
            if let Presence::If(field) = tensor.bias {
                note(field, here("bias"));
            }
            match tensor.presence {
                Presence::If(field) => note(field, here("weight")),
                // Unless a key has set the field already.
                Presence::Unless(field) if !self.config.contains_key(field) => note(field, !here("weight")),
                _ => {}
            }
        }
        for (field, value) in flags {
            if defaults.get(field).and_then(Json::as_bool) != Some(value) || field == "tie_word_embeddings" {
                self.put(field, json!(value));
            }
        }
        // A model without a separate output head can only use its embeddings.
        if self.has_field("tie_word_embeddings") && !self.config.contains_key("tie_word_embeddings") {
            self.put("tie_word_embeddings", json!(true));
        }
    }

    fn rope_scaling(&mut self) -> Result<()> {
        let key = self.full("rope.scaling.type");
        let Some(kind) = self.metadata.get(&key) else { return Ok(()) };
        let kind = kind.as_text().unwrap_or_default().to_owned();
        match kind.as_str() {
            "none" => return Ok(()),
            "linear" | "yarn" => {}
            _ => {
                let finding = self.metadata.finding(&key);
                return Err(finding.expected("none, linear or yarn").found(kind).unsupported());
            }
        }
        self.scaling.insert("rope_type".into(), json!(kind));
        if let Some(factor) = self.number("rope.scaling.factor")? {
            self.scaling.insert("factor".into(), factor);
        }
        if kind == "yarn" {
            if let Some(context) = self.count("rope.scaling.original_context_length")? {
                self.scaling.insert("original_max_position_embeddings".into(), json!(context));
            }
            for (name, fields) in YARN {
                if let Some(value) = self.number(&format!("rope.scaling.{name}"))? {
                    self.scaling.insert(fields[0].into(), value);
                }
            }
        }
        Ok(())
    }

    /// Sets the scaling of rotary frequencies, and the part of a head that is rotated.
    fn rope(&mut self, factors: &RopeFactors, notes: &mut Vec<String>) -> Result<()> {
        let heads = u64::from(self.metadata.u32(&format!("{}.attention.head_count", self.family.gguf))?);
        let field = |config: &Config, name: &str| config.get(name).and_then(Json::as_u64);
        let width = field(&self.config, "head_dim")
            .or(field(&self.config, "hidden_size").map(|hidden| hidden / heads))
            .unwrap_or_default();
        if self.family.keys.iter().any(|key| matches!(key, Key::RopePart))
            && let Some(rotated) = self.count("rope.dimension_count")?
        {
            let name = if self.has_field("rotary_pct") { "rotary_pct" } else { "partial_rotary_factor" };
            self.put(name, json!(f64::from(rotated) / width.max(1) as f64));
        }
        match (self.family.extra, factors) {
            (Extra::RopeFreqs, RopeFactors { freqs: Some(freqs), .. }) => {
                let theta = self.config.get("rope_theta").and_then(Json::as_f64).unwrap_or(10000.0);
                let context = field(&self.config, "max_position_embeddings").unwrap_or(8192);
                let llama3 = Llama3::from_factors(freqs, theta, context).ok_or_else(|| {
                    Finding::new(self.metadata.file(), "tensor \"rope_freqs.weight\"")
                        .expected("divisors as Llama 3's scaling makes them")
                        .found("others")
                        .unsupported()
                })?;
                notes.push(format!(
                    "rope_freqs.weight: written as llama3 scaling by {} with factors {} and {} over {} positions, which \
                     give the same divisors",
                    llama3.factor, llama3.low, llama3.high, llama3.context
                ));
                self.scaling = llama3.fields();
            }
            (Extra::LongFactors, RopeFactors { long: Some(long), short: Some(short), .. }) => {
                self.full("rope.scaling.attn_factor");
                let list = |values: &[f32]| values.iter().map(|v| decimal(*v)).collect::<Vec<_>>();
                self.scaling.insert("rope_type".into(), json!("longrope"));
                self.scaling.insert("long_factor".into(), json!(list(long)));
                self.scaling.insert("short_factor".into(), json!(list(short)));
            }
            _ => {}
        }
        if !self.scaling.is_empty() {
            let mut scaling = std::mem::take(&mut self.scaling);
            // A class with rotary parameters of its own takes those, unless they stand in this field.
            match self.family.default_fields().get("rope_parameters") {
                Some(Json::Object(defaults)) => {
                    scaling.extend(defaults.get("mscale").map(|value| ("mscale".to_owned(), value.clone())));
                    scaling.extend(self.config.remove("rope_theta").map(|theta| ("rope_theta".to_owned(), theta)));
                    self.put("rope_parameters", Json::Object(scaling));
                }
                _ => self.put("rope_scaling", Json::Object(scaling)),
            }
        }
        Ok(())
    }

    /// Sets fields without a key whose default isn't the value that llama.cpp assumes.
    fn assumed(&mut self) {
        let defaults = self.family.default_fields();
        for Assumed { field, values, .. } in self.family.assumed {
            let value = values.split('|').next().and_then(|text| serde_json::from_str::<Json>(text).ok());
            if let (Some(value), false) = (value, self.config.contains_key(*field))
                && defaults.get(*field) != Some(&value)
            {
                self.put(field, value);
            }
        }
    }

    /// Sets fields that only some architectures have.
    fn own(&mut self, found: &GgufContents) -> Result<()> {
        let number = |config: &Config, field: &str| config.get(field).and_then(Json::as_u64).unwrap_or_default();
        if self.has_field("query_pre_attn_scalar") {
            // llama.cpp recognizes the 27B models by their number of layers; all others scale by a
            // head's width.
            let layers = number(&self.config, "num_hidden_layers");
            let wide = matches!((self.family.gguf, layers), ("gemma2", 46) | ("gemma3", 62));
            let heads = number(&self.config, "num_attention_heads").max(1);
            let hidden = number(&self.config, "hidden_size");
            let scalar = if wide { hidden / heads } else { number(&self.config, "head_dim") };
            self.put("query_pre_attn_scalar", json!(scalar));
        }
        if self.family.gguf == "falcon" {
            let heads = number(&self.config, "num_attention_heads");
            let groups = number(&self.config, "num_kv_heads");
            if groups == 0 {
                let finding = self.metadata.finding("falcon.attention.head_count_kv").expected("a count");
                return Err(finding.found(groups).mismatch());
            }
            let two_norms = found.tensors.contains("blk.0.attn_norm_2.weight");
            let new = two_norms || (groups > 1 && groups != heads);
            self.put("new_decoder_architecture", json!(new));
            self.put("multi_query", json!(groups == 1));
            if new && !two_norms {
                self.put("num_ln_in_parallel_attn", json!(1));
            }
        }
        if self.family.tensors.iter().copied().flatten().any(|tensor| tensor.gguf == "token_types") {
            let key = "tokenizer.ggml.token_type_count";
            if self.metadata.get(key).is_some() {
                let types = self.metadata.u32(key)?;
                self.put("type_vocab_size", json!(types));
            }
        }
        Ok(())
    }

    fn token_ids(&mut self) {
        let ids = [("bos", "bos"), ("eos", "eos"), ("pad", "padding")];
        for (name, key) in ids {
            let id = self.metadata.get(&format!("tokenizer.ggml.{key}_token_id")).and_then(Value::as_unsigned);
            self.put(&format!("{name}_token_id"), json!(id));
        }
    }

    /// Refuses a key of the architecture that wasn't read, because it may change what the model
    /// computes.
    fn refuse_unread(&self) -> Result<()> {
        let prefix = format!("{}.", self.family.gguf);
        for (key, value) in self.metadata.iter() {
            let Some(name) = key.strip_prefix(&prefix) else { continue };
            if !self.taken.contains(name) && !WITHOUT_FIELD.contains(&name) {
                return Err(self
                    .metadata
                    .finding(key)
                    .expected(format_args!("a key that {} has a field for", self.family.class))
                    .found(value)
                    .unsupported());
            }
        }
        Ok(())
    }
}

/// A float32 as the shortest decimal that parses to it: 1e-6, not 9.99999997e-7.
fn decimal(value: f32) -> Json {
    json!(value.to_string().parse::<f64>().unwrap_or(f64::from(value)))
}
