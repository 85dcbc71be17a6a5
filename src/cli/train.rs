//! `atombank train`: trains an adapter according to a training file.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use atombank::checkpoint::hub::Need;
use atombank::error::counted;
use atombank::plan::Staging;
use atombank::train::{
    End, Event, HubBase, Measured, Outcome, Ranks, TEMPLATE, TrainConfig, from_axolotl, measure, train_on,
};
use candle_core::Device;
use clap::Args;
use serde_json::json;

use super::device::DeviceArgs;
use super::input::{Found, Input, with_inputs};
use super::output::size;
use super::{Common, preview, progress, signals};

/// Arguments of `train`.
#[derive(Args)]
pub(crate) struct TrainArgs {
    /// The training file: TOML, or YAML if it is called .yaml or .yml (docs/training.md)
    #[arg(required_unless_present_any = ["init", "from_axolotl"])]
    config: Option<PathBuf>,
    /// Change a setting: training.steps=10
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Print the first N rows as tokens, with those that carry loss marked, and don't train
    #[arg(long, value_name = "N", conflicts_with_all = ["resume", "dry_run"])]
    preview: Option<usize>,
    /// Resume from the run's last checkpoint
    #[arg(long)]
    resume: bool,
    /// Take a few steps in memory, print what the run takes, and write nothing
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// Write a training file with every key, its meaning and its default, to a new FILE or to stdout
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-",
          conflicts_with_all = ["config", "from_axolotl", "overrides", "preview", "resume", "dry_run", "max_memory", "json"])]
    init: Option<PathBuf>,
    /// Print a training file with the settings of a file of axolotl, and those that have no counterpart
    #[arg(long, value_name = "FILE",
          conflicts_with_all = ["config", "overrides", "preview", "resume", "dry_run", "max_memory", "json"])]
    from_axolotl: Option<PathBuf>,
    /// The most memory for the run besides the base's file: 3GiB. Activations are computed again if they don't fit
    /// otherwise: training.max_memory
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON: the last losses, and the number of trained values; with --dry-run, what was measured; with --preview,
    /// the rows
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &TrainArgs, common: &Common) -> Result<()> {
    if let Some(file) = &args.init {
        return init(file);
    }
    if let Some(file) = &args.from_axolotl {
        let made = from_axolotl(file)?;
        println!("{}", made.toml.trim_end());
        if !common.quiet {
            made.left.iter().for_each(|line| eprintln!("note: without a counterpart: {line}"));
            made.defaults.iter().for_each(|line| eprintln!("note: not given: {line}"));
        }
        return Ok(());
    }
    let mut overrides = args.overrides.clone();
    overrides.extend(args.max_memory.as_ref().map(|size| format!("training.max_memory={size:?}")));
    let config = TrainConfig::open(args.config.as_deref().unwrap_or(Path::new("")), &overrides)?;
    if let Some(count) = args.preview {
        return preview::run(&config, count, args.json, common);
    }
    warn(&config, common);
    if args.dry_run {
        let run = |found: &[Found]| Ok(measure(&with_base(&config, found), args.device.open()?)?);
        let measured = with_inputs(&[Input::new(&config.base, Need::Model)], common, run)?.made;
        return print_measured(&config, &measured, args.json);
    }
    let ranks = Ranks::of_launcher()?;
    // The first signal finishes the step and saves; a second one ends the program at once.
    let stop = signals::stop_flag();
    let run = |found: &[Found]| {
        let config = with_base(&config, found);
        let outcome = train_with_bar(&ranks, &config, args.resume, args.device.open()?, &stop, common)?;
        Ok((config, outcome))
    };
    let ran = with_inputs(&[Input::new(&config.base, Need::Model)], common, run);
    let (config, outcome) = ended(&ranks, ran)?.made;
    if !ranks.is_first() {
        return Ok(());
    }
    if args.json {
        let json = json!({ "output": config.output, "base": config.base, "steps": outcome.steps, "loss": outcome.loss,
            "eval_loss": outcome.eval_loss, "exact_match": outcome.exact_match, "end": outcome.end.name(),
            "best_step": outcome.best.map(|best| best.step), "best_eval_loss": outcome.best.map(|best| best.loss),
            "adapter_step": outcome.adapter_step, "parameters": outcome.parameters });
        println!("{}", serde_json::to_string_pretty(&json)?);
        return Ok(());
    }
    if outcome.end == End::Patience {
        let (step, patience) = (outcome.steps, config.training.patience);
        println!("stopped after step {step}: no progress in {}", counted(patience, "evaluation"));
    }
    let losses = [("loss", outcome.loss), ("evaluation loss", outcome.eval_loss)];
    let shown: Vec<String> = losses.iter().filter_map(|(name, loss)| Some(format!("{name} {:.4}", (*loss)?))).collect();
    let shown = if shown.is_empty() { "no step was left to take".to_owned() } else { shown.join(", ") };
    println!("{}: {shown}", config.output.display());
    if let Some(best) =
        outcome.best.filter(|best| config.training.load_best_at_end && best.step == outcome.adapter_step)
    {
        println!("the adapter is the best one, of step {}: evaluation loss {:.4}", best.step, best.loss);
    }
    Ok(())
}

