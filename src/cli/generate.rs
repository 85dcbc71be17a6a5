//! `atombank generate`: continues a text greedily, with base, adapter or baked weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use atombank::adapter::HostTensor;
use atombank::arch::ModelConfig;
use atombank::bank::{AtomBank, DEFAULT_PROMPT_TEMPLATE, LoadedBank, RoutedBy, fill_template, route_sequences};
use atombank::checkpoint::hub::Need;
use atombank::error::Finding;
use atombank::model::{
    Decoder, Hook, LanguageModel, LoadedUpdates, NoAdapter, Residence, Sequence, TextEncoder, greedy, prompt_logits,
};
use candle_core::Device;
use clap::Args;
use serde_json::json;

use super::adapted::updates;
use super::device::DeviceArgs;
use super::input::{Found, Input, with_inputs};
use super::output::print_notes;
use super::route::{print_blocks, show};

/// Arguments of `generate`.
#[derive(Args)]
pub(crate) struct GenerateArgs {
    /// The model: a Hugging Face folder, a GGUF, or a name on the hub: hf:org/name[@revision]
    model: PathBuf,
    /// An atom bank or a LoRA on top of it
    #[arg(long, value_name = "FOLDER")]
    adapter: Option<PathBuf>,
    /// Show which atoms of the bank the prompt picks, by block
    #[arg(long, requires = "adapter")]
    show_routing: bool,
    /// The instruction
    #[arg(long, default_value = "", hide_default_value = true)]
    instruction: String,
    /// The prompt
    #[arg(long, default_value = "", hide_default_value = true)]
    prompt: String,
    /// Combine instruction and prompt with this template, for models without a bank: {prompt} and {instruction} are
    /// replaced [default: the prompt alone; with an instruction, "{instruction}\n{prompt}\n"]
    #[arg(long)]
    template: Option<String>,
    /// The largest number of tokens to add
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_tokens: usize,
    /// Continue past end-of-text tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Write the logits of the prompt's tokens, [tokens, vocab_size] in f32, as safetensors into this new folder
    #[arg(long, value_name = "FOLDER")]
    save_logits: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON: the token ids and the text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &GenerateArgs, common: &super::Common) -> Result<()> {
    let mut inputs = vec![Input::new(&args.model, Need::Model)];
    inputs.extend(args.adapter.as_deref().map(|adapter| Input::new(adapter, Need::Adapter)));
    let open = |found: &[Found]| {
        let model = &found[0].path;
        let opened = LanguageModel::open(model, Residence::Mapped, args.device.open()?)?;
        let device = args.device.open()?;
        let adapter = found.get(1).map(|adapter| Adapter::open(&adapter.path, model, opened.decoder.config(), device));
        Ok((opened, adapter.transpose()?))
    };
    let (LanguageModel { decoder, encoder }, adapter) = with_inputs(&inputs, common, open)?.made;
    let sequence = match &adapter {
        Some(Adapter::Bank(bank)) => {
            bank.encoder().routed(&encoder, &bank.config().prompt_template, &args.instruction, &args.prompt)?
        }
        _ => encoder.sequence(&fill_template(args.template()?, &args.instruction, &args.prompt))?,
    };
    let sequences = std::slice::from_ref(&sequence);
    let hook = || -> Result<Box<dyn Hook + '_>> {
        Ok(match &adapter {
            None => Box::new(NoAdapter),
            Some(Adapter::Updates(updates)) => Box::new(updates),
            Some(Adapter::Bank(bank)) => Box::new(bank.hook(decoder.weights(), sequences)?),
        })
    };
    let routing = args.show_routing.then(|| args.routing(&decoder, adapter.as_ref(), sequences)).transpose()?;
    if let Some(path) = &args.save_logits {
        save(path, prompt_logits(&decoder, &mut *hook()?, &sequence)?)?;
    }
    let generated = greedy(&decoder, &mut *hook()?, sequences, args.max_tokens, args.ignore_eos)?;
    let note = decoder.length_note(sequence.ids.len() + generated[0].ids.len());
    print_notes(&note.into_iter().collect::<Vec<_>>(), common);
    print(args, &encoder, &sequence, &generated[0].ids, routing)
}

/// The weights of a bank's atoms by block, each `[K]`, and the prior, `[K]`.
type PromptRouting = (Vec<Vec<f32>>, Vec<f32>);

impl GenerateArgs {
    /// The routing of the prompt, which holds for all tokens after it with prompt routing.
    fn routing(&self, decoder: &Decoder, adapter: Option<&Adapter>, prompt: &[Sequence]) -> Result<PromptRouting> {
        let Some(Adapter::Bank(bank)) = adapter else {
            let path = self.adapter.as_deref().unwrap_or(&self.model);
            let finding = Finding::new(path, "--show-routing").expected("an atom bank");
            return Err(finding.found("an adapter that doesn't route").mismatch().into());
        };
        let (mut routings, mut priors) = route_sequences(decoder, bank, prompt, RoutedBy::Model)?;
        Ok((routings.swap_remove(0), priors.swap_remove(0)))
    }

    /// The template for a model without a bank.
    fn template(&self) -> Result<&str> {
        let Some(template) = &self.template else {
            return Ok(if self.instruction.is_empty() { "{prompt}" } else { DEFAULT_PROMPT_TEMPLATE });
        };
        for (field, text) in [("{prompt}", &self.prompt), ("{instruction}", &self.instruction)] {
            if !text.is_empty() && !template.contains(field) {
                let finding = Finding::new(&self.model, "--template").expected(format_args!("{field} in it"));
                return Err(finding.found(format_args!("{template:?}, which drops {text:?}")).mismatch().into());
            }
        }
        Ok(template)
    }
}

/// The adapter that is used with the model.
enum Adapter {
    Bank(Box<LoadedBank>),
    Updates(LoadedUpdates),
}

impl Adapter {
    fn open(path: &Path, model: &Path, base: &ModelConfig, device: &Device) -> Result<Self> {
        // A path without PEFT's settings isn't a bank, but may still be an adapter.
        if AtomBank::is_in(path).unwrap_or(false) {
            let bank = AtomBank::open(path)?;
            bank.check_base(base)?;
            return Ok(Self::Bank(Box::new(LoadedBank::frozen(&bank, device)?)));
        }
        let updates = updates(path, model, base)?;
        Ok(Self::Updates(LoadedUpdates::new(&updates, device)?))
    }
}

fn print(
    args: &GenerateArgs,
    encoder: &TextEncoder,
    sequence: &Sequence,
    ids: &[u32],
    routing: Option<PromptRouting>,
) -> Result<()> {
    let text = encoder.decode(ids)?;
    if args.json {
        let mut json = json!({ "prompt_ids": sequence.ids, "ids": ids, "text": text });
        if let Some((alphas, prior)) = routing {
            json["routing"] = json!({ "alphas": alphas, "prior": prior });
        }
        println!("{json}");
    } else {
        if let Some((alphas, prior)) = routing {
            print_blocks(&alphas);
            println!("prior     {}", show(&prior));
        }
        println!("{text}");
    }
    Ok(())
}

fn save(path: &std::path::Path, logits: HostTensor) -> Result<()> {
    Ok(atombank::adapter::save_tensors(&BTreeMap::from([("logits".to_owned(), logits)]), "logits", path)?)
}
