//! Models, tensors, adapters and banks in every direction.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::settings::setting;
use super::{OutputKind, OutputSettings};
use crate::arch::Config;
use crate::bank::gguf as bank;
use crate::checkpoint::{Checkpoint, has_weights, is_model};
use crate::convert::lora::{self, LoraBase};
use crate::convert::{ConvertOptions, GeneralOptions, Input, OutType, from_gguf, generic, to_gguf};
use crate::error::{Finding, Result};
use crate::formats::gguf::{GgufModel, Override};
use crate::json::read_json_object;
use crate::output::{Output, Sidecars, safetensors_metadata};
use crate::plan::Plan;

/// Settings of [`convert`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvertSettings {
    /// A model or adapter folder, a .gguf, .safetensors, .bin, .pt, .pth or .ckpt file.
    pub input: PathBuf,
    /// Where the result goes, and what it is.
    pub output: OutputSettings,
    /// The part of a PyTorch file to convert, like `state_dict`.
    #[serde(default)]
    pub key: Option<String>,
    /// The base model's folder, for a LoRA.
    #[serde(default)]
    pub base: Option<PathBuf>,
    /// JSON with `general.*` keys of the GGUF, over what the model card says.
    #[serde(default)]
    pub metadata: Option<PathBuf>,
    /// The model's name in the GGUF.
    #[serde(default)]
    pub model_name: Option<String>,
    /// The model's name on the hub, `org/name`, where it is from there.
    #[serde(default)]
    pub model_id: Option<String>,
    /// Keys of the GGUF that get another value: `KEY=VALUE` or `KEY=TYPE:VALUE`.
    #[serde(default)]
    pub override_key: Vec<String>,
    /// Whether the GGUF gets the vocabulary alone.
    #[serde(default)]
    pub vocab_only: bool,
}

impl ConvertSettings {
    /// What is at `input`, as what `output` is called: a GGUF, a file of tensors, or a folder.
    pub fn new(input: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            input: input.into(),
            output: OutputSettings::new(output),
            key: None,
            base: None,
            metadata: None,
            model_name: None,
            model_id: None,
            override_key: Vec::new(),
            vocab_only: false,
        }
    }

    fn check(&self) -> Result<()> {
        let is_gguf = self.output.kind() == OutputKind::Gguf;
        if self.output.kind() == OutputKind::Lora && self.input.extension().is_none_or(|e| e != "gguf") {
            let finding = setting("to").expected("an atom bank to bake, for a LoRA").found("a model");
            return Err(finding.hint("see `jobs::bake`").setting());
        }
        self.output.check()?;
        let only_gguf = [
            (self.metadata.is_some(), "metadata"),
            (self.model_name.is_some(), "model_name"),
            (!self.override_key.is_empty(), "override_key"),
            (self.vocab_only, "vocab_only"),
        ];
        match only_gguf.iter().find(|(given, _)| *given && !is_gguf) {
            None => Ok(()),
            Some((_, name)) => Err(setting(name).expected("a GGUF").found("another output").setting()),
        }
    }

    fn overrides(&self) -> Result<Vec<Override>> {
        self.override_key.iter().map(|text| Override::parse(text)).collect()
    }
}

/// What is at `settings.input` in another form or type.
///
/// ```no_run
/// use atombank::jobs::{ConvertSettings, convert};
///
/// # fn main() -> atombank::Result<()> {
/// let mut settings = ConvertSettings::new("Llama-3.2-1B", "llama-Q4_K_M.gguf");
/// settings.output.r#type = Some("Q4_K_M".to_owned());
/// convert(&settings)?.write(&settings.output.destination, &|_| ())?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`crate::Error::Setting`]; what opening the input meets; what the form can't hold.
pub fn convert(settings: &ConvertSettings) -> Result<Output> {
    settings.check()?;
    let left_out = |others: &[(String, String)]| -> Vec<String> {
        others.iter().map(|(path, what)| format!("no tensor, left out: {path} ({what})")).collect()
    };
    let (mut notes, made) = match settings.open()? {
        Input::Model(folder) => (left_out(folder.others()), settings.model(&folder)?),
        Input::Weights { plan, others, notes } => ([notes, left_out(&others)].concat(), settings.weights(&plan)?),
        Input::Gguf(model) => (Vec::new(), settings.gguf(&model)?),
        Input::Adapter => (Vec::new(), settings.adapter()?),
    };
    notes.extend(made.notes);
    Ok(settings.output.split(Output { notes, ..made }))
}

