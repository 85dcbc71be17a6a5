//! Merges models as a mergekit configuration describes it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::settings::{left_out, setting};
use super::super::tokenizer::{Candidate, TokenizerChoice};
use super::super::{OutputKind, OutputSettings, Step, Watch, chat_template};
use super::adapters::adapter_at;
use super::base::Prepared;
use super::give_tokenizer;
use super::vocabulary::check_rows_of_gguf;
use crate::checkpoint::{Checkpoint, has_tokenizer};
use crate::convert::{Input, Opening, from_gguf, with_changed};
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::formats::gguf::GgufModel;
use crate::merge::combine::{Combined, Weights};
use crate::merge::config::{
    MergeConfig, MergedModel, ModelName, SourceModel, TokenConfig, TokenRow, TokenizerConfig, TokenizerSource,
};
use crate::merge::vocabulary::{self, TokenName, TokenSettings, Vocabulary, VocabularySettings, folder_of};
use crate::merge::{config_card, with_adapters};
use crate::output::Output;
use crate::plan::{Expr, Plan};

/// Settings of [`merge_config`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeConfigSettings {
    /// mergekit's configuration, in YAML.
    pub config: PathBuf,
    /// Where models and adapters are that the configuration names, by those names. Others are taken for paths.
    #[serde(default)]
    pub located: BTreeMap<String, PathBuf>,
    /// Where the result is written, and in which form.
    pub output: OutputSettings,
    /// The seed of random numbers; that of the configuration if not given, or 0.
    #[serde(default)]
    pub seed: Option<u64>,
}

impl MergeConfigSettings {
    /// Settings to write the merge that `config` describes to `output`.
    pub fn new(config: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        let output = OutputSettings::new(output);
        Self { config: config.into(), located: BTreeMap::new(), output, seed: None }
    }
}

/// A model of the configuration, opened.
struct Opened {
    source: SourceModel,
    /// What gives the result its other files.
    files: Files,
    notes: Vec<String>,
}

/// The files of a model beside its weights.
enum Files {
    Folder(Box<Checkpoint>),
    /// Those that a GGUF says.
    Restored(Box<Restored>),
    /// Tensors alone have none.
    None,
}

/// A GGUF, and what it says in transformers' names.
struct Restored {
    model: GgufModel,
    config: Map<String, Value>,
    output: Output,
}

/// Merges models as the configuration says, which is mergekit's YAML.
///
/// # Errors
/// [`crate::Error::Setting`]; errors of reading the configuration and opening the models; [`crate::Error::Mismatch`] for
/// models that don't fit it or each other.
pub fn merge_config(settings: &MergeConfigSettings, watch: Watch) -> Result<Output> {
    settings.output.check()?;
    if settings.output.into.is_some() || settings.output.kind().is_lora() {
        let finding = setting("to").expected("a model's folder, a GGUF or tensors, for models that are merged");
        return Err(finding.found("another output").setting());
    }
    let config = MergeConfig::read(&settings.config)?;
    let opened: Vec<Opened> = config.models().into_iter().map(|name| settings.open(name)).collect::<Result<_>>()?;
    let templates: Vec<PathBuf> = opened.iter().map(Opened::template_folder).collect();
    let vocabulary = match config.tokenizer() {
        Some(tokenizer) => Some(settings.vocabulary(&config, tokenizer, &opened)?),
        None => None,
    };
    let (mut sources, mut files, mut notes) = (Vec::new(), None, Vec::new());
    for model in opened {
        files.get_or_insert(model.files);
        notes.extend(model.notes);
        sources.push(model.source);
    }
    notes.extend(vocabulary.iter().flat_map(|vocabulary| vocabulary.notes().to_vec()));
    let seed = settings.seed.or(config.random_seed()).unwrap_or_default();
    let MergedModel { combined, config: model_config, notes: found } =
        config.combine(&sources, vocabulary.as_ref(), seed)?;
    notes.extend(found);
    let plan = settings.measured(combined, watch)?;
    // The tokenizer's folder has to outlive the making of the output.
    let tokenizer = vocabulary.map(|vocabulary| folder_of(vocabulary.files())).transpose()?;
    let mut files = files.unwrap_or(Files::None);
    if let (Files::Folder(folder), Some(tokenizer)) = (&mut files, &tokenizer) {
        folder.take_tokenizer_of(tokenizer.path().to_owned())?;
    }
    let mut output = settings.output(files, &sources[0], model_config, plan)?;
    if let Some(choice) = config.chat_template() {
        match chat_template::template(&settings.config, choice, &templates)? {
            Some(template) => chat_template::put(&mut output, &template),
            None => notes.push("chat_template auto: no model has a chat template".to_owned()),
        }
    }
    if output.is_folder() {
        let name = settings.output.destination.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        output.sidecars.files.insert("README.md".to_owned(), config_card(&name, &config).into_bytes());
        output.sidecars.files.insert("mergekit_config.yml".to_owned(), config.text().as_bytes().to_vec());
    }
    output.notes = [notes, output.notes].concat();
    Ok(settings.output.split(output))
}

