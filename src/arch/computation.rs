//! How a decoder computes: what its family's `run` statements say, for every layer.
//!
//! Reference: transformers `models/*/modeling_*.py`, each family's class.

use serde_json::Value as Json;

use super::Family;
use super::language::Formula;
use super::params::Params;
use super::rotary::{Rope, RopeScaling};
use crate::error::{Finding, Result};

/// The names that `run` statements may give. docs/families.md says what each means.
pub(crate) const SWITCHES: [&str; 35] = [
    "norm",
    "bare_norms",
    "norm_eps",
    "norm_shift",
    "act",
    "act_limit",
    "act_steepness",
    "parallel",
    "window",
    "scale",
    "softcap",
    "clip_qkv",
    "qk_norm",
    "rope",
    "rope_pairs",
    "rope_theta",
    "rope_scaled",
    "rotary",
    "alibi",
    "alibi_order",
    "alibi_rounded",
    "normed_residual",
    "xielu",
    "embed_scale",
    "residual_scale",
    "logit_scale",
    "logit_softcap",
    "experts_used",
    "gating",
    "norm_topk",
    "routed_scale",
    "groups",
    "groups_used",
    "group_score",
    "head_width",
];

/// A function of every value, between the projections of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Activation {
    /// `x / (1 + exp(-x))`
    Silu,
    /// `x` times the normal distribution's part below it.
    Gelu,
    /// Its approximation by a hyperbolic tangent.
    GeluTanh,
    Relu,
    /// The square of [`Activation::Relu`].
    Relu2,
    #[cfg_attr(not(feature = "train"), allow(dead_code))] // Its numbers are in tensors.
    /// xIELU: `positive * x^2 + linear * x` above 0, `negative * (e^min(x, edge) - 1 - x) + linear * x` below.
    Xielu {
        positive: f32,
        negative: f32,
        linear: f32,
        edge: f32,
    },
    /// gpt-oss: `gate / (1 + exp(-steepness gate)) * (up + 1)`, both limited.
    Clamped {
        limit: f32,
        steepness: f32,
    },
}

impl Activation {
    /// transformers `activations.py`, `ACT2FN`.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Activation::Silu,
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            "relu2" => Activation::Relu2,
            _ => return None,
        })
    }
}

/// What a norm divides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormKind {
    /// The root of the mean square.
    Rms,
    /// The standard deviation, after the mean is taken off.
    Layer,
}

/// Where the norms of queries and keys are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QkNorm {
    BeforeRope,
    AfterRope,
}

/// How experts are chosen.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Routing {
    /// The experts of a token.
    pub(crate) used: usize,
    pub(crate) gating: Gating,
    /// Whether the weights of a token's experts are divided by their sum.
    pub(crate) is_normalized: bool,
    /// The factor of the weights.
    pub(crate) scale: f64,
    /// Only the experts of the best groups may be chosen: how many groups there are, how many are taken, and how many
    /// of a group's best scores are added up to compare it.
    pub(crate) groups: Option<(usize, usize, usize)>,
}

/// What makes scores of a router's logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gating {
    Softmax,
    Sigmoid,
    /// A softmax over the chosen experts alone.
    SoftmaxOfChosen,
}

/// How one layer's attention computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LayerComputation {
    /// How many tokens a token attends to, itself included; `None` means all before it.
    pub(crate) window: Option<usize>,
    /// The number of its rotary embedding in [`Computation::ropes`]; `None` without one.
    pub(crate) rope: Option<usize>,
    /// The factor of the scores.
    pub(crate) scale: f32,
}

