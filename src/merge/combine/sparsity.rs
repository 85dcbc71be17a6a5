//! Sparsity masks: which values of an update are kept.
//!
//! Reference: mergekit `mergekit/sparsify.py`, huggingface/peft `src/peft/utils/merge_utils.py` (`prune`),
//! @5d602fd. Among values of equal magnitude mergekit's choice comes from an unstable sort whose order depends on
//! the processor; here the first ones are kept. PEFT's choice is reproduced: [`Topk`].

use std::sync::Arc;

use super::ranks::{Probabilities, Ranks};
use super::statistics::{Leading, Order, elems, scan, sum_of};
use super::topk::Topk;
use super::working::Working;
use crate::error::Result;
use crate::linalg::{Mt19937, Stream};
use crate::plan::Expr;
use crate::source::row_len;

/// A rule that chooses values, before it is applied to a tensor.
#[derive(Debug, Clone)]
pub(super) enum Choice {
    /// All of them.
    All,
    /// The largest.
    Magnitude {
        /// The share that is kept.
        density: f64,
    },
    /// The largest; among equal ones those that torch.topk chooses.
    Topk {
        /// The share that is kept.
        density: f64,
    },
    /// Without the smallest and without some of the largest: breadcrumbs.
    Band {
        /// The share that is kept.
        density: f64,
        /// The share of the largest that goes first.
        gamma: f64,
    },
    /// Random ones: DARE.
    Random {
        /// The probability of each.
        density: f64,
        /// The random numbers.
        draws: Draws,
    },
    /// Random ones, more likely the larger they are within their row: DELLA.
    Ranked {
        /// The mean probability.
        density: f64,
        /// The distance from it to the probability of the smallest and of the largest value.
        epsilon: f64,
        /// The number of columns of the matrix that each row is viewed as: ranks are taken within its columns. 1 takes
        /// ranks within the whole row.
        columns: usize,
        /// The random numbers.
        draws: Draws,
    },
}

/// The part of a sequence of random draws that belongs to one tensor.
#[derive(Debug, Clone)]
pub(super) struct Draws {
    pub(super) stream: Arc<Stream>,
    /// The number of draws before the tensor's first.
    pub(super) position: u64,
}

/// How kept values are rescaled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rescale {
    /// Not at all.
    No,
    /// Divided by the share that is kept, so that the mean stays.
    Density,
    /// Multiplied so that the sum of magnitudes stays.
    Magnitudes,
}

/// The chosen values of one tensor: `tensor * mask * factor`.
#[derive(Debug)]
pub(super) struct SparsityMask {
    mask: Mask,
    scale: Scale,
    /// The type to which scaled values are rounded.
    working: Working,
}

#[derive(Debug)]
enum Mask {
    All,
    None,
    Leading(Leading),
    Topk(Topk),
    /// The values that the second chooses and the first doesn't.
    Between(Leading, Leading),
    Random {
        probability: f32,
        draws: Draws,
    },
    Ranked {
        range: Probabilities,
        columns: usize,
        draws: Draws,
    },
}

#[derive(Debug, Clone, Copy)]
enum Scale {
    No,
    Divide(f32),
    Multiply(f32),
}

/// A share of a count, as Python computes it: `int(share * count)`.
fn share(share: f64, count: u64) -> u64 {
    (share * count as f64) as u64
}

impl SparsityMask {
    /// The mask of the update `of`. Ranks are taken within rows: pass a vector as a matrix of one row.
    pub(super) fn of(of: &Expr, choice: &Choice, rescale: Rescale) -> Result<Self> {
        Self::in_type(of, choice, rescale, Working::F32)
    }

