//! Conversion to GGUF of a small model of every family, against what llama.cpp's converter makes of it, and back.
//!
//! The cases of `fixtures/families` have no weights: their values follow from the names of the tensors.

#[path = "common/described.rs"]
mod described;

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use atombank::Result;
use atombank::checkpoint::Checkpoint;
use atombank::convert::{ConvertOptions, ModelPart, OutType, from_gguf, to_gguf};
use atombank::dtype::DType;
use atombank::formats::gguf::{Array, GgufFile, GgufModel, Value, ValueType, layout};
use atombank::plan::{self, PlannedTensor, Staging};
use atombank::source::Source;
use described::{described, sha256};
use serde::Deserialize;
use serde_json::{Value as Json, json};

/// Cases whose tensors don't come back from GGUF yet.
const BACK_LATER: [&str; 0] = [];

/// What a case expects: files of this name, `mmproj-` for the projector.
const EXPECTED: [(&str, OutType); 3] = [("f32", OutType::F32), ("q8_0", OutType::Q8_0), ("mmproj-f32", OutType::F32)];

#[test]
fn every_family_becomes_what_the_reference_makes_of_it() {
    // Every case is looked at, so that one difference doesn't hide another.
    let mut failed = Vec::new();
    for case in cases() {
        let looked_at = catch_unwind(|| {
            let model = case.model();
            let differs = |(name, outtype): &(&str, OutType)| {
                case.expects(name) && catch_unwind(|| case.equals_reference(model.path(), name, *outtype)).is_err()
            };
            EXPECTED.iter().filter(|expected| differs(expected)).map(|(name, _)| *name).collect::<Vec<_>>()
        });
        match looked_at {
            Ok(differ) => failed.extend(differ.iter().map(|name| format!("{} {name}", case.name))),
            Err(_) => failed.push(case.name),
        }
    }
    assert!(failed.is_empty(), "{} differ: {}", failed.len(), failed.join(", "));
}

#[test]
fn every_family_comes_back_with_its_values() {
    let text_models = || cases().into_iter().filter(|case| case.expects("f32"));
    let comes_back = |case: &Case| catch_unwind(|| case.comes_back()).is_ok();
    let wrong = text_models().filter(|case| comes_back(case) == BACK_LATER.contains(&case.name.as_str()));
    let wrong: Vec<String> = wrong.map(|case| case.name).collect();
    assert!(wrong.is_empty(), "{} don't come back, or do, but are in BACK_LATER: {}", wrong.len(), wrong.join(", "));
    let unknown: Vec<&&str> = BACK_LATER.iter().filter(|name| text_models().all(|case| case.name != **name)).collect();
    assert!(unknown.is_empty(), "no such cases: {unknown:?}");
}

/// A folder of `fixtures/families`.
struct Case {
    name: String,
    folder: PathBuf,
    about: About,
}

/// Its case.json.
#[derive(Deserialize)]
struct About {
    /// Of the converter.
    options: Vec<String>,
    /// The folder of `fixtures/families/tokenizers` that has the tokenizer's files.
    tokenizer: Option<String>,
}

fn families() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/families")
}

fn cases() -> Vec<Case> {
    let folders = fs::read_dir(families()).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = folders.filter(|path| path.join("case.json").is_file()).collect();
    folders.sort();
    assert!(!folders.is_empty());
    let case = |folder: PathBuf| Case {
        name: folder.file_name().unwrap().to_string_lossy().into_owned(),
        about: serde_json::from_slice(&fs::read(folder.join("case.json")).unwrap()).unwrap(),
        folder,
    };
    folders.into_iter().map(case).collect()
}

impl Case {
    fn expects(&self, name: &str) -> bool {
        self.expected(name).is_file()
    }

    fn expected(&self, name: &str) -> PathBuf {
        self.folder.join(format!("expected/{name}.json"))
    }

