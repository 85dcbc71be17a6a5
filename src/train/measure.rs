//! What a run takes, measured: some of its steps, in memory, without writing anything.

use std::time::{Duration, Instant};

use candle_core::Device;

use super::batches::Batches;
use super::config::Group;
use super::inputs::Inputs;
use super::{AdamW, Objective, Ranks, TrainConfig, clip_factor, global_norm, memory, start};
use crate::error::Result;
use crate::model::Sequence;

/// The most steps whose batches are looked at, for the largest one and for the mean size of a step.
const LOOKED_AT: usize = 1000;

/// The most steps that are taken; fewer where they take longer than [`LONGEST`], but at least two.
const MEASURED: usize = 6;

/// The time after which no further step is taken.
const LONGEST: Duration = Duration::from_secs(5);

/// What a run takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The number of trained values.
    pub parameters: usize,
    /// The number of rows for training, and of rows held out.
    pub rows: (usize, usize),
    /// The number of steps.
    pub steps: usize,
    /// The mean number of tokens in a step, without padding.
    pub tokens_per_step: f64,
    /// The sequences and the padded length of the largest batch, with which memory was measured.
    pub largest_batch: (usize, usize),
    /// Whether activations are computed again in the backward pass.
    pub checkpoint_activations: bool,
    /// The time that a step of the mean size takes, in seconds.
    pub seconds_per_step: f64,
    /// The most memory that the process had, in bytes, if the system tells: the part of the base's file that is in
    /// memory included, what a GPU holds not.
    pub memory_bytes: Option<u64>,
}

/// Takes some steps of the run that `config` describes, and computes the gradients of its largest batch. The first step
/// isn't measured, because it reads the base from the disk; of the others, the median counts.
///
/// # Errors
/// As [`super::train()`].
pub fn measure(config: &TrainConfig, device: &Device) -> Result<Measured> {
    let (config, from) = start::settings(config)?;
    let config = &config;
    let inputs = Inputs::open(config, from, device)?;
    let mut batches = Batches::new(config, &inputs.data, 1)?;
    let adapter = inputs.fresh(config)?;
    let checkpoint_activations = inputs.computes_again(config, &adapter)?;
    let trainable = adapter.trainable(device)?;
    let regularizer = config.regularizer();
    let objective = Objective { decoder: &inputs.decoder, trainable: &trainable, regularizer, checkpoint_activations };
    let mut optimizer = AdamW::new(trainable.vars())?;
    let all = inputs.data.sequences();
    let steps = batches.steps();
    let rates = config.rates(steps);

    let (mut tokens, mut largest) = (0, Vec::new());
    let looked_at = steps.min(LOOKED_AT);
    let padded = |rows: &[usize]| rows.len() * rows.iter().map(|row| all[*row].ids.len()).max().unwrap_or(0);
    for step in 0..looked_at {
        for rows in batches.step(step) {
            tokens += rows.iter().map(|row| all[*row].ids.len()).sum::<usize>();
            if padded(&rows) > padded(&largest) {
                largest = rows;
            }
        }
    }
    let tokens_per_step = tokens as f64 / looked_at as f64;

    let began = Instant::now();
    let mut times = Vec::new();
    for step in 0..MEASURED {
        let started = Instant::now();
        let rows = batches.step(step.min(steps - 1));
        let parts: Vec<Vec<Sequence>> =
            rows.iter().map(|rows| rows.iter().map(|row| all[*row].clone()).collect()).collect();
        let slices: Vec<&[Sequence]> = parts.iter().map(Vec::as_slice).collect();
        let gradients = objective.gradients_on(&Ranks::alone(), &slices, config.dropout(step))?;
        let factor = clip_factor(global_norm(&gradients)?, config.training.clip_norm);
        let rate = |name: &str| rates.of(Group::of(name), step);
        optimizer.step(trainable.vars(), &gradients, factor, rate, config.training.weight_decay)?;
        let taken: usize = parts.iter().flatten().map(|sequence| sequence.ids.len()).sum();
        if step > 0 {
            times.push(started.elapsed().as_secs_f64() * tokens_per_step / taken.max(1) as f64);
        }
        if step > 0 && began.elapsed() > LONGEST {
            break;
        }
    }
    times.sort_by(f64::total_cmp);
    let seconds_per_step = times[times.len() / 2];
    let sequences: Vec<Sequence> = largest.iter().map(|row| all[*row].clone()).collect();
    objective.gradients_on(&Ranks::alone(), &[&sequences], config.dropout(0))?;
    Ok(Measured {
        parameters: adapter.parameters(),
        rows: inputs.rows(),
        steps,
        tokens_per_step,
        largest_batch: (largest.len(), padded(&largest) / largest.len().max(1)),
        checkpoint_activations,
        seconds_per_step,
        memory_bytes: memory::of_process("VmHWM"),
    })
}
