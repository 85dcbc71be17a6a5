//! Adapters of filter atoms: other atoms for the base's own coefficients.
//!
//! With `A` the coefficients of the base's kernel over the base atoms, by least squares, `s (A new - A base)` is added.
//! As a row of taps is all that a coefficient needs, this is a product of the kernel's rows with one small matrix.

use std::path::Path;

use serde_json::{Map, Value};

use super::base::Base;
use super::change::Change;
use super::{Changes, Named};
use crate::error::{Finding, Result};
use crate::filter::{BankLayer, FilterBank, KernelSize, map_of_taps};
use crate::plan::Plan;
use crate::source::show_shape;

/// The value of `peft_type`.
pub(super) use crate::filter::PEFT_TYPE as KIND;

/// Refuses settings of a bank that stands for whole kernels.
pub(super) fn refusal(path: &Path, config: &Map<String, Value>) -> Result<()> {
    match config.get("mode").and_then(Value::as_str) {
        Some("replace") => Err(Finding::new(path, "mode")
            .expected("atoms: other atoms for the base's coefficients")
            .found("replace, a bank that stands for whole kernels")
            .hint("`jobs::bake` makes a model of it")
            .unsupported()),
        _ => Ok(()),
    }
}

/// Reads an adapter with these settings and tensors as changes to `base`.
pub(super) fn changes(
    path: &Path,
    config: &Map<String, Value>,
    file: &Path,
    tensors: Plan,
    base: &Base,
) -> Result<Changes> {
    refusal(path, config)?;
    let bank = FilterBank::read(path, config, file, tensors)?;
    let (mut changes, mut same) = (Vec::new(), 0);
    for layer in &bank.layers {
        match changed(&bank, layer, base)? {
            Some(change) => changes.push(change),
            None => same += 1,
        }
    }
    let mut notes = Vec::new();
    if same > 0 {
        notes
            .push(format!("{}: {same} modules have the base's atoms or the scale 0, and don't change", path.display()));
    }
    Ok(Changes { path: path.to_owned(), changes, notes, ..Changes::default() })
}

/// The change of one module; `None` where nothing changes, so that its weight stays bit for bit.
fn changed(bank: &FilterBank, layer: &BankLayer, base: &Base) -> Result<Option<Named>> {
    let Some(base_atoms) = &layer.base else { return Ok(None) };
    let size = layer.config.size;
    let about = || Finding::new(&bank.path, format!("layers.{}", layer.module));
    let name = format!("{}.weight", layer.module);
    let Some(tensor) = base.tensor(&name) else {
        let finding = about().expected(format_args!("a module of the base model {}", base.path().display()));
        return Err(finding.found("none of that name there").hint(base.hint_of_absent(&name)).mismatch());
    };
    if KernelSize::of_weight(&tensor.shape) != Some(size) {
        let finding =
            about().expected(format_args!("the kernel size of the base's {name}, {}", show_shape(&tensor.shape)));
        let hint = "this adapter belongs to another base model";
        return Err(finding.found(format_args!("{size}, of {} dimensions", size.dims)).hint(hint).mismatch());
    }
    if !tensor.dtype.is_float() {
        let finding = Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name));
        return Err(finding.expected("a kernel of floating-point numbers").found(tensor.dtype).unsupported());
    }
    if base_atoms.atoms == layer.atoms.atoms || bank.config.scale == 0.0 {
        return Ok(None);
    }
    let delta = map_of_taps(tensor, &base_atoms.atoms, &layer.atoms.atoms, bank.config.scale);
    Ok(Some((tensor.name.clone(), Change::Add(delta))))
}
