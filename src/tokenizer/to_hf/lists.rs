//! Vocabularies that tokenizer.json can't describe, but a file of the model's own tokenizer can: RWKV's text file and
//! PLaMo's tokenizer.jsonl.
//!
//! Reference: llama.cpp `src/llama-vocab.cpp` (`llm_tokenizer_rwkv`, `llm_tokenizer_plamo2`), `conversion/base.py`
//! (`_set_vocab_rwkv_world`, `_set_vocab_plamo`).

use serde_json::{Map, Value as Json, json};

use super::template;
use super::vocabulary::Vocabulary;
use crate::checkpoint::{PLAMO_FILE, RWKV_FILE};
use crate::error::Result;
use crate::formats::gguf::Metadata;
use crate::tokenizer::keys;
use crate::tokenizer::python;
use crate::tokenizer::record::{self, TypeException};
use crate::tokenizer::special::SpecialToken;
use crate::tokenizer::token::{TokenKind, placeholder};

/// The file of RWKV's tokens, and the settings beside it.
pub(super) fn rwkv(metadata: &Metadata, notes: &mut Vec<String>) -> Result<Vec<(String, Vec<u8>)>> {
    let vocabulary = Vocabulary::read(metadata)?;
    let unfit = |id: u32, text: &str| {
        let finding = vocabulary.finding(keys::TOKENS);
        finding
            .expected("<s>, bytes as Python writes them, and placeholders")
            .found(format!("{text:?} as {id}"))
            .format()
    };
    let count = vocabulary.iter().filter(|(id, text, kind)| !vocabulary.is_placeholder(*id, text, *kind)).count();
    let mut lines = String::new();
    for (id, text, _) in vocabulary.iter().take(count) {
        if id == 0 {
            match text {
                "<s>" => continue,
                _ => return Err(unfit(id, text)),
            }
        }
        let bytes = python::bytes_of(text).ok_or_else(|| unfit(id, text))?;
        lines.push_str(&format!("{id} {} {}\n", literal(&bytes), bytes.len()));
    }
    let mut settings = Map::new();
    settings.insert("tokenizer_class".to_owned(), json!("Rwkv6Tokenizer"));
    let normal = |id: u32| match id {
        0 => TokenKind::Control,
        _ => TokenKind::Normal,
    };
    let expected = |id: u32, text: &str, kind| match vocabulary.is_placeholder(id, text, kind) {
        true => TokenKind::Unused,
        false => normal(id),
    };
    with_settings(metadata, settings, (RWKV_FILE, lines), exceptions(&vocabulary, expected), notes)
}

/// PLaMo's pieces, and the settings beside them.
pub(super) fn plamo(metadata: &Metadata, notes: &mut Vec<String>) -> Result<Vec<(String, Vec<u8>)>> {
    let vocabulary = Vocabulary::read(metadata)?;
    // The converter numbers the placeholders at the end from one.
    let pieces = vocabulary.iter().filter(|(_, _, kind)| *kind != TokenKind::Unused).count();
    let mut lines = String::new();
    for (id, text, kind) in vocabulary.iter() {
        let place = usize::try_from(id).unwrap_or(usize::MAX);
        if place >= pieces {
            if text != placeholder(place - pieces + 1) {
                let finding = vocabulary.finding(keys::TOKENS).expected("placeholders at the end alone");
                return Err(finding.found(format!("{text:?} as {id}")).format());
            }
            continue;
        }
        let kind = match kind {
            TokenKind::Unknown => "UNKNOWN",
            TokenKind::Control => "CONTROL",
            TokenKind::Byte => "BYTE",
            _ => "NORMAL",
        };
        lines.push_str(&format!("{}\n", json!([text, f64::from(vocabulary.score(place)), kind])));
    }
    let mut settings = Map::new();
    settings.insert("tokenizer_class".to_owned(), json!("Plamo2Tokenizer"));
    for (role, name, key) in SpecialToken::ALL {
        if matches!(role, SpecialToken::Cls | SpecialToken::Mask | SpecialToken::Eot | SpecialToken::Eom) {
            continue;
        }
        let Some(id) = metadata.get(key).map(|_| metadata.u32(key)).transpose()? else { continue };
        let text = vocabulary.text(id).ok_or_else(|| {
            let finding = metadata.finding(key).expected(format_args!("an id below {}", vocabulary.len()));
            finding.found(id).format()
        })?;
        settings.insert(format!("{name}_token"), json!(text));
    }
    let expected = |_: u32, text: &str, kind| match kind {
        TokenKind::Unknown | TokenKind::Control | TokenKind::Byte | TokenKind::Unused => kind,
        _ if text.starts_with("<|plamo:") && text.ends_with("|>") => TokenKind::Control,
        _ => TokenKind::Normal,
    };
    with_settings(metadata, settings, (PLAMO_FILE, lines), exceptions(&vocabulary, expected), notes)
}

/// Returns bytes as a Python literal: a text where they are printable ASCII.
fn literal(bytes: &[u8]) -> String {
    let quote = if bytes.contains(&b'\'') && !bytes.contains(&b'"') { '"' } else { '\'' };
    let prefix = if bytes.is_ascii() { "" } else { "b" };
    format!("{prefix}{quote}{}{quote}", python::bytes_repr(bytes))
}

/// Returns the tokens that would come back with another kind than they have.
fn exceptions(vocabulary: &Vocabulary, expected: impl Fn(u32, &str, TokenKind) -> TokenKind) -> Vec<TypeException> {
    let mut exceptions = Vec::new();
    for (id, text, kind) in vocabulary.iter() {
        TypeException::add(&mut exceptions, id, kind, expected(id, text, kind));
    }
    exceptions
}

/// Makes the files: the list, the chat template and tokenizer_config.json.
fn with_settings(
    metadata: &Metadata,
    mut settings: Map<String, Json>,
    (name, list): (&str, String),
    exceptions: Vec<TypeException>,
    notes: &mut Vec<String>,
) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = vec![(name.to_owned(), list.into_bytes())];
    files.extend(template::write(&mut settings, metadata)?);
    settings.insert(record::FIELD.to_owned(), record::write(metadata, exceptions, notes));
    files.push(("tokenizer_config.json".to_owned(), super::pretty(metadata, settings)?));
    notes.push(format!("no tokenizer.json: it can't describe this tokenizer, {name} is written"));
    Ok(files)
}
