//! Mixtures of experts have what mergekit-moe makes of the same file: `fixtures/moe`.
#![cfg(feature = "train")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use atombank::formats::safetensors::SafetensorsFile;
use atombank::jobs::{MoeSettings, moe};
use atombank::output::Output;
use atombank::plan::{Plan, PlannedTensor};
use atombank::source::Source;
use candle_core::Device;
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// The file of a mixture of two experts of one model, with these further lines.
fn described(folder: &Path, lines: &str) -> PathBuf {
    let model = fixture("convert/llama/model");
    let model = model.display();
    let text = format!(
        "base_model: {model}\ndtype: float32\n{lines}\nexperts:\n  - source_model: {model}\n    positive_prompts:\n      - \
         'def main():'\n      - return\n    negative_prompts: [Once upon a time]\n  - source_model: {model}\n    \
         positive_prompts: [The sum of 3 and 4 is 7]\n    noise_scale: 0.05\n    residual_scale: 0.25\n"
    );
    let path = folder.join("moe.yml");
    std::fs::write(&path, text).unwrap();
    path
}

fn made(lines: &str, change: impl Fn(&mut MoeSettings)) -> atombank::Result<Output> {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = MoeSettings::new(described(folder.path(), lines), folder.path().join("out"));
    (settings.seed, settings.allow_all_same) = (7, true);
    change(&mut settings);
    moe(&settings, &Device::Cpu, &|_| ())
}

fn values(plan: &Plan, name: &str) -> Vec<f32> {
    plan.get(name).unwrap_or_else(|| panic!("{name}")).read().unwrap()
}

fn furthest(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn gates_and_noise_are_those_of_mergekit() {
    let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(&fixture("moe/expected.safetensors")).unwrap());
    let expected = Plan::taking(&source);
    for (mode, limit) in [("hidden", 1e-4), ("cheap_embed", 1e-6), ("random", 0.0), ("uniform_random", 0.0)] {
        let output = made(&format!("gate_mode: {mode}"), |_| ()).unwrap();
        for layer in 0..2 {
            let gates = values(&output.plan, &format!("model.layers.{layer}.block_sparse_moe.gate.weight"));
            let gap = furthest(&gates, &values(&expected, &format!("{mode}/gate.{layer}")));
            assert!(gap <= limit, "{mode}, layer {layer}: {gap}");
        }
        for part in ["w1", "w2", "w3"] {
            let name = format!("model.layers.1.block_sparse_moe.experts.1.{part}.weight");
            let row = output.plan.get(&name).unwrap().read_rows(3..4).unwrap();
            assert_eq!(row, values(&expected, &format!("{mode}/{part}")), "{mode}, {part}: the same bits");
        }
    }
}

#[test]
fn what_is_no_expert_comes_from_the_base_and_the_config_is_that_of_the_class() {
    let output = made("gate_mode: cheap_embed", |_| ()).unwrap();
    let base = SafetensorsFile::open(&fixture("convert/llama/model/model.safetensors")).unwrap();
    let base: Arc<dyn Source> = Arc::new(base);
    let base = Plan::taking(&base);
    let same = |name: &str, of: &str| assert_eq!(values(&output.plan, name), values(&base, of), "{name}");
    for tensor in base.tensors.iter().filter(|tensor| !tensor.name.contains(".mlp.")) {
        same(&tensor.name, &tensor.name);
    }
    let experts = "model.layers.0.block_sparse_moe.experts.0";
    for (part, of) in [("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")] {
        same(&format!("{experts}.{part}.weight"), &format!("model.layers.0.mlp.{of}.weight"));
    }
    let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let config = read(&output.sidecars.files["config.json"]);
    let expected = read(&std::fs::read(fixture("moe/config.json")).unwrap());
    for (name, value) in expected.as_object().unwrap() {
        // What transformers writes of a field that has its default.
        let is_default = config.get(name).is_none()
            && matches!(name.as_str(), "output_router_logits" | "router_aux_loss_coef" | "router_jitter_noise");
        assert!(is_default || config.get(name) == Some(value), "{name}: {:?}", config.get(name));
    }
    assert!(output.sidecars.files.contains_key("tokenizer.json"));
    assert!(output.sidecars.files.contains_key("mergekit_moe_config.yml"));
    let gguf = made("gate_mode: random", |settings| {
        settings.output.destination.path.set_extension("gguf");
    });
    assert!(gguf.unwrap().plan.get("blk.1.ffn_gate_exps.weight").is_some());
}

#[test]
fn any_rows_of_a_noisy_weight_are_the_same() {
    let output = made("gate_mode: random", |_| ()).unwrap();
    let tensor: &PlannedTensor = output.plan.get("model.layers.1.block_sparse_moe.experts.1.w2.weight").unwrap();
    let all = tensor.read().unwrap();
    let row = tensor.row_len();
    for rows in [0..1, 7..9, tensor.rows() - 1..tensor.rows()] {
        assert_eq!(tensor.read_rows(rows.clone()).unwrap(), all[rows.start * row..rows.end * row]);
    }
    assert_ne!(all, made("gate_mode: random", |s| s.seed = 8).unwrap().plan.get(&tensor.name).unwrap().read().unwrap());
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |lines: &str, change: fn(&mut MoeSettings)| made(lines, change).expect_err(lines).to_string();
    let none = |_: &mut MoeSettings| ();
    assert!(refused("gate_mode: hidden", |s| s.allow_all_same = false).contains("expected different models"));
    let found = refused("architecture: qwen3", none);
    assert!(found.contains("expected Qwen3 MoE takes Qwen3 models, found models of llama"), "{found}");
    assert!(refused("architecture: switch", none).contains("expected one of Mixtral"));
    assert!(refused("gate_mode: hidden_avg", none).contains("counts padding"));
    let found = refused("gate_mode: random\nexpert_per_token: 2", none);
    assert!(found.contains("line 4: expert_per_token") && found.contains("did you mean experts_per_token?"), "{found}");
    let shared = format!(
        "architecture: mixtral\nshared_experts:\n  - source_model: {}",
        fixture("convert/llama/model").display()
    );
    assert!(refused(&shared, none).contains("Mixtral has no shared_experts"));
    let shared = shared.replace("mixtral", "");
    let output = made(&shared, none).unwrap();
    assert!(output.notes.iter().any(|note| note.contains("DeepseekForCausalLM")), "{:?}", output.notes);
    let missing = "shared_experts:\n  - source_model: /nowhere\ngate_mode: random\narchitecture: qwen";
    assert!(refused(missing, none).contains("/nowhere"));
}
