//! Queryable LoRA's forward pass: the states, the routing, and the update.
//!
//! Symbols and step numbers are those of docs/formats/bank.md. `N` is the number of routing
//! decisions per block: the number of sequences with prompt routing, of tokens with token routing.

use std::sync::Arc;

use candle_core::{D, Tensor};

use super::loaded::{LoadedStage, has_instruction};
use super::stage::padded;
use super::{BankConfig, LoadedBank, Routing};
use crate::adapter::HostTensor;
use crate::arch::LinearLayer;
use crate::error::Result;
use crate::model::batch::Span;
use crate::model::hooks::{Factors, Input, Mixing, to_host};
use crate::model::{Batch, Hook, log_softmax_last, ops, softmax_last};

/// The state of one routed forward pass.
pub struct BankHook<'a> {
    bank: &'a LoadedStage,
    config: &'a BankConfig,
    /// The number of atoms of the bank, of which newer ones may take no part in this pass.
    atoms: usize,
    /// What keeps atoms that were grown from sequences without an instruction, `[B, K]`, where there are some.
    absent: Option<Tensor>,
    /// The weights of the means over routed tokens for prompt routing, `[rows, S, width]` for at most `S` sequences in a
    /// row; each sequence's sum to 1.
    mean: Tensor,
    /// Which of the `rows * S` means are those of sequences, `[B]`, in their order; `None` where all are.
    means: Option<Tensor>,
    /// The places of the tokens that aren't padding.
    real: Vec<u32>,
    /// The number of each token's sequence, `[rows * width]`.
    sequence: Tensor,
    /// The place behind the last token of each decision.
    ends: Arc<[usize]>,
    /// The instruction embeddings, `[B, d_e]`.
    e: Tensor,
    /// The sequences of the batch.
    count: usize,
    rows: usize,
    width: usize,
    has_instruction: bool,
    /// By block: the states `s_b`, `[N, r]`; the logits and alphas, `[N, K]`.
    states: Vec<Tensor>,
    logits: Vec<Tensor>,
    alphas: Vec<Tensor>,
}

/// The routing of one pass, on the host.
#[derive(Debug, Clone)]
pub struct RoutingTrace {
    /// By block: the normalised low-rank states, `[N, r]`.
    pub states: Vec<HostTensor>,
    /// By block: the weights of the atoms, `[N, K]`.
    pub alphas: Vec<HostTensor>,
}

/// Strengths of the two routing regularizers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Regularizer {
    /// The weight of `mean KL(softmax(l / tau) || pi(e))`.
    pub prior: f64,
    /// The weight of the load balance over atoms.
    pub balance: f64,
}

