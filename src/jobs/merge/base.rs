//! What becomes of a base before adapters are merged into it: another class, weights as they were for training, other
//! numbers of tokens.

use super::Job;
use crate::adapter::peft::{Base, PREFIX};
use crate::adapter::{AdapterFiles, resized};
use crate::arch::tasks::TaskClass;
use crate::arch::vocabulary::put_vocab_size;
use crate::checkpoint::{ADAPTER_CONFIG, Checkpoint};
use crate::error::{Finding, Result};
use crate::jobs::settings::setting;
use crate::merge::{BaseQuantOptions, with_quantized_base};
use crate::plan::{Plan, PlannedTensor};

/// A base as adapters are merged into it.
pub(super) struct Prepared {
    pub(super) weights: Plan,
    /// The class for a task that it becomes, if an adapter has the head of one.
    pub(super) task: Option<TaskClass>,
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

impl Job<'_> {
    /// The weights of `folder` as `adapters` need them. Its config follows.
    pub(super) fn prepared(&mut self, folder: &mut Checkpoint, adapters: &[AdapterFiles]) -> Result<Prepared> {
        let task = self.task(folder, adapters)?;
        let mut weights = folder.rounded().clone();
        if let Some(task) = &task {
            weights = self.without_head(task, weights, adapters);
        }
        if let Some(quantized) = self.quantized_base(folder, &weights)? {
            weights = quantized;
        }
        let unresized = Base::new(folder.path(), &folder.config_json, &weights);
        if let Some(resized) = resized(&unresized, &weights, adapters)? {
            if self.output().kind().is_lora() {
                let finding = setting("to").expected("a model: the adapters have rows that the base lacks, or fewer");
                return Err(finding.found("a LoRA, which has no rows").setting());
            }
            weights = resized.weights;
            put_vocab_size(&mut folder.config_json, resized.rows);
            self.notes.extend(resized.notes);
        }
        Ok(Prepared { weights, task })
    }

    /// The class for a task that the model in `folder` becomes, if an adapter has the head of one.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] if transformers has no such class.
    fn task(&self, folder: &Checkpoint, adapters: &[AdapterFiles]) -> Result<Option<TaskClass>> {
        for files in adapters.iter().filter(|_| !self.output().kind().is_lora()) {
            let Some(settings) = files.settings() else { continue };
            let saved = settings.get("modules_to_save").and_then(|modules| modules.as_array());
            let has_head = saved.is_some_and(|modules| !modules.is_empty());
            let task_type = settings.get("task_type").and_then(|task| task.as_str()).unwrap_or_default();
            match TaskClass::of(&folder.config_json, task_type).filter(|_| has_head) {
                None => {}
                Some(Ok(class)) => return Ok(Some(class)),
                Some(Err(class)) => {
                    return Err(Finding::new(files.path().join(ADAPTER_CONFIG), "task_type")
                        .expected(format_args!(
                            "a task for which transformers has a class of the base {}",
                            self.base_name()
                        ))
                        .found(format_args!("{task_type}, which would need {class}"))
                        .unsupported());
                }
            }
        }
        Ok(None)
    }

    /// `weights` without the heads that a class for a task doesn't have.
    fn without_head(&mut self, task: &TaskClass, weights: Plan, adapters: &[AdapterFiles]) -> Plan {
        let inner = adapters.iter().find_map(|files| inner_model(files, &weights));
        let (left_out, kept): (Vec<_>, Vec<_>) =
            weights.tensors.into_iter().partition(|tensor| task.leaves_out(&tensor.name));
        let names: Vec<&str> = left_out.iter().map(|tensor| tensor.name.as_str()).collect();
        let without = if names.is_empty() { String::new() } else { format!(", without {}", names.join(", ")) };
        self.notes.push(format!("the result is a {}, with the adapter's head{without}", task.name));
        let name = |name: &str| match &inner {
            Some(inner) => format!("{inner}.{name}"),
            None => task.own_name(name),
        };
        let named = |tensor: PlannedTensor| PlannedTensor { name: name(&tensor.name), ..tensor };
        Plan { tensors: kept.into_iter().map(named).collect() }
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
