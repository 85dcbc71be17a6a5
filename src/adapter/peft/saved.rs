//! What adapters of every kind can have beside their own tensors: whole modules, biases, rows of the
//! embeddings.
//!
//! Reference: peft `src/peft/utils/other.py` (`ModulesToSaveWrapper`, `TrainableTokensWrapper`),
//! `src/peft/utils/save_and_load.py` and `src/peft/tuners/trainable_tokens/layer.py`.

use serde_json::{Map, Value};

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::targets::ends_path;
use crate::checkpoint::Fields;
use crate::convert::class_name;
use crate::error::Result;
use crate::formats::show_shape;
use crate::plan::{Expr, Pick, PlannedTensor};

/// What PEFT calls a module that it has wrapped.
const WRAPPED: &str = ".base_layer";
const TOKENS: &str = "token_adapter.trainable_tokens_delta";

/// The whole tensors: first of all, as PEFT loads them before it merges.
pub(super) fn replaced(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
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
        // With every bias PEFT saves those of a module's copies too, and loads neither.
        if bias && [".original_module.", ".modules_to_save."].iter().any(|copy| name.contains(copy)) {
            continue;
        }
        changes.push(replacement(entries, base, &name, &in_base, tensor)?);
    }
    match found.iter().position(|found| !found) {
        None => Ok(changes),
        // PEFT passes over names that no module has.
        Some(place) if !base.named().any(|(name, _)| saves(&modules[place], &name)) => Ok(changes),
        Some(place) => Err(fields
            .finding("modules_to_save")
            .expected(format_args!("tensors of {:?} in {}", modules[place], entries.file().display()))
            .found("none")
            .hint("the adapter is incomplete")
            .mismatch()),
    }
}

/// Whether the tensor called `name` belongs to a module whose path ends in `module`: in these letters,
/// not only as a path, as PEFT has it.
fn saves(module: &str, name: &str) -> bool {
    name.match_indices('.').any(|(end, _)| name[..end].ends_with(module))
}

/// Takes what the adapter has of a head that is the embeddings and stays that: copies of what it has of
/// the embeddings, where it has something of them. Whether it does.
pub(super) fn drop_tied(entries: &mut Entries, base: &Base) -> bool {
    let Some((head, embeddings)) = base.tied_head().zip(base.embeddings()) else { return false };
    let of = |weight: &str, name: &str| {
        let module = weight.strip_suffix("weight").unwrap_or(weight);
        name.starts_with(module)
    };
    let own = class_name(base.config(), &embeddings.name).unwrap_or_else(|| embeddings.name.clone());
    if !entries.names().any(|name| of(&own, name)) {
        return false;
    }
    let copies: Vec<String> = entries.names().filter(|name| of(&head.name, name)).map(str::to_owned).collect();
    copies.iter().for_each(|name| drop(entries.take(name)));
    true
}

/// The base's tensor `in_base` as the adapter has it.
fn replacement(entries: &Entries, base: &Base, name: &str, in_base: &str, tensor: PlannedTensor) -> Result<Named> {
    let Some(replaced) = base.tensor(in_base) else {
        return Err(entries
            .finding(name)
            .expected("a tensor of the base to stand for")
            .found("none of that name there")
            .hint("this adapter belongs to another base model")
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
    // Loaded into a module of the base, it has the type of the base.
    let tensor = PlannedTensor { name: replaced.name.clone(), dtype: replaced.dtype, ..tensor };
    Ok((replaced.name.clone(), Change::Replace(tensor)))
}

/// Rows of embeddings, last of all; and whether a tied head has the same.
pub(super) fn tokens(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<(Vec<Named>, bool)> {
    let Some(value) = fields.get::<Value>("trainable_token_indices")? else { return Ok((Vec::new(), false)) };
    let layers: Map<String, Value> = match value {
        Value::Object(layers) => layers,
        rows => {
            let name = base.embeddings().and_then(|t| t.name.strip_suffix(".weight")).unwrap_or("embed_tokens");
            let name = name.rsplit('.').next().unwrap_or(name).to_owned();
            [(name, rows)].into_iter().collect()
        }
    };
    let head = |layer: &str| base.tied_head().is_some_and(|t| ends_path(t.name.trim_end_matches(".weight"), layer));
    // The head follows the embeddings where it is them and nothing else is said of it.
    let first = layers.iter().find(|(layer, _)| !head(layer)).map(|(_, rows)| rows);
    let both = first.is_some() && layers.iter().all(|(layer, rows)| !head(layer) || Some(rows) == first);
    let mut changes = Vec::new();
    for (layer, rows) in &layers {
        if both && head(layer) {
            continue;
        }
        let modules = entries.modules(TOKENS);
        let Some(module) = modules.iter().find(|module| ends_path(module, layer)) else {
            return Err(fields
                .finding("trainable_token_indices")
                .expected(format_args!("rows of {layer:?} in {}", entries.file().display()))
                .found("none")
                .mismatch());
        };
        let rows: Option<Vec<usize>> = serde_json::from_value(rows.clone()).ok();
        let Some(rows) = rows.filter(|rows| !rows.is_empty()) else {
            let finding = fields.finding("trainable_token_indices").expected("rows of embeddings");
            return Err(finding.found(layers[layer].to_string()).format());
        };
        changes.push(rows_of(entries, base, module, &rows)?);
    }
    if both {
        // Saved once more under the head, by versions of PEFT that save shared tensors twice.
        for module in entries.modules(TOKENS) {
            if head(&module) {
                entries.take(&format!("{module}.{TOKENS}"));
            }
        }
    }
    Ok((changes, both))
}

/// Rows `rows` of the embeddings `module` as the adapter has them.
fn rows_of(entries: &mut Entries, base: &Base, module: &str, rows: &[usize]) -> Result<Named> {
    let name = format!("{module}.{TOKENS}");
    let tensor = base.matrix(entries, &name, &format!("{module}.weight"))?;
    let (vocab, hidden) = (tensor.shape[0], tensor.shape[1]);
    let delta = entries.shaped(&name, &[rows.len(), hidden])?;
    if let Some(row) = rows.iter().find(|row| **row >= vocab) {
        let finding = entries.finding(&name).expected(format_args!("rows below the vocabulary's {vocab}"));
        return Err(finding.found(format_args!("row {row} by trainable_token_indices")).mismatch());
    }
    // Row after row; of a row that is there twice the last one counts.
    let mut order: Vec<(usize, usize)> = rows.iter().copied().zip(0..).collect();
    order.sort_unstable();
    order.reverse();
    order.dedup_by_key(|(row, _)| *row);
    order.reverse();
    Ok((tensor.name.clone(), Change::Rows { rows: order.into(), delta: delta.expr }))
}

/// The base with some rows replaced by those of `delta`: pairs of a row of the base and one of `delta`.
pub(super) fn with_rows(base: Expr, rows: &[(usize, usize)], delta: Expr) -> Expr {
    let shape = base.shape();
    let mut picks = Vec::new();
    let mut next = 0;
    for &(row, of) in rows {
        picks.push(Pick { of: 0, start: next, len: row - next });
        picks.push(Pick { of: 1, start: of, len: 1 });
        next = row + 1;
    }
    picks.push(Pick { of: 0, start: next, len: shape.first().copied().unwrap_or_default() - next });
    picks.retain(|pick| pick.len > 0);
    Expr::Rows { shape, of: vec![base, delta], picks: picks.into() }
}
