//! A model's name on the hub, taken apart: `hf:org/name[@REVISION]`, `hf:org/name/FILE.gguf`.

use super::files;
use crate::error::{Finding, Result};

/// The prefix of a model's name on the hub.
const PREFIX: &str = "hf:";

/// Whether `text` is the name of a model on the hub.
pub fn is_hub_name(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// A model as PEFT's settings name it: `org/name` for a name on the hub, whatever its revision and file; anything
/// else as it is.
pub fn plain_name(text: &str) -> &str {
    let Some(name) = text.strip_prefix(PREFIX) else { return text };
    let name = name.split('@').next().unwrap_or(name);
    match name.match_indices('/').nth(1) {
        Some((end, _)) => &name[..end],
        None => name,
    }
}

/// A name on the hub, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    /// The name as the user wrote it, for messages.
    pub(super) text: String,
    /// `org/name`, or the name alone for the oldest models.
    pub(super) id: String,
    /// The GGUF that is meant, where one is named.
    pub(super) file: Option<String>,
    /// A branch, a tag or a commit.
    pub(super) revision: String,
}

impl Name {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let wrong = |found: &str| {
            let expected = "hf:org/name, hf:org/name@REVISION or hf:org/name/FILE.gguf";
            Err(Finding::new(text, "").expected(expected).found(found).mismatch())
        };
        let Some(rest) = text.strip_prefix(PREFIX) else { return wrong("another beginning") };
        let (path, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let mut parts = path.splitn(3, '/');
        let id: Vec<&str> = parts.by_ref().take(2).collect();
        let file = parts.next();
        // The hub's own rule: no double hyphens or dots, which have a meaning in the cache.
        let is_word = |text: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            !text.is_empty() && text.bytes().all(plain) && !text.contains("--") && !text.contains("..")
        };
        if !id.iter().all(|part| is_word(part) && *part != ".") {
            return wrong("a name that the hub doesn't allow");
        }
        let revision_fits = |b: u8| b.is_ascii_alphanumeric() || b"-_./+".contains(&b);
        if !files::is_plain(revision) || !revision.bytes().all(revision_fits) {
            return wrong("a revision that is no branch, tag or commit");
        }
        if file.is_some_and(|file| !files::is_plain(file) || !file.ends_with(".gguf")) {
            return wrong("a file that is no GGUF");
        }
        let file = file.map(str::to_owned);
        Ok(Self { text: text.to_owned(), id: id.join("/"), file, revision: revision.to_owned() })
    }
}

/// Whether a text is the name of a commit. Every snapshot is called by its commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}
