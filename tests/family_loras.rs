//! LoRAs of every family as GGUF: the factors give each tensor the change that merging and converting gives it.

#[path = "common/cases.rs"]
mod cases;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use atombank::adapter::peft::Base;
use atombank::checkpoint::Checkpoint;
use atombank::convert::lora::{self, LoraBase};
use atombank::convert::{Input, Opening, OutType, to_gguf};
use atombank::dtype::DType;
use atombank::output::{Destination, Output};
use atombank::plan::{Expr, Plan, PlannedTensor, Sums};
use cases::{Case, cases, numbers};
use serde_json::json;

const RANK: usize = 2;
const ALPHA: f32 = 3.0;

/// Cases whose linear layers store their weights transposed (Conv1D).
const CONV1D: [&str; 1] = ["jais"];

/// Cases whose GGUF is taken for the base, too.
const WITH_GGUF: [&str; 6] = ["falcon-7b", "gemma3-vl", "glm4", "gptneox", "olmoe", "qwen2moe"];

/// Modules whose updates no GGUF can hold, by case.
const REFUSED: [(&str, &[&str]); 18] = [
    // The head's columns are scaled to a length of 1.
    ("bailingmoe-normhead", &["lm_head"]),
    // A part of it is transposed for each head; llama.cpp applies no updates there.
    ("bailingmoe3-vl", &["kv_b_proj"]),
    ("deepseek32", &["kv_b_proj"]),
    ("dots3note-plain", &["kv_b_proj"]),
    ("glm-dsa", &["kv_b_proj"]),
    ("glm5next", &["kv_b_proj"]),
    ("hy_v4-plain", &["kv_b_proj"]),
    ("kimi-linear-model", &["kv_b_proj"]),
    ("kimik3", &["kv_b_proj"]),
    ("youtu", &["kv_b_proj"]),
    // Weights are rounded to three values.
    ("bitnet", &[""]),
    // Its weights have other names.
    ("jina-bert-v3", &[""]),
    // Tables of n-grams.
    ("qwen4exp", &["ngram_embedding.shard_"]),
    // It is the embeddings, too.
    ("t5-shared", &["lm_head"]),
    // They go through linear layers into the embeddings.
    ("pockettts", &["input_linear", "conditioner.embed"]),
    ("pockettts-plain", &["input_linear", "conditioner.embed"]),
    ("qwen3tts", &["text_projection", "text_embedding", "codec_embedding"]),
    ("qwen3tts-relu", &["text_projection", "text_embedding", "codec_embedding"]),
];

