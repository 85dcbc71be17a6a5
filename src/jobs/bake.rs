//! Bakes an atom bank: fixes its routing, which gives plain weights, and measures the error.

use std::path::PathBuf;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::settings::{name_of, setting};
use super::{OutputKind, OutputSettings};
use crate::adapter::peft::Base;
use crate::arch::HfFolder;
use crate::bank::{Agreement, AtomBank, LoadedBank, Request, RoutedBy, Routes, compare, route};
use crate::convert::gguf_name;
use crate::error::Result;
use crate::merge::combine::Weights as Shares;
use crate::merge::{card, with_adapters};
use crate::model::{
    Decoder, Hook, LanguageModel, LoadedAdapter, LoraHook, ModelWeights, NoAdapter, Residence, TextEncoder,
};
use crate::output::Output;
use crate::plan::{Expr, Plan};

/// Settings of [`bake`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BakeSettings {
    /// The base model's folder.
    pub base: PathBuf,
    /// The base model's name, if that is not its path: on the hub.
    #[serde(default)]
    pub base_id: Option<String>,
    /// The atom bank's folder.
    pub bank: PathBuf,
    /// The bank's name, if that is not its path: on the hub.
    #[serde(default)]
    pub bank_id: Option<String>,
    /// The instruction to fix. It may be empty, but must be given if there are no prompts.
    #[serde(default)]
    pub instruction: Option<String>,
    /// Prompts. With several, the mean of their routings is baked.
    #[serde(default)]
    pub prompts: Vec<String>,
    /// What determines the routing.
    #[serde(default)]
    pub routing: RoutedBy,
    /// Where the result is written, and in which form.
    pub output: OutputSettings,
    /// Whether to compare the baked model with the routed one.
    #[serde(default = "verify")]
    pub verify: bool,
}

fn verify() -> bool {
    true
}

impl BakeSettings {
    /// Settings to bake `bank` on `base` for `instruction`.
    pub fn new(
        base: impl Into<PathBuf>,
        bank: impl Into<PathBuf>,
        instruction: &str,
        output: impl Into<PathBuf>,
    ) -> Self {
        Self {
            base: base.into(),
            base_id: None,
            bank: bank.into(),
            bank_id: None,
            instruction: Some(instruction.to_owned()),
            prompts: Vec::new(),
            routing: RoutedBy::default(),
            output: OutputSettings::new(output),
            verify: true,
        }
    }

    fn check(&self) -> Result<()> {
        if self.instruction.is_none() && self.prompts.is_empty() {
            let finding = setting("instruction").expected("an instruction, or `prompts`").found("neither");
            return Err(finding.hint("an empty `instruction` bakes what the bank does without one").setting());
        }
        self.output.check()?;
        if let (OutputKind::Lora, Some(name)) = (self.output.kind(), &self.output.r#type) {
            return Err(setting("type").expected("none for a LoRA, which is written in f32").found(name).setting());
        }
        if self.output.recipe.prune_layers.is_some() && self.verify {
            let finding = setting("prune_layers").expected("none");
            let found = "one, with a comparison with the routed model, which has all layers";
            return Err(finding.found(found).hint("pass `verify=false`").setting());
        }
        Ok(())
    }
}

impl BakeSettings {
    /// The model card of the baked model, because the base's card describes another model.
    fn card(&self) -> String {
        let (base, bank) = (name_of(self.base_id.as_deref(), &self.base), name_of(self.bank_id.as_deref(), &self.bank));
        let quoted = |text: &str| format!("    {}\n", text.replace('\n', "\n    "));
        let instruction = self.instruction.as_deref().filter(|text| !text.is_empty());
        let instruction =
            instruction.map(|text| format!("\nThe routing is fixed for the instruction\n\n{}", quoted(text)));
        let prompts = match self.prompts.len() {
            0 => String::new(),
            1 => format!("\nIt is fixed for the prompt\n\n{}", quoted(&self.prompts[0])),
            count => format!("\nIt is the mean of the routings of {count} prompts.\n"),
        };
        [card(&base, &[(&bank, 1.0)]), instruction.unwrap_or_default(), prompts].concat()
    }
}

/// The baked weights, their routing, and the error of fixing it.
pub struct Baked {
    /// The output to write.
    pub output: Output,
    /// The weights of the atoms.
    pub routes: Routes,
    /// Comparison of the routed model with the baked one, in the types that are written.
    pub verified: Option<Agreement>,
}

/// Fixes the routing of an atom bank.
///
/// ```no_run
/// use atombank::jobs::{BakeSettings, bake};
///
/// # fn main() -> atombank::Result<()> {
/// let mut settings = BakeSettings::new("Llama-3.2-1B", "my-bank", "Answer in French.", "french-Q4_K_M.gguf");
/// settings.output.r#type = Some("Q4_K_M".to_owned());
/// let baked = bake(&settings)?;
/// baked.output.write(&settings.output.destination, &|_| ())?;
/// println!("mean KL to the routed model: {:?}", baked.verified.map(|agreement| agreement.mean_kl));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`crate::Error::Setting`]; errors of opening base and bank; those of [`route`].
pub fn bake(settings: &BakeSettings) -> Result<Baked> {
    bake_on(settings, &Device::Cpu)
}

