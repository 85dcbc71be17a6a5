//! The decoder: all families that run are one computation with switches, which `arch::computation` takes from the
//! family's file.
//!
//! Reference: transformers `models/*/modeling_*.py`, each family's class with eager attention.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::attention::{Angles, Attention, normed};
use super::batch::Span;
use super::cache::KvCache;
use super::feed_forward::{ExpertAdapter, ExpertMatrix, feed_forward};
use super::fusing::Fusing;
use super::hooks::{Hook, NoAdapter};
use super::layer::{Layer, LinearWeights, NormWeights};
use super::ops::{self, LogitForm, Sight};
use super::weights::ModelWeights;
use super::{Batch, Residence, Sequence};
use crate::arch::computation::Computation;
use crate::arch::{HfFolder, ModelConfig};
use crate::error::{Finding, Result};

/// The number of tokens that a text may have even if the model's context is larger.
const MAX_TOKENS: usize = 4096;

/// A decoder-only language model.
pub struct Decoder {
    weights: ModelWeights,
}

/// Values that all layers share in one pass.
pub(crate) struct Pass {
    rows: usize,
    width: usize,
    /// The angles of all positions, by the numbers of the config's rotary embeddings.
    angles: Vec<Angles>,
    /// Who sees whom, by window.
    sights: Vec<Arc<Sight>>,
}

impl Pass {
    /// Who sees whom with this window.
    fn sight(&self, window: Option<usize>) -> &Arc<Sight> {
        let Some(sight) = self.sights.iter().find(|sight| sight.window == window) else {
            unreachable!("a pass has every window of the config")
        };
        sight
    }
}

impl Decoder {
    /// Makes a decoder with these weights.
    pub fn new(weights: ModelWeights) -> Self {
        Self { weights }
    }

    /// Opens the model of a Hugging Face folder.
    ///
    /// # Errors
    /// As [`ModelWeights::open`].
    pub fn open(folder: &HfFolder, residence: Residence, device: &Device) -> Result<Self> {
        Ok(Self::new(ModelWeights::open(folder.path(), &folder.config, folder.weights(), residence, device)?))
    }

    /// Its weights.
    pub fn weights(&self) -> &ModelWeights {
        &self.weights
    }

    /// Its config.
    pub fn config(&self) -> &ModelConfig {
        self.weights.config()
    }

    /// Checks that no sequence is longer than the model's context and than 4,096 tokens: memory grows with the square
    /// of a sequence's length.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`].
    pub fn check_lengths(&self, sequences: &[Sequence]) -> Result<()> {
        let most = self.config().max_position_embeddings.max(MAX_TOKENS);
        match sequences.iter().map(|sequence| sequence.ids.len()).find(|length| *length > most) {
            None => Ok(()),
            Some(length) => Err(Finding::new("", "prompt")
                .expected(format_args!("at most {most} tokens, as memory grows with the square of their number"))
                .found(length)
                .mismatch()),
        }
    }

    /// A note for a text of `length` tokens if the model's context is shorter. Like transformers, the decoder continues
    /// rotary positions past the context, but the model isn't trained for them.
    pub fn length_note(&self, length: usize) -> Option<String> {
        let context = self.config().max_position_embeddings;
        (length > context).then(|| {
            format!("the text has {length} tokens, and the model's max_position_embeddings is {context}: it may not have learned more")
        })
    }

    /// Runs all layers and the final norm: `[B, T, hidden_size]`. With a cache, `batch` continues the cached sequences
    /// and is added to the cache.
    ///
    /// # Errors
    /// A token outside the vocabulary, weights that can't be read, a failed computation.
    pub fn hidden(&self, batch: &Batch, mut cache: Option<&mut KvCache>, hook: &mut dyn Hook) -> Result<Tensor> {
        let mut x = self.embedded(batch)?;
        let mut keys = batch.key_positions();
        if let Some(cache) = cache.as_deref_mut() {
            keys = cache.with_positions(keys);
        }
        let pass = self.pass(batch, &keys)?;
        for index in 0..self.config().num_hidden_layers {
            let layer = self.weights.layer(index)?;
            x = self.layer(index, &layer, &x, &pass, cache.as_deref_mut(), hook)?;
        }
        self.normed(&x)
    }

