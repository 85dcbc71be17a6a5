//! Special tokens around texts, and between two.

use super::*;

fn pair(metadata: &Metadata) -> Vec<String> {
    tokenizer(metadata).encode(("a", "b"), true).unwrap().get_tokens().to_vec()
}

/// Byte-level letters with two special tokens, and these flags.
fn flagged(pre: &str, flags: &[(&str, bool)]) -> Metadata {
    let mut metadata = bpe(&[("a", 1), ("b", 1), ("ab", 1), ("<s>", 3), ("</s>", 3)], &["a b"]);
    metadata.insert(keys::PRE, pre);
    metadata.insert("tokenizer.ggml.bos_token_id", 3u32);
    metadata.insert("tokenizer.ggml.eos_token_id", 4u32);
    for (name, value) in flags {
        metadata.insert(format!("tokenizer.ggml.add_{name}_token"), *value);
    }
    metadata
}

#[test]
fn flags_put_tokens_around_texts() {
    type Case = (&'static str, &'static [(&'static str, bool)], &'static [&'static str]);
    let cases: [Case; 6] = [
        ("gpt-2", &[], &["a", "b"]),
        ("gpt-2", &[("bos", true)], &["<s>", "a", "b"]),
        ("gpt-2", &[("bos", true), ("sep", false)], &["<s>", "a", "<s>", "b"]),
        ("gpt-2", &[("eos", true)], &["a", "</s>", "b", "</s>"]),
        // RoBERTa's.
        ("roberta-bpe", &[("bos", true), ("eos", true)], &["<s>", "a", "</s>", "</s>", "b", "</s>"]),
        ("llama-bpe", &[("bos", false)], &["a", "b"]),
    ];
    for (pre, flags, expected) in cases {
        let metadata = flagged(pre, flags);
        assert_eq!(pair(&metadata), expected, "{pre} {flags:?}");
        same_keys(pre, &keys_back(&metadata), &metadata);
    }
}

#[test]
fn ids_that_llama_cpp_takes_for_granted_stand_around_texts() {
    // Without keys the second token begins a text of SentencePiece, and no id past the end does.
    let metadata = sentencepiece(&[("\u{2581}a", 1, -1.0), ("\u{2581}", 1, -2.0), ("a", 1, -3.0)]);
    assert_eq!(pieces(&metadata, "a", true), ["<s>", "\u{2581}a"]);
    same_keys("spm", &keys_back(&metadata), &metadata);
    let mut short = bpe(&[("a", 1)], &[]);
    short.insert(keys::PRE, "llama-bpe");
    short.insert(keys::MERGES, Array::texts(Vec::<String>::new()));
    assert_eq!(pieces(&short, "a", true), ["a"]);
}

#[test]
fn bert_marks_both_ends_and_the_second_text() {
    let tokens =
        [("[CLS]", 3), ("[SEP]", 3), ("[UNK]", 3), ("\u{2581}ab", 1), ("c", 1), ("\u{2581}e", 1), ("\u{2581}AB", 1)];
    let mut metadata = vocabulary("bert", &tokens);
    metadata.insert("general.architecture", "bert");
    metadata.insert("tokenizer.ggml.token_type_count", 2u32);
    metadata.insert(keys::PRE, "jina-v2-en");
    for (key, id) in [("bos", 0u32), ("eos", 1), ("unknown", 2), ("seperator", 1)] {
        metadata.insert(format!("tokenizer.ggml.{key}_token_id"), id);
    }
    let encoding = tokenizer(&metadata).encode(("ABc \u{e9}", "x"), true).unwrap();
    assert_eq!(encoding.get_tokens(), ["[CLS]", "ab", "##c", "e", "[SEP]", "[UNK]", "[SEP]"]);
    assert_eq!(encoding.get_type_ids(), [0, 0, 0, 0, 0, 1, 1]);
    assert_eq!(config(&metadata)["cls_token"], "[CLS]");
    metadata.insert("tokenizer.ggml.normalizer.lowercase", false);
    assert_eq!(pieces(&metadata, "ABc \u{e9}", false), ["AB", "##c", "[UNK]"]);
}
