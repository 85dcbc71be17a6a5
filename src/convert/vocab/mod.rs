//! The vocabulary: tokens, their types and merges, special tokens and the chat template.
//!
//! Byte-level BPE from `tokenizer.json`. SentencePiece models are not converted yet.
//!
//! Reference: llama.cpp `conversion/base.py` (`get_vocab_base`, `_set_vocab_gpt2`),
//! `conversion/llama.py` (`set_vocab`), `gguf-py/gguf/vocab.py` (`SpecialVocab`).

mod bpe;
mod pre;
mod special;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::arch::Dim;
use super::params::Params;
use crate::checkpoint::{Checkpoint, read_json_object};
use crate::error::{Finding, Result};
use crate::formats::gguf::{Array, Metadata};

type Object = Map<String, Json>;

/// How the files of a tokenizer become a vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vocab {
    Bpe,
    Llama,
    Gemma,
    Gemma2,
    Gemma3,
    SpmOrBpe,
    Phi3,
    WordPiece,
    Roberta,
    XlmRoberta,
}

/// The number of tokens that the tokenizer has.
pub(super) fn token_count(_folder: &Path) -> Result<usize> {
    Ok(usize::MAX)
}

/// The tokenizer's files, as JSON.
struct Files {
    folder: PathBuf,
    /// tokenizer.json
    tokenizer: Object,
    /// tokenizer_config.json, where it is there and not empty.
    config: Option<Object>,
}

impl Files {
    fn open(folder: &Path) -> Result<Self> {
        let sentencepiece = folder.join("tokenizer.model");
        if sentencepiece.is_file() {
            return Err(Finding::new(sentencepiece, "tokenizer")
                .expected("byte-level BPE in tokenizer.json")
                .found("a SentencePiece model, which this version can't convert yet")
                .hint("convert this model with llama.cpp's convert_hf_to_gguf.py")
                .unsupported());
        }
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            return Err(Finding::new(folder, "tokenizer")
                .expected("tokenizer.json")
                .found("no such file")
                .hint("save the tokenizer with save_pretrained of transformers, or convert without a vocabulary")
                .mismatch());
        }
        let tokenizer = read_json_object(&path)?;
        let path = folder.join("tokenizer_config.json");
        let config = if path.is_file() { Some(read_json_object(&path)?) } else { None };
        Ok(Self { folder: folder.to_owned(), tokenizer, config: config.filter(|fields| !fields.is_empty()) })
    }

    /// A finding about `subject` in tokenizer.json.
    fn finding(&self, subject: impl Into<String>) -> Finding {
        Finding::new(self.folder.join("tokenizer.json"), subject)
    }

    /// The object `name` of tokenizer.json.
    fn object(&self, name: &str) -> Result<&Object> {
        match self.tokenizer.get(name) {
            Some(Json::Object(object)) => Ok(object),
            other => {
                let found = other.map_or("none".to_owned(), Json::to_string);
                Err(self.finding(name).expected("an object").found(shortened(&found)).format())
            }
        }
    }
}

/// Text for a message, cut where it is long.
fn shortened(text: &str) -> String {
    const SHOWN_CHARS: usize = 200;
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Writes the keys `tokenizer.*`. `pre` overrides the pre-tokenizer's name.
pub(super) fn write(metadata: &mut Metadata, folder: &Checkpoint, params: &Params, pre: Option<&str>) -> Result<()> {
    let files = Files::open(folder.path())?;
    let is_llama = params.arch.vocab == Vocab::Llama;
    let vocab_size = params.count(Dim::Vocab)?;
    if is_llama && let Some(Json::Bool(prefix)) = files.config.as_ref().and_then(|c| c.get("add_prefix_space")) {
        metadata.insert("tokenizer.ggml.add_space_prefix", *prefix);
    }
    let tokens = bpe::tokens(&files, vocab_size)?;
    let pre = match pre {
        Some(name) => name.to_owned(),
        None => pre::detect(&files)?.to_owned(),
    };
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", pre);
    let (texts, kinds): (Vec<String>, Vec<i32>) = tokens.into_iter().map(|t| (t.text, t.kind as i32)).unzip();
    metadata.insert("tokenizer.ggml.tokens", Array::texts(texts));
    metadata.insert("tokenizer.ggml.token_type", Array::I32(kinds));
    metadata.insert("tokenizer.ggml.merges", Array::texts(bpe::merges(&files)?));
    special::write(metadata, &files, &folder.config_json)?;
    if is_llama {
        llama_families(metadata, vocab_size);
    }
    Ok(())
}

/// What the reference knows of two families by the size of their vocabulary alone.
fn llama_families(metadata: &mut Metadata, vocab_size: usize) {
    match vocab_size {
        // Code Llama's infill tokens.
        32016 => {
            for (key, id) in [("prefix", 32007u32), ("suffix", 32008), ("middle", 32009), ("eot", 32010)] {
                metadata.insert(format!("tokenizer.ggml.{key}_token_id"), id);
            }
        }
        // Granite's small models.
        49152 => {
            metadata.insert("tokenizer.ggml.add_bos_token", false);
        }
        _ => {}
    }
}
