//! Rotary position embedding: the angles by which a decoder turns queries and keys.
//!
//! Reference: transformers `modeling_rope_utils.py`. Everything is computed in f32, as there.

use serde_json::Value as Json;

use super::params::Params;
use crate::error::Result;
use crate::json::Fields;

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How many of a head's dimensions are turned, the first ones.
    pub rotary: usize,
    /// Whether neighbouring dimensions turn together, and not the two halves.
    pub pairs: bool,
    /// How the frequencies are scaled.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are scaled for longer contexts.
#[derive(Debug, Clone, PartialEq)]
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
    /// YaRN: frequencies that turn seldom within the first context are divided, with a linear transition.
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// Frequencies with at least as many turns in the first context are kept.
        beta_fast: f64,
        /// Frequencies with at most as many turns in the first context are divided.
        beta_slow: f64,
        /// The context length of pre-training, in tokens.
        original_max_position_embeddings: f64,
        /// Whether the ends of the transition are whole dimensions.
        truncate: bool,
        /// The factor of sines and cosines.
        attention_factor: f64,
    },
    /// LongRoPE: a divisor for each frequency, others for texts that are longer than the context of pre-training.
    Long {
        /// The divisors up to that context.
        short: Vec<f32>,
        /// The divisors past it.
        long: Vec<f32>,
        /// The context length of pre-training, in tokens.
        original_max_position_embeddings: usize,
        /// The factor of sines and cosines.
        attention_factor: f64,
    },
}

impl Rope {
    /// The angular frequency of each pair of dimensions, in radians per position, for a text of `length` tokens:
    /// `[rotary / 2]` values.
    pub fn frequencies(&self, length: usize) -> Vec<f32> {
        let base = self.theta as f32;
        let plain = (0..self.rotary).step_by(2).map(|i| base.powf(i as f32 / self.rotary as f32));
        match &self.scaling {
            RopeScaling::Long { short, long, original_max_position_embeddings, .. } => {
                let divisors = if length > *original_max_position_embeddings { long } else { short };
                divisors.iter().zip(plain).map(|(divisor, power)| 1.0 / (divisor * power)).collect()
            }
            RopeScaling::Yarn { factor, .. } => {
                let kept = self.kept();
                let mixed = |(kept, power): (f32, f32)| {
                    let (whole, divided) = (1.0 / power, 1.0 / (*factor as f32 * power));
                    divided * (1.0 - kept) + whole * kept
                };
                kept.into_iter().zip(plain).map(mixed).collect()
            }
            _ => plain.map(|power| 1.0 / power).map(|frequency| frequency / self.factor(frequency)).collect(),
        }
    }

