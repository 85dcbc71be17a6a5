//! Adapters into their base, or several models into one.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::method::Combined as Kinds;
use super::settings::setting;
use super::{CombineSettings, OutputKind, OutputSettings, Step, Watch};
use crate::adapter;
use crate::adapter::peft::{Base, Change, Changes, LowRank, NewLora};
use crate::checkpoint::Checkpoint;
use crate::convert::{Input, from_gguf, is_adapter, with_changed};
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::formats::gguf::GgufModel;
use crate::merge::combine::{
    CombineOptions, Combined, LoraMethod, ModelMethod, Weights, combine_loras, combine_models,
};
use crate::merge::{Merged, Truncation, card, rounding, with_adapters};
use crate::output::Output;
use crate::plan::Plan;

/// Low-rank updates by the weights' names.
type Updates = Vec<(String, LowRank)>;

/// An adapter or a model, and how much of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeInput {
    /// Where it is.
    pub path: PathBuf,
    /// Its name, where that isn't its path: on the hub.
    #[serde(default)]
    pub id: Option<String>,
    /// Its share.
    #[serde(default = "whole")]
    pub weight: f32,
}

fn whole() -> f32 {
    1.0
}

/// Settings of [`merge`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeSettings {
    /// The base model: a Hugging Face folder or a .gguf.
    pub base: PathBuf,
    /// Its name, where that isn't its path: on the hub.
    #[serde(default)]
    pub base_id: Option<String>,
    /// Adapters in any of their forms, or, with a method, other models of the base's shape.
    pub others: Vec<MergeInput>,
    /// Where the result goes, and what it is.
    pub output: OutputSettings,
    /// How several become one.
    #[serde(default)]
    pub combine: CombineSettings,
    /// Whether a base that is quantized is refused: weights that the adapter changes are rounded again otherwise.
    #[serde(default)]
    pub keep_base: bool,
}

impl MergeSettings {
    /// `adapters`, each whole, merged into `base`.
    pub fn new<P: Into<PathBuf>>(
        base: impl Into<PathBuf>,
        adapters: impl IntoIterator<Item = P>,
        output: impl Into<PathBuf>,
    ) -> Self {
        let others = adapters.into_iter().map(|path| MergeInput { path: path.into(), id: None, weight: 1.0 }).collect();
        let output = OutputSettings::new(output);
        Self { base: base.into(), base_id: None, others, output, combine: CombineSettings::default(), keep_base: false }
    }
}

/// A merged model or LoRA, and what cutting to a rank has lost on the way.
#[derive(Debug)]
pub struct Adapted {
    /// What is to be written.
    pub output: Output,
    /// Modules that were cut to a rank.
    pub truncations: Vec<Truncation>,
}

/// Merges as `settings` say.
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
/// [`crate::Error::Setting`]; what opening base and adapters meets; [`crate::Error::Mismatch`] for what doesn't fit
/// the base.
pub fn merge(settings: &MergeSettings, watch: Watch) -> Result<Adapted> {
    settings.output.check()?;
    let paths: Vec<&Path> = settings.others.iter().map(|other| other.path.as_path()).collect();
    if is_adapter(&settings.base) && paths.iter().any(|path| is_model(path)) {
        let finding = Finding::new(&settings.base, "base").expected("a model: a folder with config.json, or a GGUF");
        return Err(finding.found("an adapter").hint("name the model first, then its adapters").mismatch());
    }
    let mut job = Job { settings, watch, notes: Vec::new() };
    let (mut output, truncations) = match paths.iter().any(|path| is_model(path)) {
        true => job.models()?,
        false => match Input::open(&settings.base, None)? {
            Input::Model(folder) => job.folder(folder)?,
            Input::Gguf(model) => job.gguf(&model)?,
            Input::Adapter | Input::Weights { .. } => {
                let finding = Finding::new(&settings.base, "base");
                let expected = "a model: a folder with config.json, or a GGUF";
                return Err(finding.expected(expected).found("something else").mismatch());
            }
        },
    };
    output.notes = [job.notes, output.notes].concat();
    Ok(Adapted { output: settings.output.split(output), truncations })
}

fn is_model(path: &Path) -> bool {
    crate::checkpoint::is_model(path) && !is_adapter(path)
}

/// What the user calls an input.
fn name_of(id: Option<&str>, path: &Path) -> String {
    id.map_or_else(|| path.display().to_string(), str::to_owned)
}