    /// The same for an update of values of another type.
    pub(super) fn in_type(of: &Expr, choice: &Choice, rescale: Rescale, working: Working) -> Result<Self> {
        let count = elems(of);
        let all = Self { mask: Mask::All, scale: Scale::No, working };
        let is_random = matches!(choice, Choice::Random { .. } | Choice::Ranked { .. });
        let of_masks = if is_random { working.of_random_masks() } else { working };
        let (mask, density) = match *choice {
            Choice::All => return Ok(all),
            Choice::Magnitude { density }
            | Choice::Topk { density }
            | Choice::Band { density, .. }
            | Choice::Random { density, .. }
            | Choice::Ranked { density, .. }
                if density >= 1.0 =>
            {
                return Ok(all);
            }
            Choice::Magnitude { density } if density <= 0.0 => (Mask::None, density),
            Choice::Magnitude { density } => {
                // A share of less than one value keeps one.
                let kept = share(density, count).max(1).min(count);
                (Mask::Leading(Leading::of(of, Order::Largest, kept)?), density)
            }
            Choice::Topk { density } => (Mask::Topk(Topk::of(of, share(density, count))?), density),
            Choice::Band { density, gamma } => (band(of, density, gamma)?, density),
            Choice::Random { density, ref draws } => {
                (Mask::Random { probability: of_masks.round(density as f32), draws: draws.clone() }, density)
            }
            Choice::Ranked { density, .. } if density <= 0.0 => (Mask::None, density),
            Choice::Ranked { density, epsilon, columns, ref draws } => {
                let least = (density - epsilon) as f32;
                let range = Probabilities { least, epsilon: epsilon as f32, working: of_masks };
                (Mask::Ranked { range, columns, draws: draws.clone() }, density)
            }
        };
        let mut sieve = Self { mask, scale: Scale::No, working };
        sieve.scale = match rescale {
            Rescale::No => Scale::No,
            Rescale::Density => Scale::Divide(density as f32),
            Rescale::Magnitudes => {
                let (mut before, mut after) = (0f64, 0f64);
                let row_len = row_len(&of.shape());
                let mut walk = sieve.walk(0);
                let mut kept = Vec::new();
                scan(of, |_, values| {
                    kept.clear();
                    kept.extend_from_slice(values);
                    before += sum_of(values, |v| v.abs() as f64);
                    walk.apply(row_len, &mut kept);
                    after += sum_of(&kept, |v| v.abs() as f64);
                })?;
                let (before, after) = (of_masks.round(before as f32), of_masks.round(after as f32));
                let is_nothing = before < 1e-7 || after < 1e-7;
                if is_nothing { Scale::No } else { Scale::Multiply(of_masks.round(before / after)) }
            }
        };
        Ok(sieve)
    }

    /// A pass over the values from element `start` on.
    pub(super) fn walk(&self, start: u64) -> Walk<'_> {
        let generator = match &self.mask {
            Mask::Random { draws, .. } | Mask::Ranked { draws, .. } => Some(draws.stream.at(draws.position + start)),
            Mask::All | Mask::None | Mask::Leading(_) | Mask::Topk(_) | Mask::Between(..) => None,
        };
        Walk { sieve: self, at: start, generator, draws: Vec::new(), ranks: Ranks::default() }
    }
}

/// A mask during a pass over a tensor, with the state of its random numbers.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    sieve: &'a SparsityMask,
    at: u64,
    generator: Option<Mt19937>,
    draws: Vec<f32>,
    ranks: Ranks,
}

/// The number of values that random numbers are drawn for at a time, where these need not be whole rows.
const DRAWN: usize = 4096;

impl Walk<'_> {
    /// Applies the mask to the next values, whole rows of `row_len`.
    pub(super) fn apply(&mut self, row_len: usize, values: &mut [f32]) {
        match &self.sieve.mask {
            Mask::All => {}
            Mask::None => values.fill(0.0),
            Mask::Leading(leading) => leading.keep(self.at, values, true),
            Mask::Topk(topk) => topk.keep(self.at, values),
            Mask::Between(below, upto) => {
                upto.keep(self.at, values, true);
                below.keep(self.at, values, false);
            }
            Mask::Random { probability, .. } => {
                for values in values.chunks_mut(DRAWN) {
                    let draws = drawn(&mut self.draws, &mut self.generator, values.len());
                    let kept = values.iter_mut().zip(draws);
                    kept.for_each(|(v, draw)| *v = if draw < probability { *v } else { 0.0 });
                }
            }
            Mask::Ranked { range, columns, .. } => {
                for row in values.chunks_mut(row_len.max(1)) {
                    let draws = drawn(&mut self.draws, &mut self.generator, row.len());
                    self.ranks.thin(row, draws, *columns, *range);
                }
            }
        }
        self.at += values.len() as u64;
        match self.sieve.scale {
            Scale::No => {}
            Scale::Divide(by) => values.iter_mut().for_each(|v| *v /= by),
            Scale::Multiply(by) => {
                values.iter_mut().for_each(|v| *v *= by);
                self.sieve.working.round_all(values);
            }
        }
    }
}

/// The next `count` draws.
fn drawn<'a>(draws: &'a mut Vec<f32>, generator: &mut Option<Mt19937>, count: usize) -> &'a [f32] {
    draws.resize(count, 0.0);
    if let Some(generator) = generator {
        generator.fill(draws);
    }
    draws
}

