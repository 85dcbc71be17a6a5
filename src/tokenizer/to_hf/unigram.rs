//! Unigram vocabularies of SentencePiece: T5, XLM-RoBERTa and models like them.
//!
//! Reference: llama.cpp `src/llama-vocab.cpp` (`llm_tokenizer_ugm_session`), transformers
//! `convert_slow_tokenizer.py` (`SpmConverter`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value as Json, json};

use super::sentencepiece::{Settings, is_by_hand, model};
use super::special::{Added, added_tokens};
use super::vocabulary::Vocabulary;
use super::{GgufTokenizer, HfParts};
use crate::error::Result;
use crate::formats::gguf::{Array, Metadata};
use crate::tokenizer::keys;
use crate::tokenizer::sentencepiece;
use crate::tokenizer::special::SpecialToken;
use crate::tokenizer::token::TokenKind;

/// The parts of tokenizer.json that are specific to Unigram, and SentencePiece's model if the
/// converter reads it.
pub(super) fn make(parts: &GgufTokenizer, notes: &mut Vec<String>) -> Result<HfParts> {
    let GgufTokenizer { metadata, vocabulary, specials, .. } = parts;
    let flag = |key: &str| match metadata.get(key) {
        None => Ok(false),
        Some(_) => metadata.bool(key),
    };
    if vocabulary.scores.is_none() {
        return Err(metadata.finding(keys::SCORES).expected("a score for each token").found("none").format());
    }
    let prefix = flag(keys::ADD_SPACE_PREFIX)?;
    let merge_spaces = flag(keys::REMOVE_EXTRA_WHITESPACES)?;
    let charsmap = charsmap(metadata)?;
    let unknown = match specials.given(SpecialToken::Unk) {
        // Its converter writes no ids; the kind tells which token it is.
        None if is_pocket_tts(metadata) => {
            vocabulary.iter().find(|(_, _, kind)| *kind == TokenKind::Unknown).map(|(id, _, _)| id)
        }
        _ => specials.id(SpecialToken::Unk, vocabulary),
    };
    let Some(unknown) = unknown else {
        return Err(metadata
            .finding("tokenizer.ggml.unknown_token_id")
            .expected("an unknown token")
            .found("none")
            .format());
    };
    let added = added_tokens(metadata, vocabulary, specials, &|_, _, _| None);
    let (normalizer, pre_tokenizer) = steps(&charsmap, prefix, merge_spaces);
    let mut settings = Vec::new();
    if metadata.get(keys::REMOVE_EXTRA_WHITESPACES).is_some() {
        // Converters read the flag from this setting.
        settings.push(("clean_up_tokenization_spaces", Json::Bool(merge_spaces)));
    }
    Ok(HfParts {
        normalizer,
        pre_tokenizer,
        decoder: json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true}),
        model: json!({
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": vocab(vocabulary, unknown),
            "byte_fallback": false,
        }),
        files: files(parts, unknown, &charsmap, prefix, merge_spaces, &added, notes),
        added,
        normalized: |_| false,
        settings,
    })
}

/// Normalizer and pre-tokenizer. Where extra spaces are removed, text is split at whitespace and each
/// word gets U+2581; otherwise every space becomes U+2581.
fn steps(charsmap: &[u8], prefix: bool, merge_spaces: bool) -> (Json, Json) {
    let precompiled = match charsmap {
        [] => None,
        bytes => Some(json!({"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(bytes)})),
    };
    if merge_spaces {
        let words = json!({"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true},
        ]});
        return (precompiled.unwrap_or(Json::Null), words);
    }
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let prepend = prefix.then(|| json!({"type": "Prepend", "prepend": "\u{2581}"}));
    let steps: Vec<Json> = [precompiled, prepend, Some(replace)].into_iter().flatten().collect();
    (json!({"type": "Sequence", "normalizers": steps}), Json::Null)
}

/// The table of replaced characters: a length, as many bytes of a trie, then the replacements.
fn charsmap(metadata: &Metadata) -> Result<Vec<u8>> {
    if metadata.get(keys::PRECOMPILED_CHARSMAP).is_none() {
        return Ok(Vec::new());
    }
    let finding = || metadata.finding(keys::PRECOMPILED_CHARSMAP);
    let bytes: Vec<u8> = match metadata.array(keys::PRECOMPILED_CHARSMAP)? {
        Array::U8(bytes) => bytes.clone(),
        Array::I8(bytes) => bytes.iter().map(|byte| byte.cast_unsigned()).collect(),
        other => return Err(finding().expected("an array of uint8").found(other.kind()).format()),
    };
    let trie = bytes.first_chunk().map(|length| u64::from(u32::from_le_bytes(*length)));
    let fits = trie.is_some_and(|trie| trie % 4 == 0 && trie.saturating_add(4) < bytes.len() as u64);
    if !fits {
        let found = format!("{} bytes", bytes.len());
        return Err(finding().expected("a length, a trie of that length, and replacements").found(found).format());
    }
    Ok(bytes)
}

/// Tokens with their scores, by id, up to the last one that isn't a placeholder.
fn vocab(vocabulary: &Vocabulary, unknown: u32) -> Vec<Json> {
    let real =
        |(id, text, kind): &(u32, &str, TokenKind)| *id == unknown || !vocabulary.is_placeholder(*id, text, *kind);
    let count = vocabulary.iter().filter(real).last().map_or(0, |(id, _, _)| id.saturating_add(1));
    let scored = vocabulary.iter().zip(0..).take_while(|((id, _, _), _)| *id < count);
    scored.map(|((_, text, _), place)| json!([text, f64::from(vocabulary.score(place))])).collect()
}

/// The model file of T5 and Pocket TTS. Converters read the other models' vocabulary from tokenizer.json.
fn files(
    parts: &GgufTokenizer,
    unknown: u32,
    charsmap: &[u8],
    prefix: bool,
    merge_spaces: bool,
    added: &[Added],
    notes: &mut Vec<String>,
) -> Vec<(String, Vec<u8>)> {
    let GgufTokenizer { metadata, vocabulary, .. } = parts;
    if !is_t5(metadata) {
        return Vec::new();
    }
    let settings = Settings {
        model_type: sentencepiece::UNIGRAM,
        byte_fallback: false,
        unknown: Some(unknown),
        add_dummy_prefix: prefix,
        remove_extra_whitespaces: merge_spaces,
        precompiled_charsmap: charsmap.to_vec(),
    };
    let name = if is_pocket_tts(metadata) { "tokenizer.model" } else { "spiece.model" };
    let mut files = vec![(name.to_owned(), model(parts, settings, notes).to_bytes())];
    let by_hand = added.iter().filter(|token| is_by_hand(vocabulary, token.id));
    let by_hand: Map<String, Json> = by_hand.map(|token| (token.text.clone(), json!(token.id))).collect();
    if !by_hand.is_empty() {
        files.push(("added_tokens.json".to_owned(), Json::Object(by_hand).to_string().into_bytes()));
    }
    files
}

/// Whether the model's converter reads SentencePiece's model.
pub(super) fn is_t5(metadata: &Metadata) -> bool {
    matches!(metadata.text("general.architecture"), Ok("t5" | "t5encoder")) || is_pocket_tts(metadata)
}

/// Whether the model is Pocket TTS, whose converter reads tokenizer.model.
fn is_pocket_tts(metadata: &Metadata) -> bool {
    metadata.text("general.architecture").is_ok_and(|name| name == "pockettts")
}