/// Ends all ranks where one has failed.
fn ended<T>(ranks: &Ranks, ran: Result<T>) -> Result<T> {
    let Err(error) = ran else { return ran };
    let is_stopped = matches!(error.downcast_ref(), Some(atombank::Error::Interrupted { .. }));
    if ranks.size() > 1 && !is_stopped {
        if !ranks.is_first() {
            // Most errors are those of all ranks: then the first one tells of them.
            std::thread::sleep(std::time::Duration::from_secs(2));
        }
        super::report(&error);
        ranks.abort(1);
    }
    Err(error)
}

/// Writes the commented training file.
fn init(file: &Path) -> Result<()> {
    if file == Path::new("-") {
        println!("{}", TEMPLATE.trim_end());
        return Ok(());
    }
    let staging = Staging::file(file, false)?;
    std::fs::write(staging.path(), TEMPLATE)?;
    Ok(staging.commit()?)
}

/// The settings with a base from the hub as it was found.
pub(crate) fn with_base(config: &TrainConfig, found: &[Found]) -> TrainConfig {
    let mut config = config.clone();
    // Written files have the model's name, not its path in this machine's cache.
    if let [Found { path, id: Some(id) }] = found {
        config.base = format!("hf:{id}").into();
        config.hub_base = Some(HubBase { folder: path.clone(), id: id.clone() });
    }
    config
}

/// `, 240 held out`: the rows that a run is evaluated on, if there are any.
fn evaluated(config: &TrainConfig, rows: usize) -> String {
    match (rows, config.data.eval.is_some()) {
        (0, _) => String::new(),
        (_, true) => format!(", {rows} to evaluate on"),
        (_, false) => format!(", {rows} held out"),
    }
}

fn print_measured(config: &TrainConfig, measured: &Measured, json: bool) -> Result<()> {
    let Measured { parameters, rows: (train, eval), steps, tokens_per_step, .. } = measured;
    let (sequences, tokens) = measured.largest_batch;
    let seconds = measured.seconds_per_step * *steps as f64;
    if json {
        let json = json!({ "parameters": parameters, "rows": train, "eval_rows": eval, "steps": steps,
            "tokens_per_step": tokens_per_step, "largest_batch": [sequences, tokens],
            "checkpoint_activations": measured.checkpoint_activations,
            "seconds_per_step": measured.seconds_per_step, "seconds": seconds, "memory_bytes": measured.memory_bytes });
        println!("{}", serde_json::to_string_pretty(&json)?);
        return Ok(());
    }
    let row = |name: &str, value: String| println!("{name:<20} {value}");
    row("trainable values", parameters.to_string());
    row("rows", format!("{train}{}", evaluated(config, *eval)));
    row("steps", format!("{steps}, of {tokens_per_step:.0} tokens in the mean"));
    row("largest batch", format!("{} of {}", counted(sequences, "sequence"), counted(tokens, "token")));
    row("activations", if measured.checkpoint_activations { "computed again" } else { "kept" }.to_owned());
    row("time", format!("{:.3} s a step, {seconds:.0} s for all, without evaluations", measured.seconds_per_step));
    if let Some(bytes) = measured.memory_bytes {
        row("memory", format!("{}, with what of the base's file is in memory", size(bytes)));
    }
    Ok(())
}

/// Warns about settings that the user may not intend.
pub(crate) fn warn(config: &TrainConfig, common: &Common) {
    if let Some(warning) = config.warning().filter(|_| !common.quiet) {
        eprintln!("warning: {warning}");
    }
}

/// Trains with a progress bar that shows loss, speed, memory and remaining time.
pub(crate) fn train_with_bar(
    ranks: &Ranks,
    config: &TrainConfig,
    resume: bool,
    device: &Device,
    stop: &AtomicBool,
    common: &Common,
) -> Result<Outcome> {
    let quiet = common.quiet || !ranks.is_first();
    let bar = progress::bar(0, "[{bar:30}] {pos}/{len} {msg} left {eta}", quiet);
    let outcome = train_on(ranks, config, resume, device, stop, &mut |event| match event {
        Event::Note(note) if !quiet => bar.suspend(|| eprintln!("note: {note}")),
        Event::Started { parameters, rows: (train, eval), resumed_at, steps } => {
            bar.set_length(steps as u64);
            bar.set_position(resumed_at as u64);
            bar.reset_eta();
            if !quiet {
                let rows = counted(train, "row") + &evaluated(config, eval);
                bar.suspend(|| eprintln!("{parameters} trainable values, {rows}"));
            }
        }
        Event::Step { step, loss, tokens_per_second, memory_bytes, .. } => {
            bar.set_position(step as u64);
            let memory = memory_bytes.map(|bytes| format!("{}, ", size(bytes))).unwrap_or_default();
            bar.set_message(format!("loss {loss:.4}, {tokens_per_second:.0} tokens/s, {memory}"));
        }
        Event::Evaluated { step, loss, exact_match } if !quiet => {
            let exact = exact_match.map(|share| format!(", exact match {:.1}%", 100.0 * share)).unwrap_or_default();
            bar.suspend(|| eprintln!("step {step}: evaluation loss {loss:.4}{exact}"));
        }
        Event::Kept { sequences, max_logit_difference } if !quiet => bar.suspend(|| {
            eprintln!(
                "the bank's earlier instructions are as they were: on {sequences} texts the same atoms bit for bit, \
                 logits to {max_logit_difference:.0e}"
            );
        }),
        Event::Note(_) | Event::Evaluated { .. } | Event::Saved { .. } | Event::Kept { .. } => {}
    })?;
    bar.finish_and_clear();
    Ok(outcome)
}
