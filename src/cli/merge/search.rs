//! `atombank merge search`: searches the weights of a merge for the least loss.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use atombank::checkpoint::hub::Need;
use atombank::convert::Content;
use atombank::jobs::{self, MergeInput, MergeSettings, OutputSettings, SearchSettings, Searched, TokenizerChoice};
use clap::Args;

use super::method::MethodArgs;
use super::{Weighted, parse_weighted};
use crate::cli::device::DeviceArgs;
use crate::cli::input::{Found, Input, parse_content, with_inputs_to};
use crate::cli::output::print_notes;
use crate::cli::{Common, progress};

/// Arguments of `merge search`.
#[derive(Args)]
pub(crate) struct SearchArgs {
    /// The base model: a Hugging Face folder, a .gguf, or a name on the hub: hf:org/name[@revision]
    base: String,
    /// Adapters, or with --method whole models. NAME=WEIGHT is where the search for its weight begins
    #[arg(required = true, value_name = "OTHER[=WEIGHT]", value_parser = parse_weighted)]
    others: Vec<Weighted>,
    /// Rows to measure the loss on, in any form that training takes
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// A text to measure the loss on
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Make the divergence from this model small, KL(MODEL || merged), in place of the loss
    #[arg(long, value_name = "MODEL")]
    kl: Option<String>,
    /// The largest number of tokens in a row or a piece of the text
    #[arg(long, value_name = "N", default_value_t = 512)]
    ctx: usize,
    /// The largest number of rows and pieces [default: all]
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,
    /// The largest number of trials
    #[arg(long, value_name = "N", default_value_t = 40)]
    trials: usize,
    /// What is searched: weight, density, t, lambda, gamma, epsilon, select_topk [default: what the method uses of the
    /// first three and isn't given]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    search: Vec<String>,
    /// Another range of a number that is searched: weight=0..1.5; may be repeated
    #[arg(long, value_name = "NAME=FROM..TO", value_parser = parse_range, allow_hyphen_values = true)]
    range: Vec<(String, (f64, f64))>,
    /// How to read an input that has both a model and adapter_config.json: model or adapter [default: model]
    #[arg(long = "as", value_name = "CONTENT", value_parser = parse_content)]
    content: Option<Content>,
    /// The folder for the trials and the best settings; a search that is there goes on
    #[arg(short, long, value_name = "FOLDER")]
    output: PathBuf,
    /// Write the best merge here: a folder, or a .gguf
    #[arg(long, value_name = "OUT")]
    write: Option<PathBuf>,
    /// Replace an existing merge
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON: all trials and the settings of the best one
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    method: MethodArgs,
}

fn parse_range(text: &str) -> Result<(String, (f64, f64)), String> {
    let parsed = text.split_once('=').and_then(|(name, range)| {
        let (from, to) = range.split_once("..")?;
        Some((name.to_owned(), (from.parse().ok()?, to.parse().ok()?)))
    });
    parsed.ok_or_else(|| "expected NAME=FROM..TO, like weight=0..1.5".to_owned())
}