    /// The factor of sines and cosines.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::Long { attention_factor, .. } => {
                attention_factor as f32
            }
            _ => 1.0,
        }
    }

    /// The divisor of `frequency`: 1 where it is kept.
    fn factor(&self, frequency: f32) -> f32 {
        match self.scaling {
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
            _ => 1.0,
        }
    }

    /// How much of each frequency YaRN keeps, from 1 to 0.
    fn kept(&self) -> Vec<f32> {
        let RopeScaling::Yarn { beta_fast, beta_slow, original_max_position_embeddings, truncate, .. } = self.scaling
        else {
            return Vec::new();
        };
        let dim = self.rotary as f64;
        let dimension_of = |turns: f64| {
            dim * (original_max_position_embeddings / (turns * 2.0 * std::f64::consts::PI)).ln()
                / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (dimension_of(beta_fast), dimension_of(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let ramp = |i: usize| ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        (0..self.rotary / 2).map(|i| 1.0 - ramp(i)).collect()
    }
}

impl RopeScaling {
    /// Reads the scaling of a model's rotary parameters. Unknown ones are refused.
    pub(super) fn of(params: &Params, rotary: usize) -> Result<Self> {
        let mut p = Fields::inside(params.path(), params.rope_field, &params.rope);
        p.ignore(&["type", "rope_theta", "partial_rotary_factor"]);
        let kind = p.get::<String>("rope_type")?.unwrap_or_else(|| "default".to_owned());
        let context = || params.count("context").map(|context| context as f64);
        let mut factors = Vec::new();
        let scaling = match kind.as_str() {
            "default" => {
                // Fields that only scalings read.
                p.ignore(&["factor", "original_max_position_embeddings"]);
                RopeScaling::None
            }
            "linear" => {
                p.ignore(&["original_max_position_embeddings"]);
                let factor = p.need("factor")?;
                factors.push(factor);
                RopeScaling::Linear { factor }
            }
            "llama3" => {
                let original = p.get("original_max_position_embeddings")?;
                let factor = p.need("factor")?;
                factors.push(factor);
                RopeScaling::Llama3 {
                    factor,
                    low_freq_factor: p.need("low_freq_factor")?,
                    high_freq_factor: p.need("high_freq_factor")?,
                    original_max_position_embeddings: original.map_or_else(context, Ok)?,
                }
            }
            "yarn" => {
                let factor: f64 = p.need("factor")?;
                let original = p.get("original_max_position_embeddings")?.map_or_else(context, Ok)?;
                let (mscale, all) = (p.get::<f64>("mscale")?, p.get::<f64>("mscale_all_dim")?);
                let growth = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
                let given: Option<f64> = p.get("attention_factor")?;
                let attention_factor = given.unwrap_or_else(|| match (mscale, all) {
                    (Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => growth(mscale) / growth(all),
                    _ => growth(1.0),
                });
                factors.extend([factor, original, attention_factor]);
                RopeScaling::Yarn {
                    factor,
                    beta_fast: p.get("beta_fast")?.unwrap_or(32.0),
                    beta_slow: p.get("beta_slow")?.unwrap_or(1.0),
                    original_max_position_embeddings: original,
                    truncate: p.get("truncate")?.unwrap_or(true),
                    attention_factor,
                }
            }
            "longrope" | "su" => {
                let mut list = |name: &'static str| -> Result<Vec<f32>> {
                    let values: Vec<f32> = p.need(name)?;
                    if values.len() != rotary / 2 || values.iter().any(|value| !value.is_finite() || *value == 0.0) {
                        let expected = format_args!("{} numbers other than 0", rotary / 2).to_string();
                        return Err(p.finding(name).expected(expected).found(values.len()).mismatch());
                    }
                    Ok(values)
                };
                let (short, long) = (list("short_factor")?, list("long_factor")?);
                let context = context()?;
                let original = p.get("original_max_position_embeddings")?.unwrap_or(context);
                let factor = p.get("factor")?.unwrap_or(context / original);
                let growth = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
                let attention_factor = p.get("attention_factor")?.unwrap_or(growth);
                factors.extend([original, attention_factor]);
                RopeScaling::Long { short, long, original_max_position_embeddings: original as usize, attention_factor }
            }
            other => {
                let finding = p.finding("rope_type").expected("default, linear, llama3, yarn or longrope");
                return Err(finding.found(other).unsupported());
            }
        };
        p.finish()?;
        match factors.into_iter().find(|factor| !factor.is_finite() || *factor <= 0.0) {
            Some(factor) => Err(params.finding("rope factor").expected("a positive number").found(factor).mismatch()),
            None => Ok(scaling),
        }
    }

    /// The base of the frequencies.
    pub(super) fn theta(params: &Params) -> Result<f64> {
        match params.rope.get("rope_theta").filter(|theta| !theta.is_null()) {
            None => Ok(10_000.0),
            Some(theta) => {
                let wrong = || params.finding("rope_theta").expected("a positive number").found(theta).format();
                Json::as_f64(theta).filter(|theta| *theta > 0.0).ok_or_else(wrong)
            }
        }
    }
}
