//! WordPiece: BERT's vocabularies.
//!
//! llama.cpp marks tokens that begin a word, Hugging Face's files mark tokens that continue one: the
//! token `U+2581 word` is `word`, the token `ing` is `##ing`. Words of more than 100 characters become
//! the unknown token, as in BERT itself; llama.cpp splits them.
//!
//! Reference: llama.cpp `conversion/bert.py` (`set_vocab`), `src/llama-vocab.cpp`
//! (`llm_tokenizer_wpm_session`).

use serde_json::{Map, Value as Json, json};

use super::special::added_tokens;
use super::{GgufTokenizer, HfParts};
use crate::error::Result;
use crate::tokenizer::keys;
use crate::tokenizer::special::SpecialToken;
use crate::tokenizer::token::TokenKind;

/// The text of a token in BERT's files.
pub(super) fn word(text: &str, kind: TokenKind) -> String {
    if kind == TokenKind::Control {
        return text.to_owned();
    }
    match text.strip_prefix('\u{2581}') {
        Some(word) => word.to_owned(),
        None => format!("##{text}"),
    }
}

/// The parts of tokenizer.json that are specific to WordPiece.
pub(super) fn make(parts: &GgufTokenizer) -> Result<HfParts> {
    let GgufTokenizer { metadata, vocabulary, specials, .. } = parts;
    let mut vocab = Map::new();
    for (id, text, kind) in vocabulary.iter() {
        if vocabulary.is_placeholder(id, text, kind) {
            continue;
        }
        let word = word(text, kind);
        if let Some(other) = vocab.insert(word.clone(), json!(id)) {
            let found = format!("{word:?} as {other} and as {id}");
            return Err(vocabulary.finding(keys::TOKENS).expected("every word once").found(found).format());
        }
    }
    let unknown = specials.id(SpecialToken::Unk, vocabulary);
    let unknown = unknown.and_then(|id| Some(word(vocabulary.text(id)?, vocabulary.kind(id)?)));
    let Some(unknown) = unknown else {
        return Err(metadata
            .finding("tokenizer.ggml.unknown_token_id")
            .expected("a token for unknown words")
            .found("none")
            .format());
    };
    let flag = |key: &str, default: bool| match metadata.get(key) {
        None => Ok(default),
        Some(_) => metadata.bool(key),
    };
    let lowercase = flag(keys::LOWERCASE, true)?;
    let strip_accents = flag(keys::STRIP_ACCENTS, lowercase)?;
    Ok(HfParts {
        normalizer: json!({
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": true,
            "strip_accents": strip_accents,
            "lowercase": lowercase,
        }),
        pre_tokenizer: json!({"type": "BertPreTokenizer"}),
        decoder: json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        model: json!({
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": Json::Object(vocab),
        }),
        added: added_tokens(metadata, vocabulary, specials, &|_, text, kind| Some(word(text, kind))),
        normalized: |_| false,
        files: Vec::new(),
        settings: Vec::new(),
    })
}