/// What is said where one model is combined alone, and the method makes something else of that than the user may mean.
fn of_one_model(settings: &MergeSettings, method: ModelMethod, options: &CombineOptions) -> Option<String> {
    let [model] = settings.others.as_slice() else { return None };
    let (name, path) = (method.name(), name_of(model.id.as_deref(), &model.path));
    if method.averages_models(options) && (method == ModelMethod::Karcher || method.divides_by_weights(options)) {
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

/// A merge on its way.
struct Job<'a> {
    settings: &'a MergeSettings,
    watch: Watch<'a>,
    notes: Vec<String>,
}

impl Job<'_> {
    fn output(&self) -> &OutputSettings {
        &self.settings.output
    }

    /// A folder's weights with the adapters in them.
    fn folder(&mut self, mut folder: Checkpoint) -> Result<(Output, Vec<Truncation>)> {
        let base = Base::of(&folder);
        let keeps_types = match self.output().outtype()?.dtype(folder.weights()) {
            None => true,
            Some(dtype) => base.embeddings().is_some_and(|tensor| tensor.dtype == dtype),
        };
        let base = if keeps_types { base } else { base.retyped() };
        if self.output().kind() == OutputKind::Lora {
            return self.one_lora(&base);
        }
        let (merged, truncations) = self.merged(&base, folder.rounded())?;
        if merged.untied {
            folder.config_json.insert("tie_word_embeddings".to_owned(), false.into());
        }
        let output = self.output().model(&folder, &merged.plan)?;
        Ok((self.with_card(output), truncations))
    }

    /// A GGUF's weights with the adapters in them: what they don't change stays as it is, and what they
    /// do gets its own type again.
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
                metadata.finding("general.architecture").expected("an architecture this version has a table for");
            return Err(finding.found(format!("{:?}", metadata.text("general.architecture")?)).unsupported());
        };
        let base = Base::new(model.path(), &config, &restored.plan).retyped();
        if self.output().kind() == OutputKind::Lora {
            return self.one_lora(&base);
        }
        let (merged, truncations) = self.merged(&base, &restored.plan)?;
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

    /// The base as the user has named it.
    fn base_name(&self) -> String {
        name_of(self.settings.base_id.as_deref(), &self.settings.base)
    }

    /// A folder with a card of the merged model in the place of the base's.
    fn with_card(&self, mut output: Output) -> Output {
        if output.is_folder() {
            let others = &self.settings.others;
            let names: Vec<String> = others.iter().map(|other| name_of(other.id.as_deref(), &other.path)).collect();
            let shares: Vec<(&str, f64)> =
                names.iter().zip(others).map(|(name, other)| (name.as_str(), f64::from(other.weight))).collect();
            output.sidecars.files.insert("README.md".to_owned(), card(&self.base_name(), &shares).into_bytes());
        }
        output
    }

    /// What every adapter changes.
    fn adapters(&mut self, base: &Base) -> Result<Vec<Changes>> {
        // What is combined has to be low-rank updates; copies of the base's embeddings say nothing.
        let combined = self.settings.combine.method.is_some() || self.output().kind() == OutputKind::Lora;
        let mut all = Vec::new();
        for other in &self.settings.others {
            let changes = adapter::open(&other.path, base)?;
            self.notes.extend(changes.notes.iter().cloned());
            all.push(if combined { changes.without_copies(base)? } else { changes });
        }
        Ok(all)
    }

    fn shares(&self) -> Vec<f64> {
        self.settings.others.iter().map(|other| f64::from(other.weight)).collect()
    }

    /// `weights`, which are those of `base`, with every adapter.
    fn merged(&mut self, base: &Base, weights: &Plan) -> Result<(Merged, Vec<Truncation>)> {
        let combine = &self.settings.combine;
        if combine.method.is_none() {
            combine.check(Kinds::Loras, None)?;
        }
        let mut truncations = Vec::new();
        let mut adapters = self.adapters(base)?;
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

    /// All adapters as one LoRA in a folder of its own.
    fn one_lora(&mut self, base: &Base) -> Result<(Output, Vec<Truncation>)> {
        let adapters = self.adapters(base)?;
        let method = match (&self.settings.combine.method, self.settings.combine.rank) {
            (Some(name), _) => name.parse()?,
            (None, Some(_)) => LoraMethod::Svd,
            (None, None) => LoraMethod::Cat,
        };
        let (updates, truncations) = self.combined(method, &adapters)?;
        let mut lora = NewLora::new(base, &updates, Vec::new(), self.output().lora_type()?)?;
        // As PEFT has it: the name that the base was loaded by.
        lora.config.insert("base_model_name_or_path".to_owned(), self.base_name().into());
        Ok((lora.output(), truncations))
    }

    /// The updates of one LoRA made of all.
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

    /// Whole models as one.
    fn models(&mut self) -> Result<(Output, Vec<Truncation>)> {
        let combine = &self.settings.combine;
        let Some(name) = &combine.method else {
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
        let folder = Checkpoint::open(&self.settings.base)?;
        let others = &self.settings.others;
        let models = others.iter().map(|other| Checkpoint::open(&other.path)).collect::<Result<Vec<_>>>()?;
        let weights: Vec<&Plan> = models.iter().map(Checkpoint::rounded).collect();
        for model in &models {
            self.notes.extend(model.notes().iter().map(|note| format!("{}: {note}", model.path().display())));
        }
        let options = combine.options(self.shares())?;
        let combined = combine_models(Some(folder.rounded()), &weights, method, &options)?;
        self.notes.extend(of_one_model(self.settings, method, &options));
        let (plan, _) = self.measured(combined)?;
        // What cutting to a rank has lost is a LoRA's to say.
        let output = self.output().model(&folder, &plan)?;
        Ok((self.with_card(output), Vec::new()))
    }

    /// What was combined, with what has to be known of whole tensors.
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
