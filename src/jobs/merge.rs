//! Merges adapters into their base, or several models into one.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::into;
use super::merge_yaml;
use super::method::Combined as Kinds;
use super::settings::{left_out, name_of, setting};
use super::tokenizer::{self, Candidate, TokenizerChoice};
use super::vocabulary::{self, VocabularyChoice};
use super::{CombineSettings, OutputKind, OutputSettings, Step, Watch};
use crate::adapter::peft::{Base, Change, Changes, LowRank, NewLora};
use crate::adapter::{AdapterFiles, resized};
use crate::arch::Naming;
use crate::arch::vocabulary::put_vocab_size;
use crate::checkpoint::{ADAPTER_CONFIG, Checkpoint, is_model};
use crate::convert::{Content, Input, Opening, can_be_either, from_gguf, is_adapter, with_changed};
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::formats::FileKind;
use crate::formats::gguf::GgufModel;
use crate::merge::combine::{
    CombineOptions, Combined, LoraMethod, ModelMethod, Weights, combine_loras, combine_models,
};
use crate::merge::config::MergeConfig;
use crate::merge::{Merged, Truncation, card, config_card, rounding, with_adapters};
use crate::output::Output;
use crate::plan::Plan;

/// Low-rank updates by the weights' names.
type Updates = Vec<(String, LowRank)>;

/// An adapter or a model, and its share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeInput {
    /// Its path.
    pub path: PathBuf,
    /// Its name on the hub, if that isn't its path.
    #[serde(default)]
    pub id: Option<String>,
    /// Its share in the result.
    #[serde(default = "whole")]
    pub weight: f64,
}

fn whole() -> f64 {
    1.0
}

/// Settings of [`merge`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeSettings {
    /// The base model: a Hugging Face folder, a .gguf, or tensors alone in a PyTorch or safetensors file.
    pub base: PathBuf,
    /// The part of a PyTorch file that is the base, such as `state_dict`.
    #[serde(default)]
    pub key: Option<String>,
    /// What is taken off the names of tensors alone that begin with it, such as `module.`.
    #[serde(default)]
    pub strip_prefix: Option<String>,
    /// The base's name on the hub, if that isn't its path.
    #[serde(default)]
    pub base_id: Option<String>,
    /// Adapters in any form or, with a method for models, other models of the base's shape.
    pub others: Vec<MergeInput>,
    /// Where the result is written, and in which form.
    pub output: OutputSettings,
    /// How several adapters or models are combined.
    #[serde(default)]
    pub combine: CombineSettings,
    /// Whether to refuse a quantized base. Otherwise, the weights that the adapter changes are rounded again.
    #[serde(default)]
    pub keep_base: bool,
    /// How to read a folder among the others that has both a model and adapter_config.json.
    #[serde(default)]
    pub others_as: Option<Content>,
    /// Which tokenizer and chat template the result gets.
    #[serde(default)]
    pub tokenizer: TokenizerChoice,
    /// How the vocabulary of several models is made one. Without it, they have to have the same number of rows.
    #[serde(default)]
    pub tokenizer_source: Option<VocabularyChoice>,
    /// The number of rows of the embeddings is made a multiple of this. The added rows are the mean of the others.
    #[serde(default)]
    pub pad_to_multiple_of: Option<usize>,
}

impl MergeSettings {
    /// Settings to merge `adapters` into `base`, each with weight 1.
    pub fn new<P: Into<PathBuf>>(
        base: impl Into<PathBuf>,
        adapters: impl IntoIterator<Item = P>,
        output: impl Into<PathBuf>,
    ) -> Self {
        let others = adapters.into_iter().map(|path| MergeInput { path: path.into(), id: None, weight: 1.0 }).collect();
        let output = OutputSettings::new(output);
        Self {
            base: base.into(),
            key: None,
            strip_prefix: None,
            base_id: None,
            others,
            output,
            combine: CombineSettings::default(),
            keep_base: false,
            others_as: None,
            tokenizer: TokenizerChoice::Auto,
            tokenizer_source: None,
            pad_to_multiple_of: None,
        }
    }
}

