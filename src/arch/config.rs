//! The config of the decoders that this crate runs: [`Params`], checked and typed.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::computation::Computation;
use super::params::{Params, Purpose, class};
use super::parts::Part;
use super::{ExpertParameter, Family, LinearLayer, Module, Role, experts, registry};
use crate::error::{Error, Finding, Result};

/// The part of a decoder's config that determines its weights and its computation.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // The fields carry the config's own names.
pub struct ModelConfig {
    /// The class in transformers.
    pub class: &'static str,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    /// The dimensions of a head's queries and keys.
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
    pub bos_token_id: Option<u32>,
    /// Each of these tokens ends a text.
    pub eos_token_ids: Vec<u32>,
    /// How it computes.
    pub(crate) computation: Arc<Computation>,
    /// Its linear layers.
    linears: Arc<[Linear]>,
    /// The parameters with its experts.
    experts: Arc<[ExpertParameter]>,
    /// The config from which this was read.
    pub(crate) origin: Origin,
}

/// A linear layer of a decoder, with its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// Where it is.
    pub site: LinearLayer,
    /// The number of its outputs.
    pub d_out: usize,
    /// The number of its inputs.
    pub d_in: usize,
    /// Whether the checkpoint has its weight as `[d_in, d_out]`.
    pub is_transposed: bool,
}

