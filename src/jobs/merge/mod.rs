//! Merges adapters into their base, or several models into one.
//!
//! [`merge`] takes what stands on a command line, [`merge_config`] a configuration of mergekit. `base` is what becomes of a
//! base before adapters are merged into it; `same_tensors` and `vocabulary` make models of one class alike before they are
//! combined; `yaml` writes down what was combined.

mod adapters;
mod base;
mod config;
mod models;
mod same_tensors;
mod settings;
mod vocabulary;
mod yaml;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::settings::{name_of, setting};
use super::tokenizer::{self, Candidate, TokenizerChoice};
use super::{OutputKind, OutputSettings, Step, Watch};
use crate::bank::BlockAlphas;
use crate::checkpoint::{ADAPTER_CONFIG, Checkpoint, is_model};
use crate::convert::{Content, Input, Opening, is_adapter};
use crate::error::{Finding, Result};
use crate::merge::combine::Combined;
use crate::merge::{BaseQuant, Truncation, card};
use crate::output::Output;

pub use config::{MergeConfigSettings, merge_config};
pub use settings::{Adapted, MergeInput, MergeSettings};
pub use vocabulary::VocabularyChoice;

/// Merges adapters or models according to `settings`.
///
/// ```no_run
/// use atombank::jobs::{MergeSettings, merge};
///
/// # fn main() -> atombank::Result<()> {
/// let mut settings = MergeSettings::new("Llama-3.2-1B", ["my-lora"], "merged-Q4_K_M.gguf");
/// settings.output.r#type = Some("Q4_K_M".to_owned());
/// merge(&settings, &|_| ())?.output.write(&settings.output.destination, &|_| ())?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`crate::Error::Setting`]; errors of opening base and adapters; [`crate::Error::Mismatch`] for inputs that don't fit
/// the base.
pub fn merge(settings: &MergeSettings, watch: Watch) -> Result<Adapted> {
    merge_at_mix(settings, &[], watch)
}

/// As [`merge`], of banks with these weights of their atoms, if there are any.
pub(super) fn merge_at_mix(settings: &MergeSettings, alphas: &[BlockAlphas], watch: Watch) -> Result<Adapted> {
    settings.output.check()?;
    check_choices(settings)?;
    if settings.output.into.is_some() && settings.has_folder() {
        return Err(setting("into").expected("tensors alone as base").found("a model's folder").setting());
    }
    let paths: Vec<&Path> = settings.others.iter().map(|other| other.path.as_path()).collect();
    let is_model = |path: &&Path| is_model(path) && !is_adapter(path, settings.others_as);
    if is_adapter(&settings.base, None) && paths.iter().any(is_model) {
        let finding = Finding::new(&settings.base, "base").expected("a model: a folder with config.json, or a GGUF");
        return Err(finding.found("an adapter").hint("name the model first, then its adapters").mismatch());
    }
    let mut job = Job { settings, alphas, watch, notes: Vec::new(), folders: Vec::new() };
    let (mut output, truncations) = match paths.iter().any(is_model) {
        true => job.models()?,
        false => {
            let (key, strip_prefix) = (settings.key.as_deref(), settings.strip_prefix.as_deref());
            // What a merge into a PyTorch file doesn't read stays there.
            let unread = settings.is_into_base()?;
            match Input::open(&settings.base, Opening { key, strip_prefix, unread, ..Opening::default() })? {
                Input::Model(folder) => job.folder(folder)?,
                Input::Gguf(model) => job.gguf(&model)?,
                Input::Weights { plan, others, notes } => {
                    job.notes.extend(notes);
                    job.tensors(&plan, &others)?
                }
                Input::Adapter => {
                    let finding = Finding::new(&settings.base, "base");
                    let expected = "a model: a folder with config.json, a GGUF, or tensors";
                    return Err(finding.expected(expected).found("an adapter").mismatch());
                }
            }
        }
    };
    output.notes = [job.notes, output.notes].concat();
    Ok(Adapted { output: settings.output.split(output), truncations })
}

