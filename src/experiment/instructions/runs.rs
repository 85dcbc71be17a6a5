//! Runs: an adapter is trained on the rows of a seed, and tested.

use rayon::prelude::*;

use super::adapted::Adapted;
use super::lab::{Lab, Rows};
use super::methods::Method;
use super::{BATCH, MAIN, Setting};
use crate::error::Result;
use crate::experiment::Size;
use crate::experiment::tuning::{Choice, best, choices};
use crate::linalg::Random;
use crate::train::{AdamW, clip_factor, global_norm};

/// Seeds for tuning begin here, far from those of results.
pub(super) const TUNING: u64 = 1000;

/// Steps over which the learning rate rises.
const WARM_UP: f64 = 10.0;

/// The learning rate and scale with which a method misses least in the main setting, or those that are known.
pub(super) fn tuned(lab: &Lab, method: Method, size: Size) -> Result<Choice> {
    let known = lab.chosen().get(&method.name()).copied();
    if let Some(choice) = known {
        return Ok(choice);
    }
    let all = match method {
        Method::Bank(_) => choices(&[5e-3, 1e-2, 2e-2], &[1.0, 2.0, 4.0]),
        _ => choices(&[5e-3, 1e-2, 2e-2], &[4.0, 8.0, 16.0]),
    };
    let seeds: Vec<u64> = (0..size.tuning_seeds as u64).map(|seed| TUNING + seed).collect();
    let misses = |choice, seed| Ok(1.0 - run(lab, method, choice, MAIN, seed, size, &[MAIN.steps])?.last());
    let choice = best(&all, &seeds, 1.0, misses)?;
    lab.chosen().insert(method.name(), choice);
    Ok(choice)
}

/// The results of one run: exact match after each tested step, and in the end with other words for the instructions.
pub(super) struct Tested {
    pub(super) exact: Vec<f64>,
    pub(super) reworded: f64,
}

impl Tested {
    pub(super) fn last(&self) -> f64 {
        self.exact.last().copied().unwrap_or(f64::NAN)
    }
}

pub(super) fn run(
    lab: &Lab,
    method: Method,
    choice: Choice,
    setting: Setting,
    seed: u64,
    size: Size,
    tested: &[usize],
) -> Result<Tested> {
    let rows = lab.seeded(setting, seed)?;
    let adapted = Adapted::fresh(lab, method, choice, &rows, seed)?;
    let mut exact = Vec::new();
    let converged = train(&adapted, &rows.train, choice, setting.steps, size, seed, &mut |step| {
        let count = tested.iter().filter(|at| size.hurried(**at) == step).count();
        if count > 0 {
            // In a hurry, several of them fall on one step.
            exact.extend(vec![adapted.exact_match(&rows.test)?; count]);
        }
        Ok(())
    })?;
    if !converged {
        return Ok(Tested { exact: vec![f64::NAN; tested.len()], reworded: f64::NAN });
    }
    let reworded = if tested.len() > 1 { adapted.exact_match(&rows.reworded)? } else { f64::NAN };
    Ok(Tested { exact, reworded })
}

/// Trains an adapter for `steps`; `after` is called with the number of each step that was taken. Returns whether all
/// losses were finite.
pub(super) fn train(
    adapted: &Adapted,
    rows: &Rows,
    choice: Choice,
    steps: usize,
    size: Size,
    seed: u64,
    after: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<bool> {
    let mut optimizer = AdamW::new(&adapted.vars)?;
    let mut random = Random::new(seed ^ 0x0de5);
    let steps = size.hurried(steps);
    for step in 0..steps {
        let picked: Vec<usize> = (0..BATCH).map(|_| random.below(rows.sequences.len())).collect();
        let found = adapted.gradients(rows, &picked)?;
        if !found.loss.is_finite() {
            return Ok(false);
        }
        let warm = ((step + 1) as f64 / WARM_UP).min(1.0);
        let fall = 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos());
        let factor = clip_factor(global_norm(&found)?, 1.0);
        let rate = choice.learning_rate * warm * fall;
        optimizer.step(&adapted.vars, &found, factor, |_| rate, 0.0)?;
        after(step + 1)?;
    }
    Ok(true)
}

/// All seeds of one method.
pub(super) fn seeded(
    lab: &Lab,
    method: Method,
    choice: Choice,
    setting: Setting,
    size: Size,
    tested: &[usize],
) -> Result<Vec<Tested>> {
    let seeds = (0..size.seeds as u64).into_par_iter();
    seeds.map(|seed| run(lab, method, choice, setting, seed, size, tested)).collect()
}

/// The number of values that a method trains.
pub(super) fn values(lab: &Lab, method: Method, choice: Choice, setting: Setting) -> Result<usize> {
    let rows = lab.seeded(Setting { rows: 1, ..setting }, 0)?;
    Ok(Adapted::fresh(lab, method, choice, &rows, 0)?.parameters())
}
