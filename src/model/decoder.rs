//! The decoder: Llama, Mistral, Qwen2 and Qwen3 are one computation with options.
//!
//! Reference: transformers `models/{llama,mistral,qwen2,qwen3}/modeling_*.py`, eager attention.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::hooks::Hook;
use super::ops::{self, Heads, Sight};
use super::weights::{Layer, ModelWeights};
use super::{Batch, Residence, Sequence};
use crate::arch::{HfFolder, LinearLayer, ModelConfig, Module};
use crate::error::{Finding, Result};

/// The number of tokens that a text may have even if the model's context is larger.
const MAX_TOKENS: usize = 4096;

/// A decoder-only language model.
pub struct Decoder {
    weights: ModelWeights,
    frequencies: Vec<f32>,
}

/// Cached keys and values of earlier tokens.
#[derive(Default)]
pub struct KvCache {
    /// Keys and values by layer, `[B, T, kv_heads * head_dim]`.
    layers: Vec<(Tensor, Tensor)>,
    /// The position of each cached key, by row.
    positions: Vec<Vec<u32>>,
}

/// Values that all layers share in one pass.
struct Pass {
    rows: usize,
    width: usize,
    /// The angles of all positions, `[B, T, head_dim / 2]`.
    cos: Tensor,
    sin: Tensor,
    /// Who sees whom, by window.
    sights: Vec<Arc<Sight>>,
}

impl Decoder {
    /// Makes a decoder with these weights.
    pub fn new(weights: ModelWeights) -> Self {
        let config = weights.config();
        let frequencies = config.rope.frequencies(config.head_dim);
        Self { weights, frequencies }
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
        let mut keys = key_positions(batch);
        if let Some(cache) = cache.as_deref_mut() {
            if cache.positions.is_empty() {
                cache.positions = keys;
            } else {
                cache.positions.iter_mut().zip(keys).for_each(|(old, new)| old.extend(new));
            }
            keys = cache.positions.clone();
        }
        let pass = self.pass(batch, &keys)?;
        for index in 0..self.config().num_hidden_layers {
            let layer = self.weights.layer(index)?;
            x = self.layer(index, &layer, &x, &pass, cache.as_deref_mut(), hook)?;
        }
        self.normed(&x)
    }

