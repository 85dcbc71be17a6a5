//! Folders in Mistral's own format: params.json and consolidated files, where others have config.json and model files.
//!
//! Such a folder is read as that of the class of transformers that computes the same: params.json becomes its config,
//! tensors get its names, and the rows of queries and keys its order. What comes after knows nothing of it.
//!
//! Reference: llama.cpp `convert_hf_to_gguf.py` (`--mistral-format`), `conversion/mistral.py`; mistral_inference
//! `args.py` for the fields.

mod names;
mod params;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::weights;
use crate::error::{Finding, Result};
use crate::json::read_json_object;
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::source::show_shape;

/// What stands in place of config.json.
pub(super) const CONFIG: &str = "params.json";

/// A folder in Mistral's own format.
pub(super) struct Own {
    /// How many heads the rows of the queries are of.
    heads: usize,
    /// How many heads the rows of the keys are of.
    kv_heads: usize,
    /// The names in the files, by those of transformers.
    stored: HashMap<String, String>,
}

/// Whether a folder is to be read in Mistral's own format. Mistral publishes many models in both formats, in one
/// folder: then that of transformers is taken.
pub(super) fn is_own(folder: &Path) -> bool {
    if !folder.join(CONFIG).is_file() {
        return false;
    }
    let (usual, own) = (weights::has_usual(folder), weights::has_own(folder));
    match folder.join("config.json").is_file() {
        true => own && !usual,
        // Other programs call files params.json, too.
        false => own || !usual,
    }
}

impl Own {
    /// Reads params.json: what config.json would say, and what the tensors need. What had to be decided goes to `notes`.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for models that no class of transformers is known for here,
    /// [`crate::Error::Format`] for values of the wrong kind.
    pub(super) fn read(
        folder: &Path,
        notes: &mut Vec<String>,
    ) -> Result<(Self, serde_json::Map<String, serde_json::Value>)> {
        let path = folder.join(CONFIG);
        let read = params::read(&path, &read_json_object(&path)?, notes)?;
        notes.push(format!(
            "{}: Mistral's own format, read as {}",
            path.display(),
            read.config["architectures"][0].as_str().unwrap_or_default()
        ));
        Ok((Self { heads: read.heads, kv_heads: read.kv_heads, stored: HashMap::new() }, read.config))
    }

    /// Gives tensors the names of transformers, and leaves out those of other parts than the text model.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] where two tensors would have one name.
    pub(super) fn rename(&mut self, folder: &Path, plan: &mut Plan, notes: &mut Vec<String>) -> Result<()> {
        let mut others: BTreeMap<String, usize> = BTreeMap::new();
        plan.tensors.retain(|tensor| match names::other_part(&tensor.name) {
            Some(part) => {
                *others.entry(part.to_owned()).or_default() += 1;
                false
            }
            None => true,
        });
        for tensor in &mut plan.tensors {
            let Some(name) = names::of_transformers(&tensor.name) else { continue };
            let stored = std::mem::replace(&mut tensor.name, name.clone());
            if let Some(other) = self.stored.insert(name, stored.clone()) {
                return Err(Finding::new(folder, format!("tensor {stored:?}"))
                    .expected("each tensor once")
                    .found(format_args!("{other:?}, which is the same"))
                    .mismatch());
            }
        }
        if !others.is_empty() {
            let tensors = |count: usize| if count == 1 { "tensor" } else { "tensors" };
            let counts: Vec<String> =
                others.iter().map(|(part, &count)| format!("{part} ({count} {})", tensors(count))).collect();
            notes.push(format!("left out, because the text model alone is read: {}", counts.join(", ")));
        }
        Ok(())
    }

    /// Brings rows of queries and keys into the order of transformers, which rotates the two halves of a head against
    /// each other. Mistral rotates neighbours, as llama.cpp does.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] where rows don't divide into heads.
    pub(super) fn regroup(&self, plan: &mut Plan) -> Result<()> {
        for tensor in &mut plan.tensors {
            let of = |module: &str| tensor.name.rsplit_once('.').is_some_and(|(own, _)| own.ends_with(module));
            let heads = match () {
                () if of(".self_attn.q_proj") => self.heads,
                () if of(".self_attn.k_proj") => self.kv_heads,
                () => continue,
            };
            halves(tensor, heads)?;
        }
        Ok(())
    }

    /// The name that a tensor has in the files.
    pub(super) fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.stored.get(name).map_or(name, String::as_str)
    }
}

/// Each of `heads` heads with its even rows first, then its odd ones.
fn halves(tensor: &mut PlannedTensor, heads: usize) -> Result<()> {
    let rows = tensor.shape.first().copied().unwrap_or_default();
    if rows == 0 || !rows.is_multiple_of(2 * heads) {
        return Err(Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name))
            .expected(format_args!("rows that divide into {heads} heads of an even size, by {CONFIG}"))
            .found(show_shape(&tensor.shape))
            .mismatch());
    }
    let width = rows / heads;
    let half = width / 2;
    tensor.expr = Expr::reordered(tensor.expr.clone(), |row| {
        let (head, within) = (row / width, row % width);
        head * width + 2 * (within % half) + within / half
    });
    Ok(())
}

#[cfg(test)]
mod tests;