impl MergeConfigSettings {
    /// Where the model or adapter called `name` is.
    fn place(&self, name: String) -> PathBuf {
        self.located.get(&name).cloned().unwrap_or_else(|| PathBuf::from(name))
    }

    /// Opens a model, with its adapter merged into it.
    fn open(&self, name: &ModelName) -> Result<Opened> {
        let path = self.place(name.model());
        let (mut config, weights, files, notes) = match Input::open(&path, Opening::default())? {
            Input::Model(folder) => {
                let notes = folder.notes().iter().map(|note| format!("{}: {note}", path.display())).collect();
                let (config, weights) = (folder.config_json.clone(), folder.rounded().clone());
                (config, weights, Files::Folder(Box::new(folder)), notes)
            }
            Input::Gguf(model) => {
                let is_quantized = model.tensors().iter().any(|tensor| !tensor.info().dtype.is_plain());
                let Some((config, restored)) = from_gguf(&model, is_quantized.then_some(DType::F32))? else {
                    let finding = model.metadata().finding("general.architecture");
                    return Err(finding
                        .expected("an architecture this version has a family for")
                        .found("another")
                        .unsupported());
                };
                let notes = restored.notes.iter().map(|note| format!("{}: {note}", path.display())).collect();
                let weights = restored.plan.clone();
                let restored = Restored { model, config: config.clone(), output: restored };
                (config, weights, Files::Restored(Box::new(restored)), notes)
            }
            Input::Weights { plan, others, notes } => {
                (serde_json::Map::new(), plan, Files::None, [notes, left_out(&others)].concat())
            }
            Input::Adapter => {
                let finding = Finding::new(&path, "").expected("a model").found("an adapter");
                return Err(finding.hint("MODEL+ADAPTER names a model with an adapter").mismatch());
            }
        };
        if let Some(class) = &name.architecture {
            config.insert("architectures".to_owned(), serde_json::json!([class]));
        }
        let source = SourceModel { name: name.clone(), path, config, weights };
        let mut opened = Opened { source, files, notes };
        if let Some(adapter) = name.adapter() {
            let place = self.place(adapter.clone());
            opened.merge_adapter(adapter, &place)?;
        }
        Ok(opened)
    }

    /// The vocabulary that the configuration asks for.
    fn vocabulary(&self, config: &MergeConfig, tokenizer: &TokenizerConfig, opened: &[Opened]) -> Result<Vocabulary> {
        let finding = |what: &str| Finding::new(config.file(), what.to_owned());
        let mut folders = Vec::new();
        for model in opened {
            let Files::Folder(folder) = &model.files else {
                let expected = "folders of models, whose vocabularies can be compared";
                let finding = finding("tokenizer").expected(expected).found(model.source.path.display());
                return Err(finding.unsupported());
            };
            folders.push(&**folder);
        }
        let place = |name: &ModelName| {
            let found = opened.iter().position(|model| model.source.name == *name);
            found.ok_or_else(|| finding("tokenizer").expected("models that are merged").found(name).mismatch())
        };
        let source = match &tokenizer.source {
            TokenizerSource::Union => vocabulary::TokenizerSource::Union,
            TokenizerSource::Base => vocabulary::TokenizerSource::Base,
            TokenizerSource::Model(name) => {
                let merged = opened.iter().position(|model| model.source.name == *name);
                let folder = merged.map(|at| folders[at].tokenizer_folder().to_owned());
                vocabulary::TokenizerSource::Folder(folder.unwrap_or_else(|| self.place(name.model())))
            }
        };
        let row = |row: &TokenRow| -> Result<vocabulary::TokenRow> {
            Ok(match row {
                TokenRow::Zero => vocabulary::TokenRow::Zero,
                TokenRow::Of(name) => vocabulary::TokenRow::Model(place(name)?),
                TokenRow::OfToken(name, text) => {
                    vocabulary::TokenRow::Token { model: place(name)?, token: TokenName::Text(text.clone()) }
                }
                TokenRow::OfRow(name, id) => {
                    vocabulary::TokenRow::Token { model: place(name)?, token: TokenName::Id(*id) }
                }
            })
        };
        let token = |(text, token): &(String, TokenConfig)| {
            let row = token.source.as_ref().map(row).transpose()?;
            Ok((text.clone(), TokenSettings { row, force: token.force }))
        };
        let settings = VocabularySettings {
            source,
            tokens: tokenizer.tokens.iter().map(token).collect::<Result<_>>()?,
            pad_to_multiple_of: tokenizer.pad_to_multiple_of,
        };
        let base = config.base_model().map(|_| 0);
        Vocabulary::new(&folders, base, &settings).map_err(|error| config.in_file(error))
    }

    /// Computes the numbers that the combination needs from whole tensors.
    fn measured(&self, combined: Combined<Plan>, watch: Watch) -> Result<Plan> {
        if !self.output.dry_run {
            let (total, done) = (combined.pending() as u64, AtomicU64::new(0));
            combined.measure(&|| {
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                watch(Step { what: "combining", done, total });
            })?;
        }
        Ok(combined.result)
    }

