//! The attention block of a decoder layer: from normed states to what is added to them.

use std::sync::Arc;

use candle_core::{D, Result, Tensor};

use super::layer::{LinearWeights, NormWeights, QkvOrder, QkvWeights};
use super::ops::{self, Heads, Scores, Sight};
use crate::arch::ModelConfig;
use crate::arch::computation::{Computation, LayerComputation, NormKind, QkNorm};

/// The angles of all positions, `[B, T, rotary / 2]`.
pub(super) struct Angles {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

/// Applies linear layers with their adapters to the same input.
pub(super) type Apply<'a> = dyn FnMut(&[&LinearWeights], &Tensor) -> crate::Result<Vec<Tensor>> + 'a;

/// Applies one linear layer.
pub(super) fn one(apply: &mut Apply, linear: &LinearWeights, x: &Tensor) -> crate::Result<Tensor> {
    Ok(apply(&[linear], x)?.remove(0))
}

/// The epsilon of the norms of latent states, which no config changes.
const LATENT_EPS: f64 = 1e-6;

/// One layer's attention in one pass.
pub(super) struct Attention<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) layer: LayerComputation,
    pub(super) angles: Option<&'a Angles>,
    pub(super) q_norm: Option<&'a NormWeights>,
    pub(super) k_norm: Option<&'a NormWeights>,
}

/// `norm(x)` over the last dimension.
pub(super) fn normed(x: &Tensor, norm: &NormWeights, computation: &Computation) -> Result<Tensor> {
    normed_with(x, norm, computation.norm, computation.norm_eps)
}

fn normed_with(x: &Tensor, norm: &NormWeights, kind: NormKind, eps: f64) -> Result<Tensor> {
    match (&norm.weight, kind) {
        // Heads with weights of their own.
        (Some(weight), _) if weight.rank() > 1 => {
            let plain = NormWeights { weight: None, bias: None };
            normed_with(x, &plain, kind, eps)?.broadcast_mul(weight)
        }
        (Some(weight), NormKind::Rms) => {
            let y = ops::rms_norm_times(x, weight, eps)?;
            norm.bias.as_ref().map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
        }
        (None, NormKind::Rms) => ops::rms_norm(x, eps),
        (weight, NormKind::Layer) => ops::layer_norm(x, weight.as_ref(), norm.bias.as_ref(), eps),
    }
}

