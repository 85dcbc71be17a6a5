//! Unigram vocabularies of T5 and Pocket TTS, from a SentencePiece model.
//!
//! Reference: llama.cpp `set_vocab` of `conversion/t5.py` and `pockettts.py`.

use serde_json::Value as Json;

use crate::error::Result;
use crate::formats::gguf::Array;
use crate::tokenizer::from_hf::VocabWriter;
use crate::tokenizer::from_hf::files::Files;
use crate::tokenizer::from_hf::sentencepiece::{self, AddedTokens, Reading, ScoredTokens};
use crate::tokenizer::keys;
use crate::tokenizer::sentencepiece::{self as models, SentencePieceModel};
use crate::tokenizer::token::{ADDED_SCORE, TokenKind};

/// The names of the model's file. Older models have the second one.
const NAMES: [&str; 2] = ["tokenizer.model", "spiece.model"];

impl VocabWriter<'_> {
    /// Unigram of a SentencePiece model, or BPE, as Pile-T5 has it: T5.
    pub(in crate::tokenizer::from_hf) fn t5(&mut self) -> Result<()> {
        let files = self.files;
        let Some((name, model)) = model(files)? else { return Err(missing(files)) };
        match model.model_type {
            models::UNIGRAM => {}
            models::BPE if name == "tokenizer.model" => return self.spm(Reading::Usual),
            other => return Err(not_unigram(files, name, other)),
        }
        let size = files.vocab_size()?.unwrap_or(model.pieces.len());
        if model.pieces.len() > size {
            return Err(sentencepiece::past_the_end(files, name, "pieces", model.pieces.len(), size));
        }
        let mut added = AddedTokens::over(files, Reading::Usual, ScoredTokens::unused(size));
        added.tokens.set_pieces(&model);
        added.read_added_tokens()?;
        added.report(self.notes);
        self.unigram_tokens(added.tokens, &model);
        self.specials(Some(size))
    }

    /// Unigram with tokens for rows of the embedding that are no text: Pocket TTS.
    pub(in crate::tokenizer::from_hf) fn pocket_tts(&mut self) -> Result<()> {
        let files = self.files;
        let Some((name, model)) = model(files)? else { return Err(missing(files)) };
        if model.model_type != models::UNIGRAM {
            return Err(not_unigram(files, name, model.model_type));
        }
        let Some(mut tokens) = sentencepiece::tokens(files, Reading::Usual, self.notes)? else {
            return Err(missing(files));
        };
        // The embedding's last rows are the padding row and one or two learned ones.
        let mut names = vec!["<|pad|>", "<|audio_bos|>"];
        if files.hparam("insert_bos_before_voice").and_then(Json::as_bool) == Some(true) {
            names.insert(1, "<|bos_before_voice|>");
        }
        let first = tokens.texts.len().saturating_sub(names.len());
        for (id, name) in (first..).zip(names) {
            tokens.set(id, name, ADDED_SCORE, TokenKind::Control);
        }
        self.unigram_tokens(tokens, &model);
        self.metadata.insert(keys::ADD_BOS, false);
        self.metadata.insert(keys::ADD_EOS, false);
        Ok(())
    }

    /// Writes the tokens of a Unigram model and how it normalizes text.
    fn unigram_tokens(&mut self, tokens: ScoredTokens, model: &SentencePieceModel) {
        self.scored("t5", tokens);
        self.metadata.insert(keys::ADD_SPACE_PREFIX, model.add_dummy_prefix);
        self.metadata.insert(keys::REMOVE_EXTRA_WHITESPACES, model.remove_extra_whitespaces);
        if !model.precompiled_charsmap.is_empty() {
            self.metadata.insert(keys::PRECOMPILED_CHARSMAP, Array::U8(model.precompiled_charsmap.clone()));
        }
    }
}

/// Returns the model in the first file of [`NAMES`] that exists, with the file's name.
fn model(files: &Files) -> Result<Option<(&'static str, SentencePieceModel)>> {
    for name in NAMES {
        if let Some(bytes) = files.bytes(name)? {
            return Ok(Some((name, SentencePieceModel::parse(&files.folder.join(name), &bytes)?)));
        }
    }
    Ok(None)
}

fn missing(files: &Files) -> crate::Error {
    files
        .finding_in("", "tokenizer")
        .expected("tokenizer.model or spiece.model")
        .found("neither")
        .hint("copy the file from the original model")
        .mismatch()
}

fn not_unigram(files: &Files, name: &str, found: u64) -> crate::Error {
    files.finding_in(name, "model_type").expected("1, Unigram").found(found).unsupported()
}
