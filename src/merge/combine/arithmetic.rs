//! Task arithmetic and the methods built on it: the base plus a weighted sum of the models' differences from it.
//! The differences may be pruned first, and only values of an elected sign summed.
//!
//! Reference: mergekit `mergekit/merge_methods/generalized_task_arithmetic.py` (`GTATask`), `sce.py`.

use std::ops::Range;
use std::sync::Arc;

use super::election::{add_up, add_up_elected};
use super::lazy::{Measure, difference};
use super::sparsity::{Choice, Rescale, SparsityMask, Walk};
use super::statistics::{elems, scan_all, sum_of};
use super::topk::Topk;
use super::working::Working;
use crate::error::Result;
use crate::kernel::{Kernel, Routine};
use crate::plan::{Expr, RowMap, torch_sum};

/// `base + lambda * sum(weight * mask(model - base))`. The operands are the base, then the models.
#[derive(Debug)]
pub(super) struct Arithmetic {
    /// One for each model.
    pub(super) weights: Vec<f32>,
    /// The values of each model's difference that are kept.
    pub(super) choices: Vec<Choice>,
    pub(super) rescale: Rescale,
    /// Whether only values of the elected sign are summed.
    pub(super) consensus: bool,
    /// Whether a sum is divided by the sum of the weights that are in it.
    pub(super) normalize: bool,
    pub(super) lambda: f32,
    /// The type of every intermediate result. The weights are of this type.
    pub(super) working: Working,
}

impl Measure for Arithmetic {
    fn measure(&self, of: &[Expr]) -> Result<Arc<dyn RowMap>> {
        let (base, models) = (&of[0], &of[1..]);
        let sieve = |(model, choice): (&Expr, &Choice)| {
            let update = self.working.rounded(difference(model.clone(), base.clone()));
            SparsityMask::in_type(&update, choice, self.rescale, self.working)
        };
        let sieves = models.iter().zip(&self.choices).map(sieve).collect::<Result<_>>()?;
        let Self { consensus, normalize, lambda, working, .. } = *self;
        Ok(Arc::new(Sum { weights: self.weights.clone(), sieves, consensus, normalize, lambda, working }))
    }
}

#[derive(Debug)]
struct Sum {
    weights: Vec<f32>,
    sieves: Vec<SparsityMask>,
    consensus: bool,
    normalize: bool,
    lambda: f32,
    working: Working,
}

/// The number of elements that are summed at a time, so that they stay in the processor's cache.
const BLOCK: usize = 1 << 13;

impl RowMap for Sum {
    fn apply(&self, rows: Range<usize>, row_len: usize, others: &[Vec<f32>], out: &mut [f32]) {
        let start = (rows.start * row_len) as u64;
        let mut walks: Vec<Walk> = self.sieves.iter().map(|sieve| sieve.walk(start)).collect();
        let block = (BLOCK / row_len.max(1)).max(1) * row_len.max(1);
        let most = block.min(out.len());
        let mut weighted = vec![0.0; most * others.len()];
        let working = self.working;
        // mergekit divides by 1 where the sum is about 0.
        let total = working.round(torch_sum(&self.weights));
        let total = if total.abs() < 1e-8 { 1.0 } else { total };
        let mut buffers = [(); 3].map(|()| vec![0.0f32; most]);
        for (i, out) in out.chunks_mut(block).enumerate() {
            let mut updates: Vec<&mut [f32]> = weighted.chunks_mut(out.len()).take(others.len()).collect();
            for (((update, model), walk), weight) in updates.iter_mut().zip(others).zip(&mut walks).zip(&self.weights) {
                let model = &model[i * block..][..out.len()];
                update.iter_mut().zip(model).zip(&*out).for_each(|((update, x), base)| *update = x - base);
                working.round_all(update);
                walk.apply(row_len, update);
                update.iter_mut().for_each(|v| *v *= weight);
                working.round_all(update);
            }
            let [sums, elected, divisors] = buffers.each_mut().map(|all| &mut all[..out.len()]);
            Kernel::in_use().run_wide(AddUp { of: self, total, updates: &updates, sums, elected, divisors, out });
        }
    }
}

/// Adds the weighted updates of some elements to the base.
struct AddUp<'a, 'b> {
    of: &'a Sum,
    /// The sum of the weights, or 1 where that is about 0.
    total: f32,
    updates: &'a [&'b mut [f32]],
    sums: &'a mut [f32],
    elected: &'a mut [f32],
    divisors: &'a mut [f32],
    out: &'a mut [f32],
}

impl Routine for AddUp<'_, '_> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        let Self { of, total, updates, sums, elected, divisors, out } = self;
        let Sum { weights, consensus, normalize, lambda, working, .. } = of;
        add_up(updates, sums);
        working.round_all(sums);
        divisors.fill(total);
        if *consensus {
            elected.copy_from_slice(sums);
            add_up_elected(updates, &vec![1.0; updates.len()], weights, elected, sums, divisors);
            working.round_all(sums);
            working.round_all(divisors);
            divisors.iter_mut().for_each(|divisor| *divisor = if *divisor == 0.0 { 1.0 } else { *divisor });
        }
        if *normalize {
            sums.iter_mut().zip(divisors).for_each(|(sum, divisor)| *sum /= *divisor);
            working.round_all(sums);
        }
        if *lambda != 1.0 {
            sums.iter_mut().for_each(|sum| *sum *= lambda);
            working.round_all(sums);
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += *sum);
        working.round_all(out);
    }
}

