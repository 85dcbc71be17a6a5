//! Chooses the tokenizer of a merged model.
//!
//! Trainers save the tokenizer and the chat template that they trained with in the adapter's folder. If training
//! changed them, the merged model needs the changed ones.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::settings::setting;
use crate::checkpoint::{has_tokenizer, tokenizer_files};
use crate::error::{Error, Finding, Result};
use crate::json::read_json_object;
use crate::tokenizer::rows_needed;

/// Fields that don't change a tokenizer's behavior.
const INERT: &[&str] = &[
    "is_local",
    "name_or_path",
    "padding",
    "processor_class",
    "special_tokens_map_file",
    "tokenizer_file",
    "truncation",
    "vocab_file",
];

/// Which tokenizer a merged model gets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerChoice {
    /// The adapter's, if it differs from the base's and fits the model; otherwise the base's.
    #[default]
    Auto,
    /// The base's.
    Base,
    /// The adapter's.
    Adapter,
    /// The tokenizer in this folder.
    Folder(PathBuf),
}

/// An adapter whose folder may have the tokenizer.
pub(super) struct Candidate<'a> {
    /// The user's name of the adapter.
    pub(super) name: String,
    pub(super) path: &'a Path,
}

/// Returns the folder of the chosen tokenizer for a model with `rows` rows in its embeddings; `None` for the base's.
/// Decisions that the user may not expect are added to `notes`.
///
/// # Errors
/// [`crate::Error::Setting`] if the chosen place has no tokenizer, or the adapters have different ones;
/// [`crate::Error::Mismatch`] if the chosen tokenizer doesn't fit the model; errors of reading it.
pub(super) fn chosen(
    choice: &TokenizerChoice,
    adapters: &[Candidate],
    base: &Path,
    rows: Option<usize>,
    notes: &mut Vec<String>,
) -> Result<Option<PathBuf>> {
    match choice {
        TokenizerChoice::Base => Ok(None),
        TokenizerChoice::Folder(folder) => {
            if !has_tokenizer(folder) {
                let finding = setting("tokenizer").expected("base, adapter, or a folder that has a tokenizer");
                return Err(finding.found(folder.display()).setting());
            }
            fitting(folder, rows)
        }
        TokenizerChoice::Adapter => {
            let with: Vec<&Candidate> = adapters.iter().filter(|adapter| has_tokenizer(adapter.path)).collect();
            let finding = || setting("tokenizer").expected("adapters with one tokenizer");
            let Some(first) = with.first() else { return Err(finding().found("none with a tokenizer").setting()) };
            with.iter().try_for_each(|adapter| check_files(adapter.path))?;
            if let Some(other) = with.iter().find(|other| !differing(other.path, first.path).is_empty()) {
                let found = format!("others in {} and {}", first.name, other.name);
                return Err(finding().found(found).hint("name the folder of one of them").setting());
            }
            fitting(first.path, rows)
        }
        TokenizerChoice::Auto => {
            let changed: Vec<(&Candidate, Vec<String>)> = adapters
                .iter()
                .map(|adapter| (adapter, differing(adapter.path, base)))
                .filter(|(_, files)| !files.is_empty())
                .collect();
            let Some((first, files)) = changed.first() else { return Ok(None) };
            let whole = changed.iter().filter(|(adapter, _)| has_tokenizer(adapter.path));
            whole.map(|(adapter, _)| adapter).try_for_each(|adapter| check_files(adapter.path))?;
            let names = || files.join(", ");
            let keeps =
                |why: &str| format!("{}: not those of the base: {}; the base's are kept: {why}", first.name, names());
            let note = if !has_tokenizer(first.path) {
                keeps("the adapter has no vocabulary")
            } else if let Some((other, _)) =
                changed.iter().find(|(other, _)| !differing(other.path, first.path).is_empty())
            {
                keeps(&format!("those of {} differ, too", other.name))
            } else {
                match misfit(first.path, rows)? {
                    Some(why) => keeps(&why),
                    None => {
                        let note = "the result gets the adapter's tokenizer; `tokenizer` base keeps the base's";
                        notes.push(format!("{}: not those of the base: {}; {note}", first.name, names()));
                        return Ok(Some(first.path.to_owned()));
                    }
                }
            };
            notes.push(note);
            Ok(None)
        }
    }
}

/// Checks the choice if the base is a GGUF. Its tokenizer is in its keys and stays as it is.
///
/// # Errors
/// [`crate::Error::Setting`] if the choice isn't the base's tokenizer.
pub(super) fn check_of_gguf(choice: &TokenizerChoice, adapters: &[Candidate], notes: &mut Vec<String>) -> Result<()> {
    match choice {
        TokenizerChoice::Base => Ok(()),
        TokenizerChoice::Auto => {
            for adapter in adapters.iter().filter(|adapter| has_tokenizer(adapter.path)) {
                let why = "the base is a GGUF, which keeps its own";
                notes.push(format!("{}: the tokenizer in its folder is not read: {why}", adapter.name));
            }
            Ok(())
        }
        TokenizerChoice::Adapter | TokenizerChoice::Folder(_) => {
            let finding = setting("tokenizer").expected("base, where the base is a GGUF").found("another");
            Err(finding.hint("take the Hugging Face folder of the model as the base").setting())
        }
    }
}

/// Returns `folder` if its tokenizer fits the model.
fn fitting(folder: &Path, rows: Option<usize>) -> Result<Option<PathBuf>> {
    match misfit(folder, rows)? {
        None => Ok(Some(folder.to_owned())),
        Some(why) => {
            let finding = Finding::new(folder, "its tokenizer").expected("one that fits the model");
            Err(finding.found(why).mismatch())
        }
    }
}

/// Returns the reason why the tokenizer of `folder` doesn't fit a model with `rows` rows in its embeddings; `None` if
/// it fits.
fn misfit(folder: &Path, rows: Option<usize>) -> Result<Option<String>> {
    let needed = rows_needed(folder)?;
    Ok(rows.filter(|rows| *rows < needed).map(|rows| format!("{needed} tokens for an embedding of {rows} rows")))
}

/// Returns the tokenizer files of `folder` that `other` lacks or that have other content there.
fn differing(folder: &Path, other: &Path) -> Vec<String> {
    let same = |name: &String| same_content(&folder.join(name), &other.join(name));
    tokenizer_files(folder).into_iter().filter(|name| !same(name)).collect()
}

/// Refuses a tokenizer whose JSON files can't be read: they would only seem to be others than the base's.
fn check_files(folder: &Path) -> Result<()> {
    let hint = "`tokenizer` base keeps the base's tokenizer";
    let is_json = |name: &String| name.ends_with(".json");
    tokenizer_files(folder).into_iter().filter(is_json).try_for_each(|name| {
        read_json_object(&folder.join(name)).map(drop).map_err(|error| match error {
            Error::Format(finding) if finding.hint.is_empty() => finding.hint(hint).format(),
            other => other,
        })
    })
}

/// Returns whether two files have the same content. JSON is compared by its values, without fields that change nothing.
fn same_content(one: &Path, other: &Path) -> bool {
    let (Ok(bytes), Ok(others)) = (fs::read(one), fs::read(other)) else { return false };
    if bytes == others {
        return true;
    }
    if one.extension().is_some_and(|extension| extension == "json") {
        let read = |path: &Path| {
            let mut fields = read_json_object(path).ok()?;
            fields.retain(|name, value| !INERT.contains(&name.as_str()) && !value.is_null());
            Some(Value::from(fields))
        };
        return read(one).is_some_and(|json| Some(json) == read(other));
    }
    false
}
