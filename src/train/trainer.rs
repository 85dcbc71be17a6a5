//! The training loop.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::Device;
use serde_json::json;

use super::adapter::TrainedAdapter;
use super::checkpoint::{self, State};
use super::memory;
use super::step::target_tokens;
use super::{AdamW, Dataset, Objective, TrainConfig, Trainable, TrainingRow, clip_factor, global_norm};
use crate::bank::{InstructionEncoder, Regularizer};
use crate::error::{Error, Finding, IoContext, Result};
use crate::model::{Decoder, LanguageModel, Residence, TextEncoder};

/// An event in a run, reported as it happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The run is about to take its first step.
    Started {
        /// The number of trained values.
        parameters: usize,
        /// The number of rows for training, and of rows held out.
        rows: (usize, usize),
        /// The number of steps that were done before the run was resumed.
        resumed_at: usize,
    },
    /// An optimizer step.
    Step {
        /// The step's number, from 1.
        step: usize,
        /// The number of all steps.
        steps: usize,
        /// The objective's value before the step.
        loss: f64,
        /// Completion and prompt tokens per second, in this step.
        tokens_per_second: f64,
    },
    /// An evaluation.
    Evaluated {
        /// The step after which it was done.
        step: usize,
        /// The mean of -log p over completion tokens.
        loss: f64,
    },
    /// A checkpoint was written.
    Saved {
        /// Its folder.
        folder: PathBuf,
    },
}

/// The results of a finished run.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The objective of the last step; `None` if a resumed run had no steps left.
    pub loss: Option<f64>,
    /// The result of the last evaluation, if there are rows for it.
    pub eval_loss: Option<f64>,
    /// The number of trained values.
    pub parameters: usize,
}

/// Trains according to `config`. The folder `output` gets the adapter, metrics.jsonl and
/// checkpoints.
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
    config.check()?;
    let residence = if config.training.resident { Residence::Memory } else { Residence::Mapped };
    let LanguageModel { decoder, encoder } = LanguageModel::open(config.base_folder(), residence, device)?;
    let instructions = InstructionEncoder::open(&config.adapter.instruction_encoder, &config.output, device)?;
    let (data, eval) = load_data(config, &decoder, &encoder, &instructions)?;
    config.check_size(decoder.config(), instructions.dim(), data.sequences().len())?;
    let size = (data.sequences().len(), data.sequences().iter().map(|s| s.ids.len()).sum());
    let output = &config.output;
    let last = match (resume, output.exists()) {
        (true, true) => checkpoint::list(output)?.pop(),
        (false, true) if output.join("adapter_config.json").exists() || !checkpoint::list(output)?.is_empty() => {
            return Err(Error::Exists(output.clone()));
        }
        _ => None,
    };
    let (adapter, optimizer, step) = match &last {
        Some(path) => {
            let (adapter, optimizer, state) = checkpoint::load(path, device)?;
            state.check(path, config, size)?;
            adapter.check_base(decoder.config())?;
            (adapter, Some(optimizer), state.step)
        }
        None if resume => {
            return Err(Finding::new(output, "checkpoint").expected("one to resume from").found("none").mismatch());
        }
        None => {
            let adapter = TrainedAdapter::fresh(output, config, decoder.config(), instructions.dim())?;
            (adapter, None, 0)
        }
    };
    let longest = data.sequences().iter().map(|sequence| sequence.ids.len()).max().unwrap_or(0);
    let tokens = longest * config.training.batch_size;
    let checkpoint_activations = memory::computes_again(config, decoder.config(), adapter.parameters(), tokens)?;
    let trainable = adapter.trainable(device)?;
    let optimizer = match optimizer {
        Some(optimizer) => optimizer,
        None => AdamW::new(trainable.vars())?,
    };
    fs::create_dir_all(output).at(output, "create")?;
    let metrics = Metrics::open(&output.join("metrics.jsonl"), step)?;
    let rows = (data.sequences().len(), eval.as_ref().map_or(0, |e| e.sequences().len()));
    events(Event::Started { parameters: adapter.parameters(), rows, resumed_at: step });
    let run =
        Run { config, decoder: &decoder, trainable: &trainable, adapter, data, eval, size, checkpoint_activations };
    run.steps(step, optimizer, metrics, stop, events)
}

/// The fixed parts of a run.
struct Run<'a> {
    config: &'a TrainConfig,
    decoder: &'a Decoder,
    trainable: &'a Trainable,
    /// The adapter's settings; its tensors are those with which the run began.
    adapter: TrainedAdapter,
    data: Dataset,
    eval: Option<Dataset>,
    size: (usize, usize),
    checkpoint_activations: bool,
}

