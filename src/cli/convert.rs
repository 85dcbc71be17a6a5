//! `atombank convert`: models, tensors, adapters and banks in every direction.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use atombank::bank::gguf as bank;
use atombank::checkpoint::Checkpoint;
use atombank::convert::lora::LoraBase;
use atombank::convert::{ConvertOptions, GeneralOptions, Input, OutType, from_gguf, generic, lora, to_gguf};
use atombank::error::Finding;
use atombank::formats::gguf::GgufModel;
use atombank::formats::gguf::Override;
use atombank::output::{Output, Sidecars, safetensors_metadata};
use atombank::plan::Plan;
use clap::Args;

use super::Common;
use super::input::found;
use super::output::{Kind, OutputArgs, print_notes};

/// Arguments of `convert`.
#[derive(Args)]
pub(crate) struct ConvertArgs {
    /// A model or adapter folder, a .gguf, .safetensors, .bin, .pt, .pth or .ckpt file, or a name on
    /// the Hugging Face hub: hf:org/name[@revision]
    input: String,
    #[command(flatten)]
    output: OutputArgs,
    /// The part of a PyTorch file to convert, like state_dict
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// The base model's folder, for a LoRA: names and shapes of the weights that it changes
    #[arg(long, value_name = "FOLDER")]
    base: Option<PathBuf>,
    /// JSON with general.* keys of the GGUF, over what the model card says
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,
    /// The model's name in the GGUF
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// Give a key of the GGUF another value: KEY=VALUE or KEY=TYPE:VALUE; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    override_key: Vec<String>,
    /// Write a GGUF of the vocabulary alone
    #[arg(long)]
    vocab_only: bool,
}

pub(crate) fn run(args: &ConvertArgs, common: &Common) -> Result<()> {
    if args.output.kind() == Kind::Lora && !args.input.ends_with(".gguf") {
        let finding = Finding::new(&args.input, "--to lora").expected("an atom bank to bake").found("a model");
        return Err(finding.hint("see atombank bake").mismatch().into());
    }
    args.output.check_absent()?;
    args.output.check_type()?;
    args.check_options()?;
    let (input, model_id) = found(&args.input, common)?;
    let job = Job { args, output: &args.output, input, model_id };
    match Input::open(&job.input, args.key.as_deref())? {
        Input::Model(folder) => job.model(&folder, common),
        Input::Weights { plan, others } => {
            let left_out: Vec<String> =
                others.iter().map(|(path, what)| format!("no tensor, left out: {path} ({what})")).collect();
            print_notes(&left_out, common);
            job.weights(&plan, common)
        }
        Input::Gguf(model) => job.gguf(&model, common),
        Input::Adapter => job.adapter(common),
    }
}

impl ConvertArgs {
    /// Options that only a GGUF has.
    fn check_options(&self) -> Result<()> {
        let only_gguf = [
            (self.metadata.is_some(), "--metadata"),
            (self.model_name.is_some(), "--model-name"),
            (!self.override_key.is_empty(), "--override-key"),
            (self.vocab_only, "--vocab-only"),
        ];
        match only_gguf.iter().find(|(given, _)| *given && self.output.kind() != Kind::Gguf) {
            None => Ok(()),
            Some((_, name)) => Err(Finding::new(&self.output.output, *name)
                .expected("a GGUF")
                .found("another output")
                .mismatch()
                .into()),
        }
    }

    fn overrides(&self) -> Result<Vec<Override>> {
        Ok(self.override_key.iter().map(|text| Override::parse(text)).collect::<atombank::Result<_>>()?)
    }
}

/// A conversion whose input has been found.
struct Job<'a> {
    args: &'a ConvertArgs,
    output: &'a OutputArgs,
    input: PathBuf,
    /// The model's name on the hub.
    model_id: Option<String>,
}

