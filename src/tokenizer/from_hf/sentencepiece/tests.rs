use std::fs;

use serde_json::json;

use super::*;

/// A SentencePiece model with these pieces of types 2 (the first) and 1.
fn model(texts: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (id, text) in texts.iter().enumerate() {
        let kind = if id == 0 { 2 } else { 1 };
        let inner = [&[0x0a, text.len() as u8][..], text.as_bytes(), &[0x18, kind]].concat();
        bytes.extend([0x0a, inner.len() as u8]);
        bytes.extend(inner);
    }
    bytes
}

fn folder(contents: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.model"), model(&["<unk>", "a", "b"])).unwrap();
    for (name, content) in contents {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn tokens_of(contents: &[(&str, &str)], config: Json, reading: Reading) -> Result<(Vec<String>, Vec<String>)> {
    let folder = folder(contents);
    let files = Files::open(folder.path(), config.as_object().unwrap().clone())?;
    let mut notes = Vec::new();
    let tokens = tokens(&files, reading, &mut notes)?.unwrap();
    let shown = tokens.texts.iter().zip(&tokens.kinds).zip(&tokens.scores);
    Ok((shown.map(|((text, kind), score)| format!("{text}:{}:{score}", kind.number())).collect(), notes))
}

#[test]
fn added_tokens_go_over_pieces_and_placeholders() {
    let contents = [
        ("added_tokens.json", r#"{"<j>": 3, "<far>": 99}"#),
        (
            "tokenizer_config.json",
            r#"{"added_tokens_decoder": {"1": {"content": "A"}, "4": {"content": "<|x|>"}, "5": {"content": "▁y"}, "98": {"content": "z"}}}"#,
        ),
    ];
    let (tokens, notes) = tokens_of(&contents, json!({"vocab_size": 7}), Reading::Usual).unwrap();
    let expected = ["<unk>:2:0", "A:4:-1000", "b:1:0", "<j>:4:-1000", "<|x|>:3:-1000", " y:4:-1000", "[PAD6]:5:-10000"];
    assert_eq!(tokens, expected);
    assert_eq!(
        notes,
        [
            "tokens of the model replaced by added ones: 1 \"a\" -> \"A\"",
            "added tokens past the end of the vocabulary left out: \"<far>\" (99), \"z\" (98)"
        ]
    );
}

#[test]
fn pieces_past_the_vocabulary_are_left_out_or_refused() {
    let (tokens, notes) = tokens_of(&[], json!({"vocab_size": 2}), Reading::Usual).unwrap();
    assert_eq!(tokens, ["<unk>:2:0", "a:1:0"]);
    assert_eq!(notes, ["tokenizer.model: the tokens from 2 on are left out, vocab_size of config.json is 2"]);
    let message = tokens_of(&[], json!({"vocab_size": 2}), Reading::Phi3).unwrap_err().to_string();
    assert!(
        message.contains("tokenizer.model: pieces: expected at most vocab_size 2 of config.json, found 3"),
        "{message}"
    );
}

#[test]
fn phi3_takes_flags_as_they_are_and_refuses_ids_past_the_end() {
    let tokenizer = r#"{"added_tokens": [{"id": 3, "content": "<|x|>"}, {"id": 4, "content": "▁y", "special": true}]}"#;
    let (tokens, _) = tokens_of(&[("tokenizer.json", tokenizer)], json!({"vocab_size": 5}), Reading::Phi3).unwrap();
    assert_eq!(tokens[3..], ["<|x|>:4:-1000", "▁y:3:-1000"]);
    let message =
        tokens_of(&[("tokenizer.json", tokenizer)], json!({"vocab_size": 4}), Reading::Phi3).unwrap_err().to_string();
    assert!(message.contains("added_tokens: expected at most vocab_size 4 of config.json, found id 4"), "{message}");
}

#[test]
fn malformed_added_tokens_are_refused() {
    let refusal =
        |name: &str, content: &str| tokens_of(&[(name, content)], json!({}), Reading::Usual).unwrap_err().to_string();
    let message = refusal("added_tokens.json", r#"{"a": -1}"#);
    assert!(message.contains("added_tokens.json: token \"a\": expected an id, found -1"), "{message}");
    for decoder in [r#"{"x": {"content": "a"}}"#, r#"{"1": {}}"#, r#"{"1": "a"}"#, r#"{"-1": {"content": "a"}}"#] {
        let message = refusal("tokenizer_config.json", &format!(r#"{{"added_tokens_decoder": {decoder}}}"#));
        assert!(message.contains("added_tokens_decoder: expected tokens with an id and a content"), "{message}");
    }
}

fn hf(vocab: Json, added: Json) -> Json {
    json!({
        "added_tokens": added, "decoder": {"type": "Sequence", "decoders": []},
        "model": {"type": "BPE", "byte_fallback": true, "vocab": vocab, "merges": []}
    })
}

#[test]
fn byte_fallback_in_a_sequence_is_sentencepiece() {
    let added = json!([{"id": 3, "content": "<|x|>", "special": true}, {"id": 4, "content": "<n>", "special": false}]);
    let tokenizer = hf(json!({"<unk>": 0, "<0x0a>": 1, "<0x0A0>": 2}), added);
    let config = json!({"unk_token": "<unk>", "pad_token": "<n>"});
    let files = Files::for_test(tokenizer.clone(), config, json!({"vocab_size": 6}));
    let mut notes = Vec::new();
    let tokens = llama_hf(&files, &mut notes).unwrap().unwrap();
    let kinds: Vec<i32> = tokens.kinds.iter().map(|kind| kind.number()).collect();
    // Only a named token is one of control here, whatever its flag.
    assert_eq!(kinds, [3, 6, 1, 4, 3]);
    assert_eq!(tokens.scores, [-1000.0; 5]);
    assert_eq!(notes[0], "the tokenizer has 5 tokens, vocab_size of config.json is 6: llama.cpp may refuse the file");

    for (part, field, value) in [
        ("decoder", "type", json!("ByteLevel")),
        ("model", "type", json!("Unigram")),
        ("model", "byte_fallback", json!(false)),
    ] {
        let mut other = tokenizer.clone();
        other[part][field] = value;
        let files = Files::for_test(other, json!({}), json!({}));
        assert!(llama_hf(&files, &mut Vec::new()).unwrap().is_none(), "{part}.{field}");
    }
}

#[test]
fn gaps_between_ids_are_refused_where_tokens_are_counted() {
    let files = Files::for_test(hf(json!({"a": 0, "b": 2}), json!([])), json!({}), json!({}));
    let message = llama_hf(&files, &mut Vec::new()).unwrap_err().to_string();
    assert!(message.contains("token \"b\": expected the next id, 1, found 2"), "{message}");
}

#[test]
fn gemma3_keeps_a_row_for_each_token() {
    let rows = |tokenizer: Json| gemma3_rows(&Files::for_test(tokenizer, json!({}), json!({})));
    let mut tokenizer = hf(json!({"a": 0, "b": 1}), json!([{"id": 0, "content": "a"}]));
    assert_eq!(rows(tokenizer.clone()).unwrap(), 2);
    // The reference counts a token twice that is added too.
    tokenizer["model"]["byte_fallback"] = json!(false);
    assert_eq!(rows(tokenizer).unwrap(), 3);
    assert!(
        rows(json!({})).unwrap_err().to_string().contains("expected tokenizer.model or tokenizer.json, found neither")
    );
    assert!(rows(json!({"model": {}})).unwrap_err().to_string().contains("model.vocab: expected tokens, found none"));
    let folder = folder(&[]);
    let config = json!({"vocab_size": 9}).as_object().unwrap().clone();
    assert_eq!(gemma3_rows(&Files::open(folder.path(), config).unwrap()).unwrap(), 9);
}
