//! Tests that models are combined like in mergekit, and LoRAs like in PEFT: `fixtures/combine`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atombank::DType;
use atombank::adapter;
use atombank::adapter::peft::{Base, Change, LowRank};
use atombank::checkpoint::Checkpoint;
use atombank::formats::safetensors::SafetensorsFile;
use atombank::merge::combine::{CombineOptions, LoraMethod, ModelMethod, Weights, combine_loras, combine_models};
use atombank::plan::{Expr, Plan, PlannedTensor};
use atombank::source::Source;
use serde_json::{Map, Value};

/// The largest difference of a value, relative to the largest value in its tensor.
const NEAR: f32 = 1e-6;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/combine")
}

fn cases(kind: &str) -> Map<String, Value> {
    let json: Value = serde_json::from_slice(&std::fs::read(fixtures().join("cases.json")).unwrap()).unwrap();
    json[kind].as_object().unwrap().clone()
}

/// The tensors of a file, grouped by the part of their names before the slash.
fn tensors(file: &str) -> BTreeMap<String, Plan> {
    let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(&fixtures().join(file)).unwrap());
    let mut found: BTreeMap<String, Plan> = BTreeMap::new();
    for tensor in Plan::taking(&source).tensors {
        let (group, name) = tensor.name.split_once('/').unwrap();
        let (group, name) = (group.to_owned(), name.to_owned());
        found.entry(group).or_default().tensors.push(PlannedTensor { name, ..tensor });
    }
    found
}

fn numbers(of: &Value) -> Vec<f64> {
    of.as_array().map_or_else(Vec::new, |all| all.iter().map(|v| v.as_f64().unwrap()).collect())
}

/// The options of a case. All of them must be known.
fn options(json: &Map<String, Value>) -> CombineOptions {
    let mut options = CombineOptions::default();
    for (name, value) in json {
        let number = || value.as_f64().unwrap();
        match name.as_str() {
            "weights" => options.weights = Weights::new(numbers(value)),
            "density" if value.is_number() => options.density = vec![number()],
            "density" => options.density = numbers(value),
            "lambda" => options.lambda = number(),
            "epsilon" => options.epsilon = Some(number().into()),
            "gamma" => options.gamma = number().into(),
            "r" => options.r = number(),
            "alpha" => options.alpha = number(),
            "scale" => options.scale = Some(number()),
            "normalize" => options.normalize = value.as_bool(),
            "rescale" => options.rescale = value.as_bool(),
            "seed" => options.seed = value.as_u64().unwrap(),
            "t" => options.t = value.as_f64(),
            "select_topk" => options.select_topk = number(),
            "max_iter" => options.max_iter = value.as_u64().unwrap() as usize,
            "filter_wise" => options.filter_wise = value.as_bool().unwrap(),
            "nuslerp_flatten" => options.nuslerp_flatten = value.as_bool().unwrap(),
            "nuslerp_row_wise" => options.nuslerp_row_wise = value.as_bool().unwrap(),
            "majority_sign" => options.majority_sign = value.as_str().unwrap().parse().unwrap(),
            "svd_rank" => options.rank = value.as_u64().map(|rank| rank as usize),
            "method" | "adapters" => {}
            other => panic!("{other} is not read"),
        }
    }
    options
}

fn names(of: &Value) -> Vec<&str> {
    of.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
}

/// The largest difference, relative to the largest value.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
    let differences = found.iter().zip(expected).map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() });
    let far = differences.fold(0.0, |far, d| if d <= far { far } else { d });
    if far == 0.0 { 0.0 } else { far / largest }
}

/// Tensors of a case that differ too much, and the largest difference.
#[derive(Default)]
struct Comparison {
    largest: f32,
    far: Vec<String>,
}

impl Comparison {
    fn add(&mut self, what: &str, found: &[f32], expected: &[f32]) {
        let difference = difference(found, expected);
        self.largest = self.largest.max(difference);
        // A NaN counts as a difference.
        if difference.is_nan() || difference > NEAR {
            self.far.push(format!("{what} by {difference:.1e}"));
        }
    }
}

fn report(all: &BTreeMap<String, Comparison>) {
    for (name, comparison) in all {
        println!("{name}: {:.1e}", comparison.largest);
    }
    let far = all.iter().filter(|(_, c)| !c.far.is_empty());
    let far: Vec<String> = far.map(|(name, c)| format!("{name}: {}", c.far.join(", "))).collect();
    assert!(far.is_empty(), "{}", far.join("\n"));
}

