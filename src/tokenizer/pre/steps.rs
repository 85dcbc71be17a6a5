//! Splitting rules as the `pre_tokenizer` of tokenizer.json, written and read.
//!
//! A rule is a `Split` that keeps its matches as pieces. Some rules are steps of their own in
//! tokenizers: [`PUNCTUATION`], [`PUNCTUATION_MARKS`], digits, and the rule of `ByteLevel`.

use serde_json::{Value as Json, json};

use super::Letters;
use super::rules::{DIGIT, DIGITS, GPT2, PUNCTUATION, PUNCTUATION_MARKS, WHOLE_TEXT};

/// The `pre_tokenizer` that splits by `rules`.
pub(super) fn pre_tokenizer(rules: &[&str], letters: Letters) -> Json {
    let mut steps: Vec<Json> = rules.iter().map(|rule| step(rule)).collect();
    match letters {
        Letters::Bytes => steps
            .push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false})),
        Letters::Escaped => {}
        Letters::Words => return json!({"type": "WhitespaceSplit"}),
    }
    json!({"type": "Sequence", "pretokenizers": steps})
}

fn step(rule: &str) -> Json {
    match rule {
        PUNCTUATION => json!({"type": "Punctuation", "behavior": "Contiguous"}),
        PUNCTUATION_MARKS => json!({"type": "Punctuation", "behavior": "Isolated"}),
        pattern => json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}),
    }
}

/// What a pre-tokenizer of tokenizer.json does.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::tokenizer) struct Steps {
    /// Splitting rules in order.
    pub(in crate::tokenizer) rules: Vec<String>,
    /// Whether bytes become the characters of byte-level BPE.
    byte_level: bool,
}

impl Steps {
    /// The steps of a byte-level tokenizer's `pre_tokenizer`, or of one that merges whole texts
    /// (`falls_back_to_bytes`); `None` where llama.cpp has no counterpart.
    pub(in crate::tokenizer) fn read(
        pre_tokenizer: &Json,
        normalizer: &Json,
        falls_back_to_bytes: bool,
    ) -> Option<Self> {
        let mut steps = Self::default();
        if falls_back_to_bytes && is_whole_text(normalizer, pre_tokenizer) {
            steps.rules.push(WHOLE_TEXT.to_owned());
            return Some(steps);
        }
        (steps.add(pre_tokenizer) && steps.byte_level).then_some(steps)
    }

    /// Adds the steps of `json`; false for a step that has no counterpart in llama.cpp.
    fn add(&mut self, json: &Json) -> bool {
        let flag = |name: &str, default: bool| json.get(name).and_then(Json::as_bool).unwrap_or(default);
        let text = |name: &str| json.get(name).and_then(Json::as_str).unwrap_or_default();
        match text("type") {
            "Sequence" => {
                let steps = json.get("pretokenizers").and_then(Json::as_array);
                steps.is_some_and(|steps| steps.iter().all(|step| self.add(step)))
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
                // Both keep matches as pieces. The second drops the text between matches; rules that
                // match all text leave none.
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

/// Whether spaces become U+2581 and nothing else happens before the merges. Gemma's files split at
/// spaces after that, and no spaces are left then.
fn is_whole_text(normalizer: &Json, pre_tokenizer: &Json) -> bool {
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let steps = normalizer.get("normalizers").and_then(Json::as_array);
    let replaces = *normalizer == spaces || steps.is_some_and(|steps| *steps == [spaces]);
    let at_spaces =
        pre_tokenizer.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Json::as_str) == Some(" ");
    replaces && (pre_tokenizer.is_null() || at_spaces)
}

/// One spelling for patterns that mean the same: control characters as escapes, contractions as a
/// group without case.
fn canonical(pattern: &str) -> String {
    pattern
        .replace('\r', r"\r")
        .replace('\n', r"\n")
        .replace("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "(?i:'s|'t|'re|'ve|'m|'ll|'d)")
}
