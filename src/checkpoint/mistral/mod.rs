//! Folders in Mistral's own format: params.json and consolidated files instead of config.json and model files.
//!
//! Such a folder is read as that of the transformers class that computes the same. params.json becomes this class's
//! config, the tensors get its names, and the rows of queries and keys get its order. All later code sees an ordinary
//! folder.
//!
//! Reference: llama.cpp `convert_hf_to_gguf.py` (`--mistral-format`), `conversion/mistral.py`; mistral_inference
//! `args.py` for the fields.

mod names;
mod params;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::{counted_parts, weights};
use crate::error::{Finding, Result};
use crate::json::read_json_object;
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::source::show_shape;

/// The file that replaces config.json.
pub(super) const CONFIG: &str = "params.json";

/// A folder in Mistral's own format.
pub(super) struct Own {
    /// The number of heads in the rows of the queries.
    heads: usize,
    /// The number of heads in the rows of the keys.
    kv_heads: usize,
    /// The tensor names in the files, by those of transformers.
    stored: HashMap<String, String>,
}

/// Returns whether to read a folder in Mistral's own format. Mistral publishes many models in both formats in one
/// folder; then the format of transformers is used.
pub(super) fn is_own(folder: &Path) -> bool {
    if !folder.join(CONFIG).is_file() {
        return false;
    }
    let (usual, own) = (weights::has_usual(folder), weights::has_own(folder));
    match folder.join("config.json").is_file() {
        true => own && !usual,
        // Other programs also use the file name params.json.
        false => own || !usual,
    }
}

impl Own {
    /// Reads params.json, and returns the equivalent config.json and the facts that the tensors need. Decisions on
    /// unclear points are added to `notes`.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for models without a known transformers class, [`crate::Error::Format`] for values
    /// of the wrong kind.
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

    /// Gives tensors the names of transformers, and leaves out those that aren't part of the text model.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] if two tensors would get the same name.
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
            notes.push(format!("left out, because the text model alone is read: {}", counted_parts(&others)));
        }
        Ok(())
    }

    /// Puts the rows of queries and keys into the order of transformers, which rotates the two halves of a head against
    /// each other. Mistral, like llama.cpp, rotates neighboring rows.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] if the rows don't divide into heads.
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

    /// Returns `text` with the names of files, fields and tensors that a folder in this format has.
    pub(super) fn own_words(&self, text: &str) -> String {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while !rest.is_empty() {
            let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            let bare = word.trim_end_matches('.');
            out.push_str(&self.own_word(bare).unwrap_or_else(|| bare.to_owned()));
            out.push_str(&word[bare.len()..]);
            let next = after.find(is_part).unwrap_or(after.len());
            out.push_str(&after[..next]);
            rest = &after[next..];
        }
        out
    }

    fn own_word(&self, word: &str) -> Option<String> {
        if word == "config.json" {
            return Some(CONFIG.to_owned());
        }
        let field = names::FIELDS.iter().find(|(theirs, _)| *theirs == word).map(|(_, own)| (*own).to_owned());
        field.or_else(|| self.stored.get(word).cloned()).or_else(|| names::of_mistral(word))
    }

    /// Returns the name of a tensor in the files.
    pub(super) fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.stored.get(name).map_or(name, String::as_str)
    }
}

/// Reorders each of `heads` heads: its even rows first, then its odd ones.
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
