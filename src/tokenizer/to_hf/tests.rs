mod record;
mod special;
#[path = "../../../tests/common/vocabularies.rs"]
mod vocabularies;

use std::fs;
use std::path::Path;

use serde_json::Value as Json;

use super::*;
use crate::formats::gguf::{Array, GgufFile, Value};
use crate::tokenizer::from_hf::{Vocab, keys_of};
use vocabularies::vocabularies;

/// The way of an architecture's vocabulary back, for those that the fixtures have.
fn way_back(metadata: &Metadata) -> Vocab {
    let model = metadata.text(keys::MODEL).unwrap();
    match (metadata.text("general.architecture").unwrap(), model) {
        ("bert", _) => Vocab::WordPiece,
        ("llama", _) => Vocab::Llama,
        ("phi3", _) => Vocab::Phi3,
        ("nomic-bert-moe", _) => Vocab::XlmRoberta,
        ("gemma4", _) => Vocab::Gemma4,
        (_, "llama") | ("qwen2", _) => Vocab::SpmOrBpe,
        _ => Vocab::Bpe,
    }
}

/// config.json as a conversion from GGUF makes it, as far as vocabularies go.
fn model_config(metadata: &Metadata) -> Map<String, Json> {
    let mut config = Map::new();
    config.insert("vocab_size".to_owned(), json!(metadata.strings(keys::TOKENS).unwrap().len()));
    config.insert("model_type".to_owned(), json!(metadata.text("general.architecture").unwrap()));
    if let Ok(count) = metadata.u32("tokenizer.ggml.token_type_count") {
        config.insert("type_vocab_size".to_owned(), json!(count));
    }
    for (name, key) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")] {
        if let Ok(id) = metadata.u32(&format!("tokenizer.ggml.{key}_token_id")) {
            config.insert(format!("{name}_token_id"), json!(id));
        }
    }
    config
}

fn write(files: &[(String, Vec<u8>)], folder: &Path) {
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).unwrap();
    }
}

/// The keys that come back of `metadata`, after `change` to the files.
fn there_and_back(metadata: &Metadata, change: impl FnOnce(&Path)) -> Metadata {
    let folder = tempfile::tempdir().unwrap();
    write(&to_hf(metadata, &mut Vec::new()).unwrap(), folder.path());
    change(folder.path());
    keys_of(folder.path(), model_config(metadata), way_back(metadata)).unwrap()
}

fn same_keys(name: &str, found: &Metadata, expected: &Metadata) {
    let is_tokenizer = |(key, _): &(&str, &Value)| key.starts_with("tokenizer.");
    let keys = |metadata: &Metadata| -> Vec<String> {
        let keys = metadata.iter().filter(is_tokenizer).map(|(key, _)| key.to_owned());
        let bpe = metadata.text(keys::MODEL).unwrap() == "gpt2";
        keys.filter(|key| !(bpe && key == keys::SCORES)).collect()
    };
    for (key, value) in expected.iter().filter(is_tokenizer) {
        // Byte-level BPE has no use for them; a note says that they are left out.
        if key == keys::SCORES && expected.text(keys::MODEL).unwrap() == "gpt2" {
            continue;
        }
        let found = found.get(key).unwrap_or_else(|| panic!("{name}: {key} is gone"));
        if let (Value::Array(Array::String(found)), Value::Array(Array::String(value))) = (found, value) {
            let other = found.iter().zip(value).position(|(a, b)| a != b);
            assert_eq!(
                other.map(|i| (i, String::from_utf8_lossy(&found[i]), String::from_utf8_lossy(&value[i]))),
                None,
                "{name}: {key}"
            );
        }
        if let (Value::Array(Array::I32(found)), Value::Array(Array::I32(value))) = (found, value) {
            assert_eq!(found.iter().zip(value).position(|(a, b)| a != b), None, "{name}: {key}");
        }
        assert!(found == value, "{name}: {key} is {found}, was {value}");
    }
    assert_eq!(keys(found), keys(expected), "{name}");
}

#[test]
fn vocabularies_of_real_models_come_back_key_for_key() {
    let (_held, paths) = vocabularies();
    assert!(!paths.is_empty());
    for path in paths {
        let file = GgufFile::open(&path).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let back = there_and_back(file.metadata(), |_| {});
        same_keys(&name, &back, file.metadata());
    }
}

