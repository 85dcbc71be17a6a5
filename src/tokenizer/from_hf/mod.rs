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
mod files;
#[cfg(feature = "convert")]
mod hash;
mod kinds;
mod mistral;
mod pre;
mod ranks;
mod sentencepiece;
mod special;
mod spm_json;
mod template;
mod tiktoken;
mod unigram;
mod vocabulary;
mod wordpiece;

use std::path::Path;

use serde_json::json;

use auto::Auto;
use files::Files;
use sentencepiece::{Reading, ScoredTokens};
use special::{SpecialTokens, USUAL};
use vocabulary::Token;

pub(crate) use kinds::Vocab;

use super::record;
use super::sentencepiece::SentencePieceModel;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::formats::gguf::{Array, Metadata};
use crate::tokenizer::keys;

/// The user's choices for a vocabulary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VocabOptions {
    /// llama.cpp's name for the pre-tokenizer, instead of the detected one.
    pub(crate) pre: Option<String>,
    /// The number of tokens, instead of config.json's `vocab_size`.
    pub(crate) vocab_size: Option<usize>,
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
    files.size = options.vocab_size;
    if let Some(size) = files.size.filter(|size| !(1..=files::MAX_TOKENS).contains(size)) {
        let finding = files.finding_in("config.json", "the number of tokens");
        return Err(finding.expected(format_args!("a count from 1 to {}", files::MAX_TOKENS)).found(size).format());
    }
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
    let mut writer = VocabWriter { metadata, files, pre: options.pre.as_deref(), notes };
    match vocab {
        Vocab::Bpe => writer.bpe(),
        Vocab::Llama => writer.llama(),
        Vocab::Gemma => writer.gemma(),
        Vocab::Gemma2 => match writer.sentencepiece_or_json(Reading::Usual)? {
            true => writer.no_space_prefix(),
            false => Err(sentencepiece::missing(files)),
        },
        Vocab::Gemma3 => match writer.sentencepiece_or_json(Reading::Usual)? {
            true => writer.no_space_prefix(),
            false => writer.bpe(),
        },
        Vocab::SpmOrBpe => match writer.sentencepiece(Reading::Usual)? {
            true => Ok(()),
            false => writer.bpe(),
        },
        Vocab::Phi3 => writer.phi3(),
        Vocab::WordPiece => writer.word_piece(),
        Vocab::Roberta => writer.roberta(),
        Vocab::XlmRoberta => writer.xlm_roberta(),
        Vocab::None => Ok(()),
        other => Err(files
            .finding_in("", "vocabulary")
            .expected("a kind that is written already")
            .found(other)
            .unsupported()),
    }
}

/// Returns the keys for a folder that may have no weights.
///
/// # Errors
/// The same as for [`to_gguf`].
#[cfg(test)]
pub(crate) fn keys_of(folder: &Path, model_config: files::Object, vocab: Vocab) -> Result<Metadata> {
    let mut metadata = Metadata::new(folder);
    let files = Files::open(folder, model_config)?;
    write_completed(&mut metadata, &files, vocab, &VocabOptions::default(), &mut Vec::new())?;
    Ok(metadata)
}

/// Returns how many rows of its embedding Gemma 3 keeps: those with a token in its tokenizer.
///
/// # Errors
/// The same as for [`to_gguf`].
pub(crate) fn gemma3_rows(folder: &Checkpoint) -> Result<usize> {
    sentencepiece::gemma3_rows(&Files::of(folder)?)
}

/// Returns how many rows an embedding needs for the tokenizer in `folder`: one more than its largest id.
///
/// # Errors
/// The same as for [`to_gguf`].
pub(crate) fn rows_needed(folder: &Path) -> Result<usize> {
    let files = Files::open(folder, files::Object::new())?;
    if !["tokenizer.json", "vocab.json", "vocab.txt"].iter().any(|name| folder.join(name).is_file()) {
        for name in ["tokenizer.model", "spiece.model"] {
            if let Some(bytes) = files.bytes(name)? {
                return Ok(SentencePieceModel::parse(&folder.join(name), &bytes)?.pieces.len());
            }
        }
    }
    let largest = Auto::load(&files)?.ids().iter().map(|(_, id)| *id).max();
    Ok(largest.map_or(0, |id| id.saturating_add(1)))
}

/// A vocabulary being written.
struct VocabWriter<'a> {
    metadata: &'a mut Metadata,
    files: &'a Files,
    pre: Option<&'a str>,
    notes: &'a mut Vec<String>,
}