    /// What a pass over `batch` begins with: what its layers share, and the input embeddings.
    pub(crate) fn start(&self, batch: &Batch) -> Result<(Pass, Tensor)> {
        Ok((self.pass(batch, &batch.key_positions())?, self.embedded(batch)?))
    }

    /// Runs some layers, `[B, T, hidden_size]` each.
    pub(crate) fn run(&self, layers: Range<usize>, x: &Tensor, pass: &Pass, hook: &mut dyn Hook) -> Result<Tensor> {
        let mut x = x.clone();
        for index in layers {
            let layer = self.weights.layer(index)?;
            x = self.layer(index, &layer, &x, pass, None, hook)?;
        }
        Ok(x)
    }

    /// Like [`Decoder::hidden`], for several batches, layer by layer: streamed weights are read only once for all of
    /// them. The hook gets all batches at one layer, then all at the next.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn hidden_by_layer(&self, batches: &[Batch], hook: &mut dyn Hook) -> Result<Vec<Tensor>> {
        let mut states: Vec<(Pass, Tensor)> = batches.iter().map(|batch| self.start(batch)).collect::<Result<_>>()?;
        for index in 0..self.config().num_hidden_layers {
            let layer = self.weights.layer(index)?;
            for (pass, x) in &mut states {
                *x = self.layer(index, &layer, x, pass, None, hook)?;
            }
        }
        states.iter().map(|(_, x)| self.normed(x)).collect()
    }

    /// Calls `each` with every layer's number, the number of each batch, and the states that enter the layer there,
    /// `[B, T, hidden_size]`. Streamed weights are read only once for all batches.
    ///
    /// # Errors
    /// As [`Decoder::hidden`], and those of `each`.
    pub fn layer_inputs(
        &self,
        batches: &[Batch],
        each: &mut dyn FnMut(usize, usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let mut states: Vec<(Pass, Tensor)> = batches.iter().map(|batch| self.start(batch)).collect::<Result<_>>()?;
        let last = self.config().num_hidden_layers - 1;
        for index in 0..=last {
            for (number, (_, x)) in states.iter().enumerate() {
                each(index, number, x)?;
            }
            if index < last {
                let layer = self.weights.layer(index)?;
                for (pass, x) in &mut states {
                    *x = self.layer(index, &layer, x, pass, None, &mut NoAdapter)?;
                }
            }
        }
        Ok(())
    }

    /// Computes input embeddings, `[B, T, hidden_size]`.
    fn embedded(&self, batch: &Batch) -> Result<Tensor> {
        let computation = self.computation();
        let mut x = self.weights.embed(&batch.ids)?;
        if computation.embed_scale != 1.0 {
            x = (x * computation.embed_scale)?;
        }
        if let Some(table) = self.weights.positions() {
            let most = table.dim(0)? as u32;
            if let Some(position) = batch.positions.iter().find(|position| **position >= most) {
                return Err(Finding::new(self.weights.path(), "prompt")
                    .expected(format_args!("at most {most} tokens, for which the model has positions"))
                    .found(position + 1)
                    .mismatch());
            }
            x = (x + table.index_select(&Tensor::new(batch.positions.as_slice(), self.weights.device())?, 0)?)?;
        }
        let x = self.after(&x, self.weights.embedding_norm())?;
        Ok(x.reshape((batch.rows(), batch.width(), self.config().hidden_size))?)
    }

    fn computation(&self) -> &Computation {
        &self.config().computation
    }

    /// Applies the final norm.
    pub(crate) fn normed(&self, x: &Tensor) -> Result<Tensor> {
        self.after(x, self.weights.last_norm())
    }

    /// `x` after a norm, if there is one.
    fn after(&self, x: &Tensor, norm: Option<&NormWeights>) -> Result<Tensor> {
        Ok(match norm {
            Some(norm) => normed(x, norm, self.computation())?,
            None => x.clone(),
        })
    }

    /// What is done to the products with the head.
    fn logit_form(&self) -> LogitForm {
        let computation = self.computation();
        let (_, bias) = self.weights.head();
        LogitForm {
            bias: bias.cloned(),
            scale: computation.logit_scale as f32,
            softcap: computation.logit_softcap.map(|limit| limit as f32),
        }
    }

    /// Logits at selected tokens, `[places.len(), vocab_size]`: `hidden` is `[B, T, hidden_size]`, `places` are indices
    /// into `B * T`.
    ///
    /// # Errors
    /// A failed computation.
    pub fn logits_at(&self, hidden: &Tensor, places: &[u32]) -> Result<Tensor> {
        let (head, _) = self.weights.head();
        Ok(self.logit_form().of(&ops::frozen_linear(&self.at(hidden, places)?, head, None)?)?)
    }

    /// The sum of -log p of `targets`, `[]`, which are predicted at `places`; as in [`Decoder::logits_at`]. Gradients are
    /// computed if `with_gradient`.
    ///
    /// # Errors
    /// A failed computation.
    pub fn loss_at(&self, hidden: &Tensor, places: &[u32], targets: &[u32], with_gradient: bool) -> Result<Tensor> {
        let (head, _) = self.weights.head();
        Ok(ops::cross_entropy(&self.at(hidden, places)?, head, &self.logit_form(), targets, with_gradient)?)
    }

    fn at(&self, hidden: &Tensor, places: &[u32]) -> Result<Tensor> {
        let flat = hidden.reshape(((), self.config().hidden_size))?;
        Ok(flat.index_select(&Tensor::new(places, hidden.device())?, 0)?)
    }

    fn pass(&self, batch: &Batch, keys: &[Vec<u32>]) -> Result<Pass> {
        let (rows, width) = (batch.rows(), batch.width());
        let device = self.weights.device();
        let length = batch.positions.iter().max().map_or(0, |position| *position as usize + 1);
        let angles = self.computation().ropes.iter().map(|rope| -> Result<Angles> {
            let frequencies = rope.frequencies(length);
            let of_position =
                |position: &u32| frequencies.iter().map(move |f| *position as f32 * f).collect::<Vec<_>>();
            let angles: Vec<f32> = batch.positions.iter().flat_map(of_position).collect();
            let angles = Tensor::from_vec(angles, (rows, width, frequencies.len()), device)?;
            let factor = f64::from(rope.attention_factor());
            let scaled = |x: Tensor| if factor == 1.0 { Ok(x) } else { x * factor };
            Ok(Angles { cos: scaled(angles.cos()?)?, sin: scaled(angles.sin()?)? })
        });
        let angles = angles.collect::<Result<_>>()?;
        let mut windows: Vec<Option<usize>> = self.computation().layers.iter().map(|layer| layer.window).collect();
        windows.sort();
        windows.dedup();
        // Behind cached keys, a row has one sequence.
        let of_row = keys.first().map_or(0, Vec::len);
        let sequence = |span: &Span| match of_row == width {
            true => (span.places(), span.places()),
            false => (span.places(), span.start / width * of_row..(span.start / width + 1) * of_row),
        };
        let sequences: Vec<_> = batch.sequences().iter().map(sequence).collect();
        let keys = keys.concat();
        let sight = |window| {
            let (queries, keys, sequences) = (batch.positions.clone(), keys.clone(), sequences.clone());
            Arc::new(Sight { queries, keys, sequences, window })
        };
        let sights = windows.into_iter().map(sight).collect();
        Ok(Pass { rows, width, angles, sights })
    }

    fn layer(
        &self,
        index: usize,
        layer: &Layer,
        x: &Tensor,
        pass: &Pass,
        cache: Option<&mut KvCache>,
        hook: &mut dyn Hook,
    ) -> Result<Tensor> {
        debug_assert_eq!(x.dims()[..2], [pass.rows, pass.width]);
        let computation = self.computation();
        let of_layer = computation.layers[index];
        let fusing = Fusing {
            config: self.config(),
            of_layer,
            layer,
            angles: of_layer.rope.map(|number| &pass.angles[number]),
            sight: pass.sight(of_layer.window),
        };
        let can_fuse = cache.is_none() && !computation.adds_to_normed;
        let fused = if can_fuse { fusing.attention(x, true, hook)? } else { None };
        let mut first = None;
        let added = match fused {
            Some(added) => added,
            None => {
                let normed = first.insert(self.after(x, layer.attention_norm.as_ref())?);
                let attended = self.attention(index, layer, normed, pass, cache, hook)?;
                let attended = self.after(&attended, layer.after_attention.as_ref())?;
                self.add(if computation.adds_to_normed { normed } else { x }, attended)?
            }
        };
        // A parallel layer's feed-forward block starts from the layer's input, too, and may share its norm.
        let (start, norm) = match computation.is_parallel {
            true => (x, layer.feed_forward_norm.as_ref().or(layer.attention_norm.as_ref())),
            false => (&added, layer.feed_forward_norm.as_ref()),
        };
        let fused = if can_fuse { fusing.feed_forward(start, norm, !computation.is_parallel, hook)? } else { None };
        let x = match (fused, computation.is_parallel) {
            (Some(fed), true) => (&added + fed)?,
            (Some(x), false) => x,
            (None, _) => {
                let second = match first.filter(|_| computation.is_parallel && layer.feed_forward_norm.is_none()) {
                    Some(first) => first,
                    None => self.after(start, norm)?,
                };
                let adapter = ExpertAdapter(hook.expert_factors(index));
                let hook = std::cell::RefCell::new(&mut *hook);
                let fed = feed_forward(
                    &layer.feed_forward,
                    &second,
                    layer.activation,
                    computation,
                    &mut |linears, x| apply_all(&mut **hook.borrow_mut(), linears, x),
                    &adapter,
                    &mut |matrix: ExpertMatrix, expert, x| hook.borrow_mut().expert(index, matrix, expert, x),
                )?;
                let fed = self.after(&fed, layer.after_feed_forward.as_ref())?;
                self.add(if computation.adds_to_normed { &second } else { &added }, fed)?
            }
        };
        hook.after_layer(index)?;
        Ok(x)
    }

    /// `x + y`, with the model's factor of `y`.
    fn add(&self, x: &Tensor, y: Tensor) -> Result<Tensor> {
        Ok(match self.computation().residual_scale {
            1.0 => (x + y)?,
            scale => (x + (y * scale)?)?,
        })
    }

    /// The attention block of normed states `x`.
    fn attention(
        &self,
        index: usize,
        layer: &Layer,
        x: &Tensor,
        pass: &Pass,
        cache: Option<&mut KvCache>,
        hook: &mut dyn Hook,
    ) -> Result<Tensor> {
        let of_layer = self.computation().layers[index];
        let attention = Attention {
            config: self.config(),
            layer: of_layer,
            angles: of_layer.rope.map(|number| &pass.angles[number]),
            q_norm: layer.q_norm.as_ref(),
            k_norm: layer.k_norm.as_ref(),
        };
        let mut qkv = attention.qkv(&layer.qkv, x, &mut |linears, x| apply_all(hook, linears, x))?;
        if let Some(cache) = cache {
            let [_, k, v] = &mut qkv;
            (*k, *v) = cache.with(index, k, v)?;
        }
        let mixed = attention.mixed(&qkv, layer.sinks.as_ref(), pass.sight(of_layer.window))?;
        apply(hook, &layer.o, &mixed)
    }
}

