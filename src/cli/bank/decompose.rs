//! `atombank bank decompose`: makes a bank of filter atoms of a model's convolutions.

use std::path::PathBuf;

use anyhow::Result;
use atombank::checkpoint::hub::Need;
use atombank::jobs::{self, DecomposeSettings, Decomposed};
use atombank::output::Destination;
use clap::Args;
use serde_json::{Map, Value, json};

use super::finish::Finish;
use crate::cli::input::{Found, Input, with_inputs};
use crate::cli::{Common, progress};

/// The width of the column of modules.
const MODULE: usize = 32;

/// Arguments of `bank decompose`.
#[derive(Args)]
pub(crate) struct DecomposeArgs {
    /// The model: a Hugging Face folder, a file of tensors (.safetensors, .pt, .pth, .pth.tar), or a name on the hub:
    /// hf:org/name[@revision]
    model: String,
    /// The bank's folder
    #[arg(short, long, value_name = "BANK")]
    output: PathBuf,
    /// Spatial atoms of each layer. Fewer than taps compress, and cost accuracy until the bank is trained [default:
    /// all]
    #[arg(long, value_name = "M")]
    spatial_atoms: Option<usize>,
    /// Temporal atoms of each layer, for kernels of one or three dimensions [default: all]
    #[arg(long, value_name = "N")]
    temporal_atoms: Option<usize>,
    /// Choose the numbers of atoms: as few as keep this share of a kernel's squared norm, such as 0.95
    #[arg(long, value_name = "E")]
    energy: Option<f64>,
    /// One set of atoms for all layers of a kernel size
    #[arg(long)]
    shared: bool,
    /// Decompose only modules whose path ends in a match of this pattern
    #[arg(long, value_name = "REGEX")]
    targets: Option<String>,
    /// Leave modules dense whose path ends in a match of this pattern
    #[arg(long, value_name = "REGEX")]
    exclude: Option<String>,
    /// The type of the bank's tensors: f32, f16 or bf16 [default: f32]
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// The part of a PyTorch file with the weights, such as state_dict
    #[arg(long, value_name = "PART")]
    key: Option<String>,
    /// Replace an existing bank
    #[arg(long)]
    overwrite: bool,
    /// Print the errors and what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON: numbers of atoms, energies and errors, and, with --dry-run, what would be written
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &DecomposeArgs, common: &Common) -> Result<()> {
    let destination = Destination { overwrite: args.overwrite, ..Destination::new(&args.output) };
    let decompose = |found: &[Found]| {
        let settings = DecomposeSettings {
            model_id: found[0].id.clone(),
            key: args.key.clone(),
            destination: destination.clone(),
            temporal_atoms: args.temporal_atoms,
            spatial_atoms: args.spatial_atoms,
            energy: args.energy,
            shared: args.shared,
            targets: args.targets.clone(),
            exclude: args.exclude.clone(),
            r#type: args.r#type.clone(),
            dry_run: args.dry_run,
            ..DecomposeSettings::new(&found[0].path, &args.output)
        };
        let (bar, watch) = progress::steps(common.quiet);
        let made = jobs::decompose(&settings, &watch);
        bar.finish_and_clear();
        Ok(made?)
    };
    let made = with_inputs(&[Input::new(&args.model, Need::Model)], common, decompose)?.made;
    let finish = Finish { destination: &destination, dry_run: args.dry_run, json: args.json, common };
    finish.run(&made.output, &made.output.notes, to_json(args, &made), || print_table(&made))
}

fn print_table(made: &Decomposed) {
    println!(
        "{:<MODULE$} {:>8} {:>3} {:>3} {:>10} {:>10} {:>10} {:>10}",
        "module", "kernel", "n", "m", "values", "of", "energy", "error"
    );
    for row in &made.layers {
        println!(
            "{:<MODULE$} {:>8} {:>3} {:>3} {:>10} {:>10} {:>10.6} {:>10.3e}",
            row.module,
            row.kernel,
            row.temporal,
            row.spatial,
            row.values,
            row.of,
            row.energy,
            Exponent(row.error)
        );
        row.also.iter().for_each(|module| println!("{module:<MODULE$} the same kernel as {}", row.module));
    }
    let (of, count) = totals(made);
    println!(
        "{} convolution{}: {} values instead of {of}; energy {:.6}, error {:.3e}",
        count,
        if count == 1 { "" } else { "s" },
        made.values,
        made.missed.energy(),
        Exponent(made.missed.error())
    );
    // Half a percent of a norm is far more than rounding, and already visible in outputs.
    if made.missed.error() > 0.005 {
        println!(
            "{:.1} % of the kernels, in norm, are missing: train the bank before it is used, or use all atoms",
            100.0 * made.missed.error()
        );
    }
}

/// A number whose exponent is shown as Python shows it: `7.037e-02`.
struct Exponent(f64);

impl std::fmt::LowerExp for Exponent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = f.precision().unwrap_or(3);
        let text = format!("{:.digits$e}", self.0);
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or_default();
        let sign = if exponent < 0 { '-' } else { '+' };
        let shown = format!("{mantissa}e{sign}{:02}", exponent.abs());
        match f.width() {
            Some(width) => write!(f, "{shown:>width$}"),
            None => f.write_str(&shown),
        }
    }
}

/// The values of the dense kernels of all modules, as the bank has coefficients for each of them, and the number of modules.
fn totals(made: &Decomposed) -> (usize, usize) {
    let add = |(of, count): (usize, usize), names: usize, values: usize| (of + values * names, count + names);
    made.layers.iter().fold((0, 0), |sum, row| add(sum, 1 + row.also.len(), row.of))
}

fn to_json(args: &DecomposeArgs, made: &Decomposed) -> Map<String, Value> {
    let (of, _) = totals(made);
    let found = [
        ("output", json!(args.output)),
        ("shared", json!(args.shared)),
        ("layers", json!(made.layers)),
        ("values", json!(made.values)),
        ("of", json!(of)),
        ("energy", json!(made.missed.energy())),
        ("error", json!(made.missed.error())),
    ];
    found.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}
