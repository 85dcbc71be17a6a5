//! Helpers for several tests: the routing fixtures, and small models made on the fly.
#![allow(dead_code)] // Each test file uses only a part of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atombank::adapter::HostTensor;
use atombank::arch::HfFolder;
use atombank::bank::AtomBank;
use atombank::formats::safetensors::SafetensorsFile;
use atombank::model::{Decoder, Residence, Sequence};
use atombank::source::Source;
use candle_core::Device;

pub const CASES: [&str; 13] = [
    "llama-prompt",
    "llama-centered",
    "llama-token",
    "llama-no-instruction",
    "llama-all-linear-rslora",
    "qwen2-prompt",
    "qwen2-centered-token",
    "qwen3-prompt",
    "gemma3-prompt",
    "gpt2-prompt",
    "olmo2-prompt",
    "phi3-token",
    "qwen3moe-token",
];

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// A case of fixtures/routing.
pub struct Case {
    pub name: String,
    pub folder: PathBuf,
    pub model: HfFolder,
    pub bank: AtomBank,
    pub json: serde_json::Value,
    pub expected: BTreeMap<String, HostTensor>,
}

impl Case {
    pub fn open(name: &str) -> Self {
        let folder = fixtures().join("routing").join(name);
        let model = HfFolder::open(&folder.join("model")).unwrap();
        let bank = AtomBank::open(&folder.join("adapter")).unwrap();
        bank.check_base(&model.config).unwrap();
        let json = serde_json::from_str(&std::fs::read_to_string(folder.join("case.json")).unwrap()).unwrap();
        let expected = read_tensors(&folder.join("expected.safetensors"));
        Self { name: name.to_owned(), folder, model, bank, json, expected }
    }

    pub fn decoder(&self, residence: Residence) -> Decoder {
        Decoder::open(&self.model, residence, &Device::Cpu).unwrap()
    }

    /// The case's whole sequence: the routed part, then the completion.
    pub fn sequence(&self) -> Sequence {
        let instruction = ids(&self.json["instruction_ids"]);
        let mut all = instruction.clone();
        all.extend(ids(&self.json["prompt_ids"]));
        let routed = all.len();
        all.extend(ids(&self.json["completion_ids"]));
        Sequence::completed(all, routed, instruction)
    }

    pub fn tolerance(&self, what: &str) -> f32 {
        self.json["tolerance"][what].as_f64().unwrap() as f32
    }

    pub fn assert_close(&self, what: &str, found: &[f32], expected: &HostTensor, tolerance: f32) {
        assert_eq!(found.len(), expected.values.len(), "{}: {what}", self.name);
        let worst = found.iter().zip(&*expected.values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{}: {what}: max difference {worst:.2e}", self.name);
        assert!(worst <= tolerance, "{}: {what}: {worst} > {tolerance}", self.name);
    }
}

/// The token ids in a JSON list; empty for null.
pub fn ids(json: &serde_json::Value) -> Vec<u32> {
    json.as_array().map_or_else(Vec::new, |a| a.iter().map(|v| v.as_u64().unwrap() as u32).collect())
}

pub fn read_tensors(path: &Path) -> BTreeMap<String, HostTensor> {
    let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(path).unwrap());
    let mut tensors = BTreeMap::new();
    for (i, info) in source.tensors().iter().enumerate() {
        let mut values = vec![0f32; info.elems()];
        atombank::quant::decode(info.dtype, &source.bytes(i), &mut values);
        tensors.insert(info.name.clone(), HostTensor { shape: info.shape.clone(), values: values.into() });
    }
    tensors
}