#[test]
fn every_familys_updates_are_those_of_the_merged_model() {
    let mut wrong = Vec::new();
    for case in cases().iter().filter(|case| case.expects("f32")) {
        let expected = REFUSED.iter().find(|(name, _)| *name == case.name).map(|(_, modules)| *modules);
        let refused = check(case);
        let is_expected = |name: &String| expected.is_some_and(|all| all.iter().any(|module| name.contains(module)));
        if !refused.iter().all(is_expected) || refused.is_empty() && expected.is_some() {
            wrong.push(format!("{}: {refused:?}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// PEFT's LoRAs of parameters that hold all experts of a layer.
#[test]
fn updates_of_all_experts_at_once_are_those_of_the_merged_model() {
    // The case, the parameter, and its experts, inputs and outputs.
    for (name, module, [experts, d_in, d_out]) in [
        ("gpt-oss", "model.layers.0.mlp.experts", [4, 96, 64]),
        ("llama4", "model.layers.0.feed_forward.experts", [4, 96, 64]),
        ("qwen3moe-fused", "model.layers.0.mlp.experts", [4, 32, 64]),
    ] {
        let case = cases().into_iter().find(|case| case.name == name).unwrap();
        let dir = case.model();
        let folder = Checkpoint::open(&dir.path().join("model")).unwrap();
        let base = Base::of(&folder);
        let path = dir.path().join("lora");
        let config = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none",
            "target_modules": [], "target_parameters": ["experts.down_proj"],
        });
        let factors = [("lora_A", [experts * RANK, d_in]), ("lora_B", [d_out, experts * RANK])];
        let factors = factors.map(|(end, shape)| random(&format!("base_model.model.{module}.{end}.weight"), &shape));
        Output::adapter(&config, Plan { tensors: factors.into() }).write(&Destination::new(&path), &|_| {}).unwrap();
        let changes = atombank::adapter::open(&path, &base).unwrap().changes;
        assert_eq!(changes.len(), 1);
        let merged = |tensor: &PlannedTensor| {
            let changed = changes.iter().find(|(of, _)| *of == tensor.name);
            let expr = changed.map_or(tensor.expr.clone(), |(_, change)| change.apply(tensor.expr.clone()));
            PlannedTensor { dtype: DType::F32, expr, ..tensor.clone() }
        };
        let converted = |change: &dyn Fn(&PlannedTensor) -> PlannedTensor| {
            let weights = Plan { tensors: folder.weights().tensors.iter().map(change).collect() };
            to_gguf(&folder, &weights, &case.options("f32", OutType::F32)).unwrap().plan
        };
        let before = converted(&|tensor| PlannedTensor { dtype: DType::F32, ..tensor.clone() });
        let made = lora::to_gguf(&path, &base, OutType::F32).unwrap().plan;
        let names: Vec<&str> = made.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["blk.0.ffn_down_exps.weight.lora_a", "blk.0.ffn_down_exps.weight.lora_b"]);
        // PEFT rounds updates of experts to their type, BF16.
        equal_updates(name, &made, &before, &converted(&merged), 0.004);
    }
}

/// Checks a LoRA of all matrices of a case, but for those that are refused, and returns these.
fn check(case: &Case) -> Vec<String> {
    let dir = case.model();
    // Two classes have no config.json.
    let opened = Input::open(&dir.path().join("model"), Opening::default());
    let Input::Model(folder) = opened.unwrap_or_else(|e| panic!("{}: {e}", case.name)) else {
        panic!("{}: no model", case.name)
    };
    let base = Base::of(&folder);
    let converted = |weights: &Plan| {
        to_gguf(&folder, weights, &case.options("f32", OutType::F32))
            .unwrap_or_else(|e| panic!("{}: {e}", case.name))
            .plan
    };
    let plain = folder.weights().tensors.iter().map(|tensor| PlannedTensor { dtype: DType::F32, ..tensor.clone() });
    let before = converted(&Plan { tensors: plain.collect() });
    let sources = before.tensors.iter().flat_map(|tensor| tensor.expr.sources());
    let converted_names: HashSet<&str> = sources.map(|source| source.info().name.as_str()).collect();
    let embeddings = base.embeddings().map(|tensor| tensor.name.clone());
    let is_matrix = |tensor: &&PlannedTensor| {
        let is_converted = converted_names.contains(tensor.expr.sources()[0].info().name.as_str());
        let is_weight = tensor.shape.len() == 2 && tensor.name.ends_with(".weight");
        is_weight && is_converted && Some(&tensor.name) != embeddings.as_ref()
    };
    let targets = folder.weights().tensors.iter().filter(is_matrix).collect();
    let mut lora = Lora { targets, is_conv1d: CONV1D.contains(&case.name.as_str()) };
    let mut refused = Vec::new();
    let made = loop {
        if lora.targets.is_empty() {
            return vec!["all".to_owned()];
        }
        let path = dir.path().join("lora");
        lora.write(&path);
        let error = match lora::to_gguf(&path, &base, OutType::F32) {
            Ok(made) => break made,
            Err(error) => error.to_string(),
        };
        std::fs::remove_dir_all(&path).unwrap();
        // Long names are cut in messages.
        let cut =
            error.split("base_model.model.").nth(1).and_then(|rest| rest.split("...\"").next()).unwrap_or_default();
        let named = |tensor: &&PlannedTensor| {
            let name = format!("{}.lora_A.weight", module(tensor));
            cut.starts_with(&name) || name.starts_with(cut) && !cut.is_empty()
        };
        let Some(place) = lora.targets.iter().position(named) else { panic!("{}: {error}", case.name) };
        refused.push(format!("{}: {error}", lora.targets.remove(place).name));
    };
    if WITH_GGUF.contains(&case.name.as_str()) {
        let gguf = dir.path().join("base.gguf");
        let written = to_gguf(&folder, folder.weights(), &case.options("f32", OutType::F32)).unwrap();
        written.write(&Destination::new(&gguf), &|_| {}).unwrap();
        let base = LoraBase::open(&gguf).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let other = lora::to_gguf(&dir.path().join("lora"), &base.base(), OutType::F32);
        let other = other.unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert_eq!(other.plan.tensors.len(), made.plan.tensors.len());
        for (other, made) in other.plan.tensors.iter().zip(&made.plan.tensors) {
            assert!(
                other.name == made.name && other.read().unwrap() == made.read().unwrap(),
                "{}: {}",
                case.name,
                made.name
            );
        }
    }
    let merged = Plan { tensors: folder.weights().tensors.iter().map(|tensor| lora.merged(tensor)).collect() };
    equal_updates(&case.name, &made.plan, &before, &converted(&merged), 0.0);
    refused
}

/// Checks that each tensor of `after` is that of `before` and the update that llama.cpp adds to it. `rounding` is the
/// relative error that merging makes in an update.
fn equal_updates(case: &str, lora: &Plan, before: &Plan, after: &Plan, rounding: f32) {
    let factors: HashMap<&str, &PlannedTensor> =
        lora.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let mut used = 0;
    for (after, before) in after.tensors.iter().zip(&before.tensors) {
        assert_eq!(after.name, before.name);
        let change = match factors.get(format!("{}.lora_a", after.name).as_str()) {
            Some(a) => {
                used += 2;
                product(a, factors[format!("{}.lora_b", after.name).as_str()], &after.shape)
            }
            None => vec![0.0; after.elems()],
        };
        let (after_values, before_values) = (after.read().unwrap(), before.read().unwrap());
        for ((after_value, before_value), change) in after_values.iter().zip(&before_values).zip(&change) {
            let difference = (after_value - before_value - change).abs();
            // Sums of a weight and its update are rounded to F32.
            assert!(
                difference <= 4e-7 * after_value.abs().max(1.0) + rounding * change.abs(),
                "{} {}: {difference}",
                case,
                after.name
            );
        }
    }
    assert_eq!(used, lora.tensors.len(), "{}: every factor belongs to a tensor", case);
}

fn module(tensor: &PlannedTensor) -> &str {
    tensor.name.strip_suffix(".weight").unwrap()
}

/// A tensor whose values follow from its name.
fn random(name: &str, shape: &[usize]) -> PlannedTensor {
    let values = numbers(name).take(shape.iter().product()).map(|u| (u - 0.5) * 0.25).collect::<Vec<f32>>();
    let expr = Expr::Values { shape: shape.to_vec(), values: Arc::from(values) };
    PlannedTensor { name: name.to_owned(), dtype: DType::F32, shape: shape.to_vec(), expr }
}

/// The updates of a case's tensors.
struct Lora<'a> {
    targets: Vec<&'a PlannedTensor>,
    is_conv1d: bool,
}

impl Lora<'_> {
    fn factor(&self, tensor: &PlannedTensor, end: &str) -> PlannedTensor {
        let is_input = (end == "lora_A") != (self.is_conv1d && tensor.name.contains(".c_"));
        let size = tensor.shape[usize::from(is_input)];
        let shape = if end == "lora_A" { vec![RANK, size] } else { vec![size, RANK] };
        random(&format!("base_model.model.{}.{end}.weight", module(tensor)), &shape)
    }

    fn write(&self, path: &Path) {
        let config = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none",
            "target_modules": self.targets.iter().map(|tensor| module(tensor)).collect::<Vec<_>>(),
        });
        let factors = |tensor: &&PlannedTensor| [self.factor(tensor, "lora_A"), self.factor(tensor, "lora_B")];
        let plan = Plan { tensors: self.targets.iter().flat_map(factors).collect() };
        Output::adapter(&config, plan).write(&Destination::new(path), &|_| {}).unwrap();
    }

    /// A tensor with its update.
    fn merged(&self, tensor: &PlannedTensor) -> PlannedTensor {
        let expr = match self.targets.iter().any(|target| target.name == tensor.name) {
            false => tensor.expr.clone(),
            true => {
                let (a, b) = (self.factor(tensor, "lora_A").expr, self.factor(tensor, "lora_B").expr);
                let (left, right) = (Box::new(b), Box::new(a));
                let delta = Expr::Product { scale: f64::from(ALPHA) / RANK as f64, left, right, sums: Sums::Product };
                let is_turned = self.is_conv1d && tensor.name.contains(".c_");
                let delta = if is_turned { Expr::Transpose(Box::new(delta)) } else { delta };
                Expr::Add { of: Box::new(tensor.expr.clone()), delta: Box::new(delta) }
            }
        };
        PlannedTensor { dtype: DType::F32, expr, ..tensor.clone() }
    }
}

