//! Converts texts to tokens and back, with the model's tokenizer.json or one that is made of its other files.

use std::ops::Range;
use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use super::Sequence;
use crate::arch::wrapper;
use crate::checkpoint::{Checkpoint, is_model};
use crate::error::{Finding, IoContext, Result};
use crate::formats::gguf::Metadata;
use crate::tokenizer::{self, Vocab, VocabOptions, library};

/// A model's tokenizer.
pub struct TextEncoder {
    path: PathBuf,
    tokenizer: Tokenizer,
}

impl TextEncoder {
    /// Reads `tokenizer.json` of a model folder. Where there is none, one is made of the tokenizer's other files, as a
    /// conversion to GGUF and back makes it: of tekken.json, of SentencePiece's model.
    ///
    /// # Errors
    /// [`crate::Error::Format`] where it is malformed, and what reading the other files meets.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() && is_model(folder) {
            return Self::of_other_files(folder);
        }
        let json = std::fs::read(&path).at(&path, "read")?;
        Self::from_json(&path, &tokenizer::as_in_transformers(folder, json, false)?)
    }

    fn of_other_files(folder: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::without_weights(folder)?;
        let (mut metadata, notes) = (Metadata::new(folder), &mut Vec::new());
        let vocab = wrapper::family(&checkpoint.config_json).map_or(Vocab::Bpe, |family| family.vocab);
        tokenizer::to_gguf(&mut metadata, &checkpoint, vocab, &VocabOptions::default(), notes)?;
        let files = tokenizer::to_hf(&metadata, notes)?;
        match files.iter().find(|(name, _)| name == "tokenizer.json") {
            Some((_, json)) => Self::from_json(folder, &tokenizer::as_in_transformers(folder, json.clone(), true)?),
            None => Err(Finding::new(folder, "tokenizer")
                .expected("one that a tokenizer.json can be made of")
                .found("none")
                .mismatch()),
        }
    }

    /// Reads `json`, the content of a tokenizer.json that was made of `path`.
    ///
    /// # Errors
    /// [`crate::Error::Format`] where it is malformed.
    pub fn from_json(path: &Path, json: &[u8]) -> Result<Self> {
        let mut tokenizer = library::load(json).map_err(|e| {
            Finding::new(path, "")
                .expected("a tokenizer in Hugging Face's format")
                .found(crate::json::plain(&e))
                .format()
        })?;
        // Some files contain padding and truncation from training, which must not affect a text's
        // tokens.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|e| Finding::new(path, "truncation").expected("none").found(e).format())?;
        Ok(Self { path: path.to_owned(), tokenizer })
    }

    /// The tokenizer's file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tokens of `text`; with `special`, including the tokenizer's special tokens around it.
    ///
    /// # Errors
    /// [`crate::Error::Format`] where the tokenizer refuses the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = library::guarded(|| self.tokenizer.encode_fast(text, special))
            .map_err(|e| Finding::new(&self.path, "").expected("a text that can be encoded").found(e).format())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of `text` without special tokens around it, and for each the range of bytes of `text` that it stands
    /// for. A character of several tokens is in the range of each.
    ///
    /// # Errors
    /// As [`TextEncoder::encode`].
    pub fn encode_with_ranges(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let encoding = library::guarded(|| self.tokenizer.encode(text, false))
            .map_err(|e| Finding::new(&self.path, "").expected("a text that can be encoded").found(e).format())?;
        let ranges = encoding.get_offsets().iter().map(|(start, end)| *start..*end).collect();
        Ok((encoding.get_ids().to_vec(), ranges))
    }

    /// The tokens of a text that nothing was put around: with the tokenizer's special tokens. Where the text begins with
    /// the text of the first of them, it doesn't get that one a second time.
    ///
    /// # Errors
    /// As [`TextEncoder::encode`].
    pub fn encode_whole(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, true)?;
        if let [first, second, ..] = ids[..]
            && first == second
            && self.first_special()? == Some(first)
        {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// The texts of special tokens, such as `<|im_end|>`.
    pub fn special_texts(&self) -> Vec<String> {
        let added = self.tokenizer.get_added_tokens_decoder();
        let mut texts: Vec<String> =
            added.into_values().filter(|token| token.special).map(|token| token.content).collect();
        texts.sort();
        texts
    }

    /// The text of one token, special ones included.
    ///
    /// # Errors
    /// [`crate::Error::Format`].
    pub fn token_text(&self, id: u32) -> Result<String> {
        library::guarded(|| self.tokenizer.decode(&[id], false))
            .map_err(|e| Finding::new(&self.path, "").expected("an id that can be decoded").found(e).format())
    }

    /// Treats special tokens that are spelled out in a text as text.
    #[must_use]
    pub fn with_special_as_text(mut self) -> Self {
        self.tokenizer.set_encode_special_tokens(true);
        self
    }

    /// The special token that the tokenizer puts before every text, such as BOS, if it does.
    ///
    /// # Errors
    /// As [`TextEncoder::encode`].
    pub fn first_special(&self) -> Result<Option<u32>> {
        // An empty text wouldn't show whether the special token comes before or after a text.
        let (bare, whole) = (self.encode("a", false)?, self.encode("a", true)?);
        let before = whole.len() > bare.len() && !bare.is_empty() && whole[1..].starts_with(&bare);
        Ok(whole.first().copied().filter(|_| before))
    }

    /// The text of `ids`, without special tokens.
    ///
    /// # Errors
    /// [`crate::Error::Format`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        library::guarded(|| self.tokenizer.decode(ids, true))
            .map_err(|e| Finding::new(&self.path, "").expected("ids that can be decoded").found(e).format())
    }

    /// The tokens of `text`, including special tokens, as a prompt: a sequence without a
    /// completion.
    ///
    /// # Errors
    /// [`crate::Error::Format`]; [`crate::Error::Mismatch`] where there is no token.
    pub fn sequence(&self, text: &str) -> Result<Sequence> {
        let ids = self.encode_whole(text)?;
        if ids.is_empty() {
            return Err(Finding::new(&self.path, "prompt").expected("at least one token").found("none").mismatch());
        }
        Ok(Sequence { routed: ids.len(), ids, ..Sequence::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What mistral_common makes of the same file.
    #[test]
    fn a_folder_with_tekken_alone_has_mistrals_tokens() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/mistral/tekken/model");
        let encoder = TextEncoder::open(&folder).unwrap();
        let text = "def main(self):\n    return 'caf\u{e9}' + 12";
        let expected = [
            286, 123, 53, 130, 118, 282, 61, 284, 129, 123, 62, 79, 31, 279, 325, 137, 138, 135, 131, 304, 120, 118,
            123, 216, 190, 60, 53, 64, 53, 70, 71,
        ];
        assert_eq!(encoder.encode(text, false).unwrap(), expected);
        assert_eq!(encoder.encode(text, true).unwrap()[..2], [1, 286]);
        assert_eq!(encoder.decode(&expected).unwrap(), text);
    }

    /// What transformers' LlamaTokenizer makes of the same file, with `legacy` and without.
    #[test]
    fn a_space_is_put_before_texts_as_transformers_does() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/convert");
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "tokenizer.model", "tokenizer_config.json"] {
            std::fs::copy(fixtures.join("phi3/model").join(file), folder.path().join(file)).unwrap();
        }
        let config = folder.path().join("tokenizer_config.json");
        let legacy = std::fs::read_to_string(&config).unwrap();
        let check = |folder: &Path, behind: u32| {
            let encoder = TextEncoder::open(folder).unwrap();
            for (text, expected) in [
                ("in", &[1, 295][..]),
                (" in", &[1, 295]),
                ("in</s> in", &[1, 295, 2, 295]),
                ("in</s>in\n", &[1, 295, 2, behind, 14]),
                ("  in</s>  in", &[1, 430, 295, 2, 430, 295]),
            ] {
                assert_eq!(encoder.encode(text, true).unwrap(), expected, "{text:?}");
            }
        };
        check(folder.path(), 295);
        std::fs::write(&config, legacy.replace("true\n}", "false\n}")).unwrap();
        check(folder.path(), 261);
        // The old form of tokenizer.json of the same vocabulary. A folder that names no class keeps what the file says.
        std::fs::write(folder.path().join("config.json"), "{\"model_type\": \"llama\"}").unwrap();
        let json = fixtures.join("llama-spm-json/model");
        std::fs::copy(json.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
        let spaces = |folder: &Path| TextEncoder::open(folder).unwrap().encode(" in", false).unwrap().len();
        assert_eq!(spaces(&json), 1 + spaces(folder.path()));
    }
}
