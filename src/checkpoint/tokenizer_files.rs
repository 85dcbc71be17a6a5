//! The files of a folder that belong to its tokenizer, and the choice of another folder's
//! tokenizer.

use std::path::{Path, PathBuf};

use super::Checkpoint;

/// Files that hold a vocabulary. Every folder with a tokenizer has at least one of them.
const VOCABULARIES: &[&str] = &[
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "tokenizer.jsonl",
    "rwkv_vocab_v20230424.txt",
];

/// Files that belong to a vocabulary: merges, settings, special tokens, the chat template.
const SETTINGS: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer_config.json",
];

/// The names of the tokenizer's files that `folder` has.
pub(crate) fn tokenizer_files(folder: &Path) -> Vec<&'static str> {
    VOCABULARIES.iter().chain(SETTINGS).copied().filter(|name| folder.join(name).is_file()).collect()
}

/// Whether `folder` has a whole tokenizer: settings without a vocabulary don't count.
pub(crate) fn has_tokenizer(folder: &Path) -> bool {
    VOCABULARIES.iter().any(|name| folder.join(name).is_file())
}

/// Whether `name` is the name of a tokenizer's file.
pub(super) fn is_tokenizer_file(name: &str) -> bool {
    VOCABULARIES.contains(&name) || SETTINGS.contains(&name)
}

impl Checkpoint {
    /// The folder from which the tokenizer is read: the model's, unless
    /// [`Checkpoint::take_tokenizer_of`] set another.
    pub(crate) fn tokenizer_folder(&self) -> &Path {
        self.tokenizer.as_deref().unwrap_or(&self.path)
    }

    /// Uses all tokenizer files of `folder` instead of the model's.
    pub(crate) fn take_tokenizer_of(&mut self, folder: PathBuf) {
        self.tokenizer = Some(folder);
    }
}