/// How a decoder computes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Computation {
    pub(crate) norm: NormKind,
    pub(crate) norm_eps: f64,
    /// Whether the norms before blocks and the last one have neither weights nor biases.
    pub(crate) has_bare_norms: bool,
    /// What is added to the weights of norms.
    pub(crate) norm_shift: f32,
    pub(crate) qk_norm: QkNorm,
    pub(crate) activation: Activation,
    /// Whether attention and feed-forward block both start from the layer's input.
    pub(crate) is_parallel: bool,
    /// Whether what a block gives is added to its normed input.
    pub(crate) adds_to_normed: bool,
    /// The limit of attention's scores: `limit * tanh(score / limit)`.
    pub(crate) softcap: Option<f32>,
    /// The limit of queries, keys and values.
    pub(crate) clip_qkv: Option<f64>,
    /// The slope of each head: what a score loses for every token between query and key.
    pub(crate) slopes: Option<Vec<f32>>,
    /// Whether slopes and what they make are rounded to bf16, and have the factor of the scores, as in Falcon.
    pub(crate) rounds_slopes: bool,
    pub(crate) embed_scale: f64,
    pub(crate) residual_scale: f64,
    /// The factor of logits.
    pub(crate) logit_scale: f64,
    pub(crate) logit_softcap: Option<f64>,
    pub(crate) routing: Option<Routing>,
    pub(crate) ropes: Vec<Rope>,
    pub(crate) layers: Vec<LayerComputation>,
    /// With latent attention: the dimensions of a head without position, those with, and those of values.
    pub(crate) latent: Option<(usize, usize, usize)>,
}

/// The values of a family's switches for one config.
struct Switches<'a> {
    params: &'a Params,
    family: &'a Family,
}

impl Switches<'_> {
    fn formula(&self, name: &str) -> Option<&Formula> {
        self.family.run.get(name)
    }

    /// The value in a layer; null where the family doesn't say.
    fn value(&self, name: &str, layer: Option<usize>) -> Result<Json> {
        self.formula(name).map_or(Ok(Json::Null), |formula| self.params.value_of(formula, layer))
    }

    fn wrong(&self, name: &str, expected: impl ToString, found: &Json) -> crate::Error {
        let subject = self.formula(name).map(|formula| self.params.subject(formula, None)).unwrap_or_default();
        let subject = if subject.is_empty() { format!("run {name}") } else { subject };
        self.params.finding(&subject).expected(expected.to_string()).found(found).unsupported()
    }

    fn number(&self, name: &str, layer: Option<usize>) -> Result<Option<f64>> {
        match self.value(name, layer)? {
            Json::Null => Ok(None),
            value => match value.as_f64().filter(|number| number.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(self.wrong(name, "a number", &value)),
            },
        }
    }

    fn positive(&self, name: &str, layer: Option<usize>) -> Result<Option<f64>> {
        match self.number(name, layer)? {
            Some(number) if number <= 0.0 => Err(self.wrong(name, "a positive number", &number.into())),
            number => Ok(number),
        }
    }

    fn count(&self, name: &str, layer: Option<usize>) -> Result<Option<usize>> {
        match self.value(name, layer)? {
            Json::Null => Ok(None),
            value => match value.as_u64().filter(|count| (1..=1 << 31).contains(count)) {
                Some(count) => Ok(Some(count as usize)),
                None => Err(self.wrong(name, "a count from 1 to 2^31", &value)),
            },
        }
    }

    fn holds(&self, name: &str, layer: Option<usize>, default: bool) -> Result<bool> {
        match self.formula(name) {
            None => Ok(default),
            Some(formula) => self.params.holds(Some(formula), layer),
        }
    }

    fn one_of<T: Copy>(&self, name: &str, known: &[(&str, T)], default: T) -> Result<T> {
        match self.value(name, None)? {
            Json::Null => Ok(default),
            value => match known.iter().find(|(text, _)| value.as_str() == Some(*text)) {
                Some((_, found)) => Ok(*found),
                None => {
                    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
                    Err(self.wrong(name, names.join(", "), &value))
                }
            },
        }
    }
}

