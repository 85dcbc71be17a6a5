//! BPE vocabularies of SentencePiece: Llama, Mistral, Gemma, Phi-3 and models like them.
//!
//! llama.cpp merges the two neighbours whose joint token has the best score. `tokenizer.json` lists
//! the same merges in order of the scores of their results. Spaces are U+2581, a space is put before
//! every stretch of text between added tokens, and characters without a token become bytes.
//! `tokenizer.model` is written too, because converters read the scores from it.
//!
//! Reference: llama.cpp `src/llama-vocab.cpp` (`llm_tokenizer_spm_session`), transformers
//! `convert_slow_tokenizer.py` (`generate_merges`, `LlamaConverter`).

use std::cmp::Reverse;
use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::bpe::vocab;
use super::special::{Added, added_tokens};
use super::vocabulary::Vocabulary;
use super::{GgufTokenizer, HfParts};
use crate::error::Result;
use crate::tokenizer::keys;
use crate::tokenizer::sentencepiece::{self, Piece, SentencePieceModel};
use crate::tokenizer::special::SpecialToken;
use crate::tokenizer::token::{ADDED_SCORE, TokenKind, UNUSED_SCORE};

/// The parts of tokenizer.json that are specific to SentencePiece, and tokenizer.model.
pub(super) fn make(parts: &GgufTokenizer, notes: &mut Vec<String>) -> Result<HfParts> {
    let GgufTokenizer { metadata, vocabulary, specials, .. } = parts;
    if vocabulary.scores.is_none() {
        notes.push(format!("{}: none in the file, tokens are merged in order of their ids", keys::SCORES));
    }
    let prefix = match metadata.get(keys::ADD_SPACE_PREFIX) {
        None => true,
        Some(_) => metadata.bool(keys::ADD_SPACE_PREFIX)?,
    };
    let unknown = specials.id(SpecialToken::Unk, vocabulary);
    let added = added_tokens(metadata, vocabulary, specials, &|_, _, _| None);
    let merges: Vec<Json> = merges(vocabulary)?.into_iter().map(|(left, right)| json!([left, right])).collect();
    let byte_fallback = vocabulary.has_all_bytes();
    if !byte_fallback {
        notes.push("not every byte has a token: characters without one become unknown tokens".to_owned());
    }
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let normalizer = match prefix {
        true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, replace]}),
        false => replace,
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let settings = listed(vocabulary, &added).map(|listed| vec![("added_tokens_decoder", listed)]).unwrap_or_default();
    let model_settings = Settings {
        model_type: sentencepiece::BPE,
        byte_fallback,
        unknown,
        add_dummy_prefix: prefix,
        ..Settings::default()
    };
    let model = model(parts, model_settings, notes);
    Ok(HfParts {
        normalizer,
        pre_tokenizer: Json::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown.and_then(|id| vocabulary.text(id)),
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": byte_fallback,
            "ignore_merges": false,
            "vocab": vocab(vocabulary),
            "merges": merges,
        }),
        added,
        normalized: |_| false,
        files: vec![("tokenizer.model".to_owned(), model.to_bytes())],
        settings,
    })
}

/// Whether merges make this token. Other tokens are found in text as a whole, or never.
fn is_merged(kind: TokenKind) -> bool {
    matches!(kind, TokenKind::Normal | TokenKind::Undefined | TokenKind::Unused)
}

/// Every pair of tokens that makes another token, the best scores first.
fn merges<'a>(vocabulary: &Vocabulary<'a>) -> Result<Vec<(&'a str, &'a str)>> {
    /// Every cut of a token is tried, which takes time quadratic in its length.
    const MAX_BYTES: usize = 4096;
    let merged = |id: u32, text: &str, kind: TokenKind| is_merged(kind) && !vocabulary.is_placeholder(id, text, kind);
    let tokens: HashMap<&str, u32> =
        vocabulary.iter().filter(|(id, text, kind)| merged(*id, text, *kind)).map(|(id, text, _)| (text, id)).collect();
    let mut found = Vec::new();
    for (id, text, kind) in vocabulary.iter() {
        if !merged(id, text, kind) {
            continue;
        }
        if text.len() > MAX_BYTES {
            let found = format!("{} bytes at {id}", text.len());
            return Err(vocabulary
                .finding(keys::TOKENS)
                .expected(format_args!("at most {MAX_BYTES} bytes each"))
                .found(found)
                .unsupported());
        }
        let score = vocabulary.score(usize::try_from(id).unwrap_or(usize::MAX));
        for (cut, _) in text.char_indices().skip(1) {
            let (Some(left), Some(right)) = (text.get(..cut), text.get(cut..)) else { continue };
            if tokens.contains_key(left) && tokens.contains_key(right) {
                found.push((score, id, left, right));
            }
        }
    }
    found.sort_by(|a, b| {
        let order = |(_, id, left, _): &(f32, u32, &str, &str)| (*id, Reverse(left.len()));
        b.0.total_cmp(&a.0).then_with(|| order(a).cmp(&order(b)))
    });
    Ok(found.into_iter().map(|(_, _, left, right)| (left, right)).collect())
}

