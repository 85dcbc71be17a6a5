//! Faults of a tokenizer.json that the tokenizers library loads, but that break texts later.
//!
//! Reference: tokenizers `models/bpe/model.rs` and `models/wordpiece/mod.rs`, whose unknown token has to be one of the
//! model's own vocabulary when a text needs it.

use serde_json::Value as Json;

use super::files::{Files, Object};
use crate::error::Result;
use crate::tokenizer::token::{is_byte, looks_special};

/// Refuses BPE without merges whose vocabulary of `texts` has tokens that only merges make. `texts` are those of the
/// model, without added tokens.
pub(super) fn check_merges<'a>(files: &Files, model: &Object, texts: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let has = |name: &str| model.get(name).is_some_and(|value| !crate::json::is_off(value));
    if has("merges") || has("ignore_merges") || files.folder.join("merges.txt").is_file() {
        return Ok(());
    }
    let is_merged = |text: &&str| text.chars().nth(1).is_some() && !is_byte(text) && !looks_special(text);
    let unknown = model.get("unk_token").and_then(Json::as_str);
    match texts.into_iter().filter(is_merged).find(|text| Some(*text) != unknown) {
        None => Ok(()),
        Some(text) => {
            let finding =
                files.finding("model.merges").expected(format_args!("merges that make tokens such as {text:?}"));
            Err(finding.found("none").format())
        }
    }
}

/// Notes an unknown token that isn't in the model's vocabulary, where texts can have unknown characters.
pub(super) fn note_unknown(tokenizer: &Object, is_known: impl Fn(&str) -> bool, notes: &mut Vec<String>) {
    let model = tokenizer.get("model");
    let Some(unknown) = model.and_then(|model| model.get("unk_token")).and_then(Json::as_str) else { return };
    let falls_back = model.and_then(|model| model.get("byte_fallback")).and_then(Json::as_bool) == Some(true);
    // Byte-level BPE has a token for every byte.
    let part = |name: &str| tokenizer.get(name).is_some_and(|part| part.to_string().contains("\"ByteLevel\""));
    if !is_known(unknown) && !falls_back && !part("pre_tokenizer") && !part("normalizer") {
        notes.push(format!(
            "tokenizer.json: model.unk_token is {unknown:?}, which the model's vocabulary lacks: the tokenizers library \
             fails on text with unknown characters"
        ));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(json: Json) -> Object {
        json.as_object().unwrap().clone()
    }

    #[test]
    fn tokens_that_nothing_makes_are_refused() {
        let check = |model: Json, texts: &[&str]| {
            let files = Files::for_test(json!({}), json!({}), json!({}));
            check_merges(&files, &object(model), texts.iter().copied()).map_err(|error| error.to_string())
        };
        let none = json!({"merges": [], "unk_token": "<unk>"});
        let refusal = check(none.clone(), &["a", "b", "ab"]).unwrap_err();
        assert!(
            refusal.ends_with("model.merges: expected merges that make tokens such as \"ab\", found none"),
            "{refusal}"
        );
        assert!(check(json!({}), &["ab"]).is_err());
        assert_eq!(check(none, &["a", "\u{e9}", "<0x0A>", "<unk>", "<|end|>"]), Ok(()));
        assert_eq!(check(json!({"merges": ["a b"]}), &["ab"]), Ok(()));
        // Llama 3 looks for whole words first.
        assert_eq!(check(json!({"ignore_merges": true}), &["ab"]), Ok(()));
    }

    #[test]
    fn an_unknown_token_that_is_none_is_noted() {
        let noted = |tokenizer: Json| {
            let mut notes = Vec::new();
            note_unknown(&object(tokenizer), |text| text == "[UNK]", &mut notes);
            notes.len()
        };
        assert_eq!(noted(json!({"model": {"type": "WordPiece", "unk_token": "<unk>"}})), 1);
        assert_eq!(noted(json!({"model": {"type": "WordPiece", "unk_token": "[UNK]"}})), 0);
        assert_eq!(noted(json!({"model": {"type": "BPE", "unk_token": null}})), 0);
        assert_eq!(noted(json!({"model": {"unk_token": "x", "byte_fallback": true}})), 0);
        assert_eq!(noted(json!({"model": {"unk_token": "x"}, "pre_tokenizer": {"type": "ByteLevel"}})), 0);
    }
}
