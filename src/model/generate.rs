//! Greedy generation with a KV cache.

use candle_core::D;

use super::hooks::{Hook, to_host};
use super::{Batch, Decoder, KvCache, Sequence};
use crate::adapter::HostTensor;
use crate::error::Result;

/// The generated text of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// The new tokens, without the end-of-text token.
    pub ids: Vec<u32>,
    /// Whether an end-of-text token came before the limit.
    pub ended: bool,
}

/// Continues each sequence with its most likely token, up to `max_tokens` or an end-of-text token
/// (past those, too, with `ignore_eos`). `hook` must be made for these sequences.
///
/// # Errors
/// As [`Decoder::hidden`].
pub fn greedy(
    decoder: &Decoder,
    hook: &mut dyn Hook,
    sequences: &[Sequence],
    max_tokens: usize,
    ignore_eos: bool,
) -> Result<Vec<Generation>> {
    decoder.check_lengths(sequences)?;
    let mut batch = Batch::new(sequences);
    let mut cache = KvCache::default();
    let mut lengths: Vec<usize> = sequences.iter().map(|s| s.ids.len()).collect();
    let mut done = vec![Generation { ids: Vec::new(), ended: false }; sequences.len()];
    let eos = &decoder.config().eos_token_ids;
    for _ in 0..max_tokens {
        let hidden = decoder.hidden(&batch, Some(&mut cache), hook)?;
        let last = batch.sequences().iter().map(|span| (span.places().end - 1) as u32);
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
pub fn prompt_logits(decoder: &Decoder, hook: &mut dyn Hook, sequence: &Sequence) -> Result<HostTensor> {
    decoder.check_lengths(std::slice::from_ref(sequence))?;
    let batch = Batch::new(std::slice::from_ref(sequence));
    let hidden = decoder.hidden(&batch, None, hook)?;
    to_host(&decoder.logits_at(&hidden, &batch.real_places())?)
}
