//! Fixes a routing: which atoms an instruction selects, and how far the baked model is from the routed one.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use super::{AtomBank, BankConfig, LoadedBank, Routing};
use crate::error::{Finding, Result};
use crate::model::{Batch, Decoder, Hook, Sequence, TextEncoder, log_softmax_last, softmax_last};

/// The instruction and prompts to route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// The instruction; may be empty.
    pub instruction: String,
    /// Prompts to route; an empty list means one empty prompt.
    pub prompts: Vec<String>,
}

/// What determines a routing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoutedBy {
    #[default]
    /// A forward pass of the model over instruction and prompt.
    Model,
    /// The language prior alone, which needs the instruction's embedding but no forward pass.
    Prior,
}

/// The routings of a request's prompts.
#[derive(Debug, Clone, PartialEq)]
pub struct Routes {
    /// The routed sequences, in the order of the prompts.
    pub sequences: Vec<Sequence>,
    /// Weights of the atoms by prompt and block, each `[K]`: with token routing, the mean over the routed tokens.
    pub by_prompt: Vec<Vec<Vec<f32>>>,
    /// The prior `pi(e)`, `[K]`.
    pub prior: Vec<f32>,
}

impl Routes {
    /// The mean over the prompts, by block, which is baked. Each routing is on the simplex, so the mean is too.
    pub fn mean(&self) -> Vec<Vec<f32>> {
        let mut mean = vec![Vec::new(); self.by_prompt.first().map_or(0, Vec::len)];
        for (block, mean) in mean.iter_mut().enumerate() {
            mean.resize(self.prior.len(), 0.0);
            for alphas in &self.by_prompt {
                mean.iter_mut().zip(&alphas[block]).for_each(|(m, a)| *m += a / self.by_prompt.len() as f32);
            }
        }
        mean
    }
}

/// Routes `request` through the bank on `decoder`, whose weights may be streamed or resident.
///
/// # Errors
/// [`crate::Error::Mismatch`] for an adapter that doesn't route, a bank for another base, or a prior
/// without an instruction; [`crate::Error::NotFinite`].
pub fn route(
    decoder: &Decoder,
    bank: &AtomBank,
    encoder: &TextEncoder,
    request: &Request,
    by: RoutedBy,
) -> Result<Routes> {
    bank.check_base(decoder.config())?;
    let loaded = LoadedBank::frozen(bank, decoder.weights().device())?;
    let none = [String::new()];
    let prompts = if request.prompts.is_empty() { &none[..] } else { &request.prompts };
    let sequences = prompts
        .iter()
        .map(|prompt| loaded.encoder().routed(encoder, &bank.config.prompt_template, &request.instruction, prompt))
        .collect::<Result<Vec<_>>>()?;
    if by == RoutedBy::Prior && sequences[0].instruction.is_empty() {
        let finding = Finding::new(&bank.path, "routing by the prior").expected("an instruction");
        return Err(finding.found("none").mismatch());
    }
    let (by_prompt, mut priors) = route_sequences(decoder, &loaded, &sequences, by)?;
    Ok(Routes { sequences, by_prompt, prior: priors.swap_remove(0) })
}

/// For each of several sequences the weights of the atoms by block, each `[K]`, and the prior, `[K]`.
pub type Routed = (Vec<Vec<Vec<f32>>>, Vec<Vec<f32>>);

/// Routes sequences, which may have different instructions, in one pass. With token routing, weights are the mean over
/// the routed tokens.
///
/// # Errors
/// As [`Decoder::hidden`]; [`crate::Error::NotFinite`].
pub fn route_sequences(decoder: &Decoder, bank: &LoadedBank, sequences: &[Sequence], by: RoutedBy) -> Result<Routed> {
    decoder.check_lengths(sequences)?;
    let config = bank.config();
    let batch = Batch::new(sequences);
    let mut hook = bank.hook(decoder.weights(), sequences)?;
    let priors = hook.log_prior()?.exp()?.to_vec2::<f32>()?;
    let blocks = config.blocks(decoder.config().num_hidden_layers);
    let routed: Vec<Vec<Vec<f32>>> = match by {
        RoutedBy::Prior => {
            let alphas = hook.prior_alphas()?.to_vec2::<f32>()?;
            alphas.into_iter().map(|alpha| vec![alpha; blocks]).collect()
        }
        RoutedBy::Model => {
            decoder.hidden(&batch, None, &mut hook)?;
            let trace = hook.trace()?;
            let alphas = |row: usize| trace.alphas.iter().map(|a| fix(config, &batch, row, &a.values)).collect();
            (0..sequences.len()).map(alphas).collect()
        }
    };
    if routed.iter().flatten().flatten().any(|a| !a.is_finite()) {
        let finding = Finding::new(decoder.weights().path(), "routing weights");
        return Err(finding.expected("finite numbers").found("a NaN or an infinity").not_finite());
    }
    Ok((routed, priors))
}