/// As [`bake`], with the model on `device`.
///
/// # Errors
/// As [`bake`].
pub fn bake_on(settings: &BakeSettings, device: &Device) -> Result<Baked> {
    settings.check()?;
    if settings.base.is_file() {
        return lora_of_gguf(settings, device);
    }
    let folder = HfFolder::open(&settings.base)?;
    let bank = AtomBank::open(&settings.bank)?;
    let encoder = TextEncoder::open(&settings.base)?;
    let decoder = Decoder::open(&folder, Residence::Streamed, device)?;
    let instruction = settings.instruction.clone().unwrap_or_default();
    let request = Request { instruction, prompts: settings.prompts.clone() };
    let routes = route(&decoder, &bank, &encoder, &request, settings.routing)?;
    let alphas = routes.mean();
    let base = Base::of(&folder);
    let plan =
        with_adapters(&base, folder.rounded(), &[bank.changes(&alphas, &base, &folder.config)], &Shares::new([1.0]))?
            .plan;
    let mut output = match settings.output.kind() {
        OutputKind::Lora => bank.static_lora(&alphas).output(),
        _ => settings.output.model(&folder, &plan)?,
    };
    let longest = routes.sequences.iter().map(|sequence| sequence.ids.len()).max().unwrap_or_default();
    output.notes.extend(decoder.length_note(longest));
    if settings.output.kind() == OutputKind::Hf {
        output.sidecars.files.insert("README.md".to_owned(), settings.card().into_bytes());
    }
    let verified = match settings.verify && !settings.output.dry_run {
        true => Some(agreement(settings, &folder, &decoder, &bank, &routes, &plan, &output)?),
        false => None,
    };
    Ok(Baked { output, routes, verified })
}

/// Fixes the routing of a bank on a GGUF, as a LoRA: merged weights would have to be quantized again.
fn lora_of_gguf(settings: &BakeSettings, device: &Device) -> Result<Baked> {
    if settings.output.kind() != OutputKind::Lora {
        let finding = setting("base").expected("a Hugging Face folder, for merged weights").found("a GGUF");
        return Err(finding.hint("`to` lora makes a LoRA for the GGUF").setting());
    }
    let bank = AtomBank::open(&settings.bank)?;
    let LanguageModel { decoder, encoder } = LanguageModel::open(&settings.base, Residence::Mapped, device)?;
    let instruction = settings.instruction.clone().unwrap_or_default();
    let request = Request { instruction, prompts: settings.prompts.clone() };
    let routes = route(&decoder, &bank, &encoder, &request, settings.routing)?;
    let mut output = bank.static_lora(&routes.mean()).output();
    let longest = routes.sequences.iter().map(|sequence| sequence.ids.len()).max().unwrap_or_default();
    output.notes.extend(decoder.length_note(longest));
    let verified = match settings.verify && !settings.output.dry_run {
        true => Some(lora_agreement(&decoder, &bank, &routes)?),
        false => None,
    };
    Ok(Baked { output, routes, verified })
}

/// Compares the routed model with the base and the bank's update as a LoRA.
fn lora_agreement(decoder: &Decoder, bank: &AtomBank, routes: &Routes) -> Result<Agreement> {
    let device = decoder.weights().device();
    let loaded = LoadedBank::frozen(bank, device)?;
    let mut hook = loaded.hook(decoder.weights(), &routes.sequences)?;
    let lora = bank.static_lora(&routes.mean());
    let lora = LoadedAdapter::frozen(&lora.tensors, lora.config.scale(), device)?;
    compare((decoder, &mut hook), (decoder, &mut LoraHook(&lora)), &routes.sequences)
}

/// Compares the routed model with the baked one, in the types that are written.
fn agreement(
    settings: &BakeSettings,
    folder: &HfFolder,
    decoder: &Decoder,
    bank: &AtomBank,
    routes: &Routes,
    plan: &Plan,
    output: &Output,
) -> Result<Agreement> {
    let device = decoder.weights().device();
    let loaded = LoadedBank::frozen(bank, device)?;
    let mut hook = loaded.hook(decoder.weights(), &routes.sequences)?;
    let routed = (decoder, &mut hook as &mut dyn Hook);
    let written = match settings.output.kind() {
        OutputKind::Lora => {
            return lora_agreement(decoder, bank, routes);
        }
        OutputKind::Gguf => {
            // Use the GGUF's types under Hugging Face's names: the same rows, rounded the same way.
            let mut typed = plan.clone();
            for tensor in &mut typed.tensors {
                let name = gguf_name(&folder.config_json, &tensor.name);
                let Some(written) = name.and_then(|name| output.plan.get(&name)) else { continue };
                tensor.dtype = written.dtype;
                // GGUF may reorder rows but not columns, so the importance stays the same.
                if let Expr::Weighted { importance, .. } = &written.expr {
                    let of = Box::new(tensor.expr.clone());
                    tensor.expr = Expr::Weighted { of, importance: importance.clone() };
                }
            }
            typed
        }
        _ => settings.output.typed(plan)?,
    };
    let weights = ModelWeights::open(folder.path(), &folder.config, &written, Residence::Streamed, device)?;
    compare(routed, (&Decoder::new(weights), &mut NoAdapter), &routes.sequences)
}
