//! config.json of the decoders this crate knows: every field consumed, or refused by name.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::INERT;
use crate::error::Result;
use crate::json::Fields;

/// A decoder architecture, by its class in transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// `LlamaForCausalLM`
    Llama,
    /// `MistralForCausalLM`: Llama's weights with a sliding window.
    Mistral,
    /// `Qwen2ForCausalLM`: biases on q, k and v.
    Qwen2,
    /// `Qwen3ForCausalLM`: norms on q and k.
    Qwen3,
}

impl Architecture {
    const ALL: [(&'static str, Architecture); 4] = [
        ("LlamaForCausalLM", Architecture::Llama),
        ("MistralForCausalLM", Architecture::Mistral),
        ("Qwen2ForCausalLM", Architecture::Qwen2),
        ("Qwen3ForCausalLM", Architecture::Qwen3),
    ];

    /// The class name in transformers.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, a)| *a == self).map_or("", |(name, _)| name)
    }
}

/// What a decoder's config says that bears on its weights and its mathematics.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // The fields carry the config's own names.
pub struct ModelConfig {
    pub architecture: Architecture,
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
    /// For every layer: how many positions back a token sees, itself included; `None` is all.
    pub sliding_window: Vec<Option<usize>>,
    pub bos_token_id: Option<u32>,
    /// Any of these ends a text.
    pub eos_token_ids: Vec<u32>,
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies are stretched.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched for longer contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3's: low frequencies divided, high ones kept, smooth between.
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
    /// The angular frequency of each pair of a head's dimensions, in radians a position.
    /// [head_dim / 2], computed in f32 as transformers does (`modeling_rope_utils.py`).
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let base = self.theta as f32;
        (0..head_dim)
            .step_by(2)
            .map(|i| 1.0 / base.powf(i as f32 / head_dim as f32))
            .map(|frequency| frequency / self.factor(frequency))
            .collect()
    }

    /// What `frequency` is divided by: 1 where it is kept.
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
    /// Checks `json`, read from the file at `path`.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for an architecture or a field this version doesn't know,
    /// [`crate::Error::Format`] for a value of the wrong kind, [`crate::Error::Mismatch`] for values that
    /// contradict each other.
    pub fn from_json(path: &Path, json: &Map<String, Value>) -> Result<Self> {
        let mut f = Fields::new(path, json);
        let names: Vec<String> = f.need("architectures")?;
        let architecture = names
            .iter()
            .find_map(|name| Architecture::ALL.iter().find(|(known, _)| known == name))
            .map(|(_, architecture)| *architecture)
            .ok_or_else(|| {
                let known: Vec<&str> = Architecture::ALL.iter().map(|(name, _)| *name).collect();
                f.finding("architectures").expected(known.join(", ")).found(names.join(", ")).unsupported()
            })?;
        let hidden_size = f.count("hidden_size")?;
        let num_hidden_layers = f.small_count("num_hidden_layers")?;
        let num_attention_heads = f.count("num_attention_heads")?;
        let max_position_embeddings = f.count("max_position_embeddings")?;
        let default_head_dim = match architecture {
            Architecture::Qwen3 => 128,
            _ => hidden_size / num_attention_heads,
        };
        let attention_bias = f.get("attention_bias")?.unwrap_or(architecture == Architecture::Qwen2);
        let config = Self {
            architecture,
            vocab_size: f.count("vocab_size")?,
            hidden_size,
            intermediate_size: f.count("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: f.count_or("num_key_value_heads", num_attention_heads)?,
            head_dim: f.count_or("head_dim", default_head_dim)?,
            rms_norm_eps: f.get("rms_norm_eps")?.unwrap_or(1e-6),
            max_position_embeddings,
            tie_word_embeddings: f.get("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias: attention_bias || architecture == Architecture::Qwen2,
            o_bias: attention_bias && architecture != Architecture::Qwen2,
            mlp_bias: f.get("mlp_bias")?.unwrap_or(false),
            qk_norm: architecture == Architecture::Qwen3,
            rope: rope(&mut f, max_position_embeddings)?,
            sliding_window: sliding_window(&mut f, architecture, num_hidden_layers)?,
            bos_token_id: f.get("bos_token_id")?,
            eos_token_ids: match f.get::<Value>("eos_token_id")? {
                Some(Value::Array(_)) => f.need("eos_token_id")?,
                Some(_) => vec![f.need("eos_token_id")?],
                None => Vec::new(),
            },
        };
        f.only("hidden_act", &[json!("silu")])?;
        f.only("pretraining_tp", &[json!(1)])?;
        f.only("partial_rotary_factor", &[json!(1.0), json!(1)])?;
        f.ignore(INERT);
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        if !heads.is_multiple_of(kv_heads) {
            let finding = f.finding("num_key_value_heads");
            return Err(finding.expected(format_args!("a divisor of {heads} heads")).found(kv_heads).mismatch());
        }
        if !config.head_dim.is_multiple_of(2) {
            return Err(f.finding("head_dim").expected("an even number").found(config.head_dim).mismatch());
        }
        f.finish()?;
        Ok(config)
    }
}

/// Both forms of the rotary fields: `rope_parameters` (transformers 5) and `rope_theta` with
/// `rope_scaling` (before).
fn rope(f: &mut Fields, max_position_embeddings: usize) -> Result<Rope> {
    let outer_theta: Option<f64> = f.get("rope_theta")?;
    let parameters = f.object("rope_parameters")?;
    let scaling = f.object("rope_scaling")?;
    let Some(mut p) = parameters.or(scaling) else {
        return Ok(Rope { theta: outer_theta.unwrap_or(10000.0), scaling: RopeScaling::None });
    };
    let theta = p.get("rope_theta")?.or(outer_theta).unwrap_or(10000.0);
    let kind = match p.get::<String>("rope_type")? {
        Some(kind) => {
            p.ignore(&["type"]);
            kind
        }
        None => p.get("type")?.unwrap_or_else(|| "default".to_owned()),
    };
    let scaling = match kind.as_str() {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: p.need("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: p.need("factor")?,
            low_freq_factor: p.need("low_freq_factor")?,
            high_freq_factor: p.need("high_freq_factor")?,
            original_max_position_embeddings: p
                .get("original_max_position_embeddings")?
                .unwrap_or(max_position_embeddings as f64),
        },
        other => return Err(p.finding("rope_type").expected("default, linear or llama3").found(other).unsupported()),
    };
    p.only("partial_rotary_factor", &[json!(1.0), json!(1)])?;
    p.finish()?;
    if let RopeScaling::Linear { factor } | RopeScaling::Llama3 { factor, .. } = scaling
        && (!factor.is_finite() || factor <= 0.0)
    {
        return Err(f.finding("rope factor").expected("a positive number").found(factor).mismatch());
    }
    Ok(Rope { theta, scaling })
}

/// Which layers see only a window. Mistral: all of them; Qwen: those that `layer_types` names, or,
/// where it is absent, those from `max_window_layers` on, and only with `use_sliding_window`.
fn sliding_window(f: &mut Fields, architecture: Architecture, layers: usize) -> Result<Vec<Option<usize>>> {
    let window: Option<usize> = f.get("sliding_window")?;
    let enabled: bool = f.get("use_sliding_window")?.unwrap_or(architecture == Architecture::Mistral);
    let from: usize = f.get("max_window_layers")?.unwrap_or(0);
    let types: Option<Vec<String>> = f.get("layer_types")?;
    if let Some(types) = &types {
        if types.len() != layers {
            return Err(f
                .finding("layer_types")
                .expected(format_args!("{layers} entries"))
                .found(types.len())
                .mismatch());
        }
        if let Some(other) = types.iter().find(|t| !matches!(t.as_str(), "full_attention" | "sliding_attention")) {
            return Err(f
                .finding("layer_types")
                .expected("full_attention or sliding_attention")
                .found(other)
                .unsupported());
        }
    }
    Ok((0..layers)
        .map(|i| {
            let sliding = match (&types, architecture) {
                (Some(types), _) => types[i] == "sliding_attention",
                (None, Architecture::Qwen2 | Architecture::Qwen3) => i >= from,
                (None, _) => true,
            };
            window.filter(|_| enabled && sliding)
        })
        .collect())
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
            ("quantization_config", json!({"bits": 4}), "quantization_config: expected a field this version knows"),
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