/// SCE: takes the values that differ most between models, keeps those of the elected sign, and weights each model
/// by how much it changed. The operands are the base, then the models. A share of less than one value leaves the
/// base as it is.
#[derive(Debug)]
pub(super) struct Sce {
    /// The share of values that is kept.
    pub(super) select_topk: f64,
    /// The type of every intermediate result.
    pub(super) working: Working,
}

impl Measure for Sce {
    fn measure(&self, of: &[Expr]) -> Result<Arc<dyn RowMap>> {
        let working = self.working;
        let update = |model: &Expr| working.rounded(difference(model.clone(), of[0].clone()));
        let updates: Vec<Expr> = of[1..].iter().map(update).collect();
        let mut selected = None;
        if self.select_topk < 1.0 {
            let of_all = working.rounded(Expr::Map { of: updates.clone(), map: Arc::new(Variance) });
            // A count times a number is a float32 in torch.
            let count = |nonzero: u64| (nonzero as f32 * self.select_topk as f32) as u64;
            selected = Some(Topk::among(&of_all, count)?);
        }
        let mut squares = vec![0f64; updates.len()];
        let (mut keys, mut kept) = (Vec::new(), Vec::new());
        scan_all(&updates, |start, values| {
            let all: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
            keys.resize(all[0].len(), 0.0);
            if selected.is_some() {
                variances(&all, &mut keys);
                working.round_all(&mut keys);
            }
            for (sum, values) in squares.iter_mut().zip(all) {
                kept.clear();
                kept.extend_from_slice(values);
                if let Some(selected) = &selected {
                    selected.keep_by(start, &keys, &mut kept);
                }
                *sum += sum_of(&kept, |v| f64::from(working.round(v * v)));
            }
        })?;
        let count = elems(&of[0]).max(1) as f64;
        let means: Vec<f32> = squares.iter().map(|sum| working.round((sum / count) as f32)).collect();
        let total = working.round(means.iter().sum());
        let equal = total.abs() < 1e-6;
        let weigh = |mean: &f32| working.round(if equal { 1.0 / means.len() as f32 } else { mean / total });
        Ok(Arc::new(Chosen { weights: means.iter().map(weigh).collect(), selected, working }))
    }
}

/// [`variances`] of the operands.
#[derive(Debug)]
struct Variance;

impl RowMap for Variance {
    fn apply(&self, _: Range<usize>, _: usize, others: &[Vec<f32>], out: &mut [f32]) {
        let first = out.to_vec();
        let all: Vec<&[f32]> = std::iter::once(&first).chain(others).map(Vec::as_slice).collect();
        variances(&all, out);
    }
}

/// `torch.var` without Bessel's correction over several tensors, element by element. Welford's method, in f64.
fn variances(of: &[&[f32]], out: &mut [f32]) {
    const PLACES: usize = 64;
    for (i, out) in out.chunks_mut(PLACES).enumerate() {
        let (mut means, mut squares) = ([0f64; PLACES], [0f64; PLACES]);
        for (before, values) in of.iter().enumerate() {
            let count = (before + 1) as f64;
            let values = &values[i * PLACES..][..out.len()];
            for ((mean, squares), value) in means.iter_mut().zip(&mut squares).zip(values) {
                let delta = *value as f64 - *mean;
                *mean += delta / count;
                *squares += delta * (*value as f64 - *mean);
            }
        }
        out.iter_mut().zip(&squares).for_each(|(out, squares)| *out = (squares / of.len() as f64) as f32);
    }
}

#[derive(Debug)]
struct Chosen {
    weights: Vec<f32>,
    selected: Option<Topk>,
    working: Working,
}

impl RowMap for Chosen {
    fn apply(&self, rows: Range<usize>, row_len: usize, others: &[Vec<f32>], out: &mut [f32]) {
        let first = (rows.start * row_len) as u64;
        let mut updates = vec![0.0; BLOCK * others.len()];
        let working = self.working;
        let [mut keys, mut elected, mut sums, mut weights] = [(); 4].map(|()| vec![0.0f32; BLOCK]);
        for (i, out) in out.chunks_mut(BLOCK).enumerate() {
            let (start, n) = (i * BLOCK, out.len());
            for (update, model) in updates.chunks_mut(n).zip(others) {
                let model = &model[start..][..n];
                update.iter_mut().zip(model).zip(&*out).for_each(|((update, x), base)| *update = x - base);
                working.round_all(update);
            }
            let updates: Vec<&[f32]> = updates.chunks(n).take(others.len()).collect();
            let [keys, elected, sums, weights] =
                [&mut keys, &mut elected, &mut sums, &mut weights].map(|all| &mut all[..n]);
            add_up(&updates, elected);
            working.round_all(elected);
            match working {
                Working::F32 => add_up_elected(&updates, &self.weights, &self.weights, elected, sums, weights),
                _ => {
                    let scaled = updates.iter().zip(&self.weights).map(|(update, weight)| {
                        let mut scaled: Vec<f32> = update.iter().map(|v| v * weight).collect();
                        working.round_all(&mut scaled);
                        scaled
                    });
                    let scaled: Vec<Vec<f32>> = scaled.collect();
                    add_up_elected(&scaled, &vec![1.0; scaled.len()], &self.weights, elected, sums, weights);
                }
            }
            working.round_all(sums);
            working.round_all(weights);
            let least = working.round(1e-6);
            sums.iter_mut().zip(weights).for_each(|(sum, weights)| *sum /= weights.max(least));
            working.round_all(sums);
            if let Some(selected) = &self.selected {
                variances(&updates, keys);
                working.round_all(keys);
                selected.keep_by(first + start as u64, keys, sums);
            }
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out += *sum);
            working.round_all(out);
        }
    }
}
