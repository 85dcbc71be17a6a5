use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::*;
use crate::convert::vocab::{Vocab, keys_of};
use crate::formats::gguf::{Array, GgufFile, Value};

/// The way of an architecture's vocabulary back, for those that the fixtures have.
fn way_back(metadata: &Metadata) -> Vocab {
    let model = metadata.text(MODEL).unwrap();
    match (metadata.text("general.architecture").unwrap(), model) {
        ("bert", _) => Vocab::WordPiece,
        ("llama", _) => Vocab::Llama,
        ("phi3", _) => Vocab::Phi3,
        ("nomic-bert-moe", _) => Vocab::XlmRoberta,
        (_, "llama") | ("qwen2", _) => Vocab::SpmOrBpe,
        _ => Vocab::Bpe,
    }
}

/// config.json as a conversion from GGUF makes it, as far as vocabularies go.
fn model_config(metadata: &Metadata) -> Map<String, Json> {
    let mut config = Map::new();
    config.insert("vocab_size".to_owned(), json!(metadata.strings(vocabulary::TOKENS).unwrap().len()));
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
    write(&rebuild(metadata, &mut Vec::new()).unwrap(), folder.path());
    change(folder.path());
    keys_of(folder.path(), model_config(metadata), way_back(metadata)).unwrap()
}

fn same_keys(name: &str, found: &Metadata, expected: &Metadata) {
    let is_tokenizer = |(key, _): &(&str, &Value)| key.starts_with("tokenizer.");
    let keys = |metadata: &Metadata| -> Vec<String> {
        let keys = metadata.iter().filter(is_tokenizer).map(|(key, _)| key.to_owned());
        let bpe = metadata.text(MODEL).unwrap() == "gpt2";
        keys.filter(|key| !(bpe && key == vocabulary::SCORES)).collect()
    };
    for (key, value) in expected.iter().filter(is_tokenizer) {
        // Byte-level BPE has no use for them; a note says that they are left out.
        if key == vocabulary::SCORES && expected.text(MODEL).unwrap() == "gpt2" {
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

fn fixtures() -> (Option<tempfile::TempDir>, Vec<PathBuf>) {
    let (held, folder) = match std::env::var_os("ATOMBANK_VOCABS") {
        Some(folder) => (None, PathBuf::from(folder)),
        None => {
            let unpacked = tempfile::tempdir().unwrap();
            for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vocabs")).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|extension| extension == "zip") {
                    zip::ZipArchive::new(File::open(path).unwrap()).unwrap().extract(unpacked.path()).unwrap();
                }
            }
            let path = unpacked.path().to_owned();
            (Some(unpacked), path)
        }
    };
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "gguf")).collect();
    paths.sort();
    (held, paths)
}

#[test]
fn vocabularies_of_real_models_come_back_key_for_key() {
    let (_held, paths) = fixtures();
    assert!(!paths.is_empty());
    for path in paths {
        let file = GgufFile::open(&path).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        // No way back in this crate yet.
        if file.metadata().text(MODEL).unwrap() == "gemma4" {
            continue;
        }
        let back = there_and_back(file.metadata(), |_| {});
        same_keys(&name, &back, file.metadata());
    }
}
