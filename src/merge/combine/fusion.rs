//! Arcee Fusion: takes the values of a model that matter most, and leaves the others as they are in the base.
//!
//! A value matters by how much it changes, times how far its row is apart from the base's as a distribution. Those are
//! taken that stand out in their tensor: from one and a half times the distance between the quartiles above the median.
//! In large tensors, quartiles are those of a random sample.
//!
//! Reference: mergekit `mergekit/merge_methods/arcee_fusion.py`; pytorch
//! `aten/src/ATen/core/DistributionsHelper.h` (`uniform_int_from_to_distribution`).

use std::ops::Range;
use std::sync::Arc;

use super::divergence::Divergence;
use super::lazy::Measure;
use super::sparsity::Draws;
use super::statistics::{elems, scan_all};
use super::working::Working;
use crate::error::Result;
use crate::plan::{Expr, RowMap};
use crate::source::row_len;

/// The most values that quartiles are taken of.
const SAMPLE: u64 = 1_000_000;

/// From this number of values on, torch draws an index from two words.
const WIDE: u64 = 1 << 28;

/// The operands are the base, then the model. Rows count: pass a vector as a matrix of one row.
#[derive(Debug)]
pub(super) struct Fusion {
    /// The random numbers, for the sample of a large tensor.
    pub(super) draws: Draws,
    /// The type of scores and changes. The result is of f32.
    pub(super) working: Working,
}

impl Fusion {
    /// The number of words that are drawn for a tensor of `elems` values.
    pub(super) fn words(elems: u64) -> u64 {
        match elems {
            0..=SAMPLE => 0,
            _ if elems < WIDE => SAMPLE,
            _ => 2 * SAMPLE,
        }
    }

    /// The elements of the sample, in order, with those that are drawn repeatedly.
    fn sample(&self, elems: u64) -> Vec<u64> {
        let mut generator = self.draws.stream.at(self.draws.position);
        let mut index = || {
            let high = if elems < WIDE { 0 } else { u64::from(generator.word()) << 32 };
            (high | u64::from(generator.word())) % elems
        };
        let mut sample: Vec<u64> = (0..SAMPLE).map(|_| index()).collect();
        sample.sort_unstable();
        sample
    }
}

impl Measure for Fusion {
    fn measure(&self, of: &[Expr]) -> Result<Arc<dyn RowMap>> {
        let (count, row_len) = (elems(&of[0]), row_len(&of[0].shape()));
        let sample = if count > SAMPLE { self.sample(count) } else { Vec::new() };
        let mut left = sample.as_slice();
        let mut sampled = Vec::with_capacity(count.min(SAMPLE) as usize);
        let (working, mut divergence, mut scores) = (self.working, Divergence::of(self.working), Vec::new());
        scan_all(of, |start, values| {
            scores.resize(values[0].len(), 0.0);
            let rows = values[0].chunks(row_len).zip(values[1].chunks(row_len)).zip(scores.chunks_mut(row_len));
            rows.for_each(|((base, model), scores)| score(&mut divergence, base, model, scores, working));
            if sample.is_empty() {
                return sampled.extend_from_slice(&scores);
            }
            let (here, later) = left.split_at(left.partition_point(|index| *index < start + scores.len() as u64));
            sampled.extend(here.iter().map(|index| scores[(index - start) as usize]));
            left = later;
        })?;
        Ok(Arc::new(Outstanding { threshold: threshold(&mut sampled, working), working }))
    }
}

/// How much the values of a row matter.
fn score(divergence: &mut Divergence, base: &[f32], model: &[f32], scores: &mut [f32], working: Working) {
    let apart = divergence.between(model, base);
    let changes = scores.iter_mut().zip(base).zip(model);
    changes.for_each(|((score, base), x)| *score = working.round(x - base).abs() * apart);
    working.round_all(scores);
}

/// The score from which values are taken.
fn threshold(scores: &mut [f32], working: Working) -> f32 {
    let Some(last) = scores.len().checked_sub(1) else { return 0.0 };
    let mut at = |share: f32| {
        let (_, score, _) = scores.select_nth_unstable_by((share * last as f32) as usize, f32::total_cmp);
        *score
    };
    let [first, median, third] = [0.25, 0.5, 0.75].map(&mut at);
    working.round(median + working.round(1.5 * working.round(third - first)))
}

/// Takes the model's values whose scores are at least the threshold.
#[derive(Debug)]
struct Outstanding {
    threshold: f32,
    working: Working,
}

impl RowMap for Outstanding {
    fn apply(&self, _: Range<usize>, row_len: usize, others: &[Vec<f32>], out: &mut [f32]) {
        let (mut divergence, mut scores) = (Divergence::of(self.working), vec![0.0; row_len]);
        for (base, model) in out.chunks_mut(row_len.max(1)).zip(others[0].chunks(row_len.max(1))) {
            score(&mut divergence, base, model, &mut scores, self.working);
            for ((base, x), score) in base.iter_mut().zip(model).zip(&scores) {
                *base += if *score >= self.threshold { self.working.round(x - *base) } else { 0.0 };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::Stream;

    fn fusion(seed: u64) -> Fusion {
        let draws = Draws { stream: Arc::new(Stream::new(seed, 0)), position: 0 };
        Fusion { draws, working: Working::F32 }
    }

    #[test]
    fn what_stands_out_is_taken() {
        // All changes but one are small, in a row that is apart from the base's.
        let base: Vec<f32> = (0..16).map(|i| i as f32 / 8.0).collect();
        let mut model: Vec<f32> = base.iter().map(|v| v + 0.01 * (v * 7.0).sin()).collect();
        model[5] += 1.0;
        let of = [&base, &model].map(|v| Expr::Values { shape: vec![1, 16], values: Arc::from(v.as_slice()) });
        let mut out = base.clone();
        fusion(0).measure(&of).unwrap().apply(0..1, 16, std::slice::from_ref(&model), &mut out);
        let taken: Vec<usize> = (0..16).filter(|i| out[*i] != base[*i]).collect();
        assert_eq!((taken, out[5]), (vec![5], base[5] + (model[5] - base[5])));
    }

    #[test]
    fn quartiles_are_elements() {
        assert_eq!(threshold(&mut [4.0, 1.0, 3.0, 2.0, 0.0, 9.0], Working::F32), 2.0 + 1.5 * (3.0 - 1.0));
        assert_eq!(threshold(&mut [], Working::F32), 0.0);
    }

    #[test]
    fn samples_are_those_of_torch() {
        // torch.manual_seed(7); torch.randint(n, (1_000_000,)): the smallest and the sum.
        for (count, words, first) in [(3_000_000, SAMPLE, FIRST_OF_NARROW), (1 << 29, 2 * SAMPLE, FIRST_OF_WIDE)] {
            assert_eq!(Fusion::words(count), words);
            let sample = fusion(7).sample(count);
            assert_eq!((sample.len() as u64, sample[0], sample.iter().sum::<u64>()), (SAMPLE, first.0, first.1));
        }
        assert_eq!(Fusion::words(SAMPLE), 0);
    }

    const FIRST_OF_NARROW: (u64, u64) = (5, 1_500_124_416_745);
    const FIRST_OF_WIDE: (u64, u64) = (206, 268_364_578_049_264);
}
