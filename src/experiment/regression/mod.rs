//! Noisy non-linear regression with a frozen, pretrained MLP: the first evidence of the paper, measured again.

mod methods;
mod net;
mod tasks;

use std::collections::BTreeMap;

use rayon::prelude::*;

use self::methods::{Adapted, Method};
use self::net::{Batch, Net};
use self::tasks::{Data, Task};
use super::report::{Report, Row, Sample, Table};
use super::tuning::{Choice, best, choices, gradients, over_seeds};
use super::{Say, Size};
use crate::error::Result;
use crate::linalg::Random;
use crate::train::AdamW;

/// The steps of an adaptation, and the rows of each.
const STEPS: usize = 600;
const ROWS: usize = 64;

/// The steps of pretraining.
const PRETRAINING: usize = 1500;

/// The error, in variances of the function, that counts for a run that diverged, and from which on a run counts as
/// diverged: it does worse than the mean would.
const WORST: f64 = 2.0;

/// Seeds for tuning begin here, far from those of results.
const TUNING: u64 = 1000;

/// Compares methods on all tasks.
///
/// # Errors
/// [`crate::Error::Compute`].
pub fn regression(size: Size, say: Say) -> Result<Report> {
    let mut tables = Vec::new();
    for task in Task::ALL {
        let rows = Method::for_task(task).into_iter().map(|method| row(task, method, size));
        let rows: Vec<Row> = rows.collect::<Result<_>>()?;
        for row in &rows {
            say(&format!("{}: {}: {}", task.name(), row.name, row.samples[0].show()));
        }
        tables.push(table(task, rows));
    }
    let (name, about, chosen) = ("regression".to_owned(), about(size), BTreeMap::new());
    Ok(Report { name, about, seeds: size.seeds, chosen, tables, plots: Vec::new() })
}

fn about(size: Size) -> String {
    format!(
        "A frozen MLP ({} hidden layers of {} values) is pretrained on one function, and adapted on few noisy rows to \
         another: test error over the variance of the function without noise, mean and standard deviation of {} seeds. \
         Every method's learning rate and alpha / r are chosen on {} other seeds, by the error on rows held out there. \
         The last column is the difference to the LoRA, seed by seed; less is better.",
        net::LAYERS,
        net::WIDTH,
        size.seeds,
        size.tuning_seeds
    )
}

fn table(task: Task, rows: Vec<Row>) -> Table {
    let lora = rows[0].samples[0].clone();
    let with_difference = |mut row: Row| {
        let difference = row.samples[0].minus(&lora);
        row.samples.push(difference);
        row
    };
    Table {
        title: task.name().to_owned(),
        of: "method".to_owned(),
        columns: vec!["error / variance".to_owned(), "minus the LoRA's".to_owned()],
        rows: rows.into_iter().map(with_difference).collect(),
    }
}

/// Tunes a method and measures it.
fn row(task: Task, method: Method, size: Size) -> Result<Row> {
    let tuning: Vec<u64> = (0..size.tuning_seeds as u64).map(|seed| TUNING + seed).collect();
    let all = choices(&[1e-3, 3e-3, 1e-2, 3e-2], &[0.5, 2.0, 8.0]);
    // The pretrained nets are the same for all choices.
    let nets: Vec<Seeded> = tuning.par_iter().map(|seed| Seeded::new(task, *seed, size)).collect::<Result<_>>()?;
    let choice =
        best(&all, &tuning, WORST, |choice, seed| nets[(seed - TUNING) as usize].error(task, method, choice, size))?;
    let seeds: Vec<u64> = (0..size.seeds as u64).collect();
    let errors = over_seeds(&seeds, |seed| Seeded::new(task, seed, size)?.error(task, method, choice, size))?;
    let errors = Sample(errors.0.into_iter().map(|error| if error < WORST { error } else { f64::NAN }).collect());
    let values = Adapted::fresh(task, method, choice, 0)?.parameters();
    Ok(Row { name: method.name().to_owned(), values, settings: choice.show(), samples: vec![errors] })
}

/// The data and the pretrained net of one seed.
struct Seeded {
    seed: u64,
    data: Data,
    net: Net,
}

impl Seeded {
    fn new(task: Task, seed: u64, size: Size) -> Result<Self> {
        let data = Data::new(task, seed, net::WIDTH);
        let net = Net::pretrained(task, &data, seed, size.hurried(PRETRAINING))?;
        Ok(Self { seed, data, net })
    }

    /// The test error of an adaptation; NaN for one that diverged.
    fn error(&self, task: Task, method: Method, choice: Choice, size: Size) -> Result<f64> {
        let Self { seed, data, net } = self;
        let adapted = Adapted::fresh(task, method, choice, *seed)?;
        let mut optimizer = AdamW::new(adapted.vars())?;
        let mut random = Random::new(seed ^ 0xda7a);
        let steps = size.hurried(STEPS);
        for step in 0..steps {
            let rows: Vec<usize> = (0..ROWS).map(|_| (random.uniform() * data.train.y.len() as f32) as usize).collect();
            let batch = Batch::new(task, data, &data.train, &rows)?;
            let loss = adapted.with_hook(data, &data.train, &rows, |hook| net.loss(&batch, hook))?;
            let found = gradients(&loss, adapted.vars())?;
            if !found.loss.is_finite() {
                return Ok(f64::NAN);
            }
            let rate = choice.learning_rate * (1.0 - step as f64 / steps as f64);
            optimizer.step(adapted.vars(), &found, 1.0, |_| rate, 0.0)?;
        }
        let rows: Vec<usize> = (0..data.test.y.len()).collect();
        let batch = Batch::new(task, data, &data.test, &rows)?;
        let loss = adapted.with_hook(data, &data.test, &rows, |hook| net.loss(&batch, hook))?;
        debug_assert_eq!(batch.len(), rows.len());
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }
}
