//! Vocabularies of llama.cpp itself, for models that are published without a tokenizer: Mamba, OpenELM.
//!
//! The data are llama.cpp's `models/ggml-vocab-*.gguf`, packed, under the MIT licence
//! (`src/tokenizer/templates/LICENSE.llama.cpp`).
//!
//! Reference: llama.cpp `conversion/base.py` (`_set_vocab_builtin`), `set_vocab` of `conversion/mamba.py` and
//! `openelm.py`.

use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

use crate::error::{IoContext, Result};
use crate::formats::gguf::{self, Array, Metadata, Value};
use crate::tokenizer::from_hf::VocabWriter;
use crate::tokenizer::from_hf::sentencepiece::Reading;
use crate::tokenizer::from_hf::special::id_key;
use crate::tokenizer::keys;

/// A vocabulary of llama.cpp.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Builtin {
    GptNeoX,
    LlamaSpm,
}

/// The most bytes that such a vocabulary has.
const MAX_BYTES: u64 = 4 << 20;

impl Builtin {
    fn name(self) -> &'static str {
        match self {
            Self::GptNeoX => "ggml-vocab-gpt-neox.gguf",
            Self::LlamaSpm => "ggml-vocab-llama-spm.gguf",
        }
    }

    fn metadata(self) -> Result<Metadata> {
        let packed: &[u8] = match self {
            Self::GptNeoX => include_bytes!("builtin/gpt-neox.gguf.gz"),
            Self::LlamaSpm => include_bytes!("builtin/llama-spm.gguf.gz"),
        };
        let (name, mut bytes) = (Path::new(self.name()), Vec::new());
        GzDecoder::new(packed).take(MAX_BYTES).read_to_end(&mut bytes).at(name, "unpack")?;
        gguf::metadata_of(name, &bytes)
    }
}

impl VocabWriter<'_> {
    /// BPE, else SentencePiece, else GPT-NeoX's vocabulary: Mamba.
    pub(in crate::tokenizer::from_hf) fn mamba(&mut self) -> Result<()> {
        match self.has_bpe() || !self.sentencepiece(Reading::Usual)? {
            true => self.bpe_or_builtin(),
            false => Ok(()),
        }
    }

    /// SentencePiece, else BPE, else GPT-NeoX's vocabulary: Mamba 2.
    pub(in crate::tokenizer::from_hf) fn mamba2(&mut self) -> Result<()> {
        if self.sentencepiece(Reading::Usual)? {
            return Ok(());
        }
        // Mamba-Codestral has this name. The reference asks for the other one, too.
        const VERSIONED: &str = "tokenizer.model.v3";
        if self.files.folder.join(VERSIONED).is_file() {
            let finding = self.files.finding_in("", "tokenizer").expected("tokenizer.model").found(VERSIONED);
            return Err(finding.hint("rename it to tokenizer.model").mismatch());
        }
        self.bpe_or_builtin()
    }

    /// SentencePiece, else Llama 2's vocabulary: OpenELM.
    pub(in crate::tokenizer::from_hf) fn openelm(&mut self) -> Result<()> {
        match self.sentencepiece(Reading::Usual)? {
            true => Ok(()),
            false => self.builtin(Builtin::LlamaSpm),
        }
    }

    /// Returns whether the folder has files of BPE. One that was made of a GGUF has a tokenizer.json of SentencePiece.
    pub(in crate::tokenizer::from_hf) fn has_bpe(&self) -> bool {
        let has = self.files.tokenizer.is_some() || self.files.folder.join("vocab.json").is_file();
        has && self.files.recorded_model() != Some("llama")
    }

    fn bpe_or_builtin(&mut self) -> Result<()> {
        match self.has_bpe() {
            true => self.bpe(),
            false => self.builtin(Builtin::GptNeoX),
        }
    }

    /// Writes as many tokens of the vocabulary as the model has. A vocabulary with fewer is not filled up.
    fn builtin(&mut self, builtin: Builtin) -> Result<()> {
        let metadata = builtin.metadata()?;
        let size = self.files.vocab_size()?.unwrap_or(usize::MAX);
        let name = builtin.name();
        self.notes.push(format!("no tokenizer in the folder: llama.cpp's {name} is written, as its converter does"));
        let default_pre = if builtin == Builtin::GptNeoX { "mpt" } else { "default" };
        let ids = ["bos", "eos", "unk", "pad"].into_iter().filter_map(id_key);
        let texts = [keys::MODEL, keys::PRE, keys::TOKENS, keys::SCORES, keys::TOKEN_TYPE, keys::MERGES];
        for key in texts.into_iter().chain(ids).chain([keys::ADD_BOS, keys::ADD_EOS]) {
            match metadata.get(key) {
                Some(Value::Array(array)) if key != keys::MERGES => {
                    self.metadata.insert(key, shortened(array, size));
                }
                Some(value) => {
                    self.metadata.insert(key, value.clone());
                }
                None if key == keys::PRE => {
                    self.metadata.insert(key, self.pre.unwrap_or(default_pre));
                }
                None => {}
            }
        }
        Ok(())
    }
}

/// Returns the first `size` elements of an array.
fn shortened(array: &Array, size: usize) -> Array {
    let mut array = array.clone();
    match &mut array {
        Array::String(texts) => texts.truncate(size),
        Array::F32(numbers) => numbers.truncate(size),
        Array::I32(numbers) => numbers.truncate(size),
        _ => {}
    }
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vocabularies_are_whole() {
        let neox = Builtin::GptNeoX.metadata().unwrap();
        assert_eq!(neox.strings(keys::TOKENS).unwrap().len(), 50432);
        assert_eq!(neox.strings(keys::MERGES).unwrap().len(), 50009);
        let llama = Builtin::LlamaSpm.metadata().unwrap();
        assert_eq!(llama.strings(keys::TOKENS).unwrap().len(), 32000);
        assert_eq!(llama.array(keys::SCORES).unwrap().len(), 32000);
    }
}