#[test]
fn models_are_combined_as_mergekit_does() {
    let (models, expected) = (tensors("models.safetensors"), tensors("merged.safetensors"));
    let mut all = BTreeMap::new();
    for (name, case) in cases("models") {
        let method: ModelMethod = case["method"].as_str().unwrap().parse().unwrap();
        let base = case["base"].as_bool().unwrap().then(|| &models["base"]);
        let of: Vec<&Plan> = names(&case["models"]).iter().map(|model| &models[*model]).collect();
        let mut options = options(case["options"].as_object().unwrap());
        options.nuslerp_updates = base.is_some() && method == ModelMethod::NuSlerp;
        options.multislerp_updates = base.is_some() && method == ModelMethod::MultiSlerp;
        let combined = combine_models(base, &of, method, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut comparison = Comparison::default();
        assert_eq!(expected[&name].tensors.len(), combined.result.tensors.len());
        for tensor in &combined.result.tensors {
            let expected = expected[&name].get(&tensor.name).unwrap();
            comparison.add(&tensor.name, &tensor.read().unwrap(), &expected.read().unwrap());
        }
        all.insert(name, comparison);
    }
    let methods =
        cases("models").values().map(|case| case["method"].to_string()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(methods.len(), ModelMethod::names().count(), "every method has a case");
    report(&all);
}

#[test]
fn rows_of_tensors_of_more_dimensions_are_mergekits() {
    let tensors = tensors("cubes/tensors.safetensors");
    let json = std::fs::read(fixtures().join("cubes/cases.json")).unwrap();
    let cases: BTreeMap<String, Value> = serde_json::from_slice(&json).unwrap();
    let mut all = BTreeMap::new();
    for (name, case) in cases {
        let method: ModelMethod = case["method"].as_str().unwrap().parse().unwrap();
        let base = case["base"].as_bool().unwrap_or(true).then(|| &tensors["base"]);
        let mut options = options(case["options"].as_object().unwrap());
        options.nuslerp_updates = base.is_some() && method == ModelMethod::NuSlerp;
        let combined = combine_models(base, &[&tensors["a"], &tensors["b"]], method, &options).unwrap();
        let mut comparison = Comparison::default();
        for tensor in &combined.result.tensors {
            let expected = tensors[&name].get(&tensor.name).unwrap();
            assert_eq!(tensor.shape, tensor.expr.shape());
            comparison.add(&tensor.name, &tensor.read().unwrap(), &expected.read().unwrap());
        }
        all.insert(name, comparison);
    }
    assert_eq!(all.len(), 7);
    report(&all);
}

/// The updates of each LoRA by module.
fn loras() -> BTreeMap<&'static str, Vec<(String, LowRank)>> {
    let folder = fixtures().join("base");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let base = Base::of(&checkpoint);
    let open = |name: &'static str| {
        let changes = adapter::open(&fixtures().join(name), &base).unwrap().changes;
        let update = |(name, change)| match change {
            Change::LowRank(update) => (name, update),
            other => panic!("{other:?}"),
        };
        (name, changes.into_iter().map(update).collect())
    };
    ["one", "two", "three", "wide", "coarse", "rough"].map(open).into()
}

fn read(of: &Expr) -> Vec<f32> {
    PlannedTensor { name: String::new(), dtype: DType::F32, shape: of.shape(), expr: of.clone() }.read().unwrap()
}

#[test]
fn loras_are_combined_as_peft_does() {
    let (loras, expected) = (loras(), tensors("combined.safetensors"));
    let mut all = BTreeMap::new();
    for (name, case) in cases("loras") {
        let method: LoraMethod = case["method"].as_str().unwrap().parse().unwrap();
        let of: Vec<_> = names(&case["adapters"]).iter().map(|adapter| loras[adapter].clone()).collect();
        let combined = combine_loras(&of, method, &options(case.as_object().unwrap())).unwrap();
        combined.measure(&|| ()).unwrap();
        let mut comparison = Comparison::default();
        let mut modules = 0;
        for (module, update) in &combined.result {
            let parts = [("delta", update.delta()), ("a", update.a.clone()), ("b", update.b.clone())];
            for (part, of) in parts {
                let key = format!("{module}:{part}");
                match expected[&name].get(&key) {
                    Some(expected) => comparison.add(&key, &read(&of), &expected.read().unwrap()),
                    None => assert!(part != "delta" && method.name().ends_with("svd"), "{name}: {key}"),
                }
            }
            modules += 1;
        }
        let deltas = expected[&name].tensors.iter().filter(|t| t.name.ends_with(":delta"));
        assert_eq!(deltas.count(), modules, "{name}");
        all.insert(name, comparison);
    }
    let methods =
        cases("loras").values().map(|case| case["method"].to_string()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(methods.len(), LoraMethod::names().count(), "every method has a case");
    report(&all);
}

#[test]
fn what_is_lost_by_a_rank_is_known() {
    let loras = loras();
    let adapters = ["one", "two", "wide"].map(|name| loras[name].clone());
    let options = |rank| CombineOptions { weights: Weights::new([1.0, 0.5, -0.7]), rank, ..Default::default() };
    let whole = combine_loras(&adapters, LoraMethod::Cat, &options(None)).unwrap();
    assert!(whole.truncations().unwrap().is_empty(), "nothing is cut");
    let length = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    for (method, rank) in [(LoraMethod::Svd, 1), (LoraMethod::Svd, 3), (LoraMethod::Cat, 2), (LoraMethod::Cat, 7)] {
        let cut = combine_loras(&adapters, method, &options(Some(rank))).unwrap();
        let truncations = cut.truncations().unwrap();
        assert_eq!(truncations.len(), cut.result.len());
        for (((name, update), of), (_, exact)) in cut.result.iter().zip(truncations).zip(&whole.result) {
            assert_eq!((name, update.a.shape()[0], of.rank), (&format!("{}.weight", of.module), rank, rank));
            assert_eq!(of.shape, update.delta().shape());
            let (found, exact) = (read(&update.delta()), read(&exact.delta()));
            let lost: Vec<f32> = found.iter().zip(&exact).map(|(found, exact)| found - exact).collect();
            let expected = length(&lost) / length(&exact);
            assert!((of.relative_error - expected).abs() < 1e-6, "rank {rank}: {of:?}, not {expected}");
            assert!((of.energy - (1.0 - expected * expected)).abs() < 1e-6, "rank {rank}: {of:?}");
            assert!((of.norm_sqr.sqrt() / length(&exact) - 1.0).abs() < 1e-6, "{of:?}");
        }
    }
}
