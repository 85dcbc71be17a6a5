//! The ids of tokens by their text, for settings that name a token.

use super::auto::Auto;
use super::files::Files;
use super::sentencepiece::{self, Reading};
use super::tiktoken;
use crate::checkpoint::{Checkpoint, VocabularyForm, vocabulary_file};
use crate::error::Result;

/// The tokens of a folder, by text.
#[derive(Debug)]
pub(crate) struct Tokens {
    ids: std::collections::HashMap<String, usize>,
    /// How many there are without those that were added to the model's vocabulary.
    own: usize,
}

impl Tokens {
    /// Reads the tokens of a model: of tokenizer.json, or of the older files that a tokenizer.json is made of, or of a
    /// SentencePiece model. A folder without a tokenizer has none.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for malformed files, and what reading them meets.
    pub(crate) fn of(folder: &Checkpoint) -> Result<Self> {
        let files = Files::of(folder)?;
        if vocabulary_file(&files.folder).is_some_and(|(_, form)| form == VocabularyForm::Tokenizer) {
            let auto = Auto::load(&files)?;
            // A token of the model comes before an added one with the same text.
            let added = auto.added.iter().map(|(text, added)| (text.clone(), added.id));
            let vocab = auto.vocab.iter().map(|(text, id)| (text.clone(), *id));
            let own = auto.vocab.len();
            return Ok(Self { ids: added.chain(vocab).collect(), own });
        }
        let mut ids = std::collections::HashMap::new();
        if let Some(tokens) = sentencepiece::tokens(&files, Reading::Usual, &mut Vec::new())? {
            // Of equal texts the first one counts.
            let texts = tokens.texts.into_iter().enumerate().rev();
            ids.extend(texts.map(|(id, text)| (text, id)));
        } else if let Some(name) = tiktoken::file(&files)? {
            ids.extend(tiktoken::ids(&files, &name)?);
        }
        let own = ids.len();
        Ok(Self { ids, own })
    }

    /// Returns how many tokens there are without those that were added to the model's vocabulary.
    pub(crate) fn own(&self) -> usize {
        self.own
    }

    /// Returns the id of the token `text`.
    pub(crate) fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).and_then(|id| u32::try_from(*id).ok())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tokens(contents: &[(&str, &str)]) -> Tokens {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), r#"{"vocab_size": 300}"#).unwrap();
        for (name, content) in contents {
            fs::write(folder.path().join(name), content).unwrap();
        }
        Tokens::of(&Checkpoint::without_weights(folder.path()).unwrap()).unwrap()
    }

    #[test]
    fn tokens_are_found_in_the_files_that_there_are() {
        let json = r#"{"added_tokens": [{"id": 2, "content": "<|user|>", "special": true}],
            "model": {"type": "BPE", "vocab": {"yes": 0, "no": 1}, "merges": []}}"#;
        let of_json = tokens(&[("tokenizer.json", json)]);
        assert_eq!((of_json.id("no"), of_json.id("<|user|>"), of_json.id("maybe")), (Some(1), Some(2), None));
        let tiktoken = [
            ("qwen.tiktoken", "YQ== 0\nYg== 1\n"),
            ("tokenizer_config.json", r#"{"tokenizer_class": "QWenTokenizer"}"#),
        ];
        let of_tiktoken = tokens(&tiktoken);
        assert_eq!((of_tiktoken.id("b"), of_tiktoken.id("<|im_start|>")), (Some(1), Some(3)));
        assert_eq!(tokens(&[]).id("a"), None);
    }
}
