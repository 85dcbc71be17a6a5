//! The halves of a decoder layer as one operation each, where layer, device and hook allow it.

use std::sync::{Arc, OnceLock};

use candle_core::{Result, Tensor};

use super::attention::{Angles, Attention};
use super::hooks::{Factors, Hook, Mixing};
use super::layer::{FeedForwardKind, InnerWeights, Layer, LinearWeights, NormWeights, QkvOrder, QkvWeights};
use super::ops::fused::{AttentionHalf, FeedForwardHalf, Frame, Group, Inner, Linear, MixedBy, Order, unmixed};
use super::ops::{Heads, Rope, RowNorm, Sight};
use crate::arch::ModelConfig;
use crate::arch::computation::{Computation, LayerComputation, QkNorm};

/// One layer in one pass.
pub(super) struct Fusing<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) of_layer: LayerComputation,
    pub(super) layer: &'a Layer,
    pub(super) angles: Option<&'a Angles>,
    pub(super) sight: &'a Arc<Sight>,
}

/// The tensor of all factors, while it is made.
struct Packing<'a> {
    hook: &'a Factors,
    parts: Vec<Tensor>,
    end: usize,
    next: usize,
}

impl<'a> Packing<'a> {
    /// The groups of a half's linear layers, and the tensor of their factors.
    fn of(hook: &'a Factors, first: &[&LinearWeights], last: &LinearWeights) -> Result<(Group, Group, Tensor)> {
        let mut packing = Self { hook, parts: Vec::new(), end: 0, next: 0 };
        let (first, last) = (packing.group(first)?, packing.group(&[last])?);
        Ok((first, last, packing.packed()?))
    }

    /// A group of linear layers with the same input.
    fn group(&mut self, linears: &[&LinearWeights]) -> Result<Group> {
        let mut made = Vec::new();
        let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
        for linear in linears {
            let factors = self.hook.of_sites.get(self.next).cloned().flatten();
            self.next += 1;
            let (weight, bias) = (linear.weight.clone(), linear.bias.clone());
            made.push(match factors {
                None => Linear { weight, bias, rank: 0, scale: 0.0 },
                Some((a, b, scale)) => {
                    let rank = a.dim(0)?;
                    of_a.push(a.flatten_all()?);
                    of_b.push(b.flatten_all()?);
                    Linear { weight, bias, rank, scale: scale as f32 }
                }
            });
        }
        let group = Group::new(made, self.end);
        self.end = group.end()?;
        self.parts.extend(of_a);
        self.parts.extend(of_b);
        Ok(group)
    }

    fn packed(self) -> Result<Tensor> {
        match self.parts.len() {
            0 => unmixed(),
            _ => Tensor::cat(&self.parts, 0),
        }
    }
}

/// The third argument of a half: the matrices that mix states, and which tokens have which.
fn mixing(mix: Option<Mixing>) -> Result<(Tensor, Option<MixedBy>)> {
    let Some(Mixing { matrices, ends }) = mix else { return Ok((unmixed()?, None)) };
    let rank = matrices.dim(2)?;
    Ok((matrices.contiguous()?, Some(MixedBy { rank, ends })))
}

