//! The adapter with which a run begins, and what is checked when a bank has grown.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use super::adapter::TrainedAdapter;
use super::inputs::Inputs;
use super::{AdapterKind, Dataset, TrainConfig};
use crate::adapter::{ADAPTER_CONFIG, WEIGHTS_FILE};
use crate::bank::{
    Addition, AtomBank, BASE_EMBEDDINGS, GrowthCheck, InstructionEncoder, LoadedBank, check_growth, read_instructions,
};
use crate::error::{Error, Finding, IoContext, Result};
use crate::plan::Staging;

/// The most instructions that a bank keeps the texts of.
const MOST_INSTRUCTIONS: usize = 4096;

/// The number of held-out sequences of each earlier instruction on which a grown bank is checked.
const CHECKED_SEQUENCES: usize = 2;

/// What an adapter is made for.
pub(super) struct Start<'a> {
    pub(super) config: &'a TrainConfig,
    pub(super) inputs: &'a Inputs,
}

/// The settings of a run, and the bank that it makes grow, whose settings the run has.
pub(super) fn settings(config: &TrainConfig) -> Result<(TrainConfig, Option<AtomBank>)> {
    match (&config.from, config.kind) {
        (Some(from), AdapterKind::Grow) => {
            let bank = AtomBank::open(from)?;
            Ok((config.with_settings_of(&bank)?, Some(bank)))
        }
        _ => Ok((config.clone(), None)),
    }
}

impl Start<'_> {
    /// The untrained adapter.
    pub(super) fn adapter(&self) -> Result<TrainedAdapter> {
        let Self { config, inputs } = self;
        match (config.kind, &inputs.from) {
            (AdapterKind::Grow, Some(from)) => self.grown(from).map(TrainedAdapter::Growing),
            (AdapterKind::Lora, _) => TrainedAdapter::fresh(&config.output, config, inputs.decoder.config(), None),
            _ => self.bank(),
        }
    }

    /// A fresh bank, which takes the mean of the data's instructions off every instruction and keeps their texts.
    fn bank(&self) -> Result<TrainedAdapter> {
        let known: HashSet<&[u32]> = self.inputs.data.sequences().iter().map(|s| s.instruction.as_slice()).collect();
        let distinct = || known.iter().filter(|tokens| !tokens.is_empty());
        let config = self.config.sized(distinct().count());
        config.check_size(
            self.inputs.decoder.config(),
            self.inputs.instructions.dim(),
            self.inputs.data.sequences().len(),
        )?;
        let fresh = TrainedAdapter::fresh(
            &self.config.output,
            &config,
            self.inputs.decoder.config(),
            self.inputs.instructions.dim(),
        )?;
        let TrainedAdapter::Bank(mut bank) = fresh else { return Ok(fresh) };
        // In the order of the data, so that the sum has the same bits in every run.
        let mut seen = HashSet::new();
        let tokens = self.inputs.data.sequences().iter().map(|s| s.instruction.as_slice());
        let tokens: Vec<&[u32]> = tokens.filter(|tokens| !tokens.is_empty() && seen.insert(*tokens)).collect();
        bank.center_on(self.inputs.instructions.mean(self.inputs.decoder.weights(), &tokens)?);
        bank.config.prompt_template = self.inputs.prompt_template.clone().unwrap_or(bank.config.prompt_template);
        let texts = self.texts_of(&known)?;
        if texts.len() <= MOST_INSTRUCTIONS {
            bank.instructions = texts;
        }
        Ok(TrainedAdapter::Bank(bank))
    }

    /// The texts of instructions that have one of these lists of tokens, in the order of the data.
    fn texts_of(&self, known: &HashSet<&[u32]>) -> Result<Vec<String>> {
        let mut texts = Vec::new();
        for text in self.inputs.data.instructions() {
            let tokens = self.inputs.instructions.tokens(&self.inputs.encoder, text)?;
            if !tokens.is_empty() && known.contains(tokens.as_slice()) {
                texts.push(text.clone());
            }
        }
        Ok(texts)
    }

    /// The bank `from` with an atom for the data's instruction.
    fn grown(&self, from: &AtomBank) -> Result<AtomBank> {
        from.check_base(self.inputs.decoder.config())?;
        let others = known_instructions(self.config, from)?;
        let instruction = self.new_instruction(&others)?;
        let weights = self.inputs.decoder.weights();
        let loaded = LoadedBank::frozen(from, weights.device())?;
        let size = (self.config.adapter.grow_rank, self.config.seed);
        let addition = Addition::new(&loaded, weights, &self.inputs.encoder, instruction, others, size)?;
        // Its encoder is opened beside the bank that grows.
        from.grown(&addition, self.inputs.decoder.config())
    }

    /// The one instruction of the data, which isn't among `others`.
    fn new_instruction(&self, others: &[String]) -> Result<String> {
        let finding = |found: String| {
            Finding::new(&self.config.file, "data.train")
                .expected("rows of one instruction, which the bank doesn't have yet")
                .found(found)
                .mismatch()
        };
        if let Some(row) = self.inputs.data.sequences().iter().position(|sequence| sequence.instruction.is_empty()) {
            return Err(finding(format!("no instruction in row {}", row + 1)));
        }
        let known: HashSet<&[u32]> = self.inputs.data.sequences().iter().map(|s| s.instruction.as_slice()).collect();
        let texts = self.texts_of(&known)?;
        match texts.as_slice() {
            [text] if others.contains(text) => Err(finding(format!("{text:?}, which it has"))),
            [text] => Ok(text.clone()),
            [first, second, ..] => Err(finding(format!("{first:?} and {second:?}"))),
            [] => Err(finding("none".to_owned())),
        }
    }
}

