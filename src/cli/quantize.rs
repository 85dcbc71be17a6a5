//! `atombank quantize`: a GGUF into a smaller one.

use std::path::{Path, PathBuf};

use anyhow::Result;
use atombank::error::Finding;
use atombank::formats::gguf::Override;
use atombank::formats::gguf::{GgufHeader, GgufModel, Metadata};
use atombank::plan::{Plan, TensorRef};
use atombank::quantize::{FileType, TensorOutcome, outcomes};
use atombank::source::TensorInfo;
use clap::Args;
use serde_json::json;

use super::Common;
use super::output::{Kind, OutputArgs};

/// Arguments of `quantize`.
#[derive(Args)]
pub(crate) struct QuantizeArgs {
    /// A GGUF file; of a split model any of its files. For --dry-run the header is enough
    input: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
    /// Give a key another value: KEY=VALUE or KEY=TYPE:VALUE; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    override_key: Vec<String>,
    /// Print what would be written as JSON, with --dry-run
    #[arg(long, requires = "dry_run")]
    json: bool,
}

pub(crate) fn run(args: &QuantizeArgs, common: &Common) -> Result<()> {
    let file_type = args.file_type()?;
    if args.output.dry_run {
        return args.dry_run(file_type);
    }
    args.output.check_absent()?;
    let overrides: Vec<Override> =
        args.override_key.iter().map(|text| Override::parse(text)).collect::<atombank::Result<_>>()?;
    let model = GgufModel::open(&args.input)?;
    let taken: Plan = model.tensors().iter().cloned().collect();
    let made = args.output.recipe.quantize(file_type, model.metadata(), &taken, &overrides)?;
    args.output.write_output(made, common)
}

impl QuantizeArgs {
    fn file_type(&self) -> Result<FileType> {
        let found = |option| Finding::new(&self.input, option).found("it");
        if self.output.kind() != Kind::Gguf {
            let finding = Finding::new(&self.output.output, "output").expected("a name that ends in .gguf");
            return Err(finding.found("another").hint("or --to gguf").mismatch().into());
        }
        if self.output.pre.is_some() {
            return Err(found("--pre").expected("to be without it: the vocabulary stays").mismatch().into());
        }
        match &self.output.r#type {
            Some(name) => Ok(name.parse()?),
            None => {
                let finding = Finding::new(&self.input, "--type").expected("a file type, like Q4_K_M").found("none");
                Err(finding.mismatch().into())
            }
        }
    }

    /// Prints what would become of each tensor. Only headers are read.
    fn dry_run(&self, file_type: FileType) -> Result<()> {
        let (metadata, tensors) = headers(&self.input)?;
        let recipe = self.output.recipe.recipe(file_type)?;
        let outcomes = outcomes(&recipe, &metadata, &tensors, self.output.recipe.is_led())?;
        if self.json {
            let total = Total::of(&outcomes);
            let json = json!({ "type": file_type.name(), "tensors": outcomes, "elements": total.elements,
                "bytes_before": total.before, "bytes": total.after, "bits_per_weight": total.bits_per_weight(),
                "needs_importance": total.needs_importance });
            println!("{}", serde_json::to_string_pretty(&json)?);
            return Ok(());
        }
        print_outcomes(&outcomes);
        Ok(())
    }
}

/// Keys and tensors of a model: of all its files, or of the header that is there.
fn headers(path: &Path) -> Result<(Metadata, Vec<TensorInfo>)> {
    match GgufModel::open(path) {
        Ok(model) => {
            let tensors = model.tensors().iter().map(TensorRef::info).cloned().collect();
            Ok((model.metadata().clone(), tensors))
        }
        // The data may be missing. If the header is damaged, that is the same error again.
        Err(_) => {
            let header = GgufHeader::read(path)?;
            Ok((header.metadata, header.tensors))
        }
    }
}

/// Sums over all tensors.
struct Total {
    elements: u64,
    before: u64,
    after: u64,
    needs_importance: bool,
}

impl Total {
    fn of(outcomes: &[TensorOutcome]) -> Self {
        Self {
            elements: outcomes.iter().map(|o| o.shape.iter().map(|&d| d as u64).product::<u64>()).sum(),
            before: outcomes.iter().map(|o| o.bytes_before).sum(),
            after: outcomes.iter().map(|o| o.bytes).sum(),
            needs_importance: outcomes.iter().any(|o| o.needs_importance),
        }
    }

    fn bits_per_weight(&self) -> f64 {
        self.after as f64 * 8.0 / self.elements.max(1) as f64
    }
}

fn print_outcomes(outcomes: &[TensorOutcome]) {
    for o in outcomes {
        let shape = format!("{:?}", o.shape);
        println!("{:<8} -> {:<8} {shape:<22} {:>13} {:>6.2} {}", o.from, o.to, o.bytes, o.bits_per_weight, o.name);
    }
    let total = Total::of(outcomes);
    println!(
        "{} tensors, {} bytes -> {} bytes, {:.2} bits per weight",
        outcomes.len(),
        total.before,
        total.after,
        total.bits_per_weight()
    );
    if total.needs_importance {
        println!("needs an importance matrix (--imatrix)");
    }
}