impl Fusing<'_> {
    fn computation(&self) -> &Computation {
        &self.config.computation
    }

    fn norm(&self, norm: Option<&NormWeights>, width: usize) -> Result<Option<RowNorm>> {
        let (kind, eps) = (self.computation().norm, self.computation().norm_eps);
        let made = |norm: &NormWeights| RowNorm::new(kind, norm.weight.as_ref(), norm.bias.as_ref(), (width, eps));
        norm.map(made).transpose()
    }

    /// What both halves have, of a half whose input is `x`.
    fn frame(
        &self,
        before: Option<&NormWeights>,
        after: Option<&NormWeights>,
        adds: bool,
        x: &Tensor,
    ) -> Result<Frame> {
        let hidden = self.config.hidden_size;
        Ok(Frame {
            before: self.norm(before, hidden)?,
            after: self.norm(after, hidden)?,
            scale: self.computation().residual_scale as f32,
            adds,
            has_gradient: x.track_op(),
        })
    }

    /// Whether a norm of queries or keys is one over each head, with the same weights for all.
    fn is_by_heads(&self, norm: &Option<NormWeights>) -> bool {
        let width = self.config.head_dim;
        let is_of_head = |norm: &NormWeights| norm.weight.as_ref().is_some_and(|weight| weight.dims() == [width]);
        norm.as_ref().is_none_or(is_of_head)
    }

    /// The hook's part of a half: of the projections `first`, whose input is the normed `x`, and of the last one.
    fn factors(
        &self,
        hook: &mut dyn Hook,
        first: &[&LinearWeights],
        last: &LinearWeights,
        norm: Option<&NormWeights>,
        x: &Tensor,
    ) -> crate::Result<Option<Factors>> {
        let sites: Vec<_> = first.iter().map(|linear| linear.site).chain([last.site]).collect();
        let mut normed = || -> crate::Result<Tensor> {
            Ok(match norm {
                Some(norm) => super::attention::normed(x, norm, self.computation())?,
                None => x.clone(),
            })
        };
        hook.factors(&sites, first.len(), &mut normed)
    }

    /// The attention half, `[B, T, hidden_size]`: with its input where `adds`. `None` where it has to be composed.
    pub(super) fn attention(&self, x: &Tensor, adds: bool, hook: &mut dyn Hook) -> crate::Result<Option<Tensor>> {
        let (layer, computation) = (self.layer, self.computation());
        let (order, first): (Order, Vec<&LinearWeights>) = match &layer.qkv {
            QkvWeights::Separate { q, k, v } => (Order::Separate, vec![q, k, v]),
            QkvWeights::Fused(qkv, QkvOrder::Parts) => (Order::Parts, vec![qkv]),
            QkvWeights::Fused(qkv, QkvOrder::Groups) => (Order::Groups, vec![qkv]),
            QkvWeights::Latent { .. } => return Ok(None),
        };
        let is_plain = computation.clip_qkv.is_none() && computation.qk_norm == QkNorm::BeforeRope;
        if !is_plain || !self.is_by_heads(&layer.q_norm) || !self.is_by_heads(&layer.k_norm) || !x.device().is_cpu() {
            return Ok(None);
        }
        let Some(factors) = self.factors(hook, &first, &layer.o, layer.attention_norm.as_ref(), x)? else {
            return Ok(None);
        };
        let d = self.config.head_dim;
        let (qkv, o, packed) = Packing::of(&factors, &first, &layer.o)?;
        let (mix, mixing) = mixing(factors.mix)?;
        let attention = Attention {
            config: self.config,
            layer: self.of_layer,
            angles: self.angles,
            q_norm: layer.q_norm.as_ref(),
            k_norm: layer.k_norm.as_ref(),
        };
        let pairs = self.of_layer.rope.is_some_and(|number| computation.ropes[number].pairs);
        let half = AttentionHalf {
            frame: self.frame(layer.attention_norm.as_ref(), layer.after_attention.as_ref(), adds, x)?,
            order,
            qkv,
            q_norm: self.norm(layer.q_norm.as_ref(), d)?,
            k_norm: self.norm(layer.k_norm.as_ref(), d)?,
            rope: self.angles.map(|angles| Rope::new(&angles.cos, &angles.sin, pairs)).transpose()?,
            heads: Heads {
                count: self.config.num_attention_heads,
                of_keys: self.config.num_key_value_heads,
                width: d,
                scale: self.of_layer.scale,
            },
            scores: attention.scores(layer.sinks.as_ref()),
            sight: self.sight.clone(),
            o,
            mixing,
            kept: OnceLock::new(),
        };
        Ok(Some(x.contiguous()?.apply_op3(&packed, &mix, half)?))
    }

    /// The feed-forward half, as [`Fusing::attention`].
    pub(super) fn feed_forward(
        &self,
        x: &Tensor,
        norm: Option<&NormWeights>,
        adds: bool,
        hook: &mut dyn Hook,
    ) -> crate::Result<Option<Tensor>> {
        let layer = self.layer;
        let FeedForwardKind::Dense(block) = &layer.feed_forward else { return Ok(None) };
        let (inner, first): (Inner, Vec<&LinearWeights>) = match &block.inner {
            InnerWeights::Gated { gate, up } => (Inner::Gated, vec![gate, up]),
            InnerWeights::Fused(both) => (Inner::Fused, vec![both]),
            InnerWeights::Plain(up) => (Inner::Plain, vec![up]),
        };
        if !x.device().is_cpu() {
            return Ok(None);
        }
        let Some(factors) = self.factors(hook, &first, &block.down, norm, x)? else { return Ok(None) };
        let (into, down, packed) = Packing::of(&factors, &first, &block.down)?;
        let (mix, mixing) = mixing(factors.mix)?;
        let half = FeedForwardHalf {
            frame: self.frame(norm, layer.after_feed_forward.as_ref(), adds, x)?,
            inner,
            into,
            down,
            activation: layer.activation,
            mixing,
            kept: OnceLock::new(),
        };
        Ok(Some(x.contiguous()?.apply_op3(&packed, &mix, half)?))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::Device;

    use super::*;
    use crate::adapter::{HostTensor, Tensors};
    use crate::arch::{HfFolder, LinearLayer};
    use crate::model::hooks::{LoadedAdapter, LoraHook};
    use crate::model::{Batch, Decoder, Residence, Sequence};

    /// A hook whose linear layers run one by one.
    struct OneByOne<'a>(LoraHook<'a>);

    impl Hook for OneByOne<'_> {
        fn low_rank(&self, site: LinearLayer) -> crate::error::Result<Option<(Tensor, Tensor, f64)>> {
            self.0.low_rank(site)
        }
    }

    fn values(count: usize, seed: usize, factor: f32) -> Vec<f32> {
        (0..count).map(|i| factor * (((i * 31 + seed * 17) * 2_654_435_761 % 1009) as f32 / 504.5 - 1.0)).collect()
    }

    /// A LoRA of rank 3 on every second linear layer of a model.
    fn lora(config: &ModelConfig) -> Tensors {
        let mut tensors = Tensors::new();
        for (number, linear) in config.linears().iter().enumerate().filter(|(number, _)| number % 2 == 0) {
            let (a, b) = (values(3 * linear.d_in, number, 0.3), values(linear.d_out * 3, number + 7, 0.3));
            let a = HostTensor { shape: vec![3, linear.d_in], values: a.into() };
            tensors.insert(linear.site.factor_name('A'), a);
            let b = HostTensor { shape: vec![linear.d_out, 3], values: b.into() };
            tensors.insert(linear.site.factor_name('B'), b);
        }
        tensors
    }

    #[test]
    fn halves_are_their_compositions_with_their_gradients() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        let sequence = |ids: &[u32]| Sequence { ids: ids.to_vec(), routed: ids.len(), ..Sequence::default() };
        let batch =
            Batch::new(&[sequence(&[5, 9, 33, 71, 8, 2, 90, 41, 17, 3, 66, 25]), sequence(&[7, 12, 80, 4, 11])]);
        let routing = ["llama-prompt", "qwen3-prompt", "gemma3-prompt", "gpt2-prompt", "olmo2-prompt", "phi3-token"];
        let folders = routing.iter().map(|name| fixtures.join("routing").join(name).join("model"));
        let convert = ["falcon", "gpt-neox", "stablelm", "starcoder2", "gemma2", "granite"];
        for path in folders.chain(convert.iter().map(|name| fixtures.join("convert").join(name).join("model"))) {
            let folder = HfFolder::open(&path).unwrap();
            let decoder = Decoder::open(&folder, Residence::Memory, &Device::Cpu).unwrap();
            let loaded = LoadedAdapter::trainable(&lora(&folder.config), &[], 0.7, &Device::Cpu).unwrap();
            let run = |hook: &mut dyn Hook| {
                let hidden = decoder.hidden(&batch, None, hook).unwrap();
                let weights =
                    Tensor::from_vec(values(hidden.elem_count(), 3, 1.0), hidden.shape(), &Device::Cpu).unwrap();
                let grads = (&hidden * weights).unwrap().sum_all().unwrap().backward().unwrap();
                let of_vars = loaded.vars().values().map(|var| grads.get(var).unwrap().clone());
                std::iter::once(hidden.detach()).chain(of_vars).collect::<Vec<_>>()
            };
            let (fused, composed) = (run(&mut LoraHook(&loaded)), run(&mut OneByOne(LoraHook(&loaded))));
            for (number, (found, expected)) in fused.iter().zip(&composed).enumerate() {
                let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
                let (off, size) = (norm(&(found - expected).unwrap()), norm(expected));
                assert!(off <= 2e-5 * size + 1e-6, "{}: {number}: off by {off} of {size}", path.display());
            }
        }
    }
}
