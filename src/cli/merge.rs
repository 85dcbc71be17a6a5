//! `atombank merge`: merges adapters into their base, as a folder or a GGUF.

mod config;
mod method;
#[cfg(feature = "train")]
mod moe;
#[cfg(feature = "train")]
mod search;
mod ways;

use std::path::{Path, PathBuf};

use anyhow::Result;
use atombank::checkpoint::hub::Need;
use atombank::convert::Content;
use atombank::jobs::{self, Adapted, MergeInput, MergeSettings, TokenizerChoice, VocabularyChoice};
use atombank::merge::{BaseQuant, Truncation};
use atombank::output::Written;
use clap::Args;

use super::alone::AloneArgs;
use super::input::{Found, Input, Made, parse_content, with_inputs_to};
use super::output::{OutputArgs, print_written};
use super::{Common, progress, truncation};
use method::MethodArgs;
pub(crate) use ways::Merging;

/// Arguments of `merge`.
#[derive(Args)]
pub(crate) struct MergeArgs {
    /// The base model: a Hugging Face folder, a .gguf, a .safetensors or PyTorch file of tensors alone, or a name on the
    /// hub: hf:org/name[@revision]
    #[arg(required_unless_present = "config")]
    base: Option<String>,
    /// Adapters: folders as PEFT saves them, LoRAs in .gguf, files of kohya or LyCORIS in .safetensors. With --method,
    /// also other models of the base's shape. NAME=WEIGHT gives one a weight
    #[arg(required_unless_present = "config", value_name = "ADAPTER[=WEIGHT]", value_parser = parse_weighted)]
    others: Vec<Weighted>,
    /// Merge models as a configuration of mergekit says, in YAML; in place of BASE, ADAPTERs and --method
    #[arg(long, value_name = "FILE", conflicts_with_all = ["base", "others", "key", "keep_base", "base_quant", "strip_prefix", "expand_shared", "into", "content", "tokenizer", "tokenizer_source", "pad_to_multiple_of"])]
    config: Option<PathBuf>,
    /// The part of a PyTorch file that is the base, such as state_dict
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    #[command(flatten)]
    alone: AloneArgs,
    /// Refuse a quantized base, because weights that the adapter changes would be rounded again
    #[arg(long)]
    keep_base: bool,
    /// Round the base's linear layers to this type first, as bitsandbytes had them while the adapters were trained
    /// (QLoRA): nf4, fp4 or int8
    #[arg(long, value_name = "TYPE", value_parser = parse_base_quant)]
    base_quant: Option<BaseQuant>,
    /// With --base-quant nf4 or fp4: quantize the scales, too, as bnb_4bit_use_double_quant does
    #[arg(long, requires = "base_quant")]
    double_quant: bool,
    /// How to read one of the other folders that has both a model and adapter_config.json: model or adapter [default:
    /// model]
    #[arg(long = "as", value_name = "CONTENT", value_parser = parse_content)]
    content: Option<Content>,
    /// The source of the result's tokenizer and chat template: base, adapter, or a folder with a tokenizer [default:
    /// adapter if its tokenizer differs from the base's and fits the model, otherwise base]
    #[arg(long, value_name = "base|adapter|FOLDER", value_parser = parse_tokenizer)]
    tokenizer: Option<TokenizerChoice>,
    /// With --method for models: match the rows of embeddings and output head by token, and give the result the
    /// tokenizer of BASE (base), that with the other models' tokens too (union), or a model's
    #[arg(long, value_name = "base|union|MODEL", value_parser = parse_source)]
    tokenizer_source: Option<VocabularyChoice>,
    /// Make the number of rows of the embeddings a multiple of N; the added rows are the mean of the others
    #[arg(long, value_name = "N")]
    pad_to_multiple_of: Option<usize>,
    /// Print JSON: what was written and the error of truncating to a rank, or, with --dry-run, what would be written
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// An adapter or a model, and its weight.
#[derive(Debug, Clone)]
struct Weighted {
    name: String,
    weight: f64,
}

/// Parses `NAME` or `NAME=WEIGHT`.
fn parse_weighted(text: &str) -> Result<Weighted, String> {
    let whole = Weighted { name: text.into(), weight: 1.0 };
    if Path::new(text).exists() {
        return Ok(whole);
    }
    if let Some((path, share)) = text.rsplit_once('=') {
        return match share.parse::<f64>() {
            Ok(weight) if weight.is_finite() => Ok(Weighted { name: path.into(), weight }),
            Ok(_) => Err("expected a finite weight".to_owned()),
            Err(_) if share.is_empty() || share.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) => {
                Err(format!("expected NAME=WEIGHT with a number, like {path}=0.7"))
            }
            Err(_) => Ok(whole),
        };
    }
    if let Some((path, share)) = text.rsplit_once(':')
        && share.parse::<f64>().is_ok()
        && Path::new(path).exists()
    {
        return Err(format!("expected NAME=WEIGHT: {path}={share}"));
    }
    Ok(whole)
}