impl<'a> BankHook<'a> {
    /// Prepares a pass over `batch`; `e` holds its instruction embeddings, `[B, d_e]`.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub fn new(bank: &'a LoadedBank, batch: &Batch, e: Tensor) -> Result<Self> {
        Self::of_stage(bank.stage(&e)?, bank.config().num_atoms, batch, e)
    }

    /// As [`BankHook::new`], computing with all atoms, even where the newer ones take no part.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub fn with_all_atoms(bank: &'a LoadedBank, batch: &Batch, e: Tensor) -> Result<Self> {
        Self::of_stage(bank.last_stage(), bank.config().num_atoms, batch, e)
    }

    fn of_stage(bank: &'a LoadedStage, atoms: usize, batch: &Batch, e: Tensor) -> Result<Self> {
        let config = &bank.config;
        let has_instruction = e.abs()?.max_all()?.to_scalar::<f32>()? > 0.0;
        let mut hook = Self {
            bank,
            config,
            atoms,
            absent: absent(config, &e)?,
            mean: e.clone(),
            means: None,
            real: Vec::new(),
            sequence: e.clone(),
            ends: [].into(),
            e,
            count: 0,
            rows: 0,
            width: 0,
            has_instruction,
            states: Vec::new(),
            logits: Vec::new(),
            alphas: Vec::new(),
        };
        hook.set_batch(batch)?;
        Ok(hook)
    }

    fn set_batch(&mut self, batch: &Batch) -> Result<()> {
        let (rows, width, spans) = (batch.rows(), batch.width(), batch.sequences());
        (self.rows, self.width, self.count) = (rows, width, spans.len());
        // The number of each sequence in its row.
        let mut of_row = vec![0; rows];
        let number = |span: &Span| {
            of_row[span.start / width] += 1;
            of_row[span.start / width] - 1
        };
        let numbers: Vec<usize> = spans.iter().map(number).collect();
        let most = of_row.into_iter().max().unwrap_or(1);
        let mut mean = vec![0f32; rows * most * width];
        let mut means = Vec::with_capacity(spans.len());
        for (span, number) in spans.iter().zip(numbers) {
            let of = span.start / width * most + number;
            mean[of * width + span.start % width..][..span.routed].fill(1.0 / span.routed as f32);
            means.push(of as u32);
        }
        let device = self.e.device();
        self.mean = Tensor::from_vec(mean, (rows, most, width), device)?;
        self.means = if rows * most == spans.len() { None } else { Some(Tensor::new(means, device)?) };
        self.sequence = Tensor::new(batch.sequence_of_places(), device)?;
        self.real = batch.real_places();
        self.ends = match self.config.routing {
            // Padding goes with the sequence before it.
            Routing::Prompt => spans.iter().skip(1).map(|span| span.start).chain([rows * width]).collect(),
            Routing::Token => (1..=rows * width).collect(),
        };
        Ok(())
    }

    /// The routing of the pass, copied to the host.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub fn trace(&self) -> Result<RoutingTrace> {
        let host = |tensors: &[Tensor]| tensors.iter().map(to_host).collect::<Result<Vec<_>>>();
        // Atoms that take no part have weight 0.
        let alphas = host(&self.alphas)?.iter().map(|a| padded(a, &[a.shape[0], self.atoms])).collect();
        Ok(RoutingTrace { states: host(&self.states)?, alphas })
    }

    /// `log pi(e)`, `[B, K]` (step 4). Uniform where there is no instruction.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub fn log_prior(&self) -> Result<Tensor> {
        self.with_newer(self.bank.log_prior(&self.e)?, f32::NEG_INFINITY)
    }

    /// `x`, `[B, K]` of the atoms that take part, with `value` for the newer ones.
    fn with_newer(&self, x: Tensor, value: f32) -> Result<Tensor> {
        match self.atoms - self.config.num_atoms {
            0 => Ok(x),
            newer => Ok(Tensor::cat(&[&x, &Tensor::full(value, (x.dim(0)?, newer), x.device())?], 1)?),
        }
    }

    /// The weights of the atoms from the prior alone, without a forward pass: `[B, K]`.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub fn prior_alphas(&self) -> Result<Tensor> {
        let alphas = self.top_k(&(self.bank.log_prior(&self.e)? * self.config.prior_strength)?)?;
        self.with_newer(alphas, 0.0)
    }

    /// The regularizers' part of the loss, a scalar. Call it after the pass.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub fn regularization(&self, strength: Regularizer) -> Result<Tensor> {
        let atoms = self.config.num_atoms;
        let mut log_pi = self.bank.log_prior(&self.e)?;
        let mut keep: Option<Tensor> = None;
        if self.config.routing == Routing::Token {
            log_pi = self.per_token(&log_pi)?;
            let real = Tensor::new(self.real.as_slice(), self.e.device())?;
            log_pi = log_pi.index_select(&real, 0)?;
            keep = Some(real);
        }
        let mut kl = Vec::new();
        let mut probabilities = Vec::new();
        for logits in &self.logits {
            let logits = match &keep {
                Some(keep) => logits.index_select(keep, 0)?,
                None => logits.clone(),
            };
            let log_p = log_softmax_last(&(logits * (1.0 / self.config.temperature))?)?;
            let p = log_p.exp()?;
            kl.push((&p * (log_p - &log_pi)?)?.sum(D::Minus1)?);
            probabilities.push(p);
        }
        let p = Tensor::cat(&probabilities, 0)?;
        // The share of decisions that rank an atom first is a count, so it has no gradient, as in
        // Switch Transformers.
        let mut share = vec![0f32; atoms];
        let rows = p.to_vec2::<f32>()?;
        for row in &rows {
            share[largest_first(row)[0]] += 1.0 / rows.len() as f32;
        }
        let share = Tensor::new(share, p.device())?;
        let balance = ((p.mean(0)? * share)?.sum_all()? * (strength.balance * atoms as f64))?;
        let kl = (Tensor::cat(&kl, 0)?.mean_all()? * strength.prior)?;
        Ok((kl + balance)?)
    }

    /// Steps 1 to 6 for block `block`, at its first linear layer. `z` is `A x`, `[B, T, state_rank]`.
    fn route(&mut self, block: usize, z: &Tensor) -> Result<()> {
        let router = |name: &str| self.bank.get(&format!("atom_bank.router.{name}"));
        let (r, d_k) = (self.config.state_rank(), self.config.key_dim);
        let z = match self.config.routing {
            Routing::Prompt => {
                let all = self.mean.matmul(z)?.reshape(((), r))?;
                self.means.as_ref().map_or(Ok(all.clone()), |means| all.index_select(means, 0))?
            }
            Routing::Token => z.reshape((self.rows * self.width, r))?,
        };
        let s = ops::rms_norm(&z, 1e-6)?;
        let n = s.dim(0)?;

        let mut slots = vec![router("summary_init").reshape((1, r))?.broadcast_as((n, r))?.contiguous()?];
        slots.extend(self.states.iter().cloned());
        let slots = Tensor::stack(&slots, 1)?; // [N, j, r]
        let keys = ops::linear(&slots, router("summary_key.weight"))?; // [N, j, d_k]
        let query = ops::linear(&s, router("summary_query.weight"))?.unsqueeze(2)?; // [N, d_k, 1]
        let scores = (keys.matmul(&query)?.squeeze(2)? * (1.0 / (d_k as f64).sqrt()))?;
        let h = softmax_last(&scores)?.unsqueeze(1)?.matmul(&slots)?.squeeze(1)?; // [N, r]

        let bias = router("block_bias").narrow(0, block, 1)?;
        let mut q = (ops::linear(&s, router("state_proj.weight"))? + ops::linear(&h, router("summary_proj.weight"))?)?
            .broadcast_add(&bias)?;
        if self.has_instruction {
            let instruction = ops::linear(&self.e, router("instruction_proj.weight"))?;
            q = (q + self.per_decision(&instruction)?)?;
        }
        let mut logits = (ops::linear(&q, self.bank.get("atom_bank.keys"))? * (1.0 / (d_k as f64).sqrt()))?;
        if self.has_instruction {
            // For sequences without an instruction this adds a constant, which doesn't change the
            // softmax.
            let prior = (self.per_decision(&self.bank.log_prior(&self.e)?)? * self.config.prior_strength)?;
            logits = (logits + prior)?;
        }
        if let Some(absent) = &self.absent {
            logits = (logits + self.per_decision(absent)?)?;
        }
        self.alphas.push(self.top_k(&logits)?);
        self.logits.push(logits);
        self.states.push(s);
        Ok(())
    }

    /// Step 6: softmax over the `top_k` largest of `logits / tau`, zero elsewhere: `[N, K]`.
    fn top_k(&self, logits: &Tensor) -> Result<Tensor> {
        let scaled = (logits * (1.0 / self.config.temperature))?;
        if self.config.top_k == self.config.num_atoms {
            return Ok(softmax_last(&scaled)?);
        }
        let rows = scaled.to_vec2::<f32>()?;
        let mut mask = vec![-1e30f32; rows.len() * self.config.num_atoms];
        for (row, mask) in rows.iter().zip(mask.chunks_exact_mut(self.config.num_atoms)) {
            for atom in &largest_first(row)[..self.config.top_k] {
                mask[*atom] = 0.0;
            }
        }
        Ok(softmax_last(&(&scaled + Tensor::from_vec(mask, scaled.shape(), scaled.device())?)?)?)
    }

    /// The rows of `A` that make the state: those that were there before the bank grew.
    fn of_state(&self, a: &Tensor) -> Result<Tensor> {
        Ok(a.narrow(0, 0, self.config.state_rank())?)
    }

    /// Expands a value per sequence, `[B, n]`, to one per decision, `[N, n]`.
    fn per_decision(&self, x: &Tensor) -> Result<Tensor> {
        match self.config.routing {
            Routing::Prompt => Ok(x.clone()),
            Routing::Token => self.per_token(x),
        }
    }

    /// Repeats `[B, n]` for each token: `[rows * width, n]`.
    fn per_token(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.contiguous()?.index_select(&self.sequence, 0)?)
    }

    /// The operators `M_b` of all decisions of a block, `[N, r, r]`.
    fn operators(&self, block: usize) -> Result<Tensor> {
        let (r, k) = (self.config.r, self.config.num_atoms);
        let atoms = self.bank.get("atom_bank.atoms").reshape((k, r * r))?;
        Ok(self.alphas[block].matmul(&atoms)?.reshape(((), r, r))?)
    }

    /// Step 7 within the rank-r bottleneck: `M_b z`, `[rows, width, r]`.
    fn apply_operator(&self, block: usize, z: &Tensor) -> Result<Tensor> {
        let (r, k) = (self.config.r, self.config.num_atoms);
        if self.config.routing == Routing::Prompt && self.rows == self.count {
            let m = self.operators(block)?;
            return Ok(z.matmul(&m.transpose(1, 2)?.contiguous()?)?);
        }
        // Multiply every atom by z, then mix: no [r, r] matrix per token is needed.
        let alpha = match self.config.routing {
            Routing::Prompt => self.per_token(&self.alphas[block])?,
            Routing::Token => self.alphas[block].clone(),
        };
        let tokens = self.rows * self.width;
        let atoms = self.bank.get("atom_bank.atoms").reshape((k * r, r))?;
        let each = ops::linear(&z.reshape((tokens, r))?, &atoms)?.reshape((tokens, k, r))?;
        Ok(alpha.unsqueeze(1)?.matmul(&each)?.reshape((self.rows, self.width, r))?)
    }
}