impl Run<'_> {
    fn steps(
        &self,
        done: usize,
        mut optimizer: AdamW,
        mut metrics: Metrics,
        stop: &AtomicBool,
        events: &mut dyn FnMut(Event),
    ) -> Result<Outcome> {
        let t = &self.config.training;
        let regularizer = Regularizer { prior: t.lambda_prior, balance: t.lambda_balance };
        let checkpoint_activations = self.checkpoint_activations;
        let objective =
            Objective { decoder: self.decoder, trainable: self.trainable, regularizer, checkpoint_activations };
        let per_step = t.batch_size * t.gradient_accumulation;
        let mut outcome = Outcome { loss: None, eval_loss: None, parameters: self.adapter.parameters() };
        for step in done..t.steps {
            let started = Instant::now();
            let sequences = self.data.take(self.config.seed, step * per_step, per_step);
            let gradients = objective.gradients(&sequences, t.batch_size)?;
            let norm = global_norm(&gradients)?;
            self.check_finite(step + 1, "loss", gradients.loss)?;
            self.check_finite(step + 1, "gradient norm", norm)?;
            let learning_rate = self.config.learning_rate(step);
            let factor = clip_factor(norm, t.clip_norm);
            optimizer.step(self.trainable.vars(), &gradients, factor, learning_rate, t.weight_decay)?;
            outcome.loss = Some(gradients.loss);

            let tokens: usize = sequences.iter().map(|s| s.ids.len()).sum();
            let tokens_per_second = tokens as f64 / started.elapsed().as_secs_f64();
            let step = step + 1;
            metrics.write(&json!({
                "step": step, "loss": gradients.loss, "gradient_norm": norm, "learning_rate": learning_rate,
                "completion_tokens": target_tokens(&sequences), "tokens": tokens,
                "tokens_per_second": tokens_per_second.round(),
            }))?;
            events(Event::Step { step, steps: t.steps, loss: gradients.loss, tokens_per_second });
            let stopping = stop.load(Ordering::Relaxed) && step < t.steps;
            let due = |every: usize| every > 0 && step.is_multiple_of(every);
            if let Some(eval) = self.eval.as_ref().filter(|_| due(t.eval_every) || step == t.steps) {
                let (loss, tokens) = objective.evaluate(eval.sequences(), t.batch_size)?;
                self.check_finite(step, "evaluation loss", loss)?;
                metrics.write(&json!({ "step": step, "eval_loss": loss, "eval_tokens": tokens }))?;
                events(Event::Evaluated { step, loss });
                outcome.eval_loss = Some(loss);
            }
            if stopping || due(t.checkpoint_every) || step == t.steps {
                events(Event::Saved { folder: self.save(step, &optimizer)? });
            }
            if stopping {
                return Err(Error::Interrupted { folder: self.config.output.clone(), step });
            }
        }
        if done >= t.steps {
            // Resumed after its last step: write the adapter from the checkpoint again.
            self.current()?.save_over(&self.config.output)?;
        }
        Ok(outcome)
    }

    fn current(&self) -> Result<TrainedAdapter> {
        Ok(self.adapter.with_tensors(self.trainable.to_host()?))
    }

    /// Writes a checkpoint, and the adapter itself where users look for it.
    fn save(&self, step: usize, optimizer: &AdamW) -> Result<PathBuf> {
        let adapter = self.current()?;
        let base_commit = checkpoint::base_commit(self.config);
        let state = State { step, config: self.config.clone(), data: self.size, base_commit };
        let folder = checkpoint::save(&self.config.output, &adapter, optimizer, &state)?;
        adapter.save_over(&self.config.output)?;
        Ok(folder)
    }

    fn check_finite(&self, step: usize, what: &str, value: f64) -> Result<()> {
        if value.is_finite() {
            return Ok(());
        }
        Err(Finding::new(&self.config.output, format!("{what} of step {step}"))
            .expected("a finite number")
            .found(value)
            .hint("lower training.learning_rate; the last checkpoint is as it was")
            .not_finite())
    }
}

/// Loads and tokenizes training and evaluation rows.
fn load_data(
    config: &TrainConfig,
    decoder: &Decoder,
    encoder: &TextEncoder,
    instructions: &InstructionEncoder,
) -> Result<(Dataset, Option<Dataset>)> {
    let eos = *decoder.config().eos_token_ids.first().ok_or_else(|| {
        let path = decoder.weights().path();
        let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        let finding = Finding::new(file, "eos_token_id");
        finding.expected("the token that ends a completion").found("none").mismatch()
    })?;
    let template = &config.adapter.prompt_template;
    let limit = config.data.max_length.min(decoder.config().max_position_embeddings);
    let load = |path: &Path| {
        Dataset::tokenize(path, &TrainingRow::read_all(path)?, (encoder, instructions), template, eos, limit)
    };
    let data = load(&config.data.train)?;
    match &config.data.eval {
        Some(path) => Ok((data, Some(load(path)?))),
        None => Ok(data.split(config.data.eval_fraction, config.seed)),
    }
}

/// The file metrics.jsonl, with a line for each step and evaluation.
struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file and drops lines of steps after `done`, which a resumed run takes again.
    fn open(path: &Path, done: usize) -> Result<Self> {
        let old = match done {
            0 => String::new(),
            _ => fs::read_to_string(path).unwrap_or_default(),
        };
        let kept = old.lines().filter(|line| {
            let step = serde_json::from_str::<serde_json::Value>(line).ok().and_then(|v| v["step"].as_u64());
            step.is_some_and(|step| step <= done as u64)
        });
        let kept: String = kept.flat_map(|line| [line, "\n"]).collect();
        fs::write(path, kept).at(path, "write")?;
        let file = File::options().append(true).open(path).at(path, "open")?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn write(&mut self, line: &serde_json::Value) -> Result<()> {
        writeln!(self.file, "{line}").at(&self.path, "write")
    }
}