/// The completed config from which a [`ModelConfig`] was made. It is ignored when two [`ModelConfig`]s are compared,
/// because the same model can be described by different spellings.
#[derive(Debug, Clone)]
pub(crate) struct Origin(pub(crate) Arc<Params>);

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl ModelConfig {
    /// Checks `json`, read from the file at `path`, against the family of its class. Fields that it leaves out have
    /// transformers' defaults.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for a class that this version can't run, and for an unknown field that could
    /// change what the model computes; [`crate::Error::Format`] for a value of the wrong kind;
    /// [`crate::Error::Mismatch`] for values that contradict each other.
    pub fn from_json(path: &Path, json: &Map<String, Value>) -> Result<Self> {
        let class = class(json);
        let Some(family) = class.and_then(|class| registry::of_class(class, json)) else {
            let finding = Finding::new(path, "architectures").expected("a class that this version runs");
            return Err(finding.found(class.unwrap_or("none")).hint("`families` lists them").unsupported());
        };
        if !class.is_some_and(|class| family.runs.iter().any(|runs| runs == class)) {
            return Err(not_run(path, family, class.unwrap_or_default()));
        }
        // The notes are about what GGUF can't express, which doesn't matter here.
        let mut params = Params::complete(family, path, json, &mut Vec::new(), Purpose::Run)?;
        params.refuse_unknown()?;
        params.refuse_nulls()?;
        params.adopt("head_dim");
        Self::of(params)
    }

    fn of(params: Params) -> Result<Self> {
        // Layers for multi-token prediction don't run.
        let nextn = params.size("nextn")?.unwrap_or(0);
        let num_hidden_layers = params.layers()?.saturating_sub(nextn).max(1);
        let family: &'static Family = params.family;
        let ids = |name: &'static str| -> Result<Vec<u32>> {
            // Only from config.json itself: a class's default ids belong to another vocabulary.
            let values = match params.given(name) {
                Some(Value::Array(values)) => values.as_slice(),
                Some(value) => std::slice::from_ref(value),
                None => &[],
            };
            let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
            let wrong = |value: &Value| params.finding(name).expected("a token id").found(value).format();
            values.iter().map(|value| id(value).ok_or_else(|| wrong(value))).collect()
        };
        let (heads, kv_heads, head_dim) = (params.count("heads")?, params.count("kv_heads")?, params.count("head")?);
        if !heads.is_multiple_of(kv_heads) {
            let finding = params.finding("num_key_value_heads");
            return Err(finding.expected(format_args!("a divisor of {heads} heads")).found(kv_heads).mismatch());
        }
        Ok(Self {
            class: family.class(),
            vocab_size: params.count("vocab")?,
            hidden_size: params.count("hidden")?,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            // Without the number, positions have no end.
            max_position_embeddings: params.size("context")?.map_or(Ok(1 << 31), |_| params.count("context"))?,
            // A family without a row for the head has it tied always.
            tie_word_embeddings: match family.row(Role::OutputHead) {
                Some(row) => !params.holds(row.when.as_ref(), None)?,
                None => true,
            },
            bos_token_id: ids("bos_token_id")?.first().copied(),
            eos_token_ids: ids("eos_token_id")?,
            computation: Arc::new(Computation::of(&params, num_hidden_layers, heads, head_dim)?),
            linears: linears(&params, num_hidden_layers)?.into(),
            experts: experts::parameters(&params, num_hidden_layers)?.into(),
            origin: Origin(Arc::new(params)),
        })
    }

    /// The weights of its layers with experts: names in GGUF, the number of matrices, and of inputs.
    ///
    /// # Errors
    /// Errors of the family's formulas.
    #[cfg(feature = "train")]
    pub(crate) fn expert_inputs(&self) -> Result<Vec<(String, usize, usize)>> {
        let params = &*self.origin.0;
        let mut all = Vec::new();
        for row in params.family.rows.iter().filter(|row| !row.is_bias()) {
            let part = Part::of(row);
            let of_experts = [Part::ExpertGate, Part::ExpertUp, Part::ExpertDown].map(Some).contains(&part);
            if part != Some(Part::Router) && !of_experts {
                continue;
            }
            // The last dimension, or the one before it where the weight is transposed.
            let shape = &row.source().shape;
            let inputs = shape.iter().rev().nth(usize::from(row.forms[0].is_turned())).and_then(Option::as_ref);
            for layer in (0..self.num_hidden_layers).map(Some) {
                if let (Some(inputs), true) = (inputs, params.holds(row.when.as_ref(), layer)?) {
                    let name = row.gguf.text().replace("{l}", &layer.unwrap_or(0).to_string());
                    let count = if of_experts { self.experts() } else { 1 };
                    all.push((name, count, params.size_of(inputs, layer)?));
                }
            }
        }
        Ok(all)
    }

    /// The number of experts in its layers with experts.
    #[cfg(feature = "train")]
    pub(crate) fn experts(&self) -> usize {
        self.origin.0.size("experts").ok().flatten().unwrap_or(0)
    }

    /// Its linear layers, in the order in which a forward pass calls them.
    pub fn linears(&self) -> &[Linear] {
        &self.linears
    }

    /// The parameters of its layers with experts, by layer; empty for a class that doesn't keep them so.
    pub fn expert_parameters(&self) -> &[ExpertParameter] {
        &self.experts
    }

    /// The names of their modules, each once, in the same order.
    #[cfg(feature = "train")]
    pub(crate) fn module_names(&self) -> Vec<&'static str> {
        let mut names: Vec<&str> = Vec::new();
        for linear in self.linears.iter() {
            let name = linear.site.module.name();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// The linear layer at a site; `None` where it has none.
    pub fn linear(&self, site: LinearLayer) -> Option<Linear> {
        let place = self.linears.binary_search_by_key(&site, |linear| linear.site).ok()?;
        Some(self.linears[place])
    }

    /// The linear layers that `target_modules` selects, in the order in which a forward pass calls them.
    pub fn selected(&self, targets: &[String]) -> impl Iterator<Item = Linear> {
        let is_wanted = |linear: &&Linear| targets.iter().any(|target| linear.site.is_selected_by(target));
        self.linears.iter().filter(is_wanted).copied()
    }
}

/// The error for a class that has a family but doesn't run, naming what it has that no decoder here computes with.
fn not_run(path: &Path, family: &Family, class: &str) -> Error {
    let finding = Finding::new(path, "architectures").expected("a class that this version runs");
    let strange = family.rows.iter().find(|row| Part::of(row).is_none());
    let found = match strange {
        Some(row) => format!("{class}, which has {}", row.source().name.text()),
        None => class.to_owned(),
    };
    finding.found(found).hint("`families` lists them").unsupported()
}

