//! Instructions added one after the other: to a bank that grows, and to adapters that are trained on.

use candle_core::Device;
use rayon::prelude::*;

use super::adapted::Adapted;
use super::lab::{Lab, TaskRows};
use super::methods::{Bank, Method};
use super::runs::{TUNING, train, tuned};
use super::{MAIN, Setting};
use crate::bank::{Addition, AtomBank, LoadedBank, check_growth};
use crate::error::Result;
use crate::experiment::plot::{Curve, Plot};
use crate::experiment::report::{Report, Row, Sample, Table};
use crate::experiment::tuning::{Choice, best, choices};
use crate::experiment::{Say, Size};
use crate::model::Sequence;

/// The names that are added, and the steps for each.
const ADDED: usize = 6;
const STEPS: usize = 40;

/// The columns of rank that a bank grows by for each name.
const GROWN_RANK: usize = 1;

/// How names are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// An atom and a column of rank for each.
    Grown,
    /// All values are trained on, on the new rows.
    TrainedOn(Method),
    /// A LoRA of rank 1 for each, and something that knows the row's task.
    OneEach,
}

const WAYS: [Way; 6] = [
    Way::Grown,
    Way::TrainedOn(Method::Bank(Bank::DEFAULT)),
    Way::TrainedOn(Method::Lora(5)),
    Way::TrainedOn(Method::LoraEverywhere(1)),
    Way::TrainedOn(Method::Mixture(5)),
    Way::OneEach,
];

impl Way {
    /// What is trained first.
    fn method(self) -> Method {
        match self {
            Way::Grown => Method::Bank(Bank::DEFAULT),
            Way::TrainedOn(method) => method,
            Way::OneEach => Method::OneEach,
        }
    }

    fn name(self) -> String {
        match self {
            Way::Grown => format!("bank, grown by an atom and {GROWN_RANK} column of rank"),
            Way::TrainedOn(method) => format!("{}, trained on", method.name()),
            Way::OneEach => "one LoRA each".to_owned(),
        }
    }
}

/// What a run found: exact match before any name is added, and after each.
#[derive(Default)]
struct Path {
    before: f64,
    /// On the names of the beginning.
    old: Vec<f64>,
    /// On the name that was just added.
    new: Vec<f64>,
    /// On all names so far.
    all: Vec<f64>,
    /// On the added names, in the end.
    added: f64,
    /// The largest difference of a logit of earlier names, for a bank that grows.
    logits: f64,
    /// The values that were trained for the last name.
    values: usize,
}

/// Adds names to adapters that were trained on others.
///
/// # Errors
/// Errors of the computation; [`crate::Error::Mismatch`] for a bank whose growth changed what it did before.
pub fn growth(lab: &Lab, size: Size, say: Say) -> Result<Report> {
    let (mut rows, mut curves, mut logits) = (Vec::new(), Vec::new(), 0.0);
    for way in WAYS {
        let choice = tuned(lab, way.method(), size)?;
        let rate = tuned_rate(lab, way, choice, size)?;
        let seeds = (0..size.seeds as u64).into_par_iter();
        let paths: Vec<Path> = seeds.map(|seed| path(lab, way, choice, rate, seed, size)).collect::<Result<_>>()?;
        let sample = |of: &dyn Fn(&Path) -> f64| Sample(paths.iter().map(of).collect());
        let row = Row {
            name: way.name(),
            values: paths.first().map_or(0, |path| path.values),
            settings: format!("{}, then lr {rate}", choice.show()),
            samples: vec![
                sample(&|path| path.before),
                sample(&|path| path.old.first().copied().unwrap_or(f64::NAN)),
                sample(&|path| last(&path.old)),
                sample(&|path| path.new.iter().sum::<f64>() / path.new.len() as f64),
                sample(&|path| path.added),
                sample(&|path| last(&path.all)),
            ],
        };
        say(&format!("{}: old {}, new {}", row.name, row.samples[2].show(), row.samples[3].show()));
        let point = |place: usize| {
            let sample = sample(&|path| path.all.get(place).copied().unwrap_or(f64::NAN));
            ((place + 1) as f64, sample.mean(), sample.deviation())
        };
        curves.push(Curve { name: row.name.clone(), points: (0..ADDED).map(point).collect() });
        rows.push(row);
        logits = paths.iter().map(|path| path.logits).fold(logits, f64::max);
    }
    let columns = [
        format!("the first {} before", MAIN.tasks),
        "after one was added".to_owned(),
        format!("after {ADDED}"),
        "the added one, at once".to_owned(),
        format!("the {ADDED} added, in the end"),
        "all, in the end".to_owned(),
    ];
    let table = Table { title: "exact match".to_owned(), of: "adapter".to_owned(), columns: columns.to_vec(), rows };
    let plot = Plot {
        title: format!("names added to {}", MAIN.tasks),
        x: "names added".to_owned(),
        y: "exact match on all names so far".to_owned(),
        curves,
    };
    let (name, about) = ("growth".to_owned(), about(size, logits));
    Ok(Report { name, about, seeds: size.seeds, chosen: lab.chosen().clone(), tables: vec![table], plots: vec![plot] })
}

