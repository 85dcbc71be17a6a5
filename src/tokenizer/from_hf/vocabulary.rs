//! Tokens and their kinds in vocabularies without scores: byte-level BPE and WordPiece.
//!
//! Reference: llama.cpp `conversion/base.py` (`get_vocab_base`).

use std::collections::HashSet;

use serde_json::Value as Json;

use super::auto::{Added, Auto};
use super::faults;
use super::files::{Files, Object};
use super::sentencepiece::note_some;
use crate::error::Result;
use crate::tokenizer::token::{TokenKind, looks_special, placeholder};

/// A token of the output.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) kind: TokenKind,
}

/// How the added tokens of byte-level BPE are written. The reference has four ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddedTexts {
    /// Most models: with the text that they have in the original text, and tokens that look special are control tokens.
    Usual,
    /// As usual, but U+2581 isn't made a space: Intern-S1.
    Marked,
    /// As they are, and tokens that look special are control tokens: HybridDNATokenizer.
    Kept,
    /// As they are, and the flag alone decides: Dream, LLaDA.
    Plain,
}

impl AddedTexts {
    /// Returns the kind and the text of an added token.
    fn written(self, text: &str, added: &Added, decoder: &Json) -> (TokenKind, String) {
        let kind = |special: bool| if special { TokenKind::Control } else { TokenKind::UserDefined };
        match self {
            Self::Plain => return (kind(added.special), text.to_owned()),
            Self::Kept => return (kind(added.special || looks_special(text)), text.to_owned()),
            Self::Usual | Self::Marked => {}
        }
        // llama.cpp searches for these in the original text, so they need the text that they have there.
        let plain = if added.normalized { text.to_owned() } else { decoded(text, decoder) };
        match kind(added.special || looks_special(&plain)) {
            TokenKind::UserDefined if self == Self::Usual => (TokenKind::UserDefined, plain.replace('\u{2581}', " ")),
            kind => (kind, plain),
        }
    }
}

/// Returns the tokens by id, as many as config.json gives. Ids without a token get a placeholder, as in the reference.
pub(super) fn tokens(
    files: &Files,
    auto: &Auto,
    added_texts: AddedTexts,
    notes: &mut Vec<String>,
) -> Result<Vec<Token>> {
    note_some(notes, "added tokens with other ids than listed, as transformers has them", &auto.moved);
    faults::note_unknown(&auto.json, |text| auto.vocab.contains_key(text), notes);
    let ids = auto.ids();
    let vocab_size = match files.vocab_size()? {
        Some(size) => size,
        None => ids.len(),
    };
    let mut tokens: Vec<Option<Token>> = (0..vocab_size).map(|_| None).collect();
    let decoder = auto.json.get("decoder").unwrap_or(&Json::Null);
    let (named, listed) = (auto.named.iter().map(String::as_str).collect::<HashSet<_>>(), listed(&auto.json));
    let mut left_out: Vec<String> = Vec::new();
    for (text, id) in ids {
        let finding = || files.finding(format!("token {text:?}"));
        let (kind, text) = match auto.added.get(text) {
            None => (TokenKind::Normal, text.to_owned()),
            Some(added) => added_texts.written(text, added, decoder),
        };
        let Some(place) = tokens.get_mut(id) else {
            // A named token without an id in any file. transformers would add it, but the embedding has no row for it.
            if named.contains(text.as_str()) && !listed.contains(text.as_str()) && !auto.vocab.contains_key(&text) {
                left_out.push(text);
                continue;
            }
            return Err(finding()
                .expected(format_args!("an id below vocab_size {vocab_size} of config.json"))
                .found(id)
                .hint("the tokenizer may be of another model")
                .mismatch());
        };
        if let Some(other) = place {
            let found = format!("id {id}, which {:?} has too", other.text);
            return Err(finding().expected("an id of its own").found(found).format());
        }
        *place = Some(Token { text, kind });
    }
    note_left_out(&left_out, vocab_size, notes);
    let unused = |id| Token { text: placeholder(id), kind: TokenKind::Unused };
    Ok(tokens.into_iter().enumerate().map(|(id, token)| token.unwrap_or_else(|| unused(id))).collect())
}