/// The linear layers of a model of `layers` layers.
fn linears(params: &Params, layers: usize) -> Result<Vec<Linear>> {
    let family: &'static Family = params.family;
    let mut all = Vec::new();
    for row in &family.rows {
        let Some(module) = Module::of_row(family, row) else { continue };
        for layer in 0..layers {
            let site = LinearLayer { layer, module };
            if !params.holds(row.when.as_ref(), Some(layer))? {
                continue;
            }
            let shape = &row.source().shape;
            let size = |dimension: usize| -> Result<usize> {
                let formula = shape.get(dimension).and_then(Option::as_ref);
                formula.map_or(Ok(1), |formula| params.size_of(formula, Some(layer)))
            };
            let (rows, columns) = (size(0)?, size(1)?);
            let (d_out, d_in) = if row.is_transposed() { (columns, rows) } else { (rows, columns) };
            all.push(Linear { site, d_out, d_in, is_transposed: row.is_transposed() });
        }
    }
    all.sort_by_key(|linear| linear.site);
    // Latent keys and values come of one weight.
    all.dedup();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::arch::{Rope, RopeScaling};

    fn parse(mut json: Value, change: &[(&str, Value)]) -> Result<ModelConfig> {
        for (name, value) in change {
            json[*name] = value.clone();
        }
        ModelConfig::from_json(Path::new("config.json"), json.as_object().unwrap())
    }

    fn llama() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "hidden_act": "silu"
        })
    }

    fn windows(config: &ModelConfig) -> Vec<Option<usize>> {
        config.computation.layers.iter().map(|layer| layer.window).collect()
    }

    fn rope(theta: f64, rotary: usize) -> Rope {
        Rope { theta, rotary, pairs: false, scaling: RopeScaling::None }
    }

    #[test]
    fn reads_both_forms_of_the_rotary_fields() {
        let new = json!({"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 128});
        let mut old = new.clone();
        old.as_object_mut().unwrap().remove("rope_theta");
        let new = parse(llama(), &[("rope_parameters", new)]).unwrap();
        let old = parse(llama(), &[("rope_theta", json!(5e5)), ("rope_scaling", old)]).unwrap();
        assert_eq!(new, old);
        let f = new.computation.ropes[0].frequencies(1);
        assert_eq!(f[0], 1.0, "the highest frequency is kept");
        let plain = rope(5e5, 16).frequencies(1);
        assert_eq!(f[7], plain[7] / 8.0, "the lowest is divided by the factor");
    }

    #[test]
    fn refuses_what_it_does_not_know_by_name() {
        let cases = [
            (
                "architectures",
                json!(["FancyForCausalLM"]),
                "architectures: expected a class that this version runs, found FancyForCausalLM",
            ),
            (
                "hidden_act",
                json!("sin"),
                "hidden_act: expected silu, gelu, gelu_new, gelu_pytorch_tanh, relu, relu2, found",
            ),
            (
                "architectures",
                json!(["MambaForCausalLM"]),
                "found MambaForCausalLM, which has backbone.layers.{l}.mixer",
            ),
            ("rope_scaling", json!({"rope_type": "dynamic", "factor": 2.0}), "rope_scaling.rope_type"),
            ("num_key_value_heads", json!(3), "num_key_value_heads: expected a divisor of 4 heads, found 3"),
            ("hidden_size", json!(0), "hidden_size: expected a count from 1"),
            ("hidden_size", json!("big"), "hidden_size"),
            ("num_hidden_layers", json!(1u64 << 31), "num_hidden_layers: expected at most 65536"),
        ];
        for (name, value, expected) in cases {
            let error = parse(llama(), &[(name, value)]).unwrap_err();
            assert!(!matches!(error, Error::Io { .. }));
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn fields_that_a_class_does_not_have_change_nothing() {
        for name in ["GPT2LMHeadModel", "GPTNeoXForCausalLM", "BloomForCausalLM"] {
            let config = |more: &str| {
                let text = format!(
                    r#"{{"architectures": ["{name}"], "n_embd": 64, "hidden_size": 64, "n_layer": 2, "n_head": 4,
                    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320 {more}}}"#
                );
                let json: Value = serde_json::from_str(&text).unwrap();
                ModelConfig::from_json(Path::new("config.json"), json.as_object().unwrap()).unwrap()
            };
            let (plain, stray) = (config(""), config(r#", "num_key_value_heads": 2, "head_dim": 8"#));
            assert_eq!((stray.num_key_value_heads, stray.head_dim), (4, 16), "{name}");
            assert_eq!((plain.num_key_value_heads, plain.head_dim), (4, 16), "{name}");
        }
    }

    /// What transformers 5.23 computes where a field is missing or null.
    #[test]
    fn fields_that_are_absent_or_null_are_as_in_transformers() {
        let class = |name: &str, change: &[(&str, Value)]| {
            let mut json = json!({"architectures": [name], "hidden_size": 64, "intermediate_size": 128,
                "num_hidden_layers": 4, "num_attention_heads": 32, "vocab_size": 320});
            for (field, value) in change {
                json[*field] = value.clone();
            }
            ModelConfig::from_json(Path::new("config.json"), json.as_object().unwrap())
        };
        for (name, context, kv_heads, window, head_dim) in [
            ("LlamaForCausalLM", 2048, 32, None, 2),
            ("MistralForCausalLM", 131_072, 8, Some(4096), 2),
            ("Qwen2ForCausalLM", 32_768, 32, None, 2),
            ("Qwen3ForCausalLM", 32_768, 32, None, 128),
        ] {
            let config = class(name, &[]).unwrap();
            assert_eq!((config.max_position_embeddings, config.num_key_value_heads), (context, kv_heads), "{name}");
            assert_eq!((windows(&config), config.head_dim), (vec![window; 4], head_dim), "{name}");
            assert_eq!((config.computation.norm_eps, config.tie_word_embeddings), (1e-6, false), "{name}");
            assert_eq!(config.computation.ropes, [rope(10000.0, head_dim)], "{name}");
            // Null means no window, and as many key-value heads as query heads.
            let null = [("sliding_window", Value::Null), ("num_key_value_heads", Value::Null)];
            let config = class(name, &null).unwrap();
            assert_eq!((windows(&config), config.num_key_value_heads), (vec![None; 4], 32), "{name}");
            for field in ["rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "vocab_size", "rope_theta"]
            {
                let error = class(name, &[(field, Value::Null)]).unwrap_err().to_string();
                assert!(error.contains(&format!("{field}: expected a value; without the field it is ")), "{error}");
            }
        }
        for name in ["Qwen2ForCausalLM", "Qwen3ForCausalLM"] {
            let on = |more: &[(&str, Value)]| {
                let change = [&[("use_sliding_window", json!(true))], more].concat();
                class(name, &change).map(|config| windows(&config))
            };
            assert_eq!(on(&[]).unwrap(), [None; 4], "28 layers without");
            let upper = [("max_window_layers", json!(2))];
            assert_eq!(on(&upper).unwrap(), [None, None, Some(4096), Some(4096)]);
            assert_eq!(on(&[&upper[..], &[("sliding_window", Value::Null)]].concat()).unwrap(), [None; 4]);
            assert!(on(&[("max_window_layers", Value::Null)]).is_err());
        }
        // Mistral has no field `use_sliding_window`.
        let off = [("use_sliding_window", json!(false)), ("sliding_window", json!(8))];
        assert_eq!(windows(&class("MistralForCausalLM", &off).unwrap()), [Some(8); 4]);
        let theta =
            [("rope_theta", Value::Null), ("rope_parameters", json!({"rope_theta": 5e5, "rope_type": "default"}))];
        assert_eq!(class("LlamaForCausalLM", &theta).unwrap().computation.ropes[0].theta, 5e5);
        assert!(class("LlamaForCausalLM", &[("pretraining_tp", Value::Null)]).is_ok());
    }

    #[test]
    fn only_what_can_change_the_computation_is_refused() {
        let notes = [json!("tuned on our own texts"), json!({"made by": "the team of that day"}), json!("")];
        for note in notes {
            assert_eq!(parse(llama(), &[("some_note", note)]).unwrap(), parse(llama(), &[]).unwrap());
        }
        for setting in [json!(2.0), json!(true), json!("alibi"), json!({"factor": 2.0})] {
            let error = parse(llama(), &[("some_field", setting)]).unwrap_err().to_string();
            assert!(error.contains("some_field: expected a field this version knows"), "{error}");
        }
        // A field of another class, which transformers doesn't read in this one.
        assert!(parse(llama(), &[("query_pre_attn_scalar", json!(256))]).is_ok());
        let error = parse(llama(), &[("partial_rotary_factor", json!(0.5))]).unwrap_err().to_string();
        assert!(error.contains("partial_rotary_factor: expected 1.0, found 0.5"), "{error}");
    }

    #[test]
    fn windows_follow_each_architecture() {
        let mistral = [("architectures", json!(["MistralForCausalLM"])), ("sliding_window", json!(64))];
        assert_eq!(windows(&parse(llama(), &mistral).unwrap()), [Some(64); 2]);
        let mut qwen = vec![("architectures", json!(["Qwen2ForCausalLM"])), ("sliding_window", json!(64))];
        assert_eq!(windows(&parse(llama(), &qwen).unwrap()), [None; 2]);
        qwen.extend([("use_sliding_window", json!(true)), ("max_window_layers", json!(1))]);
        assert_eq!(windows(&parse(llama(), &qwen).unwrap()), [None, Some(64)]);
    }
}