/// Applies linear layers to the same input, with what the hook adds to each.
fn apply_all(hook: &mut dyn Hook, linears: &[&LinearWeights], x: &Tensor) -> Result<Vec<Tensor>> {
    if hook.is_nothing() && linears.len() > 1 {
        let all: Vec<_> = linears.iter().map(|linear| (&linear.weight, linear.bias.as_ref())).collect();
        return ops::frozen_linears(x, &all);
    }
    linears.iter().map(|linear| apply(hook, linear, x)).collect()
}

/// Applies a linear layer with what the hook adds to it.
fn apply(hook: &mut dyn Hook, linear: &LinearWeights, x: &Tensor) -> Result<Tensor> {
    let LinearWeights { site, weight, bias } = linear;
    if let Some((a, b, scale)) = hook.low_rank(*site)? {
        let update = (&a, &b, scale);
        return Ok(match hook.magnitude(*site) {
            Some(magnitude) => ops::dora_linear(x, weight, bias.as_ref(), update, &magnitude)?,
            None => ops::low_rank_linear(x, weight, bias.as_ref(), update)?,
        });
    }
    if let Some((state, b, scale)) = hook.bottleneck(*site, x)? {
        return Ok(ops::bottleneck_linear(x, weight, bias.as_ref(), (&state, &b, scale))?);
    }
    let y = ops::frozen_linear(x, weight, bias.as_ref())?;
    match hook.delta(*site, x)? {
        Some(delta) => Ok((y + delta)?),
        None => Ok(y),
    }
}