fn parse_base_quant(text: &str) -> Result<BaseQuant, String> {
    let found = BaseQuant::ALL.iter().find(|(name, _)| *name == text);
    found.map(|(_, quant)| *quant).ok_or_else(|| "expected nf4, fp4 or int8".to_owned())
}

fn parse_tokenizer(text: &str) -> Result<TokenizerChoice, String> {
    Ok(match text {
        "base" => TokenizerChoice::Base,
        "adapter" => TokenizerChoice::Adapter,
        folder => TokenizerChoice::Folder(folder.into()),
    })
}

fn parse_source(text: &str) -> Result<VocabularyChoice, String> {
    Ok(match text {
        "base" => VocabularyChoice::Base,
        "union" => VocabularyChoice::Union,
        model => VocabularyChoice::Folder(model.into()),
    })
}

/// The source with the path of the input of that name, where it is one of the models.
fn of_input(source: &VocabularyChoice, args: &MergeArgs, found: &[Found]) -> VocabularyChoice {
    let names = args.base.iter().chain(args.others.iter().map(|other| &other.name));
    let named = |folder: &Path| names.zip(found).find(|(name, _)| Path::new(name) == folder).map(|(_, found)| found);
    match source {
        VocabularyChoice::Folder(folder) => {
            VocabularyChoice::Folder(named(folder).map_or_else(|| folder.clone(), |found| found.path.clone()))
        }
        other => other.clone(),
    }
}

fn run(args: &MergeArgs, common: &Common) -> Result<()> {
    let output = args.alone.applied_to(args.output.settings());
    if let Some(file) = &args.config {
        return config::run(file, args, output, common);
    }
    output.check()?;
    let base = args.base.as_deref().unwrap_or_default();
    let values = !args.output.dry_run;
    let others = args.others.iter().map(|other| Input::new(&other.name, Need::Everything));
    let inputs = [Input::new(base, Need::Model)].into_iter().chain(others);
    let inputs: Vec<Input<'_>> = inputs.map(|input| input.values(values)).collect();
    let merge = |found: &[Found]| {
        let other = |(found, other): (&Found, &Weighted)| MergeInput {
            path: found.path.clone(),
            id: found.id.clone(),
            weight: other.weight,
        };
        let settings = MergeSettings {
            base: found[0].path.clone(),
            base_id: found[0].id.clone(),
            others: found[1..].iter().zip(&args.others).map(other).collect(),
            key: args.key.clone(),
            strip_prefix: args.alone.strip_prefix.clone(),
            output: output.clone(),
            combine: args.method.settings(),
            keep_base: args.keep_base,
            base_quant: args.base_quant,
            double_quant: args.double_quant,
            others_as: args.content,
            tokenizer: args.tokenizer.clone().unwrap_or_default(),
            tokenizer_source: args.tokenizer_source.as_ref().map(|source| of_input(source, args, found)),
            pad_to_multiple_of: args.pad_to_multiple_of,
        };
        let (bar, watch) = progress::steps(common.quiet);
        let made = jobs::merge(&settings, &watch);
        bar.finish_and_clear();
        let Adapted { output, truncations } = made?;
        Ok(Adapted { output: args.output.checked(output)?, truncations })
    };
    let Made { mut made, outlines } = with_inputs_to(&output.destination, &inputs, common, merge)?;
    outlines.put_real_paths(&mut made.output.notes);
    let written = args.output.write(&made.output, args.json, common)?;
    if args.json {
        print_json(written.as_ref(), &made.truncations)?;
    } else if !made.truncations.is_empty() {
        truncation::print_table(&made.truncations, &[]);
        let (output, together) =
            (args.output.output.display(), truncation::together(Truncation::together(&made.truncations)));
        println!("{output}: {} modules cut to a rank{together}", made.truncations.len());
    }
    print_written(written.as_ref(), args.json, common);
    Ok(())
}

/// Prints what was written as JSON.
fn print_json(written: Option<&Written>, truncations: &[Truncation]) -> Result<()> {
    if let Some(written) = written {
        let json = serde_json::json!({ "written": written, "truncations": truncations });
        println!("{}", serde_json::to_string_pretty(&json)?);
    }
    Ok(())
}
