//! Vocabularies of SentencePiece: tokens with scores, from a model file or from a tokenizer.json that
//! was made of one.
//!
//! Reference: llama.cpp `conversion/base.py` (`_create_vocab_sentencepiece`, `_set_vocab_llama_hf`),
//! `conversion/phi.py` (`Phi3MiniModel.set_vocab`), `gguf-py/gguf/vocab.py` (`LlamaHfVocab`).

use serde_json::Value as Json;

use super::auto::Auto;
use super::files::{Files, id_of, shortened};
use super::spm_json;
use crate::error::{Finding, Result};
use crate::tokenizer::sentencepiece::{Piece, SentencePieceModel};
use crate::tokenizer::token::{ADDED_SCORE, TokenKind, UNUSED_SCORE, is_byte, looks_special, placeholder};

/// Tokens by id, with scores and kinds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ScoredTokens {
    pub(super) texts: Vec<String>,
    pub(super) scores: Vec<f32>,
    pub(super) kinds: Vec<TokenKind>,
}

impl ScoredTokens {
    /// `count` placeholders.
    pub(super) fn unused(count: usize) -> Self {
        Self {
            texts: (0..count).map(placeholder).collect(),
            scores: vec![UNUSED_SCORE; count],
            kinds: vec![TokenKind::Unused; count],
        }
    }

    pub(super) fn push(&mut self, text: &str, score: f32, kind: TokenKind) {
        self.texts.push(text.to_owned());
        self.scores.push(score);
        self.kinds.push(kind);
    }

    /// Sets the token of `id`; false where there is no such id.
    pub(super) fn set(&mut self, id: usize, text: &str, score: f32, kind: TokenKind) -> bool {
        let (Some(old_text), Some(old_score), Some(old_kind)) =
            (self.texts.get_mut(id), self.scores.get_mut(id), self.kinds.get_mut(id))
        else {
            return false;
        };
        (*old_text, *old_score, *old_kind) = (text.to_owned(), score, kind);
        true
    }

    /// Sets the tokens of the first ids to the pieces of a model.
    pub(super) fn set_pieces(&mut self, model: &SentencePieceModel) {
        for (id, piece) in model.pieces.iter().enumerate().take(self.texts.len()) {
            self.set(id, &piece.text, piece.score, kind_of(piece));
        }
    }
}

/// Returns the kind that a piece of a model has in GGUF. The reference has no kind for pieces that were added by hand.
pub(super) fn kind_of(piece: &Piece) -> TokenKind {
    match piece.kind {
        TokenKind::Undefined | TokenKind::UserDefined => TokenKind::Normal,
        kind => kind,
    }
}

/// How added tokens are read; the reference has two ways.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// Most models: tokens that look special become control tokens, U+2581 of the others a space.
    Usual,
    /// Phi-3: the flag decides, and the added tokens of tokenizer.json are read too.
    Phi3,
}

/// The tokens of tokenizer.model and the added tokens of other files; `None` without tokenizer.model.
pub(super) fn tokens(files: &Files, reading: Reading, notes: &mut Vec<String>) -> Result<Option<ScoredTokens>> {
    const NAME: &str = "tokenizer.model";
    let Some(bytes) = files.bytes(NAME)? else { return Ok(None) };
    let model = SentencePieceModel::parse(&files.folder.join(NAME), &bytes)?;
    let size = files.vocab_size()?.unwrap_or(model.pieces.len());
    if model.pieces.len() > size {
        if reading == Reading::Phi3 {
            return Err(past_the_end(files, NAME, "pieces", model.pieces.len(), size));
        }
        notes.push(format!("{NAME}: the tokens from {size} on are left out, vocab_size of config.json is {size}"));
    }
    let mut added = AddedTokens::over(files, reading, ScoredTokens::unused(size));
    added.tokens.set_pieces(&model);
    added.read_added_tokens()?;
    added.read_config()?;
    if reading == Reading::Phi3 {
        added.read_tokenizer()?;
    }
    added.report(notes);
    Ok(Some(added.tokens))
}

/// The tokens of tokenizer.model; without it those of a tokenizer.json that was made of one; `None` for other
/// tokenizers.
pub(super) fn of_model_or_json(
    files: &Files,
    reading: Reading,
    notes: &mut Vec<String>,
) -> Result<Option<ScoredTokens>> {
    match tokens(files, reading, notes)? {
        Some(tokens) => Ok(Some(tokens)),
        None => spm_json::tokens(files, reading, notes),
    }
}