    /// The model's folder: small files, the tokenizer's, and weights.
    fn model(&self) -> tempfile::TempDir {
        let model = tempfile::tempdir().unwrap();
        // The reference takes the model's name from the folder where no file says it.
        let target = model.path().join("model");
        fs::create_dir(&target).unwrap();
        if self.folder.join("model").is_dir() {
            copy(&self.folder.join("model"), &target);
        }
        if let Some(tokenizer) = &self.about.tokenizer {
            copy(&families().join("tokenizers").join(tokenizer), &target);
        }
        let files: HashMap<String, Vec<Tensor>> =
            serde_json::from_slice(&fs::read(self.folder.join("tensors.json")).unwrap()).unwrap();
        for (file, tensors) in &files {
            let path = target.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, safetensors(tensors)).unwrap();
        }
        model
    }

    fn options(&self, name: &str, outtype: OutType) -> ConvertOptions {
        let mut options = ConvertOptions { outtype, ..ConvertOptions::default() };
        if name.starts_with("mmproj-") {
            options.part = ModelPart::Projector;
            return options;
        }
        let mut given = self.about.options.iter();
        while let Some(option) = given.next() {
            match option.as_str() {
                "--no-nextn" => options.part = ModelPart::WithoutNextn,
                "--mtp" => options.part = ModelPart::Nextn,
                "--pre" => options.pre = given.next().cloned(),
                other => panic!("{}: {other}", self.name),
            }
        }
        options
    }

    fn convert(&self, model: &Path, name: &str, outtype: OutType, target: &Path) -> Result<()> {
        let folder = Checkpoint::open(&model.join("model"))?;
        let made = to_gguf(&folder, folder.weights(), &self.options(name, outtype))?;
        let layout = layout(made.metadata().unwrap(), &made.plan.tensors)?;
        let staging = Staging::file(target, false)?;
        plan::execute(&made.plan, &layout, &staging, plan::Options::default(), &|_| {})?;
        staging.commit()
    }

    fn equals_reference(&self, model: &Path, name: &str, outtype: OutType) {
        let expected: Json = serde_json::from_slice(&fs::read(self.expected(name)).unwrap()).unwrap();
        let out = tempfile::tempdir().unwrap();
        let target = out.path().join("model.gguf");
        let label = format!("{} {name}", self.name);
        self.convert(model, name, outtype, &target).unwrap_or_else(|e| panic!("{label}: {e}"));
        compare(&label, &GgufFile::open(&target).unwrap(), &expected);
    }

    /// Converts to GGUF and back: tensors of numbers that have their name again must have their values again.
    fn comes_back(&self) {
        let model = self.model();
        let target = model.path().join("model.gguf");
        self.convert(model.path(), "f32", OutType::F32, &target).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let back = from_gguf(&GgufModel::open(&target).unwrap(), None).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let (_, back) = back.unwrap_or_else(|| panic!("{}: no family of that architecture", self.name));
        let folder = Checkpoint::open(&model.path().join("model")).unwrap();
        let is_float = |dtype: DType| matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16);
        let floats = folder.weights().tensors.iter().filter(|tensor| is_float(tensor.dtype));
        let pairs: Vec<(&PlannedTensor, &PlannedTensor)> =
            floats.filter_map(|tensor| Some((tensor, back.plan.get(&tensor.name)?))).collect();
        assert!(!pairs.is_empty(), "{}: no tensor has its name again", self.name);
        let differs = |expected: &PlannedTensor, found: &PlannedTensor| {
            expected.shape != found.shape || expected.read().unwrap() != found.read().unwrap()
        };
        let differ: Vec<&str> =
            pairs.iter().filter(|(expected, found)| differs(expected, found)).map(|(t, _)| t.name.as_str()).collect();
        assert!(differ.is_empty(), "{}: other values: {}", self.name, differ.join(", "));
    }
}

