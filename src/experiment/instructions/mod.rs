//! Many instructions in one adapter: exact match against steps, rows, tasks and trained values.

mod baking;
mod lab;
mod methods;
mod words;

use candle_core::Var;
use rayon::prelude::*;

pub use self::baking::baking;
pub use self::lab::Lab;
use self::lab::Rows;
use self::methods::{Adapted, Bank, Method, Without};
use super::plot::{Curve, Plot};
use super::report::{Report, Row, Sample, Table};
use super::tuning::{Choice, best, choices};
use super::{Say, Size};
use crate::error::Result;
use crate::linalg::Random;
use crate::train::{AdamW, Gradients, clip_factor, global_norm};

/// Rows of a step.
const BATCH: usize = 32;

/// Test rows of each task.
const TESTS: usize = 40;

/// Seeds for tuning begin here, far from those of results.
const TUNING: u64 = 1000;

/// What is learned in one run.
#[derive(Debug, Clone, Copy)]
struct Setting {
    tasks: usize,
    /// Training rows of each task.
    rows: usize,
    steps: usize,
}

/// The setting of the comparison, which the others vary.
const MAIN: Setting = Setting { tasks: 24, rows: 40, steps: 250 };

/// Steps after which the comparison is tested.
const TESTED: [usize; 6] = [25, 50, 100, 150, 200, 250];

/// Compares methods on named tasks with the base of `lab`.
///
/// # Errors
/// Errors of the computation.
pub fn instructions(lab: &Lab, size: Size, say: Say) -> Result<Report> {
    let all =
        [Method::Bank(Bank::DEFAULT), Method::Lora(5), Method::LoraEverywhere(1), Method::Mixture(5), Method::OneEach];
    let mut chosen = Vec::new();
    for method in all {
        let choice = tuned(lab, method, MAIN, size)?;
        say(&format!("{}: {}", method.name(), choice.show()));
        chosen.push((method, choice));
    }
    let (main, curves) = comparison(lab, &chosen, size, say)?;
    let mut tables = vec![main];
    let with_tasks = [6, 12, 48].map(|tasks| (format!("{tasks} tasks"), Setting { tasks, ..MAIN }));
    let with_rows = [10, 20, 80].map(|rows| (format!("{rows} rows"), Setting { rows, ..MAIN }));
    tables.push(swept(lab, "tasks in one adapter", &chosen, &with_tasks, size, say)?);
    tables.push(swept(lab, "rows of each task", &chosen, &with_rows, size, say)?);
    tables.push(sizes(lab, &chosen, size, say)?);
    tables.push(ablations(lab, chosen[0].1, size, say)?);
    let plot = Plot {
        title: format!("{} tasks, {} rows each", MAIN.tasks, MAIN.rows),
        x: "steps".to_owned(),
        y: "exact match".to_owned(),
        curves,
    };
    let (name, about) = ("instructions".to_owned(), about(size));
    Ok(Report { name, about, seeds: size.seeds, tables, plots: vec![plot] })
}

fn about(size: Size) -> String {
    format!(
        "The demo's base is adapted to {} tasks, each with a name of two words that means nothing to it and {} rows, for {} \
         steps of {BATCH} rows. Measured is exact match on {TESTS} words a task that no training has seen: mean and standard \
         deviation of {} seeds. Learning rate and alpha / r of each method were chosen on {} other seeds.",
        MAIN.tasks, MAIN.rows, MAIN.steps, size.seeds, size.tuning_seeds
    )
}

/// The learning rate and scale with which a method misses least.
fn tuned(lab: &Lab, method: Method, setting: Setting, size: Size) -> Result<Choice> {
    let all = match method {
        Method::Bank(_) => choices(&[3e-3, 1e-2, 2e-2], &[1.0, 2.0, 4.0]),
        _ => choices(&[3e-3, 1e-2, 2e-2], &[2.0, 8.0, 16.0]),
    };
    let seeds: Vec<u64> = (0..size.tuning_seeds as u64).map(|seed| TUNING + seed).collect();
    let misses = |choice, seed| Ok(1.0 - run(lab, method, choice, setting, seed, size, &[setting.steps])?.last());
    best(&all, &seeds, 1.0, misses)
}