impl Hook for BankHook<'_> {
    fn bottleneck(&mut self, site: LinearLayer, x: &Tensor) -> Result<Option<(Tensor, Tensor, f64)>> {
        let Some((a, b)) = self.bank.adapter.factors(site) else { return Ok(None) };
        let (a, b) = (a.clone(), b.clone());
        let z = ops::narrow_linear(x, &a)?;
        let block = site.layer / self.config.block_size;
        // Linear layers come in execution order, so at the first one of a block its decision is
        // still missing.
        if self.alphas.len() == block {
            match self.config.growth.is_empty() {
                true => self.route(block, &z)?,
                false => self.route(block, &ops::narrow_linear(x, &self.of_state(&a)?)?)?,
            }
        }
        Ok(Some((self.apply_operator(block, &z)?, b, self.bank.adapter.scale())))
    }

    fn factors(&mut self, sites: &[LinearLayer], count: usize, input: &mut Input) -> Result<Option<Factors>> {
        let adapter = &self.bank.adapter;
        let factors = |site: &LinearLayer| adapter.factors(*site).map(|(a, b)| (a.clone(), b.clone(), adapter.scale()));
        let of_sites: Vec<_> = sites.iter().map(factors).collect();
        let Some(first) = of_sites.iter().position(Option::is_some) else { return Ok(Some(Factors::default())) };
        let block = sites[first].layer / self.config.block_size;
        if self.alphas.len() == block {
            // The state that routes the block is that of its first linear layer.
            let Some((a, ..)) = of_sites[first].as_ref().filter(|_| first < count) else { return Ok(None) };
            let z = ops::narrow_linear(&input()?, &self.of_state(a)?)?;
            self.route(block, &z)?;
        }
        let mix = Mixing { matrices: self.operators(block)?, ends: self.ends.clone() };
        Ok(Some(Factors { of_sites, mix: Some(mix) }))
    }

    fn layers_together(&self) -> usize {
        self.config.block_size
    }

    /// State and logits of every block.
    fn kept(&self) -> Vec<Tensor> {
        self.states.iter().zip(&self.logits).flat_map(|(state, logits)| [state.clone(), logits.clone()]).collect()
    }

    fn keep(&mut self, kept: &[Tensor]) {
        let (pairs, _) = kept.as_chunks::<2>();
        self.states = pairs.iter().map(|[state, _]| state.clone()).collect();
        self.logits = pairs.iter().map(|[_, logits]| logits.clone()).collect();
        // An earlier block's weights of atoms are used by its own layers alone.
        self.alphas.truncate(pairs.len());
    }

    /// With prompt routing, the decisions are kept; with token routing, every new token makes its
    /// own.
    fn continue_with(&mut self, batch: &Batch) -> Result<()> {
        if self.config.routing == Routing::Token {
            self.states.clear();
            self.logits.clear();
            self.alphas.clear();
        }
        self.set_batch(batch)
    }
}

/// For a bank that has grown and a batch in which some sequences have no instruction: what is added to logits, `[B, K]`,
/// so that atoms that were grown for instructions have no weight there.
fn absent(config: &BankConfig, e: &Tensor) -> Result<Option<Tensor>> {
    let Some(first) = config.growth.first() else { return Ok(None) };
    let there = has_instruction(e)?.to_vec2::<u8>()?;
    if there.iter().all(|row| row[0] == 1) {
        return Ok(None);
    }
    let of_row =
        |there: u8| (0..config.num_atoms).map(move |i| if there == 0 && i >= first.num_atoms { -1e30 } else { 0f32 });
    let values: Vec<f32> = there.iter().flat_map(|row| of_row(row[0])).collect();
    Ok(Some(Tensor::from_vec(values, (there.len(), config.num_atoms), e.device())?))
}

/// Indices sorted by value, largest first; the lower index wins a tie.
fn largest_first(row: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
    order
}
