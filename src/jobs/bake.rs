//! Bakes an atom bank: fixes its routing, which gives plain weights, and measures the error.

mod all;
mod fixed;

use std::path::PathBuf;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::settings::{name_of, setting};
use super::{OutputKind, OutputSettings};
use crate::adapter::peft::Base;
use crate::arch::HfFolder;
use crate::bank::{Agreement, AtomBank, BlockAlphas, LoadedBank, Request, RoutedBy, Routes, compare, route};
use crate::convert::gguf_name;
use crate::error::{Finding, Result};
use crate::formats::FileKind;
use crate::merge::combine::Weights as Shares;
use crate::merge::{card, with_adapters};
use crate::model::{
    Decoder, Hook, LanguageModel, LoadedAdapter, LoraHook, ModelWeights, NoAdapter, Residence, TextEncoder,
};
use crate::output::Output;
use crate::plan::{Expr, Plan};

pub use all::{Named, named_instructions, named_output};
pub use fixed::Share;

/// Settings of [`bake`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BakeSettings {
    /// The base model's folder.
    pub base: PathBuf,
    /// The base model's name, if that is not its path: on the hub.
    #[serde(default)]
    pub base_id: Option<String>,
    /// The atom bank's folder or GGUF.
    pub bank: PathBuf,
    /// The bank's name, if that is not its path: on the hub.
    #[serde(default)]
    pub bank_id: Option<String>,
    /// The instruction to fix. It may be empty, but must be given if there is nothing else that fixes the routing.
    #[serde(default)]
    pub instruction: Option<String>,
    /// Several instructions in place of one, whose routings are mixed.
    #[serde(default)]
    pub mixture: Vec<Share>,
    /// The weights of atoms, in place of those by which the bank routes.
    #[serde(default)]
    pub alphas: Vec<BlockAlphas>,
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
            mixture: Vec::new(),
            alphas: Vec::new(),
            prompts: Vec::new(),
            routing: RoutedBy::default(),
            output: OutputSettings::new(output),
            verify: true,
        }
    }

    fn check(&self) -> Result<()> {
        self.check_fixed()?;
        self.output.check()?;
        if let (true, Some(name)) = (self.output.kind().is_lora(), &self.output.r#type) {
            return Err(setting("type").expected("none for a LoRA, which is written in f32").found(name).setting());
        }
        if self.output.recipe.prune_layers.is_some() && self.verify {
            let finding = setting("prune_layers").expected("none");
            let found = "one, with a comparison with the routed model, which has all layers";
            return Err(finding.found(found).hint("pass `verify=false`").setting());
        }
        Ok(())
    }

    /// The model card of the baked model, because the base's card describes another model.
    fn card(&self) -> String {
        let (base, bank) = (name_of(self.base_id.as_deref(), &self.base), name_of(self.bank_id.as_deref(), &self.bank));
        let quoted = |text: &str| format!("    {}\n", text.replace('\n', "\n    "));
        let instruction = self.instruction.as_deref().filter(|text| !text.is_empty());
        let instruction =
            instruction.map(|text| format!("\nThe routing is fixed for the instruction\n\n{}", quoted(text)));
        let mixture = match self.shares() {
            shares if self.mixture.is_empty() || shares.is_empty() => String::new(),
            shares => {
                let line = |share: &Share| quoted(&format!("{:.3}  {}", share.weight, share.instruction));
                let lines: String = shares.iter().map(line).collect();
                format!("\nThe routing is a mixture of those for these instructions, with weights\n\n{lines}")
            }
        };
        let by_hand = match self.alphas.is_empty() {
            true => "",
            false => "\nThe weights of the atoms were given by hand.\n",
        };
        let prompts = match self.prompts.len() {
            0 => String::new(),
            1 => format!("\nIt is fixed for the prompt\n\n{}", quoted(&self.prompts[0])),
            count => format!("\nIt is the mean of the routings of {count} prompts.\n"),
        };
        [card(&base, &[(&bank, 1.0)]), instruction.unwrap_or_default(), mixture, by_hand.to_owned(), prompts].concat()
    }
}

/// The baked weights, their routing, and the error of fixing it.
pub struct Baked {
    /// The output to write.
    pub output: Output,
    /// The weights of the atoms that were baked, by block, each `[K]`.
    pub alphas: Vec<Vec<f32>>,
    /// The routing of each instruction, and what baking cost there. Empty where the weights are given by hand, without an
    /// instruction or a prompt.
    pub parts: Vec<BakedPart>,
}

/// The routing of one instruction that was baked.
pub struct BakedPart {
    /// The instruction, and its share of the weights that were baked; the shares add up to 1.
    pub share: Share,
    /// The weights of the atoms by which the bank routes.
    pub routes: Routes,
    /// Comparison of the model that routes this instruction with the baked one, in the types that are written.
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
/// println!("mean KL to the routed model: {:?}", baked.parts[0].verified.map(|agreement| agreement.mean_kl));
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
    Opened::new(settings, device)?.bake(settings)
}

/// As [`bake_on`] for several outputs of one bank on one base, which are opened once: those of the first settings.
///
/// # Errors
/// As [`bake`].
pub fn bake_all(all: &[BakeSettings], device: &Device) -> Result<Vec<Baked>> {
    all.iter().try_for_each(BakeSettings::check)?;
    let Some(first) = all.first() else { return Ok(Vec::new()) };
    let opened = Opened::new(first, device)?;
    all.iter().map(|settings| opened.bake(settings)).collect()
}

