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

/// The choice with the least mean of `score` over `seeds`. A seed that diverged counts as `worst`. All choices are tried
/// on the first seed, and the best third on the others.
pub(super) fn best(
    choices: &[Choice],
    seeds: &[u64],
    worst: f64,
    score: impl Fn(Choice, u64) -> Result<f64> + Sync,
) -> Result<Choice> {
    let (first, others) = seeds.split_at(seeds.len().min(1));
    let mut left: Vec<(f64, Choice)> = choices.iter().map(|choice| (0.0, *choice)).collect();
    for seeds in [first, others] {
        let runs: Vec<(usize, u64)> =
            (0..left.len()).flat_map(|place| seeds.iter().map(move |seed| (place, *seed))).collect();
        let of_run = |(place, seed): (usize, u64)| {
            let score = score(left[place].1, seed)?;
            Ok((place, if score.is_finite() { score.min(worst) } else { worst }))
        };
        let scores: Vec<(usize, f64)> = runs.into_par_iter().map(of_run).collect::<Result<_>>()?;
        scores.into_iter().for_each(|(place, score)| left[place].0 += score);
        left.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        left.truncate(choices.len().div_ceil(3));
    }
    Ok(left[0].1)
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
        // What is bad on the first seed isn't tried on others.
        let tried = std::sync::Mutex::new(Vec::new());
        let noted = |choice: Choice, seed: u64| {
            tried.lock().unwrap().push(seed);
            Ok(choice.learning_rate)
        };
        best(&all, &[7, 8], 10.0, noted).unwrap();
        let mut tried = tried.into_inner().unwrap();
        tried.sort_unstable();
        assert_eq!(tried, [7, 7, 7, 7, 8, 8]);
    }
}
