//! Which of llama.cpp's pre-tokenizers splits text as the tokenizer does.
//!
//! llama.cpp has its splitting rules built in and picks one by name (`tokenizer.ggml.pre`). The
//! reference finds the name by hashing the tokens of a fixed text, which fails for any tokenizer
//! it hasn't seen. Here the hash is looked up too; where it is unknown the rules themselves are
//! compared, which holds for fine-tunes and newly trained vocabularies as well.
//!
//! Reference: llama.cpp `conversion/base.py` (`get_vocab_base_pre`), `src/llama-vocab.cpp`.

use serde_json::Value as Json;

use super::auto::{Auto, Model};
use super::files::{Files, shortened};
use super::hashes;
use super::rules::{DIGIT, DIGITS, GPT2, KNOWN, PUNCTUATION, PUNCTUATION_MARKS, WHOLE_TEXT};
use crate::error::Result;
use crate::tokenizer::to_hf::recorded_pre;

/// The name of the pre-tokenizer: `wanted`, else by hash, else by rules.
///
/// # Errors
/// [`crate::Error::Unsupported`] where there is none, showing the rules.
pub(super) fn find(files: &Files, auto: &Auto, wanted: Option<&str>, notes: &mut Vec<String>) -> Result<String> {
    if let Some(name) = wanted {
        if !hashes::has_name(name) {
            notes.push(format!("pre-tokenizer {name}: llama.cpp has none of this name as far as this version knows"));
        }
        return Ok(name.to_owned());
    }
    if let Some(name) = recorded_pre(&auto.json, files.config.as_ref()) {
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
        // llama.cpp has one way to split the text of WordPiece and reads no name for it; the key
        // only has to be there.
        Model::WordPiece => return Ok("gpt-2".to_owned()),
        _ => by_rules(files, auto)?,
    };
    let source =
        if files.tokenizer.is_some() { "the rules of tokenizer.json" } else { "the rules of the tokenizer's class" };
    notes.push(format!("pre-tokenizer {name}: found by {source}; {why}"));
    Ok(name.to_owned())
}

