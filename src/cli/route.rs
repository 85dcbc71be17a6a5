//! `atombank route`: shows which atoms a prompt selects, and with which weights.

use std::path::PathBuf;

use anyhow::Result;
use atombank::bank::{AtomBank, Request, RoutedBy, Routes, route};
use atombank::checkpoint::hub::Need;
use atombank::error::Error;
use atombank::model::{Decoder, LanguageModel, Residence, TextEncoder};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::Common;
use super::device::DeviceArgs;
use super::input::{Found, Input, with_inputs};

/// Arguments that describe a routing.
#[derive(Args)]
pub(crate) struct RequestArgs {
    /// The instruction to fix
    #[arg(long)]
    pub(crate) instruction: Option<String>,
    /// A prompt; if given several times, the mean of the routings is used
    #[arg(long)]
    pub(crate) prompt: Vec<String>,
    /// What determines the routing: the model's forward pass, or the language prior alone
    #[arg(long, value_enum, default_value_t = By::Model)]
    pub(crate) routing: By,
}

/// The subject of the library's error for routing by the prior without an instruction.
const PRIOR: &str = "routing by the prior";

/// What determines a routing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    Model,
    Prior,
}

impl RequestArgs {
    /// Computes the requested routing.
    pub(crate) fn route(&self, decoder: &Decoder, bank: &AtomBank, encoder: &TextEncoder) -> Result<Routes> {
        let request =
            Request { instruction: self.instruction.clone().unwrap_or_default(), prompts: self.prompt.clone() };
        Ok(route(decoder, bank, encoder, &request, self.by()).map_err(|error| match error {
            Error::Mismatch(finding) if finding.subject == PRIOR && finding.hint.is_empty() => {
                finding.hint("pass --instruction").mismatch()
            }
            other => other,
        })?)
    }

    pub(crate) fn by(&self) -> RoutedBy {
        match self.routing {
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
    /// The atom bank's folder
    bank: PathBuf,
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &RouteArgs, common: &Common) -> Result<()> {
    let inputs = [Input::new(&args.base, Need::Model), Input::new(&args.bank, Need::Adapter)];
    let route = |found: &[Found]| {
        let (base, bank) = (&found[0].path, &found[1].path);
        let bank = AtomBank::open(bank)?;
        let LanguageModel { decoder, encoder } = LanguageModel::open(base, Residence::Streamed, args.device.open()?)?;
        Ok((args.request.route(&decoder, &bank, &encoder)?, decoder))
    };
    let (routes, decoder) = with_inputs(&inputs, common, route)?.made;
    let longest = routes.sequences.iter().map(|sequence| sequence.ids.len()).max().unwrap_or_default();
    super::output::print_notes(&decoder.length_note(longest).into_iter().collect::<Vec<_>>(), common);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&to_json(&routes))?);
    } else {
        print_mean(&routes);
    }
    Ok(())
}

pub(crate) fn to_json(routes: &Routes) -> serde_json::Value {
    json!({
        "prior": routes.prior,
        "alphas": routes.mean(),
        "prompts": routes.sequences.iter().zip(&routes.by_prompt)
            .map(|(s, alphas)| json!({ "routed_tokens": s.routed, "alphas": alphas })).collect::<Vec<_>>(),
    })
}

/// Prints the atoms by weight, one line per block, and then the prior for comparison.
pub(crate) fn print_mean(routes: &Routes) {
    for (block, alpha) in routes.mean().iter().enumerate() {
        println!("block {block:<3} {}", show(alpha));
    }
    println!("prior     {}", show(&routes.prior));
}

/// "#3 0.62  #0 0.38": atoms with a weight of at least half a percent, largest first.
pub(crate) fn show(alpha: &[f32]) -> String {
    let mut atoms: Vec<(usize, f32)> = alpha.iter().copied().enumerate().filter(|(_, a)| *a >= 0.005).collect();
    atoms.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    atoms.iter().map(|(i, a)| format!("#{i} {a:.2}")).collect::<Vec<_>>().join("  ")
}
