//! llama.cpp's pre-tokenizers by name, as steps of `tokenizer.json`.
//!
//! llama.cpp splits text by rules that are built in and picked by `tokenizer.ggml.pre`. A rule
//! splits what the one before left; what it doesn't match stays a piece of its own. In
//! `tokenizer.json` that is a `Split` that isolates its matches. The rules are written as the
//! models' own files have them where those are known: llama.cpp rewrites some for its regex engine.
//!
//! Reference: llama.cpp `src/llama-vocab.cpp` (`llm_tokenizer_bpe`, `llama_vocab::impl::load`),
//! `src/unicode.cpp` (the rules with an implementation of their own).

use serde_json::{Value as Json, json};

use crate::tokenizer::from_hf::rules::{
    BAILING, BLOOM, CJK_CODER, CJK_V3, DEEPSEEK_LETTERS, DEEPSEEK_MARKS, DEEPSEEK3, DIGIT, DIGITS, EXAONE_MOE, GPT2,
    GPT4O, GROUPS_OF_DIGITS, JAIS2, LINES, LLAMA3, MINICPM5, PUNCTUATION, PUNCTUATION_MARKS, QWEN2, QWEN35, SEED_CODER,
    SPARK, TEKKEN, UFAKZEKA, YOUTU, YOUTU_SCRIPTS,
};

/// Punctuation of llama.cpp's fallback: as [`PUNCTUATION`] without the backtick.
const PUNCTUATION_OF_DEFAULT: &str = r"[\p{P}\$\+<=>\^~\|]+";
const KIMI: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Scripts without spaces between words.
const AFMOE_SCRIPTS: &str = r"[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+";
/// Groups of three digits, counted from the right.
const DIGITS_BY_3: &str = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))";
const DIGITS_UP_TO_3: &str = r"\p{N}{1,3}";
const ASCII_DIGITS_3: &str = "[0-9][0-9][0-9]";

/// How the characters of a vocabulary's tokens stand for text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Letters {
    /// Each character stands for a byte (GPT-2's table).
    Bytes,
    /// Text as it is, spaces as U+2581; bytes without a token as `<0xNN>` (SentencePiece's form).
    Escaped,
    /// Text as it is, in words between whitespace, which is dropped.
    Words,
}

/// What llama.cpp knows of a pre-tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pre {
    rules: &'static [&'static str],
    pub(super) letters: Letters,
    /// Words that are tokens are taken whole, before any merge.
    pub(super) ignore_merges: bool,
    /// Whether texts begin with the beginning-of-text token where no key says so.
    pub(super) add_bos: bool,
    /// Whether pairs of texts are separated where no key says so.
    pub(super) add_sep: bool,
    /// Whether they do whatever the key says.
    pub(super) always_bos: bool,
    /// Whether there is a default beginning-of-text token.
    pub(super) default_bos: bool,
}

