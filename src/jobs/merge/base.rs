//! What becomes of a base before adapters are merged into it: another class, weights as they were for training, other
//! numbers of tokens.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Job;
use crate::adapter::peft::{Base, PREFIX};
use crate::adapter::{AdapterFiles, resized};
use crate::arch::tasks::TaskClass;
use crate::arch::vocabulary::put_vocab_size;
use crate::checkpoint::{ADAPTER_CONFIG, Checkpoint};
use crate::error::{Finding, Result};
use crate::jobs::settings::setting;
use crate::merge::{BaseQuantOptions, Merged, with_quantized_base};
use crate::plan::{Plan, PlannedTensor};

/// A model before adapters are merged into it, and then as they are merged into it.
pub(super) struct Prepared {
    /// Its folder, for messages.
    path: PathBuf,
    /// The user's name of it.
    name: String,
    pub(super) config: Map<String, Value>,
    pub(super) weights: Plan,
    /// The class for a task that it becomes, if an adapter has the head of one.
    pub(super) task: Option<TaskClass>,
    /// The number of its rows of embeddings, if it isn't the number that it had.
    pub(super) rows: Option<usize>,
}

/// The module of the inner model in the class of an adapter, where `weights` are those of the inner model alone.
fn inner_model(files: &AdapterFiles, weights: &Plan) -> Option<String> {
    files.tensors().tensors.iter().find_map(|tensor| {
        let (path, _) = tensor.name.strip_prefix(PREFIX)?.split_once(".lora_")?;
        let (inner, module) = path.split_once('.')?;
        let is_known = weights.tensors.iter().any(|tensor| tensor.name.starts_with(&format!("{inner}.")));
        let is_inside = weights.get(&format!("{module}.weight")).is_some();
        (is_inside && !is_known).then(|| inner.to_owned())
    })
}

impl Prepared {
    /// The model in `path`, called `name`, as it is.
    pub(super) fn new(path: &Path, name: String, config: Map<String, Value>, weights: Plan) -> Self {
        Self { path: path.to_owned(), name, config, weights, task: None, rows: None }
    }

    /// What adapters are merged into.
    pub(super) fn base(&self) -> Base<'_> {
        let base = Base::new(&self.path, &self.config, &self.weights);
        if self.task.is_some() { base.for_task() } else { base }
    }

    /// Makes it the class for a task whose head an adapter has.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] if transformers has no such class.
    pub(super) fn become_class(&mut self, adapters: &[AdapterFiles], notes: &mut Vec<String>) -> Result<()> {
        for files in adapters {
            let Some(settings) = files.settings() else { continue };
            let saved = settings.get("modules_to_save").and_then(|modules| modules.as_array());
            let has_head = saved.is_some_and(|modules| !modules.is_empty());
            let task_type = settings.get("task_type").and_then(|task| task.as_str()).unwrap_or_default();
            match TaskClass::of(&self.config, task_type).filter(|_| has_head) {
                None => {}
                Some(Ok(class)) => {
                    self.lose_heads(&class, adapters, notes);
                    self.task = Some(class);
                    return Ok(());
                }
                Some(Err(class)) => {
                    let expected = format!("a task for which transformers has a class of the base {}", self.name);
                    return Err(Finding::new(files.path().join(ADAPTER_CONFIG), "task_type")
                        .expected(expected)
                        .found(format_args!("{task_type}, which would need {class}"))
                        .unsupported());
                }
            }
        }
        Ok(())
    }

    /// Leaves out the heads that a class for a task doesn't have.
    fn lose_heads(&mut self, task: &TaskClass, adapters: &[AdapterFiles], notes: &mut Vec<String>) {
        let weights = std::mem::take(&mut self.weights);
        let inner = adapters.iter().find_map(|files| inner_model(files, &weights));
        let (left_out, kept): (Vec<_>, Vec<_>) =
            weights.tensors.into_iter().partition(|tensor| task.leaves_out(&tensor.name));
        let names: Vec<&str> = left_out.iter().map(|tensor| tensor.name.as_str()).collect();
        let without = if names.is_empty() { String::new() } else { format!(", without {}", names.join(", ")) };
        notes.push(format!("the result is a {}, with the adapter's head{without}", task.name));
        let name = |name: &str| match &inner {
            Some(inner) => format!("{inner}.{name}"),
            None => task.own_name(name),
        };
        let named = |tensor: PlannedTensor| PlannedTensor { name: name(&tensor.name), ..tensor };
        self.weights = Plan { tensors: kept.into_iter().map(named).collect() };
    }

    /// Gives it the number of rows with which the adapters were trained. Its config follows.
    ///
    /// # Errors
    /// As [`resized`].
    pub(super) fn resize(&mut self, adapters: &[AdapterFiles], notes: &mut Vec<String>) -> Result<()> {
        let unresized = Base::new(&self.path, &self.config, &self.weights);
        if let Some(resized) = resized(&unresized, &self.weights, adapters)? {
            self.weights = resized.weights;
            put_vocab_size(&mut self.config, resized.rows);
            notes.extend(resized.notes);
            self.rows = Some(resized.rows);
        }
        Ok(())
    }

    /// Makes its config say what adapters have changed.
    pub(super) fn describe(&mut self, merged: &Merged) {
        if merged.untied {
            self.config.insert("tie_word_embeddings".to_owned(), false.into());
        }
        if let Some(task) = &self.task {
            let labels = merged.plan.tensors.iter().find(|tensor| TaskClass::counts_labels(&tensor.name));
            task.describe(&mut self.config, labels.and_then(|tensor| tensor.shape.first().copied()));
        }
    }
}

impl Job<'_> {
    /// The model in `folder` as `adapters` need it.
    pub(super) fn prepared(&mut self, folder: &Checkpoint, adapters: &[AdapterFiles]) -> Result<Prepared> {
        let (config, weights) = (folder.config_json.clone(), folder.rounded().clone());
        let mut model = Prepared::new(folder.path(), self.base_name(), config, weights);
        let to_lora = self.output().kind().is_lora();
        if !to_lora {
            model.become_class(adapters, &mut self.notes)?;
        }
        if let Some(quantized) = self.quantized_base(folder, &model.weights)? {
            model.weights = quantized;
        }
        model.resize(adapters, &mut self.notes)?;
        if model.rows.is_some() && to_lora {
            let finding = setting("to").expected("a model: the adapters have rows that the base lacks, or fewer");
            return Err(finding.found("a LoRA, which has no rows").setting());
        }
        Ok(model)
    }

    /// The weights of `folder` as they were while the adapters were trained, if bitsandbytes had them then.
    fn quantized_base(&mut self, folder: &Checkpoint, weights: &Plan) -> Result<Option<Plan>> {
        let (settings, dry_run) = (self.settings, self.output().dry_run);
        let Some(quant) = settings.base_quant else { return Ok(None) };
        if folder.was_packed() {
            let finding = setting("base_quant").expected("a base in 16 or 32 bits, to be rounded");
            return Err(finding.found("one that is quantized already").setting());
        }
        let options = BaseQuantOptions { quant, double_quant: settings.double_quant, dry_run };
        let base = Base::new(folder.path(), &folder.config_json, weights);
        let (plan, count) = with_quantized_base(&base, weights, options)?;
        let scales = if settings.double_quant { ", their scales to 8 bits" } else { "" };
        self.notes.push(format!(
            "{}: the weights of {count} linear layers are rounded to {} of bitsandbytes{scales}, before adapters are added",
            self.base_name(),
            quant.name()
        ));
        Ok(Some(plan))
    }
}
