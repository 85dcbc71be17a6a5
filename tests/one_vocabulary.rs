//! Tests that models of several vocabularies are merged by token, as mergekit does it with `tokenizer_source`, and that a
//! model gets another one's vocabulary: `fixtures/combine/vocabulary`. Tests that adapters of models that were resized are
//! merged into the base as it was before, as PEFT does it on the resized one: `fixtures/adapters/vocabulary`.

#[path = "common/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atombank::adapter::{HostTensor, save_tensors};
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

fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// The tensors of a case in merged.safetensors, by their names.
fn of_case(fixtures: &Path, case: &str) -> BTreeMap<String, Vec<f32>> {
    let tensors = plan(&fixtures.join("merged.safetensors")).tensors;
    let tensors = tensors.into_iter().filter_map(|tensor| {
        let name = tensor.name.strip_prefix(case)?.strip_prefix('/')?.to_owned();
        Some((name, tensor.read().unwrap()))
    });
    tensors.collect()
}

#[test]
fn a_model_gets_the_vocabulary_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let cases: BTreeMap<String, BTreeMap<String, Value>> =
        serde_json::from_slice(&fs::read(fixtures().join("surgeon.json")).unwrap()).unwrap();
    let [base, more] = ["base", "more"].map(|name| fixtures().join(name));
    for (name, options) in cases {
        let out = dir.path().join(&name);
        let mut args: Vec<String> =
            ["tokensurgeon", text(&base), text(&more), "-o", text(&out)].map(str::to_owned).into();
        for (option, value) in &options {
            args.push(format!("--{}", option.replace("approximation-", "").replace("random-", "")));
            args.extend(match value {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            });
        }
        let ran = atombank(&strs(&args));
        let notes = String::from_utf8(ran.stderr).unwrap();
        let counts = match name.split('-').next() {
            Some("prefix") if name != "prefix-embed" => "15 tokens keep their rows, 2 are approximated",
            Some("magikarp") => "rows are zeros",
            _ => "11 tokens keep their rows, 6 are approximated",
        };
        assert!(ran.status.success() && notes.contains(counts), "{name}: {notes}");
        let found = plan(&out.join("model.safetensors"));
        for (tensor, expected) in of_case(&fixtures(), &format!("surgeon-{name}")) {
            let found = found.get(&tensor).unwrap().read().unwrap();
            let largest = expected.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * largest;
            assert_eq!(found.len(), expected.len());
            assert!(found.iter().zip(&expected).all(near), "{name}: {tensor}: {found:?} {expected:?}");
        }
        assert_eq!(json(&out.join("config.json"))["vocab_size"], 17);
        assert_eq!(fs::read(out.join("tokenizer.json")).unwrap(), fs::read(more.join("tokenizer.json")).unwrap());
    }
}

#[test]
fn what_a_vocabulary_can_not_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let [base, more] = ["base", "more"].map(|name| fixtures().join(name));
    let refused = |exit: i32, models: [&Path; 2], options: &[&str]| {
        let args = ["tokensurgeon", text(models[0]), text(models[1]), "-o", text(&out)];
        refused_leaving(exit, dir.path(), &[&args, options].concat())
    };
    let models = [base.as_path(), &more];
    let line = refused(USAGE, models, &[]);
    assert!(line.contains("--k: expected from 1 to 11, the shared tokens, found 64"), "{line}");
    let line = refused(USAGE, models, &["--method", "landmark_pca"]);
    for part in ["expected omp, mp_rope, common_interpolation, ", "found \"landmark_pca\"", "signs that LAPACK chooses"]
    {
        assert!(line.contains(part), "{line}");
    }
    let line = refused(USAGE, models, &["--method", "stb"]);
    assert!(line.contains("mergekit 0.1.5 ends with an error"), "{line}");
    let line = refused(USAGE, models, &["--byte-match", "head"]);
    assert!(line.contains("--byte-match: expected yes, no, embed or lm_head, found \"head\""), "{line}");
    let line = refused(USAGE, models, &["--seed", "1"]);
    assert!(line.contains("--seed: expected --method randn or john_hewitt, which reads it, found omp"), "{line}");
    let line = refused(USAGE, models, &["--method", "mean", "--k", "3"]);
    assert!(line.contains("--k: expected --method omp, mp_rope or common_interpolation, which reads it"), "{line}");
    let line = refused(USAGE, models, &["--cosine-similarity"]);
    assert!(line.contains("--cosine-similarity: expected --method common_interpolation, which reads it"), "{line}");
    let bare = fixture("adapters/vocabulary/untied");
    let line = refused(INPUT, [&base, &bare], &["--k", "1"]);
    assert!(line.contains("untied: tokenizer: expected a tokenizer, to tell what its rows are, found none"), "{line}");
}