/// Copies the sentence encoder that lies in the folder of the bank `from` into the run's folder, where the grown bank
/// looks for it.
///
/// # Errors
/// [`Error::Io`]; [`Error::Unsupported`] for an encoder outside the bank's folder.
pub(super) fn keep_encoder(from: &AtomBank, output: &Path) -> Result<()> {
    let name = Path::new(&from.config.instruction_encoder);
    let target = output.join(name);
    if from.config.instruction_encoder == BASE_EMBEDDINGS || name.is_dir() || target.is_dir() {
        return Ok(());
    }
    let Some(folder) = InstructionEncoder::folder_beside(&from.config.instruction_encoder, &from.path) else {
        return Ok(());
    };
    if !name.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(Finding::new(&from.path, "instruction_encoder")
            .expected("a folder in the bank's, or a path from here")
            .found(name.display())
            .unsupported());
    }
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent).at(parent, "create")?;
    }
    let staging = Staging::folder(&target, false)?;
    copy_folder(&folder, staging.path())?;
    staging.commit()
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from).at(from, "read")? {
        let entry = entry.at(from, "read")?;
        let (source, copied) = (entry.path(), to.join(entry.file_name()));
        match source.is_dir() {
            true => {
                std::fs::create_dir_all(&copied).at(&copied, "create")?;
                copy_folder(&source, &copied)?;
            }
            false => _ = std::fs::copy(&source, &copied).at(&source, "copy")?,
        }
    }
    Ok(())
}

/// The instructions of a bank that grows: those that it keeps, then those of the settings' file.
fn known_instructions(config: &TrainConfig, from: &AtomBank) -> Result<Vec<String>> {
    let mut known = from.instructions.clone();
    if let Some(file) = &config.instructions {
        known.extend(read_instructions(file)?.into_iter().filter(|text| !from.instructions.contains(text)));
    }
    if known.is_empty() {
        return Err(Finding::new(&from.path, "instructions")
            .expected("the texts of the instructions that it was trained with")
            .found("none, as in banks of earlier versions and of more than 4096 instructions")
            .hint("name a file of them, one a line: instructions = \"FILE\"")
            .mismatch());
    }
    Ok(known)
}

/// Checks the grown bank in the run's folder, which was trained: for every earlier instruction of `from` it computes what `from`
/// does. If it doesn't, the adapter's files are removed from the folder; checkpoints stay.
pub(super) fn check_grown(config: &TrainConfig, from: &AtomBank, inputs: &Inputs) -> Result<GrowthCheck> {
    let Inputs { decoder, encoder, instructions, eval, .. } = inputs;
    let output = &config.output;
    let after = AtomBank::open(output)?;
    let mut sequences = Vec::new();
    for text in known_instructions(config, from)? {
        let alone = instructions.routed(encoder, &from.config.prompt_template, &text, "")?;
        let held_out = eval.iter().flat_map(Dataset::sequences).filter(|s| s.instruction == alone.instruction);
        sequences.extend(held_out.take(CHECKED_SEQUENCES).cloned());
        sequences.push(alone);
    }
    check_growth(decoder, from, &after, &sequences).map_err(|error| match remove_adapter(output) {
        Ok(()) => error,
        Err(other) => other,
    })
}

fn remove_adapter(output: &Path) -> Result<(), Error> {
    [ADAPTER_CONFIG, WEIGHTS_FILE].into_iter().try_for_each(|name| {
        let path: PathBuf = output.join(name);
        std::fs::remove_file(&path).at(&path, "remove")
    })
}

/// Checks that a checkpoint of a growing bank has the parts of `from` unchanged: it is then the same bank.
pub(super) fn check_parts(folder: &Path, adapter: &TrainedAdapter, from: &AtomBank) -> Result<()> {
    let TrainedAdapter::Growing(bank) = adapter else { return Ok(()) };
    if bank.before_growth().is_some_and(|before| before.tensors == from.tensors && before.config == from.config) {
        return Ok(());
    }
    Err(Finding::new(folder, "the bank that grows")
        .expected(format_args!("{}, as the run began with", from.path.display()))
        .found("another one under this name")
        .mismatch())
}
