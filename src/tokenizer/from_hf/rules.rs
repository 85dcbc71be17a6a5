//! The splitting rules of llama.cpp's pre-tokenizers, written as tokenizer.json writes them.
//!
//! Reference: llama.cpp `src/llama-vocab.cpp` (`llm_tokenizer_bpe`, and where it reads
//! `tokenizer.ggml.pre`). The names there that share a rule and every flag are listed once.

/// GPT-2's rule, built into `ByteLevel` of tokenizers.
pub(in crate::tokenizer) const GPT2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
pub(in crate::tokenizer) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(in crate::tokenizer) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(in crate::tokenizer) const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(in crate::tokenizer) const UFAKZEKA: &str =
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(in crate::tokenizer) const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(in crate::tokenizer) const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(in crate::tokenizer) const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
pub(in crate::tokenizer) const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(in crate::tokenizer) const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(in crate::tokenizer) const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// As [`GPT4O`] without a tail, and one digit at a time: Youtu's second rule.
pub(in crate::tokenizer) const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(in crate::tokenizer) const YOUTU_SCRIPTS: &str = "[\u{ac00}-\u{d7a3}\u{3131}-\u{318e}]+|[\u{ff01}\u{2026}\u{201c}\u{201d}\u{2018}\u{2019}\u{2014}\u{ff1a}\u{ff1b}\u{ff0c}\u{3001}-\u{303f}\u{fe30}-\u{fe4f}]+|[\u{3105}-\u{312f}]+|[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";
pub(in crate::tokenizer) const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
pub(in crate::tokenizer) const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
pub(in crate::tokenizer) const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
/// Words and what is around them, but for the marks that end sentences. BLOOM's file has the second
/// spelling, which takes the same characters.
pub(in crate::tokenizer) const BLOOM: &str = " ?[^(\\s|.,!?\u{2026}\u{3002}\u{ff0c}\u{3001}\u{964}\u{6d4}\u{60c})]+";
pub(in crate::tokenizer) const BLOOM_NESTED: &str =
    " ?[^(\\s|[.,!?\u{2026}\u{3002}\u{ff0c}\u{3001}\u{964}\u{6d4}\u{60c}])]+";
/// The letters that DeepSeek's first models knew, and their punctuation.
pub(in crate::tokenizer) const DEEPSEEK_LETTERS: &str = "\\s?[A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}]+";
pub(in crate::tokenizer) const DEEPSEEK_MARKS: &str =
    "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+";
pub(in crate::tokenizer) const LINES: &str = r"[^\n]+|[\n]+";
pub(in crate::tokenizer) const GROUPS_OF_DIGITS: &str = r"\d{1,3}(?=(?:\d{3})*\b)";

/// Runs of CJK characters, written with the characters themselves as in DeepSeek's files.
pub(in crate::tokenizer) const CJK_CODER: &str = "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
pub(in crate::tokenizer) const CJK_V3: &str = "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";
/// Stands for the built-in `Punctuation` with runs kept whole.
pub(in crate::tokenizer) const PUNCTUATION: &str = "<punctuation runs>";
pub(in crate::tokenizer) const DIGIT: &str = r"\p{N}";
pub(in crate::tokenizer) const DIGITS: &str = r"\p{N}+";

/// Stands for the built-in `Punctuation` with each mark by itself.
pub(in crate::tokenizer) const PUNCTUATION_MARKS: &str = "<punctuation marks>";
/// Stands for spaces as U+2581 and no rule at all: merges run over the whole text, in characters.
pub(in crate::tokenizer) const WHOLE_TEXT: &str = "<spaces as U+2581, whole text>";

/// A pre-tokenizer of llama.cpp.
pub(super) struct Known {
    /// Its value in `tokenizer.ggml.pre`.
    pub(super) name: &'static str,
    /// Its rules in order; each splits what the one before left.
    pub(super) rules: &'static [&'static str],
    /// Whether llama.cpp takes words that are tokens whole, before any merge; `None` where it makes
    /// no difference to the choice.
    pub(super) ignore_merges: Option<bool>,
    /// The types of models whose name this is, where names differ in more than rules (spaces before
    /// punctuation in output, the token before a text); empty for all others.
    pub(super) models: &'static [&'static str],
}

