//! What baking costs: accuracy of the routed model and of weights that were baked for each instruction.

use candle_core::Device;
use rayon::prelude::*;

use super::MAIN;
use super::adapted::Adapted;
use super::lab::{Lab, TEST_BATCH, TaskRows};
use super::methods::{Bank, Method};
use super::runs::{train, tuned, values};
use crate::bank::{AtomBank, LoadedBank, RoutedBy, Routing, mixed, route_sequences};
use crate::error::Result;
use crate::experiment::report::{Report, Row, Sample, Table};
use crate::experiment::tuning::Choice;
use crate::experiment::{Say, Size};
use crate::model::{LoadedAdapter, LoraHook, Sequence};

/// The prompts whose mean routing is baked.
const PROMPTS: [usize; 2] = [1, 8];

/// Compares routed banks with what is baked of them.
///
/// # Errors
/// Errors of the computation.
pub fn baking(lab: &Lab, size: Size, say: Say) -> Result<Report> {
    let mut rows = Vec::new();
    for routing in [Routing::Prompt, Routing::Token] {
        let method = Method::Bank(Bank { routing, ..Bank::DEFAULT });
        let choice = tuned(lab, method, size)?;
        let seeds = (0..size.seeds as u64).into_par_iter();
        let all: Vec<Vec<f64>> = seeds.map(|seed| run(lab, method, choice, seed, size)).collect::<Result<_>>()?;
        let sample = |column: usize| Sample(all.iter().map(|run| run[column]).collect());
        let samples: Vec<Sample> = (0..PROMPTS.len() + 2).map(sample).collect();
        say(&format!("{}: {}", method.name(), samples[0].show()));
        let values = values(lab, method, choice, MAIN)?;
        rows.push(Row { name: method.name(), values, settings: choice.show(), samples });
    }
    let of_prompts = PROMPTS.map(|count| format!("baked for {count} prompt{}", if count == 1 { "" } else { "s" }));
    let columns =
        ["routed".to_owned()].into_iter().chain(of_prompts).chain(["baked by the prior".to_owned()]).collect();
    let table = Table { title: "exact match".to_owned(), of: "bank".to_owned(), columns, rows };
    Ok(Report {
        name: "baking".to_owned(),
        about: format!(
            "A bank is trained on {} named tasks, and baked for each of them: the mean of the routings of some training \
             prompts is fixed, or that of the prior alone. Measured is exact match on words that no training has seen: mean \
             and standard deviation of {} seeds.",
            MAIN.tasks, size.seeds
        ),
        seeds: size.seeds,
        chosen: lab.chosen().clone(),
        tables: vec![table],
        plots: Vec::new(),
    })
}

/// Exact match of the routed bank, and baked for each of [`PROMPTS`] and by the prior.
fn run(lab: &Lab, method: Method, choice: Choice, seed: u64, size: Size) -> Result<Vec<f64>> {
    let rows = lab.seeded(MAIN, seed)?;
    let adapted = Adapted::fresh(lab, method, choice, &rows, seed)?;
    let columns = PROMPTS.len() + 2;
    let converged = train(&adapted, &rows.train, choice, MAIN.steps, size, seed, &mut |_| Ok(()))?;
    let Some(bank) = adapted.bank()?.filter(|_| converged) else { return Ok(vec![f64::NAN; columns]) };
    let mut all = vec![adapted.exact_match(&rows.test)?];
    for count in PROMPTS {
        all.push(baked(lab, &bank, &rows, RoutedBy::Model, count)?);
    }
    all.push(baked(lab, &bank, &rows, RoutedBy::Prior, 1)?);
    Ok(all)
}

/// Exact match over all tasks, each baked with the mean routing of `count` of its training prompts.
fn baked(lab: &Lab, bank: &AtomBank, rows: &TaskRows, by: RoutedBy, count: usize) -> Result<f64> {
    let loaded = LoadedBank::frozen(bank, &Device::Cpu)?;
    let mut right = 0;
    for task in 0..rows.instructions.len() {
        let prompt = |row: Sequence| Sequence { ids: row.ids[..row.routed].to_vec(), targets: Vec::new(), ..row };
        let prompts: Vec<Sequence> =
            rows.train.of(|of| of == task).sequences.into_iter().take(count).map(prompt).collect();
        let (routings, _) = route_sequences(&lab.model.decoder, &loaded, &prompts, by)?;
        let lora = bank.static_lora(&mixed(&routings, &vec![1.0 / routings.len() as f64; routings.len()]));
        let lora = LoadedAdapter::frozen(&lora.tensors, lora.config.scale(), &Device::Cpu)?;
        for sequences in rows.test.of(|of| of == task).sequences.chunks(TEST_BATCH) {
            right += lab.right(sequences, &mut LoraHook(&lora))?;
        }
    }
    Ok(right as f64 / rows.test.sequences.len().max(1) as f64)
}
