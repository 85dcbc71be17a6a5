//! Merges as mergekit's configurations describe them: which models, which of their layers, with which parameters for each
//! tensor.
//!
//! [`MergeConfig::read`] reads mergekit's YAML, [`MergeConfig::combine`] makes the plan of the merged model. Parameters are
//! evaluated tensor by tensor, with filters and gradients, into the [`CombineOptions`] of the tensor's group.
//!
//! Reference: mergekit 0.1.5 `mergekit/config.py`, `plan.py`, `parameter_resolver.py`, `architecture/`.
//!
//! [`CombineOptions`]: crate::merge::combine::CombineOptions

mod build;
mod method;
mod model_config;
mod model_name;
mod names;
mod parameters;
mod read;
mod setting;
mod slices;
mod tensors;
mod tied;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub use build::{MergedModel, SourceModel};
use method::Scope;
pub use model_name::ModelName;
use parameters::Parameters;

use crate::dtype::DType;
use crate::error::{Error, Finding};
use crate::merge::combine::ModelMethod;

/// A configuration of mergekit.
#[derive(Debug, Clone)]
pub struct MergeConfig {
    /// Its file, for messages.
    file: PathBuf,
    /// Its text, as it was given.
    text: String,
    method: ModelMethod,
    base_model: Option<ModelName>,
    inputs: Inputs,
    parameters: Parameters,
    dtype: Option<DType>,
    out_dtype: Option<DType>,
    tokenizer: Option<TokenizerConfig>,
    chat_template: Option<String>,
    random_seed: Option<u64>,
}

/// What is merged: one of mergekit's three forms.
#[derive(Debug, Clone)]
enum Inputs {
    /// The whole model, or the only module of its class.
    Whole(Content),
    /// Modules by their names.
    Modules(Vec<ModuleConfig>),
}

/// Whole models, or slices of their layers.
#[derive(Debug, Clone)]
enum Content {
    Models(Vec<InputModel>),
    Slices(Vec<OutputSlice>),
}

/// A model with its own parameters.
#[derive(Debug, Clone)]
struct InputModel {
    model: ModelName,
    parameters: Parameters,
}

/// Layers of the result.
#[derive(Debug, Clone)]
struct OutputSlice {
    sources: Vec<InputSlice>,
    base_model: Option<ModelName>,
    parameters: Parameters,
    /// Where it stands in the file.
    place: String,
}

/// Layers of a model.
#[derive(Debug, Clone)]
struct InputSlice {
    model: ModelName,
    layers: std::ops::Range<usize>,
    parameters: Parameters,
    /// Where the range stands in the file.
    place: String,
}

/// A module of the result.
#[derive(Debug, Clone)]
struct ModuleConfig {
    name: String,
    content: Content,
    parameters: Parameters,
    place: String,
}

/// How the result's vocabulary is made.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizerConfig {
    /// Whose vocabulary it is.
    pub source: TokenizerSource,
    /// Tokens whose rows have a source of their own.
    pub tokens: Vec<(String, TokenConfig)>,
    /// The number of rows is a multiple of this.
    pub pad_to_multiple_of: Option<usize>,
}

/// Whose vocabulary the result has.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenizerSource {
    /// The tokens of all models.
    Union,
    /// The base's.
    Base,
    /// That of this model.
    Model(ModelName),
}

/// The source of a token's row.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenConfig {
    /// The row; by the usual rules if not given.
    pub source: Option<TokenRow>,
    /// Whether all models get this row, even those that have the token.
    pub force: bool,
}

/// A row of embeddings.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenRow {
    /// The row of the same token in a model.
    Of(ModelName),
    /// The row of another token in a model.
    OfToken(ModelName, String),
    /// The row with a number in a model.
    OfRow(ModelName, usize),
    /// Zeros.
    Zero,
}

impl MergeConfig {
    /// The file that it was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The text of the file.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The method.
    pub fn method(&self) -> ModelMethod {
        self.method
    }

    /// The base.
    pub fn base_model(&self) -> Option<&ModelName> {
        self.base_model.as_ref()
    }

    /// How the vocabulary is made, if the configuration says so.
    pub fn tokenizer(&self) -> Option<&TokenizerConfig> {
        self.tokenizer.as_ref()
    }

    /// The chat template: `auto`, a name, or the template itself.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The seed of random numbers, if the file has one. mergekit takes it from the command line instead.
    pub fn random_seed(&self) -> Option<u64> {
        self.random_seed
    }

    /// Every model that it names, the base first, each once. The first one gives the result its config and tokenizer.
    pub fn models(&self) -> Vec<&ModelName> {
        let mut found: Vec<&ModelName> = Vec::new();
        let mut add = |model| {
            if !found.contains(&model) {
                found.push(model);
            }
        };
        self.base_model.iter().for_each(&mut add);
        let contents: Vec<&Content> = match &self.inputs {
            Inputs::Whole(content) => vec![content],
            Inputs::Modules(modules) => modules.iter().map(|module| &module.content).collect(),
        };
        for content in contents {
            match content {
                Content::Models(models) => models.iter().for_each(|input| add(&input.model)),
                Content::Slices(slices) => {
                    for slice in slices {
                        slice.base_model.iter().for_each(&mut add);
                        slice.sources.iter().for_each(|source| add(&source.model));
                    }
                }
            }
        }
        found
    }

    /// The parameters of every level, and whether the level is that of one model.
    fn levels(&self) -> Vec<(&Parameters, bool)> {
        fn add<'a>(content: &'a Content, levels: &mut Vec<(&'a Parameters, bool)>) {
            match content {
                Content::Models(models) => levels.extend(models.iter().map(|input| (&input.parameters, true))),
                Content::Slices(slices) => {
                    for slice in slices {
                        levels.push((&slice.parameters, false));
                        levels.extend(slice.sources.iter().map(|source| (&source.parameters, true)));
                    }
                }
            }
        }
        let mut levels = vec![(&self.parameters, false)];
        match &self.inputs {
            Inputs::Whole(content) => add(content, &mut levels),
            Inputs::Modules(modules) => {
                modules.iter().for_each(|module| add(&module.content, &mut levels));
                levels.extend(modules.iter().map(|module| (&module.parameters, false)));
            }
        }
        levels
    }

    /// Notes on parameters that change nothing.
    fn unused_parameters(&self) -> Vec<String> {
        let (mut unknown, mut misplaced) = (BTreeSet::new(), BTreeSet::new());
        let known = self.method.parameters();
        for (level, is_of_one) in self.levels() {
            for name in level.names() {
                match known.iter().find(|parameter| parameter.name == name) {
                    None => drop(unknown.insert(name)),
                    Some(parameter) if is_of_one && parameter.scope == Scope::Shared => drop(misplaced.insert(name)),
                    Some(_) => {}
                }
            }
        }
        let joined = |names: BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join(", ");
        let method = self.method.name();
        let notes = [
            (!unknown.is_empty()).then(|| format!("{method} makes nothing of {}", joined(unknown.clone()))),
            (!misplaced.is_empty()).then(|| {
                format!(
                    "{} counts for all models together: that of a single model is not read",
                    joined(misplaced.clone())
                )
            }),
        ];
        notes.into_iter().flatten().collect()
    }

    /// A finding about the configuration.
    fn finding(&self, subject: impl Into<String>) -> Finding {
        Finding::new(&self.file, subject)
    }

    /// The error with the configuration as its file, where it is about a setting.
    pub(crate) fn in_file(&self, error: Error) -> Error {
        match error {
            Error::Setting(finding) => Finding { file: self.file.clone(), ..*finding }.mismatch(),
            other => other,
        }
    }
}
