//! `atombank quantize`: quantizes a GGUF.

use anyhow::Result;
use atombank::checkpoint::hub::Need;
use atombank::jobs::{self, QuantizeSettings};
use atombank::quantize::{FileType, TensorOutcome};
use clap::Args;
use serde_json::json;

use super::Common;
use super::input::{Found, Input, with_inputs};
use super::output::{OutputArgs, print_written};

/// Arguments of `quantize`.
#[derive(Args)]
pub(crate) struct QuantizeArgs {
    /// A GGUF file, or any file of a split model. For --dry-run, the header is enough
    input: String,
    /// Give a key another value: KEY=VALUE or KEY=TYPE:VALUE; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    override_key: Vec<String>,
    /// Print JSON: what was written, or, with --dry-run, the type of each tensor
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &QuantizeArgs, common: &Common) -> Result<()> {
    let settings = |found: &[Found]| QuantizeSettings {
        input: found[0].path.clone(),
        output: args.output.settings(),
        override_key: args.override_key.clone(),
    };
    let input = Input::new(&args.input, Need::Model);
    if args.output.dry_run {
        let outcomes = |found: &[Found]| Ok(jobs::quantize_outcomes(&settings(found))?);
        let outcomes = with_inputs(&[input.values(false)], common, outcomes)?.made;
        return print_outcomes(args.output.r#type.as_deref(), &outcomes, args.json);
    }
    args.output.settings().destination.check()?;
    let quantize = |found: &[Found]| args.output.checked(jobs::quantize(&settings(found))?);
    let made = with_inputs(&[input], common, quantize)?.made;
    let written = args.output.write(&made, args.json, common)?;
    print_written(written.as_ref(), args.json, common);
    if let Some(written) = written.filter(|_| args.json) {
        println!("{}", serde_json::to_string_pretty(&written)?);
    }
    Ok(())
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

/// Prints the result of the quantization for each tensor.
fn print_outcomes(file_type: Option<&str>, outcomes: &[TensorOutcome], json: bool) -> Result<()> {
    let total = Total::of(outcomes);
    if json {
        let file_type: FileType = file_type.unwrap_or_default().parse()?;
        let json = json!({ "type": file_type.name(), "tensors": outcomes, "elements": total.elements,
            "bytes_before": total.before, "bytes": total.after, "bits_per_weight": total.bits_per_weight(),
            "needs_importance": total.needs_importance });
        println!("{}", serde_json::to_string_pretty(&json)?);
        return Ok(());
    }
    for o in outcomes {
        let shape = format!("{:?}", o.shape);
        let line =
            format!("{:<8} -> {:<8} {shape:<22} {:>13} {:>6.2} {}", o.from, o.to, o.bytes, o.bits_per_weight, o.name);
        println!("{line}");
    }
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
    Ok(())
}
