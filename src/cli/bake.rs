//! `atombank bake`: fixes an instruction, writes plain weights, and reports the error. Kernels of a bank of filter atoms
//! become dense.

mod kernels;
mod mix;

use std::path::PathBuf;

use anyhow::Result;
use atombank::bank::Agreement;
use atombank::checkpoint::hub::Need;
use atombank::error::Finding;
use atombank::filter::FilterBank;
use atombank::jobs::{
    self, BakeSettings, Baked, BakedMix, BakedPart, BlockAlphas, Named, OutputKind, OutputSettings, Share,
};
use atombank::output::{Destination, Output};
use clap::Args;
use serde_json::{Map, Value, json};

use super::Common;
use super::alone::AloneArgs;
use super::device::DeviceArgs;
use super::input::{Found, Input, Made, with_inputs, with_inputs_to};
use super::output::{OutputArgs, print_written};
use super::route::{By, print_blocks, routes_json, show};

/// Arguments of `bake`.
#[derive(Args)]
pub(crate) struct BakeArgs {
    /// The base model: a Hugging Face folder, or a name on the hub: hf:org/name[@revision]; with --to lora a GGUF, too; for
    /// filter atoms and a fixed mix of atoms also a file of tensors (.safetensors, .pt, .pth, .pth.tar)
    base: String,
    /// The atom bank's folder or GGUF, or the folder of a bank of filter atoms or with a fixed mix, which needs no
    /// instruction
    bank: String,
    /// The instruction to fix. Given several times, each with a weight, TEXT=WEIGHT, a mixture of their routings
    #[arg(long, value_name = "TEXT")]
    instruction: Vec<String>,
    /// A prompt; if given several times, the mean of the routings is used
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// What determines the routing: the model's forward pass, or the language prior alone
    #[arg(long, value_enum, default_value_t = By::Model)]
    routing: By,
    /// Weights of atoms in place of the bank's routing: 3=0.7,1=0.3 for all blocks, 0:3=0.7,1=0.3 for block 0
    #[arg(long, value_name = "[BLOCK:]ATOM=WEIGHT,..", value_parser = parse_alphas)]
    alphas: Vec<BlockAlphas>,
    /// One output for each line of a file, in one pass over the base: an instruction, or a name, a tab and an
    /// instruction. {name} in the output's path stands for the name
    #[arg(long, value_name = "FILE", conflicts_with_all = ["instruction", "alphas"])]
    all: Option<PathBuf>,
    /// The part of a PyTorch file with the weights, such as state_dict; for filter atoms and a fixed mix
    #[arg(long, value_name = "PART")]
    key: Option<String>,
    #[command(flatten)]
    alone: AloneArgs,
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

/// Parses `[BLOCK:]ATOM=WEIGHT,..`.
fn parse_alphas(text: &str) -> Result<BlockAlphas, String> {
    let (block, weights) = match text.split_once(':') {
        Some((block, weights)) => {
            (Some(block.trim().parse().map_err(|_| format!("no number of a block: {block}"))?), weights)
        }
        None => (None, text),
    };
    let mut alphas = BlockAlphas { block, weights: Default::default() };
    for part in weights.split(',') {
        let parsed = part.split_once('=').and_then(|(atom, weight)| {
            Some((atom.trim().trim_start_matches('#').parse().ok()?, weight.trim().parse().ok()?))
        });
        let (atom, weight) = parsed.ok_or_else(|| format!("expected ATOM=WEIGHT, like 3=0.7, found {part:?}"))?;
        if alphas.weights.insert(atom, weight).is_some() {
            return Err(format!("atom {atom} has two weights"));
        }
    }
    Ok(alphas)
}

/// The instructions of a mixture: each text ends in `=WEIGHT`.
fn parse_mixture(texts: &[String]) -> Result<Vec<Share>> {
    let parse = |text: &String| {
        let parsed = text.rsplit_once('=').and_then(|(text, weight)| Some((text, weight.trim().parse().ok()?)));
        let Some((instruction, weight)) = parsed else {
            let finding = Finding::new("", "instruction").expected("TEXT=WEIGHT for each of several instructions");
            return Err(finding.found(format_args!("{text:?}")).setting().into());
        };
        Ok(Share { instruction: instruction.to_owned(), weight })
    };
    texts.iter().map(parse).collect()
}

impl BakeArgs {
    /// Where and how the output is written.
    fn settings(&self) -> OutputSettings {
        self.alone.applied_to(self.output.settings())
    }

