//! `atombank extract`: extracts a LoRA from a base and a model finetuned from it.

use std::path::Path;

use anyhow::Result;
use atombank::checkpoint::hub::Need;
use atombank::jobs::{self, ExtractSettings, OutputKind};
use atombank::merge::extract::Extraction;
use clap::Args;
use serde_json::{Map, Value, json};

use super::input::{Found, Input, with_inputs_to};
use super::output::{OutputArgs, print_written};
use super::{Common, progress, truncation};

/// Arguments of `extract`.
#[derive(Args)]
#[command(after_help = "The error of a module is the Frobenius norm of what its update misses, relative to the whole \
    change; energy is the share of the change's squared norm that the update's singular values hold. Embeddings, \
    output head and norms that changed are saved whole, biases with PEFT's bias: all.")]
pub(crate) struct ExtractArgs {
    /// The base model: a Hugging Face folder, a .safetensors or PyTorch file, or a name on the hub:
    /// hf:org/name[@revision]
    base: String,
    /// The finetuned model, in one of the same forms
    finetuned: String,
    /// The part of the base, if it is a PyTorch file, such as state_dict
    #[arg(long, value_name = "NAME")]
    key_a: Option<String>,
    /// The part of the finetuned model, if it is one
    #[arg(long, value_name = "NAME")]
    key_b: Option<String>,
    /// What to take off the names of tensors alone that begin with it, such as module.
    #[arg(long, value_name = "PREFIX")]
    strip_prefix: Option<String>,
    /// The largest rank of a module's update
    #[arg(long, alias = "max-rank", value_name = "R", default_value_t = 32, value_parser = parse_rank)]
    rank: usize,
    /// The share of a module's change to keep, such as 0.9: it gets the smallest rank that keeps it
    #[arg(long, value_name = "SHARE", value_parser = parse_energy)]
    energy: Option<f64>,
    /// Leave out singular values up to this one
    #[arg(long, value_name = "S", default_value_t = 0.0)]
    sv_epsilon: f64,
    /// Only modules whose path has a match of a regular expression, beside embeddings and output
    /// head; may be repeated
    #[arg(long, value_name = "PATTERN")]
    include_regex: Vec<String>,
    /// No modules whose path has a match of a regular expression; may be repeated
    #[arg(long, value_name = "PATTERN")]
    exclude_regex: Vec<String>,
    /// A module to save whole if it changed, by its path or the last part of it; may be repeated
    #[arg(long, value_name = "MODULE")]
    save_module: Vec<String>,
    /// Decompose embeddings and output head, too, instead of saving them whole
    #[arg(long)]
    embed_lora: bool,
    /// Leave out what can't be decomposed: norms, routers, experts
    #[arg(long)]
    skip_undecomposable: bool,
    /// The seed of random numbers; results don't depend on the number of threads
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print JSON: everything, and, with --dry-run, what would be written
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    output: OutputArgs,
}

fn parse_rank(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|rank| (1..=65536).contains(rank)).ok_or_else(|| "expected a rank from 1 on".to_owned())
}

fn parse_energy(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| "expected a share above 0, and 1 at most".to_owned())
}

pub(crate) fn run(args: &ExtractArgs, common: &Common) -> Result<()> {
    let mut output = args.output.settings();
    output.to.get_or_insert(OutputKind::Lora);
    output.check()?;
    let extract = |found: &[Found]| {
        let settings = ExtractSettings {
            base: found[0].path.clone(),
            finetuned: found[1].path.clone(),
            key_a: args.key_a.clone(),
            key_b: args.key_b.clone(),
            strip_prefix: args.strip_prefix.clone(),
            output: output.clone(),
            base_id: found[0].id.clone(),
            rank: args.rank,
            energy: args.energy,
            seed: args.seed,
            sv_epsilon: args.sv_epsilon,
            include_regex: args.include_regex.clone(),
            exclude_regex: args.exclude_regex.clone(),
            save_module: args.save_module.clone(),
            embed_lora: args.embed_lora,
            skip_undecomposable: args.skip_undecomposable,
        };
        let (bar, watch) = progress::steps(common.quiet);
        let made = jobs::extract(&settings, &watch);
        bar.finish_and_clear();
        Ok(made?)
    };
    let inputs = [&args.base, &args.finetuned].map(|input| Input::new(input, Need::Model));
    let made = with_inputs_to(&args.output.settings().destination, &inputs, common, extract)?.made;
    let written = match args.json {
        true => {
            let (planned, written) = match args.output.dry_run {
                true => (args.output.planned(&made.output, common)?, None),
                false => (Map::new(), args.output.write(&made.output, true, common)?),
            };
            print_json(&made.extraction, planned)?;
            written
        }
        false => {
            let written = args.output.write(&made.output, false, common)?;
            print_table(&made.extraction, &args.output.output);
            written
        }
    };
    print_written(written.as_ref(), args.json, common);
    Ok(())
}

/// Prints everything as JSON, including what would be written with --dry-run.
fn print_json(extraction: &Extraction, planned: Map<String, Value>) -> Result<()> {
    let whole = |tensor: &atombank::plan::PlannedTensor| json!({ "name": tensor.name, "dtype": tensor.dtype.to_string(), "shape": tensor.shape });
    let mut found = json!({
        "modules": extraction.modules,
        "whole": extraction.saved.iter().map(whole).collect::<Vec<_>>(),
        "totals": extraction.totals,
    });
    found.as_object_mut().expect("an object").extend(planned);
    println!("{}", serde_json::to_string_pretty(&found)?);
    Ok(())
}

fn print_table(extraction: &Extraction, output: &Path) {
    truncation::print_table(&extraction.modules, &extraction.saved);
    let totals = &extraction.totals;
    println!(
        "{}: {} modules ({} unchanged{}), {} tensors whole, {} values, {:.1} % of the base's{}",
        output.display(),
        totals.modules,
        totals.unchanged,
        if totals.negligible > 0 {
            format!(", {} of them but for small singular values", totals.negligible)
        } else {
            String::new()
        },
        extraction.saved.len(),
        totals.values,
        100.0 * totals.values as f64 / totals.base_values.max(1) as f64,
        truncation::together(totals.energy.zip(totals.relative_error)),
    );
}