    /// Like [`Decoder::hidden`], for several batches, layer by layer: streamed weights are read only once for all of
    /// them. The hook gets all batches at one layer, then all at the next.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn hidden_by_layer(&self, batches: &[Batch], hook: &mut dyn Hook) -> Result<Vec<Tensor>> {
        let start = |batch| Ok((self.pass(batch, &key_positions(batch))?, self.embedded(batch)?));
        let mut states: Vec<(Pass, Tensor)> = batches.iter().map(start).collect::<Result<_>>()?;
        for index in 0..self.config().num_hidden_layers {
            let layer = self.weights.layer(index)?;
            for (pass, x) in &mut states {
                *x = self.layer(index, &layer, x, pass, None, hook)?;
            }
        }
        states.iter().map(|(_, x)| self.normed(x)).collect()
    }

    /// Computes input embeddings, `[B, T, hidden_size]`.
    fn embedded(&self, batch: &Batch) -> Result<Tensor> {
        let shape = (batch.rows(), batch.width(), self.config().hidden_size);
        Ok(self.weights.embed(&batch.ids)?.reshape(shape)?)
    }

    /// Applies the final norm.
    fn normed(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::rms_norm_times(x, self.weights.norm(), self.config().rms_norm_eps)?)
    }

    /// Logits at selected tokens, `[places.len(), vocab_size]`: `hidden` is `[B, T, hidden_size]`, `places` are indices
    /// into `B * T`.
    ///
    /// # Errors
    /// A failed computation.
    pub fn logits_at(&self, hidden: &Tensor, places: &[u32]) -> Result<Tensor> {
        Ok(ops::frozen_linear(&self.at(hidden, places)?, self.weights.head(), None)?)
    }

    /// The sum of -log p of `targets`, `[]`, which are predicted at `places`; as in [`Decoder::logits_at`]. Gradients are
    /// computed if `with_gradient`.
    ///
    /// # Errors
    /// A failed computation.
    pub fn loss_at(&self, hidden: &Tensor, places: &[u32], targets: &[u32], with_gradient: bool) -> Result<Tensor> {
        Ok(ops::cross_entropy(&self.at(hidden, places)?, self.weights.head(), targets, with_gradient)?)
    }

    fn at(&self, hidden: &Tensor, places: &[u32]) -> Result<Tensor> {
        let flat = hidden.reshape(((), self.config().hidden_size))?;
        Ok(flat.index_select(&Tensor::new(places, hidden.device())?, 0)?)
    }

    fn pass(&self, batch: &Batch, keys: &[Vec<u32>]) -> Result<Pass> {
        let (rows, width) = (batch.rows(), batch.width());
        let device = self.weights.device();
        let angles: Vec<f32> =
            batch.positions.iter().flat_map(|p| self.frequencies.iter().map(move |f| *p as f32 * f)).collect();
        let angles = Tensor::from_vec(angles, (rows, width, self.frequencies.len()), device)?;
        let mut windows = self.config().sliding_window.clone();
        windows.sort();
        windows.dedup();
        let keys = keys.concat();
        let sight = |window| Arc::new(Sight { queries: batch.positions.clone(), keys: keys.clone(), window });
        let sights = windows.into_iter().map(sight).collect();
        Ok(Pass { rows, width, cos: angles.cos()?, sin: angles.sin()?, sights })
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
        let eps = self.config().rms_norm_eps;
        let mut linear = |module: Module, x: &Tensor| -> Result<Tensor> {
            let (weight, bias) = &layer.linears[&module];
            let site = LinearLayer { layer: index, module };
            if let Some((a, b, scale)) = hook.low_rank(site) {
                return Ok(ops::low_rank_linear(x, weight, bias.as_ref(), (&a, &b, scale))?);
            }
            let y = ops::frozen_linear(x, weight, bias.as_ref())?;
            match hook.delta(site, x)? {
                Some(delta) => Ok((y + delta)?),
                None => Ok(y),
            }
        };
        let normed = ops::rms_norm_times(x, &layer.input_norm, eps)?;
        let attended = self.attention(index, layer, &normed, pass, cache, &mut linear)?;
        let x = (x + linear(Module::O, &attended)?)?;
        let normed = ops::rms_norm_times(&x, &layer.post_attention_norm, eps)?;
        let (gate, up) = (linear(Module::Gate, &normed)?, linear(Module::Up, &normed)?);
        Ok((x + linear(Module::Down, &ops::swiglu(&gate, &up)?)?)?)
    }

    /// Grouped-query attention, without the output projection: `[B, T, heads * head_dim]`.
    fn attention(
        &self,
        index: usize,
        layer: &Layer,
        x: &Tensor,
        pass: &Pass,
        cache: Option<&mut KvCache>,
        linear: &mut dyn FnMut(Module, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let config = self.config();
        let (heads, kv_heads, d) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let (rows, width) = (pass.rows, pass.width);
        let mut project = |module: Module, heads: usize, norm: Option<&Tensor>| -> Result<Tensor> {
            let y = linear(module, x)?.reshape((rows, width, heads, d))?;
            Ok(match norm {
                Some(norm) => ops::rms_norm_times(&y, norm, config.rms_norm_eps)?,
                None => y,
            })
        };
        let rotated = |x: Tensor| ops::rope(&x, &pass.cos, &pass.sin)?.reshape((rows, width, ()));
        let q = rotated(project(Module::Q, heads, layer.q_norm.as_ref())?)?;
        let mut k = rotated(project(Module::K, kv_heads, layer.k_norm.as_ref())?)?;
        let mut v = project(Module::V, kv_heads, None)?.reshape((rows, width, kv_heads * d))?;
        if let Some(cache) = cache {
            if let Some((old_k, old_v)) = cache.layers.get(index) {
                (k, v) = (Tensor::cat(&[old_k, &k], 1)?, Tensor::cat(&[old_v, &v], 1)?);
                cache.layers[index] = (k.clone(), v.clone());
            } else {
                cache.layers.push((k.clone(), v.clone()));
            }
        }
        let window = config.sliding_window[index];
        let Some(sight) = pass.sights.iter().find(|sight| sight.window == window) else {
            unreachable!("a pass has every window of the config")
        };
        let scale = 1.0 / (d as f32).sqrt();
        Ok(ops::attention(&q, &k, &v, Heads { count: heads, of_keys: kv_heads, width: d, scale }, sight)?)
    }
}

/// The position of each token as a key, by row.
fn key_positions(batch: &Batch) -> Vec<Vec<u32>> {
    (0..batch.rows()).map(|row| batch.key_positions(row).collect()).collect()
}
