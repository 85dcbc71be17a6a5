//! Which of llama.cpp's pre-tokenizers splits text as the tokenizer does.
//!
//! llama.cpp's converter finds the name (`tokenizer.ggml.pre`) by the hash of the tokens of a fixed
//! text, so it refuses every tokenizer that isn't in its table. Here the hash is looked up too. Where
//! it is unknown, the splitting rules are compared, which also works for fine-tunes with new tokens
//! and newly trained vocabularies.
//!
//! Reference: llama.cpp `conversion/base.py` (`get_vocab_base_pre`), `src/llama-vocab.cpp`.

use serde_json::Value as Json;

use super::auto::{Auto, ModelKind};
use super::files::{Files, shortened};
#[cfg(feature = "convert")]
use super::hash::hash;
use crate::error::Result;
use crate::tokenizer::pre::{self, Steps};
use crate::tokenizer::record;

/// The name of the pre-tokenizer: `wanted`, else the recorded one, else by hash, else by rules.
///
/// # Errors
/// [`crate::Error::Unsupported`] where there is none, showing the rules.
pub(super) fn find(files: &Files, auto: &Auto, wanted: Option<&str>, notes: &mut Vec<String>) -> Result<String> {
    if let Some(name) = wanted {
        if !pre::has_name(name) {
            notes.push(format!("pre-tokenizer {name}: llama.cpp has none of this name as far as this version knows"));
        }
        return Ok(name.to_owned());
    }
    if let Some(name) = record::pre_tokenizer_name(&auto.json, files.config.as_ref()) {
        return Ok(name);
    }
    let why = match hashed(auto) {
        #[cfg(feature = "convert")]
        Hashed::Known(name) => return Ok(name.to_owned()),
        #[cfg(feature = "convert")]
        Hashed::Unknown => "its hash is not in llama.cpp's table".to_owned(),
        #[cfg(feature = "convert")]
        Hashed::Failed(error) => format!("its hash can't be computed ({})", shortened(&error)),
        #[cfg(not(feature = "convert"))]
        Hashed::LeftOut => "this build computes no hashes".to_owned(),
    };
    let name = match auto.model {
        // llama.cpp splits text for WordPiece in one way and doesn't read the name, but needs the key.
        ModelKind::WordPiece => return Ok("gpt-2".to_owned()),
        _ => by_rules(files, auto)?,
    };
    let source =
        if files.tokenizer.is_some() { "the rules of tokenizer.json" } else { "the rules of the tokenizer's class" };
    notes.push(format!("pre-tokenizer {name}: found by {source}; {why}"));
    Ok(name.to_owned())
}

/// The result of looking a tokenizer up by its hash.
enum Hashed {
    #[cfg(feature = "convert")]
    Known(&'static str),
    #[cfg(feature = "convert")]
    Unknown,
    #[cfg(feature = "convert")]
    Failed(String),
    /// This build has no hashes: they need the feature `convert`.
    #[cfg(not(feature = "convert"))]
    LeftOut,
}

#[cfg(feature = "convert")]
fn hashed(auto: &Auto) -> Hashed {
    match hash(auto) {
        Ok(hash) => pre::name_by_hash(&hash).map_or(Hashed::Unknown, Hashed::Known),
        Err(error) => Hashed::Failed(error.to_string()),
    }
}

#[cfg(not(feature = "convert"))]
fn hashed(_: &Auto) -> Hashed {
    Hashed::LeftOut
}

/// The name of the pre-tokenizer whose rules the tokenizer has.
fn by_rules(files: &Files, auto: &Auto) -> Result<&'static str> {
    let model = auto.json.get("model").unwrap_or(&Json::Null);
    let flag = |name: &str| model.get(name).and_then(Json::as_bool).unwrap_or(false);
    let pre_tokenizer = auto.json.get("pre_tokenizer").unwrap_or(&Json::Null);
    let normalizer = auto.json.get("normalizer").unwrap_or(&Json::Null);
    let steps = Steps::read(pre_tokenizer, normalizer, flag("byte_fallback"));
    let name = steps.and_then(|steps| pre::name_by_rules(&steps.rules, flag("ignore_merges"), files.model_type()));
    name.ok_or_else(|| {
        let names: Vec<&str> = pre::names_by_rules().collect();
        files
            .finding("pre_tokenizer")
            .expected(format_args!("the rules of a pre-tokenizer of llama.cpp ({})", names.join(", ")))
            .found(shortened(&pre_tokenizer.to_string()))
            .hint("name one of llama.cpp's own with `pre`, and compare the tokens of both on your texts")
            .unsupported()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tokenizer::pre::rules;

    fn detect(tokenizer: Json, model_type: &str) -> Result<&'static str> {
        let files = Files::for_test(tokenizer, json!({}), json!({"model_type": model_type}));
        by_rules(&files, &Auto::load(&files)?)
    }

    fn detect_in(pre_tokenizer: Json, ignore_merges: bool) -> Result<&'static str> {
        let model = json!({"type": "BPE", "vocab": {}, "ignore_merges": ignore_merges});
        detect(json!({"pre_tokenizer": pre_tokenizer, "model": model}), "")
    }

