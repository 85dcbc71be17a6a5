//! How many rows of an embedding a tokenizer needs.

use std::path::Path;

use super::auto::Auto;
use super::files::{Files, Object};
use super::{kinds, mistral, tiktoken};
use crate::checkpoint::{VocabularyForm, vocabulary_file};
use crate::error::Result;
use crate::tokenizer::sentencepiece::SentencePieceModel;

/// Returns how many rows an embedding needs for the tokenizer in `folder`: one more than its largest id.
///
/// # Errors
/// The same as for [`super::to_gguf`].
pub(crate) fn rows_needed(folder: &Path) -> Result<usize> {
    let files = Files::open(folder, Object::new())?;
    let largest = match vocabulary_file(folder) {
        Some((name, VocabularyForm::SentencePiece)) => {
            let bytes = files.bytes(&name)?.unwrap_or_default();
            let pieces = SentencePieceModel::parse(&folder.join(&name), &bytes)?.pieces.len();
            let added = files.json("added_tokens.json")?.unwrap_or_default();
            let added = added.values().filter_map(super::files::id_of).map(|id| id.saturating_add(1)).max();
            return Ok(pieces.max(added.unwrap_or(0)));
        }
        Some((_, VocabularyForm::Tekken)) => return mistral::tekken_size(&files),
        Some((_, VocabularyForm::Plamo)) => return kinds::plamo_size(&files),
        Some((_, VocabularyForm::Rwkv)) => return kinds::rwkv_size(&files),
        Some((name, VocabularyForm::Tiktoken)) => {
            // The special tokens of a class may have ids beyond the embedding.
            let tokens = tiktoken::read(&files, &name)?;
            tokens.iter().filter_map(|(_, rank)| usize::try_from(*rank).ok()).max()
        }
        Some((_, VocabularyForm::Tokenizer)) | None => Auto::load(&files)?.ids().iter().map(|(_, id)| *id).max(),
    };
    Ok(largest.map_or(0, |id| id.saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_vocabulary_is_counted() {
        for (name, content, rows) in [
            ("tokenizer.json", r#"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 7}, "merges": []}}"#, 8),
            ("qwen.tiktoken", "YQ== 0\nYg== 1\nYWI= 2\n", 3),
            ("tokenizer.jsonl", "[\"a\", 0.0, \"NORMAL\"]\n[\"b\", 0.0, \"NORMAL\"]\n", 2),
            ("rwkv_vocab_v20230424.txt", "1 'a' 1\n2 'b' 1\n", 3),
            (
                "tekken.json",
                r#"{"config": {"pattern": "", "default_vocab_size": 9, "default_num_special_tokens": 2, "version": "v3"},
                    "vocab": []}"#,
                9,
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(name), content).unwrap();
            assert_eq!(rows_needed(folder.path()).unwrap(), rows, "{name}");
        }
    }
}
