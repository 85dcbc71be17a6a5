//! The config of the decoders that this crate runs: [`Params`], checked and typed.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::params::{Params, class};
use super::{DECODERS, Family, Role, Row, Windows, registry};
use crate::error::{Finding, Result};
use crate::json::Fields;

/// The part of a decoder's config that determines its weights and its computation.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // The fields carry the config's own names.
pub struct ModelConfig {
    /// The class in transformers.
    pub class: &'static str,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub rms_norm_eps: f64,
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// A bias on the attention's output projection.
    pub o_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    /// RMS norms over each head of q and k.
    pub qk_norm: bool,
    pub rope: Rope,
    /// For every layer, how many tokens a token attends to, itself included; `None` means all before it.
    pub sliding_window: Vec<Option<usize>>,
    pub bos_token_id: Option<u32>,
    /// Each of these tokens ends a text.
    pub eos_token_ids: Vec<u32>,
    /// The config from which this was read.
    pub(crate) origin: Origin,
}

/// The completed config from which a [`ModelConfig`] was made. It is ignored when two [`ModelConfig`]s are compared,
/// because the same model can be described by different spellings.
#[derive(Debug, Clone)]
pub(crate) struct Origin(pub(super) Arc<Params>);

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies are scaled.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are scaled for longer contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency is divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3's scaling: low frequencies are divided, high ones kept, with a smooth transition.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context length of pre-training, in tokens.
        original_max_position_embeddings: f64,
    },
}

impl Rope {
    /// The angular frequency of each pair of a head's dimensions, in radians per position: `[head_dim / 2]` values,
    /// computed in f32 as transformers does (`modeling_rope_utils.py`).
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let base = self.theta as f32;
        (0..head_dim)
            .step_by(2)
            .map(|i| 1.0 / base.powf(i as f32 / head_dim as f32))
            .map(|frequency| frequency / self.factor(frequency))
            .collect()
    }

    /// The divisor of `frequency`: 1 where it is kept.
    pub fn factor(&self, frequency: f32) -> f32 {
        match self.scaling {
            RopeScaling::None => 1.0,
            RopeScaling::Linear { factor } => factor as f32,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let wavelength = 2.0 * std::f64::consts::PI / f64::from(frequency);
                let turns = original_max_position_embeddings / wavelength;
                if turns > high_freq_factor {
                    1.0
                } else if turns < low_freq_factor {
                    factor as f32
                } else {
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
                }
            }
        }
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
        let decoders = DECODERS.iter().filter_map(|(name, windows)| Some((registry::by_name(name)?, windows)));
        let Some((family, windows)) = decoders.clone().find(|(family, _)| class == Some(family.class())) else {
            let known: Vec<&str> = decoders.map(|(family, _)| family.class()).collect();
            let finding = Finding::new(path, "architectures").expected(known.join(", "));
            return Err(finding.found(class.unwrap_or("none")).unsupported());
        };
        // The notes are about what GGUF can't express, which doesn't matter here.
        let mut params = Params::complete(family, path, json, &mut Vec::new())?;
        params.refuse_unknown()?;
        params.refuse_nulls()?;
        params.adopt("head_dim");
        Self::of(params, *windows)
    }

    fn of(params: Params, windows: Windows) -> Result<Self> {
        let num_hidden_layers = params.layers()?;
        let has = |row: Option<&Row>| row.map_or(Ok(false), |row| params.holds(row.when.as_ref(), Some(0)));
        let family: &'static Family = params.family;
        let bias = |role: Role| has(family.bias_row(role));
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
        let config = Self {
            class: family.class(),
            vocab_size: params.count("vocab")?,
            hidden_size: params.count("hidden")?,
            intermediate_size: params.count("ff")?,
            num_hidden_layers,
            num_attention_heads: params.count("heads")?,
            num_key_value_heads: params.count("kv_heads")?,
            head_dim: params.count("head")?,
            rms_norm_eps: params.number(&["rms_norm_eps"])?.unwrap_or(1e-6),
            max_position_embeddings: params.count("context")?,
            tie_word_embeddings: params.flag("tie_word_embeddings", false),
            qkv_bias: bias(Role::Q)?,
            o_bias: bias(Role::O)?,
            mlp_bias: bias(Role::Gate)?,
            qk_norm: has(family.row(Role::QNorm))?,
            rope: rope(&params)?,
            sliding_window: sliding_window(&params, windows, num_hidden_layers)?,
            bos_token_id: ids("bos_token_id")?.first().copied(),
            eos_token_ids: ids("eos_token_id")?,
            origin: Origin(Arc::new(params)),
        };
        let finding = |field: &str| config.origin.0.finding(field);
        if let Some(part) = config.origin.0.given("partial_rotary_factor").filter(|part| part.as_f64() != Some(1.0)) {
            return Err(finding("partial_rotary_factor").expected("1.0").found(part).unsupported());
        }
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        if !heads.is_multiple_of(kv_heads) {
            let finding = finding("num_key_value_heads");
            return Err(finding.expected(format_args!("a divisor of {heads} heads")).found(kv_heads).mismatch());
        }
        if !config.head_dim.is_multiple_of(2) {
            return Err(finding("head_dim").expected("an even number").found(config.head_dim).mismatch());
        }
        Ok(config)
    }
}