/// A merged model or LoRA, and the errors of truncating to a rank.
#[derive(Debug)]
pub struct Adapted {
    /// The output to write.
    pub output: Output,
    /// The modules that were truncated to a rank.
    pub truncations: Vec<Truncation>,
}

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
    settings.output.check()?;
    check_choices(settings)?;
    if settings.output.into.is_some() && settings.base.is_dir() && is_model(&settings.base) {
        return Err(setting("into").expected("tensors alone as base").found("a model's folder").setting());
    }
    let paths: Vec<&Path> = settings.others.iter().map(|other| other.path.as_path()).collect();
    let is_model = |path: &&Path| is_model(path) && !is_adapter(path, settings.others_as);
    if is_adapter(&settings.base, None) && paths.iter().any(is_model) {
        let finding = Finding::new(&settings.base, "base").expected("a model: a folder with config.json, or a GGUF");
        return Err(finding.found("an adapter").hint("name the model first, then its adapters").mismatch());
    }
    let mut job = Job { settings, watch, notes: Vec::new(), folders: Vec::new() };
    let (mut output, truncations) = match paths.iter().any(is_model) {
        true => job.models()?,
        false => {
            let (key, strip_prefix) = (settings.key.as_deref(), settings.strip_prefix.as_deref());
            match Input::open(&settings.base, Opening { key, strip_prefix, ..Opening::default() })? {
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

/// A note for combining a single model, where the method ignores its weight, which the user may not expect.
fn of_one_model(settings: &MergeSettings, method: ModelMethod, options: &CombineOptions) -> Option<String> {
    let [model] = settings.others.as_slice() else { return None };
    let (name, path) = (method.name(), name_of(model.id.as_deref(), &model.path));
    // These make nothing of the weight of a single model.
    let is_one = matches!(method, ModelMethod::Karcher | ModelMethod::MultiSlerp);
    if method.averages_models(options) && (is_one || method.divides_by_weights(options)) {
        return Some(format!(
            "{name} is a mean of the models without the base, and there is one: the result has the values of {path}, \
             and its weight changes nothing; task_arithmetic adds a share of what it changes to the base"
        ));
    }
    let is_weighted = model.weight != 1.0 && model.weight != 0.0 || !settings.combine.weights.is_empty();
    (is_weighted && method.divides_by_weights(options)).then(|| {
        format!(
            "{name} divides by the sum of the weights, and there is one model: its weight changes nothing, unless \
             `normalize` is false"
        )
    })
}

/// The adapters, as candidates for the tokenizer.
fn candidates<'a>(others: &[MergeInput], folders: &'a [PathBuf]) -> Vec<Candidate<'a>> {
    let names = others.iter().map(|other| name_of(other.id.as_deref(), &other.path));
    names.zip(folders).map(|(name, path)| Candidate { name, path }).collect()
}

/// A merge in progress.
struct Job<'a> {
    settings: &'a MergeSettings,
    watch: Watch<'a>,
    notes: Vec<String>,
    /// The folders or files of the adapters; empty until they are found.
    folders: Vec<PathBuf>,
}

