//! The plan of the merged model: every tensor with its models' tensors and its own options.
//!
//! Reference: mergekit `plan.py` (`MergePlanner`), `io/tasks.py` (`LoadTensor`), `merge_methods/task_adapter.py`.

use std::collections::HashMap;
use std::path::PathBuf;

use super::names::{Config, Modules, class, is_listed};
use super::tensors::Builder;
use super::{MergeConfig, ModelName, model_config, tied};
use crate::adapter::peft::Base;
use crate::arch::{Naming, Role};
use crate::checkpoint::TEXT_CONFIGS;
use crate::error::{Finding, Result};
use crate::merge::combine::{Combined, combine_groups};
use crate::merge::vocabulary::Vocabulary;
use crate::plan::{Plan, PlannedTensor};

/// A model that is merged.
#[derive(Debug, Clone)]
pub struct SourceModel {
    /// Its name in the configuration.
    pub name: ModelName,
    /// Its folder or file, for messages.
    pub path: PathBuf,
    /// Its config.json; empty for tensors alone.
    pub config: Config,
    /// Its tensors.
    pub weights: Plan,
}

/// A merged model.
#[derive(Debug)]
pub struct MergedModel {
    /// Its tensors.
    pub combined: Combined<Plan>,
    /// Its config.json.
    pub config: Config,
    /// What the user may not expect.
    pub notes: Vec<String>,
}

/// A model with its tensors by their names, which are spelled as in the first model.
pub(super) struct Opened<'a> {
    pub(super) model: &'a SourceModel,
    pub(super) weights: Plan,
    places: HashMap<String, usize>,
}

impl<'a> Opened<'a> {
    fn new(model: &'a SourceModel, first: &SourceModel) -> Self {
        let mut weights = model.weights.clone();
        if !std::ptr::eq(model, first) {
            let naming = Naming::of(&first.config);
            Naming::of(&model.config).spelled_as(&mut weights, &first.weights, naming);
        }
        let names = weights.tensors.iter().enumerate().map(|(place, tensor)| (tensor.name.clone(), place));
        Self { model, places: names.collect(), weights }
    }

    /// The tensor called `name`, or the embeddings if it is an output head that is tied to them. Also its name in the
    /// model's own files.
    pub(super) fn find(&self, naming: Naming, name: &str) -> Option<(&PlannedTensor, &str)> {
        let place = self.places.get(name).copied().or_else(|| {
            matches!(naming.role(name), Some(Role::OutputHead | Role::Embedding)).then_some(())?;
            let base = Base::new(&self.model.path, &self.model.config, &self.weights);
            self.places.get(&base.embeddings()?.name).copied()
        })?;
        Some((&self.weights.tensors[place], &self.model.weights.tensors[place].name))
    }

    /// Whether it has a tensor of this name itself.
    pub(super) fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }
}

impl MergeConfig {
    /// Makes the plan of the merged model. `models` are those of [`MergeConfig::models`], in that order; the first gives
    /// its config.json. `vocabulary` is that of the result, if one is made of theirs. `seed` is for methods that draw
    /// random numbers.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for models that don't fit the configuration or each other.
    pub fn combine(&self, models: &[SourceModel], vocabulary: Option<&Vocabulary>, seed: u64) -> Result<MergedModel> {
        let (first, others) = models.split_first().ok_or_else(|| self.finding("models").found("none").mismatch())?;
        self.same_class(first, others)?;
        let mut opened: Vec<Opened> = models.iter().map(|model| Opened::new(model, first)).collect();
        if let Some(vocabulary) = vocabulary {
            let mut weights: Vec<Plan> = opened.iter_mut().map(|model| std::mem::take(&mut model.weights)).collect();
            vocabulary.align(&first.config, &mut weights).map_err(|error| self.in_file(error))?;
            opened.iter_mut().zip(weights).for_each(|(model, weights)| model.weights = weights);
        }
        let modules = Modules::of(&first.config, &first.weights);
        let names: Vec<&ModelName> = models.iter().map(|model| &model.name).collect();
        let layers = |module, model: usize| modules.layers(module, &models[model].config, &opened[model].weights);
        let sliced = self.module_slices(&modules, &names, &layers)?;
        let mut builder = Builder::new(self, &opened, &modules, seed);
        sliced.iter().try_for_each(|module| builder.module(module))?;
        builder.rest(&sliced);
        let Builder { groups, taken, mut notes, heads, .. } = builder;
        notes.extend(self.unused_parameters());
        let mut config = first.config.clone();
        vocabulary.iter().for_each(|vocabulary| vocabulary.put_size(&mut config));
        let configs: Vec<&Config> = models.iter().map(|model| &model.config).collect();
        for module in sliced.iter().filter(|module| module.is_sliced) {
            model_config::set_layers(&mut config, &configs, &modules, module, &mut notes);
        }
        let has_own_head = |model: &usize| !tied::is_tied(&models[*model].config, &opened[*model].weights);
        if heads.iter().any(has_own_head) && tied::is_tied(&config, &opened[0].weights) {
            untie(&mut config);
            notes.push(
                "some models have an output head of their own: the result has one, and tie_word_embeddings is false"
                    .to_owned(),
            );
        }
        let mut combined = combine_groups(groups, self.method).map_err(|error| self.in_file(error))?;
        combined.result.tensors.extend(taken);
        Ok(MergedModel { combined, config, notes })
    }

    /// Refuses models of classes that mergekit knows to be different.
    fn same_class(&self, first: &SourceModel, others: &[SourceModel]) -> Result<()> {
        let listed = |model: &SourceModel| class(&model.config).filter(|class| is_listed(class)).map(str::to_owned);
        let Some(known) = listed(first) else { return Ok(()) };
        match others.iter().find_map(|model| Some((model, listed(model).filter(|class| *class != known)?))) {
            None => Ok(()),
            Some((other, class)) => {
                let finding = Finding::new(&other.path, "architectures");
                Err(finding.expected(format_args!("{known}, as in {}", first.path.display())).found(class).mismatch())
            }
        }
    }
}

/// Makes a config say that the output head is a tensor of its own.
fn untie(config: &mut Config) {
    const TIED: &str = "tie_word_embeddings";
    config.insert(TIED.to_owned(), false.into());
    for name in TEXT_CONFIGS {
        if let Some(tied) = config.get_mut(name).and_then(|inner| inner.get_mut(TIED)) {
            *tied = false.into();
        }
    }
}