/// Refuses choices of what an input is and of a tokenizer where nothing can be chosen.
fn check_choices(settings: &MergeSettings) -> Result<()> {
    let output = &settings.output;
    if settings.double_quant && !matches!(settings.base_quant, Some(BaseQuant::Nf4 | BaseQuant::Fp4)) {
        let finding = setting("double_quant").expected("`base_quant` nf4 or fp4, whose scales are quantized");
        return Err(finding.found(settings.base_quant.map_or("none", BaseQuant::name)).setting());
    }
    if settings.base_quant.is_some() && !settings.has_folder() {
        return Err(setting("base_quant").expected("a model's folder as base").found("another base").setting());
    }
    if settings.base_quant.is_some() && output.kind().is_lora() {
        return Err(setting("base_quant").expected("a model as output").found("a LoRA").setting());
    }
    vocabulary::check_pad(settings)?;
    let is_tensors_alone = output.is_file() && matches!(output.kind(), OutputKind::Safetensors | OutputKind::Pytorch);
    if settings.tokenizer != TokenizerChoice::Auto && is_tensors_alone {
        let finding = setting("tokenizer").expected("a folder or a GGUF as output, which holds one");
        return Err(finding.found("a file of tensors alone").setting());
    }
    let Some(content) = settings.others_as else { return Ok(()) };
    let folders: Vec<&Path> = settings.others.iter().map(|other| other.path.as_path()).filter(|p| p.is_dir()).collect();
    if folders.is_empty() {
        let finding = setting("others_as").expected("a folder to merge, which can hold a model and an adapter");
        return Err(finding.found("files alone").setting());
    }
    let holds = |path: &&&Path| match content {
        Content::Model => is_model(path),
        Content::Adapter => path.join(ADAPTER_CONFIG).is_file() || !is_model(path),
    };
    let Some(other) = folders.iter().find(|path| !holds(path)) else { return Ok(()) };
    let (expected, found) = match content {
        Content::Model => ("a model: a folder with config.json", "none"),
        Content::Adapter => ("an adapter: a folder with adapter_config.json", "a model alone"),
    };
    Err(Finding::new(other, "").expected(expected).found(found).hint("`others_as` says what it is").mismatch())
}

/// The adapters, as candidates for the tokenizer.
fn candidates<'a>(others: &[MergeInput], folders: &'a [PathBuf]) -> Vec<Candidate<'a>> {
    let names = others.iter().map(|other| name_of(other.id.as_deref(), &other.path));
    names.zip(folders).map(|(name, path)| Candidate { name, path }).collect()
}

/// Gives the model in `folder`, which has `rows` rows in its embeddings, the chosen tokenizer.
fn give_tokenizer(
    folder: &mut Checkpoint,
    choice: &TokenizerChoice,
    adapters: &[Candidate],
    rows: Option<usize>,
    notes: &mut Vec<String>,
) -> Result<()> {
    if let Some(chosen) = tokenizer::chosen(choice, adapters, folder.path(), rows, notes)? {
        let from = chosen.display().to_string();
        if folder.take_tokenizer_of(chosen)? {
            notes.push(format!("{from}: its tokenizer has no chat template: the base's is kept"));
        }
    }
    Ok(())
}

/// A merge in progress.
struct Job<'a> {
    settings: &'a MergeSettings,
    /// The weights of the atoms of banks, in place of those in their settings.
    alphas: &'a [BlockAlphas],
    watch: Watch<'a>,
    notes: Vec<String>,
    /// The folders or files of the adapters; empty until they are found.
    folders: Vec<PathBuf>,
}

impl Job<'_> {
    fn output(&self) -> &OutputSettings {
        &self.settings.output
    }

    /// The user's name of the base.
    fn base_name(&self) -> String {
        name_of(self.settings.base_id.as_deref(), &self.settings.base)
    }

    /// Replaces the base's card in a folder with one for the merged model.
    fn with_card(&self, mut output: Output) -> Output {
        if output.is_folder() {
            let others = &self.settings.others;
            let names: Vec<String> = others.iter().map(|other| name_of(other.id.as_deref(), &other.path)).collect();
            let shares: Vec<(&str, f64)> =
                names.iter().zip(others).map(|(name, other)| (name.as_str(), other.weight)).collect();
            output.sidecars.files.insert("README.md".to_owned(), card(&self.base_name(), &shares).into_bytes());
        }
        output
    }

    fn shares(&self) -> Vec<f64> {
        self.settings.others.iter().map(|other| other.weight).collect()
    }

    /// Gives the model the tokenizer that the settings choose. `rows` is the number of rows of its embeddings.
    fn choose_tokenizer(&mut self, folder: &mut Checkpoint, rows: Option<usize>) -> Result<()> {
        let adapters = candidates(&self.settings.others, &self.folders);
        give_tokenizer(folder, &self.settings.tokenizer, &adapters, rows, &mut self.notes)
    }

    /// Computes the numbers that the combination needs from whole tensors.
    fn measured<T: Sync>(&self, combined: Combined<T>) -> Result<(T, Vec<Truncation>)> {
        if self.output().dry_run {
            return Ok((combined.result, Vec::new()));
        }
        let (total, done) = (combined.pending() as u64, AtomicU64::new(0));
        combined.measure(&|| {
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            (self.watch)(Step { what: "combining", done, total });
        })?;
        let truncations = combined.truncations()?;
        Ok((combined.result, truncations))
    }
}