fn about(size: Size, logits: f64) -> String {
    format!(
        "Adapters are trained on {} named tasks as in `instructions`. Then {ADDED} further names are added one after the \
         other, each from its own {} rows alone, in {STEPS} steps: exact match, mean and standard deviation of {} seeds. \
         \"Trained values\" are those for one further name. The learning rate of additions was chosen on {} other seeds, by \
         the exact match on all names in the end. After each growth, the bank was checked: the weights of all atoms for all \
         earlier names had the same bits, and the largest difference of a logit was {logits:.1e}.",
        MAIN.tasks, MAIN.rows, size.seeds, size.tuning_seeds
    )
}

fn last(values: &[f64]) -> f64 {
    values.last().copied().unwrap_or(f64::NAN)
}

/// The learning rate of additions after which most of all names are right.
fn tuned_rate(lab: &Lab, way: Way, choice: Choice, size: Size) -> Result<f64> {
    let rates: &[f64] = match way {
        Way::Grown | Way::OneEach => &[1e-2, 2e-2, 3e-2],
        Way::TrainedOn(_) => &[1e-3, 3e-3, 1e-2],
    };
    let seeds: Vec<u64> = (0..size.tuning_seeds as u64).map(|seed| TUNING + seed).collect();
    let misses = |rate: Choice, seed: u64| Ok(1.0 - last(&path(lab, way, choice, rate.learning_rate, seed, size)?.all));
    Ok(best(&choices(rates, &[choice.scale]), &seeds, 1.0, misses)?.learning_rate)
}

/// One run: the first names together, then the others one by one.
fn path(lab: &Lab, way: Way, choice: Choice, rate: f64, seed: u64, size: Size) -> Result<Path> {
    let rows = lab.seeded(Setting { tasks: MAIN.tasks + ADDED, ..MAIN }, seed)?;
    let first = rows.first(MAIN.tasks);
    let mut adapted = Adapted::fresh(lab, way.method(), choice, &first, seed)?;
    if !train(&adapted, &first.train, choice, MAIN.steps, size, seed, &mut |_| Ok(()))? {
        return Ok(Path::default());
    }
    let mut path = Path { before: adapted.exact_match(&first.test)?, ..Path::default() };
    let choice = Choice { learning_rate: rate, ..choice };
    // With one LoRA each, those of added names.
    let mut further = Vec::new();
    for task in MAIN.tasks..MAIN.tasks + ADDED {
        let own = rows.train.of(|of| of == task);
        if way == Way::Grown {
            let bank = adapted.bank()?.map(|bank| grown(lab, &bank, &rows, task, seed)).transpose()?;
            if let Some(bank) = bank {
                adapted = Adapted::growing(lab, bank)?;
            }
        }
        if way == Way::OneEach {
            further.push(Adapted::fresh(lab, way.method(), choice, &rows.one(task), seed)?);
        }
        let trained = further.last().unwrap_or(&adapted);
        if !train(trained, &own, choice, STEPS, size, seed ^ task as u64, &mut |_| Ok(()))? {
            return Ok(Path::default());
        }
        path.values = trained.parameters();
        if way == Way::Grown {
            path.logits = path.logits.max(check(lab, &adapted, &rows, task)?);
        }
        // What is right of each name, at this point.
        let of = |name: usize| -> Result<f64> {
            let own = further.get(name.wrapping_sub(MAIN.tasks)).unwrap_or(&adapted);
            own.exact_match(&rows.test.of(|of| of == name))
        };
        let exact: Vec<f64> = (0..=task).map(of).collect::<Result<_>>()?;
        let mean = |exact: &[f64]| exact.iter().sum::<f64>() / exact.len().max(1) as f64;
        path.old.push(mean(&exact[..MAIN.tasks]));
        path.new.push(exact[task]);
        path.all.push(mean(&exact));
        path.added = mean(&exact[MAIN.tasks..]);
    }
    Ok(path)
}

/// `bank` with an atom for a further task, which changes nothing yet.
fn grown(lab: &Lab, bank: &AtomBank, rows: &TaskRows, task: usize, seed: u64) -> Result<AtomBank> {
    let (weights, encoder) = (lab.model.decoder.weights(), &lab.model.encoder);
    let loaded = LoadedBank::frozen(bank, &Device::Cpu)?;
    let others = rows.names[..task].to_vec();
    let size = (GROWN_RANK, seed ^ task as u64);
    let addition = Addition::new(&loaded, weights, encoder, rows.names[task].clone(), others, size)?;
    bank.grown(&addition, lab.model.decoder.config())
}

/// Compares a bank with the one before its growth on a row of each earlier task: the largest difference of a logit.
fn check(lab: &Lab, adapted: &Adapted, rows: &TaskRows, task: usize) -> Result<f64> {
    let Some(after) = adapted.bank()? else { return Ok(0.0) };
    let Some(before) = after.before_growth() else { return Ok(0.0) };
    let of_task = |task: usize| rows.test.of(|of| of == task).sequences.swap_remove(0);
    let sequences: Vec<Sequence> = (0..task).map(of_task).collect();
    let check = check_growth(&lab.model.decoder, &before, &after, &sequences)?;
    Ok(f64::from(check.max_logit_difference))
}
