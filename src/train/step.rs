//! The loss of a set of sequences, and its gradients.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candle_core::backprop::GradStore;

use super::adapter::TrainedHook;
use super::{Trainable, recompute};
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
            let Some(gradient) = store.remove(var.as_tensor()) else { continue };
            let sum = match self.by_name.remove(name) {
                Some(sum) => (sum + gradient)?,
                None => gradient,
            };
            self.by_name.insert(name.clone(), sum.detach());
        }
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
        let tokens = target_tokens(sequences);
        let mut total = Gradients { loss: 0.0, by_name: BTreeMap::new() };
        for part in sequences.chunks(micro_batch) {
            let share = part.len() as f64 / sequences.len() as f64;
            if self.checkpoint_activations {
                recompute::add_gradients(self, part, tokens, share, &mut total)?;
                continue;
            }
            let loss = self.loss(part, tokens, share)?;
            total.loss += f64::from(loss.to_scalar::<f32>()?);
            total.add(&mut loss.backward()?, self.trainable)?;
        }
        Ok(total)
    }

    /// The mean of -log p over the tokens that carry loss of `sequences`, without regularizers or
    /// gradients, and the number of those tokens.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn evaluate(&self, sequences: &[Sequence], micro_batch: usize) -> Result<(f64, usize)> {
        let tokens = target_tokens(sequences);
        self.trainable.track(false);
        let of_part = |part| Ok(f64::from(self.cross_entropy(part, tokens, false)?.0.to_scalar::<f32>()?));
        let parts: Result<Vec<f64>> = sequences.chunks(micro_batch).map(of_part).collect();
        self.trainable.track(true);
        Ok((parts?.into_iter().sum(), tokens))
    }

    fn loss(&self, sequences: &[Sequence], tokens: usize, share: f64) -> Result<Tensor> {
        let (loss, hook) = self.cross_entropy(sequences, tokens, true)?;
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
    ) -> Result<(Tensor, TrainedHook<'_>)> {
        let batch = Batch::new(sequences);
        let mut hook = self.trainable.hook(self.decoder.weights(), sequences)?;
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
