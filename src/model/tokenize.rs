//! Texts to tokens and back, by the model's own tokenizer.json.

use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use super::{InstructionEncoder, Sequence};
use crate::adapter::fill_template;
use crate::error::{Finding, Result};

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
        let mut tokenizer = Tokenizer::from_file(&path)
            .map_err(|e| Finding::new(&path, "").expected("a tokenizer in Hugging Face's format").found(e).format())?;
        // Some files carry a training set-up's padding and truncation: neither belongs to a text's tokens.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|e| Finding::new(&path, "truncation").expected("none").found(e).format())?;
        Ok(Self { path, tokenizer })
    }

    /// The tokenizer's file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tokens of `text`, with the tokenizer's special tokens around it where `special`.
    ///
    /// # Errors
    /// [`crate::Error::Format`] where the tokenizer refuses the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self
            .tokenizer
            .encode_fast(text, special)
            .map_err(|e| Finding::new(&self.path, "").expected("a text that can be encoded").found(e).format())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`, special tokens left out.
    ///
    /// # Errors
    /// [`crate::Error::Format`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer
            .decode(ids, true)
            .map_err(|e| Finding::new(&self.path, "").expected("ids that can be decoded").found(e).format())
    }

    /// What routes for an instruction and a prompt: `template` filled in and encoded with special
    /// tokens; the instruction alone as `encoder` wants it.
    ///
    /// # Errors
    /// [`crate::Error::Format`]; [`crate::Error::Mismatch`] where no token is left.
    pub fn routed(
        &self,
        template: &str,
        instruction: &str,
        prompt: &str,
        encoder: &InstructionEncoder,
    ) -> Result<Sequence> {
        let ids = self.encode(&fill_template(template, instruction, prompt), true)?;
        if ids.is_empty() {
            return Err(Finding::new(&self.path, "prompt").expected("at least one token").found("none").mismatch());
        }
        let instruction = encoder.tokens(self, instruction)?;
        Ok(Sequence { routed: ids.len(), ids, instruction })
    }
}
