//! `atombank bake`: fixes an instruction, writes plain weights, and reports the error.

use anyhow::Result;
use atombank::bank::RoutedBy;
use atombank::checkpoint::hub::Need;
use atombank::jobs::{self, BakeSettings};
use clap::Args;
use serde_json::{Map, json};

use super::Common;
use super::device::DeviceArgs;
use super::input::{Found, Input, with_inputs};
use super::output::{OutputArgs, print_written};
use super::route::{RequestArgs, print_mean, to_json};

/// Arguments of `bake`.
#[derive(Args)]
pub(crate) struct BakeArgs {
    /// The base model: a Hugging Face folder, or a name on the hub: hf:org/name[@revision]; with --to lora a GGUF, too
    base: String,
    /// The atom bank's folder
    bank: String,
    #[command(flatten)]
    request: RequestArgs,
    /// Don't compare the baked model with the routed one
    #[arg(long)]
    no_verify: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON: the routing, the error of fixing it, and, with --dry-run, what would be written
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &BakeArgs, common: &Common) -> Result<()> {
    args.output.settings().check()?;
    let bake = |found: &[Found]| {
        let settings = BakeSettings {
            base: found[0].path.clone(),
            base_id: found[0].id.clone(),
            bank: found[1].path.clone(),
            bank_id: found[1].id.clone(),
            instruction: args.request.instruction.clone(),
            prompts: args.request.prompt.clone(),
            routing: args.request.by(),
            output: args.output.settings(),
            verify: !args.no_verify,
        };
        Ok(jobs::bake_on(&settings, args.device.open()?)?)
    };
    let inputs = [Input::new(&args.base, Need::Model), Input::new(&args.bank, Need::Adapter)];
    let made = with_inputs(&inputs, common, bake)?.made;
    if args.json {
        let (planned, written) = match args.output.dry_run {
            true => (args.output.planned(&made.output, common)?, None),
            false => (Map::new(), args.output.write(&made.output, true, common)?),
        };
        let mut json = to_json(&made.routes);
        json["output"] = json!(args.output.output);
        json["verified"] = made.verified.map_or(serde_json::Value::Null, |a| {
            json!({ "max_logit_difference": a.max_logit_difference, "mean_kl": a.mean_kl,
                "top1_agreement": a.top1, "tokens": a.tokens })
        });
        json.as_object_mut().expect("an object").extend(planned);
        println!("{}", serde_json::to_string_pretty(&json)?);
        print_written(written.as_ref(), true, common);
        return Ok(());
    }
    let written = args.output.write(&made.output, false, common)?;
    print_mean(&made.routes);
    if let Some(a) = made.verified {
        println!(
            "routed against baked, {} tokens: max |logit difference| {:.2e}, mean KL {:.2e}, top-1 agreement {:.1}%",
            a.tokens,
            a.max_logit_difference,
            a.mean_kl.max(0.0),
            a.top1 * 100.0
        );
    }
    if args.request.by() == RoutedBy::Prior {
        println!("routed by the prior alone: the difference above is to the model's own routing");
    }
    print_written(written.as_ref(), false, common);
    Ok(())
}
