//! What an adapter says about the number of rows of the embeddings and the output head that it was trained with, and the
//! rows that it has itself.
//!
//! Reference: peft `src/peft/utils/save_and_load.py` (`save_embedding_layers`), `src/peft/utils/other.py`
//! (`ModulesToSaveWrapper`, `TrainableTokensWrapper`) for the names of tensors.

use std::path::Path;

use serde_json::{Map, Value};

use super::base::Base;
use super::entries::Entries;
use crate::error::Result;
use crate::json::Fields;
use crate::plan::{Expr, Plan, PlannedTensor};

/// Names of whole embeddings or heads, after the path of their module: the trained one first.
const WHOLE: [&str; 4] =
    [".weight", ".modules_to_save.weight", ".base_layer.weight", ".token_adapter.base_layer.weight"];

/// Names of trained rows.
const ROWS: [&str; 2] = [".token_adapter.trainable_tokens_delta", ".trainable_tokens_delta"];

/// What one tensor of an adapter says about the rows of a tensor of the base.
pub(in crate::adapter) struct TokenRows {
    /// The tensor's name in the base.
    pub(in crate::adapter) of: String,
    /// The tensor of the adapter, for messages.
    pub(in crate::adapter) entry: String,
    /// How many rows there were in training.
    pub(in crate::adapter) rows: usize,
    /// Whether there may have been more.
    pub(in crate::adapter) at_least: bool,
    /// The rows that it has.
    pub(in crate::adapter) held: Held,
}

/// The rows that an adapter has itself.
pub(in crate::adapter) enum Held {
    /// None: a factor of an update.
    Nothing,
    /// All.
    Whole(Expr),
    /// Some: pairs of a row and its place in the tensor.
    Rows(Vec<(usize, usize)>, Expr),
}

/// What the adapter with this config and these tensors says about the embeddings and the output head of `base`.
pub(in crate::adapter) fn token_rows(
    config_path: &Path,
    config: &Map<String, Value>,
    file: &Path,
    tensors: &Plan,
    base: &Base,
) -> Result<Vec<TokenRows>> {
    let entries = Entries::new(file, tensors.clone());
    let mut found = Vec::new();
    for (rank, suffix) in WHOLE.iter().enumerate() {
        for (name, module) in modules(&entries, suffix) {
            let Some((of, width)) = by_token(base, &module) else { continue };
            let Some(tensor) = entries.get(&name).filter(|tensor| tensor.shape.len() == 2) else { continue };
            let is_copy = WHOLE[..rank].iter().any(|first| entries.get(&[&module, *first].concat()).is_some());
            if tensor.shape[1] == width && !is_copy {
                let (rows, expr) = (tensor.shape[0], tensor.expr.clone());
                found.push(TokenRows { of, entry: name, rows, at_least: false, held: Held::Whole(expr) });
            }
        }
        for (name, module) in modules(&entries, &suffix.replace("weight", "bias")) {
            let Some((weight, _)) = by_token(base, &module) else { continue };
            let of = bias_of(&weight);
            let Some(tensor) = entries.get(&name).filter(|tensor| tensor.shape.len() == 1) else { continue };
            if base.tensor(&format!("{module}.bias")).is_some() {
                let (rows, expr) = (tensor.shape[0], tensor.expr.clone());
                found.push(TokenRows { of, entry: name, rows, at_least: false, held: Held::Whole(expr) });
            }
        }
    }
    for (suffix, place) in [(".lora_embedding_A", 1), (".lora_B.weight", 0)] {
        for (entry, module) in modules(&entries, suffix) {
            let Some((of, _)) = by_token(base, &module) else { continue };
            if let Some(&rows) =
                entries.shape(&entry).filter(|shape| shape.len() == 2).and_then(|shape| shape.get(place))
            {
                found.push(TokenRows { of, entry, rows, at_least: false, held: Held::Nothing });
            }
        }
    }
    let mut fields = Fields::new(config_path, config);
    for suffix in ROWS {
        for (entry, module) in modules(&entries, suffix) {
            let Some((of, _)) = by_token(base, &module) else { continue };
            let Some(tensor) = entries.get(&entry) else { continue };
            let Some(indices) = indices(&mut fields, &module)? else { continue };
            if tensor.shape.first() != Some(&indices.len()) {
                // The change itself is refused, with a better message.
                continue;
            }
            let rows = indices.iter().max().map_or(0, |last| last.saturating_add(1));
            let held = Held::Rows(indices.into_iter().zip(0..).collect(), tensor.expr.clone());
            found.push(TokenRows { of, entry, rows, at_least: true, held });
        }
    }
    Ok(found)
}

/// The name of the bias beside a weight.
pub(in crate::adapter) fn bias_of(weight: &str) -> String {
    format!("{}bias", weight.strip_suffix("weight").unwrap_or(weight))
}

/// The tensors whose names end in `suffix`, with the paths of their modules.
fn modules(entries: &Entries, suffix: &str) -> Vec<(String, String)> {
    // `x.base_layer.weight` also ends in `.weight`, but no module of the base is called so.
    entries.names().filter_map(|name| Some((name.to_owned(), name.strip_suffix(suffix)?.to_owned()))).collect()
}

/// The name in the base of the weight of `module`, and the length of its rows, if that is the embeddings or the output
/// head.
fn by_token(base: &Base, module: &str) -> Option<(String, usize)> {
    let tensor: &PlannedTensor = base.tensor(&format!("{module}.weight"))?;
    let is_one = |of: Option<&PlannedTensor>| of.is_some_and(|of| of.name == tensor.name);
    (is_one(base.embeddings()) || is_one(base.head())).then(|| (tensor.name.clone(), tensor.row_len()))
}

/// The rows that the config says are trained in `module`: a list for all, or one for each module.
fn indices(fields: &mut Fields, module: &str) -> Result<Option<Vec<usize>>> {
    let value = match fields.get::<Value>("token_indices")? {
        Some(value) => Some(value),
        None => fields.get::<Value>("trainable_token_indices")?,
    };
    let value = match value {
        Some(Value::Object(layers)) => {
            layers.into_iter().find(|(layer, _)| super::targets::ends_path(module, layer)).map(|(_, rows)| rows)
        }
        other => other,
    };
    Ok(value.and_then(|rows| serde_json::from_value(rows).ok()))
}
