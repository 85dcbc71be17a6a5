//! Task arithmetic and what grew out of it: a base, and the sum of what models changed in it, thinned and with
//! elected signs or without.
//!
//! Reference: mergekit `mergekit/merge_methods/generalized_task_arithmetic.py` (`GTATask`), `sce.py`.

use std::ops::Range;
use std::sync::Arc;

use super::lazy::{Measure, Pointwise, difference};
use super::sieve::{Choice, Rescale, Sieve, sign};
use super::statistics::{Leading, Order, elems, scan, scan_all};
use crate::error::Result;
use crate::plan::{Expr, RowMap};

/// `base + lambda * sum(weight * sieve(model - base))`; the operands are the base and the models.
#[derive(Debug)]
pub(super) struct Arithmetic {
    /// One for each model.
    pub(super) weights: Vec<f32>,
    /// Which values of each model's update are kept.
    pub(super) choices: Vec<Choice>,
    pub(super) rescale: Rescale,
    /// Whether only values of the elected sign are summed.
    pub(super) consensus: bool,
    /// Whether sums are divided by the weights of what is in them.
    pub(super) normalize: bool,
    pub(super) lambda: f32,
}

impl Measure for Arithmetic {
    fn measure(&self, of: &[Expr]) -> Result<Arc<dyn RowMap>> {
        let (base, models) = (&of[0], &of[1..]);
        let sieve = |(model, choice): (&Expr, &Choice)| {
            Sieve::of(&difference(model.clone(), base.clone()), choice, self.rescale)
        };
        let sieves = models.iter().zip(&self.choices).map(sieve).collect::<Result<_>>()?;
        let Self { consensus, normalize, lambda, .. } = *self;
        Ok(Arc::new(Sum { weights: self.weights.clone(), sieves, consensus, normalize, lambda }))
    }
}

#[derive(Debug)]
struct Sum {
    weights: Vec<f32>,
    sieves: Vec<Sieve>,
    consensus: bool,
    normalize: bool,
    lambda: f32,
}

impl RowMap for Sum {
    fn apply(&self, rows: Range<usize>, row_len: usize, others: &[Vec<f32>], out: &mut [f32]) {
        let start = (rows.start * row_len) as u64;
        let update = |(model, sieve, weight): (&Vec<f32>, &Sieve, &f32)| {
            let mut update: Vec<f32> = model.iter().zip(&*out).map(|(x, base)| x - base).collect();
            sieve.apply(start, row_len, &mut update);
            update.iter_mut().for_each(|v| *v *= weight);
            update
        };
        let weighted = others.iter().zip(&self.sieves).zip(&self.weights).map(|((m, s), w)| update((m, s, w)));
        let weighted: Vec<Vec<f32>> = weighted.collect();
        let total: f32 = self.weights.iter().sum();
        for (i, out) in out.iter_mut().enumerate() {
            let values = weighted.iter().map(|w| w[i]);
            let mut sum: f32 = values.clone().fold(0.0, |sum, v| sum + v);
            let mut divisor = if total.abs() < 1e-8 { 1.0 } else { total };
            if self.consensus {
                let majority = if sum >= 0.0 { 1.0 } else { -1.0 };
                (sum, divisor) = (0.0, 0.0);
                for (value, weight) in values.zip(&self.weights).filter(|(v, _)| sign(*v) == majority) {
                    sum += value;
                    divisor += weight;
                }
                if divisor == 0.0 {
                    divisor = 1.0;
                }
            }
            if self.normalize {
                sum /= divisor;
            }
            if self.lambda != 1.0 {
                sum *= self.lambda;
            }
            *out += sum;
        }
    }
}

/// SCE: of the values that differ most between models those of the elected sign, each model weighed by how
/// much it changed. The operands are the base and the models. Where the share is less than one value, the base
/// stays; mergekit's mask has a dimension too many then, and so has its result.
#[derive(Debug)]
pub(super) struct Sce {
    /// The share of values that is kept.
    pub(super) select_topk: f64,
}

impl Measure for Sce {
    fn measure(&self, of: &[Expr]) -> Result<Arc<dyn RowMap>> {
        let updates: Vec<Expr> = of[1..].iter().map(|model| difference(model.clone(), of[0].clone())).collect();
        let mut selected = None;
        if self.select_topk < 1.0 {
            let variance = Expr::Map { of: updates.clone(), map: Arc::new(Pointwise(variance)) };
            let mut nonzero = 0u64;
            if self.select_topk > 0.0 {
                scan(&variance, |_, values| nonzero += values.iter().filter(|v| **v != 0.0).count() as u64)?;
            }
            // A count times a number is a float32 in torch.
            let count = (nonzero as f32 * self.select_topk as f32) as u64;
            selected = Some(Leading::of(&variance, Order::Largest, count.min(elems(&variance)))?);
        }
        let mut squares = vec![0f64; updates.len()];
        let mut place = Vec::with_capacity(updates.len());
        scan_all(&updates, |start, values| {
            for i in 0..values[0].len() {
                place.clear();
                place.extend(values.iter().map(|v| v[i]));
                if selected.is_none_or(|selected| selected.has(start + i as u64, variance(&place))) {
                    squares.iter_mut().zip(&place).for_each(|(sum, v)| *sum += (*v * *v) as f64);
                }
            }
        })?;
        let count = elems(&of[0]).max(1) as f64;
        let means: Vec<f32> = squares.iter().map(|sum| (sum / count) as f32).collect();
        let total: f32 = means.iter().sum();
        let equal = total.abs() < 1e-6;
        let weigh = |mean: &f32| if equal { 1.0 / means.len() as f32 } else { mean / total };
        Ok(Arc::new(Chosen { weights: means.iter().map(weigh).collect(), selected }))
    }
}

/// torch.var without Bessel's correction: Welford's way, in f64.
fn variance(values: &[f32]) -> f32 {
    let (mut mean, mut squares) = (0f64, 0f64);
    for (i, value) in values.iter().map(|v| *v as f64).enumerate() {
        let delta = value - mean;
        mean += delta / (i + 1) as f64;
        squares += delta * (value - mean);
    }
    (squares / values.len() as f64) as f32
}

#[derive(Debug)]
struct Chosen {
    weights: Vec<f32>,
    selected: Option<Leading>,
}

impl RowMap for Chosen {
    fn apply(&self, rows: Range<usize>, row_len: usize, others: &[Vec<f32>], out: &mut [f32]) {
        let start = (rows.start * row_len) as u64;
        let mut updates = vec![0.0; others.len()];
        for (i, out) in out.iter_mut().enumerate() {
            updates.iter_mut().zip(others).for_each(|(update, model)| *update = model[i] - *out);
            if self.selected.is_some_and(|selected| !selected.has(start + i as u64, variance(&updates))) {
                continue;
            }
            let elected: f32 = updates.iter().fold(0.0, |sum, v| sum + v);
            let majority = if elected >= 0.0 { 1.0 } else { -1.0 };
            let (mut sum, mut weights) = (0.0f32, 0.0f32);
            for (update, weight) in updates.iter().zip(&self.weights).filter(|(v, _)| sign(**v) == majority) {
                sum += update * weight;
                weights += weight;
            }
            *out += sum / weights.max(1e-6);
        }
    }
}
