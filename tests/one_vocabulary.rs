//! Tests that models of several vocabularies are merged by token, as mergekit does it with `tokenizer_source`:
//! `fixtures/combine/vocabulary`.

#[path = "common/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atombank::checkpoint::Checkpoint;
use atombank::formats::safetensors::SafetensorsFile;
use atombank::merge::combine::{CombineOptions, ModelMethod, Weights, combine_models};
use atombank::merge::vocabulary::{
    TokenName, TokenRow, TokenSettings, TokenizerSource, Vocabulary, VocabularySettings, folder_of,
};
use atombank::plan::Plan;
use atombank::source::Source;
use program::{INPUT, USAGE, atombank, copy, fixture, refused_leaving, text};
use serde_json::Value;
use tokenizers::Tokenizer;

const MODELS: [&str; 3] = ["base", "more", "far"];
/// The models' weights, in the same order.
const WEIGHTS: [f64; 3] = [1.0, 0.5, -0.25];
const NEAR: f32 = 1e-6;

fn fixtures() -> PathBuf {
    fixture("combine/vocabulary")
}

fn place(name: &Value) -> usize {
    MODELS.iter().position(|model| name == model).unwrap()
}

fn row(json: &Value) -> Option<TokenRow> {
    Some(match json {
        Value::Null => return None,
        Value::String(_) => TokenRow::Model(place(json)),
        _ if json["kind"] == "zero" => TokenRow::Zero,
        _ => {
            let token = match &json["token"] {
                Value::String(text) => TokenName::Text(text.clone()),
                _ => TokenName::Id(json["token_id"].as_u64().unwrap() as usize),
            };
            TokenRow::Token { model: place(&json["model"]), token }
        }
    })
}

fn settings(case: &Value) -> VocabularySettings {
    let source = match case["source"].as_str().unwrap() {
        "base" => TokenizerSource::Base,
        "union" => TokenizerSource::Union,
        name => TokenizerSource::Folder(fixtures().join(name)),
    };
    let token = |(text, json): (&String, &Value)| {
        (text.clone(), TokenSettings { row: row(&json["source"]), force: json["force"] == true })
    };
    VocabularySettings {
        tokens: case["tokens"].as_object().unwrap().iter().map(token).collect(),
        pad_to_multiple_of: case["pad_to_multiple_of"].as_u64().map(|multiple| multiple as usize),
        ..VocabularySettings::new(source)
    }
}

fn cases() -> BTreeMap<String, Value> {
    serde_json::from_slice(&fs::read(fixtures().join("cases.json")).unwrap()).unwrap()
}

/// The ids of a tokenizer.json.
fn ids(json: &[u8]) -> BTreeMap<String, usize> {
    let vocab = Tokenizer::from_bytes(json).unwrap().get_vocab(true);
    vocab.into_iter().map(|(text, id)| (text, id as usize)).collect()
}

fn plan(file: &Path) -> Plan {
    let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(file).unwrap());
    Plan::taking(&source)
}

/// Compares the rows of each token, and those behind them.
fn check(name: &str, case: &Value, ids: &BTreeMap<String, usize>, found: &Plan) {
    let expected_ids: BTreeMap<String, usize> = serde_json::from_value(case["vocab"].clone()).unwrap();
    assert!(ids.keys().eq(expected_ids.keys()), "{name}: {ids:?}");
    let size = case["vocab_size"].as_u64().unwrap() as usize;
    let merged = plan(&fixtures().join("merged.safetensors"));
    for tensor in ["model.embed_tokens.weight", "lm_head.weight"] {
        let found = found.get(tensor).unwrap();
        assert_eq!(found.shape[0], size, "{name}: {tensor}");
        let expected = merged.get(&format!("{name}/{tensor}")).unwrap().read().unwrap();
        let (found, width) = (found.read().unwrap(), found.row_len());
        let padding = (expected_ids.len()..size).map(|row| (row, row));
        for (own, other) in ids.iter().map(|(text, id)| (*id, expected_ids[text])).chain(padding) {
            let of = |values: &[f32], row: usize| values[row * width..(row + 1) * width].to_vec();
            let (own, other) = (of(&found, own), of(&expected, other));
            assert!(own.iter().zip(&other).all(|(a, b)| (a - b).abs() <= NEAR), "{name}: {tensor}: {own:?} {other:?}");
        }
    }
}