    /// The output for the merged tensors, with the files of the first model.
    fn output(&self, files: Files, first: &SourceModel, config: Map<String, Value>, plan: Plan) -> Result<Output> {
        let output = &self.output;
        match files {
            Files::Folder(mut folder) => {
                folder.config_json = config;
                output.model(&folder, &plan)
            }
            Files::Restored(restored) if output.kind() == OutputKind::Gguf => self.same_gguf(&restored, config, &plan),
            Files::Restored(restored) => {
                let mut made = Output { plan: output.typed(&plan)?, notes: Vec::new(), ..restored.output };
                made.put_json("config.json", &config);
                Ok(output.tensors(made))
            }
            Files::None if matches!(output.kind(), OutputKind::Safetensors | OutputKind::Pytorch) => {
                Ok(output.bare(output.typed(&plan)?, &first.weights))
            }
            Files::None => {
                let finding = Finding::new(&first.path, "config.json").expected("the config of a model's folder");
                let hint = "write the tensors alone: name the output .safetensors, .pt, .pth or .bin";
                Err(finding.found("tensors alone").hint(hint).mismatch())
            }
        }
    }
}

impl MergeConfigSettings {
    /// The GGUF of the first model with the merged tensors, where its keys still say what the model is: it has the same
    /// layers and the same vocabulary. Every tensor keeps its type.
    fn same_gguf(&self, restored: &Restored, config: Map<String, Value>, plan: &Plan) -> Result<Output> {
        let (output, model) = (&self.output, &restored.model);
        // A head of its own is one tensor more, which a GGUF can have; the class has no key.
        let described = |config: &Map<String, Value>| {
            let mut config = config.clone();
            config.retain(|field, _| field != "tie_word_embeddings" && field != "architectures");
            config
        };
        let shapes = |plan: &Plan| -> BTreeMap<String, Vec<usize>> {
            plan.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect()
        };
        let (before, mut after) = (shapes(&restored.output.plan), shapes(plan));
        after.retain(|name, _| before.contains_key(name) || !name.ends_with("lm_head.weight"));
        if described(&restored.config) != described(&config) || before != after {
            let expected = "a model's folder as the first model, for a GGUF of other layers or tokens";
            let hint = "write a folder, and make a GGUF of it with `jobs::convert`";
            return Err(Finding::new(model.path(), "").expected(expected).found("a GGUF").hint(hint).unsupported());
        }
        let changed = plan.tensors.iter().map(|tensor| tensor.name.clone()).collect();
        let merged = with_changed(model, &config, plan, &changed)?;
        let made = Output::gguf(model.metadata().clone(), merged, Vec::new());
        if output.quantized()?.is_some() {
            return output.quantize(made, &[]);
        }
        output.check_gguf_again()?;
        let note = format!("{}: its tensors keep their types, whatever out_dtype says", model.path().display());
        Ok(Output { notes: vec![note], ..made })
    }
}

impl Opened {
    /// Merges the adapter at `path`, called `name`, into the model, whose weights are then rounded to their types, as when
    /// PEFT has merged and saved it. A model's folder gets the rows with which the adapter was trained and, with other
    /// rows than its own, the adapter's tokenizer.
    fn merge_adapter(&mut self, name: String, path: &Path) -> Result<()> {
        let source = &mut self.source;
        let adapters = [adapter_at(path, &[])?];
        let (config, weights) = (std::mem::take(&mut source.config), std::mem::take(&mut source.weights));
        let mut model = Prepared::new(&source.path, source.name.model(), config, weights);
        match &self.files {
            Files::Folder(_) => {
                model.become_class(&adapters, &mut self.notes)?;
                model.resize(&adapters, &mut self.notes)?;
            }
            Files::Restored(_) => check_rows_of_gguf(&model.base(), &model.weights, &adapters)?,
            Files::None => {}
        }
        let base = model.base();
        let changes = adapters[0].merged_changes(&base)?;
        self.notes.extend(changes.notes.iter().cloned());
        let mut merged = with_adapters(&base, &model.weights, &[changes], &Weights::new([1.0]))?;
        for tensor in merged.plan.tensors.iter_mut().filter(|tensor| merged.changed.contains(&tensor.name)) {
            if tensor.dtype != DType::F32 {
                tensor.expr = Expr::Round { of: Box::new(tensor.expr.clone()), dtype: tensor.dtype };
            }
        }
        model.describe(&merged);
        if let (Files::Folder(folder), Some(rows)) = (&mut self.files, model.rows) {
            folder.config_json.clone_from(&model.config);
            if has_tokenizer(adapters[0].path()) {
                let adapter = Candidate { name, path: adapters[0].path() };
                give_tokenizer(folder, &TokenizerChoice::Adapter, &[adapter], Some(rows), &mut self.notes)?;
                self.notes.push(format!("{}: its tokenizer is the model's, whose rows it changes", path.display()));
            }
        }
        (source.config, source.weights) = (model.config, merged.plan);
        Ok(())
    }

    /// The folder or file whose chat template is the model's.
    fn template_folder(&self) -> PathBuf {
        match &self.files {
            Files::Folder(folder) => folder.template_folder().to_owned(),
            _ => self.source.path.clone(),
        }
    }
}