/// The kinds of classes, and the architectures that name files of their own.
fn of_class(class: &str) -> (Vocab, &'static str) {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vocab/classes.tsv")).unwrap();
    let kind = text.lines().find_map(|line| line.strip_prefix(class)?.strip_prefix('\t')).unwrap_or("bpe");
    let vocab: Vocab = kind.parse().unwrap();
    let architecture = match vocab {
        Vocab::T5 => "t5",
        Vocab::PocketTts => "pockettts",
        Vocab::InternLm2 => "internlm2",
        Vocab::Phi3 => "phi3",
        _ => "other",
    };
    (vocab, architecture)
}

#[test]
fn vocabularies_of_every_kind_come_back_key_for_key() {
    let cases = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vocab")).unwrap();
    let mut seen = 0;
    for case in cases.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let model = case.join("model");
        let config = crate::json::read_json_object(&model.join("config.json")).unwrap();
        let (vocab, architecture) = of_class(config["architectures"][0].as_str().unwrap());
        let mut metadata = Metadata::new(&case);
        metadata.insert("general.architecture", architecture);
        for (key, value) in keys_of(&model, config.clone(), vocab).unwrap().iter() {
            metadata.insert(key, value.clone());
        }
        // Added tokens with U+2581, and a vocabulary without the ids that llama.cpp takes for granted.
        if ["llama-hf", "llama-spm", "bert-files"].contains(&name.as_str()) {
            continue;
        }
        if metadata.text(keys::MODEL).unwrap() == "hybriddna" {
            let message = to_hf(&metadata, &mut Vec::new()).unwrap_err().to_string();
            assert!(message.contains("found \"hybriddna\", which tokenizer.json can't describe"), "{message}");
            continue;
        }
        // The fixed ids of Hunyuan's converter are past the end of such a small vocabulary.
        if ["hunyuan-moe", "hunyuan-tiktoken"].contains(&name.as_str()) {
            metadata.insert("tokenizer.ggml.bos_token_id", 1_u32);
        }
        let folder = tempfile::tempdir().unwrap();
        write(&to_hf(&metadata, &mut Vec::new()).unwrap(), folder.path());
        let mut back = model_config(&metadata);
        back.insert("insert_bos_before_voice".to_owned(), json!(true));
        for field in ["pad_vocab_size_multiple", "layer_types", "num_hidden_layers"] {
            if let Some(value) = config.get(field) {
                back.insert(field.to_owned(), value.clone());
            }
        }
        let is_bpe = metadata.text(keys::MODEL).unwrap() == "gpt2";
        let vocab = match vocab {
            Vocab::HunYuanMoe => Vocab::HunYuan,
            // A conversion of the whole model names the class that Phi-4 has.
            Vocab::Phi3 if is_bpe => Vocab::Bpe,
            vocab => vocab,
        };
        let back = keys_of(folder.path(), back, vocab).unwrap_or_else(|error| panic!("{name}: {error}"));
        same_keys(&name, &back, &metadata);
        seen += 1;
    }
    assert!(seen > 50);
}

/// A vocabulary of the kind `model`, with these tokens and types.
fn vocabulary(model: &str, tokens: &[(&str, i32)]) -> Metadata {
    let mut metadata = Metadata::new("m.gguf");
    metadata.insert("general.architecture", "llama");
    metadata.insert(keys::MODEL, model);
    metadata.insert(keys::TOKENS, Array::texts(tokens.iter().map(|(text, _)| *text)));
    metadata.insert(keys::TOKEN_TYPE, Array::I32(tokens.iter().map(|(_, kind)| *kind).collect()));
    metadata
}

fn bpe(tokens: &[(&str, i32)], merges: &[&str]) -> Metadata {
    let mut metadata = vocabulary("gpt2", tokens);
    metadata.insert(keys::PRE, "gpt-2");
    metadata.insert(keys::MERGES, Array::texts(merges.iter().copied()));
    metadata
}

/// SentencePiece with all bytes behind the three special tokens, then these.
fn sentencepiece(tokens: &[(&str, i32, f32)]) -> Metadata {
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut all: Vec<(&str, i32)> = vec![("<unk>", 2), ("<s>", 3), ("</s>", 3)];
    all.extend(bytes.iter().map(|text| (text.as_str(), 6)));
    all.extend(tokens.iter().map(|(text, kind, _)| (*text, *kind)));
    let mut metadata = vocabulary("llama", &all);
    metadata.insert(keys::PRE, "default");
    let mut scores = vec![0.0; 259];
    scores.extend(tokens.iter().map(|(_, _, score)| *score));
    metadata.insert(keys::SCORES, Array::F32(scores));
    metadata
}

fn tokenizer(metadata: &Metadata) -> tokenizers::Tokenizer {
    tokenizers::Tokenizer::from_bytes(&to_hf(metadata, &mut Vec::new()).unwrap()[0].1).unwrap()
}

