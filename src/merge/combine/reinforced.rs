//! Reinforced agent merging (RAM): where one model alone changes a value, its change is kept whole; where several do,
//! their changes are averaged.
//!
//! Reference: mergekit `mergekit/merge_methods/ram.py`.

use std::ops::Range;
use std::sync::Arc;

use super::lazy::Measure;
use super::statistics::scan_all;
use super::working::Working;
use crate::error::Result;
use crate::plan::{Expr, RowMap};

/// The operands are the base, then the models.
#[derive(Debug)]
pub(super) struct Reinforced {
    /// Changes up to this size don't count.
    pub(super) epsilon: f32,
    /// The factor of a model's own changes.
    pub(super) factors: Vec<f32>,
    /// The type of changes, and of their averages.
    pub(super) working: Working,
    /// The type of sums. Those with factors are of f32 in torch.
    pub(super) sums: Working,
}

/// RAM+ with factors for each tensor: the more of a model's changes are shared, the more its own are reinforced.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReinforcedMore {
    /// Changes up to this size don't count.
    pub(super) epsilon: f32,
    /// How much the factors grow with the share.
    pub(super) r: f32,
    /// The largest share that counts.
    pub(super) alpha: f32,
    /// The type of changes.
    pub(super) working: Working,
}

/// The number of elements that are summed at a time, so that they stay in the processor's cache.
const BLOCK: usize = 1 << 12;

impl RowMap for Reinforced {
    fn apply(&self, _: Range<usize>, _: usize, others: &[Vec<f32>], out: &mut [f32]) {
        let (mut counts, mut sums) = ([0f32; BLOCK], [0f32; BLOCK]);
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let models = || others.iter().map(|model| &model[block * BLOCK..][..out.len()]);
            let (counts, sums) = (&mut counts[..out.len()], &mut sums[..out.len()]);
            count(models(), out, (self.epsilon, self.working), counts);
            sums.fill(0.0);
            for (model, factor) in models().zip(&self.factors) {
                for (((sum, count), x), base) in sums.iter_mut().zip(&*counts).zip(model).zip(&*out) {
                    let change = self.working.round(x - base);
                    let part = if *count == 1.0 { change * factor } else { self.working.round(change / count) };
                    *sum += if change.abs() > self.epsilon { part } else { 0.0 };
                }
            }
            self.sums.round_all(sums);
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out += *sum);
            self.sums.round_all(out);
        }
    }
}

/// How many models change each value.
fn count<'a>(
    models: impl Iterator<Item = &'a [f32]>,
    base: &[f32],
    (epsilon, working): (f32, Working),
    counts: &mut [f32],
) {
    counts.fill(0.0);
    for model in models {
        for ((count, x), base) in counts.iter_mut().zip(model).zip(base) {
            *count += if working.round(x - base).abs() > epsilon { 1.0 } else { 0.0 };
        }
    }
}

impl Measure for ReinforcedMore {
    fn measure(&self, of: &[Expr]) -> Result<Arc<dyn RowMap>> {
        let Self { epsilon, r, alpha, working } = *self;
        // For each model, the number of its changes that others share, and of those that are its own.
        let mut numbers = vec![[0u64; 2]; of.len() - 1];
        let mut counts = [0f32; BLOCK];
        scan_all(of, |_, values| {
            for start in (0..values[0].len()).step_by(BLOCK) {
                let end = (start + BLOCK).min(values[0].len());
                let (base, counts) = (&values[0][start..end], &mut counts[..end - start]);
                count(values[1..].iter().map(|model| &model[start..end]), base, (epsilon, working), counts);
                for (model, [shared, own]) in values[1..].iter().zip(&mut numbers) {
                    // A block has fewer than 2^24 values, so its numbers are exact in f32.
                    let mut sums = [0f32; 2];
                    for ((x, base), count) in model[start..end].iter().zip(base).zip(&*counts) {
                        let changes = working.round(x - base).abs() > epsilon;
                        sums[0] += if changes & (*count > 1.0) { 1.0 } else { 0.0 };
                        sums[1] += if changes & (*count == 1.0) { 1.0 } else { 0.0 };
                    }
                    *shared += sums[0] as u64;
                    *own += sums[1] as u64;
                }
            }
        })?;
        let factor = |[shared, own]: &[u64; 2]| {
            let ratio = *shared as f32 / (*own as f32).max(epsilon);
            1.0 + r * ratio.max(0.0).min(alpha)
        };
        let factors = numbers.iter().map(factor).collect();
        Ok(Arc::new(Reinforced { epsilon, factors, working, sums: Working::F32 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_changes_are_kept_and_shared_ones_averaged() {
        let base = [0.0; 5];
        let models = [vec![1.0, 2.0, 0.0, 1e-6, 4.0], vec![0.0, 4.0, -3.0, 0.0, 0.0]];
        let mut out = base;
        let plain = Working::F32;
        Reinforced { epsilon: 1e-5, factors: vec![1.0; 2], working: plain, sums: plain }.apply(
            0..5,
            1,
            &models,
            &mut out,
        );
        assert_eq!(out, [1.0, 3.0, -3.0, 0.0, 4.0]);
        let of = [&base[..], &models[0], &models[1]];
        let of = of.map(|v| Expr::Values { shape: vec![5], values: Arc::from(v) });
        let mut out = base;
        // One of two changes of the first model that are its own is half, one of one for the second.
        let more = ReinforcedMore { epsilon: 1e-5, r: 0.5, alpha: 0.75, working: plain };
        more.measure(&of).unwrap().apply(0..5, 1, &models, &mut out);
        assert_eq!(out, [1.25, 3.0, -3.0 * 1.375, 0.0, 5.0]);
    }
}
