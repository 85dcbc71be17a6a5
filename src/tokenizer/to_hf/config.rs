//! tokenizer_config.json, and the chat templates.
//!
//! A single template stands in `chat_template.jinja`; several stand as a list in
//! tokenizer_config.json, which keeps their order.
//!
//! Reference: transformers `tokenization_utils_base.py` (`from_pretrained`), llama.cpp
//! `gguf-py/gguf/vocab.py` (`SpecialVocab`).

use serde_json::{Map, Value as Json, json};

use super::specials::Role;
use super::{Parts, TokenizerKind, wordpiece};
use crate::error::Result;
use crate::formats::gguf::Metadata;

const TEMPLATE: &str = "tokenizer.chat_template";
const TEMPLATES: &str = "tokenizer.chat_templates";

/// Adds the settings, those of the kind last, and gives the files of chat templates.
pub(super) fn fill(
    settings: &mut Map<String, Json>,
    parts: &Parts,
    own: Vec<(&'static str, Json)>,
) -> Result<Vec<(String, Vec<u8>)>> {
    let Parts { metadata, vocabulary, specials, kind, .. } = parts;
    let mut set = |name: &str, value: Json| {
        settings.insert(name.to_owned(), value);
    };
    // The class that takes tokenizer.json as it is.
    set("tokenizer_class", json!("PreTrainedTokenizerFast"));
    // transformers makes a template of its own where these stand, of first and last token alone.
    if matches!(kind, TokenizerKind::Bpe | TokenizerKind::SentencePiece | TokenizerKind::Unigram) && !specials.add_sep {
        for (role, adds) in [(Role::Bos, specials.add_bos), (Role::Eos, specials.add_eos)] {
            let (name, key) = match role {
                Role::Bos => ("add_bos_token", "tokenizer.ggml.add_bos_token"),
                _ => ("add_eos_token", "tokenizer.ggml.add_eos_token"),
            };
            if metadata.get(key).is_some() && (!adds || specials.given(role).is_some()) {
                set(name, json!(adds));
            }
        }
    }
    if metadata.get("tokenizer.ggml.add_space_prefix").is_some() {
        set("add_prefix_space", json!(metadata.bool("tokenizer.ggml.add_space_prefix")?));
    }
    for (role, name, text) in specials.named(vocabulary) {
        // These two have no place in transformers.
        if !matches!(role, Role::Eot | Role::Eom) {
            set(&format!("{name}_token"), json!(spelled(parts, text)));
        }
    }
    if *kind == TokenizerKind::WordPiece && specials.given(Role::Cls).is_none() {
        // The token before a text has this name in BERT.
        if let Some(text) = specials.id(Role::Bos, vocabulary).and_then(|id| vocabulary.text(id)) {
            set("cls_token", json!(spelled(parts, text)));
        }
    }
    set("clean_up_tokenization_spaces", json!(false));
    if let Some(length) = context_length(metadata) {
        set("model_max_length", json!(length));
    }
    if *kind != TokenizerKind::WordPiece {
        set("model_input_names", json!(["input_ids", "attention_mask"]));
    }
    for (name, value) in own {
        set(name, value);
    }
    templates(settings, metadata)
}

/// A token as tokenizer.json spells it.
fn spelled(parts: &Parts, text: &str) -> String {
    let Parts { vocabulary, kind, .. } = parts;
    let of = vocabulary.id(text).and_then(|id| vocabulary.kind(id));
    match (kind, of) {
        (TokenizerKind::WordPiece, Some(of)) => wordpiece::word(text, of),
        _ => text.to_owned(),
    }
}

/// How long texts may be, where the model says so.
fn context_length(metadata: &Metadata) -> Option<u64> {
    let architecture = metadata.text("general.architecture").ok()?;
    metadata.get(&format!("{architecture}.context_length"))?.as_unsigned()
}

fn templates(settings: &mut Map<String, Json>, metadata: &Metadata) -> Result<Vec<(String, Vec<u8>)>> {
    let default = match metadata.get(TEMPLATE) {
        None => None,
        Some(_) => Some(metadata.text(TEMPLATE)?),
    };
    let prefix = format!("{TEMPLATE}.");
    let mut named = Vec::new();
    for (key, _) in metadata.iter() {
        if let Some(name) = key.strip_prefix(&prefix) {
            named.push(json!({"name": name, "template": metadata.text(key)?}));
        }
    }
    if metadata.get(TEMPLATES).is_some() {
        for (place, name) in metadata.strings(TEMPLATES)?.iter().enumerate() {
            let known = std::str::from_utf8(name).is_ok_and(|name| metadata.get(&format!("{prefix}{name}")).is_some());
            if !known {
                let found = format!("{:?} at {place}, which has none", String::from_utf8_lossy(name));
                return Err(metadata.finding(TEMPLATES).expected("names of templates").found(found).format());
            }
        }
    }
    match default {
        None if named.is_empty() => Ok(Vec::new()),
        // Read as a text file, a line end would become another.
        Some(text) if named.is_empty() && text.contains('\r') => {
            settings.insert("chat_template".to_owned(), json!(text));
            Ok(Vec::new())
        }
        Some(text) if named.is_empty() => Ok(vec![("chat_template.jinja".to_owned(), text.as_bytes().to_vec())]),
        default => {
            let default = default.map(|text| json!({"name": "default", "template": text}));
            settings.insert("chat_template".to_owned(), default.into_iter().chain(named).collect());
            Ok(Vec::new())
        }
    }
}
