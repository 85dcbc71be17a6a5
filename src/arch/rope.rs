//! Scaling of rotary frequencies: the keys and tensors that describe it.
//!
//! Reference: llama.cpp `conversion/base.py` (`set_gguf_parameters`), `llama.py` and `phi.py`
//! (`generate_extra_tensors`).

use std::f32::consts::PI;

use serde_json::Value as Json;

use super::params::Params;
use super::{Extra, Key, KeyGroup, whole_key};
use crate::dtype::DType;
use crate::error::Result;
use crate::formats::gguf::{Array, Metadata};
use crate::plan::{Expr, PlannedTensor};

/// The parameters of yarn: the keys after `rope.scaling.` and the names in config.json.
pub(crate) const YARN: [(&str, &[&str]); 4] = [
    ("yarn_ext_factor", &["extrapolation_factor"]),
    ("yarn_attn_factor", &["attention_factor", "attn_factor"]),
    ("yarn_beta_fast", &["beta_fast"]),
    ("yarn_beta_slow", &["beta_slow"]),
];

/// The number in the first of these rotary parameters that is there.
pub(crate) fn number(params: &Params, names: &[&str]) -> Result<Option<f64>> {
    let Some((name, value)) = names.iter().find_map(|name| Some((name, params.rope.get(*name)?))) else {
        return Ok(None);
    };
    match value {
        Json::Null => Ok(None),
        value => match value.as_f64().filter(|v| v.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(params.finding(name).expected("a number").found(value).format()),
        },
    }
}

fn need(params: &Params, name: &str) -> Result<f64> {
    number(params, &[name])?.ok_or_else(|| params.finding(name).expected("a number").found("none").format())
}

/// The kind of scaling: "default" where there is none.
pub(crate) fn kind(params: &Params) -> &str {
    params.rope.get("rope_type").and_then(Json::as_str).unwrap_or("default")
}

/// Refuses a scaling that GGUF can't express for the architecture.
pub(crate) fn check(params: &Params, notes: &mut Vec<String>) -> Result<()> {
    let family = params.family;
    let scaled = family.writes(KeyGroup::Rope) || family.writes(KeyGroup::RopeScaling);
    let has = |extra: Extra| family.extras.contains(&extra);
    let sayable = match kind(params) {
        "default" => true,
        "dynamic" => {
            notes.push("rope_type dynamic: GGUF can't say it; llama.cpp computes the same up to the trained context, and without scaling beyond".to_owned());
            true
        }
        "linear" | "yarn" => scaled,
        "llama3" => has(Extra::RopeFreqs),
        "longrope" | "su" => has(Extra::LongFactors),
        _ => false,
    };
    let sayable = sayable || family.rope_types.iter().any(|known| known == kind(params));
    if !sayable {
        // The reference drops such a scaling silently, and the model would compute something else.
        let known = match scaled {
            true if has(Extra::RopeFreqs) => "default, linear, yarn or llama3",
            true => "default, linear or yarn",
            false if has(Extra::LongFactors) => "default or longrope",
            false => "default",
        };
        return Err(params
            .finding("rope_type")
            .expected(format_args!("{known}, which GGUF can say of {}", params.family.gguf))
            .found(kind(params))
            .unsupported());
    }
    let theta = number(params, &["rope_theta"])?.unwrap_or(10000.0);
    let has_base = family.writes(KeyGroup::Rope)
        || family.writes(KeyGroup::RopeBase)
        || family.keys.iter().any(|key| matches!(key, Key::Value { name, .. } if name == "rope.freq_base"));
    if !has_base && theta != 10000.0 {
        notes.push(format!(
            "rope_theta {theta}: the reference writes no key for it with {}, and llama.cpp computes with 10000",
            params.family.gguf
        ));
    }
    if kind(params) == "yarn" && scaled {
        note_yarn(params, notes)?;
    }
    Ok(())
}

