//! The kinds that a conversion back would give tokens, compared with those in the GGUF file.
//!
//! Hugging Face's files only say whether a token was added and whether it is special; GGUF has seven
//! kinds. Tokens that would come back with another kind are recorded.
//!
//! Reference: llama.cpp `conversion/base.py` (`get_vocab_base`, `_create_vocab_sentencepiece`),
//! `conversion/phi.py`, `conversion/t5.py`, `conversion/bert.py` (`_xlmroberta_set_vocab`).

use std::collections::HashMap;

use super::sentencepiece::is_by_hand;
use super::special::Added;
use super::{GgufTokenizer, TokenizerKind, unigram};
use crate::tokenizer::keys;
use crate::tokenizer::record::TypeException;
use crate::tokenizer::special::SpecialToken;
use crate::tokenizer::token::{GEMMA4_SHOWN, TokenKind, is_byte, looks_special};

/// The tokens that would come back with another kind.
pub(super) fn exceptions(parts: &GgufTokenizer, added: &[Added]) -> Vec<TypeException> {
    let added: HashMap<u32, &Added> = added.iter().map(|token| (token.id, token)).collect();
    let mut exceptions: Vec<TypeException> = Vec::new();
    for (id, text, kind) in parts.vocabulary.iter() {
        let instead_of = expected(parts, added.get(&id).copied(), id, text, kind);
        TypeException::add(&mut exceptions, id, kind, instead_of);
    }
    exceptions
}

fn expected(parts: &GgufTokenizer, added: Option<&Added>, id: u32, text: &str, kind: TokenKind) -> TokenKind {
    let GgufTokenizer { metadata, vocabulary, specials, .. } = parts;
    let unknown = specials.id(SpecialToken::Unk, vocabulary) == Some(id);
    let as_flagged = |token: &Added| if token.special { TokenKind::Control } else { TokenKind::UserDefined };
    let as_it_looks = |token: &Added| if looks_special(&token.text) { TokenKind::Control } else { as_flagged(token) };
    let placeholder = vocabulary.is_placeholder(id, text, kind);
    let piece = match kind {
        _ if unknown => TokenKind::Unknown,
        _ if placeholder => TokenKind::Unused,
        TokenKind::Unknown | TokenKind::Unused => TokenKind::Unused,
        TokenKind::Normal | TokenKind::Undefined | TokenKind::UserDefined => TokenKind::Normal,
        TokenKind::Byte if !vocabulary.has_all_bytes() || !is_byte(text) => TokenKind::Normal,
        TokenKind::Byte => TokenKind::Byte,
        TokenKind::Control => TokenKind::Control,
    };
    if metadata.text(keys::MODEL).ok() == Some("gemma4") {
        return of_gemma4(parts, id, text, placeholder);
    }
    match (parts.kind, added) {
        (TokenizerKind::Bpe | TokenizerKind::WordPiece, Some(token)) => as_it_looks(token),
        (TokenizerKind::Bpe | TokenizerKind::WordPiece, None) if placeholder => TokenKind::Unused,
        (TokenizerKind::Bpe | TokenizerKind::WordPiece, None) => TokenKind::Normal,
        // The converters of these go by the flag alone.
        (TokenizerKind::SentencePiece, Some(token))
            if is_by_hand(vocabulary, id)
                && matches!(metadata.text("general.architecture"), Ok("phi3" | "internlm2")) =>
        {
            as_flagged(token)
        }
        (TokenizerKind::SentencePiece, Some(token)) if is_by_hand(vocabulary, id) => as_it_looks(token),
        (TokenizerKind::SentencePiece, _) => piece,
        (TokenizerKind::Unigram, Some(_)) if unigram::is_t5(metadata) && is_by_hand(vocabulary, id) => {
            TokenKind::UserDefined
        }
        (TokenizerKind::Unigram, _) if unigram::is_t5(metadata) => piece,
        (TokenizerKind::Unigram, _) if unknown => TokenKind::Unknown,
        (TokenizerKind::Unigram, _)
            if SpecialToken::ALL.iter().any(|(role, _, _)| specials.given(*role) == Some(id)) =>
        {
            TokenKind::Control
        }
        (TokenizerKind::Unigram, Some(_)) => TokenKind::UserDefined,
        (TokenizerKind::Unigram, None) if placeholder => TokenKind::Unused,
        (TokenizerKind::Unigram, None) => TokenKind::Normal,
    }
}

/// The kind that Gemma 4's converter gives a token: it knows special tokens by their names in tokenizer_config.json.
fn of_gemma4(parts: &GgufTokenizer, id: u32, text: &str, placeholder: bool) -> TokenKind {
    let nameless = [SpecialToken::Eot, SpecialToken::Eom];
    let is_named =
        |(role, _, _): &(SpecialToken, &str, &str)| !nameless.contains(role) && parts.specials.given(*role) == Some(id);
    match () {
        () if placeholder => TokenKind::Unused,
        () if GEMMA4_SHOWN.contains(&text) => TokenKind::UserDefined,
        () if is_byte(text) => TokenKind::Byte,
        () if SpecialToken::ALL.iter().any(is_named) => TokenKind::Control,
        () => TokenKind::Normal,
    }
}
