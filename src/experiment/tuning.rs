//! Training methods alike, and choosing their settings before they are compared.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::report::Sample;
use crate::error::Result;
use crate::train::Gradients;

/// What is chosen for a method.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The peak of the learning rate.
    pub learning_rate: f64,
    /// alpha over the rank: the factor of the update.
    pub scale: f64,
}

impl Choice {
    pub(super) fn show(&self) -> String {
        format!("lr {}, alpha / r {}", self.learning_rate, self.scale)
    }
}

/// All pairs of learning rates and scales.
pub(super) fn choices(learning_rates: &[f64], scales: &[f64]) -> Vec<Choice> {
    let with_rate = |rate: &f64| {
        let learning_rate = *rate;
        scales.iter().map(move |scale| Choice { learning_rate, scale: *scale }).collect::<Vec<_>>()
    };
    learning_rates.iter().flat_map(with_rate).collect()
}

/// How often the search goes past an edge of what was given.
const MOST_BEYOND: usize = 6;

/// The choice with the least mean of `score` over `seeds`. A seed that diverged counts as `worst`. All choices are tried on
/// the first seed, and the best third on the others. While the best one lies at an edge of the learning rates or scales, the
/// next value of their geometric progression is tried on all seeds, and taken if it is better.
pub(super) fn best(
    choices: &[Choice],
    seeds: &[u64],
    worst: f64,
    score: impl Fn(Choice, u64) -> Result<f64> + Sync,
) -> Result<Choice> {
    let (first, others) = seeds.split_at(seeds.len().min(1));
    let sums = |choices: &[Choice], seeds: &[u64]| -> Result<Vec<f64>> {
        let runs: Vec<(usize, u64)> =
            (0..choices.len()).flat_map(|place| seeds.iter().map(move |seed| (place, *seed))).collect();
        let of_run = |(place, seed): (usize, u64)| {
            let score = score(choices[place], seed)?;
            Ok((place, if score.is_finite() { score.min(worst) } else { worst }))
        };
        let scores: Vec<(usize, f64)> = runs.into_par_iter().map(of_run).collect::<Result<_>>()?;
        let mut sums = vec![0.0; choices.len()];
        scores.into_iter().for_each(|(place, score)| sums[place] += score);
        Ok(sums)
    };
    let mut left: Vec<(f64, Choice)> = sums(choices, first)?.into_iter().zip(choices.iter().copied()).collect();
    left.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    left.truncate(choices.len().div_ceil(3));
    let tried: Vec<Choice> = left.iter().map(|(_, choice)| *choice).collect();
    left.iter_mut().zip(sums(&tried, others)?).for_each(|((sum, _), of_others)| *sum += of_others);
    left.sort_by(|(a, _), (b, _)| a.total_cmp(b));

    let (mut least, mut best) = left[0];
    let mut grid = Grid::of(choices);
    for _ in 0..MOST_BEYOND {
        let beyond = grid.beyond(best);
        let found =
            sums(&beyond, seeds)?.into_iter().zip(beyond.iter().copied()).min_by(|(a, _), (b, _)| a.total_cmp(b));
        let Some((sum, choice)) = found.filter(|(sum, _)| *sum < least) else { break };
        (least, best) = (sum, choice);
        grid.add(choice);
    }
    Ok(best)
}

/// The learning rates and the scales that were tried, each from the least to the largest.
struct Grid {
    learning_rates: Vec<f64>,
    scales: Vec<f64>,
}

impl Grid {
    fn of(choices: &[Choice]) -> Self {
        let mut grid = Self { learning_rates: Vec::new(), scales: Vec::new() };
        choices.iter().for_each(|choice| grid.add(*choice));
        grid
    }

    fn add(&mut self, choice: Choice) {
        for (values, value) in [(&mut self.learning_rates, choice.learning_rate), (&mut self.scales, choice.scale)] {
            if !values.contains(&value) {
                values.push(value);
                values.sort_by(f64::total_cmp);
            }
        }
    }

    /// The choices next to `choice` that lie outside: one step further where it is at an edge.
    fn beyond(&self, choice: Choice) -> Vec<Choice> {
        let rates = next(&self.learning_rates, choice.learning_rate).into_iter();
        let rates = rates.map(|learning_rate| Choice { learning_rate, ..choice });
        let scales = next(&self.scales, choice.scale).into_iter().map(|scale| Choice { scale, ..choice });
        rates.chain(scales).collect()
    }
}