/// Notes parameters of yarn with which llama.cpp doesn't compute: it reads their keys for almost none of
/// these architectures.
fn note_yarn(params: &Params, notes: &mut Vec<String>) -> Result<()> {
    let factor = need(params, "factor")?;
    let of_context = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
    for ((key, names), theirs) in YARN.iter().zip([1.0, of_context, 32.0, 1.0]) {
        // The one architecture that it reads these two for.
        if params.family.gguf == "mistral3" && key.starts_with("yarn_beta") {
            continue;
        }
        let found = number(params, names)?;
        if let Some(value) = found.filter(|value| (value - theirs).abs() > 1e-6) {
            notes.push(format!(
                "{} {value}: llama.cpp reads no key for it with {} and computes with {}",
                names[0], params.family.gguf, theirs as f32
            ));
        }
    }
    if let Some(value) = number(params, &["mscale"])?.filter(|value| *value != 1.0 && params.family.gguf == "mistral3")
    {
        notes.push(format!("mscale {value}: GGUF has no key for it, and llama.cpp computes with 1"));
    }
    Ok(())
}

/// Writes [`KeyGroup::Rope`]: the scaling, sections for several kinds of positions, and the bases.
pub(crate) fn write(metadata: &mut Metadata, params: &Params) -> Result<()> {
    write_scaling(metadata, params)?;
    if let Some(Json::Array(sections)) = params.rope.get("mrope_section") {
        let wrong = || params.finding("mrope_section").expected("whole numbers").found(Json::Array(sections.clone()));
        let section = |section: &Json| section.as_i64().and_then(|number| i32::try_from(number).ok());
        let mut numbers: Vec<i32> =
            sections.iter().map(section).collect::<Option<_>>().ok_or_else(|| wrong().format())?;
        // llama.cpp has four kinds of positions.
        numbers.resize(4, 0);
        metadata.insert(whole_key(&params.family.gguf, "rope.dimension_sections"), Array::I32(numbers));
    }
    write_base(metadata, params)?;
    if let Some(theta) = params.rope_local {
        check_base(params, "rope_theta of layers with a window", theta)?;
        metadata.insert(whole_key(&params.family.gguf, "rope.freq_base_swa"), theta as f32);
    }
    Ok(())
}

/// Writes [`KeyGroup::RopeScaling`].
pub(crate) fn write_scaling(metadata: &mut Metadata, params: &Params) -> Result<()> {
    let prefix = format!("{}.rope.scaling", params.family.gguf);
    let kind = kind(params);
    if matches!(kind, "longrope" | "su") {
        metadata.insert(format!("{prefix}.type"), "longrope");
    }
    if !matches!(kind, "linear" | "yarn") || number(params, &["factor"])?.is_none() {
        return Ok(());
    }
    metadata.insert(format!("{prefix}.type"), kind);
    metadata.insert(format!("{prefix}.factor"), need(params, "factor")? as f32);
    if kind == "yarn" {
        let context = need(params, "original_max_position_embeddings")?;
        metadata.insert(format!("{prefix}.original_context_length"), context as u32);
        for (key, names) in YARN {
            if let Some(value) = number(params, names)? {
                metadata.insert(format!("{prefix}.{key}"), value as f32);
            }
        }
    }
    Ok(())
}

/// Writes [`KeyGroup::RopeBase`].
pub(crate) fn write_base(metadata: &mut Metadata, params: &Params) -> Result<()> {
    if let Some(theta) = number(params, &["rope_theta"])? {
        check_base(params, "rope_theta", theta)?;
        metadata.insert(format!("{}.rope.freq_base", params.family.gguf), theta as f32);
    }
    Ok(())
}

fn check_base(params: &Params, field: &str, base: f64) -> Result<()> {
    match base > 0.0 && (base as f32).is_finite() {
        true => Ok(()),
        false => Err(params.finding(field).expected("a number above 0").found(base).format()),
    }
}

/// Writes the key that belongs to [`Extra::LongFactors`] (conversion/phi.py, `Phi3MiniModel`).
pub(crate) fn write_attention_factor(metadata: &mut Metadata, params: &Params) -> Result<()> {
    let has_factors = params.rope.get("long_factor").is_some_and(|factors| !factors.is_null());
    if !params.family.extras.contains(&Extra::LongFactors) || !has_factors {
        return Ok(());
    }
    let original = need(params, "original_max_position_embeddings")?;
    let scale = params.count("context")? as f64 / original;
    let factor = match kind(params) {
        _ if scale <= 1.0 => 1.0,
        "yarn" => 0.1 * scale.ln() + 1.0,
        _ => (1.0 + scale.ln() / original.ln()).sqrt(),
    };
    metadata.insert(format!("{}.rope.scaling.attn_factor", params.family.gguf), factor as f32);
    Ok(())
}

