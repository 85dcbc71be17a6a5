//! Compares the keys `general.*` with those that llama.cpp's converter writes for the same cards
//! and names.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::{GeneralOptions, TensorTotals, write};
use crate::error::Result;
use crate::formats::gguf::{Array, Metadata, Value, ValueType};

/// The cases in `fixtures/general/cases.json`, or in another file of the same form, given by an
/// environment variable.
fn cases() -> serde_json::Map<String, Json> {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/general/cases.json");
    let path = std::env::var_os("ATOMBANK_GENERAL_CASES").map_or(kept, PathBuf::from);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Makes the case's folder and writes its keys. Returns these and the notes.
fn run(case: &Json) -> Result<(Metadata, Vec<String>)> {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join(case["folder"].as_str().unwrap());
    fs::create_dir(&folder).unwrap();
    let put = |name: &str, text: &Json| {
        if let Some(text) = text.as_str() {
            fs::write(folder.join(name), text).unwrap();
        }
    };
    put("README.md", &case["readme"]);
    put("generation_config.json", &case["generation_config"]);
    if let Some(bytes) = case["readme_bytes"].as_array() {
        let bytes: Vec<u8> = bytes.iter().map(|b| b.as_u64().unwrap() as u8).collect();
        fs::write(folder.join("README.md"), bytes).unwrap();
    }
    let config = case["config"].as_object().cloned().unwrap_or_default();
    let metadata_file = case["metadata_file"].is_object().then(|| {
        let path = temp.path().join("metadata.json");
        fs::write(&path, case["metadata_file"].to_string()).unwrap();
        path
    });
    let text = |name: &str| case[name].as_str().map(str::to_owned);
    let options = GeneralOptions { metadata_file, model_name: text("model_name"), model_id: text("model_id") };
    let count = |i: usize| i128::from(case["totals"][i].as_i64().unwrap());
    let totals = TensorTotals { total: count(0), shared: count(1), expert: count(2), experts: count(3) };
    let mut metadata = Metadata::new("m.gguf");
    let mut notes = Vec::new();
    write(&mut metadata, &folder, &config, "llama", totals, &options, &mut notes)?;
    Ok((metadata, notes))
}

/// A value in the form that the cases use, with numbers as f64.
fn described(value: &Value) -> (Json, Json) {
    let text = |bytes: &[u8]| Json::from(std::str::from_utf8(bytes).unwrap());
    let name = |kind: ValueType| kind.to_string().to_uppercase();
    let (inner, plain) = match value {
        Value::U32(v) => (None, json!(v)),
        Value::I32(v) => (None, json!(v)),
        Value::F32(v) => (None, json!(f64::from(*v))),
        Value::String(v) => (None, text(v)),
        Value::Array(array) => {
            let items: Vec<Json> = match array {
                Array::String(v) => v.iter().map(|s| text(s)).collect(),
                Array::I32(v) => v.iter().map(|i| json!(i)).collect(),
                Array::Bool(v) => v.iter().map(|b| json!(b)).collect(),
                Array::F32(v) => v.iter().map(|f| json!(f64::from(*f))).collect(),
                other => panic!("no reference for arrays of {}", other.kind()),
            };
            (Some(array.kind()), Json::from(items))
        }
        other => panic!("no reference for {other}"),
    };
    (Json::from_iter([name(value.kind())].into_iter().chain(inner.map(name))), plain)
}

#[test]
fn keys_equal_the_reference_in_type_value_and_order() {
    let mut wrong = 0;
    let cases = cases();
    assert!(!cases.is_empty());
    for (name, case) in &cases {
        let (metadata, notes) = run(case).unwrap_or_else(|e| panic!("{name}: {e}"));
        let found: Vec<Json> = metadata
            .iter()
            .map(|(key, value)| {
                let (types, plain) = described(value);
                json!([key, types, plain])
            })
            .collect();
        let noted = notes.iter().any(|note| note.contains("README.md: model card: expected YAML"));
        // Where the reference fails with an exception, only the card is left out, with a note.
        if Json::from(found.clone()) != case["keys"] || case["raises"].is_string() && !noted {
            wrong += 1;
            println!("{name}: {case:#}\nfound {:#}\nnotes {notes:?}", Json::from(found));
        }
    }
    assert_eq!(wrong, 0, "of {}", cases.len());
}

fn card(yaml: &str) -> Json {
    json!({"folder": "model", "readme": format!("---\n{yaml}---\n"), "totals": [0, 0, 0, 0]})
}

/// All keys except architecture, type and name, and the notes without the file's name.
fn shown(case: &Json) -> (Vec<String>, Vec<String>) {
    let (metadata, notes) = run(case).unwrap();
    let keys = metadata.iter().skip(3).map(|(key, value)| format!("{key} {value}")).collect();
    let after_name = |note: String| note.split_once(".md: ").map_or(note.clone(), |(_, rest)| rest.to_owned());
    (keys, notes.into_iter().map(after_name).collect())
}

#[test]
fn values_that_upstream_fails_on_are_written_as_they_stand_and_noted() {
    let cases = [
        (
            "version: 1.10\n",
            vec!["general.version string \"1.10\""],
            vec!["general.version: expected a text, found 1.10, written as it stands there"],
        ),
        (
            "tags: [a, 7, 2024-01-31, ~, {x: y}]\n",
            vec!["general.tags array of 3 x string"],
            vec![
                "general.tags: expected a text, found 7, written as it stands there",
                "general.tags: expected a text, found 2024-01-31, written as it stands there",
                "general.tags: expected a text, found none, left out",
                "general.tags: expected a text, found a list or mapping, left out",
            ],
        ),
        ("author: [x]\n", vec![], vec!["general.author: expected a text, found a list or mapping, left out"]),
        (
            "base_model: [{name: 3}, 4]\n",
            vec!["general.base_model.count uint32 2", "general.base_model.0.name string \"3\""],
            vec![
                "general.base_model.0.name: expected a text, found 3, written as it stands there",
                "general.base_model.1: expected a name, an address or keys and values, found something else, left out",
            ],
        ),
        (
            "license: [mit, 2]\n",
            vec!["general.license string \"mit,2\""],
            vec!["general.license: expected a text, found 2, written as it stands there"],
        ),
        (
            "license: b: c\n",
            vec![],
            vec![
                "model card: expected YAML between two lines ---, found mapping values are not allowed in this context \
                 in line 2; nothing is taken from it",
            ],
        ),
    ];
    for (yaml, keys, notes) in cases {
        let (found_keys, found_notes) = shown(&card(yaml));
        assert_eq!(found_keys, keys, "{yaml}");
        assert_eq!(found_notes, notes, "{yaml}");
    }
}

#[test]
fn the_name_on_the_hub_stands_for_the_folder_and_a_chosen_one_before_it() {
    let mut case = card("model_name: Card\n");
    case["folder"] = json!("0123456789abcdef0123456789abcdef01234567");
    case["model_id"] = json!("some-org/Base-7B-Instruct-v2");
    let (metadata, _) = run(&case).unwrap();
    let text = |key: &str| metadata.get(&format!("general.{key}")).and_then(|value| value.as_text());
    assert_eq!(text("name"), Some("some-org/Base-7B-Instruct-v2"));
    assert_eq!(text("organization"), Some("Some Org"));
    assert_eq!(text("basename"), Some("Base"));
    assert_eq!(text("finetune"), Some("Instruct"));
    assert_eq!(text("version"), Some("v2"));
    assert_eq!(text("size_label"), Some("7B"));
    case["model_name"] = json!("Mine");
    assert_eq!(run(&case).unwrap().0.text("general.name").unwrap(), "Mine");
}

#[test]
fn metadata_files_of_another_form_are_refused_by_key() {
    let cases = [
        (json!({"general.name": 3}), "metadata.json: general.name: expected a text, found 3"),
        (json!({"general.tags": "a"}), "general.tags: expected a list of texts, found \"a\""),
        (
            json!({"general.base_models": ["a"]}),
            "general.base_models: expected a list of objects with texts for some of name",
        ),
        (json!({"general.datasets": [{"nome": "a"}]}), "general.datasets: expected a list of objects"),
        (
            json!({"general.sampling.top_k": 1.5}),
            "general.sampling.top_k: expected a whole number of 32 bits, found 1.5",
        ),
        (json!({"general.sampling.temp": 1e39}), "general.sampling.temp: expected a number of 32 bits"),
        (json!({"general.sampling.sequence": 1}), "general.sampling.sequence: expected a text, found 1"),
    ];
    for (file, expected) in cases {
        let mut case = card("");
        case["metadata_file"] = file;
        let message = run(&case).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let mut case = card("");
    case["metadata_file"] = json!({"general.license": "mit", "general.sampling.topk": 1, "llama.x": 1});
    let notes = run(&case).unwrap().1.join("\n");
    for key in ["general.license", "general.sampling.topk", "llama.x"] {
        assert!(notes.contains(&format!("{key}: expected a key that metadata files set, found another")), "{notes}");
    }
    let options = GeneralOptions { metadata_file: Some("/nowhere/m.json".into()), ..GeneralOptions::default() };
    let (folder, mut metadata) = (tempfile::tempdir().unwrap(), Metadata::default());
    let totals = TensorTotals::default();
    let error = write(&mut metadata, folder.path(), &Default::default(), "llama", totals, &options, &mut Vec::new());
    assert!(error.unwrap_err().to_string().starts_with("/nowhere/m.json: cannot read"));
}

#[test]
fn sampling_settings_of_the_wrong_kind_are_refused_and_broken_ones_noted() {
    let mut case = card("");
    case["generation_config"] = json!("{\"temperature\": \"hot\"}");
    let message = run(&case).unwrap_err().to_string();
    assert!(message.contains("generation_config.json: temperature: expected a number of 32 bits"), "{message}");
    case["generation_config"] = json!("{\"temperature\": NaN}");
    let notes = run(&case).unwrap().1.join("\n");
    assert!(notes.contains("no sampling settings are taken from it"), "{notes}");
}