/// Copies a folder's files and folders to a folder.
fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Keys, their order, types and values; tensors, their order, types, shapes and bytes.
fn compare(case: &str, file: &GgufFile, expected: &Json) {
    let ours: Vec<&str> = file.metadata().iter().map(|(key, _)| key).collect();
    let theirs: Vec<&str> = expected["keys"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(ours, theirs, "{case}: keys");
    for (key, value) in file.metadata().iter() {
        let expected = &expected["keys"][key];
        match value {
            // By number: 1e-7 and 1e-07 are one.
            Value::F32(v) => {
                assert_eq!(expected["type"], json!(["FLOAT32"]), "{case}: {key}");
                assert_eq!(expected["value"].as_f64(), Some(f64::from(*v)), "{case}: {key}");
            }
            Value::Array(Array::Bool(v)) => {
                assert_eq!(json!({"type": ["ARRAY", "BOOL"], "value": v}), *expected, "{case}: {key}");
            }
            Value::Array(Array::U64(v)) => {
                assert_eq!(json!({"type": ["ARRAY", "UINT64"], "value": v}), *expected, "{case}: {key}");
            }
            _ => assert_eq!(described(value), *expected, "{case}: {key}"),
        }
    }
    let ours: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).collect();
    let theirs: Vec<&str> = expected["tensor_order"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    assert_eq!(ours, theirs, "{case}: tensors");
    for (i, info) in file.tensors().iter().enumerate() {
        let shape: Vec<usize> = info.shape.iter().rev().copied().collect();
        let described = json!({"shape": shape, "type": info.dtype.name(), "sha256": sha256(&file.bytes(i))});
        assert_eq!(described, expected["tensors"][&info.name], "{case}: {}", info.name);
    }
}

/// A tensor of tensors.json.
#[derive(Deserialize)]
struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    values: Values,
}

/// How its values are made.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Values {
    /// Between -1/8 and 1/8.
    Random,
    /// Between 1/2 and 3/2.
    Positive,
    Zero,
    /// Those of the earlier tensor of this name.
    Same(String),
    /// These bytes.
    Kept(Vec<u8>),
}

/// A safetensors file.
fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = serde_json::Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut data = Vec::new();
    let mut ranges: HashMap<&str, Range<usize>> = HashMap::new();
    for tensor in tensors {
        let start = data.len();
        let count: usize = tensor.shape.iter().product();
        let numbers = numbers(&tensor.name).take(count);
        match &tensor.values {
            Values::Random => numbers.for_each(|u| encode((u - 0.5) * 0.25, &tensor.dtype, &mut data)),
            Values::Positive => numbers.for_each(|u| encode(0.5 + u, &tensor.dtype, &mut data)),
            Values::Zero => (0..count).for_each(|_| encode(0.0, &tensor.dtype, &mut data)),
            Values::Same(name) => data.extend_from_within(ranges[name.as_str()].clone()),
            Values::Kept(bytes) => data.extend_from_slice(bytes),
        }
        let described = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, data.len()]});
        header.insert(tensor.name.clone(), described);
        ranges.insert(tensor.name.as_str(), start..data.len());
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes(), header.as_slice(), &data].concat()
}

/// Numbers from 0 to 1 that follow from a tensor's name: splitmix64 from its FNV-1a hash on.
fn numbers(name: &str) -> impl Iterator<Item = f32> + use<> {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let start = name.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    (1..).map(move |i: u64| {
        let z = start.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / 16_777_216.0
    })
}

fn encode(value: f32, dtype: &str, data: &mut Vec<u8>) {
    match dtype {
        "F32" => data.extend(value.to_le_bytes()),
        "BF16" => data.extend(half::bf16::from_f32(value).to_le_bytes()),
        "F16" => data.extend(half::f16::from_f32(value).to_le_bytes()),
        "F64" => data.extend(f64::from(value).to_le_bytes()),
        other => panic!("no numbers of {other}"),
    }
}