/// Returns the added tokens that tokenizer.json lists.
fn listed(json: &Object) -> HashSet<&str> {
    let added = json.get("added_tokens").and_then(Json::as_array);
    added.into_iter().flatten().filter_map(|token| token.get("content")?.as_str()).collect()
}

/// Adds one note about all special tokens without a row in the embedding.
fn note_left_out(tokens: &[String], vocab_size: usize, notes: &mut Vec<String>) {
    let Some(first) = tokens.first() else { return };
    let more = match tokens.len().saturating_sub(1) {
        0 => String::new(),
        count => format!(", and {count} more like it"),
    };
    notes.push(format!("special token {first:?} has no id among the {vocab_size} of the model: left out{more}"));
}

/// Returns the text that a single token is decoded to.
fn decoded(text: &str, decoder: &Json) -> String {
    let field = |name: &str| decoder.get(name);
    match field("type").and_then(Json::as_str) {
        Some("ByteLevel") => {
            // The token consists of bytes only if every character represents a byte.
            let bytes: Option<Vec<u8>> = text.chars().map(byte_of).collect();
            bytes.map_or_else(|| text.to_owned(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
        }
        Some("Replace") => {
            let pattern = field("pattern").and_then(|pattern| pattern.get("String")).and_then(Json::as_str);
            match (pattern, field("content").and_then(Json::as_str)) {
                (Some(pattern), Some(content)) if !pattern.is_empty() => text.replace(pattern, content),
                _ => text.to_owned(),
            }
        }
        Some("Sequence") => {
            let steps = field("decoders").and_then(Json::as_array);
            steps.into_iter().flatten().fold(text.to_owned(), |text, step| decoded(&text, step))
        }
        _ => text.to_owned(),
    }
}

/// Returns the character of byte-level BPE for a byte; the inverse of [`byte_of`].
pub(super) fn char_of(byte: u8) -> char {
    let other = match byte {
        0x00..=0x20 => u32::from(byte),
        0x7f..=0xa0 => u32::from(byte) - 0x7f + 0x21,
        0xad => 0x43,
        _ => return char::from(byte),
    };
    char::from_u32(0x100 + other).unwrap_or_default()
}

/// Returns the byte that a character of byte-level BPE represents. Printable bytes are their own characters; the others
/// are the characters from U+0100 on, in order.
fn byte_of(c: char) -> Option<u8> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(c);
    if code < 0x100 {
        return u8::try_from(code).ok().filter(|_| printable(code));
    }
    let place = usize::try_from(code.checked_sub(0x100)?).ok()?;
    (0..=0xffu32).filter(|byte| !printable(*byte)).nth(place).and_then(|byte| u8::try_from(byte).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bpe(added: Json) -> Json {
        json!({
            "added_tokens": added, "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 3}, "merges": ["a b"]},
        })
    }

    fn tokens_of(tokenizer: Json, config: Json, size: usize) -> Result<(Vec<String>, Vec<String>)> {
        let files = Files::for_test(tokenizer, config, json!({"vocab_size": size}));
        let mut notes = Vec::new();
        let tokens = tokens(&files, &Auto::load(&files)?, AddedTexts::Usual, &mut notes)?;
        Ok((tokens.iter().map(|t| format!("{}:{}", t.text, t.kind.number())).collect(), notes))
    }

    #[test]
    fn kinds_follow_flags_looks_and_names() {
        let added = json!([
            {"id": 4, "content": "<s>", "special": true},
            {"id": 5, "content": "<|fim|>", "special": false},
            {"id": 6, "content": "\u{2581}x", "special": false},
            {"id": 7, "content": "<late>", "special": false}
        ]);
        let config = json!({
            "added_tokens_decoder": {"7": {"content": "<late>", "special": true}, "8": {"content": "new", "special": false}},
            "eos_token": {"content": "b"}, "pad_token": "[absent]", "bos_token": null
        });
        let (tokens, notes) = tokens_of(bpe(added), config, 11).unwrap();
        assert_eq!(
            tokens,
            [
                "a:1",
                "b:3",
                "[PAD2]:5",
                "ab:1",
                "<s>:3",
                "<|fim|>:3",
                " x:4",
                "<late>:3",
                "new:4",
                "[absent]:3",
                "[PAD10]:5"
            ]
        );
        assert!(notes.is_empty());
    }

    #[test]
    fn a_name_without_a_row_is_left_out_with_a_note() {
        let (tokens, notes) = tokens_of(bpe(json!([])), json!({"pad_token": "[absent]"}), 4).unwrap();
        assert_eq!(tokens, ["a:1", "b:1", "[PAD2]:5", "ab:1"]);
        assert_eq!(notes, ["special token \"[absent]\" has no id among the 4 of the model: left out"]);
    }

    #[test]
    fn tokens_that_are_not_normalized_get_the_text_that_they_decode_to() {
        let added = json!([
            {"id": 4, "content": "\u{120}x", "special": false, "normalized": false},
            {"id": 5, "content": "\u{120}y", "special": false, "normalized": true},
            {"id": 6, "content": "\u{e9}", "special": false, "normalized": false},
            {"id": 7, "content": "<\u{ff5c}a\u{2581}b\u{ff5c}>", "special": true, "normalized": false}
        ]);
        let (tokens, _) = tokens_of(bpe(added), json!({}), 8).unwrap();
        assert_eq!(tokens[4..], [" x:4", "\u{120}y:4", "\u{fffd}:4", "<\u{ff5c}a\u{2581}b\u{ff5c}>:3"]);
    }

    #[test]
    fn ids_past_the_embedding_or_shared_are_refused() {
        let error = |added: Json, size: usize| tokens_of(bpe(added), json!({}), size).unwrap_err().to_string();
        let message = error(json!([{"id": 4, "content": "z"}]), 4);
        assert!(
            message.contains("token \"z\": expected an id below vocab_size 4 of config.json, found 4"),
            "{message}"
        );
        let twice = json!({"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": ["a b"]}});
        let message = tokens_of(twice, json!({}), 8).unwrap_err().to_string();
        assert!(
            message.contains("token \"b\": expected an id of its own, found id 0, which \"a\" has too"),
            "{message}"
        );
    }

    #[test]
    fn added_tokens_get_the_next_ids_whatever_is_listed() {
        let added = json!([{"id": 9, "content": "z"}, {"id": 0, "content": "a"}, {"id": 1, "content": "y"}]);
        let (tokens, notes) = tokens_of(bpe(added), json!({}), 6).unwrap();
        assert_eq!(tokens, ["a:4", "b:1", "[PAD2]:5", "ab:1", "z:4", "y:4"]);
        assert_eq!(notes.len(), 1);
        assert!(notes[0].ends_with(": \"z\" listed as 9 gets 4, \"y\" listed as 1 gets 5"), "{notes:?}");
    }

    #[test]
    fn bytes_have_the_characters_of_gpt2() {
        let of = |c| byte_of(c);
        assert_eq!(
            [of('!'), of('~'), of('\u{100}'), of('\u{120}'), of('\u{10a}'), of('\u{143}')],
            [Some(0x21), Some(0x7e), Some(0), Some(0x20), Some(0x0a), Some(0xad)]
        );
        assert_eq!([of(' '), of('\u{ad}'), of('\u{144}'), of('\u{ff5c}')], [None; 4]);
        assert!((0..=u8::MAX).all(|byte| byte_of(char_of(byte)) == Some(byte)));
        let all: std::collections::BTreeSet<u8> = ('\0'..='\u{200}').filter_map(byte_of).collect();
        assert_eq!(all.len(), 256);
    }
}
