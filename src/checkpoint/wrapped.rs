//! Removes the prefixes that wrapper programs add to tensor names: torch.compile, FSDP, DataParallel, Lightning.

use std::collections::HashSet;
use std::path::Path;

use crate::error::{Finding, Result};
use crate::plan::Plan;

/// Parts that a wrapper inserts into names wherever it wraps a module. No class has modules of these names.
pub(crate) const ANYWHERE: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// Prefixes of all names in files where the wrapped model, or a dictionary with it, was saved.
const BEFORE_ALL: [&str; 4] = ["state_dict", "model_state_dict", "module", "_forward_module"];

/// Gives tensors the names of the model's class. `notes` gets the removed parts.
///
/// # Errors
/// [`crate::Error::Mismatch`] if two tensors would get the same name.
pub(super) fn unwrap_names(folder: &Path, plan: &mut Plan, notes: &mut Vec<String>) -> Result<()> {
    let mut taken_off: Vec<&str> = Vec::new();
    for part in ANYWHERE {
        let has = |name: &str| name.split('.').any(|own| own == part);
        if plan.tensors.iter().any(|tensor| has(&tensor.name)) {
            taken_off.push(part);
        }
    }
    for tensor in &mut plan.tensors {
        if taken_off.iter().any(|part| tensor.name.contains(part)) {
            let left: Vec<&str> = tensor.name.split('.').filter(|part| !ANYWHERE.contains(part)).collect();
            tensor.name = left.join(".");
        }
    }
    while let Some(prefix) = BEFORE_ALL.into_iter().find(|prefix| all_have(plan, prefix)) {
        taken_off.push(prefix);
        for tensor in &mut plan.tensors {
            tensor.name.drain(..=prefix.len());
        }
    }
    if taken_off.is_empty() {
        return Ok(());
    }
    let mut seen = HashSet::new();
    if let Some(twice) = plan.tensors.iter().find(|tensor| !seen.insert(tensor.name.as_str())) {
        return Err(Finding::new(folder, format!("tensor {:?}", twice.name))
            .expected(format_args!("one of this name, without {}", taken_off.join(", ")))
            .found("two")
            .mismatch());
    }
    let prefixes: Vec<String> = taken_off.iter().map(|part| format!("{part}.")).collect();
    notes.push(format!("names of tensors are taken without {}", prefixes.join(", ")));
    Ok(())
}

/// Returns whether every name begins with `prefix` and a dot, and continues after that.
fn all_have(plan: &Plan, prefix: &str) -> bool {
    let has = |name: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.len() > 1 && rest.starts_with('.'));
    !plan.tensors.is_empty() && plan.tensors.iter().all(|tensor| has(&tensor.name))
}
