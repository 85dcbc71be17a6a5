//! Parses a model's name on the hub: `hf:org/name[@REVISION]`, `hf:org/name/FILE.gguf`.

use super::files;
use crate::error::{Finding, Result};

/// The prefix of a model's name on the hub.
const PREFIX: &str = "hf:";

/// Returns whether `text` is the name of a model on the hub.
pub fn is_hub_name(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// Returns a model's name as PEFT's settings write it: `org/name` for a name on the hub, without revision and file. Any
/// other text stays as it is.
pub fn plain_name(text: &str) -> &str {
    let Some(name) = text.strip_prefix(PREFIX) else { return text };
    let name = name.split('@').next().unwrap_or(name);
    match name.match_indices('/').nth(1) {
        Some((end, _)) => &name[..end],
        None => name,
    }
}

/// A parsed name on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    /// The name as the user wrote it, for messages.
    pub(super) text: String,
    /// `org/name`, or the name alone for the oldest models.
    pub(super) id: String,
    /// The GGUF, if the name includes one.
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
        // This is the hub's own rule. Double hyphens and double dots have a meaning in the cache.
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

/// Returns whether a text is the name of a commit. Every snapshot is named by its commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}