pub(super) fn past_the_end(
    files: &Files,
    name: &str,
    subject: &str,
    found: impl std::fmt::Display,
    size: usize,
) -> crate::Error {
    files
        .finding_in(name, subject)
        .expected(format_args!("at most vocab_size {size} of config.json"))
        .found(found)
        .hint("the tokenizer may be of another model")
        .mismatch()
}

/// The tokens while added tokens replace some of the pieces.
pub(super) struct AddedTokens<'a> {
    files: &'a Files,
    reading: Reading,
    pub(super) tokens: ScoredTokens,
    /// Ids whose token was replaced by another text, for a note.
    replaced: Vec<String>,
    /// Tokens past the end, for a note.
    left_out: Vec<String>,
}

impl<'a> AddedTokens<'a> {
    pub(super) fn over(files: &'a Files, reading: Reading, tokens: ScoredTokens) -> Self {
        Self { files, reading, tokens, replaced: Vec::new(), left_out: Vec::new() }
    }

    /// Reads added_tokens.json: ids by text.
    pub(super) fn read_added_tokens(&mut self) -> Result<()> {
        const NAME: &str = "added_tokens.json";
        for (text, id) in self.files.json(NAME)?.unwrap_or_default() {
            let number = id_of(&id).ok_or_else(|| {
                self.files
                    .finding_in(NAME, format!("token {text:?}"))
                    .expected("an id")
                    .found(shortened(&id.to_string()))
                    .format()
            })?;
            if !self.tokens.set(number, &text, ADDED_SCORE, TokenKind::UserDefined) {
                self.left_out.push(format!("{text:?} ({number})"));
            }
        }
        Ok(())
    }

    /// Reads `added_tokens_decoder` of tokenizer_config.json: tokens by id.
    pub(super) fn read_config(&mut self) -> Result<()> {
        const NAME: &str = "tokenizer_config.json";
        let Some(Json::Object(decoder)) = self.files.setting("added_tokens_decoder") else { return Ok(()) };
        for (id, token) in decoder {
            self.place(NAME, "added_tokens_decoder", id.parse().ok(), token)?;
        }
        Ok(())
    }

    /// Reads `added_tokens` of tokenizer.json.
    pub(super) fn read_tokenizer(&mut self) -> Result<()> {
        let listed = self.files.tokenizer.as_ref().and_then(|json| json.get("added_tokens")).and_then(Json::as_array);
        for token in listed.into_iter().flatten() {
            self.place("tokenizer.json", "added_tokens", token.get("id").and_then(id_of), token)?;
        }
        Ok(())
    }

    /// Sets the token of `id` to the one that `json` describes.
    fn place(&mut self, name: &str, list: &str, id: Option<usize>, json: &Json) -> Result<()> {
        let (Some(id), Some(text)) = (id, json.get("content").and_then(Json::as_str)) else {
            let finding = self.files.finding_in(name, list);
            return Err(finding
                .expected("tokens with an id and a content")
                .found(shortened(&json.to_string()))
                .format());
        };
        // A folder made of a GGUF lists tokens here that tokenizer.model has with their scores.
        let is_known = self.tokens.texts.get(id).is_some_and(|known| known == text);
        if name == "tokenizer.json" && is_known && self.files.recorded_model().is_some() {
            return Ok(());
        }
        let special = json.get("special").and_then(Json::as_bool).unwrap_or(false);
        let usual = self.reading == Reading::Usual;
        let kind = if special || (usual && looks_special(text)) { TokenKind::Control } else { TokenKind::UserDefined };
        if let (Some(old), Some(old_kind)) = (self.tokens.texts.get(id), self.tokens.kinds.get(id))
            && *old_kind != TokenKind::Unused
            && old != text
        {
            self.replaced.push(format!("{id} {old:?} -> {text:?}"));
        }
        // llama.cpp searches for user-defined tokens in the original text, where spaces are spaces.
        let plain = text.replace('\u{2581}', " ");
        let written = if usual && kind == TokenKind::UserDefined { &plain } else { text };
        if self.tokens.set(id, written, ADDED_SCORE, kind) {
            return Ok(());
        }
        if self.reading == Reading::Phi3 {
            return Err(past_the_end(self.files, name, list, format_args!("id {id}"), self.tokens.texts.len()));
        }
        self.left_out.push(format!("{text:?} ({id})"));
        Ok(())
    }

