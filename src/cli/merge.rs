//! `atombank merge`: a LoRA into its base, as a folder or a GGUF.

use std::path::PathBuf;

use anyhow::Result;
use atombank::adapter::{Adapter, AdapterConfig};
use atombank::checkpoint::HfFolder;
use atombank::error::Finding;
use atombank::merge::{lora_updates, with_updates};
use clap::Args;

use super::Common;
use super::output::{Kind, OutputArgs};

/// Arguments of `merge`.
#[derive(Args)]
pub(crate) struct MergeArgs {
    /// The base model: a Hugging Face folder of Llama, Mistral, Qwen2 or Qwen3
    base: PathBuf,
    /// The folder of a plain LoRA, as PEFT saves it
    adapter: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &MergeArgs, common: &Common) -> Result<()> {
    args.output.check_absent()?;
    args.output.check_type()?;
    if args.output.kind() == Kind::Lora {
        let finding = Finding::new(&args.output.output, "--to lora").expected("a merged model");
        return Err(finding.found("the adapter that is there already").mismatch().into());
    }
    let folder = HfFolder::open(&args.base)?;
    let adapter = Adapter::open(&args.adapter)?;
    if matches!(adapter.config, AdapterConfig::Bank(_)) {
        let finding = Finding::new(args.adapter.join("adapter_config.json"), "peft_type").expected("LORA");
        let hint = "atombank bake fixes an instruction, after which a bank can be merged";
        return Err(finding.found("an atom bank").hint(hint).mismatch().into());
    }
    let plan = with_updates(folder.weights(), &lora_updates(&adapter))?;
    args.output.write(&folder, &plan, common)
}