impl Job<'_> {
    /// A model folder to anything.
    fn model(&self, folder: &Checkpoint, common: &Common) -> Result<()> {
        let left_out = folder.others().iter().map(|(path, what)| format!("no tensor, left out: {path} ({what})"));
        print_notes(&left_out.collect::<Vec<_>>(), common);
        if self.output.kind() != Kind::Gguf {
            let plan = self.output.typed(folder.weights())?;
            return self.output.write_output(self.output.tensors(folder.output(plan)?), common);
        }
        let options = ConvertOptions {
            outtype: self.output.outtype()?,
            pre: self.output.pre.clone(),
            vocab: true,
            vocab_only: self.args.vocab_only,
            general: GeneralOptions {
                metadata_file: self.args.metadata.clone(),
                model_name: self.args.model_name.clone(),
                model_id: self.model_id.clone(),
            },
            overrides: self.args.overrides()?,
        };
        match to_gguf(folder, folder.weights(), &options)? {
            Some(made) => self.output.write_output(self.output.quantize(made, &options.overrides)?, common),
            None => self.generic(folder.path(), folder.weights(), common),
        }
    }

    /// Tensors without a config.
    fn weights(&self, plan: &Plan, common: &Common) -> Result<()> {
        match self.output.kind() {
            Kind::Gguf => self.generic(&self.input, plan, common),
            Kind::Hf | Kind::Lora => {
                let finding = Finding::new(&self.input, "config.json").expected("a model folder's config");
                let hint = "write the tensors alone: name the output .safetensors, .bin or .gguf";
                Err(finding.found("tensors alone").hint(hint).mismatch().into())
            }
            Kind::Safetensors | Kind::Pytorch => {
                let output = Output::folder("model", self.output.typed(plan)?);
                self.output.write_output(self.output.tensors(output), common)
            }
        }
    }

    /// A GGUF that keeps names as they are, for models of other classes and bare tensors.
    fn generic(&self, from: &Path, plan: &Plan, common: &Common) -> Result<()> {
        self.check_plain("a model whose class has a table")?;
        let (beside, mut notes) = match from.is_dir() {
            true => Sidecars::read(from, plan)?,
            false => {
                let mut notes = Vec::new();
                let safetensors_metadata = safetensors_metadata(plan, &mut notes);
                (Sidecars { safetensors_metadata, ..Sidecars::default() }, notes)
            }
        };
        // What no matrix of a known model is, is not cast by itself either.
        let asked = self.output.r#type.as_deref().map(str::parse::<OutType>).transpose()?;
        let outtype = asked.and_then(|outtype| outtype.dtype(plan));
        let mut made = generic::to_gguf(from, plan, &beside, outtype)?;
        self.override_keys(&mut made)?;
        notes.push("no table for this model's class: written as a generic GGUF, which llama.cpp can't run".to_owned());
        made.notes = notes;
        self.output.write_output(made, common)
    }

    fn override_keys(&self, made: &mut Output) -> Result<()> {
        for single in self.args.overrides()? {
            if let Some(metadata) = made.metadata_mut() {
                single.apply(metadata)?;
            }
        }
        Ok(())
    }

    /// A GGUF to anything.
    fn gguf(&self, model: &GgufModel, common: &Common) -> Result<()> {
        let taken: Plan = model.tensors().iter().cloned().collect();
        let metadata = model.metadata();
        if self.output.kind() == Kind::Gguf {
            if let Some(file_type) = self.output.quantized()? {
                let made = self.output.recipe.quantize(file_type, metadata, &taken, &self.args.overrides()?)?;
                return self.output.write_output(made, common);
            }
            self.output.check_gguf_again(&self.input)?;
            let plan = if self.args.vocab_only { Plan::default() } else { taken };
            let mut made = Output::gguf(metadata.clone(), plan, Vec::new());
            self.override_keys(&mut made)?;
            return self.output.write_output(made, common);
        }
        if metadata.get("adapter.type").and_then(|kind| kind.as_text()) == Some("lora") {
            let unpacked = lora::from_gguf(metadata, &taken, &self.lora_base()?.base())?;
            return self.output.write_output(unpacked.output(), common);
        }
        let outtype = self.output.outtype()?.dtype(&taken);
        if let Some((_, restored)) = from_gguf(model, outtype)? {
            return self.output.write_output(self.output.tensors(restored), common);
        }
        match metadata.text("general.architecture")? {
            generic::ARCHITECTURE => {
                let unpacked = generic::from_gguf(metadata, &taken)?;
                let output = match self.output.kind() == Kind::Pytorch || self.output.is_file() {
                    true => {
                        let plan = self.output.typed(&unpacked.plan)?;
                        self.output.contained(Output { plan, ..unpacked })
                    }
                    false => unpacked.sharded(self.output.shard_size),
                };
                self.output.write_output(output, common)
            }
            bank::ARCHITECTURE => self.output.write_output(bank::from_gguf(metadata, &taken)?.output(), common),
            other => {
                let finding = metadata.finding("general.architecture");
                let expected = "an architecture that this version has a table for, or generic";
                Err(finding.expected(expected).found(format!("{other:?}")).unsupported().into())
            }
        }
    }

    /// An adapter folder to GGUF.
    fn adapter(&self, common: &Common) -> Result<()> {
        if self.output.kind() != Kind::Gguf {
            let finding = Finding::new(&self.input, "adapter").expected("a GGUF to write it as");
            return Err(finding.found("another output").mismatch().into());
        }
        self.check_plain("a model")?;
        let bank = read_is_bank(&self.input)?;
        let (metadata, plan, notes) = match bank {
            true => bank::to_gguf(&self.input)?,
            // An adapter's factors are small, and the reference keeps them in F32.
            false => lora::to_gguf(
                &self.input,
                &self.lora_base()?.base(),
                match self.output.r#type {
                    Some(_) => self.output.outtype()?,
                    None => OutType::F32,
                },
            )?,
        };
        let mut made = Output::gguf(metadata, plan, notes);
        self.override_keys(&mut made)?;
        self.output.write_output(made, common)
    }

    /// Mixtures are of models that llama.cpp knows: their tensors' names say what they are.
    fn check_plain(&self, expected: &str) -> Result<()> {
        match self.output.quantized()? {
            None => Ok(()),
            Some(file_type) => {
                let finding = Finding::new(&self.input, format!("--type {file_type}")).expected(expected);
                Err(finding.found("something else").hint("f32, f16, bf16, q8_0 or source").unsupported().into())
            }
        }
    }

    /// The base of a LoRA, which gives names and shapes.
    fn lora_base(&self) -> Result<LoraBase> {
        let Some(folder) = &self.args.base else {
            let finding = Finding::new(&self.input, "--base").expected("the folder of the base model");
            return Err(finding.found("none").hint("a LoRA takes names and shapes from it").mismatch().into());
        };
        Ok(LoraBase::open(folder)?)
    }
}

/// Whether an adapter's config is that of an atom bank.
fn read_is_bank(folder: &Path) -> Result<bool> {
    let path = folder.join("adapter_config.json");
    let text = std::fs::read(&path).with_context(|| format!("{}: cannot read", path.display()))?;
    let json: serde_json::Value =
        serde_json::from_slice(&text).with_context(|| format!("{}: no JSON", path.display()))?;
    Ok(json.get("peft_type").and_then(|kind| kind.as_str()) == Some("QUERYABLE_LORA"))
}