impl Computation {
    /// How the model of `params` computes, which has `layers` layers, and heads of `head` dimensions.
    pub(super) fn of(params: &Params, layers: usize, heads: usize, head: usize) -> Result<Self> {
        let switches = Switches { params, family: params.family };
        check_layer_types(params, layers)?;
        let given = params.rope.get("partial_rotary_factor").or_else(|| params.given("partial_rotary_factor"));
        let part = given.filter(|part| !part.is_null() && part.as_f64() != Some(1.0));
        let rotary = match (switches.count("rotary", None)?, part) {
            (Some(rotary), _) => rotary,
            (None, None) => head,
            (None, Some(part)) => {
                return Err(params.finding("partial_rotary_factor").expected("1.0").found(part).unsupported());
            }
        };
        let width = switches.count("head_width", None)?.unwrap_or(head);
        let is_turned = |layer: usize| switches.holds("rope", Some(layer), true);
        let mut ropes: Vec<Rope> = Vec::new();
        let (theta, pairs) = (RopeScaling::theta(params)?, switches.holds("rope_pairs", None, false)?);
        let mut scaling = None;
        let mut all = Vec::with_capacity(layers);
        for layer in 0..layers {
            let layer_number = layer;
            let layer = Some(layer);
            let rope = if is_turned(layer_number)? {
                if rotary == 0 || !rotary.is_multiple_of(2) || rotary > width {
                    let finding = params.finding("head_dim").expected("an even number of dimensions that turn");
                    return Err(finding.found(rotary).mismatch());
                }
                let scaling = match switches.holds("rope_scaled", layer, true)? {
                    true if scaling.is_none() => scaling.insert(RopeScaling::of(params, rotary)?).clone(),
                    true => scaling.clone().unwrap_or(RopeScaling::None),
                    false => RopeScaling::None,
                };
                let theta = switches.positive("rope_theta", layer)?.unwrap_or(theta);
                let rope = Rope { theta, rotary, pairs, scaling };
                Some(ropes.iter().position(|known| *known == rope).unwrap_or_else(|| {
                    ropes.push(rope);
                    ropes.len() - 1
                }))
            } else {
                None
            };
            let scale = switches.positive("scale", layer)?.unwrap_or_else(|| 1.0 / (width as f64).sqrt()) as f32;
            all.push(LayerComputation { window: switches.count("window", layer)?, rope, scale });
        }
        let norms = [("rms", NormKind::Rms), ("layer", NormKind::Layer)];
        let eps =
            switches.number("norm_eps", None)?.map_or_else(|| params.number(&["rms_norm_eps"]), |e| Ok(Some(e)))?;
        let latent = match (params.size("nope")?, params.size("rope_rows")?, params.size("v_rows")?) {
            (Some(nope), Some(rope), Some(values)) => Some((nope, rope, values)),
            _ => None,
        };
        let orders = [("before", QkNorm::BeforeRope), ("after", QkNorm::AfterRope)];
        Ok(Self {
            norm: switches.one_of("norm", &norms, NormKind::Rms)?,
            norm_eps: eps.unwrap_or(1e-6),
            has_bare_norms: switches.holds("bare_norms", None, false)?,
            norm_shift: switches.number("norm_shift", None)?.unwrap_or(0.0) as f32,
            qk_norm: switches.one_of("qk_norm", &orders, QkNorm::BeforeRope)?,
            activation: activation(&switches)?,
            is_parallel: switches.holds("parallel", None, false)?,
            adds_to_normed: switches.holds("normed_residual", None, false)?,
            softcap: switches.positive("softcap", None)?.map(|limit| limit as f32),
            clip_qkv: switches.positive("clip_qkv", None)?,
            slopes: slopes(&switches, heads)?,
            rounds_slopes: switches.holds("alibi_rounded", None, false)?,
            embed_scale: switches.number("embed_scale", None)?.unwrap_or(1.0),
            residual_scale: switches.number("residual_scale", None)?.unwrap_or(1.0),
            logit_scale: switches.number("logit_scale", None)?.unwrap_or(1.0),
            logit_softcap: switches.positive("logit_softcap", None)?,
            routing: routing(&switches)?,
            ropes,
            layers: all,
            latent,
        })
    }
}

/// The function of a layer whose tensors give its numbers, which `params` knows (transformers `activations.py`,
/// `XIELUActivation`); `None` where the family has none.
///
/// # Errors
/// Errors of the family's formula, numbers that are missing.
#[cfg(feature = "train")]
pub(crate) fn activation_of_layer(params: &Params, layer: usize) -> Result<Option<Activation>> {
    let switches = Switches { params, family: params.family };
    let softplus = |x: f64| if x > 20.0 { x } else { x.exp().ln_1p() };
    match switches.value("xielu", Some(layer))? {
        Json::Null => Ok(None),
        value => {
            let all = value.as_array().map(Vec::as_slice).unwrap_or_default();
            let numbers: Vec<f64> = all.iter().filter_map(Json::as_f64).collect();
            let [positive, negative, linear, edge] = numbers[..] else {
                return Err(switches.wrong("xielu", "four numbers", &value));
            };
            Ok(Some(Activation::Xielu {
                positive: softplus(positive) as f32,
                negative: (linear + softplus(negative)) as f32,
                linear: linear as f32,
                edge: edge as f32,
            }))
        }
    }
}

