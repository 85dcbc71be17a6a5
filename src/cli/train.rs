//! `atombank train`: trains an adapter according to a training file.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use atombank::checkpoint::hub::Need;
use atombank::train::{Event, HubBase, Outcome, TrainConfig, train};
use candle_core::Device;
use clap::Args;
use serde_json::json;

use super::device::DeviceArgs;
use super::input::{Found, Input, with_inputs};
use super::{Common, progress, signals};

/// Arguments of `train`.
#[derive(Args)]
pub(crate) struct TrainArgs {
    /// The training file (docs/training.md)
    config: PathBuf,
    /// Change a setting: training.steps=10
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Resume from the run's last checkpoint
    #[arg(long)]
    resume: bool,
    /// The most memory for the run besides the base's file: 3GiB. Activations are computed again if they don't fit
    /// otherwise: training.max_memory
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON: the last losses, and the number of trained values
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &TrainArgs, common: &Common) -> Result<()> {
    let mut overrides = args.overrides.clone();
    overrides.extend(args.max_memory.as_ref().map(|size| format!("training.max_memory={size:?}")));
    let config = TrainConfig::open(&args.config, &overrides)?;
    warn(&config, common);
    // The first signal finishes the step and saves; a second one ends the program at once.
    let stop = signals::stop_flag();
    let run = |found: &[Found]| {
        let mut config = config.clone();
        // Written files have the model's name, not its path in this machine's cache.
        if let [Found { path, id: Some(id) }] = found {
            config.base = format!("hf:{id}").into();
            config.hub_base = Some(HubBase { folder: path.clone(), id: id.clone() });
        }
        let outcome = train_with_bar(&config, args.resume, &args.device.device, &stop, common)?;
        Ok((config, outcome))
    };
    let (config, outcome) = with_inputs(&[Input::new(&config.base, Need::Model)], common, run)?.made;
    if args.json {
        let json = json!({ "output": config.output, "base": config.base, "steps": config.training.steps,
            "loss": outcome.loss, "eval_loss": outcome.eval_loss, "parameters": outcome.parameters });
        println!("{}", serde_json::to_string_pretty(&json)?);
        return Ok(());
    }
    let losses = [("loss", outcome.loss), ("evaluation loss", outcome.eval_loss)];
    let shown: Vec<String> = losses.iter().filter_map(|(name, loss)| Some(format!("{name} {:.4}", (*loss)?))).collect();
    let shown = if shown.is_empty() { "no step was left to take".to_owned() } else { shown.join(", ") };
    println!("{}: {shown}", config.output.display());
    Ok(())
}

/// Warns about settings that the user may not intend.
pub(crate) fn warn(config: &TrainConfig, common: &Common) {
    if let Some(warning) = config.warning().filter(|_| !common.quiet) {
        eprintln!("warning: {warning}");
    }
}

/// Trains with a progress bar that shows loss, speed and remaining time.
pub(crate) fn train_with_bar(
    config: &TrainConfig,
    resume: bool,
    device: &Device,
    stop: &AtomicBool,
    common: &Common,
) -> Result<Outcome> {
    let steps = config.training.steps as u64;
    let bar = progress::bar(steps, "[{bar:30}] {pos}/{len} {msg} left {eta}", common.quiet);
    let outcome = train(config, resume, device, stop, &mut |event| match event {
        Event::Started { parameters, rows: (train, eval), resumed_at } => {
            bar.set_position(resumed_at as u64);
            bar.reset_eta();
            if !common.quiet {
                bar.suspend(|| eprintln!("{parameters} trainable values, {train} rows, {eval} held out"));
            }
        }
        Event::Step { step, loss, tokens_per_second, .. } => {
            bar.set_position(step as u64);
            bar.set_message(format!("loss {loss:.4}, {tokens_per_second:.0} tokens/s,"));
        }
        Event::Evaluated { step, loss } if !common.quiet => {
            bar.suspend(|| eprintln!("step {step}: evaluation loss {loss:.4}"));
        }
        Event::Evaluated { .. } | Event::Saved { .. } => {}
    })?;
    bar.finish_and_clear();
    Ok(outcome)
}