/// The number of dimensions of a head that are rotated, by `partial_rotary_factor`.
pub(crate) fn rotated(params: &Params) -> Result<usize> {
    let part = number(params, &["partial_rotary_factor"])?.unwrap_or(1.0);
    Ok((part * params.count("head")? as f64) as usize)
}

/// The tensors that are computed from the config.
pub(crate) fn extra_tensors(params: &Params) -> Result<Vec<PlannedTensor>> {
    let values = |name: &str, values: Vec<f32>| PlannedTensor {
        name: name.to_owned(),
        dtype: DType::F32,
        shape: vec![values.len()],
        expr: Expr::Values { shape: vec![values.len()], values: values.into() },
    };
    let mut tensors = Vec::new();
    for extra in &params.family.extras {
        tensors.extend(match extra {
            Extra::RopeFreqs if kind(params) == "llama3" => {
                vec![values("rope_freqs.weight", Llama3::of(params)?.factors(params.count("head")?))]
            }
            Extra::LongFactors => {
                let factors = |name: &str| params.rope.get(name).and_then(Json::as_array);
                let (Some(long), Some(short)) = (factors("long_factor"), factors("short_factor")) else {
                    continue;
                };
                let pairs = rotated(params)? / 2;
                let read = |list: &[Json], name: &str| -> Result<Vec<f32>> {
                    if list.len() != pairs {
                        let finding = params.finding(name).expected(format_args!("{pairs} numbers"));
                        return Err(finding.found(list.len()).mismatch());
                    }
                    let number = |value: &Json| {
                        let number = value.as_f64().map(|v| v as f32).filter(|v| v.is_finite());
                        number.ok_or_else(|| params.finding(name).expected("numbers alone").found(value).format())
                    };
                    list.iter().map(number).collect()
                };
                vec![
                    values("rope_factors_long.weight", read(long, "long_factor")?),
                    values("rope_factors_short.weight", read(short, "short_factor")?),
                ]
            }
            Extra::RopeFreqs => Vec::new(),
            Extra::AudioPositions => vec![audio_positions(params.count("a_width")?)],
            Extra::Values(name, formula) => match params.value_of(formula, None)? {
                Json::Null => Vec::new(),
                Json::Array(list) => {
                    let number = |value: &Json| value.as_f64().map(|v| v as f32);
                    let wrong = || params.finding(name).expected("a list of numbers").found(Json::Array(list.clone()));
                    let numbers =
                        list.iter().map(number).collect::<Option<Vec<f32>>>().ok_or_else(|| wrong().format())?;
                    vec![values(name, numbers)]
                }
                other => return Err(params.finding(name).expected("a list of numbers").found(other).format()),
            },
        });
    }
    Ok(tensors)
}

/// How many positions Whisper's encoder has.
const AUDIO_POSITIONS: usize = 1500;

/// Whisper's positions: in every row the sines, then the cosines, of the position times a rate that falls from 1 to
/// 1/10000. The reference computes them with Intel's MKL, whose last bit differs from the nearest value in one of 25
/// and from machine to machine; these are the nearest ones.
fn audio_positions(width: usize) -> PlannedTensor {
    let half = width / 2;
    let step = -(10000f64.ln() / (half.max(2) - 1) as f64) as f32;
    let rates: Vec<f32> = (0..half).map(|j| f64::from(step * j as f32).exp() as f32).collect();
    let mut values = Vec::with_capacity(AUDIO_POSITIONS * 2 * half);
    for position in 0..AUDIO_POSITIONS {
        let angles: Vec<f64> = rates.iter().map(|rate| f64::from(position as f32 * rate)).collect();
        values.extend(angles.iter().map(|angle| angle.sin() as f32));
        values.extend(angles.iter().map(|angle| angle.cos() as f32));
    }
    let shape = vec![AUDIO_POSITIONS, 2 * half];
    let expr = Expr::Values { shape: shape.clone(), values: values.into() };
    PlannedTensor { name: "a.position_embd.weight".to_owned(), dtype: DType::F32, shape, expr }
}