impl Attention<'_> {
    /// Queries `[B, T, heads * d]`, keys and values `[B, T, kv_heads * d]`, and `d`.
    pub(super) fn qkv(&self, weights: &QkvWeights, x: &Tensor, apply: &mut Apply) -> crate::Result<[Tensor; 3]> {
        match weights {
            QkvWeights::Separate { q, k, v } => {
                let mut all = apply(&[q, k, v], x)?.into_iter();
                let mut next = || all.next().unwrap_or_else(|| x.clone());
                let (q, k, v) = (next(), next(), next());
                Ok(self.turned(q, k, v)?)
            }
            QkvWeights::Fused(qkv, order) => {
                let [q, k, v] = self.split(&one(apply, qkv, x)?, *order)?;
                Ok(self.turned(q, k, v)?)
            }
            QkvWeights::Latent { q, q_of_latent, kv, kv_norm, kv_of_latent } => {
                let mut queries = one(apply, q, x)?;
                if let Some((norm, second)) = q_of_latent {
                    queries = one(apply, second, &normed_with(&queries, norm, NormKind::Rms, LATENT_EPS)?)?;
                }
                let latent = one(apply, kv, x)?;
                let rotary = self.latent().1;
                let width = latent.dim(D::Minus1)? - rotary;
                let state = latent.narrow(D::Minus1, 0, width)?.contiguous()?;
                let state = normed_with(&state, kv_norm, NormKind::Rms, LATENT_EPS)?;
                let keys = latent.narrow(D::Minus1, width, rotary)?.contiguous()?;
                let values = one(apply, kv_of_latent, &state)?;
                Ok(self.of_latent(&queries, &keys, &values)?)
            }
        }
    }

    /// The dimensions of a head without position, with position, and of values.
    fn latent(&self) -> (usize, usize, usize) {
        self.config.computation.latent.unwrap_or_default()
    }

    /// Splits the outputs of one projection.
    fn split(&self, qkv: &Tensor, order: QkvOrder) -> Result<[Tensor; 3]> {
        let (heads, kv_heads, d) = self.sizes();
        let (rows, tokens, _) = qkv.dims3()?;
        match order {
            QkvOrder::Parts => {
                let part = |start: usize, width: usize| qkv.narrow(D::Minus1, start, width)?.contiguous();
                let (q, k) = (heads * d, kv_heads * d);
                Ok([part(0, q)?, part(q, k)?, part(q + k, k)?])
            }
            QkvOrder::Groups => {
                let shared = heads / kv_heads;
                let groups = qkv.reshape((rows, tokens, kv_heads, shared + 2, d))?;
                let part = |start: usize, count: usize| {
                    groups.narrow(3, start, count)?.contiguous()?.reshape((rows, tokens, kv_heads * count * d))
                };
                Ok([part(0, shared)?, part(shared, 1)?, part(shared + 1, 1)?])
            }
        }
    }

    fn sizes(&self) -> (usize, usize, usize) {
        (self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim)
    }

    /// Norms, limits and turns queries and keys.
    fn turned(&self, q: Tensor, k: Tensor, v: Tensor) -> Result<[Tensor; 3]> {
        let computation = &self.config.computation;
        let (heads, kv_heads, d) = self.sizes();
        let limit = |x: Tensor| match computation.clip_qkv {
            Some(limit) => x.clamp(-limit, limit),
            None => Ok(x),
        };
        let one = |x: Tensor, heads: usize, norm: Option<&NormWeights>| -> Result<Tensor> {
            let (rows, tokens, width) = x.dims3()?;
            let by_heads = |x: Tensor| x.reshape((rows, tokens, heads, d));
            let normed = |x: Tensor| match norm {
                // A norm over all heads together.
                Some(norm) if norm.weight.as_ref().is_some_and(|weight| weight.dims() == [width] && width != d) => {
                    by_heads(normed(&x.reshape((rows, tokens, width))?, norm, computation)?)
                }
                Some(norm) => normed(&x, norm, computation),
                None => Ok(x),
            };
            let mut x = by_heads(x)?;
            if computation.qk_norm == QkNorm::BeforeRope {
                x = normed(x)?;
            }
            x = limit(x)?;
            if let Some(angles) = self.angles {
                x = ops::rope(&x, &angles.cos, &angles.sin, self.pairs())?;
            }
            if computation.qk_norm == QkNorm::AfterRope {
                x = normed(x)?;
            }
            x.reshape((rows, tokens, width))
        };
        Ok([one(q, heads, self.q_norm)?, one(k, kv_heads, self.k_norm)?, limit(v)?])
    }

    fn pairs(&self) -> bool {
        self.layer.rope.is_some_and(|number| self.config.computation.ropes[number].pairs)
    }

    /// Keys and values of every head from latent ones: the part of keys with positions is the same for all heads. Values
    /// are as wide as keys, with zeros.
    fn of_latent(&self, q: &Tensor, keys: &Tensor, values: &Tensor) -> Result<[Tensor; 3]> {
        let ((nope, rotary, width), heads) = (self.latent(), self.config.num_attention_heads);
        let (rows, tokens, _) = q.dims3()?;
        let turn = |x: Tensor| match self.angles {
            Some(angles) => ops::rope(&x, &angles.cos, &angles.sin, self.pairs()),
            None => Ok(x),
        };
        let q = q.reshape((rows, tokens, heads, nope + rotary))?;
        let q_turned = turn(q.narrow(D::Minus1, nope, rotary)?.contiguous()?)?;
        let q = Tensor::cat(&[&q.narrow(D::Minus1, 0, nope)?, &q_turned], D::Minus1)?;
        let shared = turn(keys.reshape((rows, tokens, 1, rotary))?)?;
        let shared = shared.broadcast_as((rows, tokens, heads, rotary))?;
        let both = values.reshape((rows, tokens, heads, nope + width))?;
        let k = Tensor::cat(&[&both.narrow(D::Minus1, 0, nope)?, &shared], D::Minus1)?;
        let v = both.narrow(D::Minus1, nope, width)?;
        let all = nope + rotary;
        let v = match width < all {
            true => v.pad_with_zeros(D::Minus1, 0, all - width)?,
            false => v,
        };
        let flat = |x: Tensor| x.contiguous()?.reshape((rows, tokens, heads * all));
        Ok([flat(q)?, flat(k)?, flat(v)?])
    }

    /// What is done to scores.
    pub(super) fn scores(&self, sinks: Option<&Arc<[f32]>>) -> Scores {
        let computation = &self.config.computation;
        let slopes = computation.slopes.as_ref().map(|slopes| slopes.as_slice().into());
        let rounded_slopes = computation.rounds_slopes.then_some(self.layer.scale);
        Scores { softcap: computation.softcap, slopes, rounded_slopes, sinks: sinks.cloned() }
    }

    /// Mixes values by the scores of queries and keys: the inputs of the output projection.
    pub(super) fn mixed(
        &self,
        [q, k, v]: &[Tensor; 3],
        sinks: Option<&Arc<[f32]>>,
        sight: &Arc<Sight>,
    ) -> Result<Tensor> {
        let computation = &self.config.computation;
        let (heads, kv_heads, d) = self.sizes();
        let latent = computation.latent;
        let (of_keys, width) = latent.map_or((kv_heads, d), |(nope, rotary, _)| (heads, nope + rotary));
        let sizes = Heads { count: heads, of_keys, width, scale: self.layer.scale };
        let mixed = ops::attention(q, k, v, sizes, &self.scores(sinks), sight)?;
        match latent {
            Some((_, _, values)) if values < width => {
                let (rows, tokens, _) = mixed.dims3()?;
                let mixed = mixed.reshape((rows, tokens, heads, width))?.narrow(D::Minus1, 0, values)?;
                mixed.contiguous()?.reshape((rows, tokens, heads * values))
            }
            _ => Ok(mixed),
        }
    }
}
