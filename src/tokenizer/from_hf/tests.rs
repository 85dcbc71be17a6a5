//! Whole vocabularies against what llama.cpp's converter makes of the same folders.

#[path = "../../../tests/common/described.rs"]
mod described;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::*;
use crate::formats::gguf::{Array, Value, ValueType};
use crate::json::read_json_object;
use described::described;

/// The cases of `fixtures/vocab`, or of the folder that the environment names: `model/` with
/// config.json and the tokenizer's files, `expected/` with keys in a form that `described` makes.
fn cases() -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vocab");
    let folder = std::env::var_os("ATOMBANK_VOCAB_CASES").map_or(fixtures, PathBuf::from);
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<PathBuf> = entries.filter(|path| path.join("expected").is_dir()).collect();
    cases.sort();
    cases
}

/// The keys that the reference writes, in their order; `None` where it writes no such file.
fn expected(case: &Path) -> Option<Json> {
    let names = ["vocab.json", "f16.json", "f32.json"];
    let path = names.map(|name| case.join("expected").join(name)).into_iter().find(|p| p.is_file())?;
    // Python writes numbers that JSON doesn't have.
    let text = fs::read_to_string(path).unwrap().replace("-Infinity", "null").replace("NaN", "null");
    Some(serde_json::from_str::<Json>(&text).unwrap()["keys"].clone())
}

/// The kind of every class that the reference converts, by its name.
fn classes() -> Vec<(String, String)> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vocab/classes.tsv")).unwrap();
    let line = |line: &str| line.split_once('\t').map(|(class, kind)| (class.to_owned(), kind.to_owned())).unwrap();
    text.lines().map(line).collect()
}

/// The kind of a model's class, or of its text model's; `None` for a draft model, which has its target's.
fn vocab_of(config: &files::Object) -> Option<Vocab> {
    let inner = config.get("text_config").and_then(Json::as_object);
    let class = |config: &files::Object| Some(config.get("architectures")?.get(0)?.as_str()?.to_owned());
    let kind = |class: String| classes().into_iter().find(|(known, _)| *known == class).map(|(_, kind)| kind);
    let kind = class(config).and_then(kind).or_else(|| inner.and_then(class).and_then(kind));
    kind.unwrap_or("bpe".to_owned()).parse().ok()
}

fn convert(model: &Path, pre: Option<String>) -> Result<(Metadata, Vec<String>)> {
    let config = read_json_object(&model.join("config.json"))?;
    let (mut folder, mut options) = (model.to_owned(), VocabOptions { pre, ..VocabOptions::default() });
    // A draft model has the tokenizer of its target, which stands beside it.
    let vocab = match vocab_of(&config) {
        None => {
            folder = model.with_file_name("target");
            let target = read_json_object(&folder.join("config.json"))?;
            let vocab = vocab_of(&target).unwrap();
            options.target = Some(target);
            vocab
        }
        Some(vocab) => vocab,
    };
    let mut files = Files::open(&folder, config)?;
    let (mut metadata, mut notes) = (Metadata::new(model), Vec::new());
    files.fit(vocab, &options)?;
    write_files(&mut metadata, &files, vocab, &options, &mut notes)?;
    Ok((metadata, notes))
}

#[test]
fn every_class_of_the_table_has_a_kind() {
    for (class, name) in classes() {
        assert!(name == "target" || name.parse::<Vocab>().is_ok(), "{class}: {name}");
    }
}