/// The added tokens that tokenizer_config.json lists: those with the score that converters give added
/// tokens. The others have their score in tokenizer.model.
fn listed(vocabulary: &Vocabulary, added: &[Added]) -> Option<Json> {
    let by_hand = added.iter().filter(|token| is_by_hand(vocabulary, token.id));
    let listed: serde_json::Map<String, Json> =
        by_hand.map(|token| (token.id.to_string(), token.json_of_config())).collect();
    (!listed.is_empty()).then_some(Json::Object(listed))
}

/// Whether a token has the kind and the score of one that was added by hand.
pub(super) fn is_by_hand(vocabulary: &Vocabulary, id: u32) -> bool {
    let kind = vocabulary.kind(id);
    let score = vocabulary.score(usize::try_from(id).unwrap_or(usize::MAX));
    matches!(kind, Some(TokenKind::Control | TokenKind::UserDefined)) && score == ADDED_SCORE
}

/// The settings of a model file.
#[derive(Default)]
pub(super) struct Settings {
    pub(super) model_type: u64,
    pub(super) byte_fallback: bool,
    /// The id of the unknown token.
    pub(super) unknown: Option<u32>,
    pub(super) add_dummy_prefix: bool,
    pub(super) remove_extra_whitespaces: bool,
    pub(super) precompiled_charsmap: Vec<u8>,
}

/// The model, without the placeholders and the tokens added by hand at its end.
pub(super) fn model(parts: &GgufTokenizer, settings: Settings, notes: &mut Vec<String>) -> SentencePieceModel {
    let Settings { model_type, byte_fallback, unknown, add_dummy_prefix, remove_extra_whitespaces, .. } = settings;
    let precompiled_charsmap = settings.precompiled_charsmap;
    let GgufTokenizer { vocabulary, specials, .. } = parts;
    let is_plain_placeholder = |id: u32, text: &str, kind: TokenKind| {
        let score = vocabulary.score(usize::try_from(id).unwrap_or(usize::MAX));
        vocabulary.is_placeholder(id, text, kind) && (vocabulary.scores.is_none() || score == UNUSED_SCORE)
    };
    let last = vocabulary
        .iter()
        .filter(|(id, text, kind)| !is_plain_placeholder(*id, text, *kind) && !is_by_hand(vocabulary, *id));
    let count = last.last().map_or(0, |(id, _, _)| usize::try_from(id).map_or(0, |id| id.saturating_add(1)));
    let pieces: Vec<Piece> = vocabulary
        .iter()
        .take(count)
        .map(|(id, text, kind)| Piece {
            text: if kind == TokenKind::UserDefined { text.replace(' ', "\u{2581}") } else { text.to_owned() },
            score: vocabulary.score(usize::try_from(id).unwrap_or(usize::MAX)),
            kind: match kind {
                _ if unknown == Some(id) => TokenKind::Unknown,
                // SentencePiece allows only one unknown piece.
                TokenKind::Unknown | TokenKind::Unused => TokenKind::Unused,
                TokenKind::Normal | TokenKind::Undefined => TokenKind::Normal,
                TokenKind::Control => TokenKind::Control,
                TokenKind::UserDefined => TokenKind::UserDefined,
                TokenKind::Byte if byte_fallback => TokenKind::Byte,
                TokenKind::Byte => TokenKind::Normal,
            },
            other_fields: Vec::new(),
        })
        .collect();
    if !pieces.iter().any(|piece| piece.kind == TokenKind::Unknown) {
        notes.push("tokenizer.model: the vocabulary has no unknown token, and SentencePiece asks for one".to_owned());
    }
    let inside = |role| {
        let id = specials.id(role, vocabulary)?;
        (usize::try_from(id).ok()? < count).then_some(id)
    };
    SentencePieceModel {
        model_type,
        byte_fallback,
        unk_id: unknown.filter(|id| usize::try_from(*id).is_ok_and(|id| id < count)),
        bos_id: inside(SpecialToken::Bos),
        eos_id: inside(SpecialToken::Eos),
        pad_id: inside(SpecialToken::Pad),
        pieces,
        normalizer: if precompiled_charsmap.is_empty() { "identity" } else { "custom" }.to_owned(),
        add_dummy_prefix,
        remove_extra_whitespaces,
        precompiled_charsmap,
        ..SentencePieceModel::default()
    }
}
