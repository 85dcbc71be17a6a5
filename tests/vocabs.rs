//! Tests conversion of GGUF tokenizers to Hugging Face's files, with vocabularies of real models
//! and llama.cpp's own tokens for its own texts.

#[path = "common/vocabularies.rs"]
mod vocabularies;

use std::fs;
use std::path::Path;

use atombank::convert::tokenizer_files;
use atombank::formats::gguf::GgufFile;
use serde_json::Value as Json;
use tokenizers::Tokenizer;
use vocabularies::vocabularies;

const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

fn beside(path: &Path, ending: &str) -> Option<String> {
    fs::read_to_string(path.with_extension(format!("gguf.{ending}"))).ok()
}

#[test]
fn every_text_gets_the_tokens_that_llama_cpp_gives() {
    let (_held, paths) = vocabularies();
    let mut texts_seen = 0;
    for path in paths {
        let (Some(texts), Some(tokens)) = (beside(&path, "inp"), beside(&path, "out")) else { continue };
        let file = GgufFile::open(&path).unwrap();
        let files = tokenizer_files(file.metadata(), &mut Vec::new()).unwrap();
        let (name, json) = &files[0];
        assert_eq!(name, "tokenizer.json");
        let tokenizer = Tokenizer::from_bytes(json).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let texts: Vec<&str> = texts.strip_suffix(SEPARATOR).unwrap_or(&texts).split(SEPARATOR).collect();
        assert_eq!(tokens.lines().count(), texts.len(), "{}", path.display());
        for (text, tokens) in texts.into_iter().zip(tokens.lines()) {
            let expected: Vec<u32> = tokens.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let found = tokenizer.encode(text, false).unwrap();
            assert_eq!(found.get_ids(), expected, "{}: {text:?}", path.display());
            texts_seen += 1;
        }
    }
    assert!(texts_seen > 0);
}

/// The special tokens that llama.cpp adds to a text with these vocabularies, because of keys or by
/// default.
#[test]
fn special_tokens_stand_where_llama_cpp_puts_them() {
    if std::env::var_os("ATOMBANK_VOCABS").is_some() {
        return;
    }
    let (_held, paths) = vocabularies();
    let cases = [
        ("bert-bge", vec!["[CLS]", "hello", "[SEP]"]),
        ("falcon", vec!["Hello"]),
        ("gpt-2", vec!["Hello"]),
        ("llama-bpe", vec!["<|begin_of_text|>", "Hello"]),
        ("llama-spm", vec!["<s>", "\u{2581}Hello"]),
        ("phi-3", vec!["<s>", "\u{2581}Hello"]),
        ("qwen2", vec!["Hello"]),
    ];
    assert_eq!(paths.len(), cases.len());
    for (path, (name, expected)) in paths.iter().zip(cases) {
        assert!(path.ends_with(format!("ggml-vocab-{name}.gguf")), "{}", path.display());
        let file = GgufFile::open(path).unwrap();
        let files = tokenizer_files(file.metadata(), &mut Vec::new()).unwrap();
        let tokenizer = Tokenizer::from_bytes(&files[0].1).unwrap();
        let found = tokenizer.encode("Hello", true).unwrap();
        assert_eq!(found.get_tokens(), expected, "{name}");
        assert_eq!(tokenizer.decode(found.get_ids(), true).unwrap().to_lowercase(), "hello", "{name}");
    }
}

#[test]
fn phi_3_takes_special_tokens_with_the_spaces_behind_them() {
    if std::env::var_os("ATOMBANK_VOCABS").is_some() {
        return;
    }
    let (_held, paths) = vocabularies();
    let path = paths.iter().find(|path| path.ends_with("ggml-vocab-phi-3.gguf")).unwrap();
    let files = tokenizer_files(GgufFile::open(path).unwrap().metadata(), &mut Vec::new()).unwrap();
    let tokenizer = Tokenizer::from_bytes(&files[0].1).unwrap();
    let found = tokenizer.encode("<|user|>\n Hello<|end|>\n", false).unwrap();
    // <|user|>, "\u{2581}Hello", <|end|>
    assert_eq!(found.get_ids(), [32010, 15043, 32007]);
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["tokenizer.json", "tokenizer.model", "chat_template.jinja", "tokenizer_config.json"]);
    let config: Json = serde_json::from_slice(&files[3].1).unwrap();
    assert_eq!(config["added_tokens_decoder"]["32000"]["content"], "<|endoftext|>");
    assert_eq!((&config["add_bos_token"], &config["add_eos_token"]), (&Json::Bool(true), &Json::Bool(false)));
    assert_eq!(config["pad_token"], "<|endoftext|>");
}