/// A bank and the base on which it is baked.
struct Opened {
    bank: AtomBank,
    decoder: Decoder,
    encoder: TextEncoder,
    /// The base's folder; none for a GGUF, on which a bank is baked as a LoRA.
    folder: Option<HfFolder>,
}

impl Opened {
    fn new(settings: &BakeSettings, device: &Device) -> Result<Self> {
        if !settings.base.is_file() {
            let folder = HfFolder::open(&settings.base)?;
            let bank = AtomBank::open(&settings.bank)?;
            let encoder = TextEncoder::open(&settings.base)?;
            let decoder = Decoder::open(&folder, Residence::Streamed, device)?;
            return Ok(Self { bank, decoder, encoder, folder: Some(folder) });
        }
        if let Some(kind) = FileKind::of(&settings.base)?.filter(|kind| *kind != FileKind::Gguf) {
            let finding =
                Finding::new(&settings.base, "").expected("a model that runs, to route: a Hugging Face folder");
            let hint = "`alphas` gives the weights of atoms, which needs no model that runs";
            return Err(finding.found(format_args!("{kind} alone")).hint(hint).mismatch());
        }
        // Merged weights of a GGUF would have to be quantized again.
        if !settings.output.kind().is_lora() {
            let finding = setting("base").expected("a Hugging Face folder, for merged weights").found("a GGUF");
            return Err(finding.hint("`to` lora makes a LoRA for the GGUF").setting());
        }
        let bank = AtomBank::open(&settings.bank)?;
        let LanguageModel { decoder, encoder } = LanguageModel::open(&settings.base, Residence::Mapped, device)?;
        Ok(Self { bank, decoder, encoder, folder: None })
    }

    fn bake(&self, settings: &BakeSettings) -> Result<Baked> {
        self.bank.check_base(self.decoder.config())?;
        let mut parts = Vec::new();
        for share in settings.shares() {
            let request = Request { instruction: share.instruction.clone(), prompts: settings.prompts.clone() };
            let routes = route(&self.decoder, &self.bank, &self.encoder, &request, settings.routing)?;
            parts.push(BakedPart { share, routes, verified: None });
        }
        let blocks = self.bank.config.blocks(self.decoder.config().num_hidden_layers);
        let alphas = settings.fixed_alphas(&self.bank, blocks, &parts)?;
        let (mut output, merged) = match (settings.output.kind(), &self.folder) {
            (OutputKind::Mlx, _) => (self.bank.static_lora(&alphas).mlx_output()?, None),
            (OutputKind::Lora, _) | (_, None) => (self.bank.static_lora(&alphas).output(), None),
            (_, Some(folder)) => {
                let base = Base::of(folder);
                let changes = [self.bank.changes(&alphas, &base, &folder.config)];
                let plan = with_adapters(&base, folder.rounded(), &changes, &Shares::new([1.0]))?.plan;
                (settings.output.model(folder, &plan)?, Some((folder, plan)))
            }
        };
        let lengths = parts.iter().flat_map(|part| &part.routes.sequences).map(|sequence| sequence.ids.len());
        output.notes.extend(self.decoder.length_note(lengths.max().unwrap_or_default()));
        output.notes.extend(settings.approximation());
        if settings.output.kind() == OutputKind::Hf {
            output.sidecars.files.insert("README.md".to_owned(), settings.card().into_bytes());
        }
        if settings.verify && !settings.output.dry_run && !parts.is_empty() {
            self.verify(settings, &mut parts, &alphas, merged.as_ref(), &output)?;
        }
        Ok(Baked { output, alphas, parts })
    }

    /// Compares the model that routes each instruction with the baked one, in the types that are written.
    fn verify(
        &self,
        settings: &BakeSettings,
        parts: &mut [BakedPart],
        alphas: &[Vec<f32>],
        merged: Option<&(&HfFolder, Plan)>,
        output: &Output,
    ) -> Result<()> {
        let device = self.decoder.weights().device();
        let loaded = LoadedBank::frozen(&self.bank, device)?;
        let lora = match merged {
            Some(_) => None,
            None => {
                let lora = self.bank.static_lora(alphas);
                Some(LoadedAdapter::frozen(&lora.tensors, lora.config.scale(), device)?)
            }
        };
        let baked = match merged {
            None => None,
            Some((folder, plan)) => {
                let written = written_types(settings, folder, plan, output)?;
                let path = folder.path();
                let weights = ModelWeights::open(path, &folder.config, &written, Residence::Streamed, device)?;
                Some(Decoder::new(weights))
            }
        };
        for BakedPart { routes, verified, .. } in parts {
            let mut hook = loaded.hook(self.decoder.weights(), &routes.sequences)?;
            let routed = (&self.decoder, &mut hook as &mut dyn Hook);
            *verified = Some(match (&lora, &baked) {
                (Some(lora), _) => compare(routed, (&self.decoder, &mut LoraHook(lora)), &routes.sequences)?,
                (None, Some(baked)) => compare(routed, (baked, &mut NoAdapter), &routes.sequences)?,
                (None, None) => continue,
            });
        }
        Ok(())
    }
}

/// The plan with the types that are written.
fn written_types(settings: &BakeSettings, folder: &HfFolder, plan: &Plan, output: &Output) -> Result<Plan> {
    if settings.output.kind() != OutputKind::Gguf {
        return settings.output.typed(plan);
    }
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
    Ok(typed)
}