impl Job<'_> {
    fn output(&self) -> &OutputSettings {
        &self.settings.output
    }

    /// Merges adapters into the weights of a folder.
    fn folder(&mut self, mut folder: Checkpoint) -> Result<(Output, Vec<Truncation>)> {
        let adapters = self.found()?;
        let mut weights = folder.rounded().clone();
        if let Some(resized) = resized(&Base::of(&folder), &weights, &adapters)? {
            if self.output().kind() == OutputKind::Lora {
                let finding = setting("to").expected("a model: the adapters have rows that the base lacks, or fewer");
                return Err(finding.found("a LoRA, which has no rows").setting());
            }
            weights = resized.weights;
            put_vocab_size(&mut folder.config_json, resized.rows);
            self.notes.push(resized.note);
        }
        let base = Base::new(folder.path(), &folder.config_json, &weights);
        let keeps_types = match self.output().outtype()?.dtype(folder.weights()) {
            None => true,
            Some(dtype) => base.embeddings().is_some_and(|tensor| tensor.dtype == dtype),
        };
        let base = if keeps_types { base } else { base.retyped() };
        if self.output().kind() == OutputKind::Lora {
            return self.one_lora(&base, &adapters);
        }
        let (mut merged, truncations) = self.merged(&base, &weights, &adapters)?;
        let embeddings = base.embeddings().map(|tensor| tensor.name.clone());
        if merged.untied {
            folder.config_json.insert("tie_word_embeddings".to_owned(), false.into());
        }
        vocabulary::pad(self.settings, &mut folder.config_json, &mut merged.plan, embeddings.as_deref())?;
        let rows = embeddings.and_then(|name| merged.plan.get(&name)).and_then(|tensor| tensor.shape.first().copied());
        self.choose_tokenizer(&mut folder, rows)?;
        let output = self.output().model(&folder, &merged.plan)?;
        Ok((self.with_card(output), truncations))
    }

    /// Merges adapters into tensors alone. A PyTorch file becomes the same file with other values in the storages that
    /// change.
    fn tensors(&mut self, weights: &Plan, others: &[(String, String)]) -> Result<(Output, Vec<Truncation>)> {
        let settings = self.settings;
        let base = Base::of_tensors(&settings.base, weights);
        let base = match self.output().outtype()?.dtype(weights) {
            Some(dtype) if dtype != weights.main_dtype() => base.retyped(),
            _ => base,
        };
        if !matches!(settings.tokenizer, TokenizerChoice::Auto) {
            let finding = setting("tokenizer").expected("a model's folder as base");
            return Err(finding.found("tensors alone").setting());
        }
        let adapters = self.found()?;
        match self.output().kind() {
            OutputKind::Lora => return self.one_lora(&base, &adapters),
            OutputKind::Safetensors | OutputKind::Pytorch | OutputKind::ThreeConvolutions => {}
            OutputKind::Hf | OutputKind::Gguf => {
                let finding = Finding::new(&settings.base, "config.json").expected("the config of a model's folder");
                let hint = "write the tensors alone: name the output .safetensors, .pt, .pth or .bin";
                return Err(finding.found("tensors alone").hint(hint).mismatch());
            }
        }
        let (Merged { plan, changed, .. }, truncations) = self.merged(&base, weights, &adapters)?;
        let (is_pytorch, output) = (FileKind::of(&settings.base)? == Some(FileKind::Pytorch), &settings.output);
        let into_base = is_pytorch && output.kind() == OutputKind::Pytorch && output.is_file();
        let into_base = into_base && output.r#type.is_none() && !output.expand_shared;
        let (original, key) = match &output.into {
            Some(original) => (Some(original), output.into_key.as_deref()),
            None => (Some(&settings.base).filter(|_| into_base), settings.key.as_deref()),
        };
        let made = match original {
            Some(original) => {
                let part = into::Part { key, prefix: settings.strip_prefix.as_deref() };
                let only = Some(&changed).filter(|_| output.into.is_none());
                into::output(original, part, &plan, &weights.shared(), only)?
            }
            None => {
                self.notes.extend(left_out(others));
                output.bare(output.typed(&plan)?, weights)
            }
        };
        Ok((made, truncations))
    }

    /// Merges adapters into the weights of a GGUF. Unchanged weights are copied; changed ones get their own type again.
    fn gguf(&mut self, model: &GgufModel) -> Result<(Output, Vec<Truncation>)> {
        let metadata = model.metadata();
        let quantized = model.tensors().iter().map(|t| t.info()).find(|info| !info.dtype.is_plain());
        if let Some(tensor) = quantized.filter(|_| self.settings.keep_base) {
            let finding = Finding::new(model.path(), format!("tensor {:?}", tensor.name));
            let hint = "leave `keep_base` out, merge into the unquantized base, or serve the adapter as it is \
                        (`jobs::convert` makes a GGUF of it, with the model's folder as `base`)";
            return Err(finding.expected("values that are not quantized").found(tensor.dtype).hint(hint).mismatch());
        }
        let to_gguf = self.output().kind() == OutputKind::Gguf;
        let taken: Plan = model.tensors().iter().cloned().collect();
        let outtype = if to_gguf { Some(DType::F32) } else { self.output().outtype()?.dtype(&taken) };
        let Some((mut config, restored)) = from_gguf(model, outtype)? else {
            let finding =
                metadata.finding("general.architecture").expected("an architecture this version has a family for");
            return Err(finding.found(format!("{:?}", metadata.text("general.architecture")?)).unsupported());
        };
        let base = Base::new(model.path(), &config, &restored.plan).retyped();
        let adapters = self.found()?;
        vocabulary::check_of_gguf(self.settings, &base, &restored.plan, &adapters)?;
        if self.output().kind() == OutputKind::Lora {
            return self.one_lora(&base, &adapters);
        }
        let (merged, truncations) = self.merged(&base, &restored.plan, &adapters)?;
        tokenizer::check_of_gguf(
            &self.settings.tokenizer,
            &candidates(&self.settings.others, &self.folders),
            &mut self.notes,
        )?;
        if merged.untied {
            config.insert("tie_word_embeddings".to_owned(), false.into());
        }
        if !to_gguf {
            let mut output = Output { plan: merged.plan, ..restored };
            output.put_json("config.json", &config);
            let output = self.output().tensors(output);
            return Ok((self.with_card(output), truncations));
        }
        let plan = with_changed(model, &config, &merged.plan, &merged.changed)?;
        let made = Output::gguf(metadata.clone(), plan, Vec::new());
        if self.output().quantized()?.is_some() {
            return Ok((self.output().quantize(made, &[])?, truncations));
        }
        self.output().check_gguf_again()?;
        if !self.output().dry_run
            && let Some(rounding) = rounding(&taken, &made.plan)?
        {
            self.notes.push(rounding.to_string());
        }
        Ok((made, truncations))
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

    /// The adapters' files.
    fn found(&mut self) -> Result<Vec<AdapterFiles>> {
        let found: Vec<AdapterFiles> =
            self.settings.others.iter().map(|other| AdapterFiles::find(&other.path)).collect::<Result<_>>()?;
        self.folders = found.iter().map(|files| files.path().to_owned()).collect();
        Ok(found)
    }

    /// The changes of every adapter.
    fn changes(&mut self, base: &Base, adapters: &[AdapterFiles]) -> Result<Vec<Changes>> {
        // Methods combine only low-rank updates, so copies of the base's embeddings are dropped.
        let combined = self.settings.combine.method.is_some() || self.output().kind() == OutputKind::Lora;
        let mut all = Vec::new();
        for (other, files) in self.settings.others.iter().zip(adapters) {
            let changes = files.merged_changes(base)?;
            self.notes.extend(changes.notes.iter().cloned());
            self.notes.extend(tokenizer::unread_weights(
                &name_of(other.id.as_deref(), &other.path),
                files.path(),
                base,
            ));
            all.push(if combined { changes.without_copies(base)? } else { changes });
        }
        Ok(all)
    }

    /// Gives the model the tokenizer that the settings choose. `rows` is the number of rows of its embeddings.
    fn choose_tokenizer(&mut self, folder: &mut Checkpoint, rows: Option<usize>) -> Result<()> {
        let adapters = candidates(&self.settings.others, &self.folders);
        let choice = &self.settings.tokenizer;
        if let Some(chosen) = tokenizer::chosen(choice, &adapters, folder.path(), rows, &mut self.notes)? {
            let from = chosen.display().to_string();
            if folder.take_tokenizer_of(chosen)? {
                self.notes.push(format!("{from}: its tokenizer has no chat template: the base's is kept"));
            }
        }
        Ok(())
    }

    fn shares(&self) -> Vec<f64> {
        self.settings.others.iter().map(|other| other.weight).collect()
    }

    /// Merges all adapters into `weights`, which are those of `base`.
    fn merged(&mut self, base: &Base, weights: &Plan, adapters: &[AdapterFiles]) -> Result<(Merged, Vec<Truncation>)> {
        let combine = &self.settings.combine;
        if combine.method.is_none() {
            combine.check(Kinds::Loras, None)?;
        }
        let mut truncations = Vec::new();
        let mut adapters = self.changes(base, adapters)?;
        let mut shares = combine.options(self.shares())?.weights;
        if let Some(name) = &combine.method {
            let keeps_tie = adapters.iter().all(|changes| changes.keeps_tie);
            let updates;
            (updates, truncations) = self.combined(name.parse()?, &adapters)?;
            let changes = updates.into_iter().map(|(name, update)| (name, Change::LowRank(update))).collect();
            adapters = vec![Changes { changes, keeps_tie, ..Changes::default() }];
            shares = Weights::new([1.0]);
        }
        let merged = with_adapters(base, weights, &adapters, &shares)?;
        if merged.untied {
            let note = "output head and embeddings are no longer the same: both are written, and \
                        tie_word_embeddings is false";
            self.notes.push(note.to_owned());
        }
        Ok((merged, truncations))
    }

    /// Combines all adapters into one LoRA, in a separate folder.
    fn one_lora(&mut self, base: &Base, adapters: &[AdapterFiles]) -> Result<(Output, Vec<Truncation>)> {
        if !matches!(self.settings.tokenizer, TokenizerChoice::Auto | TokenizerChoice::Base) {
            return Err(setting("tokenizer").expected("none, for a LoRA").found("one").setting());
        }
        let adapters = self.changes(base, adapters)?;
        let method = match (&self.settings.combine.method, self.settings.combine.rank) {
            (Some(name), _) => name.parse()?,
            (None, Some(_)) => LoraMethod::Svd,
            (None, None) => LoraMethod::Cat,
        };
        let (updates, truncations) = self.combined(method, &adapters)?;
        let mut lora = NewLora::new(base, &updates, Vec::new(), self.output().lora_type()?)?;
        // As in PEFT: the name with which the base was loaded.
        lora.config.insert("base_model_name_or_path".to_owned(), self.base_name().into());
        Ok((lora.output(), truncations))
    }

    /// Combines all LoRAs into the updates of one.
    fn combined(&self, method: LoraMethod, adapters: &[Changes]) -> Result<(Updates, Vec<Truncation>)> {
        let combine = &self.settings.combine;
        combine.check(Kinds::Loras, Some(method.name()))?;
        let mut loras = Vec::new();
        for (changes, adapter) in adapters.iter().zip(&self.settings.others) {
            let update = |(name, change): &(String, Change)| match change {
                Change::LowRank(update) => Ok((name.clone(), update.clone())),
                _ => Err(Finding::new(&adapter.path, format!("tensor {name:?}"))
                    .expected(format_args!("nothing but low-rank updates, to combine by {}", method.name()))
                    .found("another change of it")
                    .hint("without `method` and `to` lora adapters of all kinds are added up")
                    .unsupported()),
            };
            loras.push(changes.changes.iter().map(update).collect::<Result<Vec<_>>>()?);
        }
        self.measured(combine_loras(&loras, method, &combine.options(self.shares())?)?)
    }

    /// Combines whole models into one.
    fn models(&mut self) -> Result<(Output, Vec<Truncation>)> {
        let combine = &self.settings.combine;
        let Some(name) = &combine.method else {
            let either = self.settings.others.iter().find(|other| can_be_either(&other.path));
            if let Some(other) = either.filter(|_| self.settings.others_as.is_none()) {
                let finding = setting("others_as").expected("adapter or model, with a `method` for models");
                let found = format!("none for {}, which has both a model and {ADAPTER_CONFIG}", other.path.display());
                return Err(finding.found(found).setting());
            }
            let names = ModelMethod::names().collect::<Vec<_>>().join(", ");
            let finding = setting("method").expected(format_args!("a way to make one model of several: {names}"));
            return Err(finding.found("none").setting());
        };
        if self.output().kind() == OutputKind::Lora {
            let finding = setting("to").expected("adapters, for a LoRA").found("models");
            return Err(finding.hint("`jobs::extract` makes a LoRA of a finetuned model").setting());
        }
        let method: ModelMethod = name.parse()?;
        combine.check(Kinds::Models, Some(name))?;
        let weighted = self.settings.others.iter().find(|other| other.weight != 1.0 && !method.takes_weights());
        if let Some(weighted) = weighted {
            let finding = Finding::new(&weighted.path, "its weight").expected(format_args!("none for {name}"));
            return Err(finding.found(weighted.weight).mismatch());
        }
        let mut folder = Checkpoint::open(&self.settings.base)?;
        let others = &self.settings.others;
        let models = others.iter().map(|other| Checkpoint::open(&other.path)).collect::<Result<Vec<_>>>()?;
        let naming = Naming::of(&folder.config_json);
        let spelled = |model: &Checkpoint| {
            let mut weights = model.rounded().clone();
            Naming::of(&model.config_json).spelled_as(&mut weights, folder.rounded(), naming);
            weights
        };
        let mut weights: Vec<Plan> = [folder.rounded().clone()].into_iter().chain(models.iter().map(spelled)).collect();
        for model in &models {
            self.notes.extend(model.notes().iter().map(|note| format!("{}: {note}", model.path().display())));
        }
        let tokenizer = vocabulary::aligned(self.settings, &mut folder, &models, &mut weights, &mut self.notes)?;
        let options = combine.options(self.shares())?;
        let others: Vec<&Plan> = weights[1..].iter().collect();
        let combined = combine_models(Some(&weights[0]), &others, method, &options)?;
        self.notes.extend(of_one_model(self.settings, method, &options));
        let (plan, _) = self.measured(combined)?;
        if tokenizer.is_none() {
            let rows = Base::of(&folder).embeddings().and_then(|tensor| tensor.shape.first().copied());
            self.choose_tokenizer(&mut folder, rows)?;
        }
        // The list of truncations stays empty: only a LoRA reports the errors of truncating to a rank.
        let output = self.output().model(&folder, &plan)?;
        let yaml = merge_yaml::yaml(self.settings, method, &options, &output.plan);
        Ok((self.with_config(output, yaml), Vec::new()))
    }

    /// Adds a card with the configuration of mergekit that says the same, and the configuration.
    fn with_config(&self, mut output: Output, yaml: Option<String>) -> Output {
        let file = Path::new("mergekit_config.yml");
        let config = yaml.filter(|_| output.is_folder()).and_then(|yaml| MergeConfig::parse(file, yaml).ok());
        let Some(config) = config else { return self.with_card(output) };
        let name = self.output().destination.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        output.sidecars.files.insert("README.md".to_owned(), config_card(&name, &config).into_bytes());
        output.sidecars.files.insert(file.display().to_string(), config.text().as_bytes().to_vec());
        output
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
