//! Converts models, tensors, adapters and banks between all forms.

mod settings;

use std::path::Path;

use super::OutputKind;
use super::into;
use super::settings::{left_out, setting};
use crate::adapter::AdapterFiles;
use crate::adapter::peft::{Change, NewLora};
use crate::arch::Config;
use crate::bank::gguf as bank;
use crate::checkpoint::{ADAPTER_CONFIG, Checkpoint, has_weights, is_model};
use crate::convert::lora::{self, LoraBase};
use crate::convert::{
    ConvertOptions, GENERIC, GeneralOptions, Input, ModelPart, Opening, OutType, from_gguf, generic, to_gguf,
};
use crate::error::{Finding, Result};
use crate::filter::dense_kernels;
use crate::formats::FileKind;
use crate::formats::gguf::GgufModel;
use crate::json::read_json_object;
use crate::output::{Output, Sidecars, safetensors_metadata};
use crate::plan::Plan;

pub use settings::ConvertSettings;

/// Converts `settings.input` to another form or type.
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
/// [`crate::Error::Setting`]; errors of opening the input; errors for what the form can't hold.
pub fn convert(settings: &ConvertSettings) -> Result<Output> {
    settings.check()?;
    let input = settings.open()?;
    if settings.generic && matches!(input, Input::Gguf(_) | Input::Adapter) {
        let expected = "a model's folder or tensors alone, which names and files are kept of";
        return Err(setting("generic").expected(expected).found("another input").setting());
    }
    let is_model = matches!(input, Input::Model(_));
    let of_folders = [
        (settings.metadata.is_some(), "metadata"),
        (settings.model_name.is_some(), "model_name"),
        (settings.output.pre.is_some() && matches!(input, Input::Gguf(_)), "pre"),
    ];
    let mut of_folders = settings.of_families().into_iter().chain(of_folders);
    if let Some((_, name)) = of_folders.find(|(given, _)| *given && !is_model) {
        return Err(setting(name).expected("a model's folder as input").found("another input").setting());
    }
    if settings.vocab_only && matches!(input, Input::Adapter) {
        return Err(setting("vocab_only").expected("a model as input").found("an adapter").setting());
    }
    if settings.output.into.is_some() && !matches!(input, Input::Weights { .. } | Input::Gguf(_)) {
        return Err(setting("into").expected("tensors alone as input").found("another input").setting());
    }
    if settings.dense_kernels && !matches!(input, Input::Weights { .. }) {
        return Err(setting("dense_kernels").expected("tensors alone as input").found("another input").setting());
    }
    if settings.base.is_some() && (is_model || matches!(input, Input::Weights { .. })) {
        return Err(setting("base").expected("a LoRA as input").found("another input").setting());
    }
    let (mut notes, made) = match input {
        Input::Model(folder) => (left_out(folder.others()), settings.model(&folder)?),
        Input::Weights { plan, others, notes } => {
            let others = if settings.output.into.is_some() { Vec::new() } else { left_out(&others) };
            match settings.dense_kernels {
                false => ([notes, others].concat(), settings.weights(&plan, &plan)?),
                true => {
                    let (dense, note) = settings.dense(&plan)?;
                    ([notes, vec![note], others].concat(), settings.weights(&dense, &plan)?)
                }
            }
        }
        Input::Gguf(model) => (Vec::from_iter(FileKind::note_of_name(&settings.input)?), settings.gguf(&model)?),
        Input::Adapter => (Vec::new(), settings.adapter()?),
    };
    notes.extend(made.notes);
    Ok(settings.output.split(Output { notes, ..made }))
}

impl ConvertSettings {
    /// Opens the input. Weights may be missing if only the vocabulary is needed.
    fn open(&self) -> Result<Input> {
        let input = &self.input;
        if self.vocab_only && is_model(input) && !has_weights(input) {
            return Ok(Input::Model(Checkpoint::without_weights(input)?));
        }
        Input::open(
            input,
            Opening {
                key: self.key.as_deref(),
                content: self.r#as,
                strip_prefix: self.strip_prefix.as_deref(),
                names_from: self.names_from.as_deref(),
                unread: false,
            },
        )
    }

    /// Converts a model folder.
    fn model(&self, folder: &Checkpoint) -> Result<Output> {
        if self.output.kind() != OutputKind::Gguf {
            return self.output.model(folder, folder.weights());
        }
        let options = ConvertOptions {
            outtype: self.output.outtype()?,
            pre: self.output.pre.clone(),
            vocab: true,
            vocab_only: self.vocab_only,
            part: self.part(),
            fuse: self.fuse,
            target: self.target_model_dir.clone(),
            dense_modules: self.sentence_transformers_dense_modules,
            general: GeneralOptions {
                metadata_file: self.metadata.clone(),
                model_name: self.model_name.clone(),
                model_id: self.model_id.clone(),
            },
            overrides: self.overrides()?,
        };
        if self.generic {
            return self.generic(folder.path(), folder.weights(), Some(folder));
        }
        self.output.quantize(to_gguf(folder, folder.weights(), &options)?, &options.overrides)
    }