fn adapters() -> PathBuf {
    fixture("adapters/vocabulary")
}

#[test]
fn a_base_gets_the_rows_that_an_adapter_was_trained_with() {
    let dir = tempfile::tempdir().unwrap();
    let cases: BTreeMap<String, Value> =
        serde_json::from_slice(&fs::read(adapters().join("cases.json")).unwrap()).unwrap();
    for (name, case) in cases.iter().filter(|(name, _)| *name != "head-alone") {
        let (base, out) = (adapters().join(case["base"].as_str().unwrap()), dir.path().join(name));
        let ran = atombank(&["merge", text(&base), text(&adapters().join(name)), "-o", text(&out)]);
        let notes = String::from_utf8(ran.stderr).unwrap();
        let note = format!("trained with {} rows of embeddings where the base has 12", case["rows"]);
        assert!(ran.status.success() && notes.contains(&note), "{name}: {notes}");
        let (found, config) = (plan(&out.join("model.safetensors")), json(&out.join("config.json")));
        assert_eq!(config["vocab_size"], case["rows"], "{name}");
        let expected = of_case(&adapters(), name);
        for (tensor, expected) in &expected {
            match found.get(tensor) {
                Some(found) => assert_eq!(&found.read().unwrap(), expected, "{name}: {tensor}"),
                // Still tied.
                None => {
                    assert!(config["tie_word_embeddings"] == true && tensor == "lm_head.weight", "{name}: {tensor}")
                }
            }
        }
        let is_tied = case["base"] == "tied" && expected["lm_head.weight"] == expected["model.embed_tokens.weight"];
        assert_eq!(config["tie_word_embeddings"], is_tied, "{name}");
    }
}

/// Writes a configuration, merges it and returns the folder and the notes.
fn by_config(dir: &Path, name: &str, yaml: &str) -> (PathBuf, String) {
    let (file, out) = (dir.join(format!("{name}.yml")), dir.join(format!("{name}-by-config")));
    fs::write(&file, yaml).unwrap();
    let ran = atombank(&["merge", "--config", text(&file), "-o", text(&out)]);
    let notes = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.success(), "{name}: {notes}");
    (out, notes)
}

#[test]
fn a_model_of_a_configuration_gets_its_adapters_rows() {
    let dir = tempfile::tempdir().unwrap();
    let cases: BTreeMap<String, Value> =
        serde_json::from_slice(&fs::read(adapters().join("cases.json")).unwrap()).unwrap();
    for (name, case) in cases.iter().filter(|(name, _)| *name != "head-alone") {
        let model = format!(
            "{}+{}",
            adapters().join(case["base"].as_str().unwrap()).display(),
            adapters().join(name).display()
        );
        let yaml = format!("merge_method: linear\nmodels: [{{model: '{model}', parameters: {{weight: 1}}}}]\n");
        let (out, notes) = by_config(dir.path(), name, &yaml);
        assert!(
            notes.contains(&format!("trained with {} rows of embeddings where the base has 12", case["rows"])),
            "{notes}"
        );
        let (found, config) = (plan(&out.join("model.safetensors")), json(&out.join("config.json")));
        assert_eq!(config["vocab_size"], case["rows"], "{name}");
        for (tensor, expected) in &of_case(&adapters(), name) {
            match found.get(tensor) {
                Some(found) => assert_eq!(&found.read().unwrap(), expected, "{name}: {tensor}"),
                None => {
                    assert!(config["tie_word_embeddings"] == true && tensor == "lm_head.weight", "{name}: {tensor}")
                }
            }
        }
    }
}

