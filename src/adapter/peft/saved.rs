//! Tensors that adapters of every kind can have in addition to their own: whole modules and biases. LN tuning has
//! nothing else.
//!
//! Reference: peft `src/peft/utils/other.py` (`ModulesToSaveWrapper`), `src/peft/utils/save_and_load.py` and
//! `src/peft/tuners/ln_tuning/layer.py`.

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use crate::error::Result;
use crate::json::Fields;
use crate::plan::PlannedTensor;
use crate::source::show_shape;

/// PEFT's suffix of a module whose copy LN tuning trains.
const TUNED: &str = ".ln_tuning_layers";

/// The path of a module within its wrapper in PEFT.
const WRAPPED: &str = ".base_layer";

/// The changes that replace whole tensors. They come first, because PEFT loads such tensors before it merges. `tied`:
/// whether [`drop_tied`] has removed the adapter's tensors of the head, so that a missing head is no error.
pub(super) fn replaced(fields: &mut Fields, entries: &mut Entries, base: &Base, tied: bool) -> Result<Vec<Named>> {
    let modules: Vec<String> = fields.get("modules_to_save")?.unwrap_or_default();
    let biases = match fields.get::<String>("bias")?.as_deref() {
        None | Some("none") => false,
        Some("all") => true,
        Some(only) if only.ends_with("_only") => true,
        Some(other) => {
            let finding = fields.finding("bias").expected("none, all, or the adapted modules' only");
            return Err(finding.found(format!("{other:?}")).unsupported());
        }
    };
    let mut found = vec![false; modules.len()];
    let mut changes = Vec::new();
    let names: Vec<String> = entries.names().map(str::to_owned).collect();
    for name in names {
        let in_base = name.replace(&format!("{WRAPPED}."), ".");
        let mut is_saved = false;
        for (module, found) in modules.iter().zip(&mut found) {
            let here = saves(module, &name);
            *found |= here;
            is_saved |= here;
        }
        let whole_embedding = name.ends_with(&format!("{WRAPPED}.weight"));
        let bias = biases && name.ends_with(".bias") && !name.contains(".lora_");
        if !is_saved && !whole_embedding && !bias {
            continue;
        }
        let tensor = entries.need(&name)?;
        // With `bias: all`, PEFT also saves the biases of a module's copies, but loads neither.
        if bias && [".original_module.", ".modules_to_save."].iter().any(|copy| name.contains(copy)) {
            continue;
        }
        changes.push(replacement(entries, base, &name, &in_base, tensor)?);
    }
    let is_head = |module: &String| base.tied_head().is_some_and(|head| tied && saves(module, &head.name));
    let is_missing = |(found, module): (&bool, &String)| !found && !is_head(module);
    match found.iter().zip(&modules).position(is_missing) {
        None => Ok(changes),
        // PEFT ignores names that match no module.
        Some(place) if !base.named().any(|(name, _)| saves(&modules[place], &name)) => Ok(changes),
        Some(place) => Err(fields
            .finding("modules_to_save")
            .expected(format_args!("tensors of {:?} in {}", modules[place], entries.file().display()))
            .found("none")
            .hint("the adapter is incomplete")
            .mismatch()),
    }
}

/// Whether the tensor called `name` belongs to a module whose path ends in the characters of `module`. Like PEFT, this
/// doesn't require whole parts of the path.
fn saves(module: &str, name: &str) -> bool {
    name.match_indices('.').any(|(end, _)| name[..end].ends_with(module))
}

/// Drops the adapter's tensors of a tied output head, which are copies of its tensors for the embeddings, where it has
/// such tensors. Returns whether it has.
pub(super) fn drop_tied(entries: &mut Entries, base: &Base) -> bool {
    let Some((head, embeddings)) = base.tied_head().zip(base.embeddings()) else { return false };
    let of = |weight: &str, name: &str| {
        let module = weight.strip_suffix("weight").unwrap_or(weight);
        name.starts_with(module)
    };
    let own = base.own_name(&embeddings.name);
    if !entries.names().any(|name| of(&own, name)) {
        return false;
    }
    let copies: Vec<String> = entries.names().filter(|name| of(&head.name, name)).map(str::to_owned).collect();
    copies.iter().for_each(|name| drop(entries.take(name)));
    true
}

/// The adapter's replacement of the base's tensor `in_base`.
fn replacement(entries: &Entries, base: &Base, name: &str, in_base: &str, tensor: PlannedTensor) -> Result<Named> {
    if let (None, Some(dtype)) = (base.tensor(in_base), base.type_of_new_head(in_base)) {
        let expr = if tensor.dtype == dtype { tensor.expr } else { base.rounded(tensor.expr, dtype) };
        let head = PlannedTensor { name: in_base.to_owned(), dtype, shape: tensor.shape, expr };
        return Ok((head.name.clone(), Change::Replace(head)));
    }
    let Some(replaced) = base.tensor(in_base) else {
        return Err(entries
            .finding(name)
            .expected("a tensor of the base to stand for")
            .found("none of that name there")
            .hint(base.hint_of_absent(in_base))
            .mismatch());
    };
    if replaced.shape != tensor.shape {
        return Err(entries
            .finding(name)
            .expected(format_args!("{}, as the base has it", show_shape(&replaced.shape)))
            .found(show_shape(&tensor.shape))
            .hint(
                "this adapter belongs to another base model, or the base was resized before training: resize it first",
            )
            .mismatch());
    }
    // PEFT loads the tensor into a module of the base, which rounds it to the base's type, whatever type the output
    // gets.
    let expr = match tensor.dtype == replaced.dtype {
        true => tensor.expr,
        false => base.rounded(tensor.expr, replaced.dtype),
    };
    let tensor = PlannedTensor { name: replaced.name.clone(), dtype: replaced.dtype, shape: tensor.shape, expr };
    Ok((replaced.name.clone(), Change::Replace(tensor)))
}

/// The changes of an adapter that has nothing but whole tensors.
pub(super) fn whole(entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let names: Vec<String> = entries.names().map(str::to_owned).collect();
    let change = |name: &String| {
        let tensor = entries.need(name)?;
        let wrappers = [format!("{WRAPPED}."), ".modules_to_save.".to_owned()];
        let in_base = wrappers.iter().fold(name.clone(), |name, wrapper| name.replace(wrapper, "."));
        replacement(entries, base, name, &in_base, tensor)
    };
    names.iter().map(change).collect()
}

/// The changes of LN tuning: trained copies of norms or other modules.
pub(super) fn tuned(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    // The tensors show which modules are tuned.
    fields.ignore(&["target_modules", "exclude_modules"]);
    let names: Vec<String> = entries.names().filter(|name| name.contains(TUNED)).map(str::to_owned).collect();
    let change = |name: &String| {
        let tensor = entries.need(name)?;
        replacement(entries, base, name, &name.replace(TUNED, ""), tensor)
    };
    names.iter().map(change).collect()
}