/// torch.sign: 0 for 0.
pub(super) fn sign(value: f32) -> f32 {
    if value > 0.0 {
        1.0
    } else if value < 0.0 {
        -1.0
    } else {
        0.0
    }
}

/// `magnitude_outliers` of mergekit 0.1.5: drops outliers and keeps the largest of the remaining values, as many as
/// `density` says. If not enough values remain, fewer outliers are dropped.
fn band(of: &Expr, density: f64, gamma: f64) -> Result<Mask> {
    let count = elems(of);
    let (kept, outliers) = (share(density, count), share(gamma, count));
    let bottom = count.saturating_sub(kept).saturating_sub(outliers);
    let below = Leading::of(of, Order::Smallest, bottom)?;
    Ok(Mask::Between(below, Leading::of(of, Order::Smallest, bottom + kept)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sieved(values: &[f32], choice: Choice, rescale: Rescale) -> Vec<f32> {
        let of = Expr::Values { shape: vec![1, values.len()], values: values.into() };
        let mut out = values.to_vec();
        SparsityMask::of(&of, &choice, rescale).unwrap().walk(0).apply(values.len(), &mut out);
        out
    }

    #[test]
    fn the_largest_are_kept_and_make_up_for_the_rest() {
        let values = [1.0, -4.0, 2.0, -3.0];
        assert_eq!(sieved(&values, Choice::Magnitude { density: 0.5 }, Rescale::No), [0.0, -4.0, 0.0, -3.0]);
        assert_eq!(sieved(&values, Choice::Magnitude { density: 0.5 }, Rescale::Density), [0.0, -8.0, 0.0, -6.0]);
        let kept = sieved(&values, Choice::Magnitude { density: 0.25 }, Rescale::Magnitudes);
        assert_eq!(kept, [0.0, -10.0, 0.0, 0.0]);
        assert_eq!(sieved(&values, Choice::Magnitude { density: 1.0 }, Rescale::Density), values);
        assert_eq!(
            sieved(&values, Choice::Magnitude { density: 0.1 }, Rescale::No),
            [0.0, -4.0, 0.0, 0.0],
            "one at least"
        );
        assert_eq!(sieved(&values, Choice::Magnitude { density: 0.0 }, Rescale::Magnitudes), [0.0; 4]);
        assert_eq!(sieved(&[], Choice::Magnitude { density: 0.5 }, Rescale::No), [0.0; 0]);
    }

    #[test]
    fn breadcrumbs_leave_out_both_ends() {
        let values = [1.0, -4.0, 2.0, -3.0];
        let band = |density, gamma| sieved(&values, Choice::Band { density, gamma }, Rescale::No);
        assert_eq!(band(0.5, 0.25), [0.0, 0.0, 2.0, -3.0]);
        assert_eq!(band(0.75, 0.5), [1.0, 0.0, 2.0, -3.0]);
        assert_eq!(band(0.5, 0.1), [0.0, -4.0, 0.0, -3.0], "less than one outlier to leave out");
        assert_eq!(band(0.5, 0.0), [0.0, -4.0, 0.0, -3.0], "no outlier to leave out");
        assert_eq!(band(0.25, 1.0), [1.0, 0.0, 0.0, 0.0], "more outliers than may go");
        assert_eq!(band(0.1, 0.25), [0.0; 4], "less than one value");
    }

    #[test]
    fn chance_is_that_of_torch() {
        let draws = |position| Draws { stream: Arc::new(Stream::new(7, 100)), position };
        // torch.manual_seed(7); torch.bernoulli(torch.full((8,), 0.5))
        let random = |position| sieved(&[1.0; 8], Choice::Random { density: 0.5, draws: draws(position) }, Rescale::No);
        let first = random(0);
        assert_eq!(random(3)[..5], first[3..]);
        // The largest of four is kept with probability 0.9, the smallest with 0.1.
        let ranked = Choice::Ranked { density: 0.5, epsilon: 0.4, columns: 1, draws: draws(0) };
        let kept = sieved(&[1.0, 2.0, 3.0, 4.0], ranked, Rescale::No);
        let mut generator = Stream::new(7, 100).at(0);
        let expected = [0.1f32, 0.36666667, 0.6333333, 0.9].map(|p| generator.uniform() < p);
        assert_eq!([0, 1, 2, 3].map(|i| kept[i] != 0.0), expected);
    }
}
