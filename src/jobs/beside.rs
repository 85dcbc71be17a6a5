//! What trainers save beside an adapter, and a merge doesn't take: named, so that nobody believes it is in the result.

use std::fs;
use std::path::Path;

/// Files of a tokenizer, and the chat template.
const TOKENIZER: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Weights that were trained beside the adapter: by DeepSpeed's scripts and LLaVA's, by LongLoRA's, by vLLM's users.
const WEIGHTS: &[&str] =
    &["new_embeddings.bin", "new_embeddings.safetensors", "non_lora_trainables.bin", "trainable_params.bin"];

/// What is said of an adapter's folder, called `name`, that is merged into the folder or file `base`.
pub(super) fn notes(name: &str, adapter: &Path, base: &Path) -> Vec<String> {
    if !adapter.is_dir() {
        return Vec::new();
    }
    let there = |names: &[&'static str]| names.iter().copied().filter(|file| adapter.join(file).is_file()).collect();
    let tokenizer: Vec<&str> = there(TOKENIZER);
    let others: Vec<&str> = tokenizer.into_iter().filter(|file| !same(&adapter.join(file), &base.join(file))).collect();
    let weights: Vec<&str> = there(WEIGHTS);
    let mut notes = Vec::new();
    if !others.is_empty() {
        let those = if base.is_dir() {
            "not those of the base, whose own the result has"
        } else {
            "not read: the result has the base's"
        };
        notes.push(format!("{name} has files of a tokenizer that are {those}: {}", others.join(", ")));
    }
    if !weights.is_empty() {
        notes.push(format!("{name} has weights beside the adapter that are not merged: {}", weights.join(", ")));
    }
    notes
}

/// Whether two files have the same bytes.
fn same(one: &Path, other: &Path) -> bool {
    let length = |path: &Path| fs::metadata(path).ok().map(|meta| meta.len());
    length(one).is_some() && length(one) == length(other) && fs::read(one).ok() == fs::read(other).ok()
}
