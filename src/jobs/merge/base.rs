//! What becomes of a base before adapters are merged into it: another class, weights as they were for training.

use super::Job;
use crate::adapter::AdapterFiles;
use crate::adapter::peft::{Base, PREFIX};
use crate::arch::tasks::TaskClass;
use crate::checkpoint::{ADAPTER_CONFIG, Checkpoint};
use crate::error::{Finding, Result};
use crate::jobs::settings::setting;
use crate::merge::{BaseQuantOptions, with_quantized_base};
use crate::plan::{Plan, PlannedTensor};

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
    /// The class for a task that the model in `folder` becomes, if an adapter has the head of one.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] if transformers has no such class.
    pub(super) fn task(&mut self, folder: &Checkpoint) -> Result<Option<TaskClass>> {
        self.find_adapters()?;
        for files in self.files.iter().filter(|_| !self.output().kind().is_lora()) {
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
    pub(super) fn without_head(&mut self, task: &TaskClass, weights: &Plan) -> Plan {
        let (left_out, kept): (Vec<_>, Vec<_>) =
            weights.tensors.iter().cloned().partition(|tensor| task.leaves_out(&tensor.name));
        let names: Vec<&str> = left_out.iter().map(|tensor| tensor.name.as_str()).collect();
        let without = if names.is_empty() { String::new() } else { format!(", without {}", names.join(", ")) };
        self.notes.push(format!("the result is a {}, with the adapter's head{without}", task.name));
        let inner = self.files.iter().find_map(|files| inner_model(files, weights));
        let name = |name: &str| match &inner {
            Some(inner) => format!("{inner}.{name}"),
            None => task.own_name(name),
        };
        let named = |tensor: PlannedTensor| PlannedTensor { name: name(&tensor.name), ..tensor };
        Plan { tensors: kept.into_iter().map(named).collect() }
    }

    /// The weights of `folder` as they were while the adapters were trained, if bitsandbytes had them then.
    pub(super) fn quantized_base(&mut self, folder: &Checkpoint, weights: &Plan) -> Result<Option<Plan>> {
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
