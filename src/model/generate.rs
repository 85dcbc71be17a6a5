//! Greedy generation with a KV cache.

use candle_core::D;

use super::hooks::{Hook, LoadedAdapter, LoraHook, NoAdapter, to_host};
use super::{Batch, Decoder, KvCache, Sequence};
use crate::adapter::{AdapterConfig, HostTensor};
use crate::bank::BankHook;
use crate::error::Result;

/// What was generated for one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// The new tokens, without the one that ended the text.
    pub ids: Vec<u32>,
    /// Whether an end-of-text token came before the limit.
    pub ended: bool,
}

/// Continues each sequence by its likeliest token, up to `max_tokens` or an end-of-text token
/// (`ignore_eos`: past those too).
///
/// # Errors
/// As [`Decoder::hidden`].
pub fn greedy(
    decoder: &Decoder,
    adapter: Option<(&LoadedAdapter, &AdapterConfig)>,
    sequences: &[Sequence],
    max_tokens: usize,
    ignore_eos: bool,
) -> Result<Vec<Generation>> {
    let mut batch = Batch::new(sequences);
    let mut hook = AdapterHook::new(decoder, adapter, sequences, &batch)?;
    let mut cache = KvCache::default();
    let mut lengths: Vec<usize> = sequences.iter().map(|s| s.ids.len()).collect();
    let mut done = vec![Generation { ids: Vec::new(), ended: false }; sequences.len()];
    let eos = &decoder.config().eos_token_ids;
    for _ in 0..max_tokens {
        let hidden = decoder.hidden(&batch, Some(&mut cache), hook.as_hook())?;
        let last = batch.lengths.iter().enumerate().map(|(row, n)| (row * batch.width() + n - 1) as u32);
        let logits = decoder.logits_at(&hidden, &last.collect::<Vec<_>>())?;
        let next = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
        for (generation, id) in done.iter_mut().zip(&next) {
            if !generation.ended && !ignore_eos && eos.contains(id) {
                generation.ended = true;
            } else if !generation.ended {
                generation.ids.push(*id);
            }
        }
        if done.iter().all(|g| g.ended) {
            break;
        }
        batch = Batch::next(next, &lengths);
        lengths.iter_mut().for_each(|n| *n += 1);
        hook.continue_with(&batch)?;
    }
    Ok(done)
}

/// Logits at every token of `sequence`: `[tokens, vocab_size]`.
///
/// # Errors
/// As [`Decoder::hidden`].
pub fn prompt_logits(
    decoder: &Decoder,
    adapter: Option<(&LoadedAdapter, &AdapterConfig)>,
    sequence: &Sequence,
) -> Result<HostTensor> {
    let sequences = std::slice::from_ref(sequence);
    let batch = Batch::new(sequences);
    let mut hook = AdapterHook::new(decoder, adapter, sequences, &batch)?;
    let hidden = decoder.hidden(&batch, None, hook.as_hook())?;
    to_host(&decoder.logits_at(&hidden, &batch.real_places())?)
}

/// The hook of whichever adapter there is.
pub(crate) enum AdapterHook<'a> {
    None(NoAdapter),
    Lora(LoraHook<'a>),
    Bank(Box<BankHook<'a>>),
}

impl<'a> AdapterHook<'a> {
    pub(crate) fn new(
        decoder: &Decoder,
        adapter: Option<(&'a LoadedAdapter, &'a AdapterConfig)>,
        sequences: &[Sequence],
        batch: &Batch,
    ) -> Result<Self> {
        Ok(match adapter {
            None => AdapterHook::None(NoAdapter),
            Some((weights, AdapterConfig::Lora(_))) => AdapterHook::Lora(LoraHook(weights)),
            Some((weights, AdapterConfig::Bank(config))) => {
                let e = weights.instruction_encoder().embed(decoder.weights(), sequences)?;
                AdapterHook::Bank(Box::new(BankHook::new(weights, config, batch, e)?))
            }
        })
    }

    pub(crate) fn as_hook(&mut self) -> &mut dyn Hook {
        match self {
            AdapterHook::None(hook) => hook,
            AdapterHook::Lora(hook) => hook,
            AdapterHook::Bank(hook) => &mut **hook,
        }
    }

    /// The bank's hook, where the adapter is one.
    pub(crate) fn as_bank(&self) -> Option<&BankHook<'a>> {
        match self {
            AdapterHook::Bank(hook) => Some(hook),
            _ => None,
        }
    }

    fn continue_with(&mut self, batch: &Batch) -> Result<()> {
        match self {
            AdapterHook::Bank(hook) => hook.continue_with(batch),
            _ => Ok(()),
        }
    }
}
