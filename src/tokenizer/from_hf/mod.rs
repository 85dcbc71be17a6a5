//! Converts a tokenizer's files to the vocabulary of a GGUF: tokens with their scores, kinds and merges, special tokens
//! and the chat template.
//!
//! In llama.cpp's converter, each architecture writes the keys `tokenizer.*` in its own way. [`Vocab`] lists these
//! ways.
//!
//! Reference: llama.cpp `conversion/base.py` (`_set_vocab_*`), and `set_vocab` of
//! `conversion/llama.py`, `qwen.py`, `gemma.py`, `phi.py` and `bert.py`.

mod auto;
mod bpe;
mod classes;
mod faults;
mod files;
#[cfg(feature = "convert")]
mod hash;
mod kinds;
mod listing;
mod lookup;
mod mistral;
mod pre;
mod ranks;
mod rows;
mod sentencepiece;
mod special;
mod spm_json;
mod template;
mod tiktoken;
mod unigram;
mod vocabulary;
mod wordpiece;

use files::Files;
use sentencepiece::ScoredTokens;
use special::{SpecialTokens, USUAL};
use vocabulary::Token;

#[cfg(feature = "train")]
pub(crate) use classes::is_wrongly_named;
pub(crate) use kinds::Vocab;
pub(crate) use listing::{ListedToken, Listing};
pub(crate) use lookup::Tokens;
pub(crate) use rows::rows_needed;
#[cfg(feature = "train")]
pub(crate) use template::templates_by_name;
pub(crate) use template::{DEFAULT_TEMPLATE, chat_templates};

use super::record;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::formats::gguf::{Array, Metadata};
use crate::tokenizer::keys;

/// The user's choices for a vocabulary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VocabOptions {
    /// llama.cpp's name for the pre-tokenizer, instead of the detected one.
    pub(crate) pre: Option<String>,
    /// The number of tokens, instead of config.json's `vocab_size`. Kinds that pad it still do.
    pub(crate) vocab_size: Option<usize>,
    /// The model's settings with defaults filled in. Fields that they lack are those of config.json, and the ids of
    /// special tokens always are.
    pub(crate) settings: Option<files::Object>,
    /// config.json of the model whose tokenizer it is, if it is another model's: a draft model has its target's. It
    /// gives the ids of special tokens.
    pub(crate) target: Option<files::Object>,
}

/// Writes the keys `tokenizer.*` for the folder's tokenizer, in the reference's order. Decisions that the user should
/// know about are added to `notes`.
///
/// The number of tokens is `vocab_size` of config.json if the reference uses it.
///
/// # Errors
/// [`crate::Error::Mismatch`] if a file is missing or doesn't fit config.json; [`crate::Error::Unsupported`] for a
/// tokenizer that GGUF or this version can't represent; [`crate::Error::Format`] for malformed files.
pub(crate) fn to_gguf(
    metadata: &mut Metadata,
    folder: &Checkpoint,
    vocab: Vocab,
    options: &VocabOptions,
    notes: &mut Vec<String>,
) -> Result<()> {
    if vocab == Vocab::None {
        metadata.insert(keys::MODEL, "none");
        return Ok(());
    }
    let mut files = Files::of(folder)?;
    files.fit(vocab, options)?;
    write_completed(metadata, &files, vocab, options, notes)
}

/// Writes the keys of the files, completed by the record of an earlier conversion from GGUF.
fn write_completed(
    metadata: &mut Metadata,
    files: &Files,
    vocab: Vocab,
    options: &VocabOptions,
    notes: &mut Vec<String>,
) -> Result<()> {
    let mut derived = Metadata::new(metadata.file());
    write_files(&mut derived, files, vocab, options, notes)?;
    let asked_for_pre = options.pre.is_some();
    if let Some(pre) = &options.pre
        && derived.text(keys::PRE).is_ok_and(|used| used != pre)
    {
        notes.push(format!("pre-tokenizer {pre}: not used, a vocabulary of this kind has none to choose (`pre`)"));
    }
    let completed = record::complete(derived, files.config.as_ref(), &files.model_config, asked_for_pre);
    for (key, value) in completed.iter() {
        metadata.insert(key, value.clone());
    }
    Ok(())
}

fn write_files(
    metadata: &mut Metadata,
    files: &Files,
    vocab: Vocab,
    options: &VocabOptions,
    notes: &mut Vec<String>,
) -> Result<()> {
    VocabWriter { metadata, files, pre: options.pre.as_deref(), notes }.write(vocab)
}

/// Returns the keys for a folder that may have no weights.
///
/// # Errors
/// The same as for [`to_gguf`].
#[cfg(test)]
pub(crate) fn keys_of(folder: &std::path::Path, model_config: files::Object, vocab: Vocab) -> Result<Metadata> {
    let mut metadata = Metadata::new(folder);
    let (mut files, options) = (Files::open(folder, model_config)?, VocabOptions::default());
    files.fit(vocab, &options)?;
    write_completed(&mut metadata, &files, vocab, &options, &mut Vec::new())?;
    Ok(metadata)
}

/// Returns how many rows of its embedding Gemma 3 keeps: those with a token in its tokenizer.
///
/// # Errors
/// The same as for [`to_gguf`].
pub(crate) fn gemma3_rows(folder: &Checkpoint) -> Result<usize> {
    sentencepiece::gemma3_rows(&Files::of(folder)?)
}

/// A vocabulary being written.
struct VocabWriter<'a> {
    metadata: &'a mut Metadata,
    files: &'a Files,
    pre: Option<&'a str>,
    notes: &'a mut Vec<String>,
}

impl VocabWriter<'_> {
    /// Writes tokens without scores.
    fn tokens(&mut self, tokens: Vec<Token>) {
        let (texts, kinds): (Vec<String>, Vec<i32>) = tokens.into_iter().map(|t| (t.text, t.kind.number())).unzip();
        self.metadata.insert(keys::TOKENS, Array::texts(texts));
        self.metadata.insert(keys::TOKEN_TYPE, Array::I32(kinds));
    }

    /// Writes tokens with scores, for a model without a pre-tokenizer.
    fn scored(&mut self, model: &str, tokens: ScoredTokens) {
        self.metadata.insert(keys::MODEL, model);
        self.metadata.insert(keys::PRE, "default");
        self.scored_tokens(tokens);
    }

    fn scored_tokens(&mut self, tokens: ScoredTokens) {
        self.metadata.insert(keys::TOKENS, Array::texts(tokens.texts));
        self.metadata.insert(keys::SCORES, Array::F32(tokens.scores));
        let kinds = tokens.kinds.into_iter().map(|kind| kind.number()).collect();
        self.metadata.insert(keys::TOKEN_TYPE, Array::I32(kinds));
    }

    /// Writes the usual special tokens.
    fn specials(&mut self, n_vocab: Option<usize>) -> Result<()> {
        SpecialTokens::load(self.files, USUAL, n_vocab, self.notes)?.write(self.metadata);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