impl VocabWriter<'_> {
    /// Does the same as [`Self::sentencepiece`], but also accepts a tokenizer.json made from a SentencePiece model.
    fn sentencepiece_or_json(&mut self, reading: Reading) -> Result<bool> {
        match sentencepiece::of_model_or_json(self.files, reading, self.notes)? {
            Some(tokens) => self.llama_tokens(tokens).map(|()| true),
            None => Ok(false),
        }
    }

    /// Writes a SentencePiece vocabulary (`_set_vocab_sentencepiece`). Returns false if there is no tokenizer.model.
    fn sentencepiece(&mut self, reading: Reading) -> Result<bool> {
        match sentencepiece::tokens(self.files, reading, self.notes)? {
            Some(tokens) => self.llama_tokens(tokens).map(|()| true),
            None => Ok(false),
        }
    }

    /// Writes tokens of the kind that GGUF calls "llama", and the special tokens.
    fn llama_tokens(&mut self, tokens: ScoredTokens) -> Result<()> {
        let count = tokens.texts.len();
        self.scored("llama", tokens);
        self.specials(Some(count))
    }

    fn llama(&mut self) -> Result<()> {
        let files = self.files;
        let has_no_other = || files.tokenizer.is_none() && !files.folder.join("tokenizer.model").is_file();
        if (files.is_mistral_format || has_no_other())
            && let Some(name) = mistral::file(files)?
        {
            return self.mistral(&name);
        }
        if files.setting("tokenizer_class") == Some(&json!("HybridDNATokenizer")) {
            return Err(unreadable(files, "tokenizer_config.json", "a HybridDNATokenizer"));
        }
        if let Some(prefix) = files.setting("add_prefix_space").and_then(serde_json::Value::as_bool) {
            self.metadata.insert(keys::ADD_SPACE_PREFIX, prefix);
        }
        if !self.sentencepiece(Reading::Usual)? {
            match sentencepiece::llama_hf(files, self.notes)? {
                Some(tokens) => self.llama_tokens(tokens)?,
                None => self.bpe()?,
            }
        }
        match files.vocab_size()? {
            // Code Llama's tokens for code completion. The reference has no keys for the first three.
            Some(32016) => {
                let ids = [("prefix", 32007), ("suffix", 32008), ("middle", 32009), ("eot", 32010)];
                self.infill(&ids, true)
            }
            // The small Granite models.
            Some(49152) => {
                self.metadata.insert(keys::ADD_BOS, false);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn gemma(&mut self) -> Result<()> {
        if !self.sentencepiece_or_json(Reading::Usual)? {
            return Err(sentencepiece::missing(self.files));
        }
        self.infill(&[("prefix", 67), ("suffix", 69), ("middle", 68), ("fsep", 70), ("eot", 107)], false)?;
        self.no_space_prefix()
    }

    /// Writes the special tokens for code completion, with these ids unless a file gives others.
    fn infill(&mut self, ids: &[(&'static str, u32)], with_template: bool) -> Result<()> {
        let kinds: Vec<&'static str> = ids.iter().map(|(kind, _)| *kind).collect();
        // The lookup of the usual kinds has already added the same notes.
        let said = &mut Vec::new();
        let mut specials = SpecialTokens::load(self.files, &kinds, None, said)?;
        for (kind, id) in ids {
            specials.set(self.files, kind, &json!(id), said)?;
        }
        if !with_template {
            specials.template = None;
        }
        specials.write(self.metadata);
        Ok(())
    }

    fn no_space_prefix(&mut self) -> Result<()> {
        self.metadata.insert(keys::ADD_SPACE_PREFIX, false);
        Ok(())
    }

    fn phi3(&mut self) -> Result<()> {
        // Phi-4 has this class.
        if self.files.setting("tokenizer_class") == Some(&json!("GPT2Tokenizer")) {
            return self.bpe();
        }
        match self.sentencepiece_or_json(Reading::Phi3)? {
            true => Ok(()),
            false => Err(sentencepiece::missing(self.files)),
        }
    }

    fn roberta(&mut self) -> Result<()> {
        let files = self.files;
        if files.tokenizer.is_none() {
            // The reference treats such a folder like BERT's.
            if files.folder.join("vocab.txt").is_file() {
                return self.word_piece();
            }
            return Err(files
                .finding_in("", "tokenizer")
                .expected("tokenizer.json")
                .found("no such file")
                .hint("load the tokenizer with transformers and save it with save_pretrained")
                .mismatch());
        }
        self.bpe()?;
        self.metadata.insert(keys::TOKEN_TYPE_COUNT, files.type_vocab_size()?);
        Ok(())
    }

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

fn unreadable(files: &Files, name: &str, found: &str) -> crate::Error {
    files
        .finding_in(name, "tokenizer")
        .expected("tokenizer.model or tokenizer.json")
        .found(format_args!("{found}, which this version can't convert"))
        .hint("convert this model with llama.cpp's convert_hf_to_gguf.py")
        .unsupported()
}

#[cfg(test)]
mod tests;