#[test]
fn keys_equal_the_reference_in_order_type_and_value() {
    let cases = cases();
    assert!(!cases.is_empty());
    let differences: Vec<String> =
        cases.iter().filter_map(|case| Some((case, expected(case)?))).filter_map(difference).collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// The first difference of a case from the reference.
fn difference((case, expected): (&PathBuf, Json)) -> Option<String> {
    let name = case.file_name().unwrap().to_string_lossy();
    // Whole files of the reference were made with a name put in the place of a hash.
    let stated =
        expected["tokenizer.ggml.pre"]["value"].as_str().filter(|_| !case.join("expected/vocab.json").is_file());
    let (metadata, notes) = match convert(&case.join("model"), stated.map(str::to_owned)) {
        Ok(done) => done,
        Err(error) => return Some(format!("{name}: {error}")),
    };
    // In whole files, the settings of the architecture come before this key and may have keys of this room, too.
    let all: Vec<&str> = expected.as_object().unwrap().keys().map(String::as_str).collect();
    let first = all.iter().position(|key| *key == "general.quantization_version").unwrap_or(0);
    let mut theirs: Vec<&str> = all[first..].iter().copied().filter(|key| key.starts_with("tokenizer.")).collect();
    let ours: Vec<&str> = metadata.iter().map(|(key, _)| key).filter(|key| !all[..first].contains(key)).collect();
    if case.join("target").is_dir() {
        // The draft model's own key.
        theirs.retain(|key| *key != "tokenizer.ggml.mask_token_id");
    }
    if ours != theirs {
        return Some(format!("{name}: keys {ours:?}, expected {theirs:?} ({notes:?})"));
    }
    // The reference's order of these is that of a set.
    let sorted = |key: &str, mut json: Json| {
        let names = json["value"].as_array_mut().filter(|_| key == "tokenizer.chat_templates");
        names.into_iter().for_each(|names| names.sort_by_key(Json::to_string));
        json
    };
    let mut all = metadata.iter().map(|(key, value)| (key, sorted(key, described(value))));
    let different = all.find(|(key, value)| *value != sorted(key, expected[*key].clone()));
    different.map(|(key, value)| format!("{name}: {key}: {value}, expected {} ({notes:?})", expected[key]))
}

fn refusal(vocab: Vocab, tokenizer: Json, config: Json) -> String {
    let files = Files::for_test(tokenizer, config, json!({}));
    let options = VocabOptions::default();
    write_files(&mut Metadata::new("m"), &files, vocab, &options, &mut Vec::new()).unwrap_err().to_string()
}

#[test]
fn vocabularies_of_another_kind_are_refused() {
    let of = |kind: &str, vocab: Json| json!({"model": {"type": kind, "vocab": vocab}});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false});
    let bpe = || {
        let model = json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]});
        json!({"pre_tokenizer": byte_level, "model": model})
    };
    let cases = [
        (Vocab::Bpe, of("Unigram", json!([])), "expected BPE, as this architecture has it, found Unigram"),
        (Vocab::Llama, of("WordPiece", json!({})), "expected BPE, as this architecture has it, found WordPiece"),
        (Vocab::WordPiece, of("Unigram", json!([])), "expected WordPiece, as BERT has it, found Unigram"),
        (Vocab::XlmRoberta, of("BPE", json!({})), "expected Unigram, as this architecture has it, found Bpe"),
        (Vocab::Gemma, of("BPE", json!({})), "expected tokenizer.model, or a tokenizer.json that was made of it"),
        (Vocab::Gemma2, of("BPE", json!({})), "expected tokenizer.model, or a tokenizer.json that was made of it"),
        (Vocab::Phi3, of("BPE", json!({})), "expected tokenizer.model, or a tokenizer.json that was made of it"),
        (Vocab::Roberta, json!({}), "tokenizer: expected tokenizer.json, found no such file"),
        (Vocab::Spm, of("BPE", json!({})), "expected tokenizer.model, or a tokenizer.json that was made of it"),
        (Vocab::Jamba, of("BPE", json!({})), "expected tokenizer.model, or a tokenizer.json that was made of it"),
        (Vocab::InternLm2, of("BPE", json!({})), "expected tokenizer.model, or a tokenizer.json that was made of it"),
        (Vocab::Arctic, of("BPE", json!({})), "expected tokenizer.model, or a tokenizer.json that was made of it"),
        (Vocab::Gemma4, of("Unigram", json!([])), "model: expected BPE that falls back to bytes, as this"),
        (Vocab::T5, of("BPE", json!({})), "tokenizer: expected tokenizer.model or spiece.model, found neither"),
        (Vocab::JinaBertV2, of("BPE", json!({})), "tokenizer_class: expected BertTokenizer or RobertaTokenizer, as"),
        (Vocab::DeepSeek32, of("BPE", json!({})), "add_bos_token: expected true: the model needs a token before"),
        (Vocab::Xverse, of("BPE", json!({"a": 1})), "token \"a\": expected the next id, 0, of 1, found 1"),
        (Vocab::Qwen3Tts, of("BPE", json!({})), "talker_config.vocab_size: expected a count, found none"),
        (
            "glm4".parse().unwrap(),
            bpe(),
            "expected the token \"<|endoftext|>\", which this architecture has, found none",
        ),
        (Vocab::XlmRoberta, json!({}), "expected sentencepiece.bpe.model or tokenizer.json, found neither"),
    ];
    for (vocab, tokenizer, expected) in cases {
        let message = refusal(vocab, tokenizer, json!({}));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn notes_say_what_was_decided() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vocab");
    let notes = |case: &str| convert(&fixtures.join(case).join("model"), None).unwrap().1;
    let llama3 = notes("llama3");
    assert!(
        llama3.iter().any(|note| note.starts_with("pre-tokenizer llama-bpe: found by the rules of tokenizer.json; ")),
        "{llama3:?}"
    );
    assert!(
        llama3.iter().any(|note| note.starts_with("add_eos_token: the post-processor of tokenizer.json says true")),
        "{llama3:?}"
    );
    assert_eq!(
        notes("phi3").last().unwrap(),
        "special token pad: id 9000 is past the 406 tokens of the vocabulary, left out"
    );
    let asked = convert(&fixtures.join("llama3/model"), Some("qwen2".to_owned())).unwrap().0;
    assert_eq!(asked.text("tokenizer.ggml.pre").unwrap(), "qwen2");
}

#[cfg(feature = "convert")]
#[test]
fn hashes_equal_the_reference() {
    let mut compared = 0;
    for case in cases() {
        let path = case.join("expected/vocab.json");
        let Ok(bytes) = fs::read(&path) else { continue };
        let expected = serde_json::from_slice::<Json>(&bytes).unwrap();
        let Some(hash) = expected["chkhsh"].as_str() else { continue };
        let model = case.join("model");
        let files = Files::open(&model, read_json_object(&model.join("config.json")).unwrap()).unwrap();
        let auto = auto::Auto::load(&files).unwrap();
        assert_eq!(hash::hash(&auto).unwrap(), hash, "{}", case.display());
        compared += 1;
    }
    assert!(compared > 0 || std::env::var_os("ATOMBANK_VOCAB_CASES").is_some());
}