/// The pre-tokenizer that llama.cpp picks by `name`; `None` for a name that it doesn't know.
pub(super) fn find(name: &str) -> Option<Pre> {
    let rules: &[&str] = match name {
        "" | "default" => &[PUNCTUATION_OF_DEFAULT, GPT2, DIGITS, ASCII_DIGITS_3],
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
        | "jina-v5-nano" | "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" | "glm5" => &[LLAMA3],
        "jais-2" => &[JAIS2],
        "deepseek-llm" => &[r"[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_MARKS, r"\s+$", CJK_CODER, DIGITS],
        "deepseek-coder" => &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK_CODER, DIGIT],
        "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => &[DIGITS_UP_TO_3, CJK_V3, DEEPSEEK3],
        "spark2_5" => &[DIGITS_UP_TO_3, CJK_V3, SPARK, DIGIT],
        "youtu" => &[YOUTU_SCRIPTS, YOUTU],
        "falcon" => &[PUNCTUATION, GPT2, ASCII_DIGITS_3],
        "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
            &[DIGIT, GPT2]
        }
        "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "gigachat" | "jina-v2-es" | "jina-v2-de" | "a.x-4.0" | "mellum"
        | "modern-bert" | "jina-v1-en" | "jina-v2-code" | "roberta-bpe" | "mpt" | "olmo" | "jais" | "trillion"
        | "granite-docling" | "exaone4" => &[GPT2],
        "stablelm2" | "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" | "hunyuan" | "solar-open"
        | "grok-2" => &[QWEN2],
        "qwen35" => &[QWEN35],
        "poro-chat" | "bloom" | "gpt3-finnish" => &[BLOOM],
        "viking" => &[BLOOM, DIGIT],
        "tekken" => &[TEKKEN],
        "chameleon" => &[
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            DIGIT,
            PUNCTUATION_MARKS,
            GPT2,
        ],
        "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" | "granite-embed-multi-97m" => &[GPT4O],
        "tiny_aya" | "cohere2moe" => &[GROUPS_OF_DIGITS, GPT4O],
        "kimi-k2" => &[KIMI],
        "superbpe" => &[DIGITS, r"(?=(\d{3})+(?!\d))"],
        "bailingmoe" | "bailingmoe2" | "llada-moe" => &[BAILING],
        "seed-coder" => &[SEED_CODER],
        "ufakzeka" => &[UFAKZEKA],
        "afmoe" => &[DIGITS_BY_3, AFMOE_SCRIPTS, DEEPSEEK3],
        "laguna" => &[LINES, QWEN2],
        "exaone-moe" => &[EXAONE_MOE],
        "minicpm5" => &[DIGITS_UP_TO_3, MINICPM5],
        "gemma4" | "granite-embed-multi-311m" | "sarvam-moe" => &[LINES],
        "whitespace" => &[],
        _ => return None,
    };
    let takes_words_whole = [
        "llama3",
        "llama-v3",
        "llama-bpe",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "midm-2.0",
        "lfm2",
        "jina-v5-nano",
        "minicpm5",
        "youtu",
        "glm4",
        "glm5",
        "tekken",
        "granite-embed-multi-97m",
    ];
    let begins = [
        "llama3",
        "llama-v3",
        "llama-bpe",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "midm-2.0",
        "lfm2",
        "jina-v5-nano",
        "tekken",
        "chameleon",
    ];
    Some(Pre {
        rules,
        letters: match name {
            "gemma4" | "granite-embed-multi-311m" | "sarvam-moe" => Letters::Escaped,
            "whitespace" => Letters::Words,
            _ => Letters::Bytes,
        },
        ignore_merges: takes_words_whole.contains(&name),
        add_bos: begins.contains(&name),
        always_bos: matches!(name, "gemma4" | "granite-embed-multi-311m"),
        add_sep: matches!(name, "jina-v1-en" | "jina-v2-code" | "roberta-bpe"),
        default_bos: !matches!(name, "chatglm-bpe" | "glm4" | "glm5"),
    })
}

impl Pre {
    /// Whether it splits as Qwen2's tokenizer in transformers does.
    pub(super) fn is_qwen2(&self) -> bool {
        self.rules == [QWEN2]
    }

    /// The `pre_tokenizer` of tokenizer.json.
    pub(super) fn pre_tokenizer(&self) -> Json {
        let mut steps: Vec<Json> = self.rules.iter().map(|rule| step(rule)).collect();
        match self.letters {
            Letters::Bytes => steps.push(
                json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}),
            ),
            Letters::Escaped => {}
            Letters::Words => return json!({"type": "WhitespaceSplit"}),
        }
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