impl ConvertSettings {
    /// The input, open. A vocabulary needs no weights.
    fn open(&self) -> Result<Input> {
        let input = &self.input;
        if self.vocab_only && is_model(input) && !has_weights(input) {
            return Ok(Input::Model(Checkpoint::without_weights(input)?));
        }
        Input::open(input, self.key.as_deref())
    }

    /// A model folder to anything.
    fn model(&self, folder: &Checkpoint) -> Result<Output> {
        if self.output.kind() != OutputKind::Gguf {
            return self.output.model(folder, folder.weights());
        }
        let options = ConvertOptions {
            outtype: self.output.outtype()?,
            pre: self.output.pre.clone(),
            vocab: true,
            vocab_only: self.vocab_only,
            general: GeneralOptions {
                metadata_file: self.metadata.clone(),
                model_name: self.model_name.clone(),
                model_id: self.model_id.clone(),
            },
            overrides: self.overrides()?,
        };
        match to_gguf(folder, folder.weights(), &options)? {
            Some(made) => self.output.quantize(made, &options.overrides),
            None => self.generic(folder.path(), folder.weights(), Some(folder)),
        }
    }

    /// Tensors without a config.
    fn weights(&self, plan: &Plan) -> Result<Output> {
        match self.output.kind() {
            OutputKind::Gguf => self.generic(&self.input, plan, None),
            OutputKind::Hf | OutputKind::Lora => {
                let finding = Finding::new(&self.input, "config.json").expected("a model folder's config");
                let hint = "write the tensors alone: name the output .safetensors, .bin or .gguf";
                Err(finding.found("tensors alone").hint(hint).mismatch())
            }
            OutputKind::Safetensors | OutputKind::Pytorch => {
                Ok(self.output.tensors(Output::folder("model", self.output.typed(plan)?)))
            }
        }
    }

    /// A GGUF that keeps names as they are, for models of other classes and bare tensors.
    fn generic(&self, from: &Path, plan: &Plan, folder: Option<&Checkpoint>) -> Result<Output> {
        self.check_plain("a model whose class has a table")?;
        let (mut beside, mut notes) = match from.is_dir() {
            true => Sidecars::read(from, plan)?,
            false => {
                let mut notes = Vec::new();
                let safetensors_metadata = safetensors_metadata(plan, &mut notes);
                (Sidecars { safetensors_metadata, ..Sidecars::default() }, notes)
            }
        };
        if let Some(folder) = folder {
            folder.bring_up_to_date(&mut beside.files);
            notes.extend_from_slice(folder.notes());
        }
        // What no matrix of a known model is, is not cast by itself either.
        let asked = self.output.r#type.as_deref().map(str::parse::<OutType>).transpose()?;
        let outtype = asked.and_then(|outtype| outtype.dtype(plan));
        let made = self.with_keys(generic::to_gguf(from, plan, &beside, outtype)?)?;
        notes.push("no table for this model's class: written as a generic GGUF, which llama.cpp can't run".to_owned());
        Ok(Output { notes, ..made })
    }

    /// A GGUF with the keys that are set by hand.
    fn with_keys(&self, mut made: Output) -> Result<Output> {
        for single in self.overrides()? {
            if let Some(metadata) = made.metadata_mut() {
                single.apply(metadata)?;
            }
        }
        Ok(made)
    }

