//! The weights of one decoder layer, by what they are to it.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::ops::FrozenMatrix;
use super::weights::ModelWeights;
use crate::arch::computation::{Activation, activation_of_layer};
use crate::arch::layout::Needed;
use crate::arch::parts::Part;
use crate::arch::{LinearLayer, Module, Operation};
use crate::error::{Finding, Result};

/// What a layer's tensors are, by part and by whether they are biases.
pub(super) type Parts = HashMap<(Part, bool), Needed>;

/// A frozen linear layer: `x W^T + bias`.
#[derive(Clone)]
pub(super) struct LinearWeights {
    /// Where adapters find it.
    pub(super) site: LinearLayer,
    pub(super) weight: FrozenMatrix,
    /// `[d_out]`
    pub(super) bias: Option<Tensor>,
}

/// A norm: weight and bias, `[n]`; for norms of heads that differ, `[heads, d]`.
#[derive(Clone)]
pub(super) struct NormWeights {
    pub(super) weight: Option<Tensor>,
    pub(super) bias: Option<Tensor>,
}

/// How queries, keys and values lie in the outputs of one projection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum QkvOrder {
    /// All queries, all keys, all values.
    Parts,
    /// For each head of keys: its queries, the key, the value.
    Groups,
}

/// The projections to queries, keys and values.
#[derive(Clone)]
pub(super) enum QkvWeights {
    Separate {
        q: LinearWeights,
        k: LinearWeights,
        v: LinearWeights,
    },
    Fused(LinearWeights, QkvOrder),
    /// Latent attention: queries, by a latent state where the model has one; then keys and values from another.
    Latent {
        q: LinearWeights,
        q_of_latent: Option<(NormWeights, LinearWeights)>,
        kv: LinearWeights,
        kv_norm: NormWeights,
        kv_of_latent: LinearWeights,
    },
}

/// A feed-forward block: `down(act(gate) * up)`, or `down(act(up))` without a gate.
#[derive(Clone)]
pub(super) struct FeedForward {
    pub(super) inner: InnerWeights,
    pub(super) down: LinearWeights,
}

/// The projections into a feed-forward block.
#[derive(Clone)]
pub(super) enum InnerWeights {
    Gated {
        gate: LinearWeights,
        up: LinearWeights,
    },
    /// Gate and up in one, in this order.
    Fused(LinearWeights),
    Plain(LinearWeights),
}

/// Routed experts, and the block that every token uses besides.
#[derive(Clone)]
pub(super) struct Experts {
    /// `[experts, hidden]`
    pub(super) router: FrozenMatrix,
    pub(super) router_bias: Option<Tensor>,
    /// What is added to scores when experts are chosen, `[experts]`.
    pub(super) choice_bias: Option<Tensor>,
    pub(super) inner: InnerExperts,
    pub(super) down: Vec<FrozenMatrix>,
    /// `[experts, hidden]`
    pub(super) down_bias: Option<Tensor>,
    pub(super) shared: Option<FeedForward>,
    /// The gate of the shared block's output.
    pub(super) shared_gate: Option<LinearWeights>,
}

/// The matrices into the experts.
#[derive(Clone)]
pub(super) enum InnerExperts {
    Separate {
        gate: Vec<FrozenMatrix>,
        up: Vec<FrozenMatrix>,
    },
    /// Gate and up in one; `in_turns` where their outputs take turns. The bias is `[experts, 2 * ff]`.
    Fused {
        both: Vec<FrozenMatrix>,
        in_turns: bool,
        bias: Option<Tensor>,
    },
}

#[derive(Clone)]
pub(super) enum FeedForwardKind {
    Dense(FeedForward),
    Experts(Experts),
}

/// One decoder layer's weights.
#[derive(Clone)]
pub(super) struct Layer {
    /// The norms before the two blocks. Without the second, a parallel layer's feed-forward block shares the first.
    pub(super) attention_norm: Option<NormWeights>,
    pub(super) feed_forward_norm: Option<NormWeights>,
    /// The norms of what the blocks give.
    pub(super) after_attention: Option<NormWeights>,
    pub(super) after_feed_forward: Option<NormWeights>,
    pub(super) q_norm: Option<NormWeights>,
    pub(super) k_norm: Option<NormWeights>,
    pub(super) qkv: QkvWeights,
    pub(super) o: LinearWeights,
    /// The score of each head that no key has, which takes its part of the softmax: `[heads]`.
    pub(super) sinks: Option<Arc<[f32]>>,
    pub(super) feed_forward: FeedForwardKind,
    pub(super) activation: Activation,
}