fn pieces(metadata: &Metadata, text: &str, special: bool) -> Vec<String> {
    tokenizer(metadata).encode(text, special).unwrap().get_tokens().to_vec()
}

fn config(metadata: &Metadata) -> Json {
    let files = to_hf(metadata, &mut Vec::new()).unwrap();
    serde_json::from_slice(&files.iter().find(|(name, _)| name == "tokenizer_config.json").unwrap().1).unwrap()
}

fn letters() -> Metadata {
    bpe(&[("a", 1), ("b", 1), ("ab", 1), ("<s>", 3), ("[PAD4]", 5), ("c d", 4)], &["a b"])
}

#[test]
fn a_file_without_a_vocabulary_gives_a_note_and_no_files() {
    let mut none = Metadata::new("m.gguf");
    none.insert("general.architecture", "llama");
    let mut named = none.clone();
    named.insert(keys::MODEL, "none");
    for (metadata, note) in [(none, "no vocabulary in the GGUF file"), (named, "tokenizer.ggml.model is \"none\"")] {
        let mut notes = Vec::new();
        assert!(to_hf(&metadata, &mut notes).unwrap().is_empty());
        assert!(notes.len() == 1 && notes[0].contains(note), "{notes:?}");
    }
}

#[test]
fn malformed_vocabularies_are_refused_in_one_line() {
    let with = |key: &str, value: Value| {
        let mut metadata = letters();
        metadata.insert(key, value);
        metadata
    };
    let merge = |merge: &str| with(keys::MERGES, Array::texts([merge]).into());
    let raw = |tokens: &[&[u8]]| Value::from(Array::String(tokens.iter().map(|bytes| bytes.to_vec()).collect()));
    let mut without_merges = vocabulary("gpt2", &[("a", 1)]);
    without_merges.insert(keys::PRE, "gpt-2");
    let no_tokens = {
        let mut metadata = Metadata::new("m.gguf");
        metadata.insert(keys::MODEL, "llama");
        metadata
    };
    let mut words = vocabulary("bert", &[("[UNK]", 3), ("\u{2581}[UNK]", 1)]);
    words.insert("tokenizer.ggml.unknown_token_id", 0u32);
    let mut charsmap = vocabulary("t5", &[("<unk>", 2)]);
    charsmap.insert("tokenizer.ggml.unknown_token_id", 0u32);
    charsmap.insert(keys::SCORES, Array::F32(vec![0.0]));
    let mut long = charsmap.clone();
    charsmap.insert("tokenizer.ggml.precompiled_charsmap", Array::U8(vec![1, 2]));
    long.insert("tokenizer.ggml.precompiled_charsmap", Array::U8(vec![0xfc, 0xff, 0xff, 0xff, 0, 0]));
    let cases = [
        (
            with(keys::MODEL, "hybriddna".into()),
            "tokenizer.ggml.model\": expected gpt2, gemma4, whitespace, llama, bert, t5, rwkv or plamo2, found \"hybriddna\"",
        ),
        (with(keys::MODEL, 7u32.into()), "tokenizer.ggml.model\": expected a UTF-8 string"),
        (
            with(keys::PRE, "future".into()),
            "tokenizer.ggml.pre\": expected the name of a pre-tokenizer of llama.cpp, found \"future\"",
        ),
        (no_tokens, "tokenizer.ggml.tokens\": expected a value, found none"),
        (with(keys::TOKENS, raw(&[])), "tokenizer.ggml.tokens\": expected tokens, found none"),
        (
            with(keys::TOKENS, raw(&[b"a", b"\xff\xfe"])),
            "tokenizer.ggml.tokens\": expected UTF-8 text, found bytes at 1",
        ),
        (with(keys::TOKENS, raw(&[b"a", b"b", b"a"])), "expected every token once, found token \"a\" as 0 and as 2"),
        (with(keys::TOKENS, 3u32.into()), "tokenizer.ggml.tokens\": expected an array of strings"),
        (
            with(keys::TOKEN_TYPE, Array::I32(vec![1; 5]).into()),
            "token_type\": expected one for each of the 6 tokens, found 5",
        ),
        (
            with(keys::TOKEN_TYPE, Array::I32(vec![1, 1, 1, 1, 1, 9]).into()),
            "token_type\": expected types from 0 to 6, found 9 at 5",
        ),
        (
            with(keys::TOKEN_TYPE, Array::F32(vec![1.0; 6]).into()),
            "token_type\": expected an array of int32, found float32",
        ),
        (
            with(keys::SCORES, Array::F32(vec![0.0; 7]).into()),
            "scores\": expected one for each of the 6 tokens, found 7",
        ),
        (
            with(keys::SCORES, Array::F32(vec![f32::NAN; 6]).into()),
            "scores\": expected finite numbers, found another at 0",
        ),
        (without_merges, "merges\": expected merges, found none"),
        (merge("a"), "merges\": expected two parts with a space between, found \"a\" at 0"),
        (merge(" a"), "expected two parts with a space between"),
        (merge("a "), "expected two parts with a space between"),
        (merge(""), "expected two parts with a space between"),
        (
            merge("a z"),
            "merges\": expected parts and results among the tokens of tokenizer.ggml.tokens, found \"z\" in merge 0",
        ),
        (merge("b a"), "found \"ba\" in merge 0, \"b a\""),
        (with(keys::MERGES, raw(&[b"\xc3 b"])), "merges\": expected UTF-8 text, found bytes at 0"),
        (
            with("tokenizer.ggml.bos_token_id", 6u32.into()),
            "bos_token_id\": expected an id below 6, the number of tokens, found 6",
        ),
        (with("tokenizer.ggml.eos_token_id", (-1i32).into()), "eos_token_id\": expected a whole number below 2^32"),
        (with("tokenizer.ggml.add_bos_token", "yes".into()), "add_bos_token\": expected a bool"),
        (with("tokenizer.ggml.add_space_prefix", 1u32.into()), "add_space_prefix\": expected a bool"),
        (with("tokenizer.chat_template", vec![0xff].into()), "chat_template\": expected a UTF-8 string"),
        (
            with("tokenizer.chat_templates", Array::texts(["../x"]).into()),
            "chat_templates\": expected names of templates, found \"../x\" at 0",
        ),
        (vocabulary("bert", &[("[UNK]", 3)]), "unknown_token_id\": expected a token for unknown words, found none"),
        (words, "expected every word once, found \"[UNK]\" as 0 and as 1"),
        (vocabulary("t5", &[("<unk>", 2)]), "scores\": expected a score for each token, found none"),
        (charsmap, "precompiled_charsmap\": expected a length, a trie of that length, and replacements, found 2 bytes"),
        (long, "found 6 bytes"),
        (
            sentencepiece(&[(&"x".repeat(5000), 1, -1.0)]),
            "tokens\": expected at most 4096 bytes each, found 5000 bytes at 259",
        ),
    ];
    for (metadata, expected) in cases {
        let error = to_hf(&metadata, &mut Vec::new()).map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with("m.gguf: key \"tokenizer.") && error.contains(expected), "{error}\nnot: {expected}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn sentencepiece_merges_by_score_and_falls_back_to_bytes() {
    let metadata = sentencepiece(&[
        ("\u{2581}a", 1, -1.0),
        ("ab", 1, -0.5),
        ("\u{2581}", 1, -3.0),
        ("a", 1, -4.0),
        ("b", 1, -5.0),
        ("  ", 4, -1000.0),
    ]);
    assert_eq!(pieces(&metadata, "ab", false), ["\u{2581}", "ab"]);
    assert_eq!(pieces(&metadata, "a\u{e9}", true), ["<s>", "\u{2581}a", "<0xC3>", "<0xA9>"]);
    // A space is put before every stretch of text.
    assert_eq!(
        pieces(&metadata, "b  b</s>b", false),
        ["\u{2581}", "b", "  ", "\u{2581}", "b", "</s>", "\u{2581}", "b"]
    );
    assert_eq!(tokenizer(&metadata).decode(&[1, 261, 260], true).unwrap(), "ab");
}

#[test]
fn gemma_puts_no_space_before_a_text() {
    let mut metadata = sentencepiece(&[("\u{2581}", 1, -1.0), ("a", 1, -2.0)]);
    metadata.insert("tokenizer.ggml.add_space_prefix", false);
    assert_eq!(pieces(&metadata, "a a", false), ["a", "\u{2581}", "a"]);
    assert_eq!(config(&metadata)["add_prefix_space"], json!(false));
    same_keys("gemma", &keys_back(&metadata), &metadata);
}

/// As [`there_and_back`] without changes.
fn keys_back(metadata: &Metadata) -> Metadata {
    there_and_back(metadata, |_| {})
}

#[test]
fn added_tokens_and_placeholders_of_sentencepiece_come_back() {
    let metadata = sentencepiece(&[
        ("a", 1, -1.0),
        ("[PAD260]", 5, -10000.0),
        ("<|tool|>", 3, -1000.0),
        ("x y", 4, -1000.0),
        ("[PAD263]", 5, -10000.0),
    ]);
    let mut metadata = metadata;
    metadata.insert("tokenizer.ggml.eot_token_id", 261u32);
    metadata.insert("tokenizer.ggml.add_bos_token", true);
    same_keys("spm", &keys_back(&metadata), &metadata);
    assert_eq!(pieces(&metadata, "ax y", false), ["<0xE2>", "<0x96>", "<0x81>", "a", "x y"]);
}

#[test]
fn unigram_takes_the_best_sum_of_scores() {
    let mut metadata = vocabulary(
        "t5",
        &[
            ("<s>", 3),
            ("</s>", 3),
            ("<unk>", 2),
            ("\u{2581}a", 1),
            ("b", 1),
            ("\u{2581}ab", 1),
            ("c", 1),
            ("\u{2581}", 1),
        ],
    );
    metadata.insert("general.architecture", "nomic-bert-moe");
    metadata.insert(keys::PRE, "default");
    metadata.insert(keys::SCORES, Array::F32(vec![0.0, 0.0, 0.0, -1.0, -1.0, -3.0, -1.5, -2.0]));
    metadata.insert("tokenizer.ggml.add_space_prefix", true);
    metadata.insert("tokenizer.ggml.remove_extra_whitespaces", true);
    metadata.insert("tokenizer.ggml.bos_token_id", 0u32);
    metadata.insert("tokenizer.ggml.add_bos_token", true);
    assert_eq!(pieces(&metadata, " ab  c ", true), ["<s>", "\u{2581}a", "b", "\u{2581}", "c", "</s>"]);
    assert_eq!(pieces(&metadata, "  ", false), Vec::<String>::new());
    metadata.insert("tokenizer.ggml.remove_extra_whitespaces", false);
    assert_eq!(pieces(&metadata, "a  c", false), ["\u{2581}a", "\u{2581}", "\u{2581}", "c"]);
}

#[test]
fn tokens_that_steer_the_model_are_found_in_text_whatever_their_type() {
    let tokens = [("a", 1), ("<|im_end|>", 1), ("b", 1), ("<x>", 4), ("<|y|>", 4), ("\u{120}", 5)];
    let mut metadata = bpe(&tokens, &[]);
    metadata.insert(keys::MERGES, Array::texts(Vec::<String>::new()));
    metadata.insert("tokenizer.ggml.eos_token_id", 2u32);
    assert_eq!(pieces(&metadata, "a<|im_end|>b<x>", false), ["a", "<|im_end|>", "b", "<x>"]);
    let types = &config(&metadata)["gguf"]["token_types"];
    assert_eq!(
        *types,
        json!([
            {"type": 1, "instead_of": 3, "ids": [[1, 2]]},
            {"type": 4, "instead_of": 3, "ids": [[4, 4]]},
            {"type": 5, "instead_of": 1, "ids": [[5, 5]]},
        ])
    );
}

#[test]
fn several_templates_keep_their_order_and_one_stands_in_a_file() {
    let mut metadata = letters();
    metadata.insert("tokenizer.chat_template", "one\n");
    let files = to_hf(&metadata, &mut Vec::new()).unwrap();
    assert!(files.iter().any(|(name, bytes)| name == "chat_template.jinja" && bytes == b"one\n"));
    same_keys("one", &keys_back(&metadata), &metadata);

    let mut metadata = letters();
    metadata.insert("tokenizer.chat_template", "one\r\n");
    assert_eq!(config(&metadata)["chat_template"], "one\r\n");
    same_keys("carriage return", &keys_back(&metadata), &metadata);

    let mut metadata = letters();
    metadata.insert("tokenizer.chat_template.tool", "two");
    metadata.insert("tokenizer.chat_template.rag", "three");
    metadata.insert("tokenizer.chat_templates", Array::texts(["tool", "rag"]));
    metadata.insert("tokenizer.chat_template", "one");
    let names: Vec<String> =
        config(&metadata)["chat_template"].as_array().unwrap().iter().map(|t| t["name"].to_string()).collect();
    assert_eq!(names, ["\"default\"", "\"tool\"", "\"rag\""]);
    same_keys("three", &keys_back(&metadata), &metadata);
}

#[test]
fn rules_that_transformers_replaces_are_noted() {
    let mut metadata = letters();
    metadata.insert("general.architecture", "qwen2");
    for (pre, notes_expected) in [("qwen2", 0), ("megrez", 0), ("qwen35", 1)] {
        metadata.insert(keys::PRE, pre);
        let mut notes = Vec::new();
        to_hf(&metadata, &mut notes).unwrap();
        assert_eq!(notes.len(), notes_expected, "{pre}: {notes:?}");
    }
}
