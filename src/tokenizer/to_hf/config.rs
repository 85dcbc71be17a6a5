//! The settings in tokenizer_config.json.
//!
//! Reference: transformers `tokenization_utils_base.py` (`from_pretrained`).

use serde_json::{Map, Value as Json, json};

use super::{GgufTokenizer, TokenizerKind, template, wordpiece};
use crate::error::Result;
use crate::formats::gguf::Metadata;
use crate::tokenizer::keys;
use crate::tokenizer::special::SpecialToken;

/// Adds the settings, those of the algorithm last. Returns the files of chat templates.
pub(super) fn fill(
    settings: &mut Map<String, Json>,
    parts: &GgufTokenizer,
    own: Vec<(&'static str, Json)>,
) -> Result<Vec<(String, Vec<u8>)>> {
    let GgufTokenizer { metadata, vocabulary, specials, kind, .. } = parts;
    let mut set = |name: &str, value: Json| {
        settings.insert(name.to_owned(), value);
    };
    // The class that uses tokenizer.json unchanged.
    set("tokenizer_class", json!("PreTrainedTokenizerFast"));
    // With these settings transformers makes a template of its own, of the first and last token.
    if matches!(kind, TokenizerKind::Bpe | TokenizerKind::SentencePiece | TokenizerKind::Unigram) && !specials.add_sep {
        for (role, adds) in [(SpecialToken::Bos, specials.add_bos), (SpecialToken::Eos, specials.add_eos)] {
            let (name, key) = match role {
                SpecialToken::Bos => ("add_bos_token", keys::ADD_BOS),
                _ => ("add_eos_token", keys::ADD_EOS),
            };
            if metadata.get(key).is_some() && (!adds || specials.given(role).is_some()) {
                set(name, json!(adds));
            }
        }
    }
    if metadata.get(keys::ADD_SPACE_PREFIX).is_some() {
        set("add_prefix_space", json!(metadata.bool(keys::ADD_SPACE_PREFIX)?));
    }
    for (role, name, text) in specials.named(vocabulary) {
        // transformers has no names for these two.
        if !matches!(role, SpecialToken::Eot | SpecialToken::Eom) {
            set(&format!("{name}_token"), json!(spelled(parts, text)));
        }
    }
    if *kind == TokenizerKind::WordPiece && specials.given(SpecialToken::Cls).is_none() {
        // In BERT the token before a text has this name.
        if let Some(text) = specials.id(SpecialToken::Bos, vocabulary).and_then(|id| vocabulary.text(id)) {
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
    template::write(settings, metadata)
}

/// The text of a token in tokenizer.json.
fn spelled(parts: &GgufTokenizer, text: &str) -> String {
    let GgufTokenizer { vocabulary, kind, .. } = parts;
    let of = vocabulary.id(text).and_then(|id| vocabulary.kind(id));
    match (kind, of) {
        (TokenizerKind::WordPiece, Some(of)) => wordpiece::word(text, of),
        _ => text.to_owned(),
    }
}

/// The context length, where the file has it.
fn context_length(metadata: &Metadata) -> Option<u64> {
    let architecture = metadata.text("general.architecture").ok()?;
    metadata.get(&format!("{architecture}.context_length"))?.as_unsigned()
}