/// The results of one run: exact match after each tested step, and in the end with other words for the instructions.
struct Tested {
    exact: Vec<f64>,
    reworded: f64,
}

impl Tested {
    fn last(&self) -> f64 {
        self.exact.last().copied().unwrap_or(f64::NAN)
    }
}

fn run(
    lab: &Lab,
    method: Method,
    choice: Choice,
    setting: Setting,
    seed: u64,
    size: Size,
    tested: &[usize],
) -> Result<Tested> {
    let (rows, mut random) = lab.seeded(setting, seed)?;
    let adapted = Adapted::fresh(lab, method, choice, &rows, seed)?;
    let mut exact = Vec::new();
    let converged = train(&adapted, &rows.train, choice, setting, size, &mut random, &mut |step| {
        if tested.iter().any(|at| (at / size.hurry).max(1) == step) {
            exact.push(adapted.exact_match(&rows.test)?);
        }
        Ok(())
    })?;
    if !converged {
        return Ok(Tested { exact: vec![f64::NAN; tested.len()], reworded: f64::NAN });
    }
    Ok(Tested { exact, reworded: adapted.exact_match(&rows.reworded)? })
}

/// Trains an adapter; `after` is called with the number of each step that was taken. Returns whether all losses were
/// finite.
fn train(
    adapted: &Adapted,
    rows: &Rows,
    choice: Choice,
    setting: Setting,
    size: Size,
    random: &mut Random,
    after: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<bool> {
    let mut optimizer = AdamW::new(&adapted.vars)?;
    let steps = (setting.steps / size.hurry).max(1);
    for step in 0..steps {
        let picked: Vec<usize> =
            (0..BATCH).map(|_| (random.uniform() * rows.sequences.len() as f32) as usize).collect();
        let loss = adapted.loss(rows, &picked)?;
        let store = loss.backward()?;
        let of_var = |(name, var): (&String, &Var)| Some((name.clone(), store.get(var.as_tensor())?.clone()));
        let found = Gradients {
            loss: f64::from(loss.to_scalar::<f32>()?),
            by_name: adapted.vars.iter().filter_map(of_var).collect(),
        };
        if !found.loss.is_finite() {
            return Ok(false);
        }
        let warm = ((step + 1) as f64 / 10.0).min(1.0);
        let fall = 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos());
        let factor = clip_factor(global_norm(&found)?, 1.0);
        let rate = choice.learning_rate * warm * fall;
        optimizer.step(&adapted.vars, &found, factor, |_| rate, 0.0)?;
        after(step + 1)?;
    }
    Ok(true)
}

