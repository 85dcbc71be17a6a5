//! The chat templates: one template is the file `chat_template.jinja`; several are a list in
//! tokenizer_config.json, which keeps their order.
//!
//! Reference: llama.cpp `gguf-py/gguf/vocab.py` (`SpecialVocab`).

use serde_json::{Map, Value as Json, json};

use crate::error::Result;
use crate::formats::gguf::Metadata;
use crate::tokenizer::keys;

/// Adds the templates to the settings where they belong there. Returns the file of a single one.
pub(super) fn write(settings: &mut Map<String, Json>, metadata: &Metadata) -> Result<Vec<(String, Vec<u8>)>> {
    let default = match metadata.get(keys::CHAT_TEMPLATE) {
        None => None,
        Some(_) => Some(metadata.text(keys::CHAT_TEMPLATE)?),
    };
    let prefix = format!("{}.", keys::CHAT_TEMPLATE);
    let mut named = Vec::new();
    for (key, _) in metadata.iter() {
        if let Some(name) = key.strip_prefix(&prefix) {
            named.push(json!({"name": name, "template": metadata.text(key)?}));
        }
    }
    if metadata.get(keys::CHAT_TEMPLATES).is_some() {
        for (place, name) in metadata.strings(keys::CHAT_TEMPLATES)?.iter().enumerate() {
            let known = std::str::from_utf8(name).is_ok_and(|name| metadata.get(&format!("{prefix}{name}")).is_some());
            if !known {
                let found = format!("{:?} at {place}, which has none", String::from_utf8_lossy(name));
                return Err(metadata
                    .finding(keys::CHAT_TEMPLATES)
                    .expected("names of templates")
                    .found(found)
                    .format());
            }
        }
    }
    match default {
        None if named.is_empty() => Ok(Vec::new()),
        // In a text file, the line end would be read as a plain newline.
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
