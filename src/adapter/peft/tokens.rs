//! Trained rows of embeddings, which replace the base's rows.
//!
//! Reference: peft `src/peft/utils/other.py` (`set_additional_trainable_modules`, for the rows of a tied head) and
//! `src/peft/tuners/trainable_tokens/layer.py` (`merge`).

use serde_json::{Map, Value};

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::targets::ends_path;
use crate::error::Result;
use crate::json::Fields;
use crate::plan::{Expr, Pick};

/// The name of the rows' tensor, after its module's path, if there is another adapter as well.
const BESIDE: &str = "token_adapter.trainable_tokens_delta";
/// The name of the rows' tensor if the adapter has nothing else.
const ALONE: &str = "trainable_tokens_delta";

/// The rows of an adapter that has other tensors too, which are applied last. Also returns whether a tied head gets the
/// same rows.
pub(super) fn beside(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<(Vec<Named>, bool)> {
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
    // A tied head follows the embeddings, unless the config gives it other rows.
    let first = layers.iter().find(|(layer, _)| !head(layer)).map(|(_, rows)| rows);
    let both = first.is_some() && layers.iter().all(|(layer, rows)| !head(layer) || Some(rows) == first);
    rows_of_layers(fields, "trainable_token_indices", entries, base, &layers, BESIDE, both)
}

/// The changes of an adapter with nothing but rows, and whether a tied head gets the same rows.
pub(super) fn alone(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<(Vec<Named>, bool)> {
    // The tensors show which modules are trained.
    fields.ignore(&["target_modules", "exclude_modules", "init_weights"]);
    let rows: Value = fields.need("token_indices")?;
    let modules = entries.modules(ALONE);
    let is_head = |module: &String| base.tied_head().is_some_and(|t| t.name.strip_suffix(".weight") == Some(module));
    // PEFT saves the rows of a tied head separately as well.
    let both = modules.iter().any(is_head) && !modules.iter().all(is_head);
    let both = both || base.tied_head().is_some() && !modules.iter().any(is_head);
    let layers = modules.into_iter().map(|module| (module, rows.clone())).collect();
    rows_of_layers(fields, "token_indices", entries, base, &layers, ALONE, both)
}

/// The rows of every layer; with `both`, a tied head has the rows of the embeddings.
fn rows_of_layers(
    fields: &mut Fields,
    field: &'static str,
    entries: &mut Entries,
    base: &Base,
    layers: &Map<String, Value>,
    suffix: &str,
    both: bool,
) -> Result<(Vec<Named>, bool)> {
    let head = |layer: &str| base.tied_head().is_some_and(|t| ends_path(t.name.trim_end_matches(".weight"), layer));
    let mut changes = Vec::new();
    for (layer, rows) in layers {
        if both && head(layer) {
            continue;
        }
        let modules = entries.modules(suffix);
        let Some(module) = modules.iter().find(|module| ends_path(module, layer)) else {
            return Err(fields
                .finding(field)
                .expected(format_args!("rows of {layer:?} in {}", entries.file().display()))
                .found("none")
                .mismatch());
        };
        let rows: Option<Vec<usize>> = serde_json::from_value(rows.clone()).ok();
        let Some(rows) = rows.filter(|rows| !rows.is_empty()) else {
            let finding = fields.finding(field).expected("rows of embeddings");
            return Err(finding.found(layers[layer].to_string()).format());
        };
        changes.push(rows_of(entries, base, module, suffix, &rows)?);
    }
    if both {
        // Some versions of PEFT save shared tensors twice: drop the copies for the head.
        for module in entries.modules(suffix) {
            if head(&module) {
                entries.take(&format!("{module}.{suffix}"));
            }
        }
    }
    Ok((changes, both))
}

/// The adapter's rows `rows` of the embeddings `module`.
fn rows_of(entries: &mut Entries, base: &Base, module: &str, suffix: &str, rows: &[usize]) -> Result<Named> {
    let name = format!("{module}.{suffix}");
    let tensor = base.matrix(entries, &name, &format!("{module}.weight"))?;
    let (vocab, hidden) = (tensor.shape[0], tensor.shape[1]);
    let delta = entries.shaped(&name, &[rows.len(), hidden])?;
    if let Some(row) = rows.iter().find(|row| **row >= vocab) {
        let finding = entries.finding(&name).expected(format_args!("rows below the vocabulary's {vocab}"));
        return Err(finding.found(format_args!("row {row} by adapter_config.json")).mismatch());
    }
    // Sorted by row. Where a row occurs twice, the last one counts.
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