fn activation(switches: &Switches) -> Result<Activation> {
    if let Some(limit) = switches.positive("act_limit", None)? {
        let steepness = switches.positive("act_steepness", None)?.unwrap_or(1.0) as f32;
        return Ok(Activation::Clamped { limit: limit as f32, steepness });
    }
    let name = match switches.value("act", None)? {
        Json::Null => switches.params.get(&["hidden_act"]).cloned().unwrap_or_else(|| "silu".into()),
        name => name,
    };
    name.as_str().and_then(Activation::named).ok_or_else(|| {
        let finding =
            switches.params.finding("hidden_act").expected("silu, gelu, gelu_new, gelu_pytorch_tanh, relu, relu2");
        finding.found(&name).unsupported()
    })
}

/// ALiBi's slopes: powers of two that reach 2^-8, or 2^-`alibi` (transformers `models/bloom/modeling_bloom.py`,
/// `build_alibi_tensor`; `models/mpt/modeling_mpt.py`, `build_mpt_alibi_tensor`).
fn slopes(switches: &Switches, heads: usize) -> Result<Option<Vec<f32>>> {
    let Some(most) = switches.positive("alibi", None)? else { return Ok(None) };
    if switches.value("alibi_order", None)?.as_str() == Some("odd first") {
        let whole = heads.next_power_of_two();
        let of = |place: usize| (2f64.powf(-most * (place + 1) as f64 / whole as f64)) as f32;
        let order = (1..whole).step_by(2).chain((0..whole).step_by(2));
        return Ok(Some(match whole == heads {
            true => (0..heads).map(of).collect(),
            false => order.take(heads).map(of).collect(),
        }));
    }
    let power = |of: usize, step: f64| (2f64.powf(-most * step / of as f64)) as f32;
    let whole = 1usize << heads.ilog2();
    let mut slopes: Vec<f32> = (1..=whole).map(|i| power(whole, i as f64)).collect();
    // Heads past a power of two take every second slope of twice as many.
    slopes.extend((0..heads - whole).map(|i| power(2 * whole, (2 * i + 1) as f64)));
    Ok(Some(slopes))
}

fn routing(switches: &Switches) -> Result<Option<Routing>> {
    let Some(used) = switches.count("experts_used", None)? else { return Ok(None) };
    let gatings = [("softmax", Gating::Softmax), ("sigmoid", Gating::Sigmoid), ("chosen", Gating::SoftmaxOfChosen)];
    let groups = match (switches.count("groups", None)?, switches.count("groups_used", None)?) {
        (Some(groups), Some(used)) => {
            let best = switches.count("group_score", None)?.unwrap_or(1);
            let experts = switches.params.count("experts")?;
            if used > groups || !experts.is_multiple_of(groups) || experts / groups < best {
                let finding = switches.params.finding("n_group").expected(format_args!("groups of {experts} experts"));
                return Err(finding.found(groups).mismatch());
            }
            Some((groups, used, best))
        }
        _ => None,
    };
    let experts = switches.params.count("experts")?;
    if used > experts {
        let finding =
            switches.params.finding("num_experts_per_tok").expected(format_args!("at most {experts}, all experts"));
        return Err(finding.found(used).mismatch());
    }
    Ok(Some(Routing {
        used,
        gating: switches.one_of("gating", &gatings, Gating::Softmax)?,
        is_normalized: switches.holds("norm_topk", None, false)?,
        scale: switches.number("routed_scale", None)?.unwrap_or(1.0),
        groups,
    }))
}

/// Refuses kinds of layers that no decoder here has.
fn check_layer_types(params: &Params, layers: usize) -> Result<()> {
    let wrong = || -> Finding { params.finding("layer_types").expected("full_attention or sliding_attention") };
    match params.given("layer_types") {
        None => Ok(()),
        Some(Json::Array(types)) if types.len() == layers => {
            let is_known = |kind: &&Json| !matches!(kind.as_str(), Some("sliding_attention" | "full_attention"));
            types.iter().find(is_known).map_or(Ok(()), |kind| Err(wrong().found(kind).unsupported()))
        }
        Some(Json::Array(types)) => {
            let finding = params.finding("layer_types").expected(format_args!("{layers} entries"));
            Err(finding.found(types.len()).mismatch())
        }
        Some(other) => Err(wrong().found(other).format()),
    }
}