    pub(super) fn report(&self, notes: &mut Vec<String>) {
        note_some(notes, "tokens of the model replaced by added ones", &self.replaced);
        note_some(notes, "added tokens past the end of the vocabulary left out", &self.left_out);
    }
}

/// A note that shows the first few of `items`; none where there are none.
pub(super) fn note_some(notes: &mut Vec<String>, what: &str, items: &[String]) {
    const SHOWN: usize = 3;
    if items.is_empty() {
        return;
    }
    let shown = items.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    let more = items.len().saturating_sub(SHOWN);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    notes.push(format!("{what}: {shown}{rest}"));
}

/// The tokens of a tokenizer.json that was made of a SentencePiece model: BPE that falls back to
/// bytes. `None` for any other tokenizer.json.
pub(super) fn llama_hf(files: &Files, notes: &mut Vec<String>) -> Result<Option<ScoredTokens>> {
    let Some(tokenizer) = &files.tokenizer else { return Ok(None) };
    if !spm_json::is_spm(tokenizer) {
        return Ok(None);
    }
    let auto = Auto::load(files)?;
    note_some(notes, "added tokens with other ids than listed, as transformers has them", &auto.moved);
    let special = auto.special_ids();
    let base = auto.vocab.len();
    let mut tokens = ScoredTokens::default();
    for (text, id) in auto.ids() {
        if id != tokens.texts.len() {
            // The reference fails here, or gives every later token a wrong id.
            return Err(files
                .finding(format!("token {text:?}"))
                .expected(format_args!("the next id, {}", tokens.texts.len()))
                .found(id)
                .hint("ids must follow each other without a gap")
                .format());
        }
        let kind = match () {
            () if id < base && is_byte(text) => TokenKind::Byte,
            () if special.contains(&id) => TokenKind::Control,
            () if id < base => TokenKind::Normal,
            () => TokenKind::UserDefined,
        };
        tokens.push(text, ADDED_SCORE, kind);
    }
    if let Some(size) = files.vocab_size()?
        && size != tokens.texts.len()
    {
        notes.push(format!(
            "the tokenizer has {} tokens, vocab_size of config.json is {size}: llama.cpp may refuse the file",
            tokens.texts.len()
        ));
    }
    Ok(Some(tokens))
}

/// How many rows of the embedding Gemma 3 keeps: one for each token that its tokenizer has.
///
/// Reference: `conversion/gemma.py` (`Gemma3Model.modify_tensors`).
pub(super) fn gemma3_rows(files: &Files) -> Result<usize> {
    let notes = &mut Vec::new();
    if let Some(tokens) = of_model_or_json(files, Reading::Usual, notes)? {
        return Ok(tokens.texts.len());
    }
    let Some(tokenizer) = &files.tokenizer else {
        return Err(files
            .finding_in("", "tokenizer")
            .expected("tokenizer.model or tokenizer.json")
            .found("neither")
            .hint("Gemma 3 keeps one row of the embedding for each token")
            .mismatch());
    };
    let vocab = tokenizer.get("model").and_then(|model| model.get("vocab"));
    let count = vocab.and_then(|vocab| vocab.as_object().map(|v| v.len()).or_else(|| vocab.as_array().map(Vec::len)));
    let count = count.ok_or_else(|| files.finding("model.vocab").expected("tokens").found("none").format())?;
    let added = tokenizer.get("added_tokens").and_then(Json::as_array).map_or(0, Vec::len);
    Ok(count.saturating_add(added))
}

/// The error for a tokenizer.json that has to be BPE with a fallback to bytes, and isn't.
pub(super) fn no_byte_fallback(files: &Files) -> crate::Error {
    let kind = files.tokenizer.as_ref().and_then(|json| json.get("model")?.get("type")?.as_str());
    files
        .finding("model")
        .expected("BPE that falls back to bytes, as this architecture has it")
        .found(kind.unwrap_or("none"))
        .hint("the tokenizer may be of another model")
        .mismatch()
}

/// The error for a model that needs tokenizer.model and has none.
pub(super) fn missing(files: &Files) -> crate::Error {
    Finding::new(&files.folder, "tokenizer")
        .expected("tokenizer.model, or a tokenizer.json that was made of it")
        .found("neither")
        .hint("this architecture's vocabulary is made of its SentencePiece model: copy it from the original model")
        .mismatch()
}

#[cfg(test)]
mod tests;
