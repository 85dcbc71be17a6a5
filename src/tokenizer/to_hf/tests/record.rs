//! Records of keys that no other file holds, and of tokenizers that were changed afterwards.

use super::*;

/// Keys without a place in Hugging Face's files, of every type that the record has.
#[test]
fn keys_that_no_file_can_name_are_recorded() {
    let mut metadata = letters();
    metadata.insert("tokenizer.ggml.pre", "olmo");
    metadata.insert("tokenizer.ggml.eos_token_id", 3u32);
    metadata.insert("tokenizer.ggml.eot_token_id", 3u32);
    metadata.insert("tokenizer.ggml.fim_pre_token_id", 3u32);
    metadata.insert("tokenizer.ggml.suppress_tokens", Array::I32(vec![1, 2]));
    metadata.insert("tokenizer.ggml.add_bos_token", false);
    metadata.insert("tokenizer.own.small", -5i32);
    metadata.insert("tokenizer.own.half", 0.5f32);
    metadata.insert("tokenizer.own.long", u64::MAX);
    same_keys("recorded", &keys_back(&metadata), &metadata);
    metadata.insert("tokenizer.huggingface.json", "x".repeat(5000));
    let mut notes = Vec::new();
    to_hf(&metadata, &mut notes).unwrap();
    assert!(
        notes.iter().any(|note| note.starts_with("tokenizer.huggingface.json: string of 5000 bytes, left out")),
        "{notes:?}"
    );
}

fn edit(folder: &Path, name: &str, change: impl FnOnce(&mut Json)) {
    let path = folder.join(name);
    let mut json: Json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn the_record_says_nothing_against_changed_files() {
    let mut metadata = letters();
    metadata.insert(keys::PRE, "olmo");
    metadata.insert("tokenizer.ggml.eos_token_id", 3u32);
    metadata.insert("tokenizer.ggml.padding_token_id", 3u32);

    let back = there_and_back(&metadata, |folder| {
        edit(folder, "tokenizer_config.json", |config| {
            config["pad_token"] = Json::Null;
            config["bos_token"] = json!("<s>");
            config["add_bos_token"] = json!(true);
        });
        edit(folder, "tokenizer.json", |tokenizer| {
            tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] =
                json!(crate::tokenizer::pre::rules::QWEN2);
        });
    });
    assert_eq!(back.text(keys::PRE).unwrap(), "qwen2");
    assert_eq!(back.u32("tokenizer.ggml.bos_token_id").unwrap(), 3);
    assert!(back.bool("tokenizer.ggml.add_bos_token").unwrap());

    // Another vocabulary, another tokenizer: the record is void.
    let back = there_and_back(&metadata, |folder| {
        edit(folder, "tokenizer_config.json", |config| config["gguf"]["tokens"] = json!(7));
    });
    assert_eq!(back.text(keys::PRE).unwrap(), "olmo", "the steps are still its own");
    let keys: Vec<&str> = back.iter().map(|(key, _)| key).collect();
    assert_eq!(keys[..2], [keys::MODEL, keys::PRE]);
}

#[test]
fn a_malformed_record_is_passed_by() {
    let metadata = letters();
    for record in [
        json!(null),
        json!(3),
        json!({"keys": 5}),
        json!({"tokens": 6, "keys": {}}),
        json!({"tokens": 6, "keys": {"tokenizer.ggml.model": "gpt2", "tokenizer.x": {"int32": "y"}, "general.name": "z"},
               "token_types": [{"type": 77}, {"type": 4, "instead_of": 1, "ids": [[1], [5, 2], [99, 999_999_999_999u64], 7]}]}),
    ] {
        let back = there_and_back(&metadata, |folder| {
            edit(folder, "tokenizer_config.json", |config| config["gguf"] = record.clone());
        });
        for key in [keys::TOKENS, keys::MERGES] {
            assert_eq!(back.get(key), metadata.get(key), "{record}");
        }
        assert_eq!(back.get("general.name"), None);
    }
}