    /// Settings to bake a bank that routes.
    fn routed(&self, found: &[Found]) -> Result<BakeSettings> {
        // A single instruction may have any text; one of several has a weight.
        let mixture = if self.instruction.len() > 1 { parse_mixture(&self.instruction)? } else { Vec::new() };
        let instruction = self.instruction.first().filter(|_| mixture.is_empty()).cloned();
        Ok(BakeSettings {
            base: found[0].path.clone(),
            base_id: found[0].id.clone(),
            bank: found[1].path.clone(),
            bank_id: found[1].id.clone(),
            instruction,
            mixture,
            alphas: self.alphas.clone(),
            prompts: self.prompt.clone(),
            routing: self.routing.by(),
            output: self.output.settings(),
            verify: !self.no_verify,
        })
    }
}

/// What became of a bank, by its kind.
enum OfKind {
    Kernels(Output),
    Mix(BakedMix),
    Routed(Baked),
}

pub(crate) fn run(args: &BakeArgs, common: &Common) -> Result<()> {
    if args.all.is_some() {
        return run_all(args, common);
    }
    // Only a bank of filter atoms has this form, which its own job checks.
    if args.settings().kind() != OutputKind::ThreeConvolutions {
        args.settings().check()?;
    }
    let bake = |found: &[Found]| {
        let (base, bank) = (&found[0].path, &found[1].path);
        Ok(if FilterBank::is_in(bank) {
            OfKind::Kernels(kernels::bake(args, found)?)
        } else if jobs::needs_no_model(base, bank, !args.alphas.is_empty())? {
            OfKind::Mix(mix::bake(args, found)?)
        } else {
            check_routed(args)?;
            OfKind::Routed(jobs::bake_on(&args.routed(found)?, args.device.open()?)?)
        })
    };
    let values = !args.output.dry_run;
    let inputs = [Input::new(&args.base, Need::Model).values(values), Input::new(&args.bank, Need::Adapter)];
    let Made { made, outlines } = with_inputs_to(&args.output.settings().destination, &inputs, common, bake)?;
    match made {
        OfKind::Kernels(mut output) => {
            outlines.put_real_paths(&mut output.notes);
            kernels::write(args, &output, common)
        }
        OfKind::Mix(mut made) => {
            outlines.put_real_paths(&mut made.output.notes);
            mix::write(args, &made, common)
        }
        OfKind::Routed(made) => write_routed(args, &made, common),
    }
}

/// Refuses options that choose a routing for a bank that isn't routed. `about` says why it isn't.
fn check_unrouted(args: &BakeArgs, takes_alphas: bool, about: impl Fn(Finding) -> Finding) -> Result<()> {
    let options = [
        ("instruction", !args.instruction.is_empty()),
        ("prompts", !args.prompt.is_empty()),
        ("routing", matches!(args.routing, By::Prior)),
        ("alphas", !takes_alphas && !args.alphas.is_empty()),
        ("all", args.all.is_some()),
    ];
    let Some((option, _)) = options.iter().find(|(_, given)| *given) else { return Ok(()) };
    Err(about(Finding::new("", *option)).found("one").setting().into())
}

/// Refuses options about tensors alone for a bank that routes, whose base is a model that runs.
fn check_routed(args: &BakeArgs) -> Result<()> {
    let given = args.key.is_some().then_some("key").or_else(|| args.alone.first_given());
    let Some(option) = given else { return Ok(()) };
    let finding = Finding::new("", option).expected("a bank of filter atoms, which a file of tensors can have");
    Err(finding.found("another bank").setting().into())
}

fn write_routed(args: &BakeArgs, made: &Baked, common: &Common) -> Result<()> {
    if args.json {
        let (planned, written) = match args.output.dry_run {
            true => (args.output.planned(&made.output, common)?, None),
            false => (Map::new(), args.output.write(&made.output, true, common)?),
        };
        let mut json = to_json(made);
        json["output"] = json!(args.output.output);
        json.as_object_mut().expect("an object").extend(planned);
        println!("{}", serde_json::to_string_pretty(&json)?);
        print_written(written.as_ref(), true, common);
        return Ok(());
    }
    let written = args.output.write(&made.output, false, common)?;
    print_routing(made);
    if matches!(args.routing, By::Prior) && args.alphas.is_empty() {
        println!("routed by the prior alone: the difference above is to the model's own routing");
    }
    print_written(written.as_ref(), false, common);
    Ok(())
}

/// Bakes one output for each line of a file.
fn run_all(args: &BakeArgs, common: &Common) -> Result<()> {
    let named = jobs::named_instructions(args.all.as_deref().unwrap_or(&args.output.output))?;
    let paths = named.iter().map(|named| jobs::named_output(&args.output.output, &named.name));
    let paths = paths.collect::<atombank::Result<Vec<PathBuf>>>()?;
    let bake = |found: &[Found]| {
        if FilterBank::is_in(&found[1].path) {
            kernels::check_routing(args)?;
        }
        if jobs::needs_no_model(&found[0].path, &found[1].path, false)? {
            mix::check_routing(args)?;
        }
        check_routed(args)?;
        for path in &paths {
            let to = Destination { path: path.clone(), ..args.output.settings().destination };
            to.check_inputs([found[1].path.as_path()])?;
        }
        let settings = args.routed(found)?;
        let of_line = |(named, path): (&Named, &PathBuf)| {
            let mut settings = settings.clone();
            settings.instruction = Some(named.instruction.clone());
            settings.output.destination.path.clone_from(path);
            settings
        };
        let all: Vec<BakeSettings> = named.iter().zip(&paths).map(of_line).collect();
        Ok(jobs::bake_all(&all, args.device.open()?)?)
    };
    let inputs = [Input::new(&args.base, Need::Model), Input::new(&args.bank, Need::Adapter)];
    let all = with_inputs(&inputs, common, bake)?.made;
    let mut lines = Vec::new();
    for ((named, path), made) in named.iter().zip(&paths).zip(&all) {
        let mut json = to_json(made);
        (json["name"], json["instruction"], json["output"]) =
            (json!(named.name), json!(named.instruction), json!(path));
        if args.output.dry_run && args.json {
            json.as_object_mut().expect("an object").extend(super::output::planned(&made.output, path)?);
        }
        lines.push(json);
        if !args.json {
            println!("{}: {}", path.display(), named.instruction);
            print_routing(made);
        }
    }
    let settings = args.output.settings().destination;
    let to: Vec<Destination> = paths.into_iter().map(|path| Destination { path, ..settings.clone() }).collect();
    let outputs: Vec<(&Output, &Destination)> = all.iter().map(|made| &made.output).zip(&to).collect();
    let written = args.output.write_all(&outputs, args.json, common)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
    }
    written.iter().for_each(|written| print_written(Some(written), args.json, common));
    Ok(())
}

