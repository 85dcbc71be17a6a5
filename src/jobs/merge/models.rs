//! Combining whole models into one.

use std::path::Path;

use super::super::method::Combined as Kinds;
use super::super::settings::{name_of, setting};
use super::same_tensors::{self, Aligned};
use super::{Job, MergeSettings, vocabulary, yaml};
use crate::adapter::peft::Base;
use crate::arch::Naming;
use crate::checkpoint::{ADAPTER_CONFIG, Checkpoint};
use crate::convert::can_be_either;
use crate::error::{Finding, Result};
use crate::merge::combine::{CombineOptions, ModelMethod, combine_models};
use crate::merge::config::MergeConfig;
use crate::merge::{Truncation, config_card};
use crate::output::Output;
use crate::plan::Plan;

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

impl Job<'_> {
    /// Combines whole models into one.
    pub(super) fn models(&mut self) -> Result<(Output, Vec<Truncation>)> {
        let combine = &self.settings.combine;
        if self.settings.base_quant.is_some() {
            return Err(setting("base_quant").expected("adapters to merge").found("models").setting());
        }
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
        if self.output().kind().is_lora() {
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
        let Aligned { buffers, untied } = same_tensors::aligned(&folder, &models, &mut weights, &mut self.notes);
        if untied {
            folder.config_json.insert("tie_word_embeddings".to_owned(), false.into());
        }
        let tokenizer = vocabulary::aligned(self.settings, &mut folder, &models, &mut weights, &mut self.notes)?;
        let options = combine.options(self.shares())?;
        let others: Vec<&Plan> = weights[1..].iter().collect();
        let combined = combine_models(Some(&weights[0]), &others, method, &options)?;
        self.notes.extend(of_one_model(self.settings, method, &options));
        let (mut plan, _) = self.measured(combined)?;
        plan.tensors.extend(buffers);
        if tokenizer.is_none() {
            let rows = Base::of(&folder).embeddings().and_then(|tensor| tensor.shape.first().copied());
            self.choose_tokenizer(&mut folder, rows)?;
        }
        // The list of truncations stays empty: only a LoRA reports the errors of truncating to a rank.
        let output = self.output().model(&folder, &plan)?;
        let written = yaml::yaml(self.settings, method, &options, &output.plan);
        Ok((self.with_config(output, written), Vec::new()))
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
}
