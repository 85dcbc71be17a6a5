//! `atombank generate`: greedy continuation, with base, adapter or baked weights.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use atombank::adapter::{Adapter, AdapterConfig, HostTensor};
use atombank::arch::HfFolder;
use atombank::bank::DEFAULT_PROMPT_TEMPLATE;
use atombank::model::{
    Decoder, InstructionEncoder, LoadedAdapter, Residence, Sequence, TextEncoder, greedy, prompt_logits,
};
use candle_core::Device;
use clap::Args;
use serde_json::json;

/// Arguments of `generate`.
#[derive(Args)]
pub(crate) struct GenerateArgs {
    /// The model: a Hugging Face folder
    model: PathBuf,
    /// An atom bank or a LoRA on top of it
    #[arg(long, value_name = "FOLDER")]
    adapter: Option<PathBuf>,
    /// The instruction
    #[arg(long, default_value = "", hide_default_value = true)]
    instruction: String,
    /// The prompt
    #[arg(long, default_value = "", hide_default_value = true)]
    prompt: String,
    /// Put instruction and prompt together as this says, where the adapter doesn't
    #[arg(long, default_value = DEFAULT_PROMPT_TEMPLATE, hide_default_value = true)]
    template: String,
    /// The most tokens to add
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_tokens: usize,
    /// Go on past end-of-text tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Write the logits of the prompt's tokens, [tokens, vocab_size] in f32, as safetensors into this new folder
    #[arg(long, value_name = "FOLDER")]
    save_logits: Option<PathBuf>,
    /// Print JSON: the token ids and the text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &GenerateArgs, _common: &super::Common) -> Result<()> {
    let folder = HfFolder::open(&args.model)?;
    let encoder = TextEncoder::open(&args.model)?;
    let adapter = args.adapter.as_ref().map(|path| Adapter::open(path)).transpose()?;
    let mut template = args.template.as_str();
    if let Some(adapter) = &adapter {
        adapter.check_base(&folder.config)?;
        if let AdapterConfig::Bank(config) = &adapter.config {
            template = &config.prompt_template;
        }
    }
    let decoder = Decoder::open(&folder, Residence::Memory, &Device::Cpu)?;
    let loaded = adapter.as_ref().map(|a| LoadedAdapter::frozen(a, &Device::Cpu)).transpose()?;
    let instructions = loaded.as_ref().map_or(&InstructionEncoder::BaseEmbeddings, |t| t.instruction_encoder());
    let sequence = encoder.routed(template, &args.instruction, &args.prompt, instructions)?;
    let with = loaded.as_ref().zip(adapter.as_ref().map(|a| &a.config));
    if let Some(path) = &args.save_logits {
        let logits = prompt_logits(&decoder, with, &sequence)?;
        save(path, logits)?;
    }
    let generated = greedy(&decoder, with, std::slice::from_ref(&sequence), args.max_tokens, args.ignore_eos)?;
    print(args, &encoder, &sequence, &generated[0].ids)
}

fn print(args: &GenerateArgs, encoder: &TextEncoder, sequence: &Sequence, ids: &[u32]) -> Result<()> {
    let text = encoder.decode(ids)?;
    if args.json {
        println!("{}", json!({ "prompt_ids": sequence.ids, "ids": ids, "text": text }));
    } else {
        println!("{text}");
    }
    Ok(())
}

fn save(path: &std::path::Path, logits: HostTensor) -> Result<()> {
    Ok(atombank::adapter::save_tensors(&BTreeMap::from([("logits".to_owned(), logits)]), "logits", path)?)
}
