//! What baking costs: accuracy of the routed model and of weights that were baked for each instruction.

use candle_core::Device;
use rayon::prelude::*;

use super::lab::{Lab, Rows, TEST_BATCH, TaskRows};
use super::methods::{Adapted, Bank, Method};
use super::{MAIN, train, tuned};
use crate::bank::{AtomBank, LoadedBank, Routing};
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
        let choice = tuned(lab, method, MAIN, size)?;
        let seeds = (0..size.seeds as u64).into_par_iter();
        let all: Vec<Vec<f64>> = seeds.map(|seed| run(lab, method, choice, seed, size)).collect::<Result<_>>()?;
        let sample = |column: usize| Sample(all.iter().map(|run| run[column]).collect());
        let samples: Vec<Sample> = (0..PROMPTS.len() + 2).map(sample).collect();
        say(&format!("{}: {}", method.name(), samples[0].show()));
        let values = super::values(lab, method, choice, MAIN)?;
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
        tables: vec![table],
        plots: Vec::new(),
    })
}

/// Exact match of the routed bank, and baked for each of [`PROMPTS`] and by the prior.
fn run(lab: &Lab, method: Method, choice: Choice, seed: u64, size: Size) -> Result<Vec<f64>> {
    let (rows, mut random) = lab.seeded(MAIN, seed)?;
    let adapted = Adapted::fresh(lab, method, choice, &rows, seed)?;
    let columns = PROMPTS.len() + 2;
    let converged = train(&adapted, &rows.train, choice, MAIN, size, &mut random, &mut |_| Ok(()))?;
    let Some(bank) = adapted.bank()?.filter(|_| converged) else { return Ok(vec![f64::NAN; columns]) };
    let mut all = vec![adapted.exact_match(&rows.test)?];
    for count in PROMPTS {
        all.push(baked(lab, &bank, &rows, |loaded, routed| {
            of_prompts(lab, loaded, &routed[..count.min(routed.len())])
        })?);
    }
    all.push(baked(lab, &bank, &rows, |loaded, routed| of_prior(lab, loaded, &routed[..1]))?);
    Ok(all)
}

/// Exact match over all tasks, each baked with the weights of atoms that `alphas` makes of its training prompts.
fn baked(
    lab: &Lab,
    bank: &AtomBank,
    rows: &TaskRows,
    alphas: impl Fn(&LoadedBank, &[Sequence]) -> Result<Vec<Vec<f32>>>,
) -> Result<f64> {
    let loaded = LoadedBank::frozen(bank, &Device::Cpu)?;
    let of_task = |rows: &Rows, task: usize| -> Vec<Sequence> {
        let numbered = rows.sequences.iter().zip(&rows.tasks).filter(|(_, of)| **of == task);
        numbered.map(|(sequence, _)| sequence.clone()).collect()
    };
    let mut right = 0;
    for task in 0..rows.instructions.len() {
        let prompts: Vec<Sequence> = of_task(&rows.train, task)
            .into_iter()
            .map(|row| Sequence { ids: row.ids[..row.routed].to_vec(), targets: Vec::new(), ..row })
            .collect();
        let lora = bank.static_lora(&alphas(&loaded, &prompts)?);
        let lora = LoadedAdapter::frozen(&lora.tensors, lora.config.scale(), &Device::Cpu)?;
        for sequences in of_task(&rows.test, task).chunks(TEST_BATCH) {
            right += lab.right(sequences, &mut LoraHook(&lora))?;
        }
    }
    Ok(right as f64 / rows.test.sequences.len().max(1) as f64)
}

/// The mean weights of atoms over prompts, by block: over their tokens, where each has its own.
fn of_prompts(lab: &Lab, loaded: &LoadedBank, prompts: &[Sequence]) -> Result<Vec<Vec<f32>>> {
    let decoder = &lab.model.decoder;
    let mut sums: Vec<Vec<f32>> = Vec::new();
    for prompt in prompts {
        let batch = crate::model::Batch::new(std::slice::from_ref(prompt));
        let mut hook = loaded.hook(decoder.weights(), std::slice::from_ref(prompt))?;
        decoder.hidden(&batch, None, &mut hook)?;
        for (block, alphas) in hook.trace()?.alphas.iter().enumerate() {
            let atoms = alphas.shape[1];
            if sums.len() == block {
                sums.push(vec![0.0; atoms]);
            }
            let factor = 1.0 / (alphas.shape[0] * prompts.len()) as f32;
            for decision in alphas.values.chunks_exact(atoms) {
                sums[block].iter_mut().zip(decision).for_each(|(sum, alpha)| *sum += factor * alpha);
            }
        }
    }
    Ok(sums)
}

/// The weights of atoms by the prior alone, the same for all blocks.
fn of_prior(lab: &Lab, loaded: &LoadedBank, prompt: &[Sequence]) -> Result<Vec<Vec<f32>>> {
    let decoder = &lab.model.decoder;
    let hook = loaded.hook(decoder.weights(), prompt)?;
    let alphas = hook.prior_alphas()?.flatten_all()?.to_vec1::<f32>()?;
    Ok(vec![alphas; loaded.config().blocks(decoder.config().num_hidden_layers)])
}
