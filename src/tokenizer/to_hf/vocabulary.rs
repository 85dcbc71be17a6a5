//! The vocabulary keys of a GGUF file, checked: tokens, types, scores and merges.
//!
//! Reference: llama.cpp `src/llama-vocab.cpp` (`llama_vocab::impl::load`).

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::formats::gguf::{Array, Metadata};
use crate::tokenizer::keys;
use crate::tokenizer::token::{TokenKind, placeholder};

/// The vocabulary, by id.
pub(super) struct Vocabulary<'a> {
    metadata: &'a Metadata,
    pub(super) texts: Vec<&'a str>,
    pub(super) kinds: Vec<TokenKind>,
    /// One finite score for each token; `None` where the file has no scores.
    pub(super) scores: Option<Vec<f32>>,
    ids: HashMap<&'a str, u32>,
}

impl<'a> Vocabulary<'a> {
    /// Reads tokens, types and scores.
    ///
    /// # Errors
    /// [`Error::Format`] for keys of the wrong type or length, tokens that aren't UTF-8 or occur
    /// twice, types that don't exist, scores that aren't finite.
    pub(super) fn read(metadata: &'a Metadata) -> Result<Self> {
        let raw = metadata.strings(keys::TOKENS)?;
        if raw.is_empty() {
            return Err(metadata.finding(keys::TOKENS).expected("tokens").found("none").format());
        }
        let mut texts = Vec::with_capacity(raw.len());
        let mut ids = HashMap::with_capacity(raw.len());
        for (id, bytes) in raw.iter().enumerate() {
            let text = std::str::from_utf8(bytes).map_err(|_| not_text(metadata, keys::TOKENS, id, bytes))?;
            let number = u32::try_from(id).map_err(|_| {
                metadata.finding(keys::TOKENS).expected("fewer than 2^32 tokens").found(raw.len()).format()
            })?;
            if let Some(other) = ids.insert(text, number) {
                let found = format!("token {text:?} as {other} and as {id}");
                return Err(metadata.finding(keys::TOKENS).expected("every token once").found(found).format());
            }
            texts.push(text);
        }
        let kinds = kinds(metadata, texts.len())?;
        let scores = scores(metadata, texts.len())?;
        Ok(Self { metadata, texts, kinds, scores, ids })
    }

    /// The number of tokens.
    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// The id of a token.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// The token of an id.
    pub(super) fn text(&self, id: u32) -> Option<&'a str> {
        usize::try_from(id).ok().and_then(|id| self.texts.get(id)).copied()
    }

    /// The kind of an id's token.
    pub(super) fn kind(&self, id: u32) -> Option<TokenKind> {
        usize::try_from(id).ok().and_then(|id| self.kinds.get(id)).copied()
    }

    /// The score of an id's token; zero where the file has no scores, as llama.cpp takes it.
    pub(super) fn score(&self, id: usize) -> f32 {
        self.scores.as_ref().and_then(|scores| scores.get(id)).copied().unwrap_or(0.0)
    }

    /// Tokens by id, with their kinds.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &'a str, TokenKind)> {
        (0u32..).zip(&self.texts).zip(&self.kinds).map(|((id, text), kind)| (id, *text, *kind))
    }

    /// Whether `id` has no token, only a placeholder that the converter made.
    pub(super) fn is_placeholder(&self, id: u32, text: &str, kind: TokenKind) -> bool {
        matches!(kind, TokenKind::Unused | TokenKind::Unknown) && text == placeholder(id)
    }

    /// Whether every byte has its token `<0xNN>`.
    pub(super) fn has_all_bytes(&self) -> bool {
        (0..=u8::MAX).all(|byte| self.ids.contains_key(format!("<0x{byte:02X}>").as_str()))
    }

    /// Merges as pairs of tokens, in order of rank.
    ///
    /// # Errors
    /// [`Error::Format`] where there are none, or one names a token that the vocabulary lacks.
    pub(super) fn merges(&self) -> Result<Vec<(&'a str, &'a str)>> {
        let raw = self.metadata.strings(keys::MERGES)?;
        let finding = || self.metadata.finding(keys::MERGES);
        raw.iter()
            .enumerate()
            .map(|(rank, bytes)| {
                let text =
                    std::str::from_utf8(bytes).map_err(|_| not_text(self.metadata, keys::MERGES, rank, bytes))?;
                // The first character belongs to the left part, even if it is a space.
                let cut = text.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
                let pair = cut.and_then(|at| Some((text.get(..at)?, text.get(at..)?.strip_prefix(' ')?)));
                let (left, right) =
                    pair.filter(|(left, right)| !left.is_empty() && !right.is_empty()).ok_or_else(|| {
                        finding()
                            .expected("two parts with a space between")
                            .found(format!("{text:?} at {rank}"))
                            .format()
                    })?;
                let joined = format!("{left}{right}");
                let missing = [left, right, joined.as_str()].into_iter().find(|part| self.id(part).is_none());
                match missing {
                    None => Ok((left, right)),
                    Some(part) => Err(finding()
                        .expected(format_args!("parts and results among the tokens of {}", keys::TOKENS))
                        .found(format!("{part:?} in merge {rank}, {text:?}"))
                        .format()),
                }
            })
            .collect()
    }

    /// A finding about a key of the file.
    pub(super) fn finding(&self, key: &str) -> crate::error::Finding {
        self.metadata.finding(key)
    }
}

