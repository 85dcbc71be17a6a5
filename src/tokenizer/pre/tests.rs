use std::collections::HashSet;

use serde_json::json;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper};

use super::rules::WHOLE_TEXT;
use super::*;

/// Every name that llama.cpp reads (`src/llama-vocab.cpp`).
const NAMES: [&str; 92] = [
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
    "grok-2",
    "afmoe",
    "laguna",
    "minimax-m2",
    "solar-open",
    "mellum2",
];

fn pieces(name: &str, text: &str) -> Vec<String> {
    let json = by_name(name).unwrap_or_else(|| panic!("{name}")).pre_tokenizer();
    let splitter: PreTokenizerWrapper = serde_json::from_value(json).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut split = PreTokenizedString::from(text);
    splitter.pre_tokenize(&mut split).unwrap();
    let pieces = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
    pieces.into_iter().map(|(_, (from, to), _)| text[from..to].to_owned()).collect()
}

#[test]
fn every_name_of_llama_cpp_has_steps_that_lose_no_text() {
    let text = "I'VE  1234567 caf\u{e9}s, na\u{308}ive; \u{4f60}\u{597d} \u{0e01}\u{0e02}\n\n\tx  ==\u{1f600}<sentinel:3>\r\n ";
    for name in NAMES {
        let expected = if name == "whitespace" { text.split_whitespace().collect() } else { text.to_owned() };
        assert_eq!(pieces(name, text).concat(), expected, "{name}");
    }
    assert_eq!(by_name("no such name"), None);
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

#[test]
fn names_and_hashes_stand_once() {
    let names: HashSet<&str> = TABLE.iter().map(|known| known.name).collect();
    assert_eq!(names.len(), TABLE.len());
    let hashes: Vec<&str> = TABLE.iter().flat_map(|known| known.hashes).copied().collect();
    assert_eq!(hashes.iter().collect::<HashSet<_>>().len(), hashes.len());
    assert!(hashes.iter().all(|hash| hash.len() == 64));
    assert_eq!(hashes.len(), 95);
}

/// The rules that files have for a pre-tokenizer.
fn rules_in_files(known: &'static PreTokenizer) -> Vec<&'static [&'static str]> {
    let own = known.rules.filter(|_| known.letters == Letters::Bytes);
    own.into_iter().chain(known.also_written.iter().copied()).collect()
}

#[test]
fn no_two_names_fit_the_same_tokenizer_of_the_same_model() {
    let named: Vec<&PreTokenizer> = TABLE.iter().filter(|known| known.is_named_by_rules()).collect();
    for (i, a) in named.iter().enumerate() {
        for b in named.iter().skip(i + 1).filter(|b| b.ignore_merges == a.ignore_merges) {
            let overlap = match (a.named_by_rules, b.named_by_rules) {
                (NamedByRules::Any, NamedByRules::Any) => true,
                (NamedByRules::Models(a), NamedByRules::Models(b)) => a.iter().any(|model| b.contains(model)),
                _ => false,
            };
            let shared = rules_in_files(a).iter().any(|rules| rules_in_files(b).contains(rules));
            assert!(!(overlap && shared), "{} and {}", a.name, b.name);
        }
    }
}

/// What is written for a pre-tokenizer is read as its rules, and these lead to its name.
#[test]
fn every_name_is_found_by_its_rules() {
    let mut found = 0;
    for known in TABLE.iter().filter(|known| known.is_named_by_rules()) {
        let model_type = match known.named_by_rules {
            NamedByRules::Models(types) => types[0],
            _ => "",
        };
        for rules in rules_in_files(known) {
            let steps = match rules == [WHOLE_TEXT] {
                true => {
                    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
                    Steps::read(&Json::Null, &spaces, true)
                }
                false => Steps::read(&steps::pre_tokenizer(rules, Letters::Bytes), &Json::Null, false),
            };
            let steps = steps.unwrap_or_else(|| panic!("{}", known.name));
            assert_eq!(steps.rules, rules, "{}", known.name);
            assert_eq!(name_by_rules(&steps.rules, known.ignore_merges, model_type), Some(known.name));
            found += 1;
        }
    }
    assert_eq!(found, 39);
}

#[test]
fn byte_level_rules_that_are_written_are_read() {
    for known in TABLE.iter().filter(|known| known.letters == Letters::Bytes && known.rules.is_some()) {
        let steps = Steps::read(&known.pre_tokenizer(), &Json::Null, false).unwrap();
        assert_eq!(steps.rules, known.rules.unwrap(), "{}", known.name);
    }
}
