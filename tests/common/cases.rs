//! The cases of `fixtures/families`: small models without weights, whose values follow from the names of the tensors.

// No test uses all of it.
#![allow(dead_code)]

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use atombank::convert::{ConvertOptions, ModelPart, OutType};
use serde::Deserialize;
use serde_json::json;

/// A folder of `fixtures/families`.
pub struct Case {
    pub name: String,
    pub folder: PathBuf,
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

pub fn cases() -> Vec<Case> {
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
    pub fn expects(&self, name: &str) -> bool {
        self.expected(name).is_file()
    }

    pub fn expected(&self, name: &str) -> PathBuf {
        self.folder.join(format!("expected/{name}.json"))
    }

    /// The model's folder: small files, the tokenizer's, and weights.
    pub fn model(&self) -> tempfile::TempDir {
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

    /// The options of the converter for the file `name` of the expected ones.
    pub fn options(&self, name: &str, outtype: OutType) -> ConvertOptions {
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

/// A safetensors file of tensors described as in tensors.json.
pub fn safetensors_of(tensors: &serde_json::Value) -> Vec<u8> {
    safetensors(&serde_json::from_value::<Vec<Tensor>>(tensors.clone()).unwrap())
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
pub fn numbers(name: &str) -> impl Iterator<Item = f32> + use<> {
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