/// What llama.cpp adds to a tensor of this shape: alpha over the rank of B, times B A, for each matrix.
fn product(a: &PlannedTensor, b: &PlannedTensor, shape: &[usize]) -> Vec<f32> {
    let (rank, columns) = (b.shape[b.shape.len() - 1], shape[shape.len() - 1]);
    let rows = shape[shape.len() - 2];
    assert_eq!((a.shape[a.shape.len() - 2], a.shape[a.shape.len() - 1]), (rank, columns), "{}", a.name);
    assert_eq!(b.shape[..b.shape.len() - 1], shape[..shape.len() - 1], "{}", b.name);
    let (a_values, b_values) = (a.read().unwrap(), b.read().unwrap());
    let matrices: usize = shape[..shape.len() - 2].iter().product();
    let shared = a_values.len() == rank * columns;
    let mut all = Vec::with_capacity(matrices * rows * columns);
    for matrix in 0..matrices {
        let a_values = &a_values[if shared { 0 } else { matrix * rank * columns }..][..rank * columns];
        for row in 0..rows {
            let b_row = &b_values[(matrix * rows + row) * rank..][..rank];
            for column in 0..columns {
                let sum: f32 = b_row.iter().zip(a_values[column..].iter().step_by(columns)).map(|(b, a)| b * a).sum();
                all.push(ALPHA / rank as f32 * sum);
            }
        }
    }
    all
}