/// The routing that was baked, and what it costs.
fn print_routing(made: &Baked) {
    print_blocks(&made.alphas);
    if let [part] = made.parts.as_slice() {
        println!("prior     {}", show(&part.routes.prior));
    }
    for BakedPart { share, verified, .. } in &made.parts {
        let Some(a) = verified else { continue };
        let of =
            if made.parts.len() == 1 { String::new() } else { format!("{:.2} {}: ", share.weight, share.instruction) };
        println!(
            "{of}routed against baked, {} tokens: max |logit difference| {:.2e}, mean KL {:.2e}, top-1 agreement {:.1}%",
            a.tokens,
            a.max_logit_difference,
            a.mean_kl.max(0.0),
            a.top1 * 100.0
        );
    }
}

fn to_json(made: &Baked) -> Value {
    let verified = |agreement: Option<Agreement>| {
        agreement.map_or(Value::Null, |a| {
            json!({ "max_logit_difference": a.max_logit_difference, "mean_kl": a.mean_kl,
                "top1_agreement": a.top1, "tokens": a.tokens })
        })
    };
    let mut json = match made.parts.as_slice() {
        [part] => {
            let mut json = routes_json(&part.routes);
            json["verified"] = verified(part.verified);
            json
        }
        parts => {
            let of_part = |part: &BakedPart| {
                let mut json = routes_json(&part.routes);
                json["instruction"] = json!(part.share.instruction);
                json["weight"] = json!(part.share.weight);
                json["verified"] = verified(part.verified);
                json
            };
            json!({ "parts": parts.iter().map(of_part).collect::<Vec<_>>(), "verified": Value::Null })
        }
    };
    json["alphas"] = json!(made.alphas);
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_by_hand_are_parsed_and_wrong_ones_named() {
        let alphas = parse_alphas("0:3=0.7, #1=0.3").unwrap();
        assert_eq!((alphas.block, alphas.weights.into_iter().collect()), (Some(0), vec![(1, 0.3), (3, 0.7)]));
        assert_eq!(parse_alphas("2=1").unwrap().block, None);
        for (text, expected) in [
            ("", "expected ATOM=WEIGHT, like 3=0.7, found \"\""),
            ("x:1=1", "no number of a block: x"),
            ("1=0.5,1=0.5", "atom 1 has two weights"),
            ("1:0.5", "expected ATOM=WEIGHT, like 3=0.7, found \"0.5\""),
        ] {
            assert_eq!(parse_alphas(text).unwrap_err(), expected);
        }
        let texts = ["Set a=b=0.7".to_owned(), "x=1".to_owned()];
        let shares = parse_mixture(&texts).unwrap();
        assert_eq!((shares[0].instruction.as_str(), shares[0].weight), ("Set a=b", 0.7));
        assert!(parse_mixture(&["Set a=b".to_owned(), "x=1".to_owned()]).is_err());
    }
}
