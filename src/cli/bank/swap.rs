//! `atombank bank swap`: exchanges the atoms of a bank of filter atoms.

use std::path::PathBuf;

use anyhow::Result;
use atombank::jobs::{self, SwapSettings, SwappedBank};
use atombank::output::Destination;
use clap::Args;
use serde_json::{Map, Value, json};

use super::finish::Finish;
use crate::cli::Common;

/// Arguments of `bank swap`.
#[derive(Args)]
pub(crate) struct SwapArgs {
    /// The bank of filter atoms whose coefficients stay
    bank: PathBuf,
    /// The new bank's folder
    #[arg(short, long, value_name = "BANK2")]
    output: PathBuf,
    /// Put D - 1 zeros between temporal taps. A model with this dilation computes the same without a swap
    #[arg(long, value_name = "D")]
    dilate_time: Option<usize>,
    /// Put D - 1 zeros between spatial taps, along both axes
    #[arg(long, value_name = "D")]
    dilate_space: Option<usize>,
    /// Resample temporal atoms to T taps
    #[arg(long, value_name = "T")]
    resize_time: Option<usize>,
    /// Resample spatial atoms to H x W taps
    #[arg(long, value_name = "HxW", value_parser = parse_size)]
    resize_space: Option<(usize, usize)>,
    /// Take the atoms of another bank, which has as many for each layer
    #[arg(long, value_name = "BANK3")]
    atoms_from: Option<PathBuf>,
    /// Replace an existing bank
    #[arg(long)]
    overwrite: bool,
    /// Print the new kernel sizes and what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON: kernel sizes and padding, and, with --dry-run, what would be written
    #[arg(long)]
    json: bool,
}

/// Parses `5x7`.
fn parse_size(text: &str) -> Result<(usize, usize), String> {
    let parsed =
        text.split_once(['x', 'X']).and_then(|(height, width)| Some((height.parse().ok()?, width.parse().ok()?)));
    parsed.ok_or_else(|| "expected HxW, like 5x5".to_owned())
}

pub(crate) fn run(args: &SwapArgs, common: &Common) -> Result<()> {
    let destination = Destination { overwrite: args.overwrite, ..Destination::new(&args.output) };
    let settings = SwapSettings {
        destination: destination.clone(),
        dilate_time: args.dilate_time,
        dilate_space: args.dilate_space,
        resize_time: args.resize_time,
        resize_space: args.resize_space,
        atoms_from: args.atoms_from.clone(),
        dry_run: args.dry_run,
        ..SwapSettings::new(&args.bank, &args.output)
    };
    destination.check_inputs(args.atoms_from.iter().map(PathBuf::as_path))?;
    let made = jobs::swap(&settings)?;
    let finish = Finish { destination: &destination, dry_run: args.dry_run, json: args.json, common };
    finish.run(&made.output, &made.output.notes, to_json(args, &made), || {
        made.sizes.iter().for_each(|change| println!("{change}"))
    })
}

fn to_json(args: &SwapArgs, made: &SwappedBank) -> Map<String, Value> {
    let layer = |change: &atombank::filter::SizeChange| {
        json!({ "module": change.module, "before": change.before.axes(), "kernel_size": change.after.axes(),
            "padding_grows_by": change.growth(), "padding": change.padding() })
    };
    let layers: Vec<Value> = made.sizes.iter().map(layer).collect();
    let found = [("output", json!(args.output)), ("layers", json!(layers))];
    found.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_are_two_numbers() {
        assert_eq!(parse_size("5x7"), Ok((5, 7)));
        assert_eq!(parse_size("1x0"), Ok((1, 0)));
        for wrong in ["5", "5x", "x5", "5x5x5", "-1x3", ""] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