/// Llama 3's scaling of rotary frequencies: low ones are divided, high ones kept, with a smooth
/// transition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Llama3 {
    pub(crate) theta: f64,
    pub(crate) factor: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// The context length of pre-training, in tokens.
    pub(crate) context: f64,
}

impl Llama3 {
    fn of(params: &Params) -> Result<Self> {
        let number = |name: &str, default: f64| {
            let value = number(params, &[name])?.unwrap_or(default);
            let wrong = || params.finding(name).expected("a positive number").found(value).mismatch();
            Some(value).filter(|v| *v > 0.0).ok_or_else(wrong)
        };
        Ok(Self {
            theta: number("rope_theta", 10000.0)?,
            factor: number("factor", 8.0)?,
            low: number("low_freq_factor", 1.0)?,
            high: number("high_freq_factor", 4.0)?,
            context: number("original_max_position_embeddings", 8192.0)?,
        })
    }

    /// Finds a scaling that gives exactly these divisors; `None` if there is none. Only the ratios
    /// of the three lengths matter, so several scalings are equivalent. The usual numbers are tried
    /// first, then those that fit the transition between kept and divided frequencies.
    pub(crate) fn from_factors(divisors: &[f32], theta: f64, context: u64) -> Option<Self> {
        let head_dim = 2 * divisors.len();
        let largest = f64::from(divisors.iter().copied().fold(0.0, f32::max));
        let usual = [8.0, 32.0, 4.0, 16.0, 2.0, 64.0];
        let factors = std::iter::once(largest).chain(usual).filter(|factor| *factor > 1.0);
        let powers = (5..24).map(|power| f64::from(1u32 << power));
        let contexts: Vec<f64> = std::iter::once(8192.0).chain([context as f64]).chain(powers).collect();
        let is_same = |scaling: &Self| scaling.factors(head_dim) == divisors;
        for factor in factors {
            for (low, high) in [(1.0, 4.0), (1.0, 2.0), (1.0, 8.0), (1.0, 16.0), (1.0, 32.0), (2.0, 4.0)] {
                let scalings = contexts.iter().map(|&context| Self { theta, factor, low, high, context });
                if let Some(found) = scalings.into_iter().find(is_same) {
                    return Some(found);
                }
            }
        }
        Self::fitted(divisors, theta, largest).filter(is_same)
    }

    /// The scaling whose transition goes through the first and the last divisor between 1 and
    /// `factor`. There, `smooth = (context / wavelength - low) / (high - low)`, with `low` 1.
    fn fitted(divisors: &[f32], theta: f64, factor: f64) -> Option<Self> {
        let dim = 2.0 * divisors.len() as f64;
        let turns = |i: usize| theta.powf(-2.0 * i as f64 / dim) / (2.0 * std::f64::consts::PI);
        let smooth = |i: usize| (1.0 / f64::from(divisors[i]) - 1.0 / factor) / (1.0 - 1.0 / factor);
        let between = |i: &usize| divisors[*i] > 1.0 && f64::from(divisors[*i]) < factor;
        let first = (0..divisors.len()).find(between)?;
        let last = (0..divisors.len()).rev().find(between).filter(|last| *last > first)?;
        let slope = (smooth(first) - smooth(last)) / (turns(first) - turns(last));
        let offset = slope * turns(first) - smooth(first);
        let high = (1.0 + 1.0 / offset).round();
        let context = (slope / offset).round();
        (high > 1.0 && context > 0.0).then_some(Self { theta, factor, low: 1.0, high, context })
    }

    /// The fields of config.json for this scaling.
    pub(crate) fn fields(&self) -> serde_json::Map<String, Json> {
        let fields = serde_json::json!({
            "rope_type": "llama3", "factor": self.factor, "low_freq_factor": self.low,
            "high_freq_factor": self.high, "original_max_position_embeddings": self.context as u64,
        });
        fields.as_object().cloned().unwrap_or_default()
    }