    fn byte_level(use_regex: bool) -> Json {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
    }

    fn split(pattern: &str) -> Json {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
    }

    fn sequence(steps: &[Json]) -> Json {
        json!({"type": "Sequence", "pretokenizers": steps})
    }

    #[test]
    fn rules_find_their_name() {
        let regex = |pattern: &str| sequence(&[split(pattern), byte_level(false)]);
        let digits = json!({"type": "Digits", "individual_digits": true});
        let removed =
            json!({"type": "Split", "pattern": {"Regex": rules::GPT4O}, "behavior": "Removed", "invert": true});
        let cases = [
            (byte_level(true), false, "gpt-2"),
            (json!({"type": "ByteLevel", "add_prefix_space": false}), false, "gpt-2"),
            (regex(rules::GPT2), false, "gpt-2"),
            (regex(rules::LLAMA3), true, "llama-bpe"),
            (regex(rules::LLAMA3), false, "smaug-bpe"),
            (regex(&rules::QWEN2.replace(r"\r", "\r").replace(r"\n", "\n")), false, "qwen2"),
            (sequence(&[removed, byte_level(false)]), false, "gpt-4o"),
            (sequence(&[digits, byte_level(true)]), false, "smollm"),
            (regex(rules::TEKKEN), true, "tekken"),
        ];
        for (pre_tokenizer, ignore_merges, expected) in cases {
            assert_eq!(detect_in(pre_tokenizer.clone(), ignore_merges).unwrap(), expected, "{pre_tokenizer}");
        }
    }

    #[test]
    fn other_rules_are_refused_with_what_to_try() {
        let cases = [
            Json::Null,
            json!({"type": "Metaspace"}),
            json!({"type": "ByteLevel", "add_prefix_space": true}),
            sequence(&[split(r"\w+"), byte_level(false)]),
            split(rules::QWEN2),
            sequence(&[
                json!({"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated"}),
                byte_level(false),
            ]),
        ];
        for pre_tokenizer in cases {
            let error = detect_in(pre_tokenizer, false).unwrap_err().to_string();
            assert!(
                error.contains("tokenizer.json: pre_tokenizer: expected") && error.contains("with `pre`"),
                "{error}"
            );
        }
    }

    #[test]
    fn names_that_share_rules_are_chosen_by_the_type_of_model() {
        let digits = json!({"type": "Digits", "individual_digits": true});
        let pre_tokenizer = sequence(&[digits, byte_level(true)]);
        for (model_type, expected) in [("starcoder2", "starcoder"), ("cohere", "command-r"), ("llama", "smollm")] {
            let tokenizer = json!({"pre_tokenizer": pre_tokenizer, "model": {"type": "BPE", "vocab": {}}});
            assert_eq!(detect(tokenizer, model_type).unwrap(), expected);
        }
    }

    #[test]
    fn a_name_that_was_asked_for_is_taken_and_doubted() {
        let files = Files::for_test(json!({"model": {"type": "BPE", "vocab": {}}}), json!({}), json!({}));
        let auto = Auto::load(&files).unwrap();
        let mut notes = Vec::new();
        assert_eq!(find(&files, &auto, Some("qwen2"), &mut notes).unwrap(), "qwen2");
        assert!(notes.is_empty());
        assert_eq!(find(&files, &auto, Some("my-own"), &mut notes).unwrap(), "my-own");
        assert!(notes[0].starts_with("pre-tokenizer my-own: llama.cpp has none of this name"), "{notes:?}");
    }
}
