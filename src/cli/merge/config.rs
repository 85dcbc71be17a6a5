//! `atombank merge --config`: merges models as a configuration of mergekit says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use atombank::checkpoint::hub::{Need, is_hub_name};
use atombank::error::Finding;
use atombank::jobs::{self, CombineSettings, MergeConfigSettings, OutputSettings};
use atombank::merge::config::MergeConfig;

use super::MergeArgs;
use crate::cli::input::{Found, Input, Made, with_inputs};
use crate::cli::output::print_written;
use crate::cli::{Common, progress};

pub(super) fn run(file: &Path, args: &MergeArgs, output: OutputSettings, common: &Common) -> Result<()> {
    let combine = args.method.settings();
    let seed = combine.seed;
    if (CombineSettings { seed: None, ..combine }) != CombineSettings::default() {
        let finding =
            Finding::new("", "config").expected("the method and its parameters in the file, and no options for them");
        return Err(finding.found("some").setting().into());
    }
    output.check()?;
    let names = names(&MergeConfig::read(file)?);
    let values = !args.output.dry_run;
    let inputs: Vec<Input<'_>> = names.values().map(|(name, need)| Input::new(name, *need).values(values)).collect();
    let merge = |found: &[Found]| {
        // No model is the one that the others are merged into.
        output.destination.check_inputs(found.iter().map(|found| found.path.as_path()))?;
        let located = names.keys().cloned().zip(found.iter().map(|found| found.path.clone())).collect();
        let config: PathBuf = file.to_owned();
        let settings = MergeConfigSettings { config, located, output: output.clone(), seed };
        let (bar, watch) = progress::steps(common.quiet);
        let made = jobs::merge_config(&settings, &watch);
        bar.finish_and_clear();
        args.output.checked(made?)
    };
    let Made { mut made, outlines } = with_inputs(&inputs, common, merge)?;
    outlines.put_real_paths(&mut made.notes);
    let written = args.output.write(&made, args.json, common)?;
    if args.json {
        super::print_json(written.as_ref(), &[])?;
    }
    print_written(written.as_ref(), args.json, common);
    Ok(())
}

/// The models and adapters of a configuration by their names there: each as a path or as a name on the hub.
fn names(config: &MergeConfig) -> BTreeMap<String, (String, Need)> {
    let mut names = BTreeMap::new();
    for model in config.models() {
        names.insert(model.model(), (on_the_hub(model.model(), &model.path), Need::Model));
        if let (Some(adapter), Some((path, _))) = (model.adapter(), &model.lora) {
            names.insert(adapter.clone(), (on_the_hub(adapter, path), Need::Everything));
        }
    }
    names
}

/// A name as the rest of the program knows it: what is no path and has the form `org/name` is on the hub.
pub(super) fn on_the_hub(name: String, path: &str) -> String {
    let is_path = Path::new(path).exists() || path.starts_with(['/', '.', '~']);
    match is_path || is_hub_name(&name) || path.split('/').count() != 2 {
        true => name,
        false => format!("hf:{name}"),
    }
}
