//! Commands on models whose weights were quantized before they were saved: no packed tensor is taken for a plain one.

#[path = "common/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atombank::adapter::{HostTensor, save_tensors};
use atombank::dtype::DType;
use atombank::formats::safetensors::SafetensorsFile;
use atombank::plan::{Plan, PlannedTensor};
use atombank::source::Source;
use program::{INPUT, copy, done, fixture, refused_leaving, text};
use serde_json::json;

const WEIGHT: &str = "layers.0.up_proj.weight";

fn tensor(file: &Path, name: &str) -> PlannedTensor {
    let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(file).unwrap());
    Plan::taking(&source).get(name).unwrap().clone()
}

/// What a case's library makes of its weight, in the type that it has by default.
fn library(case: &str) -> Vec<f32> {
    let tensor = tensor(&fixture(&format!("prequantized/{case}/expected.safetensors")), WEIGHT);
    PlannedTensor { dtype: DType::BF16, ..tensor }.read().unwrap()
}

/// A case's folder, without what was expected.
fn model(case: &str, dir: &Path) -> PathBuf {
    let folder = copy(&fixture(&format!("prequantized/{case}")), &dir.join(case));
    fs::remove_file(folder.join("expected.safetensors")).unwrap();
    folder
}

fn bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// Cases of every kind of packing.
const CASES: [&str; 9] = [
    "fp8-blocks",
    "fp8-channel",
    "ct-int8-channel",
    "ct-packed-zeros",
    "gptq-4",
    "awq",
    "bnb-nf4",
    "bnb-int8",
    "nvfp4",
];

#[test]
fn models_are_combined_by_their_values() {
    let dir = tempfile::tempdir().unwrap();
    for (first, second) in CASES.iter().zip(CASES.iter().cycle().skip(1)) {
        let (a, b) = (model(first, dir.path()), model(second, dir.path()));
        let out = dir.path().join("out");
        let (one, other) = (format!("{}=0.5", text(&a)), format!("{}=0.5", text(&b)));
        let args = ["merge", text(&a), &one, &other, "-o", text(&out), "--method", "linear", "--quiet", "--overwrite"];
        done(&args);
        let found = tensor(&out.join("model.safetensors"), WEIGHT);
        assert_eq!(found.dtype, DType::BF16);
        let mean: Vec<f32> = library(first).iter().zip(library(second)).map(|(a, b)| bf16(a * 0.5 + b * 0.5)).collect();
        assert!(found.read().unwrap() == mean, "{first} and {second}");
        let config = fs::read_to_string(out.join("config.json")).unwrap();
        assert!(!config.contains("quantization_config"), "{config}");
        fs::remove_dir_all(&a).unwrap();
        fs::remove_dir_all(&b).unwrap();
    }
}

#[test]
fn an_adapter_is_merged_into_what_the_library_makes_of_the_base() {
    let dir = tempfile::tempdir().unwrap();
    let factor = |shape: [usize; 2]| {
        let values: Vec<f32> = (0..shape[0] * shape[1]).map(|i| (i * 7 % 11) as f32 / 8.0 - 0.5).collect();
        HostTensor { shape: shape.to_vec(), values: values.into() }
    };
    let (a, b) = (factor([2, 64]), factor([32, 2]));
    let lora = dir.path().join("lora");
    let name = |factor: &str| format!("base_model.model.layers.0.up_proj.{factor}.weight");
    let tensors = BTreeMap::from([(name("lora_A"), a.clone()), (name("lora_B"), b.clone())]);
    save_tensors(&tensors, "adapter_model", &lora).unwrap();
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up_proj"]});
    fs::write(lora.join("adapter_config.json"), config.to_string()).unwrap();
    for case in CASES {
        let base = model(case, dir.path());
        let out = dir.path().join("out");
        done(&["merge", text(&base), text(&lora), "-o", text(&out), "--quiet", "--overwrite"]);
        let found = tensor(&out.join("model.safetensors"), WEIGHT).read().unwrap();
        let expected = library(case).into_iter().enumerate().map(|(at, value)| {
            let (row, column) = (at / 64, at % 64);
            let update = b.values[row * 2] * a.values[column] + b.values[row * 2 + 1] * a.values[64 + column];
            bf16(value + update)
        });
        // The update's few terms are exact in f32.
        assert!(found.iter().copied().eq(expected), "{case}");
        fs::remove_dir_all(&base).unwrap();
    }
}

#[test]
fn a_method_that_is_not_known_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let base = model("gptq-4", dir.path());
    let path = base.join("config.json");
    let config = fs::read_to_string(&path).unwrap().replace("\"gptq\"", "\"quip\"");
    fs::write(&path, config).unwrap();
    let out = dir.path().join("out");
    let args = ["merge", text(&base), text(&base), "-o", text(&out), "--method", "linear"];
    let error = refused_leaving(INPUT, dir.path(), &args);
    assert!(error.contains("config.json: quantization_config.quant_method: expected fp8"), "{error}");
    assert!(error.contains("found \"quip\""), "{error}");
}
