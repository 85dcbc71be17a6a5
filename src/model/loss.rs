//! What a decoder makes of sequences: the mean loss of their tokens, and the divergence from another decoder. Streamed
//! weights are read once for many sequences.

use candle_core::Tensor;

use super::{Batch, Decoder, NoAdapter, Sequence, log_softmax_last};
use crate::error::{Finding, Result};

/// The tokens that are in a batch, at least.
const BATCH_TOKENS: usize = 512;
/// The memory for hidden states of the batches that go through the layers together, in bytes.
const MAX_STATE_BYTES: usize = 512 << 20;
/// The tokens whose logits are in memory at a time.
const LOGIT_TOKENS: usize = 64;

/// Sequences in batches, and the numbers of batches that go through the layers together.
fn batches(decoder: &Decoder, sequences: &[Sequence]) -> (Vec<Batch>, usize) {
    let (mut batches, mut start, mut tokens, mut longest) = (Vec::new(), 0, 0, BATCH_TOKENS);
    for (end, sequence) in sequences.iter().enumerate() {
        tokens += sequence.ids.len();
        if tokens >= BATCH_TOKENS || end + 1 == sequences.len() {
            batches.push(Batch::compact(&sequences[start..=end], decoder.weights().device()));
            longest = longest.max(tokens);
            (start, tokens) = (end + 1, 0);
        }
    }
    let bytes = longest.saturating_mul(decoder.config().hidden_size).saturating_mul(4);
    (batches, (MAX_STATE_BYTES / bytes.max(1)).max(1))
}

/// The mean of -log p over the tokens of `sequences` that carry loss.
///
/// # Errors
/// As [`Decoder::hidden`]; [`crate::Error::Mismatch`] where no token carries loss.
pub fn mean_loss(decoder: &Decoder, sequences: &[Sequence]) -> Result<f64> {
    let count = targets(decoder, sequences)?;
    let (batches, together) = batches(decoder, sequences);
    let mut sum = 0.0;
    for group in batches.chunks(together) {
        for (batch, hidden) in group.iter().zip(decoder.hidden_by_layer(group, &mut NoAdapter)?) {
            let (places, targets) = batch.targets();
            if !targets.is_empty() {
                sum += f64::from(decoder.loss_at(&hidden, &places, &targets, false)?.to_scalar::<f32>()?);
            }
        }
    }
    Ok(sum / count as f64)
}

/// The number of tokens that carry loss.
fn targets(decoder: &Decoder, sequences: &[Sequence]) -> Result<usize> {
    decoder.check_lengths(sequences)?;
    match sequences.iter().map(Sequence::target_count).sum() {
        0 => Err(Finding::new("", "data").expected("tokens that carry loss").found("none").mismatch()),
        count => Ok(count),
    }
}

/// The states of a decoder with which others are compared.
pub struct Reference {
    decoder: Decoder,
    hidden: Vec<Tensor>,
}

impl Reference {
    /// Runs `decoder` over `sequences`. The states of all tokens stay in memory.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn new(decoder: Decoder, sequences: &[Sequence]) -> Result<Self> {
        let (batches, together) = batches(&decoder, sequences);
        let mut hidden = Vec::new();
        for group in batches.chunks(together) {
            hidden.extend(decoder.hidden_by_layer(group, &mut NoAdapter)?);
        }
        Ok(Self { decoder, hidden })
    }

    /// The mean over the tokens of `sequences` that carry loss of KL(this || other), in nats. The sequences are those of
    /// [`Reference::new`].
    ///
    /// # Errors
    /// As [`Decoder::hidden`]; [`crate::Error::Mismatch`] for another vocabulary.
    pub fn divergence(&self, other: &Decoder, sequences: &[Sequence]) -> Result<f64> {
        let (ours, theirs) = (self.decoder.config(), other.config());
        if ours.vocab_size != theirs.vocab_size {
            let finding = Finding::new(self.decoder.weights().path(), "vocab_size").expected(theirs.vocab_size);
            return Err(finding.found(ours.vocab_size).mismatch());
        }
        let count = targets(other, sequences)?;
        let (batches, together) = batches(other, sequences);
        let mut sum = 0.0;
        for (group, references) in batches.chunks(together).zip(self.hidden.chunks(together)) {
            let hidden = other.hidden_by_layer(group, &mut NoAdapter)?;
            for ((batch, reference), hidden) in group.iter().zip(references).zip(&hidden) {
                for places in batch.targets().0.chunks(LOGIT_TOKENS) {
                    let wanted = log_softmax_last(&self.decoder.logits_at(reference, places)?)?;
                    let found = log_softmax_last(&other.logits_at(hidden, places)?)?;
                    let kl = (wanted.exp()? * (wanted - found)?)?.sum_all()?;
                    sum += f64::from(kl.to_scalar::<f32>()?);
                }
            }
        }
        Ok(sum / count as f64)
    }
}
