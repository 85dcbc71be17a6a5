//! `atombank generate`: greedy continuation, with base, adapter or baked weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use atombank::adapter::{HostTensor, Lora};
use atombank::arch::HfFolder;
use atombank::bank::{AtomBank, DEFAULT_PROMPT_TEMPLATE, InstructionEncoder, LoadedBank};
use atombank::model::{
    Decoder, Hook, LoadedAdapter, LoraHook, NoAdapter, Residence, Sequence, TextEncoder, greedy, prompt_logits,
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
    let adapter = args.adapter.as_deref().map(|path| Adapter::open(path, &folder)).transpose()?;
    let decoder = Decoder::open(&folder, Residence::Memory, &Device::Cpu)?;
    let (template, instructions) = match &adapter {
        Some(Adapter::Bank(bank)) => (bank.config().prompt_template.as_str(), bank.encoder()),
        _ => (args.template.as_str(), &InstructionEncoder::BaseEmbeddings),
    };
    let sequence = instructions.routed(&encoder, template, &args.instruction, &args.prompt)?;
    let sequences = std::slice::from_ref(&sequence);
    let hook = || -> Result<Box<dyn Hook + '_>> {
        Ok(match &adapter {
            None => Box::new(NoAdapter),
            Some(Adapter::Lora(lora)) => Box::new(LoraHook(lora)),
            Some(Adapter::Bank(bank)) => Box::new(bank.hook(decoder.weights(), sequences)?),
        })
    };
    if let Some(path) = &args.save_logits {
        save(path, prompt_logits(&decoder, &mut *hook()?, &sequence)?)?;
    }
    let generated = greedy(&decoder, &mut *hook()?, sequences, args.max_tokens, args.ignore_eos)?;
    print(args, &encoder, &sequence, &generated[0].ids)
}

/// What runs on top of the model.
enum Adapter {
    Bank(LoadedBank),
    Lora(LoadedAdapter),
}

impl Adapter {
    fn open(path: &Path, base: &HfFolder) -> Result<Self> {
        if AtomBank::is_in(path)? {
            let bank = AtomBank::open(path)?;
            bank.check_base(&base.config)?;
            return Ok(Self::Bank(LoadedBank::frozen(&bank, &Device::Cpu)?));
        }
        let lora = Lora::open(path)?;
        lora.check_base(&base.config)?;
        Ok(Self::Lora(LoadedAdapter::frozen(&lora.tensors, lora.config.scale(), &Device::Cpu)?))
    }
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
