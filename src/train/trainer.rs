//! The training loop.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::Device;
use serde_json::{Value, json};

use super::adapter::TrainedAdapter;
use super::batches::Batches;
use super::checkpoint::{self, State};
use super::config::{Group, Rates};
use super::dropout::Dropout;
use super::evaluation::evaluate;
use super::event::{End, Event, Outcome};
use super::inputs::Inputs;
use super::metrics::Metrics;
use super::progress::{Evaluation, Progress};
use super::start;
use super::step::target_tokens;
use super::{AdamW, Dataset, Gradients, Objective, Ranks, TrainConfig, clip_factor, global_norm, memory};
use crate::bank::Regularizer;
use crate::error::{Error, Finding, IoContext, Result};
use crate::model::Sequence;

/// Trains according to `config`. The folder `output` gets the adapter, metrics and checkpoints.
///
/// With `resume`, the run continues from its last checkpoint, with the same bits as if it hadn't
/// stopped. When `stop` is set, the current step is finished, a checkpoint and the adapter are
/// written, and [`Error::Interrupted`] is returned.
///
/// # Errors
/// Errors in config, base or data, which are found before the first step; [`Error::NotFinite`] for
/// a loss or gradient that isn't finite (the last checkpoint stays valid).
pub fn train(
    config: &TrainConfig,
    resume: bool,
    device: &Device,
    stop: &AtomicBool,
    events: &mut dyn FnMut(Event),
) -> Result<Outcome> {
    train_on(&Ranks::alone(), config, resume, device, stop, events)
}

/// As [`train()`], by all `ranks` together. A step has as many forward passes as `gradient_accumulation` says on each of the
/// ranks that the run began with, and gives the bits that one process gives with as many. The first rank writes files.
///
/// # Errors
/// As [`train()`], on all ranks; or on some, where the others wait until [`Ranks::abort`].
pub fn train_on(
    ranks: &Ranks,
    config: &TrainConfig,
    resume: bool,
    device: &Device,
    stop: &AtomicBool,
    events: &mut dyn FnMut(Event),
) -> Result<Outcome> {
    let (config, from) = start::settings(config)?;
    let config = &config;
    let inputs = Inputs::open(config, from, device)?;
    inputs.notes.iter().for_each(|note| events(Event::Note(note.clone())));
    let output = &config.output;
    let last = match (resume, output.exists()) {
        (true, true) => checkpoint::list(output)?.pop(),
        (false, true) if output.join("adapter_config.json").exists() || !checkpoint::list(output)?.is_empty() => {
            return Err(Error::Exists(output.clone()));
        }
        _ => None,
    };
    let (adapter, optimizer, step, progress, began_with) = match &last {
        Some((_, path)) => {
            let (adapter, optimizer, state) = checkpoint::load(path, device)?;
            state.check(path, config, inputs.size())?;
            adapter.check_base(inputs.decoder.config())?;
            inputs.from.iter().try_for_each(|from| start::check_parts(path, &adapter, from))?;
            (adapter, Some(optimizer), state.step, state.progress, state.ranks)
        }
        None if resume => {
            return Err(Finding::new(output, "checkpoint").expected("one to resume from").found("none").mismatch());
        }
        None => (inputs.fresh(config)?, None, 0, Progress::default(), ranks.size()),
    };
    if began_with != ranks.size() {
        let (of, now) = (many(began_with), many(ranks.size()));
        events(Event::Note(format!(
            "the run began with {of} and goes on with {now}; its steps stay as large as they were"
        )));
    }
    let mut batches = Batches::new(config, &inputs.data, began_with)?;
    let checkpoint_activations = inputs.computes_again(config, &adapter)?;
    let trainable = adapter.trainable(device)?;
    let optimizer = match optimizer {
        Some(optimizer) => optimizer,
        None => AdamW::new(trainable.vars())?,
    };
    let metrics = match ranks.is_first() {
        true => {
            fs::create_dir_all(output).at(output, "create")?;
            checkpoint::delete_rest(output)?;
            inputs.from.iter().try_for_each(|from| start::keep_encoder(from, output))?;
            Some(Metrics::open(output, &config.training.metrics, step)?)
        }
        false => None,
    };
    let (parameters, steps) = (adapter.parameters(), batches.steps());
    config.notes(steps).into_iter().for_each(|note| events(Event::Note(note)));
    events(Event::Started { parameters, rows: inputs.rows(), resumed_at: step, steps });
    let regularizer = config.regularizer();
    let objective = Objective { decoder: &inputs.decoder, trainable: &trainable, regularizer, checkpoint_activations };
    let run = Run { ranks, began_with, config, inputs: &inputs, objective, adapter, steps };
    let outcome = run.go(At { step, optimizer, progress }, batches, metrics, stop, events)?;
    if let Some(from) = inputs.from.as_ref().filter(|_| ranks.is_first()) {
        let kept = start::check_grown(config, from, &inputs)?;
        events(Event::Kept { sequences: kept.sequences, max_logit_difference: kept.max_logit_difference });
    }
    Ok(outcome)
}