/// All seeds of one method.
fn seeded(
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

fn values(lab: &Lab, method: Method, choice: Choice, setting: Setting) -> Result<usize> {
    let (rows, _) = lab.seeded(Setting { rows: 1, ..setting }, 0)?;
    Ok(Adapted::fresh(lab, method, choice, &rows, 0)?.parameters())
}

fn comparison(lab: &Lab, chosen: &[(Method, Choice)], size: Size, say: Say) -> Result<(Table, Vec<Curve>)> {
    let (mut rows, mut curves) = (Vec::new(), Vec::new());
    for (method, choice) in chosen {
        let all = seeded(lab, *method, *choice, MAIN, size, &TESTED)?;
        let at =
            |place: usize| Sample(all.iter().map(|run| run.exact.get(place).copied().unwrap_or(f64::NAN)).collect());
        let last = at(TESTED.len() - 1);
        say(&format!("{}: {}", method.name(), last.show()));
        let point = |(place, steps): (usize, &usize)| (*steps as f64, at(place).mean(), at(place).deviation());
        curves.push(Curve { name: method.name(), points: TESTED.iter().enumerate().map(point).collect() });
        let reworded = Sample(all.iter().map(|run| run.reworded).collect());
        rows.push(Row {
            name: method.name(),
            values: values(lab, *method, *choice, MAIN)?,
            settings: choice.show(),
            samples: vec![at(2), last, reworded],
        });
    }
    let columns = ["after 100 steps", "after 250 steps", "with other words for the instructions"];
    let table = Table {
        title: format!("{} tasks, {} rows each", MAIN.tasks, MAIN.rows),
        of: "method".to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        rows,
    };
    Ok((table, curves))
}

/// The comparison with another number of tasks or rows.
fn swept(
    lab: &Lab,
    title: &str,
    chosen: &[(Method, Choice)],
    settings: &[(String, Setting)],
    size: Size,
    say: Say,
) -> Result<Table> {
    let mut rows = Vec::new();
    for (method, choice) in chosen {
        let mut samples = Vec::new();
        for (name, setting) in settings {
            let all = seeded(lab, *method, *choice, *setting, size, &[setting.steps])?;
            let sample = Sample(all.iter().map(Tested::last).collect());
            say(&format!("{}, {name}: {}", method.name(), sample.show()));
            samples.push(sample);
        }
        rows.push(Row {
            name: method.name(),
            values: values(lab, *method, *choice, settings[0].1)?,
            settings: choice.show(),
            samples,
        });
    }
    let columns = settings.iter().map(|(name, _)| name.clone()).collect();
    Ok(Table { title: title.to_owned(), of: "method".to_owned(), columns, rows })
}

/// Banks and LoRAs of other sizes.
fn sizes(lab: &Lab, chosen: &[(Method, Choice)], size: Size, say: Say) -> Result<Table> {
    let (bank, lora, everywhere) = (chosen[0].1, chosen[1].1, chosen[2].1);
    let all = [
        (Method::Bank(Bank { r: 2, ..Bank::DEFAULT }), bank),
        (Method::Bank(Bank { r: 8, ..Bank::DEFAULT }), bank),
        (Method::Lora(3), lora),
        (Method::Lora(11), lora),
        (Method::LoraEverywhere(2), everywhere),
    ];
    measured(lab, "trained values", &all, size, say)
}

/// The bank without one of its parts.
fn ablations(lab: &Lab, choice: Choice, size: Size, say: Say) -> Result<Table> {
    let without = |without| Method::Bank(Bank { without: Some(without), ..Bank::DEFAULT });
    let top = |top_k| Method::Bank(Bank { top_k, ..Bank::DEFAULT });
    let all = [
        without(Without::Start),
        without(Without::OrthogonalAtoms),
        without(Without::Centre),
        without(Without::Prior),
        without(Without::Summary),
        without(Without::State),
        top(1),
        top(2),
        top(4),
    ];
    measured(lab, "what decides", &all.map(|method| (method, choice)), size, say)
}

fn measured(lab: &Lab, title: &str, all: &[(Method, Choice)], size: Size, say: Say) -> Result<Table> {
    let row = |(method, choice): &(Method, Choice)| {
        let all = seeded(lab, *method, *choice, MAIN, size, &[100, 250])?;
        let at =
            |place: usize| Sample(all.iter().map(|run| run.exact.get(place).copied().unwrap_or(f64::NAN)).collect());
        say(&format!("{}: {}", method.name(), at(1).show()));
        let values = values(lab, *method, *choice, MAIN)?;
        Ok(Row { name: method.name(), values, settings: choice.show(), samples: vec![at(0), at(1)] })
    };
    let columns = ["after 100 steps", "after 250 steps"].map(str::to_owned).to_vec();
    let rows = all.iter().map(row).collect::<Result<_>>()?;
    Ok(Table { title: title.to_owned(), of: "method".to_owned(), columns, rows })
}