    /// A GGUF to anything.
    fn gguf(&self, model: &GgufModel) -> Result<Output> {
        let taken: Plan = model.tensors().iter().cloned().collect();
        let metadata = model.metadata();
        if self.output.kind() == OutputKind::Gguf {
            if let Some(file_type) = self.output.quantized()? {
                return self.output.recipe.quantize(file_type, metadata, &taken, &self.overrides()?);
            }
            self.output.check_gguf_again()?;
            let plan = if self.vocab_only { Plan::default() } else { taken };
            return self.with_keys(Output::gguf(metadata.clone(), plan, Vec::new()));
        }
        if metadata.get("adapter.type").and_then(|kind| kind.as_text()) == Some("lora") {
            return Ok(
                lora::from_gguf(metadata, &taken, &self.lora_base(&Config::new(), &mut Vec::new())?.base())?.output()
            );
        }
        let outtype = self.output.outtype()?.dtype(&taken);
        if let Some((_, restored)) = from_gguf(model, outtype)? {
            return Ok(self.output.tensors(restored));
        }
        match metadata.text("general.architecture")? {
            generic::ARCHITECTURE => {
                let unpacked = generic::from_gguf(metadata, &taken)?;
                match self.output.kind() == OutputKind::Pytorch || self.output.is_file() {
                    true => {
                        let plan = self.output.typed(&unpacked.plan)?;
                        Ok(self.output.contained(Output { plan, ..unpacked }))
                    }
                    false => Ok(unpacked.sharded(self.output.shard_size)),
                }
            }
            bank::ARCHITECTURE => Ok(bank::from_gguf(metadata, &taken)?.output()),
            other => {
                let finding = metadata.finding("general.architecture");
                let expected = "an architecture that this version has a table for, or generic";
                Err(finding.expected(expected).found(format!("{other:?}")).unsupported())
            }
        }
    }

    /// An adapter folder to GGUF.
    fn adapter(&self) -> Result<Output> {
        if self.output.kind() != OutputKind::Gguf {
            let finding = Finding::new(&self.input, "adapter").expected("a GGUF to write it as");
            return Err(finding.found("another output").mismatch());
        }
        self.check_plain("a model")?;
        let config = read_json_object(&self.input.join("adapter_config.json"))?;
        let is_bank = config.get("peft_type").and_then(|kind| kind.as_str()) == Some("QUERYABLE_LORA");
        let mut notes = Vec::new();
        let (metadata, plan, more) = match (is_bank, &self.output.r#type) {
            (true, _) => bank::to_gguf(&self.input)?,
            // An adapter's factors are small, and the reference keeps them in F32.
            (false, None) => lora::to_gguf(&self.input, &self.lora_base(&config, &mut notes)?.base(), OutType::F32)?,
            (false, Some(_)) => {
                let base = self.lora_base(&config, &mut notes)?;
                lora::to_gguf(&self.input, &base.base(), self.output.outtype()?)?
            }
        };
        notes.extend(more);
        self.with_keys(Output::gguf(metadata, plan, notes))
    }

    /// Mixtures are of models that llama.cpp knows: their tensors' names say what they are.
    fn check_plain(&self, expected: &str) -> Result<()> {
        match self.output.quantized()? {
            None => Ok(()),
            Some(file_type) => {
                let finding = Finding::new(&self.input, format!("type {file_type}")).expected(expected);
                Err(finding.found("something else").hint("f32, f16, bf16, q8_0 or source").setting())
            }
        }
    }

    /// The base of a LoRA, which gives names and shapes: the one that is given, or the folder that the adapter's
    /// settings name.
    fn lora_base(&self, config: &Config, notes: &mut Vec<String>) -> Result<LoraBase> {
        if let Some(folder) = &self.base {
            return LoraBase::open(folder);
        }
        let named = config.get("base_model_name_or_path").and_then(|name| name.as_str()).unwrap_or_default();
        if is_model(Path::new(named)) {
            notes.push(format!("the base is {named}, which adapter_config.json names"));
            return LoraBase::open(Path::new(named));
        }
        let finding = Finding::new(&self.input, "base").expected("the folder of the base model").found("none");
        Err(match named {
            "" => finding.hint("a LoRA takes names and shapes from it"),
            named => {
                finding.hint(format_args!("a LoRA takes names and shapes from it; adapter_config.json names {named:?}"))
            }
        }
        .setting())
    }
}
