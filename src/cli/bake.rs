//! `atombank bake`: fix an instruction, write plain weights, say what it cost.

use std::path::PathBuf;

use anyhow::Result;
use atombank::adapter::peft::Base;
use atombank::arch::HfFolder;
use atombank::bank::{Agreement, AtomBank, LoadedBank, RoutedBy, Routes, compare};
use atombank::error::Finding;
use atombank::merge::combine::Weights as Shares;
use atombank::merge::with_adapters;
use atombank::model::{Decoder, LoadedAdapter, LoraHook, ModelWeights, NoAdapter, Residence, TextEncoder};
use atombank::plan::{Expr, Plan};
use candle_core::Device;
use clap::Args;
use serde_json::json;

use super::Common;
use super::output::{Kind, OutputArgs};
use super::route::{RequestArgs, print_mean, to_json};

/// Arguments of `bake`.
#[derive(Args)]
pub(crate) struct BakeArgs {
    /// The base model: a Hugging Face folder
    base: PathBuf,
    /// The atom bank's folder
    bank: PathBuf,
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Don't compare the baked model with the routed one
    #[arg(long)]
    no_verify: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &BakeArgs, common: &Common) -> Result<()> {
    args.output.check_absent()?;
    args.output.check_type()?;
    if let (Kind::Lora, Some(name)) = (args.output.kind(), &args.output.r#type) {
        let finding = Finding::new(&args.output.output, "--type").expected("none for a LoRA, which is written in f32");
        return Err(finding.found(name).unsupported().into());
    }
    if args.output.recipe.prunes() && !args.no_verify {
        let finding = Finding::new(&args.output.output, "--prune-layers").expected("to be without it");
        return Err(finding
            .found("a comparison with the routed model, which has all layers")
            .hint("pass --no-verify")
            .mismatch()
            .into());
    }
    let folder = HfFolder::open(&args.base)?;
    let bank = AtomBank::open(&args.bank)?;
    let encoder = TextEncoder::open(&args.base)?;
    let decoder = Decoder::open(&folder, Residence::Streamed, &Device::Cpu)?;
    let routes = args.request.route(&decoder, &bank, &encoder)?;
    let alphas = routes.mean();
    let base = Base::of(&folder);
    let plan = with_adapters(&base, folder.weights(), &[bank.changes(&alphas)], &Shares::new([1.0]))?.plan;
    let verified = if args.no_verify || args.output.dry_run {
        None
    } else {
        Some(verify(args, &folder, &decoder, &bank, &routes, &plan)?)
    };
    match args.output.kind() {
        Kind::Lora if args.output.dry_run => {}
        Kind::Lora => bank.static_lora(&alphas).save(&args.output.output, args.output.overwrite)?,
        Kind::Hf | Kind::Gguf | Kind::Safetensors | Kind::Pytorch => args.output.write(&folder, &plan, common)?,
    }
    if args.json {
        let mut json = to_json(&routes);
        json["output"] = json!(args.output.output);
        json["verified"] = verified.map_or(serde_json::Value::Null, |a| {
            json!({ "max_logit_difference": a.max_logit_difference, "mean_kl": a.mean_kl,
                "top1_agreement": a.top1, "tokens": a.tokens })
        });
        println!("{}", serde_json::to_string_pretty(&json)?);
        return Ok(());
    }
    print_mean(&routes);
    if let Some(a) = verified {
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
    if !args.output.dry_run {
        println!("wrote {}", args.output.output.display());
    }
    Ok(())
}

/// The routed model against the baked one, in the very types that are written.
fn verify(
    args: &BakeArgs,
    folder: &HfFolder,
    decoder: &Decoder,
    bank: &AtomBank,
    routes: &Routes,
    plan: &Plan,
) -> Result<Agreement> {
    let loaded = LoadedBank::frozen(bank, &Device::Cpu)?;
    let mut hook = loaded.hook(decoder.weights(), &routes.sequences)?;
    let routed = (decoder, &mut hook as &mut dyn atombank::model::Hook);
    if args.output.kind() == Kind::Lora {
        let lora = bank.static_lora(&routes.mean());
        let lora = LoadedAdapter::frozen(&lora.tensors, lora.config.scale(), &Device::Cpu)?;
        return Ok(compare(routed, (decoder, &mut LoraHook(&lora)), &routes.sequences)?);
    }
    let written = match args.output.kind() {
        Kind::Gguf => {
            // The GGUF's types under Hugging Face's names: the same rows, rounded the same way.
            let gguf = args.output.gguf(folder, plan)?.plan;
            let mut typed = plan.clone();
            for tensor in &mut typed.tensors {
                let name = atombank::convert::gguf_name(&folder.config_json, &tensor.name);
                let Some(written) = name.and_then(|name| gguf.get(&name)) else { continue };
                tensor.dtype = written.dtype;
                // Rows change places on the way to GGUF, columns don't: the same importance fits.
                if let Expr::Weighted { importance, .. } = &written.expr {
                    let of = Box::new(tensor.expr.clone());
                    tensor.expr = Expr::Weighted { of, importance: importance.clone() };
                }
            }
            typed
        }
        _ => args.output.typed(plan)?,
    };
    let weights = ModelWeights::open(folder.path(), &folder.config, &written, Residence::Streamed, &Device::Cpu)?;
    Ok(compare(routed, (&Decoder::new(weights), &mut NoAdapter), &routes.sequences)?)
}