/// The next value of the geometric progression `values` behind its end `value`; none for a value inside, and where there is
/// no progression. The ratio of the last two may be one of rounded numbers, such as 3 and 10.
fn next(values: &[f64], value: f64) -> Option<f64> {
    let neighbour = match values {
        [first, second, ..] if *first == value => *second,
        [.., second, last] if *last == value => *second,
        _ => return None,
    };
    // Rounded to three digits, so that it can be read.
    format!("{:.2e}", value * value / neighbour).parse().ok()
}

/// The results of all seeds.
pub(super) fn over_seeds(seeds: &[u64], run: impl Fn(u64) -> Result<f64> + Sync) -> Result<Sample> {
    Ok(Sample(seeds.par_iter().map(|seed| run(*seed)).collect::<Result<_>>()?))
}

/// The gradients of a scalar for all variables that it depends on.
///
/// # Errors
/// [`crate::Error::Compute`].
pub(super) fn gradients(loss: &Tensor, vars: &BTreeMap<String, Var>) -> Result<Gradients> {
    let store = loss.backward()?;
    let of_var = |(name, var): (&String, &Var)| Some((name.clone(), store.get(var.as_tensor())?.clone()));
    Ok(Gradients { loss: f64::from(loss.to_scalar::<f32>()?), by_name: vars.iter().filter_map(of_var).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_with_the_least_mean_is_taken_and_divergence_counts_as_bad() {
        let all = choices(&[0.1, 0.2], &[1.0, 2.0]);
        assert_eq!(all.len(), 4);
        let score = |choice: Choice, seed: u64| {
            let mean = (choice.learning_rate - 0.2).abs() + (choice.scale - 2.0).abs();
            // The best pair diverges for one seed.
            Ok(if mean == 0.0 && seed == 1 { f64::NAN } else { mean })
        };
        assert_eq!(best(&all, &[0, 1], 10.0, score).unwrap(), Choice { learning_rate: 0.1, scale: 2.0 });
        assert_eq!(best(&all, &[0], 10.0, score).unwrap(), Choice { learning_rate: 0.2, scale: 2.0 });
        // What is bad on the first seed isn't tried on others; past the edge, all seeds are.
        let tried = std::sync::Mutex::new(Vec::new());
        let noted = |choice: Choice, seed: u64| {
            tried.lock().unwrap().push(seed);
            Ok((choice.learning_rate - 0.1).abs() + (choice.scale - 1.0).abs())
        };
        best(&all, &[7, 8], 10.0, noted).unwrap();
        let mut tried = tried.into_inner().unwrap();
        tried.sort_unstable();
        assert_eq!(tried, [7, 7, 7, 7, 7, 7, 8, 8, 8, 8]);
    }

    #[test]
    fn the_search_goes_on_past_the_edge_while_that_is_better() {
        let all = choices(&[5e-3, 1e-2, 2e-2], &[4.0, 8.0, 16.0]);
        // The best place is outside, beyond both edges.
        let score = |rate: f64, scale: f64| {
            move |choice: Choice, _: u64| {
                Ok((choice.learning_rate / rate).ln().abs() + (choice.scale / scale).ln().abs())
            }
        };
        let found = |rate, scale| best(&all, &[0, 1], 1e9, score(rate, scale)).unwrap();
        assert_eq!(found(0.08, 2.0), Choice { learning_rate: 0.08, scale: 2.0 });
        assert_eq!(found(2.5e-3, 32.0), Choice { learning_rate: 2.5e-3, scale: 32.0 });
        // What is best inside stays, and the search ends somewhere.
        assert_eq!(found(1e-2, 8.0), Choice { learning_rate: 1e-2, scale: 8.0 });
        assert_eq!(found(1e9, 8.0), Choice { learning_rate: 2e-2 * 64.0, scale: 8.0 });
        // One value is no progression.
        let alone = choices(&[1e-3, 3e-3, 1e-2], &[2.0]);
        let found = best(&alone, &[0], 1e9, score(0.033, 64.0)).unwrap();
        assert_eq!(found, Choice { learning_rate: 0.0333, scale: 2.0 });
    }
}
