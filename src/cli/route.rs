//! `atombank route`: shows which atoms a prompt selects, and with which weights.

mod rows;

use std::path::PathBuf;

use anyhow::Result;
use atombank::bank::{AtomBank, LEAST_SHOWN, Request, RoutedBy, Routes, route};
use atombank::checkpoint::hub::Need;
use atombank::error::Error;
use atombank::model::{LanguageModel, Residence};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::Common;
use super::device::DeviceArgs;
use super::input::{Found, Input, with_inputs};

/// The subject of the library's error for routing by the prior without an instruction.
const PRIOR: &str = "routing by the prior";

/// What determines a routing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    Model,
    Prior,
}

impl By {
    pub(crate) fn by(self) -> RoutedBy {
        match self {
            By::Model => RoutedBy::Model,
            By::Prior => RoutedBy::Prior,
        }
    }
}

/// Arguments of `route`.
#[derive(Args)]
pub(crate) struct RouteArgs {
    /// The base model: a Hugging Face folder or a GGUF, or a name on the hub: hf:org/name[@revision]
    base: PathBuf,
    /// The atom bank's folder or GGUF
    bank: PathBuf,
    /// The instruction
    #[arg(long)]
    instruction: Option<String>,
    /// A prompt; if given several times, the mean of the routings is shown
    #[arg(long)]
    prompt: Vec<String>,
    /// Route each row of a data file, as training reads it, and show which rows pick which atoms
    #[arg(long, value_name = "FILE", conflicts_with_all = ["instruction", "prompt", "prompts"])]
    data: Option<PathBuf>,
    /// Route each line of a file as a prompt, and show which lines pick which atoms
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompts: Option<PathBuf>,
    /// What determines the routing: the model's forward pass, or the language prior alone
    #[arg(long, value_enum, default_value_t = By::Model)]
    routing: By,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &RouteArgs, common: &Common) -> Result<()> {
    if args.data.is_some() || args.prompts.is_some() {
        return rows::run(args, common);
    }
    let inputs = [Input::new(&args.base, Need::Model), Input::new(&args.bank, Need::Adapter)];
    let route = |found: &[Found]| {
        let (base, bank) = (&found[0].path, &found[1].path);
        let bank = AtomBank::open(bank)?;
        let LanguageModel { decoder, encoder } = LanguageModel::open(base, Residence::Streamed, args.device.open()?)?;
        let request =
            Request { instruction: args.instruction.clone().unwrap_or_default(), prompts: args.prompt.clone() };
        let routes = route(&decoder, &bank, &encoder, &request, args.routing.by()).map_err(with_option)?;
        Ok((routes, decoder))
    };
    let (routes, decoder) = with_inputs(&inputs, common, route)?.made;
    let longest = routes.sequences.iter().map(|sequence| sequence.ids.len()).max().unwrap_or_default();
    super::output::print_notes(&decoder.length_note(longest).into_iter().collect::<Vec<_>>(), common);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&routes_json(&routes))?);
    } else {
        print_blocks(&routes.mean());
        println!("prior     {}", show(&routes.prior));
    }
    Ok(())
}

/// Names the option that is missing.
fn with_option(error: Error) -> Error {
    match error {
        Error::Mismatch(finding) if finding.subject == PRIOR && finding.hint.is_empty() => {
            finding.hint("pass --instruction").mismatch()
        }
        other => other,
    }
}

pub(crate) fn routes_json(routes: &Routes) -> serde_json::Value {
    json!({
        "prior": routes.prior,
        "alphas": routes.mean(),
        "prompts": routes.sequences.iter().zip(&routes.by_prompt)
            .map(|(s, alphas)| json!({ "routed_tokens": s.routed, "alphas": alphas })).collect::<Vec<_>>(),
    })
}

/// Prints the atoms by weight, one line per block.
pub(crate) fn print_blocks(alphas: &[Vec<f32>]) {
    for (block, alpha) in alphas.iter().enumerate() {
        println!("block {block:<3} {}", show(alpha));
    }
}

/// "#3 0.62  #0 0.38": atoms with a weight of at least half a percent, largest first.
pub(crate) fn show(alpha: &[f32]) -> String {
    let mut atoms: Vec<(usize, f32)> = alpha.iter().copied().enumerate().filter(|(_, a)| *a >= LEAST_SHOWN).collect();
    atoms.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    atoms.iter().map(|(i, a)| format!("#{i} {a:.2}")).collect::<Vec<_>>().join("  ")
}