fn step(rule: &str) -> Json {
    match rule {
        PUNCTUATION => json!({"type": "Punctuation", "behavior": "Contiguous"}),
        PUNCTUATION_MARKS => json!({"type": "Punctuation", "behavior": "Isolated"}),
        pattern => json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}),
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

    use super::*;

    /// Every name that llama.cpp reads (`src/llama-vocab.cpp`).
    const NAMES: [&str; 86] = [
        "",
        "default",
        "minicpm5",
        "llama3",
        "llama-v3",
        "llama-bpe",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "midm-2.0",
        "lfm2",
        "jina-v5-nano",
        "deepseek-llm",
        "deepseek-coder",
        "deepseek-v3",
        "spark2_5",
        "youtu",
        "falcon",
        "mpt",
        "starcoder",
        "gpt-2",
        "phi-2",
        "jina-es",
        "jina-de",
        "gigachat",
        "jina-v2-es",
        "jina-v2-de",
        "a.x-4.0",
        "mellum",
        "modern-bert",
        "jais-2",
        "gemma4",
        "granite-embed-multi-311m",
        "sarvam-moe",
        "jina-v1-en",
        "jina-v2-code",
        "roberta-bpe",
        "whitespace",
        "refact",
        "command-r",
        "qwen2",
        "deepseek-r1-qwen",
        "kormo",
        "f2llmv2",
        "qwen35",
        "stablelm2",
        "olmo",
        "dbrx",
        "smaug-bpe",
        "poro-chat",
        "chatglm-bpe",
        "glm4",
        "glm5",
        "viking",
        "jais",
        "tekken",
        "smollm",
        "codeshell",
        "bloom",
        "gpt3-finnish",
        "exaone",
        "exaone4",
        "exaone-moe",
        "chameleon",
        "minerva-7b",
        "megrez",
        "gpt-4o",
        "llama4",
        "kanana2",
        "talkie",
        "granite-embed-multi-97m",
        "tiny_aya",
        "cohere2moe",
        "superbpe",
        "trillion",
        "granite-docling",
        "bailingmoe",
        "bailingmoe2",
        "llada-moe",
        "seed-coder",
        "hunyuan",
        "hunyuan-dense",
        "hy_v4",
        "joyai-llm",
        "kimi-k2",
        "ufakzeka",
    ];
    const MORE: [&str; 6] = ["grok-2", "afmoe", "laguna", "minimax-m2", "solar-open", "mellum2"];

    fn pieces(name: &str, text: &str) -> Vec<String> {
        let json = find(name).unwrap_or_else(|| panic!("{name}")).pre_tokenizer();
        let splitter: PreTokenizerWrapper = serde_json::from_value(json).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut split = PreTokenizedString::from(text);
        splitter.pre_tokenize(&mut split).unwrap();
        let pieces = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        pieces.into_iter().map(|(_, (from, to), _)| text[from..to].to_owned()).collect()
    }

    #[test]
    fn every_name_of_llama_cpp_has_steps_that_lose_no_text() {
        let text = "I'VE  1234567 caf\u{e9}s, na\u{308}ive; \u{4f60}\u{597d} \u{0e01}\u{0e02}\n\n\tx  ==\u{1f600}<sentinel:3>\r\n ";
        for name in NAMES.into_iter().chain(MORE) {
            let expected = if name == "whitespace" { text.split_whitespace().collect() } else { text.to_owned() };
            assert_eq!(pieces(name, text).concat(), expected, "{name}");
        }
        assert_eq!(find("no such name"), None);
    }

    #[test]
    fn digits_are_grouped_as_llama_cpp_groups_them() {
        assert_eq!(pieces("afmoe", "a1234567"), ["a", "1", "234", "567"]);
        assert_eq!(pieces("tiny_aya", "1234567"), ["1", "234", "567"]);
        assert_eq!(pieces("superbpe", "1234567"), ["1", "234", "567"]);
        assert_eq!(pieces("llama-bpe", "1234567"), ["123", "456", "7"]);
        assert_eq!(pieces("qwen2", "123"), ["1", "2", "3"]);
        assert_eq!(pieces("falcon", "1234567"), ["123", "456", "7"]);
        assert_eq!(pieces("gpt-2", "1234567"), ["1234567"]);
    }

    #[test]
    fn chinese_characters_stand_apart_in_kimi_k2() {
        assert_eq!(pieces("kimi-k2", "ab\u{4f60}\u{597d}cd"), ["ab", "\u{4f60}\u{597d}", "cd"]);
    }
}