pub(crate) fn run(args: &SearchArgs, common: &Common) -> Result<()> {
    let mut output = OutputSettings::new(args.write.clone().unwrap_or_else(|| args.output.join("merged")));
    output.destination.overwrite = args.overwrite;
    if args.write.is_some() {
        output.check()?;
    }
    let others = args.others.iter().map(|other| Input::new(&other.name, Need::Everything));
    let mut inputs: Vec<Input<'_>> = [Input::new(&args.base, Need::Model)].into_iter().chain(others).collect();
    inputs.extend(args.kl.as_ref().map(|name| Input::new(name, Need::Model)));
    let count = args.others.len();
    let search = |found: &[Found]| {
        let other = |(found, other): (&Found, &Weighted)| MergeInput {
            path: found.path.clone(),
            id: found.id.clone(),
            weight: other.weight,
        };
        let combine = args.method.settings();
        // One seed, for the way of the search and for methods that draw random numbers.
        let seed = combine.seed.unwrap_or(0);
        let merge = MergeSettings {
            others: found[1..=count].iter().zip(&args.others).map(other).collect(),
            base_id: found[0].id.clone(),
            combine: jobs::CombineSettings { seed: None, ..combine },
            others_as: args.content,
            tokenizer: TokenizerChoice::Auto,
            output: output.clone(),
            ..MergeSettings::new(&found[0].path, Vec::<PathBuf>::new(), "")
        };
        let settings = SearchSettings {
            merge,
            folder: args.output.clone(),
            data: args.data.clone(),
            text: args.text.clone(),
            kl: found.get(count + 1).map(|found| found.path.clone()),
            ctx: args.ctx,
            chunks: args.chunks,
            trials: args.trials,
            seed,
            search: args.search.clone(),
            range: args.range.iter().cloned().collect::<BTreeMap<_, _>>(),
        };
        let (bar, watch) = progress::steps(common.quiet);
        let searched = jobs::search(&settings, args.device.open()?, &watch);
        bar.finish_and_clear();
        Ok(searched?)
    };
    let searched = with_inputs_to(&output.destination, &inputs, common, search)?.made;
    print_notes(&searched.notes, common);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&searched)?);
    } else {
        print(args, &searched);
    }
    if args.write.is_some() {
        let output = jobs::merge(&searched.merge, &|_| ())?.output;
        print_notes(&output.notes, common);
        let (bar, report) = progress::writing(common.quiet);
        let written = output.write(&searched.merge.output.destination, &report)?;
        bar.finish_and_clear();
        crate::cli::output::print_written(Some(&written), args.json, common);
    }
    Ok(())
}

/// Prints a table of the trials, and the command that makes the best merge.
fn print(args: &SearchArgs, searched: &Searched) {
    let best = &searched.trials[searched.best - 1];
    let names: Vec<&String> = best.parameters.keys().collect();
    let heads: String = names.iter().map(|name| format!("{name:>12}")).collect();
    println!("trial{heads}        loss");
    for trial in &searched.trials {
        let values: String = names.iter().map(|name| format!("{:>12}", trial.parameters[*name].to_string())).collect();
        let loss = trial.loss.map_or_else(|| "none".to_owned(), |loss| format!("{loss:.6}"));
        let mark = if trial.trial == searched.best { "  best" } else { "" };
        println!("{:>5}{values}{loss:>12}{mark}", trial.trial);
    }
    let what = if args.kl.is_some() { "divergence" } else { "loss" };
    println!(
        "{}: {} trials, {} of them from before; least {what} {:.6} over {} tokens",
        args.output.display(),
        searched.trials.len(),
        searched.recorded,
        best.loss.unwrap_or(f64::NAN),
        searched.tokens
    );
    println!("{}", command(args, searched));
}

/// The command that makes the best merge.
fn command(args: &SearchArgs, searched: &Searched) -> String {
    let combine = &searched.merge.combine;
    let mut words = vec!["atombank merge".to_owned(), args.base.clone()];
    let weight = |weight: f64| if weight == 1.0 { String::new() } else { format!("={weight}") };
    words.extend(
        args.others.iter().zip(&searched.merge.others).map(|(o, found)| o.name.clone() + &weight(found.weight)),
    );
    words.extend(combine.method.as_ref().map(|method| format!("--method {method}")));
    let list = |values: &[f64]| values.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
    if !combine.density.is_empty() {
        words.push(format!("--density {}", list(&combine.density)));
    }
    let numbers = [
        ("t", combine.t),
        ("lambda", combine.lambda),
        ("gamma", combine.gamma),
        ("epsilon", combine.epsilon),
        ("select-topk", combine.select_topk),
    ];
    words.extend(numbers.iter().filter_map(|(name, value)| Some(format!("--{name} {}", (*value)?))));
    words.push("-o OUT".to_owned());
    words.join(" ")
}
