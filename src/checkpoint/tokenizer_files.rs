//! Which files of a folder are its tokenizer's, and taking those of another folder.

use std::path::{Path, PathBuf};

use super::Checkpoint;

/// Files that hold a vocabulary: one of them is in every folder that has a tokenizer.
const VOCABULARIES: &[&str] = &["tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt"];

/// Files that belong to a vocabulary: merges, settings, special tokens, the chat template.
const SETTINGS: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer_config.json",
];

/// The files of a tokenizer that `folder` has, by name.
pub(crate) fn tokenizer_files(folder: &Path) -> Vec<&'static str> {
    VOCABULARIES.iter().chain(SETTINGS).copied().filter(|name| folder.join(name).is_file()).collect()
}

/// Whether `folder` has a whole tokenizer: settings alone are none.
pub(crate) fn has_tokenizer(folder: &Path) -> bool {
    VOCABULARIES.iter().any(|name| folder.join(name).is_file())
}

/// Whether a file called `name` is one of a tokenizer.
pub(super) fn is_tokenizer_file(name: &str) -> bool {
    VOCABULARIES.contains(&name) || SETTINGS.contains(&name)
}

impl Checkpoint {
    /// The folder that has the tokenizer: the model's, unless [`Checkpoint::take_tokenizer_of`] chose another.
    pub(crate) fn tokenizer_folder(&self) -> &Path {
        self.tokenizer.as_deref().unwrap_or(&self.path)
    }

    /// Takes the tokenizer's files of `folder`, all of them, instead of the model's.
    pub(crate) fn take_tokenizer_of(&mut self, folder: PathBuf) {
        self.tokenizer = Some(folder);
    }
}
