//! The size of the demo's task, and its words.

use std::path::Path;

use anyhow::Result;
use atombank::train::TrainingRow;

/// The seed of names and of the words that each is shown with.
pub(super) const SEED: u64 = 7;

/// How many names each function has.
pub(super) const NAMES: usize = 4;

/// How many words a name is trained with, and tried with.
pub(super) const TRAIN_WORDS: usize = 40;
pub(super) const TRIED_WORDS: usize = 10;

/// The different prompts of a file of rows.
pub(crate) fn words_of(path: &Path) -> Result<Vec<String>> {
    let mut words: Vec<String> = Vec::new();
    for row in TrainingRow::read_all(path)? {
        if !words.contains(&row.prompt) {
            words.push(row.prompt);
        }
    }
    Ok(words)
}