/// The mixture of several routings, by block, with the `shares` of each, which add up to 1. Each routing is on the simplex,
/// so the mixture is too.
pub fn mixed(routings: &[Vec<Vec<f32>>], shares: &[f64]) -> Vec<Vec<f32>> {
    let mut mixture: Vec<Vec<f64>> = Vec::new();
    for (routing, share) in routings.iter().zip(shares) {
        mixture.resize(routing.len(), Vec::new());
        for (sums, alphas) in mixture.iter_mut().zip(routing) {
            sums.resize(alphas.len(), 0.0);
            sums.iter_mut().zip(alphas).for_each(|(sum, alpha)| *sum += share * f64::from(*alpha));
        }
    }
    mixture.iter().map(|sums| sums.iter().map(|sum| *sum as f32).collect()).collect()
}

/// The weights for one prompt in one block, from all its decisions.
fn fix(config: &BankConfig, batch: &Batch, row: usize, alphas: &[f32]) -> Vec<f32> {
    let k = config.num_atoms;
    match config.routing {
        Routing::Prompt => alphas[row * k..(row + 1) * k].to_vec(),
        Routing::Token => {
            let routed = batch.routed_len(row);
            let first = batch.sequences()[row].start * k;
            let mut mean = vec![0.0; k];
            for token in alphas[first..first + routed * k].chunks_exact(k) {
                mean.iter_mut().zip(token).for_each(|(m, a)| *m += a / routed as f32);
            }
            mean
        }
    }
}

/// How similar the next-token distributions of two models are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// The largest difference of any logit.
    pub max_logit_difference: f32,
    /// The mean over tokens of KL(first || second), in nats.
    pub mean_kl: f64,
    /// The share of tokens at which both models rank the same token first.
    pub top1: f64,
    /// The number of tokens compared.
    pub tokens: usize,
}

/// The number of tokens whose logits are in memory at a time.
const LOGIT_TOKENS: usize = 32;

/// Compares the logits of a routed model with those of a fixed one on `sequences`.
///
/// # Errors
/// As [`Decoder::hidden`].
pub fn compare(
    routed: (&Decoder, &mut dyn Hook),
    fixed: (&Decoder, &mut dyn Hook),
    sequences: &[Sequence],
) -> Result<Agreement> {
    let batch = Batch::new(sequences);
    let places = batch.real_places();
    let first = routed.0.hidden(&batch, None, routed.1)?;
    let second = fixed.0.hidden(&batch, None, fixed.1)?;
    let mut agreement = Agreement { max_logit_difference: 0.0, mean_kl: 0.0, top1: 0.0, tokens: places.len() };
    for places in places.chunks(LOGIT_TOKENS) {
        let a = routed.0.logits_at(&first, places)?;
        let b = fixed.0.logits_at(&second, places)?;
        let gap = (&a - &b)?.abs()?.max_all()?.to_scalar::<f32>()?;
        agreement.max_logit_difference = agreement.max_logit_difference.max(gap);
        let log_ratio = (log_softmax_last(&a)? - log_softmax_last(&b)?)?;
        let kl = (softmax_last(&a)? * log_ratio)?.sum_all()?.to_scalar::<f32>()?;
        agreement.mean_kl += f64::from(kl) / agreement.tokens as f64;
        let favourite = |x: &Tensor| -> Result<Vec<u32>> { Ok(x.argmax(D::Minus1)?.to_vec1()?) };
        let same = favourite(&a)?.into_iter().zip(favourite(&b)?).filter(|(a, b)| a == b).count();
        agreement.top1 += same as f64 / agreement.tokens as f64;
    }
    Ok(agreement)
}