    /// A divisor for each pair of a head's dimensions: `head_dim / 2` values (conversion/llama.py,
    /// `generate_extra_tensors`). Operations and their order are the reference's, in f32. torch
    /// divides a number by a tensor by multiplying it with the reciprocal.
    pub(crate) fn factors(&self, head_dim: usize) -> Vec<f32> {
        let longest_kept = (self.context / self.high) as f32;
        let shortest_divided = (self.context / self.low) as f32;
        let (context, divisor, low) = (self.context as f32, self.factor as f32, self.low as f32);
        let span = (self.high - self.low) as f32;
        let dim = head_dim as f32;
        let factor = |i: usize| {
            // Computed in f64 and rounded once: torch's power gives the same bits for these
            // exponents.
            let power = self.theta.powf(f64::from(i as f32 / dim)) as f32;
            let frequency = 1.0 / power;
            let wavelength = (1.0 / frequency) * (2.0 * PI);
            if wavelength < longest_kept {
                1.0
            } else if wavelength > shortest_divided {
                divisor
            } else {
                let smooth = ((1.0 / wavelength) * context - low) / span;
                1.0 / ((1.0 - smooth) / divisor + smooth)
            }
        };
        (0..head_dim).step_by(2).map(factor).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn notes_of(config: Json) -> String {
        let mut notes = Vec::new();
        let params = Params::read(Path::new("folder"), config.as_object().unwrap(), &mut notes).unwrap().unwrap();
        check(&params, &mut notes).unwrap();
        notes.join("\n")
    }

    #[test]
    fn names_the_numbers_of_yarn_that_llama_cpp_computes_otherwise() {
        let config = |attention_factor: Option<f64>, beta_fast: f64| {
            json!({"architectures": ["LlamaForCausalLM"], "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                "original_max_position_embeddings": 128, "attention_factor": attention_factor,
                "beta_fast": beta_fast}})
        };
        assert_eq!(notes_of(config(None, 32.0)), "");
        assert_eq!(notes_of(config(Some(0.1 * 4f64.ln() + 1.0), 32.0)), "");
        assert_eq!(
            notes_of(config(Some(1.1), 16.0)),
            "attention_factor 1.1: llama.cpp reads no key for it with llama and computes with 1.1386294\n\
             beta_fast 16: llama.cpp reads no key for it with llama and computes with 32"
        );
    }

    #[test]
    fn ministral3_says_all_of_yarn_but_one_scale() {
        let config = |mscale: f64| {
            json!({"architectures": ["Ministral3ForCausalLM"], "rope_parameters": {"rope_type": "yarn", "factor": 4.0,
                "original_max_position_embeddings": 128, "beta_fast": 16.0, "beta_slow": 2.0, "mscale": mscale,
                "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}})
        };
        assert_eq!(notes_of(config(1.0)), "");
        assert_eq!(notes_of(config(0.7)), "mscale 0.7: GGUF has no key for it, and llama.cpp computes with 1");
    }

    #[test]
    fn factors_are_counted_and_each_has_to_be_a_number() {
        // 16 pairs: heads with 32 dimensions.
        let error = |long: Json| {
            let config = json!({"architectures": ["Phi3ForCausalLM"], "hidden_size": 64, "num_attention_heads": 2,
                "rope_scaling": {"type": "longrope", "long_factor": long, "short_factor": vec![1.0; 16]},
                "original_max_position_embeddings": 32, "max_position_embeddings": 64});
            let params = Params::read(Path::new("folder"), config.as_object().unwrap(), &mut Vec::new());
            extra_tensors(&params.unwrap().unwrap()).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(error(json!(vec![1.0; 16])), Ok(()));
        for (count, found) in [(15, "15"), (17, "17"), (0, "0")] {
            let error = error(json!(vec![1.0; count])).unwrap_err();
            assert!(error.ends_with(&format!("long_factor: expected 16 numbers, found {found}")), "{error}");
        }
        for odd in [json!("1.0"), json!(null), json!([1.0])] {
            let mut long = vec![json!(1.0); 15];
            long.push(odd.clone());
            let error = error(json!(long)).unwrap_err();
            assert!(error.ends_with(&format!("long_factor: expected numbers alone, found {odd}")), "{error}");
        }
    }
}
