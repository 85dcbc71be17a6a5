//! `atombank compare`: compares the tensors of two models, as a table or JSON.

use anyhow::Result;
use atombank::checkpoint::hub::Need;
use atombank::convert::Opening;
use atombank::report::Comparison;
use atombank::report::compare::{Difference, Form, Outcome, TensorComparison, sides_of};
use clap::Args;

use super::input::{Found, Input, with_inputs};
use super::{Common, progress};

/// Number of tensors in the table of the worst ones.
const WORST: usize = 10;

/// Arguments of `compare`.
#[derive(Args)]
#[command(
    after_help = "Tensors are matched by name: two GGUFs by their own names, a GGUF and anything else by Hugging \
    Face's. Values are compared decoded, as f32. The exit code is 0 whenever the comparison was made, whatever it \
    found; --json tells programs what that is. Models without a tensor of the same name can't be compared: exit code 1."
)]
pub(crate) struct CompareArgs {
    /// What to compare with, like the original: a model folder, a .gguf, .safetensors, .bin, .pt,
    /// .pth or .ckpt file, or a name on the Hugging Face hub: hf:org/name[@revision]
    a: String,
    /// What to compare, like the quantized model: any of these, too
    b: String,
    /// The part of A, if it is a PyTorch file, such as state_dict
    #[arg(long, value_name = "NAME")]
    key_a: Option<String>,
    /// The part of B, if it is one
    #[arg(long, value_name = "NAME")]
    key_b: Option<String>,
    /// What to take off the names of tensors alone that begin with it, such as module.
    #[arg(long, value_name = "PREFIX")]
    strip_prefix: Option<String>,
    /// List every tensor, not just the worst ten
    #[arg(long)]
    tensors: bool,
    /// Print JSON: everything
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &CompareArgs, common: &Common) -> Result<()> {
    let inputs = [&args.a, &args.b].map(|input| Input::new(input, Need::Everything));
    fn opening<'a>(key: &'a Option<String>, prefix: &'a Option<String>) -> Opening<'a> {
        Opening { key: key.as_deref(), strip_prefix: prefix.as_deref(), ..Opening::default() }
    }
    let openings = [&args.key_a, &args.key_b].map(|key| opening(key, &args.strip_prefix));
    let look = |found: &[Found]| Ok(sides_of((&found[0].path, openings[0]), (&found[1].path, openings[1]))?);
    let (a, b) = with_inputs(&inputs, common, look)?.made;
    let bar = progress::bar(0, "comparing [{bar:30}] {percent}% {eta}", common.quiet);
    let comparison = Comparison::watched(&a, &b, &|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&comparison)?);
        return Ok(());
    }
    print_totals(args, &comparison);
    if args.tensors {
        heading();
        comparison.tensors.iter().for_each(print_tensor);
        return Ok(());
    }
    let (compared, others): (Vec<_>, Vec<_>) =
        comparison.tensors.iter().partition(|t| matches!(t.outcome, Outcome::Compared(_)));
    let mut differing: Vec<(&Difference, &TensorComparison)> = compared
        .into_iter()
        .filter_map(|t| match &t.outcome {
            Outcome::Compared(difference) if !difference.identical => Some((difference, t)),
            _ => None,
        })
        .collect();
    differing.sort_by(|(x, _), (y, _)| y.badness().total_cmp(&x.badness()));
    if !(differing.is_empty() && others.is_empty()) {
        heading();
    }
    differing.iter().take(WORST).for_each(|(_, t)| print_tensor(t));
    if differing.len() > WORST {
        println!("{} more differ (--tensors)", differing.len() - WORST);
    }
    others.into_iter().for_each(print_tensor);
    Ok(())
}

fn row(name: &str, value: impl std::fmt::Display) {
    println!("{name:<20} {value}");
}

fn print_totals(args: &CompareArgs, comparison: &Comparison) {
    let totals = &comparison.totals;
    row("A", &args.a);
    row("B", &args.b);
    row("tensors compared", totals.compared);
    row("identical", totals.identical);
    row("elements", totals.elements);
    if totals.compared > 0 {
        row("relative error", relative(totals.relative_error));
        row("max |difference|", number(totals.max_difference));
    }
    if let Some(worst) = &totals.worst {
        row("worst tensor", worst);
    }
    for (name, count) in [
        ("only in A", totals.only_in_a),
        ("only in B", totals.only_in_b),
        ("other shape", totals.other_shape),
        ("not decoded", totals.not_decoded),
    ] {
        if count > 0 {
            row(name, count);
        }
    }
}

fn heading() {
    println!("\n{:>10} {:>10} {:>10}  {:<16} {:<22} tensor", "relative", "rms", "max", "types", "shape");
}

fn print_tensor(tensor: &TensorComparison) {
    let (relative, rms, max) = match &tensor.outcome {
        Outcome::Compared(d) if d.identical => ("identical".to_owned(), String::new(), String::new()),
        Outcome::Compared(d) => (relative(d.relative_error), number(d.rms_difference), number(d.max_difference)),
        Outcome::OnlyInA => return print_other("only in A", tensor, None),
        Outcome::OnlyInB => return print_other("only in B", tensor, None),
        Outcome::OtherShape => return print_other("other shape", tensor, None),
        Outcome::NotDecoded { reason, same_bytes } => {
            let what = match same_bytes {
                Some(true) => "not decoded, same bytes",
                Some(false) => "not decoded, other bytes",
                None => "not decoded",
            };
            return print_other(what, tensor, Some(reason));
        }
    };
    println!("{relative:>10} {rms:>10} {max:>10}  {:<16} {:<22} {}", types(tensor), shapes(tensor), tensor.name);
}

/// Prints a line for a tensor whose values weren't compared, with words instead of numbers.
fn print_other(what: &str, tensor: &TensorComparison, reason: Option<&String>) {
    let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    println!("{what:<32}  {:<16} {:<22} {}{reason}", types(tensor), shapes(tensor), tensor.name);
}

/// The tensor's form in both models, printed once if it is the same.
fn either(tensor: &TensorComparison, part: impl Fn(&Form) -> String) -> String {
    match (tensor.a.as_ref().map(&part), tensor.b.as_ref().map(&part)) {
        (Some(a), Some(b)) if a != b => format!("{a} -> {b}"),
        (a, b) => a.or(b).unwrap_or_default(),
    }
}

fn types(tensor: &TensorComparison) -> String {
    either(tensor, |form| form.dtype.clone())
}

fn shapes(tensor: &TensorComparison) -> String {
    either(tensor, |form| format!("{:?}", form.shape))
}

/// Formats a difference relative to A's values.
fn relative(error: Option<f64>) -> String {
    error.map_or("A is zero".to_owned(), number)
}

fn number(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.3e}") }
}
