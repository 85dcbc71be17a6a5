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

/// Paths of a module within its wrappers in PEFT: the module that an adapter acts on, the one whose rows are trained, and
/// a trained copy, which files of some versions have under its own name only.
const WRAPPED: [&str; 3] = [".token_adapter.base_layer.", ".base_layer.", ".modules_to_save."];

/// The path of a module that has a trained copy.
const ORIGINAL: &str = ".original_module.";

/// The name in the base of the tensor that PEFT calls `name` in one of its wrappers.
fn unwrapped(name: &str) -> String {
    WRAPPED.iter().fold(name.to_owned(), |name, wrapper| name.replace(wrapper, "."))
}

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
    for name in &names {
        let in_base = unwrapped(name);
        let mut is_saved = false;
        for (module, found) in modules.iter().zip(&mut found) {
            let here = saves(module, name);
            *found |= here;
            is_saved |= here;
        }
        // With `save_embedding_layers`, PEFT saves embeddings and head whole, whatever the adapter acts on.
        let beside_weight = |module: &str| names.contains(&format!("{module}.base_layer.weight"));
        let whole_embedding = name.ends_with(".base_layer.weight")
            || name.strip_suffix(".base_layer.bias").is_some_and(beside_weight)
            || is_by_token(base, name);
        let bias = biases && name.ends_with(".bias") && !name.contains(".lora_");
        if !is_saved && !whole_embedding && !bias {
            continue;
        }
        let tensor = entries.need(name)?;
        // With `bias: all`, PEFT also saves the biases of a module's copies, but loads neither.
        if bias && [".original_module.", ".modules_to_save."].iter().any(|copy| name.contains(copy)) {
            continue;
        }
        changes.push(replacement(entries, base, name, &in_base, tensor)?);
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

/// Whether `name` is the base's own name of its embeddings, or of a tensor of its output head.
fn is_by_token(base: &Base, name: &str) -> bool {
    let is = |of: Option<&PlannedTensor>, named: &str| of.is_some_and(|of| base.own_name(&of.name) == named);
    let weight = name.strip_suffix("bias").map_or_else(|| name.to_owned(), |module| format!("{module}weight"));
    is(base.embeddings(), name) || is(base.head(), &weight)
}

/// Drops what PEFT doesn't train and saves with `save_embedding_layers`, together with a trained copy of the same
/// module: the copy under its name in the wrapper, where it is there under its own name, and the module itself.
pub(super) fn drop_untrained(entries: &mut Entries) {
    let own = |name: &str| {
        let copy = WRAPPED[2];
        [ORIGINAL, copy].into_iter().find(|part| name.contains(part)).map(|part| (name.replace(part, "."), part))
    };
    let is_copy = |name: &&str| {
        let Some((own, part)) = own(name) else { return false };
        entries.get(&own).is_some() || part == ORIGINAL && entries.get(&name.replace(part, WRAPPED[2])).is_some()
    };
    let copies: Vec<String> = entries.names().filter(is_copy).map(str::to_owned).collect();
    copies.iter().for_each(|name| drop(entries.take(name)));
}

/// Drops the whole weight of a tied output head where the adapter has the same whole embeddings, and no update of one of
/// them alone: PEFT saves the one tensor under both names. Returns whether it has.
pub(super) fn drop_equal_head(entries: &mut Entries, base: &Base) -> Result<bool> {
    let Some((head, embeddings)) = base.tied_head().zip(base.embeddings()) else { return Ok(false) };
    let own = base.own_name(&embeddings.name);
    let module = |weight: &str| weight.strip_suffix("weight").unwrap_or(weight).to_owned();
    let of = |weight: &str| {
        let module = module(weight);
        let all = entries.names().filter(|name| name.starts_with(&module)).map(str::to_owned).collect::<Vec<_>>();
        let (whole, others): (Vec<String>, Vec<String>) = all.into_iter().partition(|name| unwrapped(name) == weight);
        let is_alone = others.iter().all(|name| name.ends_with(".trainable_tokens_delta"));
        whole.into_iter().next().filter(|_| is_alone)
    };
    let Some((of_head, of_embeddings)) = of(&head.name).zip(of(&own)) else { return Ok(false) };
    let same = match (entries.get(&of_head), entries.get(&of_embeddings)) {
        (Some(one), Some(other)) => one.same_values(other)?,
        _ => false,
    };
    if same {
        entries.take(&of_head);
    }
    Ok(same)
}

/// Whether the tensor called `name` belongs to a module whose path ends in the characters of `module`. Like PEFT, this
/// doesn't require whole parts of the path.
fn saves(module: &str, name: &str) -> bool {
    name.match_indices('.').any(|(end, _)| name[..end].ends_with(module))
}

/// Drops the adapter's tensors of a tied output head, which are copies of its tensors for the embeddings, where it has
/// such tensors. Returns whether it has.
///
/// # Errors
/// [`crate::Error::Mismatch`] for factors of a LoRA that are no copies.
pub(super) fn drop_tied(entries: &mut Entries, base: &Base) -> Result<bool> {
    let Some((head, embeddings)) = base.tied_head().zip(base.embeddings()) else { return Ok(false) };
    let of = |weight: &str, name: &str| {
        let module = weight.strip_suffix("weight").unwrap_or(weight);
        name.starts_with(module)
    };
    let own = base.own_name(&embeddings.name);
    if !entries.names().any(|name| of(&own, name)) {
        return Ok(false);
    }
    // The head's factors are the embeddings', transposed.
    for (of_head, of_embeddings) in [("lora_A.weight", "lora_embedding_B"), ("lora_B.weight", "lora_embedding_A")] {
        let at = |weight: &str, part: &str| [weight.strip_suffix("weight").unwrap_or(weight), part].concat();
        let (name, other) = (at(&head.name, of_head), at(&own, of_embeddings));
        if let (Some(factor), Some(embedded)) = (entries.get(&name), entries.get(&other))
            && !is_transposed(factor, embedded)?
        {
            let expected = format!("the values of {other:?}, transposed: ensure_weight_tying is true");
            return Err(entries.finding(&name).expected(expected).found("others").mismatch());
        }
    }
    let copies: Vec<String> = entries.names().filter(|name| of(&head.name, name)).map(str::to_owned).collect();
    copies.iter().for_each(|name| drop(entries.take(name)));
    Ok(true)
}

/// Whether two matrices are each other's transposes.
fn is_transposed(one: &PlannedTensor, other: &PlannedTensor) -> Result<bool> {
    let ([rows, cols], [other_rows, other_cols]) = (one.shape.as_slice(), other.shape.as_slice()) else {
        return Ok(false);
    };
    if (rows, cols) != (other_cols, other_rows) {
        return Ok(false);
    }
    let (one, other) = (one.read()?, other.read()?);
    Ok(one.chunks_exact(*cols).enumerate().all(|(row, values)| {
        values.iter().enumerate().all(|(col, value)| other[col * rows + row].to_bits() == value.to_bits())
    }))
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
        replacement(entries, base, name, &unwrapped(name), tensor)
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