#[test]
fn rows_are_those_of_mergekit() {
    for (name, case) in cases() {
        let folders: Vec<Checkpoint> =
            MODELS.iter().map(|name| Checkpoint::open(&fixtures().join(name)).unwrap()).collect();
        let base = (!case["base"].is_null()).then(|| place(&case["base"]));
        let vocabulary = Vocabulary::new(&folders.iter().collect::<Vec<_>>(), base, &settings(&case)).unwrap();
        let mut plans: Vec<Plan> = folders.iter().map(|folder| folder.weights().clone()).collect();
        vocabulary.align(&folders[0].config_json, &mut plans).unwrap();
        let others: Vec<usize> = (0..MODELS.len()).filter(|at| Some(*at) != base).collect();
        let weights = Weights::new(others.iter().map(|at| WEIGHTS[*at]).collect::<Vec<_>>());
        let options = CombineOptions { weights, ..CombineOptions::default() };
        let method: ModelMethod = case["method"].as_str().unwrap().parse().unwrap();
        let models: Vec<&Plan> = others.iter().map(|at| &plans[*at]).collect();
        let combined = combine_models(base.map(|at| &plans[at]), &models, method, &options).unwrap();
        check(&name, &case, &ids(&vocabulary.files()["tokenizer.json"]), &combined.result);
        let folder = folder_of(vocabulary.files()).unwrap();
        assert!(folder.path().join("tokenizer_config.json").is_file());
    }
}

fn merge(models: [&Path; 3], out: &Path, options: &[&str]) -> Vec<String> {
    let [base, more, far] = models;
    let weighted = [format!("{}=0.5", text(more)), format!("{}=-0.25", text(far))];
    let args = ["merge", text(base), &weighted[0], &weighted[1], "-o", text(out), "--method", "task_arithmetic"];
    [&args, options].concat().into_iter().map(str::to_owned).collect()
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn the_program_writes_models_of_the_new_vocabulary() {
    let dir = tempfile::tempdir().unwrap();
    let paths = MODELS.map(|name| fixtures().join(name));
    let models = [paths[0].as_path(), &paths[1], &paths[2]];
    for name in ["base", "union", "model", "padded"] {
        let case = &cases()[name];
        let out = dir.path().join(name);
        let source = match case["source"].as_str().unwrap() {
            "more" => text(&paths[1]).to_owned(),
            other => other.to_owned(),
        };
        let mut options = vec!["--tokenizer-source", &source];
        let multiple = case["pad_to_multiple_of"].as_u64().map(|multiple| multiple.to_string());
        options.extend(multiple.iter().flat_map(|multiple| ["--pad-to-multiple-of", multiple]));
        let ran = atombank(&strs(&merge(models, &out, &options)));
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        check(name, case, &ids(&fs::read(out.join("tokenizer.json")).unwrap()), &plan(&out.join("model.safetensors")));
        let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["vocab_size"], case["vocab_size"]);
    }
}

#[test]
fn models_of_several_vocabularies_are_named_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let paths = MODELS.map(|name| fixtures().join(name));
    let out = dir.path().join("out");
    let args = merge([&paths[0], &paths[1], &paths[2]], &out, &[]);
    let line = refused_leaving(INPUT, dir.path(), &strs(&args));
    for part in
        ["expected 13 rows, the vocabulary of", "found 19, the vocabulary of", "--tokenizer-source base or union"]
    {
        assert!(line.contains(part), "{line}");
    }
    let args = merge([&paths[0], &paths[1], &paths[2]], &out, &["--pad-to-multiple-of", "8"]);
    let line = refused_leaving(USAGE, dir.path(), &strs(&args));
    assert!(line.contains("--pad-to-multiple-of: expected a --tokenizer-source, for models"), "{line}");
    let args = merge([&paths[0], &paths[1], &paths[2]], &out, &["--tokenizer-source", "nowhere"]);
    let line = refused_leaving(INPUT, dir.path(), &strs(&args));
    assert!(line.contains("nowhere: expected base, union, or a folder that has a tokenizer"), "{line}");
    // As many rows, but of other tokens.
    let other = copy(&paths[0], &dir.path().join("other"));
    let json = fs::read_to_string(other.join("tokenizer.json")).unwrap().replace("<x>", "<w>");
    fs::write(other.join("tokenizer.json"), json).unwrap();
    let ran = atombank(&["merge", text(&paths[0]), text(&other), "-o", text(&out), "--method", "ties"]);
    let notes = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.success() && notes.contains("other tokens, or other ids, than in"), "{notes}");
}
