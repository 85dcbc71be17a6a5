//! Converts texts to tokens and back, with the model's tokenizer.json.

use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use super::Sequence;
use crate::error::{Finding, IoContext, Result};
use crate::tokenizer::library;

/// A model's tokenizer.
pub struct TextEncoder {
    path: PathBuf,
    tokenizer: Tokenizer,
}

impl TextEncoder {
    /// Reads `tokenizer.json` of a model folder.
    ///
    /// # Errors
    /// [`crate::Error::Format`] where it is missing or malformed.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let json = std::fs::read(&path).at(&path, "read")?;
        Self::from_json(&path, &json)
    }

    /// Reads `json`, the content of a tokenizer.json. `path` is the file from which it was made.
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
        let ids = self.encode(text, true)?;
        if ids.is_empty() {
            return Err(Finding::new(&self.path, "prompt").expected("at least one token").found("none").mismatch());
        }
        Ok(Sequence { routed: ids.len(), ids, instruction: Vec::new() })
    }
}
