use std::fs;

use super::*;

fn bpe(vocab: Json) -> Json {
    json!({"model": {"type": "BPE", "vocab": vocab, "merges": []}})
}

fn named(config: Json, model_config: Json) -> Vec<String> {
    let files = Files::for_test(bpe(json!({})), config, model_config);
    Auto::load(&files).unwrap().named
}

/// A folder with these files.
fn folder(contents: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in contents {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn refusal(contents: &[(&str, &str)]) -> String {
    let folder = folder(contents);
    let files = Files::open(folder.path(), Object::new()).unwrap();
    Auto::load(&files).err().unwrap().to_string()
}

#[test]
fn names_come_from_the_config_then_from_the_class() {
    let config = json!({
        "tokenizer_class": "Qwen2TokenizerFast", "eos_token": {"content": "<end>"}, "unk_token": null,
        "additional_special_tokens": ["<a>", {"content": "<b>"}, "<end>"], "extra_special_tokens": {"image_token": "<img>"}
    });
    assert_eq!(named(config, json!({})), ["<end>", "<|endoftext|>", "<img>", "<a>", "<b>"]);
    assert_eq!(named(json!({}), json!({"model_type": "gemma"})), ["<bos>", "<eos>", "<unk>", "<pad>", "<mask>"]);
    assert!(named(json!({}), json!({"model_type": "falcon"})).is_empty());
}

#[test]
fn some_types_of_models_have_their_own_class_whatever_the_config_says() {
    let plain = json!({"tokenizer_class": "PreTrainedTokenizerFast"});
    assert_eq!(named(plain, json!({"model_type": "qwen2"})), ["<|endoftext|>"]);
    let gpt2 = json!({"tokenizer_class": "GPT2Tokenizer"});
    assert!(named(gpt2.clone(), json!({"model_type": "granite"})).is_empty());
    assert_eq!(named(gpt2, json!({"model_type": "llama"})), ["<|endoftext|>"]);
}

#[test]
fn llama_tokenizers_of_bytes_have_no_names_of_their_own() {
    let mut tokenizer = bpe(json!({"a": 0}));
    let config = json!({"tokenizer_class": "LlamaTokenizerFast"});
    let names = |tokenizer: &Json| {
        let files = Files::for_test(tokenizer.clone(), config.clone(), json!({"model_type": "llama"}));
        Auto::load(&files).unwrap().named
    };
    assert_eq!(names(&tokenizer), ["<s>", "</s>", "<unk>"]);
    tokenizer["decoder"] = json!({"type": "ByteLevel"});
    assert!(names(&tokenizer).is_empty());
}

#[test]
fn the_file_of_names_counts_where_the_config_lists_no_tokens() {
    let contents = [
        ("tokenizer.json", r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}"#),
        ("special_tokens_map.json", r#"{"eos_token": "<of map>"}"#),
    ];
    let named = |config: &str| {
        let folder = folder(&[contents[0], contents[1], ("tokenizer_config.json", config)]);
        Auto::load(&Files::open(folder.path(), Object::new()).unwrap()).unwrap().named
    };
    assert_eq!(named(r#"{"eos_token": "<of config>"}"#), ["<of map>"]);
    assert_eq!(named(r#"{"eos_token": "<of config>", "added_tokens_decoder": {}}"#), ["<of config>"]);
}

#[test]
fn models_without_a_type_are_told_by_their_fields() {
    let model = |model: Json| {
        let files = Files::for_test(json!({ "model": model }), json!({}), json!({}));
        Auto::load(&files).unwrap().model
    };
    assert_eq!(model(json!({"vocab": {}, "merges": []})), ModelKind::Bpe);
    assert_eq!(model(json!({"vocab": {}, "continuing_subword_prefix": "##"})), ModelKind::WordPiece);
    assert_eq!(model(json!({"vocab": [["a", 0.0]], "unk_id": 0})), ModelKind::Unigram);
}

#[test]
fn malformed_vocabularies_are_refused_naming_the_token() {
    let refusal = |tokenizer: Json, config: Json| {
        Auto::load(&Files::for_test(tokenizer, config, json!({}))).err().unwrap().to_string()
    };
    let none = || json!({});
    let cases = [
        (json!({"x": 1}), none(), "tokenizer.json: model: expected an object, found none"),
        (json!({"model": []}), none(), "model: expected an object, found []"),
        (
            json!({"model": {"type": "WordLevel", "vocab": {}}}),
            none(),
            "expected BPE, WordPiece or Unigram, found WordLevel",
        ),
        (json!({"model": {"type": "BPE"}}), none(), "model.vocab: expected an object of ids by token, found none"),
        (
            json!({"model": {"type": "Unigram", "vocab": {}}}),
            none(),
            "expected a list of tokens and scores, found none",
        ),
        (
            json!({"model": {"type": "Unigram", "vocab": [1]}}),
            none(),
            "model.vocab[0]: expected a text and a score, found 1",
        ),
        (bpe(json!({"a": -1})), none(), "token \"a\": expected an id, found -1"),
        (bpe(json!({"a": 0.5})), none(), "token \"a\": expected an id, found 0.5"),
        (
            json!({"model": {"vocab": {}, "merges": []}, "added_tokens": [{"id": 1}]}),
            none(),
            "added_tokens: expected tokens with a content and an id, found {\"id\":1}",
        ),
        (
            bpe(json!({})),
            json!({"added_tokens_decoder": {"x": {"content": "a"}}}),
            "tokenizer_config.json: added_tokens_decoder.x: expected a token by its id",
        ),
    ];
    for (tokenizer, config, expected) in cases {
        let message = refusal(tokenizer, config);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn folders_without_a_tokenizer_say_what_is_missing() {
    assert!(
        refusal(&[]).contains("expected tokenizer.json, vocab.json with merges.txt, or vocab.txt, found none of them")
    );
    assert!(
        refusal(&[("vocab.json", "{}")])
            .contains("merges.txt: expected a file of merges beside vocab.json, found no such file")
    );
    let contents = [("vocab.json", "{}"), ("merges.txt", ""), ("added_tokens.json", r#"{"a": "b"}"#)];
    assert!(refusal(&contents).contains("added_tokens.json: token \"a\": expected an id, found \"b\""));
    let folder = folder(&[("vocab.txt", "")]);
    fs::write(folder.path().join("vocab.txt"), [0xff]).unwrap();
    let files = Files::open(folder.path(), Object::new()).unwrap();
    assert!(Auto::load(&files).err().unwrap().to_string().contains("vocab.txt: expected UTF-8 text"));
}

#[test]
fn merges_are_pairs_a_line_with_a_comment_first() {
    let lines = |text| merge_lines(text).collect::<Vec<_>>();
    assert_eq!(lines("#version: 0.2\na b\n\n  c   d \n"), [Ok("a b".to_owned()), Ok("c d".to_owned())]);
    assert_eq!(lines("a b\n# b\na b c\nd"), [Ok("a b".to_owned()), Ok("# b".to_owned()), Err(3), Err(4)]);
    assert!(lines("").is_empty());
}
