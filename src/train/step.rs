//! The loss of a set of sequences, and its gradients.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candle_core::backprop::GradStore;

use super::adapter::TrainedHook;
use super::dropout::Dropout;
use super::exchange::{dealt_losses, exchanged};
use super::{Ranks, Trainable, recompute};
use crate::bank::Regularizer;
use crate::error::Result;
use crate::model::{Batch, Decoder, Sequence};

/// The training objective: cross-entropy over the tokens that carry loss, plus the routing regularizers.
pub struct Objective<'a> {
    /// The frozen base.
    pub decoder: &'a Decoder,
    /// The adapter's variables.
    pub trainable: &'a Trainable,
    /// Weights of the regularizers, for banks only.
    pub regularizer: Regularizer,
    /// Whether the backward pass computes the activations of every layer again, so that only the layers' inputs are kept.
    pub checkpoint_activations: bool,
}

/// A loss and its gradients.
#[derive(Default)]
pub struct Gradients {
    /// The objective's value.
    pub loss: f64,
    /// Gradients by variable, without variables on which the loss doesn't depend.
    pub by_name: BTreeMap<String, Tensor>,
}

impl Gradients {
    /// Adds the gradients of all variables that `store` has.
    pub(super) fn add(&mut self, store: &mut GradStore, trainable: &Trainable) -> Result<()> {
        for (name, var) in trainable.vars() {
            if let Some(gradient) = store.remove(var.as_tensor()) {
                self.add_one(name, trainable.masked(name, gradient)?)?;
            }
        }
        Ok(())
    }

    /// Adds the loss and gradients of other sequences.
    fn add_all(&mut self, other: Gradients) -> Result<()> {
        self.loss += other.loss;
        other.by_name.into_iter().try_for_each(|(name, gradient)| self.add_one(&name, gradient))
    }

    fn add_one(&mut self, name: &str, gradient: Tensor) -> Result<()> {
        let sum = match self.by_name.remove(name) {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        };
        self.by_name.insert(name.to_owned(), sum.detach());
        Ok(())
    }
}

impl Objective<'_> {
    /// Loss and gradients over `sequences`, computed `micro_batch` sequences at a time. The loss is the sum of -log p
    /// over all tokens that carry loss, divided by their number, however the sequences are split. The regularizers are means
    /// over sequences; the load balance, a product of means, is computed for each part separately and weighted by the
    /// number of its sequences.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn gradients(&self, sequences: &[Sequence], micro_batch: usize) -> Result<Gradients> {
        self.gradients_of(&sequences.chunks(micro_batch).collect::<Vec<_>>())
    }

    /// Does the same with parts of any size: the sequences of each forward pass.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn gradients_of(&self, parts: &[&[Sequence]]) -> Result<Gradients> {
        self.gradients_on(&Ranks::alone(), parts, None)
    }

    /// Does the same with dropout, of which each part is a pass, and with the parts dealt out to `ranks` in turns. All
    /// ranks give the same `parts` and get the same bits, which are those of one process.
    pub(super) fn gradients_on(
        &self,
        ranks: &Ranks,
        parts: &[&[Sequence]],
        dropout: Option<Dropout>,
    ) -> Result<Gradients> {
        let tokens = parts.iter().map(|part| target_tokens(part)).sum();
        let sequences: usize = parts.iter().map(|part| part.len()).sum();
        let mut total = Gradients::default();
        for (round, all) in parts.chunks(ranks.size()).enumerate() {
            let pass = round * ranks.size() + ranks.rank();
            let own = all.get(ranks.rank()).map(|part| {
                let share = part.len() as f64 / sequences as f64;
                self.of_part(part, (tokens, share), dropout.map(|dropout| dropout.in_pass(pass)))
            });
            for gradients in exchanged(ranks, own.transpose()?, self.trainable.vars())? {
                total.add_all(gradients)?;
            }
        }
        Ok(total)
    }

    /// Loss and gradients of one forward pass: of a step with `tokens` tokens that carry loss, of which it is a `share`.
    fn of_part(&self, part: &[Sequence], (tokens, share): (usize, f64), dropout: Option<Dropout>) -> Result<Gradients> {
        let mut gradients = Gradients::default();
        if self.checkpoint_activations {
            recompute::add_gradients(self, part, (tokens, share), dropout, &mut gradients)?;
        } else {
            let loss = self.loss(part, tokens, share, dropout)?;
            gradients.loss = f64::from(loss.to_scalar::<f32>()?);
            gradients.add(&mut loss.backward()?, self.trainable)?;
        }
        Ok(gradients)
    }

    /// The mean of -log p over the tokens that carry loss of `sequences`, without regularizers or
    /// gradients, and the number of those tokens.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn evaluate(&self, sequences: &[Sequence], micro_batch: usize) -> Result<(f64, usize)> {
        self.evaluate_of(&sequences.chunks(micro_batch).collect::<Vec<_>>())
    }

    /// Does the same with parts of any size: the sequences of each forward pass.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn evaluate_of(&self, parts: &[&[Sequence]]) -> Result<(f64, usize)> {
        self.evaluate_on(&Ranks::alone(), parts)
    }

    /// Does the same with the parts dealt out to `ranks` in turns. All ranks get the same bits.
    pub(super) fn evaluate_on(&self, ranks: &Ranks, parts: &[&[Sequence]]) -> Result<(f64, usize)> {
        let tokens = parts.iter().map(|part| target_tokens(part)).sum();
        let of_part =
            |part: &&[Sequence]| Ok(f64::from(self.cross_entropy(part, tokens, false, None)?.0.to_scalar::<f32>()?));
        let own = || parts.iter().skip(ranks.rank()).step_by(ranks.size()).map(of_part).collect();
        let own: Result<Vec<f64>> = self.without_record(own);
        Ok((dealt_losses(ranks, &own?, parts.len()).into_iter().sum(), tokens))
    }

    /// Runs `work`, in which passes don't record their computation for a backward pass.
    pub(super) fn without_record<T>(&self, work: impl FnOnce() -> T) -> T {
        self.trainable.track(false);
        let made = work();
        self.trainable.track(true);
        made
    }

    /// The batch of one pass.
    pub(super) fn batch(&self, sequences: &[Sequence]) -> Batch {
        Batch::compact(sequences, self.decoder.weights().device())
    }

    fn loss(&self, sequences: &[Sequence], tokens: usize, share: f64, dropout: Option<Dropout>) -> Result<Tensor> {
        let (loss, hook) = self.cross_entropy(sequences, tokens, true, dropout)?;
        match hook.regularization(self.regularizer)? {
            Some(regularization) => Ok((loss + (regularization * share)?)?),
            None => Ok(loss),
        }
    }

    /// The sum of -log p over the targets of `sequences`, divided by `tokens`, and the hook of the pass.
    fn cross_entropy(
        &self,
        sequences: &[Sequence],
        tokens: usize,
        with_gradient: bool,
        dropout: Option<Dropout>,
    ) -> Result<(Tensor, TrainedHook<'_>)> {
        let batch = self.batch(sequences);
        let mut hook = self.trainable.hook(self.decoder.weights(), sequences, &batch, dropout)?;
        let hidden = self.decoder.hidden(&batch, None, hook.as_hook())?;
        let (places, targets) = batch.targets();
        let sum = self.decoder.loss_at(&hidden, &places, &targets, with_gradient)?;
        Ok(((sum * (1.0 / tokens as f64))?, hook))
    }
}

/// The number of tokens over which the loss is taken.
pub(super) fn target_tokens(sequences: &[Sequence]) -> usize {
    sequences.iter().map(Sequence::target_count).sum()
}