/// What the table says of a tokenizer.
enum Hashed {
    #[cfg(feature = "convert")]
    Known(&'static str),
    #[cfg(feature = "convert")]
    Unknown,
    #[cfg(feature = "convert")]
    Failed(String),
    /// Without tokenizers.
    #[cfg(not(feature = "convert"))]
    LeftOut,
}

#[cfg(feature = "convert")]
fn hashed(auto: &Auto) -> Hashed {
    match hashes::hash(auto) {
        Ok(hash) => hashes::name(&hash).map_or(Hashed::Unknown, Hashed::Known),
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
    let mut steps = Steps::default();
    let readable = if flag("byte_fallback") && is_whole_text(normalizer, pre_tokenizer) {
        steps.rules.push(WHOLE_TEXT.to_owned());
        true
    } else {
        steps.read(pre_tokenizer) && steps.byte_level
    };
    let model_type = files.model_type();
    let fits = |known: &&super::rules::Known| {
        known.rules == steps.rules && known.ignore_merges.is_none_or(|ignore| ignore == flag("ignore_merges"))
    };
    let mut fitting = KNOWN.iter().filter(fits).filter(|_| readable);
    let own = fitting.clone().find(|known| known.models.contains(&model_type));
    let name = own.or_else(|| fitting.find(|known| known.models.is_empty())).map(|known| known.name);
    name.ok_or_else(|| {
        let mut names: Vec<&str> = KNOWN.iter().map(|known| known.name).collect();
        names.dedup();
        files
            .finding("pre_tokenizer")
            .expected(format_args!("the rules of a pre-tokenizer of llama.cpp ({})", names.join(", ")))
            .found(shortened(&pre_tokenizer.to_string()))
            .hint("name one of llama.cpp's own with --pre NAME, and compare the tokens of both on your texts")
            .unsupported()
    })
}

/// Whether spaces become U+2581 and nothing else happens before the merges. Gemma's files split at
/// spaces then, of which there are none left.
fn is_whole_text(normalizer: &Json, pre_tokenizer: &Json) -> bool {
    let spaces = serde_json::json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let steps = normalizer.get("normalizers").and_then(Json::as_array);
    let replaces = *normalizer == spaces || steps.is_some_and(|steps| *steps == [spaces]);
    let at_spaces =
        pre_tokenizer.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Json::as_str) == Some(" ");
    replaces && (pre_tokenizer.is_null() || at_spaces)
}

/// What a pre-tokenizer comes down to.
#[derive(Default)]
struct Steps {
    /// Splitting rules in order, as regular expressions.
    rules: Vec<String>,
    /// Whether bytes become the characters of byte-level BPE.
    byte_level: bool,
}

impl Steps {
    /// Adds the steps of `json`; false for one that has no counterpart in llama.cpp.
    fn read(&mut self, json: &Json) -> bool {
        let flag = |name: &str, default: bool| json.get(name).and_then(Json::as_bool).unwrap_or(default);
        let text = |name: &str| json.get(name).and_then(Json::as_str).unwrap_or_default();
        match text("type") {
            "Sequence" => {
                let steps = json.get("pretokenizers").and_then(Json::as_array);
                steps.is_some_and(|steps| steps.iter().all(|step| self.read(step)))
            }
            "ByteLevel" => {
                if flag("use_regex", true) {
                    self.rules.push(GPT2.to_owned());
                }
                self.byte_level = true;
                // llama.cpp puts no space before the text of a BPE vocabulary.
                !flag("add_prefix_space", true)
            }
            "Split" => {
                let pattern = json.get("pattern").and_then(|p| p.get("Regex")).and_then(Json::as_str);
                let Some(pattern) = pattern else { return false };
                self.rules.push(canonical(pattern));
                // Both keep matches as pieces; the second drops what is between, which is nothing
                // for rules that match all text.
                matches!((text("behavior"), flag("invert", false)), ("Isolated", false) | ("Removed", true))
            }
            "Digits" => {
                self.rules.push(if flag("individual_digits", false) { DIGIT } else { DIGITS }.to_owned());
                true
            }
            "Punctuation" => {
                let rule = match text("behavior") {
                    "Contiguous" => PUNCTUATION,
                    "Isolated" => PUNCTUATION_MARKS,
                    _ => return false,
                };
                self.rules.push(rule.to_owned());
                true
            }
            _ => false,
        }
    }
}

/// One spelling for patterns that mean the same: control characters as escapes, contractions as a
/// group without case.
fn canonical(pattern: &str) -> String {
    pattern
        .replace('\r', r"\r")
        .replace('\n', r"\n")
        .replace("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "(?i:'s|'t|'re|'ve|'m|'ll|'d)")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::rules;
    use super::*;

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
                error.contains("tokenizer.json: pre_tokenizer: expected") && error.contains("--pre NAME"),
                "{error}"
            );
        }
    }

    #[test]
    fn every_known_rule_is_found_again() {
        for known in KNOWN {
            let step = |rule: &&str| match *rule {
                PUNCTUATION => json!({"type": "Punctuation", "behavior": "Contiguous"}),
                PUNCTUATION_MARKS => json!({"type": "Punctuation", "behavior": "Isolated"}),
                rule => split(rule),
            };
            let model = json!({"type": "BPE", "vocab": {}, "ignore_merges": known.ignore_merges, "byte_fallback": known.rules == [WHOLE_TEXT]});
            let mut steps: Vec<Json> = known.rules.iter().map(step).collect();
            steps.push(byte_level(false));
            let tokenizer = match known.rules == [WHOLE_TEXT] {
                true => {
                    json!({"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}, "model": model})
                }
                false => json!({"pre_tokenizer": sequence(&steps), "model": model}),
            };
            let model_type = known.models.first().copied().unwrap_or_default();
            assert_eq!(detect(tokenizer, model_type).unwrap(), known.name);
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