    fn part(&self) -> ModelPart {
        match (self.mmproj, self.no_nextn, self.mtp) {
            (true, ..) => ModelPart::Projector,
            (_, true, _) => ModelPart::WithoutNextn,
            (.., true) => ModelPart::Nextn,
            _ => ModelPart::Whole,
        }
    }

    /// The tensors with dense kernels in the place of coefficients and atoms, and a note on whose they were.
    fn dense(&self, plan: &Plan) -> Result<(Plan, String)> {
        dense_kernels(plan)?.ok_or_else(|| {
            Finding::new(&self.input, "dense_kernels")
                .expected("tensors of convnet_finetune, DCFNet-Pytorch or CL_Atom_Swapping: coefficients and `bases`")
                .found("none")
                .hint("`key` chooses the part that holds them, such as state_dict")
                .mismatch()
        })
    }

    /// Converts tensors without a config, which were made of those of `base`.
    fn weights(&self, plan: &Plan, base: &Plan) -> Result<Output> {
        match self.output.kind() {
            OutputKind::Gguf if self.generic => self.generic(&self.input, plan, None),
            OutputKind::Gguf => {
                let finding = Finding::new(&self.input, "config.json").expected("the config of a model's folder");
                Err(finding.found("tensors alone").hint(GENERIC).mismatch())
            }
            OutputKind::Hf | OutputKind::Lora | OutputKind::Mlx => {
                let finding = Finding::new(&self.input, "config.json").expected("a model folder's config");
                let hint = "write the tensors alone: name the output .safetensors, .bin or .gguf";
                Err(finding.found("tensors alone").hint(hint).mismatch())
            }
            OutputKind::Safetensors | OutputKind::Pytorch | OutputKind::ThreeConvolutions => self.bare(plan, base),
        }
    }

    /// Writes tensors alone: into another file, or as they are.
    fn bare(&self, plan: &Plan, base: &Plan) -> Result<Output> {
        match &self.output.into {
            Some(original) => {
                let part = into::Part { key: self.output.into_key.as_deref(), prefix: self.strip_prefix.as_deref() };
                into::output(original, part, plan, &plan.shared(), None)
            }
            None => Ok(self.output.bare_of(self.output.typed(plan)?, base, &plan.shared())),
        }
    }

    /// Makes a GGUF that keeps names and files as they are.
    pub(super) fn generic(&self, from: &Path, plan: &Plan, folder: Option<&Checkpoint>) -> Result<Output> {
        let (mut beside, mut notes) = match from.is_dir() {
            true => Sidecars::read(from, plan)?,
            false => {
                let mut notes = Vec::new();
                let safetensors_metadata = safetensors_metadata(plan, &mut notes);
                (Sidecars { safetensors_metadata, ..Sidecars::default() }, notes)
            }
        };
        let one_name_each = match folder {
            None if !self.output.expand_shared => {
                let (one, aliases) = plan.with_one_name_each(&plan.shared(), &|_| false);
                beside.aliases = aliases;
                Some(one)
            }
            _ => None,
        };
        let plan = one_name_each.as_ref().unwrap_or(plan);
        if let Some(folder) = folder {
            folder.bring_up_to_date(&mut beside.files);
            notes.extend_from_slice(folder.notes());
        }
        // Without a known class, no type is chosen automatically: only an explicit type converts
        // tensors.
        let asked = self.output.r#type.as_deref().map(str::parse::<OutType>).transpose()?;
        let outtype = asked.and_then(|outtype| outtype.dtype(plan));
        let made = self.with_keys(generic::to_gguf(from, plan, &beside, outtype)?)?;
        notes.push("written as a generic GGUF, which llama.cpp can't run".to_owned());
        Ok(Output { notes, ..made })
    }

    /// Sets the GGUF's keys that the user gave.
    fn with_keys(&self, mut made: Output) -> Result<Output> {
        for single in self.overrides()? {
            if let Some(metadata) = made.metadata_mut() {
                single.apply(metadata)?;
            }
        }
        Ok(made)
    }

