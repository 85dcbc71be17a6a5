//! Tests quantization: whole files compared with those of llama-quantize for the same models.

#[path = "common/described.rs"]
mod described;
mod readers;

use atombank::output::{Destination, Output};
use std::fs;
use std::path::{Path, PathBuf};

use atombank::checkpoint::Checkpoint;
use atombank::convert::{ConvertOptions, OutType, to_gguf};
use atombank::formats::gguf::{Array, GgufFile, Value, ValueType};
use atombank::imatrix::ImportanceMatrix;
use atombank::quantize::{FileType, Led, Recipe, quantize};
use atombank::source::Source;
use described::{described, sha256};
use serde_json::{Map, Value as Json, json};

/// A model, and llama-quantize's results by file type. Results with an importance matrix have the
/// prefix `imatrix-`.
struct Case {
    name: String,
    model: PathBuf,
    imatrix: PathBuf,
    expected: Map<String, Json>,
}

/// The cases of the fixtures, or of a folder of whole cases, given by an environment variable.
fn cases() -> Vec<Case> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let Some(folder) = std::env::var_os("ATOMBANK_CONVERT_CASES") else {
        return ["llama", "qwen2-odd"]
            .map(|name| Case {
                name: name.to_owned(),
                model: fixtures.join("convert").join(name).join("model"),
                imatrix: fixtures.join(format!("quant/imatrix/{name}.gguf")),
                expected: read(&fixtures.join(format!("quant/models/{name}.json"))).as_object().unwrap().clone(),
            })
            .into();
    };
    let mut cases = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let folder = entry.unwrap().path();
        let mut expected = Map::new();
        for file in fs::read_dir(folder.join("expected")).into_iter().flatten() {
            let path = file.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let Some(name) = stem.strip_prefix("quantize-") else { continue };
            let whole = read(&path);
            let order = whole["tensor_order"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
            let short = |t: &Json| json!([t["type"], t["sha256"].as_str().unwrap()[..16]]);
            let tensors: Map<String, Json> = order.map(|n| (n.to_owned(), short(&whole["tensors"][n]))).collect();
            let keys = whole["keys"].as_object().unwrap();
            let key_order: Vec<&String> = keys.keys().collect();
            expected.insert(name.to_owned(), json!({ "keys": keys, "key_order": key_order, "tensors": tensors }));
        }
        if !expected.is_empty() {
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            cases.push(Case { name, model: folder.join("model"), imatrix: folder.join("imatrix.gguf"), expected });
        }
    }
    cases
}

fn read(path: &Path) -> Json {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn to_f32(model: &Path) -> Output {
    let folder = Checkpoint::open(model).unwrap();
    let options = ConvertOptions { outtype: OutType::F32, ..ConvertOptions::default() };
    to_gguf(&folder, folder.weights(), &options).unwrap()
}

#[test]
fn files_equal_those_of_llama_quantize_key_by_key_and_byte_by_byte() {
    let mut failed = Vec::new();
    let mut seen = 0;
    for case in cases() {
        let made = to_f32(&case.model);
        let (metadata, plan) = (made.metadata().unwrap(), &made.plan);
        let matrix = ImportanceMatrix::open(&case.imatrix).unwrap();
        for (name, expected) in &case.expected {
            let (led, file_type) = match name.strip_prefix("imatrix-") {
                Some(file_type) => (Some(Led { by: &matrix, file_name: "imatrix.gguf" }), file_type),
                None => (None, name.as_str()),
            };
            let recipe = Recipe::from(file_type.parse::<FileType>().unwrap());
            let made = quantize(&recipe, metadata, plan, led, &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
            let found = differences(made, expected);
            seen += 1;
            if !found.is_empty() {
                failed.push(format!("{} {name}: {}", case.name, found.join(", ")));
            }
        }
    }
    assert!(failed.is_empty(), "{} of {seen} differ:\n{}", failed.len(), failed.join("\n"));
    assert!(seen >= 60, "{seen}");
}

/// The differences of a written file from the reference's.
fn differences(made: Output, expected: &Json) -> Vec<String> {
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("model.gguf");
    made.write(&Destination::new(&target), &|_| {}).unwrap();
    let file = GgufFile::open(&target).unwrap();
    readers::another_reader_agrees(&target, &file);
    let mut found = Vec::new();
    for (key, value) in expected["keys"].as_object().unwrap() {
        let ours = file.metadata().get(key).unwrap_or_else(|| panic!("no {key}"));
        let same = match ours {
            Value::F32(v) => value["value"].as_f64() == Some(f64::from(*v)),
            _ => described(ours) == *value,
        };
        if !same {
            found.push(format!("key {key}"));
        }
    }
    let order = expected["key_order"].as_array().unwrap();
    let keys: Vec<&str> = file.metadata().iter().map(|(key, _)| key).collect();
    if keys[keys.len() - order.len()..].iter().zip(order).any(|(ours, theirs)| theirs != ours) {
        found.push("the order of keys".to_owned());
    }
    let theirs = expected["tensors"].as_object().unwrap();
    if !file.tensors().iter().map(|t| t.name.as_str()).eq(theirs.keys().map(String::as_str)) {
        found.push("names or the order of tensors".to_owned());
    }
    for (i, info) in file.tensors().iter().enumerate() {
        let ours = json!([info.dtype.name(), sha256(&file.bytes(i))[..16]]);
        if theirs.get(&info.name).is_some_and(|theirs| *theirs != ours) {
            found.push(format!("{} {} for {}", info.name, ours, theirs[&info.name]));
        }
    }
    found
}
