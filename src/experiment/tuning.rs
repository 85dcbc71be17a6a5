//! Choosing a method's settings before it is compared.

use rayon::prelude::*;

use super::report::Sample;
use crate::error::Result;

/// What is chosen for a method.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Choice {
    pub(super) learning_rate: f64,
    /// alpha over the rank: the factor of the update.
    pub(super) scale: f64,
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

/// The choice with the least mean of `score` over `seeds`. A seed that diverged counts as `worst`.
pub(super) fn best(
    choices: &[Choice],
    seeds: &[u64],
    worst: f64,
    score: impl Fn(Choice, u64) -> Result<f64> + Sync,
) -> Result<Choice> {
    let runs: Vec<(usize, u64)> =
        (0..choices.len()).flat_map(|place| seeds.iter().map(move |seed| (place, *seed))).collect();
    let scores: Vec<(usize, f64)> = runs
        .into_par_iter()
        .map(|(place, seed)| {
            let score = score(choices[place], seed)?;
            Ok((place, if score.is_finite() { score.min(worst) } else { worst }))
        })
        .collect::<Result<_>>()?;
    let total = |place: usize| scores.iter().filter(|(of, _)| *of == place).map(|(_, score)| score).sum::<f64>();
    let place = (0..choices.len()).min_by(|a, b| total(*a).total_cmp(&total(*b))).unwrap_or_default();
    Ok(choices[place])
}

/// The results of all seeds.
pub(super) fn over_seeds(seeds: &[u64], run: impl Fn(u64) -> Result<f64> + Sync) -> Result<Sample> {
    Ok(Sample(seeds.par_iter().map(|seed| run(*seed)).collect::<Result<_>>()?))
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
    }
}