    /// Converts a GGUF.
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
            let base = self.lora_base(&Config::new(), &mut Vec::new())?;
            let folder = lora::from_gguf(metadata, &taken, &base.base())?;
            let made = self.output.lora(&folder.config, &folder.tensors)?;
            return Ok(Output { notes: [folder.notes, made.notes].concat(), ..made });
        }
        let outtype = self.output.outtype()?.dtype(&taken);
        if let Some((_, restored)) = from_gguf(model, outtype)? {
            return Ok(self.output.tensors(restored));
        }
        match metadata.text("general.architecture")? {
            generic::ARCHITECTURE => {
                let unpacked = generic::from_gguf(metadata, &taken)?;
                if self.output.into.is_some() {
                    return self.bare(&unpacked.plan, &unpacked.plan);
                }
                let base = unpacked.plan.clone();
                match self.output.kind() == OutputKind::Pytorch || self.output.is_file() {
                    true => {
                        let plan = self.output.typed(&unpacked.plan)?;
                        let typed = Output { plan, ..unpacked };
                        Ok(self.output.contained(self.output.with_one_name_each(typed, &base)))
                    }
                    false => Ok(self.output.with_one_name_each(unpacked, &base).sharded(self.output.shard_size)),
                }
            }
            bank::ARCHITECTURE => bank::from_gguf(metadata, &taken),
            other => {
                let finding = metadata.finding("general.architecture");
                let expected = "an architecture that this version has a family for, or generic";
                Err(finding.expected(expected).found(format!("{other:?}")).unsupported())
            }
        }
    }

    /// Converts an adapter folder to GGUF, or to the folder of a LoRA in another form.
    fn adapter(&self) -> Result<Output> {
        if self.output.kind() != OutputKind::Gguf && !self.output.kind().is_lora() {
            let finding = Finding::new(&self.input, "adapter").expected("a GGUF to write it as");
            return Err(finding.found("another output").mismatch());
        }
        self.check_plain("a model")?;
        let config = read_json_object(&self.input.join(ADAPTER_CONFIG))?;
        if self.output.kind().is_lora() {
            return self.adapter_as_lora();
        }
        let config = match config.contains_key("peft_type") {
            true => config,
            // Another program's settings, as PEFT has them.
            false => AdapterFiles::find(&self.input)?.settings().cloned().unwrap_or(config),
        };
        let is_bank = config.get("peft_type").and_then(|kind| kind.as_str()) == Some("QUERYABLE_LORA");
        let mut notes = Vec::new();
        let mut output = match (is_bank, &self.output.r#type) {
            (true, _) => bank::to_gguf(&self.input)?,
            // An adapter's factors are small, and the reference writes them in F32.
            (false, None) => lora::to_gguf(&self.input, &self.lora_base(&config, &mut notes)?.base(), OutType::F32)?,
            (false, Some(_)) => {
                let base = self.lora_base(&config, &mut notes)?;
                lora::to_gguf(&self.input, &base.base(), self.output.outtype()?)?
            }
        };
        output.notes.splice(0..0, notes);
        self.with_keys(output)
    }

    /// Converts an adapter folder to that of a LoRA: PEFT's or mlx-lm's.
    fn adapter_as_lora(&self) -> Result<Output> {
        let files = AdapterFiles::find(&self.input)?;
        let mut notes = Vec::new();
        let config = files.settings().cloned().unwrap_or_default();
        let loaded = self.lora_base(&config, &mut notes)?;
        let base = loaded.base();
        let changes = files.changes(&base)?;
        changes.check_always_on()?;
        let (mut updates, mut saved) = (Vec::new(), Vec::new());
        for (name, change) in changes.changes {
            match change {
                Change::LowRank(update) => updates.push((name, update)),
                Change::Replace(tensor) => saved.push(tensor),
                _ => {
                    return Err(Finding::new(&changes.path, format!("the change of {name:?}"))
                        .expected("a low-rank update or a whole tensor, which a plain LoRA can have")
                        .found("another change")
                        .unsupported());
                }
            }
        }
        let mut lora = NewLora::new(&base, &updates, &[], saved, self.output.lora_type()?)?;
        if let Some(name) = config.get("base_model_name_or_path") {
            lora.config.insert("base_model_name_or_path".to_owned(), name.clone());
        }
        let made = self.output.lora(&lora.config, &lora.tensors)?;
        Ok(Output { notes: [notes, changes.notes, made.notes].concat(), ..made })
    }

    /// Refuses mixtures, which need a model that llama.cpp knows: they go by its tensors' names.
    fn check_plain(&self, expected: &str) -> Result<()> {
        match self.output.quantized()? {
            None => Ok(()),
            Some(file_type) => {
                let finding = Finding::new(&self.input, format!("type {file_type}")).expected(expected);
                Err(finding.found("something else").hint("f32, f16, bf16, q8_0 or source").setting())
            }
        }
    }

    /// The base of a LoRA, which provides names and shapes: the given folder, or the one that the
    /// adapter's settings name.
    fn lora_base(&self, config: &Config, notes: &mut Vec<String>) -> Result<LoraBase> {
        if let Some(folder) = &self.base {
            return LoraBase::open(folder);
        }
        let named = config.get("base_model_name_or_path").and_then(|name| name.as_str()).unwrap_or_default();
        if is_model(Path::new(named)) {
            notes.push(format!("the base is {named}, which adapter_config.json names"));
            return LoraBase::open(Path::new(named));
        }
        let finding =
            Finding::new(&self.input, "base").expected("the folder or the GGUF of the base model").found("none");
        Err(match named {
            "" => finding.hint("a LoRA takes names and shapes from it"),
            named => {
                finding.hint(format_args!("a LoRA takes names and shapes from it; adapter_config.json names {named:?}"))
            }
        }
        .setting())
    }
}