/// The rotary parameters. Unknown ones are refused.
fn rope(params: &Params) -> Result<Rope> {
    let mut p = Fields::inside(params.path(), params.rope_field, &params.rope);
    let theta = p.get("rope_theta")?.unwrap_or(10000.0);
    p.ignore(&["type"]);
    let kind = p.get::<String>("rope_type")?.unwrap_or_else(|| "default".to_owned());
    let scaling = match kind.as_str() {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: p.need("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: p.need("factor")?,
            low_freq_factor: p.need("low_freq_factor")?,
            high_freq_factor: p.need("high_freq_factor")?,
            original_max_position_embeddings: match p.get("original_max_position_embeddings")? {
                Some(context) => context,
                None => params.count("context")? as f64,
            },
        },
        other => return Err(p.finding("rope_type").expected("default, linear or llama3").found(other).unsupported()),
    };
    p.only("partial_rotary_factor", &[json!(1.0), json!(1)])?;
    p.finish()?;
    if let RopeScaling::Linear { factor } | RopeScaling::Llama3 { factor, .. } = scaling
        && (!factor.is_finite() || factor <= 0.0)
    {
        return Err(params.finding("rope factor").expected("a positive number").found(factor).mismatch());
    }
    Ok(Rope { theta, scaling })
}

/// The window of each layer that has one: the layers that `layer_types` names or, without that field, those that the
/// family defines.
fn sliding_window(params: &Params, windows: Windows, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = params.whole(&["sliding_window"])?;
    // Mistral has no `use_sliding_window`, and transformers doesn't read it there.
    let enabled = windows == Windows::EveryLayer || params.flag("use_sliding_window", false);
    let from = params.whole(&["max_window_layers"])?.unwrap_or(0);
    let wrong = || params.finding("layer_types").expected("full_attention or sliding_attention");
    let types: Option<Vec<bool>> = match params.given("layer_types") {
        None => None,
        Some(Value::Array(types)) if types.len() == layers => {
            let is_sliding = |kind: &Value| match kind.as_str() {
                Some("sliding_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                _ => Err(wrong().found(kind).unsupported()),
            };
            Some(types.iter().map(is_sliding).collect::<Result<_>>()?)
        }
        Some(Value::Array(types)) => {
            let finding = params.finding("layer_types").expected(format_args!("{layers} entries"));
            return Err(finding.found(types.len()).mismatch());
        }
        Some(other) => return Err(wrong().found(other).format()),
    };
    let slides = |layer: usize| match (&types, windows) {
        (_, Windows::Never) => false,
        (Some(types), _) => types[layer],
        (None, Windows::UpperLayers) => layer >= from,
        (None, Windows::EveryLayer) => true,
    };
    Ok((0..layers).map(|layer| window.filter(|_| enabled && slides(layer))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

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

    #[test]
    fn reads_both_forms_of_the_rotary_fields() {
        let new = json!({"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 128});
        let mut old = new.clone();
        old.as_object_mut().unwrap().remove("rope_theta");
        let new = parse(llama(), &[("rope_parameters", new)]).unwrap();
        let old = parse(llama(), &[("rope_theta", json!(5e5)), ("rope_scaling", old)]).unwrap();
        assert_eq!(new, old);
        let f = new.rope.frequencies(16);
        assert_eq!(f[0], 1.0, "the highest frequency is kept");
        let plain = Rope { theta: 5e5, scaling: RopeScaling::None }.frequencies(16);
        assert_eq!(f[7], plain[7] / 8.0, "the lowest is divided by the factor");
    }

    #[test]
    fn refuses_what_it_does_not_know_by_name() {
        let cases = [
            ("architectures", json!(["FancyForCausalLM"]), "architectures: expected LlamaForCausalLM"),
            ("hidden_act", json!("gelu"), "hidden_act: expected \"silu\", found \"gelu\""),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0}), "rope_scaling.rope_type"),
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
            assert_eq!((config.sliding_window, config.head_dim), (vec![window; 4], head_dim), "{name}");
            assert_eq!((config.rms_norm_eps, config.tie_word_embeddings), (1e-6, false), "{name}");
            assert_eq!(config.rope, Rope { theta: 10000.0, scaling: RopeScaling::None }, "{name}");
            // Null means no window, and as many key-value heads as query heads.
            let null = [("sliding_window", Value::Null), ("num_key_value_heads", Value::Null)];
            let config = class(name, &null).unwrap();
            assert_eq!((config.sliding_window, config.num_key_value_heads), (vec![None; 4], 32), "{name}");
            for field in ["rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "vocab_size", "rope_theta"]
            {
                let error = class(name, &[(field, Value::Null)]).unwrap_err().to_string();
                assert!(error.contains(&format!("{field}: expected a value; without the field it is ")), "{error}");
            }
        }
        for name in ["Qwen2ForCausalLM", "Qwen3ForCausalLM"] {
            let on = |more: &[(&str, Value)]| {
                let change = [&[("use_sliding_window", json!(true))], more].concat();
                class(name, &change).map(|config| config.sliding_window)
            };
            assert_eq!(on(&[]).unwrap(), [None; 4], "28 layers without");
            let upper = [("max_window_layers", json!(2))];
            assert_eq!(on(&upper).unwrap(), [None, None, Some(4096), Some(4096)]);
            assert_eq!(on(&[&upper[..], &[("sliding_window", Value::Null)]].concat()).unwrap(), [None; 4]);
            assert!(on(&[("max_window_layers", Value::Null)]).is_err());
        }
        // Mistral has no field `use_sliding_window`.
        let off = [("use_sliding_window", json!(false)), ("sliding_window", json!(8))];
        assert_eq!(class("MistralForCausalLM", &off).unwrap().sliding_window, [Some(8); 4]);
        let theta =
            [("rope_theta", Value::Null), ("rope_parameters", json!({"rope_theta": 5e5, "rope_type": "default"}))];
        assert_eq!(class("LlamaForCausalLM", &theta).unwrap().rope.theta, 5e5);
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
        assert_eq!(parse(llama(), &mistral).unwrap().sliding_window, [Some(64); 2]);
        let mut qwen = vec![("architectures", json!(["Qwen2ForCausalLM"])), ("sliding_window", json!(64))];
        assert_eq!(parse(llama(), &qwen).unwrap().sliding_window, [None; 2]);
        qwen.extend([("use_sliding_window", json!(true)), ("max_window_layers", json!(1))]);
        assert_eq!(parse(llama(), &qwen).unwrap().sliding_window, [None, Some(64)]);
    }
}
