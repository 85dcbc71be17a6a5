//! `atombank merge moe`: makes a mixture of experts of dense models.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use atombank::checkpoint::hub::Need;
use atombank::jobs::{self, MoeSettings};
use atombank::merge::moe::MoeConfig;
use clap::Args;

use super::config::on_the_hub;
use crate::cli::device::DeviceArgs;
use crate::cli::input::{Found, Input, Made, with_inputs_to};
use crate::cli::output::{OutputArgs, report_written};
use crate::cli::{Common, progress};

/// Arguments of `merge moe`.
#[derive(Args)]
pub(crate) struct MoeArgs {
    /// The mixture: a YAML file of mergekit-moe
    config: PathBuf,
    /// The seed of random gates and of noise, as for torch.manual_seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Allow experts that are all the same model, for a model that is trained afterwards
    #[arg(long, alias = "i-understand-this-is-not-useful-without-training")]
    allow_all_same: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON: what was written, or, with --dry-run, what would be written
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &MoeArgs, common: &Common) -> Result<()> {
    args.output.settings().check()?;
    let config = MoeConfig::read(&args.config)?;
    config.check(&args.config, args.allow_all_same)?;
    let mut names = vec![config.base_model.clone()];
    for expert in config.all_experts() {
        if !names.contains(&expert.source_model) {
            names.push(expert.source_model.clone());
        }
    }
    let inputs: Vec<String> =
        names.iter().map(|name| on_the_hub(name.clone(), name.split('@').next().unwrap_or_default())).collect();
    let values = !args.output.dry_run;
    let inputs: Vec<Input<'_>> = inputs.iter().map(|name| Input::new(name, Need::Model).values(values)).collect();
    let make = |found: &[Found]| {
        let folders = names.iter().cloned().zip(found.iter().map(|found| found.path.clone()));
        let settings = MoeSettings {
            config: args.config.clone(),
            folders: folders.collect::<BTreeMap<_, _>>(),
            output: args.output.settings(),
            seed: args.seed,
            allow_all_same: args.allow_all_same,
        };
        let (bar, watch) = progress::steps(common.quiet);
        let made = jobs::moe(&settings, args.device.open()?, &watch);
        bar.finish_and_clear();
        args.output.checked(made?)
    };
    let Made { mut made, outlines } = with_inputs_to(&args.output.settings().destination, &inputs, common, make)?;
    outlines.put_real_paths(&mut made.notes);
    let written = args.output.write(&made, args.json, common)?;
    report_written(written.as_ref(), args.json, common)
}