/// Makes the weights of one layer.
pub(super) struct LayerReader<'a> {
    pub(super) weights: &'a ModelWeights,
    pub(super) parts: &'a Parts,
    pub(super) layer: usize,
    /// Whether matrices are read into memory.
    pub(super) is_held: bool,
}

impl LayerReader<'_> {
    /// Reads the whole layer.
    pub(super) fn layer(&self) -> Result<Layer> {
        let second = self.norm(Part::SecondNorm)?;
        let (attention_norm, feed_forward_norm) = match second {
            Some(second) => (Some(second), self.norm(Part::AttentionNorm)?),
            None => (self.norm(Part::AttentionNorm)?, self.norm(Part::FeedForwardNorm)?),
        };
        let is_latent = self.has(Part::KvA);
        let (q_norm, k_norm) = match is_latent {
            true => (None, None),
            false => (self.norm(Part::QNorm)?, self.norm(Part::KNorm)?),
        };
        let sinks = match self.parts.get(&(Part::Sinks, false)) {
            Some(needed) => Some(self.values(needed)?.flatten_all()?.to_vec1::<f32>()?.into()),
            None => None,
        };
        let own = activation_of_layer(self.weights.params(), self.layer)?;
        Ok(Layer {
            activation: own.unwrap_or(self.weights.config().computation.activation),
            attention_norm,
            feed_forward_norm,
            after_attention: self.norm(Part::AfterAttention)?,
            after_feed_forward: self.norm(Part::AfterFeedForward)?,
            q_norm,
            k_norm,
            qkv: self.qkv()?,
            o: self.linear(Part::O)?,
            sinks,
            feed_forward: match self.has(Part::Router) {
                true => FeedForwardKind::Experts(self.experts()?),
                false => FeedForwardKind::Dense(self.feed_forward([Part::Gate, Part::Up, Part::Down])?),
            },
        })
    }

    fn has(&self, part: Part) -> bool {
        self.parts.contains_key(&(part, false))
    }

    fn need(&self, part: Part) -> Result<&Needed> {
        self.parts.get(&(part, false)).ok_or_else(|| {
            let finding = Finding::new(self.weights.path(), format!("layer {}", self.layer));
            finding.expected(format_args!("{part:?} in it")).found("none").unsupported()
        })
    }

    fn qkv(&self) -> Result<QkvWeights> {
        if self.has(Part::KvA) {
            let (q, q_of_latent) = match self.norm(Part::QNorm)?.or(self.norm(Part::QaNorm)?) {
                Some(norm) => {
                    let first = if self.has(Part::Qa) { Part::Qa } else { Part::Q };
                    (self.linear(first)?, Some((norm, self.linear(Part::Qb)?)))
                }
                None => (self.linear(Part::Q)?, None),
            };
            let kv_norm = self.norm(Part::KNorm)?.or(self.norm(Part::KvNorm)?);
            let none = NormWeights { weight: None, bias: None };
            return Ok(QkvWeights::Latent {
                q,
                q_of_latent,
                kv: self.linear(Part::KvA)?,
                kv_norm: kv_norm.unwrap_or(none),
                kv_of_latent: self.linear(Part::KvB)?,
            });
        }
        if !self.has(Part::Qkv) {
            let [q, k, v] = [Part::Q, Part::K, Part::V].map(|part| self.linear(part));
            return Ok(QkvWeights::Separate { q: q?, k: k?, v: v? });
        }
        let operations = &self.need(Part::Qkv)?.slot.row.forms[0].operations;
        let in_groups = operations.iter().any(|operation| matches!(operation, Operation::Qkv(_)));
        let order = if in_groups { QkvOrder::Groups } else { QkvOrder::Parts };
        Ok(QkvWeights::Fused(self.linear(Part::Qkv)?, order))
    }

    fn feed_forward(&self, [gate, up, down]: [Part; 3]) -> Result<FeedForward> {
        let inner = if up == Part::Up && self.has(Part::GateUp) {
            InnerWeights::Fused(self.linear(Part::GateUp)?)
        } else if self.has(gate) {
            InnerWeights::Gated { gate: self.linear(gate)?, up: self.linear(up)? }
        } else {
            InnerWeights::Plain(self.linear(up)?)
        };
        Ok(FeedForward { inner, down: self.linear(down)? })
    }

    fn experts(&self) -> Result<Experts> {
        let (gate, up) = (self.need(Part::ExpertGate)?, self.need(Part::ExpertUp)?);
        let is_fused = gate.sources.len() == 1 && gate.sources[0].name == up.sources[0].name;
        let inner = if is_fused {
            let operations = &gate.slot.row.forms[gate.form].operations;
            let in_turns = operations.iter().any(|operation| matches!(operation, Operation::Reshape(_)));
            let bias = self.optional(Part::ExpertGate)?;
            InnerExperts::Fused { both: self.matrices(gate)?, in_turns, bias }
        } else {
            for part in [Part::ExpertGate, Part::ExpertUp] {
                if let Some(bias) = self.parts.get(&(part, true)) {
                    let name = bias.sources.first().map_or("", |source| &source.name);
                    let finding = Finding::new(self.weights.path(), format!("tensor {name:?}"));
                    return Err(finding
                        .expected("experts of separate matrices without biases")
                        .found("one")
                        .unsupported());
                }
            }
            InnerExperts::Separate { gate: self.matrices(gate)?, up: self.matrices(up)? }
        };
        let shared = match self.has(Part::SharedUp) {
            true => Some(self.feed_forward([Part::SharedGate, Part::SharedUp, Part::SharedDown])?),
            false => None,
        };
        let router = self.need(Part::Router)?;
        Ok(Experts {
            // A router is small, and its product decides what is read.
            router: FrozenMatrix::held(self.values(router)?),
            router_bias: self.optional(Part::Router)?,
            choice_bias: self.optional(Part::RouterBias)?,
            inner,
            down: self.matrices(self.need(Part::ExpertDown)?)?,
            down_bias: self.optional(Part::ExpertDown)?,
            shared,
            shared_gate: if self.has(Part::SharedRouter) { Some(self.linear(Part::SharedRouter)?) } else { None },
        })
    }

    /// The bias of a part, if there is one.
    fn optional(&self, part: Part) -> Result<Option<Tensor>> {
        self.parts.get(&(part, true)).map(|needed| self.values(needed)).transpose()
    }

    fn norm(&self, part: Part) -> Result<Option<NormWeights>> {
        self.weights.norm_of(self.parts, part)
    }

    fn linear(&self, part: Part) -> Result<LinearWeights> {
        let needed = self.need(part)?;
        let row = needed.slot.row;
        let family = self.weights.params().family;
        let takes = |operation: &Operation| matches!(operation, Operation::Take(..));
        let is_part = part != Part::KvB && row.forms[needed.form].operations.iter().any(takes);
        let module = Module::of_row(family, row).filter(|_| needed.sources.len() == 1 && !is_part);
        let Some(module) = module else {
            let name = needed.sources.first().map_or("", |source| &source.name);
            let finding = Finding::new(self.weights.path(), format!("tensor {name:?}"));
            let finding = finding.expected("the layout of the class in transformers").found("another");
            return Err(finding.hint("convert the model to GGUF and back first").unsupported());
        };
        let weight = self.weights.matrix(&needed.sources[0].name, self.is_held, row.is_transposed())?;
        Ok(LinearWeights { site: LinearLayer { layer: self.layer, module }, weight, bias: self.optional(part)? })
    }

    /// The matrices of all experts: one tensor each, or one for all.
    fn matrices(&self, needed: &Needed) -> Result<Vec<FrozenMatrix>> {
        let form = &needed.slot.row.forms[needed.form];
        let is_turned = form.is_turned();
        match &needed.sources[..] {
            [stack] if stack.shape.len() == 3 => self.weights.stack(&stack.name, self.is_held, is_turned),
            all => all.iter().map(|source| self.weights.matrix(&source.name, self.is_held, is_turned)).collect(),
        }
    }

    /// The values of a part, stacked where it has several tensors.
    fn values(&self, needed: &Needed) -> Result<Tensor> {
        self.weights.values_of(needed)
    }
}
