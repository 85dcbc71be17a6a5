//! What banks are compared with, besides a plain LoRA: a mixture of LoRAs with a softmax router, and one LoRA a task.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};

use crate::arch::LinearLayer;
use crate::error::Result;
use crate::linalg::Random;
use crate::model::{Hook, ops, softmax_last};

/// A linear layer that is adapted, with its size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Site {
    pub(super) layer: LinearLayer,
    pub(super) d_out: usize,
    pub(super) d_in: usize,
}

/// What weighs the LoRAs of a mixture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weighing {
    /// A softmax over scores of a row's instruction embedding.
    Router,
    /// The number of the row's task: one LoRA each.
    Task,
}

/// Several LoRAs on the same linear layers: `y = W x + scale * sum_k g_k B_k A_k x`.
///
/// Their factors are stacked: `A` is `[count * rank, d_in]`, `B` `[d_out, count * rank]`; the weights `g` are those of a
/// row and the same in all layers.
pub(super) struct Mixture {
    pub(super) vars: BTreeMap<String, Var>,
    pub(super) weighing: Weighing,
    count: usize,
    rank: usize,
    scale: f64,
}

impl Mixture {
    /// `count` LoRAs of rank `rank` with B = 0. `d_e` is the width of instruction embeddings.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub(super) fn fresh(
        sites: &[Site],
        (count, rank): (usize, usize),
        weighing: Weighing,
        scale: f64,
        d_e: usize,
        random: &mut Random,
    ) -> Result<Self> {
        let mut vars = BTreeMap::new();
        let all = count * rank;
        for site in sites {
            let bound = 1.0 / (site.d_in as f32).sqrt();
            let a: Vec<f32> = (0..all * site.d_in).map(|_| bound * (2.0 * random.uniform() - 1.0)).collect();
            vars.insert(site.layer.factor_name('A'), Var::from_vec(a, (all, site.d_in), &Device::Cpu)?);
            let b = vec![0f32; site.d_out * all];
            vars.insert(site.layer.factor_name('B'), Var::from_vec(b, (site.d_out, all), &Device::Cpu)?);
        }
        if weighing == Weighing::Router {
            let std = 1.0 / (d_e as f32).sqrt();
            let values: Vec<f32> = (0..count * d_e).map(|_| std * random.normal()).collect();
            vars.insert(ROUTER.to_owned(), Var::from_vec(values, (count, d_e), &Device::Cpu)?);
        }
        Ok(Self { vars, weighing, count, rank, scale })
    }

    /// The hook for rows with these instruction embeddings, `[B, d_e]`, and tasks.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub(super) fn hook(&self, e: &Tensor, tasks: &[usize]) -> Result<MixtureHook<'_>> {
        let weights = match self.weighing {
            // Scores of unit vectors are small; with this factor a router can be as sure as a bank's.
            Weighing::Router => softmax_last(&(ops::linear(e, self.vars[ROUTER].as_tensor())? * 4.0)?)?,
            Weighing::Task => {
                let mut one_hot = vec![0f32; tasks.len() * self.count];
                tasks.iter().enumerate().for_each(|(row, task)| one_hot[row * self.count + task % self.count] = 1.0);
                Tensor::from_vec(one_hot, (tasks.len(), self.count), &Device::Cpu)?
            }
        };
        // One weight for each row of A.
        let (rows, count) = weights.dims2()?;
        let weights = weights.unsqueeze(2)?.broadcast_as((rows, count, self.rank))?.contiguous()?;
        Ok(MixtureHook { mixture: self, weights: weights.reshape((rows, 1, count * self.rank))? })
    }
}

const ROUTER: &str = "router.weight";

/// One pass of a [`Mixture`].
pub(super) struct MixtureHook<'a> {
    mixture: &'a Mixture,
    /// `[B, 1, count * rank]`
    weights: Tensor,
}

impl Hook for MixtureHook<'_> {
    fn bottleneck(&mut self, site: LinearLayer, x: &Tensor) -> Result<Option<(Tensor, Tensor, f64)>> {
        let var = |which: char| self.mixture.vars.get(&site.factor_name(which));
        let (Some(a), Some(b)) = (var('A'), var('B')) else { return Ok(None) };
        let state = ops::linear(x, a.as_tensor())?.broadcast_mul(&self.weights)?;
        Ok(Some((state, b.as_tensor().clone(), self.mixture.scale)))
    }
}