fn not_text(metadata: &Metadata, key: &str, place: usize, bytes: &[u8]) -> Error {
    const SHOWN_BYTES: usize = 40;
    let shown = bytes.get(..SHOWN_BYTES.min(bytes.len())).unwrap_or_default();
    let shown = String::from_utf8_lossy(shown);
    metadata.finding(key).expected("UTF-8 text").found(format!("bytes at {place}: {shown:?}")).format()
}

fn kinds(metadata: &Metadata, count: usize) -> Result<Vec<TokenKind>> {
    if metadata.get(keys::TOKEN_TYPE).is_none() {
        return Ok(vec![TokenKind::Normal; count]);
    }
    let array = metadata.array(keys::TOKEN_TYPE)?;
    let finding = || metadata.finding(keys::TOKEN_TYPE);
    let numbers: Vec<i64> = match array {
        Array::I32(numbers) => numbers.iter().map(|number| i64::from(*number)).collect(),
        Array::U32(numbers) => numbers.iter().map(|number| i64::from(*number)).collect(),
        other => return Err(finding().expected("an array of int32").found(other.kind()).format()),
    };
    same_length(metadata, keys::TOKEN_TYPE, numbers.len(), count)?;
    numbers
        .iter()
        .enumerate()
        .map(|(id, number)| {
            TokenKind::from_number(*number)
                .ok_or_else(|| finding().expected("types from 0 to 6").found(format!("{number} at {id}")).format())
        })
        .collect()
}

fn scores(metadata: &Metadata, count: usize) -> Result<Option<Vec<f32>>> {
    if metadata.get(keys::SCORES).is_none() {
        return Ok(None);
    }
    let finding = || metadata.finding(keys::SCORES);
    let scores: Vec<f32> = match metadata.array(keys::SCORES)? {
        Array::F32(scores) => scores.clone(),
        Array::I32(scores) => scores.iter().map(|score| *score as f32).collect(),
        other => return Err(finding().expected("an array of float32").found(other.kind()).format()),
    };
    same_length(metadata, keys::SCORES, scores.len(), count)?;
    match scores.iter().position(|score| !score.is_finite()) {
        Some(id) => Err(finding().expected("finite numbers").found(format!("another at {id}")).not_finite()),
        None => Ok(Some(scores)),
    }
}

fn same_length(metadata: &Metadata, key: &str, found: usize, count: usize) -> Result<()> {
    if found == count {
        return Ok(());
    }
    Err(metadata.finding(key).expected(format_args!("one for each of the {count} tokens")).found(found).format())
}
