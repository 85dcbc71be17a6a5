use crate::formats::safetensors;
use crate::output::Destination;
use crate::plan::{self, Staging};
use std::fs;
use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::dtype::DType;
use crate::formats::gguf::GgufFile;

fn fixture(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/routing").join(case).join("adapter")
}

fn read_gguf(path: &Path) -> (Metadata, Plan) {
    let file = Arc::new(GgufFile::open(path).unwrap());
    let metadata = file.metadata().clone();
    let source: Arc<dyn Source> = file;
    (metadata, Plan::taking(&source))
}

/// A copy of the fixture's folder, which tests may change, with the weights in `dtype`.
fn copied(case: &str, dtype: DType) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("a bank");
    let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(&fixture(case).join(WEIGHTS_FILE)).unwrap());
    let mut plan = Plan::taking(&source);
    plan.tensors.iter_mut().for_each(|tensor| tensor.dtype = dtype);
    let layout = safetensors::layout(&plan.tensors, "adapter_model", u64::MAX).unwrap();
    let staging = Staging::folder(&folder, false).unwrap();
    plan::execute(&plan, &layout, &staging, plan::Options::default(), &|_| {}).unwrap();
    staging.write(ADAPTER_CONFIG, &fs::read(fixture(case).join(ADAPTER_CONFIG)).unwrap()).unwrap();
    staging.write("README.md", b"# A bank\n").unwrap();
    staging.commit().unwrap();
    dir
}

/// Name, type, shape and bytes of every tensor, sorted by name.
fn contents(folder: &Path) -> Vec<(String, DType, Vec<usize>, Vec<u8>)> {
    let file = SafetensorsFile::open(&folder.join(WEIGHTS_FILE)).unwrap();
    let tensors = file.tensors().iter().enumerate();
    let mut tensors: Vec<_> =
        tensors.map(|(i, t)| (t.name.clone(), t.dtype, t.shape.clone(), file.bytes(i).to_vec())).collect();
    tensors.sort();
    tensors
}

#[test]
fn every_bank_comes_back_bit_by_bit_with_every_field() {
    for (case, dtype) in [
        ("llama-all-linear-rslora", DType::F32),
        ("llama-no-instruction", DType::F16),
        ("llama-prompt", DType::BF16),
        ("llama-token", DType::F32),
        ("qwen2-prompt", DType::F32),
        ("qwen3-prompt", DType::F32),
    ] {
        let dir = copied(case, dtype);
        let folder = dir.path().join("a bank");
        let made = to_gguf(&folder).unwrap();
        assert_eq!(made.notes, [""; 0]);
        let path = dir.path().join("bank.gguf");
        made.write(&Destination::new(&path), &|_| {}).unwrap();
        let (metadata, plan) = read_gguf(&path);
        let restored = from_gguf(&metadata, &plan).unwrap();
        assert_eq!(restored.notes, [""; 0]);
        let back = dir.path().join("back");
        restored.write(&Destination::new(&back), &|_| {}).unwrap();
        let (opened, again) = (AtomBank::open(&folder).unwrap(), AtomBank::open(&back).unwrap());
        assert_eq!(again.config, opened.config, "{case}");
        assert_eq!(again.tensors, opened.tensors, "{case}");
        assert_eq!(contents(&back), contents(&folder), "{case}");
        let json = |folder: &Path| read_json_object(&folder.join(ADAPTER_CONFIG)).unwrap();
        assert_eq!(json(&back), json(&folder), "{case}");
        assert_eq!(fs::read(back.join("README.md")).unwrap(), b"# A bank\n");
    }
}

#[test]
fn settings_are_typed_keys_and_names_are_short() {
    let made = to_gguf(&fixture("llama-token")).unwrap();
    let (metadata, plan) = (made.metadata().unwrap().clone(), made.plan);
    for (key, value) in [
        ("general.architecture", Value::from("atombank")),
        ("general.type", Value::from("adapter")),
        ("adapter.type", Value::from("atombank")),
        ("atombank.format_version", Value::from(1u32)),
        ("atombank.r", Value::from(8u32)),
        ("atombank.lora_alpha", Value::from(16f64)),
        ("atombank.use_rslora", Value::from(false)),
        ("atombank.routing", Value::from("token")),
        ("atombank.target_modules", Value::Array(Array::texts(["q_proj", "v_proj"]))),
        ("atombank.other_fields", Value::from("{\n  \"task_type\": \"CAUSAL_LM\"\n}")),
    ] {
        assert_eq!(metadata.get(key), Some(&value), "{key}");
    }
    assert!(plan.get("model.layers.0.self_attn.q_proj.lora_A.weight").is_some());
    assert!(plan.get("atom_bank.router.summary_init").is_some());
}

#[test]
fn refuses_other_files_and_settings_that_no_bank_has() {
    let made = to_gguf(&fixture("llama-token")).unwrap();
    let (good, plan) = (made.metadata().unwrap().clone(), made.plan);
    let cases: [(&str, Value, &str); 9] = [
        ("adapter.type", "lora".into(), "key \"adapter.type\": expected atombank, found \"lora\""),
        ("general.type", "model".into(), "key \"general.type\": expected adapter, found \"model\""),
        ("atombank.r", (-1i32).into(), "key \"atombank.r\": expected a uint32"),
        ("atombank.lora_alpha", f64::NAN.into(), "key \"atombank.lora_alpha\": expected a uint32, a finite float64"),
        ("atombank.top_k", 9u32.into(), "top_k: expected at most num_atoms, 8, found 9"),
        ("atombank.key_dim", 15u32.into(), "tensor \"atom_bank.keys\": expected [8, 15] by adapter_config.json"),
        ("atombank.more", 1u32.into(), "more: expected a field this version knows, found 1"),
        ("atombank.format_version", 2u32.into(), "format_version: expected 1, found 2"),
        ("atombank.other_fields", "{\"r\": 8}".into(), "expected fields that have no key of their own, found \"r\""),
    ];
    for (key, value, expected) in cases {
        let mut metadata = good.clone();
        metadata.insert(key, value);
        let error = from_gguf(&metadata, &plan).unwrap_err().to_string();
        assert!(error.contains(expected), "{key}: {error}");
    }
    let mut surplus = plan.clone();
    let mut extra = surplus.tensors[0].clone();
    extra.name = "model.layers.0.mlp.up_proj.lora_A.weight".into();
    surplus.tensors.push(extra);
    let error = from_gguf(&good, &surplus).unwrap_err().to_string();
    assert!(error.contains("up_proj.lora_B.weight\": expected a tensor of this name, found none"), "{error}");
    let lora = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16});
    let dir = copied("llama-token", DType::F32);
    fs::write(dir.path().join("a bank").join(ADAPTER_CONFIG), lora.to_string()).unwrap();
    let error = to_gguf(&dir.path().join("a bank")).unwrap_err().to_string();
    assert!(error.contains("expected an atom bank, found a plain LoRA"), "{error}");
}