impl TrainConfig {
    /// The dropout of a step, counted from 0.
    pub(super) fn dropout(&self, step: usize) -> Option<Dropout> {
        let (share, seed) = (self.adapter.lora_dropout, self.seed);
        (share > 0.0).then_some(Dropout { share, seed, step, pass: 0 })
    }

    /// The weights of the routing's regularizers.
    pub(super) fn regularizer(&self) -> Regularizer {
        Regularizer { prior: self.training.lambda_prior, balance: self.training.lambda_balance }
    }
}

fn many(ranks: usize) -> String {
    if ranks == 1 { "one process".to_owned() } else { format!("{ranks} ranks") }
}

/// The fixed parts of a run.
struct Run<'a> {
    ranks: &'a Ranks,
    /// The number of ranks that the run began with.
    began_with: usize,
    config: &'a TrainConfig,
    inputs: &'a Inputs,
    objective: Objective<'a>,
    /// The adapter's settings; its tensors are those with which the run began.
    adapter: TrainedAdapter,
    /// The number of all steps.
    steps: usize,
}

/// Where a run is.
struct At {
    /// The number of finished steps.
    step: usize,
    optimizer: AdamW,
    progress: Progress,
}

impl Run<'_> {
    fn go(
        &self,
        mut at: At,
        mut batches: Batches,
        mut metrics: Option<Metrics>,
        stop: &AtomicBool,
        events: &mut dyn FnMut(Event),
    ) -> Result<Outcome> {
        let t = &self.config.training;
        let rates = self.config.rates(self.steps);
        let mut write = |step: usize, line: &Value| match &mut metrics {
            Some(metrics) => metrics.write(step, line),
            None => Ok(()),
        };
        let (mut loss, mut eval) = (None, None);
        while at.step < self.steps && !at.progress.is_exhausted(t.patience) {
            let started = Instant::now();
            let parts = batches.step(at.step);
            let (mut line, tokens) = self.step(&mut at, &parts, &rates)?;
            let tokens_per_second = tokens as f64 / started.elapsed().as_secs_f64();
            let (step, memory_bytes) = (at.step, memory::of_process("VmRSS"));
            line["tokens_per_second"] = tokens_per_second.round().into();
            line["epoch"] = batches.epochs_after(step).into();
            line["memory_bytes"] = memory_bytes.into();
            write(step, &line)?;
            let of_step = line["loss"].as_f64().unwrap_or(f64::NAN);
            loss = Some(of_step);
            events(Event::Step { step, steps: self.steps, loss: of_step, tokens_per_second, memory_bytes });

            let due = |every: usize| every > 0 && step.is_multiple_of(every);
            let mut is_best = false;
            if let Some(rows) = self.inputs.eval.as_ref().filter(|_| due(t.eval_every) || step == self.steps) {
                let results = evaluate(&self.objective, self.ranks, &self.inputs.encoder, rows, t)?;
                if !results.loss.is_finite() {
                    return Err(self.bad_evaluation(step, results.loss, rows));
                }
                write(step, &results.metrics())?;
                let exact_match = results.exact_match.map(|(share, _)| share);
                events(Event::Evaluated { step, loss: results.loss, exact_match });
                is_best = at.progress.record(Evaluation { step, loss: results.loss }, t.min_delta);
                eval = Some((results.loss, exact_match));
            }
            let ends = step == self.steps || at.progress.is_exhausted(t.patience);
            let stopping = self.ranks.any(stop.load(Ordering::Relaxed)) && !ends;
            let saves = stopping || ends || due(t.checkpoint_every) || is_best && t.load_best_at_end;
            if saves && self.ranks.is_first() {
                events(Event::Saved { folder: self.save(&at)? });
            }
            if stopping {
                return Err(Error::Interrupted { folder: self.config.output.clone(), step });
            }
        }
        let adapter_step = match self.ranks.is_first() {
            true => self.finish(&at, loss.is_none(), events)?,
            false => at.step,
        };
        let end = if at.progress.is_exhausted(t.patience) { End::Patience } else { End::Steps };
        let best = at.progress.best;
        write(
            at.step,
            &json!({ "end": end.name(), "adapter_step": adapter_step, "best_step": best.map(|best| best.step),
                "best_eval_loss": best.map(|best| best.loss) }),
        )?;
        Ok(Outcome {
            loss,
            eval_loss: eval.map(|(loss, _)| loss),
            exact_match: eval.and_then(|(_, exact_match)| exact_match),
            parameters: self.adapter.parameters(),
            steps: at.step,
            end,
            best,
            adapter_step,
        })
    }

    /// Takes one step over the rows of `parts`. Returns what the metrics say of it, and the number of its tokens.
    fn step(&self, at: &mut At, parts: &[Vec<usize>], rates: &Rates) -> Result<(Value, usize)> {
        let t = &self.config.training;
        let sequences: Vec<Vec<Sequence>> = parts.iter().map(|rows| self.sequences(rows)).collect();
        let slices: Vec<&[Sequence]> = sequences.iter().map(Vec::as_slice).collect();
        let gradients: Gradients = self.objective.gradients_on(self.ranks, &slices, self.config.dropout(at.step))?;
        let norm = global_norm(&gradients)?;
        for (what, value) in [("loss", gradients.loss), ("gradient norm", norm)] {
            if !value.is_finite() {
                return Err(self.bad_step(at.step + 1, what, value, parts));
            }
        }
        let (step, factor) = (at.step, clip_factor(norm, t.clip_norm));
        let rate = |name: &str| rates.of(Group::of(name), step);
        at.optimizer.step(self.objective.trainable.vars(), &gradients, factor, rate, t.weight_decay)?;
        at.step += 1;
        let tokens = sequences.iter().flatten().map(|sequence| sequence.ids.len()).sum();
        let targets: usize = slices.iter().map(|part| target_tokens(part)).sum();
        let mut line = json!({ "loss": gradients.loss, "gradient_norm": norm, "learning_rate": rates.at(step),
            "completion_tokens": targets, "tokens": tokens });
        if t.router_learning_rate.is_some() {
            line["router_learning_rate"] = rates.of(Group::Router, step).into();
        }
        Ok((line, tokens))
    }

    fn sequences(&self, rows: &[usize]) -> Vec<Sequence> {
        rows.iter().map(|row| self.inputs.data.sequences()[*row].clone()).collect()
    }

    fn current(&self) -> Result<TrainedAdapter> {
        Ok(self.adapter.with_tensors(self.objective.trainable.to_host()?))
    }

    /// Writes a checkpoint, and the adapter itself where users look for it.
    fn save(&self, at: &At) -> Result<PathBuf> {
        let adapter = self.current()?;
        // What the step's update made not finite would show in the next step's loss.
        let bad = adapter.tensors().iter().find_map(|(name, tensor)| {
            tensor.values.iter().find(|value| !value.is_finite()).map(|value| (name, f64::from(*value)))
        });
        if let Some((name, value)) = bad {
            return Err(self.not_finite(format!("weights after step {}", at.step), value, name));
        }
        let state = State {
            step: at.step,
            config: self.config.clone(),
            data: self.inputs.size(),
            base_commit: checkpoint::base_commit(self.config),
            progress: at.progress.clone(),
            ranks: self.began_with,
        };
        let folder = checkpoint::save(&self.config.output, &adapter, &at.optimizer, &state)?;
        adapter.save_over(&self.config.output)?;
        Ok(folder)
    }

    /// Puts the run's result where users look for it, and returns the step that it is of. The last checkpoint is there
    /// already, unless the run was `resumed` after its last step.
    fn finish(&self, at: &At, resumed: bool, events: &mut dyn FnMut(Event)) -> Result<usize> {
        let output = &self.config.output;
        let best = at.progress.best.filter(|best| self.config.training.load_best_at_end && best.step != at.step);
        if let Some(best) = best {
            let folder = checkpoint::folder(output, best.step);
            if folder.is_dir() {
                TrainedAdapter::open(&folder, self.config)?.save_over(output)?;
                return Ok(best.step);
            }
            let missing = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let step = at.step;
            events(Event::Note(format!("{missing}, the best one, is missing: the adapter is that of step {step}")));
        }
        if resumed {
            self.current()?.save_over(output)?;
        }
        Ok(at.step)
    }

    /// The error for a step whose loss or gradient isn't finite: it names the forward pass and the rows that are to blame.
    fn bad_step(&self, step: usize, what: &str, value: f64, parts: &[Vec<usize>]) -> Error {
        let is_bad = |rows: &[usize]| {
            let gradients = self.objective.gradients_of(&[&self.sequences(rows)]);
            let values = gradients.and_then(|gradients| Ok([gradients.loss, global_norm(&gradients)?]));
            values.is_ok_and(|values| values.iter().any(|value| !value.is_finite()))
        };
        let place = match parts.iter().position(|rows| is_bad(rows)) {
            Some(part) => {
                let mut rows: Vec<usize> = parts[part].iter().copied().filter(|row| is_bad(&[*row])).collect();
                if rows.is_empty() {
                    rows.clone_from(&parts[part]);
                }
                format!("batch {} of {}, {}", part + 1, parts.len(), self.inputs.data.named(&rows))
            }
            None => format!("the sum of {} batches, {}", parts.len(), self.inputs.data.named(&parts.concat())),
        };
        self.not_finite(format!("{what} of step {step}"), value, &place)
    }

    /// The error for an evaluation whose loss isn't finite.
    fn bad_evaluation(&self, step: usize, value: f64, rows: &Dataset) -> Error {
        let is_bad = |row: &usize| {
            let loss = self.objective.evaluate(&rows.sequences()[*row..row + 1], 1);
            loss.is_ok_and(|(loss, _)| !loss.is_finite())
        };
        let bad: Vec<usize> = (0..rows.sequences().len()).filter(is_bad).collect();
        let place = if bad.is_empty() { "the sum of all rows".to_owned() } else { rows.named(&bad) };
        self.not_finite(format!("evaluation loss of step {step}"), value, &place)
    }

    fn not_finite(&self, subject: String, value: f64, place: &str) -> Error {
        let last = checkpoint::list(&self.config.output).ok().and_then(|mut all| all.pop());
        let last = match last {
            Some((step, _)) => format!("the checkpoint of step {step} is as it was"),
            None => "there is no checkpoint yet".to_owned(),
        };
        Finding::new(&self.config.output, subject)
            .expected("a finite number")
            .found(format_args!("{value} in {place}"))
            .hint(format_args!("lower training.learning_rate, or look at the rows; {last}"))
            .not_finite()
    }
}
