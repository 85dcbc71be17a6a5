//! Which of llama.cpp's pre-tokenizers splits text as `tokenizer.json` says.
//!
//! llama.cpp has its splitting rules built in and picks one by name (`tokenizer.ggml.pre`). The
//! reference finds the name by hashing the tokens of a fixed text, which fails for any tokenizer
//! it hasn't seen; here the rules themselves are compared, which holds for fine-tunes and newly
//! trained vocabularies too.
//!
//! Reference: llama.cpp `src/llama-vocab.cpp` (`llm_tokenizer_bpe`).

use serde_json::Value as Json;

use super::{Files, shortened};
use crate::error::Result;

/// GPT-2's rule, built into `ByteLevel` of tokenizers.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// Runs of CJK characters, written with the characters themselves as in DeepSeek's files.
const CJK_CODER: &str = "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
const CJK_V3: &str = "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";
/// Stands for the built-in `Punctuation` with runs kept whole.
const PUNCTUATION: &str = "<punctuation runs>";
const DIGIT: &str = r"\p{N}";
const DIGITS: &str = r"\p{N}+";

/// A pre-tokenizer of llama.cpp.
struct Known {
    /// Its value in `tokenizer.ggml.pre`.
    name: &'static str,
    /// Its rules in order; each splits what the one before left.
    rules: &'static [&'static str],
    /// Whether llama.cpp takes words that are tokens whole, before any merge; `None` where it makes
    /// no difference to the choice.
    ignore_merges: Option<bool>,
}

/// Where several names share the rules, the one whose models have the architectures of this crate.
const KNOWN: &[Known] = &[
    Known { name: "gpt-2", rules: &[GPT2], ignore_merges: None },
    Known { name: "llama-bpe", rules: &[LLAMA3], ignore_merges: Some(true) },
    Known { name: "smaug-bpe", rules: &[LLAMA3], ignore_merges: Some(false) },
    Known { name: "qwen2", rules: &[QWEN2], ignore_merges: None },
    Known { name: "qwen35", rules: &[QWEN35], ignore_merges: None },
    Known { name: "tekken", rules: &[TEKKEN], ignore_merges: None },
    Known { name: "gpt-4o", rules: &[GPT4O], ignore_merges: None },
    Known { name: "smollm", rules: &[DIGIT, GPT2], ignore_merges: None },
    Known { name: "falcon", rules: &[PUNCTUATION, GPT2, "[0-9][0-9][0-9]"], ignore_merges: None },
    Known {
        name: "deepseek-coder",
        rules: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK_CODER, DIGIT],
        ignore_merges: None,
    },
    Known { name: "deepseek-v3", rules: &[r"\p{N}{1,3}", CJK_V3, DEEPSEEK3], ignore_merges: None },
    Known { name: "seed-coder", rules: &[SEED_CODER], ignore_merges: None },
    Known { name: "bailingmoe", rules: &[BAILING], ignore_merges: None },
    Known { name: "minicpm5", rules: &[r"\p{N}{1,3}", MINICPM5], ignore_merges: None },
    Known { name: "ufakzeka", rules: &[UFAKZEKA], ignore_merges: None },
];

/// The name of the pre-tokenizer that splits as tokenizer.json does.
///
/// # Errors
/// [`crate::Error::Unsupported`] where there is none, showing the rules.
pub(super) fn detect(files: &Files) -> Result<&'static str> {
    let model = files.object("model")?;
    let ignores_merges = model.get("ignore_merges").and_then(Json::as_bool).unwrap_or(false);
    let pre_tokenizer = files.tokenizer.get("pre_tokenizer").unwrap_or(&Json::Null);
    let mut steps = Steps::default();
    let readable = steps.read(pre_tokenizer) && steps.byte_level;
    let known = KNOWN.iter().find(|known| {
        readable && known.rules == steps.rules && known.ignore_merges.is_none_or(|v| v == ignores_merges)
    });
    known.map(|known| known.name).ok_or_else(|| {
        let names: Vec<&str> = KNOWN.iter().map(|known| known.name).collect();
        files
            .finding("pre_tokenizer")
            .expected(format_args!("the rules of a pre-tokenizer of llama.cpp ({})", names.join(", ")))
            .found(shortened(&pre_tokenizer.to_string()))
            .hint("name one of llama.cpp's own with --pre NAME, and compare the tokens of both on your texts")
            .unsupported()
    })
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
                self.rules.push(PUNCTUATION.to_owned());
                text("behavior") == "Contiguous"
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
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;

    fn detect_in(pre_tokenizer: Json, ignore_merges: bool) -> Result<&'static str> {
        let tokenizer = json!({"pre_tokenizer": pre_tokenizer, "model": {"ignore_merges": ignore_merges}});
        detect(&Files { folder: PathBuf::from("m"), tokenizer: tokenizer.as_object().cloned().unwrap(), config: None })
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
        let removed = json!({"type": "Split", "pattern": {"Regex": GPT4O}, "behavior": "Removed", "invert": true});
        let cases = [
            (byte_level(true), false, "gpt-2"),
            (json!({"type": "ByteLevel", "add_prefix_space": false}), false, "gpt-2"),
            (regex(GPT2), false, "gpt-2"),
            (regex(LLAMA3), true, "llama-bpe"),
            (regex(LLAMA3), false, "smaug-bpe"),
            (regex(&QWEN2.replace(r"\r", "\r").replace(r"\n", "\n")), false, "qwen2"),
            (sequence(&[removed, byte_level(false)]), false, "gpt-4o"),
            (sequence(&[digits, byte_level(true)]), false, "smollm"),
            (regex(TEKKEN), true, "tekken"),
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
            split(QWEN2),
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
}