const fn known(name: &'static str, rules: &'static [&'static str]) -> Known {
    Known { name, rules, ignore_merges: None, models: &[] }
}

impl Known {
    const fn merging(self, ignore_merges: bool) -> Self {
        Self { ignore_merges: Some(ignore_merges), ..self }
    }

    const fn of(self, models: &'static [&'static str]) -> Self {
        Self { models, ..self }
    }
}

/// Of names that share the rules, the plainest; names of certain models go before it.
pub(super) const KNOWN: &[Known] = &[
    known("gpt-2", &[GPT2]),
    known("glm4", &[LLAMA3]).merging(true).of(&["glm", "glm4", "glm4_moe", "chatglm"]),
    known("chatglm-bpe", &[LLAMA3]).merging(false).of(&["glm", "chatglm"]),
    known("dbrx", &[LLAMA3]).merging(false).of(&["dbrx"]),
    known("llama-bpe", &[LLAMA3]).merging(true),
    known("smaug-bpe", &[LLAMA3]).merging(false),
    known("jais-2", &[JAIS2]),
    known("stablelm2", &[QWEN2]).of(&["stablelm", "stablelm_epoch"]),
    known("qwen2", &[QWEN2]),
    known("qwen35", &[QWEN35]),
    known("laguna", &[LINES, QWEN2]),
    known("ufakzeka", &[UFAKZEKA]),
    known("seed-coder", &[SEED_CODER]),
    known("bailingmoe", &[BAILING]),
    known("exaone-moe", &[EXAONE_MOE]),
    known("minicpm5", &[r"\p{N}{1,3}", MINICPM5]),
    known("tekken", &[TEKKEN]),
    known("gpt-4o", &[GPT4O]),
    known("tiny_aya", &[GROUPS_OF_DIGITS, GPT4O]),
    known("youtu", &[YOUTU_SCRIPTS, YOUTU]),
    known("starcoder", &[DIGIT, GPT2]).of(&["starcoder2", "gpt_bigcode"]),
    known("command-r", &[DIGIT, GPT2]).of(&["cohere", "cohere2"]),
    known("exaone", &[DIGIT, GPT2]).of(&["exaone"]),
    known("smollm", &[DIGIT, GPT2]),
    known("falcon", &[PUNCTUATION, GPT2, DIGITS, "[0-9][0-9][0-9]"]),
    known("falcon", &[PUNCTUATION, GPT2, "[0-9][0-9][0-9]"]),
    known("deepseek-llm", &[r"[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_MARKS, r"\s+$", CJK_CODER, DIGITS]),
    // No merge of theirs joins digits.
    known("deepseek-llm", &[r"[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_MARKS, r"\s+$", CJK_CODER, DIGIT]),
    known("deepseek-coder", &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK_CODER, DIGIT]),
    known("deepseek-v3", &[r"\p{N}{1,3}", CJK_V3, DEEPSEEK3]),
    known("spark2_5", &[r"\p{N}{1,3}", CJK_V3, SPARK, DIGIT]),
    known("poro-chat", &[BLOOM]).of(&["poro"]),
    known("bloom", &[BLOOM]),
    known("bloom", &[BLOOM_NESTED]),
    known("viking", &[BLOOM, DIGIT]),
    known("viking", &[BLOOM_NESTED, DIGIT]),
    known("superbpe", &[DIGITS, r"(?=(\d{3})+(?!\d))"]),
    known(
        "chameleon",
        &[
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            DIGIT,
            PUNCTUATION_MARKS,
            GPT2,
        ],
    ),
    known("gemma4", &[WHOLE_TEXT]),
];

#[cfg(test)]
mod tests {
    use super::super::hashes;
    use super::*;

    #[test]
    fn every_name_is_one_of_llama_cpps() {
        for known in KNOWN {
            assert!(hashes::has_name(known.name), "{}", known.name);
        }
    }

    #[test]
    fn no_two_names_fit_the_same_tokenizer_of_the_same_model() {
        for (i, a) in KNOWN.iter().enumerate() {
            for b in KNOWN.iter().skip(i + 1) {
                let overlap = a.models.iter().any(|model| b.models.contains(model))
                    || (a.models.is_empty() && b.models.is_empty());
                let merges =
                    a.ignore_merges.is_none() || b.ignore_merges.is_none() || a.ignore_merges == b.ignore_merges;
                assert!(!(a.rules == b.rules && overlap && merges), "{} and {}", a.name, b.name);
            }
        }
    }
}