/// Copies `from` to `to`, with a tokenizer of `count` letters.
fn with_letters(from: &Path, to: &Path, count: usize) {
    copy(from, to);
    let mut tokenizer = json(&fixtures().join("base/tokenizer.json"));
    let letters = ('a'..).take(count).enumerate().map(|(id, letter)| (letter.to_string(), Value::from(id)));
    tokenizer["model"]["vocab"] = Value::Object(letters.collect());
    (tokenizer["model"]["merges"], tokenizer["added_tokens"]) = (Value::Array(vec![]), Value::Array(vec![]));
    fs::write(to.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(to.join("tokenizer_config.json"), r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#).unwrap();
}

#[test]
fn an_adapters_tokenizer_is_the_vocabulary_of_its_model() {
    let dir = tempfile::tempdir().unwrap();
    let [base, lora] = ["base", "lora"].map(|name| dir.path().join(name));
    with_letters(&adapters().join("untied"), &base, 12);
    with_letters(&adapters().join("auto"), &lora, 14);
    let (base, adapted) = (base.display(), format!("{}+{}", base.display(), lora.display()));
    let expected = &of_case(&adapters(), "auto")["model.embed_tokens.weight"];
    let yaml = |source: &str| {
        format!(
            "merge_method: linear\nmodels:\n- {{model: '{base}', parameters: {{weight: 0.5}}}}\n\
             - {{model: '{adapted}', parameters: {{weight: 0.5}}}}\nbase_model: '{base}'\ntokenizer_source: {source}\n"
        )
    };
    let own = plan(&adapters().join("untied/model.safetensors"));
    let own = own.get("model.embed_tokens.weight").unwrap().read().unwrap();
    for (name, source, rows) in [("union", "union", 14), ("base", "base", 12), ("model", adapted.as_str(), 14)] {
        let (out, notes) = by_config(dir.path(), name, &yaml(source));
        assert!(notes.contains("lora: its tokenizer is the model's, whose rows it changes"), "{notes}");
        let found = plan(&out.join("model.safetensors")).get("model.embed_tokens.weight").unwrap().read().unwrap();
        assert_eq!(
            (found.len(), &json(&out.join("config.json"))["vocab_size"]),
            (rows * 16, &Value::from(rows)),
            "{name}"
        );
        // The base lacks the new tokens, so theirs are the adapter's rows alone.
        assert_eq!(found[12 * 16..], expected[12 * 16..rows * 16], "{name}");
        let near = |place: usize| (found[place] - (own[place] + expected[place]) / 2.0).abs() < 1e-6;
        assert!((0..12 * 16).all(near), "{name}");
        let vocab = json(&out.join("tokenizer.json"));
        let count =
            vocab["model"]["vocab"].as_object().unwrap().len() + vocab["added_tokens"].as_array().unwrap().len();
        assert_eq!(count, rows, "{name}");
    }
    // The first model's tokenizer is the result's.
    let yaml = format!("merge_method: linear\nmodels: [{{model: '{adapted}', parameters: {{weight: 1}}}}]\n");
    let (out, _) = by_config(dir.path(), "alone", &yaml);
    let of_lora = fs::read(dir.path().join("lora/tokenizer.json")).unwrap();
    assert_eq!(fs::read(out.join("tokenizer.json")).unwrap(), of_lora);
}

#[test]
fn padding_follows_an_adapters_rows() {
    let dir = tempfile::tempdir().unwrap();
    let (base, out) = (adapters().join("untied"), dir.path().join("padded"));
    let lora = adapters().join("auto");
    let args = ["merge", text(&base), text(&lora), "-o", text(&out), "--pad-to-multiple-of", "8"];
    assert!(atombank(&args).status.success());
    assert_eq!(json(&out.join("config.json"))["vocab_size"], 16);
    let expected = &of_case(&adapters(), "auto")["lm_head.weight"];
    let found = plan(&out.join("model.safetensors")).get("lm_head.weight").unwrap().read().unwrap();
    assert_eq!(found[..expected.len()], expected[..]);
    for column in 0..16 {
        let mean = (0..14).map(|row| expected[row * 16 + column]).sum::<f32>() / 14.0;
        assert!((14..16).all(|row| (found[row * 16 + column] - mean).abs() < 1e-6));
    }
}

#[test]
fn rows_of_new_tokens_can_be_in_a_file_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let (base, out) = (adapters().join("untied"), dir.path().join("merged"));
    let (from, lora) = (adapters().join("auto"), dir.path().join("lora"));
    let tensor = |values: Vec<f32>| HostTensor { shape: vec![2, 16], values: values.into() };
    let (input, output): (Vec<f32>, Vec<f32>) = ((0..32).map(|i| i as f32).collect(), vec![0.5; 32]);
    let new = BTreeMap::from([
        ("input_embeddings".to_owned(), tensor(input.clone())),
        ("output_embeddings".to_owned(), tensor(output.clone())),
    ]);
    save_tensors(&new, "new_embeddings", &dir.path().join("new")).unwrap();
    // Without the rows that PEFT saves.
    let own = plan(&from.join("adapter_model.safetensors")).tensors.into_iter().filter(|t| t.name.contains("lora_"));
    let own = own.map(|t| (t.name.clone(), HostTensor { shape: t.shape.clone(), values: t.read().unwrap().into() }));
    save_tensors(&own.collect(), "adapter_model", &lora).unwrap();
    for (from, name) in [(&from, "adapter_config.json"), (&dir.path().join("new"), "new_embeddings.safetensors")] {
        fs::copy(from.join(name), lora.join(name)).unwrap();
    }
    assert!(atombank(&["merge", text(&base), text(&lora), "-o", text(&out)]).status.success());
    let (before, after) = (plan(&base.join("model.safetensors")), plan(&out.join("model.safetensors")));
    for (name, new) in [("model.embed_tokens.weight", input), ("lm_head.weight", output)] {
        let expected = [before.get(name).unwrap().read().unwrap(), new].concat();
        assert_eq!(after.get(name).unwrap().read().unwrap(), expected);
    }
    assert_eq!(json(&out.join("config.json"))["vocab_size"], 14);
}

#[test]
fn rows_that_no_file_has_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (base, out) = (adapters().join("untied"), dir.path().join("out"));
    let refused = |exit: i32, adapters: &[&Path], options: &[&str]| {
        let mut args = vec!["merge", text(&base)];
        args.extend(adapters.iter().map(|path| text(path)));
        args.extend(["-o", text(&out)]);
        refused_leaving(exit, dir.path(), &[&args, options].concat())
    };
    let line = refused(INPUT, &[&adapters().join("head-alone")], &[]);
    for part in ["rows of \"model.embed_tokens.weight\"", "from 12 to 13", "found none", "save_embedding_layers=True"] {
        assert!(line.contains(part), "{line}");
    }
    let line = refused(INPUT, &[&adapters().join("auto"), &adapters().join("auto-fewer")], &[]);
    assert!(line.contains("expected 14 rows of the vocabulary") && line.contains("found 9"), "{line}");
    let line = refused(USAGE, &[&adapters().join("auto")], &["--tokenizer-source", "union"]);
    assert!(line.contains("--tokenizer-source: expected models to combine"), "{line}");
    let line = refused(USAGE, &[&adapters().join("auto")], &["--to", "lora"]);
    assert!(line.contains("--to: expected a model: the adapters have rows that the base lacks"), "{line}");
    let line = refused(USAGE, &[&adapters().join("auto")], &["--pad-to-multiple-of", "0"]);
    assert!(line.contains("--pad-to-multiple-of: expected a number from 1"), "{line}");
    let line = refused(USAGE, &[&adapters().join("auto")], &["--pad-to-multiple-of", "8", "--to", "lora"]);
    assert!(line.contains("--pad-to-multiple-of: expected a model as output, found a LoRA"), "{line}");
    let (base, lora) = (base.join("model.safetensors"), adapters().join("auto"));
    let args = ["merge", text(&base), text(&lora), "-o", text(&out), "--pad-to-multiple-of", "8"];
    let line = refused_leaving(USAGE, dir.path(), &args);
    assert!(line.contains("--pad-to-multiple-of: expected a model's folder as base, found a file"), "{line}");
}
