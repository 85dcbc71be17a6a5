//! Writes low-rank updates as a folder that PEFT loads.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value, json};

use super::PREFIX;
use super::base::Base;
use super::change::{LowRank, WeightLayout};
use crate::adapter::WRAPPER;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::output::Output;
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::source::rows;

/// The value of `target_modules` with which PEFT loads an adapter without factors (`src/peft/utils/constants.py`,
/// `DUMMY_TARGET_MODULES`).
const NO_MODULES: &str = "dummy-target-modules";

/// An adapter to be written.
#[derive(Debug, Clone)]
pub struct NewLora {
    /// The content of adapter_config.json.
    pub config: Map<String, Value>,
    /// The factors and whole tensors, under PEFT's names.
    pub tensors: Plan,
}

/// An update of the matrices of all experts in one parameter (`target_parameters`).
#[derive(Debug, Clone)]
pub struct ParameterUpdate {
    /// The path of the module in the class.
    pub module: String,
    /// The parameter's name in it.
    pub parameter: &'static str,
    /// `[experts * r, d_in]`: the factors of the experts, one below the other.
    pub a: Expr,
    /// `[d_out, r * experts]`: in each group of columns, one for each expert.
    pub b: Expr,
    /// The rank of each expert.
    pub rank: usize,
}

impl ParameterUpdate {
    /// The parameter's path.
    pub fn path(&self) -> String {
        format!("{}.{}", self.module, self.parameter)
    }
}

/// One module's update.
struct Module<'a> {
    path: String,
    update: &'a LowRank,
    rank: usize,
    alpha: f64,
}

impl NewLora {
    /// Makes the LoRA that adds `updates` to the tensors of `base` with these names, and `parameters` to its experts: those
    /// have one rank, and stand in the order of modules and of their parameters. It replaces the base's tensors
    /// named in `saved`: whole modules, and biases of modules whose weight isn't in `saved`. Factors get the type
    /// `dtype`.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for an update of a tensor that isn't a module's weight.
    pub fn new(
        base: &Base,
        updates: &[(String, LowRank)],
        parameters: &[ParameterUpdate],
        saved: Vec<PlannedTensor>,
        dtype: DType,
    ) -> Result<Self> {
        let modules = updates.iter().map(|(name, update)| module(base, name, update)).collect::<Result<Vec<_>>>()?;
        let mut tensors = Plan::default();
        for module in &modules {
            let names = match module.update.layout {
                WeightLayout::Embedding => ["lora_embedding_A", "lora_embedding_B"],
                WeightLayout::OutputsFirst | WeightLayout::InputsFirst | WeightLayout::Kernel => {
                    ["lora_A.weight", "lora_B.weight"]
                }
            };
            for (name, expr) in names.into_iter().zip([&module.update.a, &module.update.b]) {
                let (name, expr) = (format!("{PREFIX}{}.{name}", module.path), expr.clone());
                tensors.tensors.push(PlannedTensor { name, dtype, shape: expr.shape(), expr });
            }
        }
        for of_module in parameters.chunk_by(|a, b| a.module == b.module) {
            for (place, update) in of_module.iter().enumerate() {
                // PEFT wraps the module once for each parameter, for the last one outermost.
                let wrapped = [update.module.as_str(), &WRAPPER.repeat(of_module.len() - 1 - place)].concat();
                for (name, expr) in [("lora_A", &update.a), ("lora_B", &update.b)] {
                    let (name, expr) = (format!("{PREFIX}{wrapped}.{name}.weight"), expr.clone());
                    tensors.tensors.push(PlannedTensor { name, dtype, shape: expr.shape(), expr });
                }
            }
        }
        let saved: Vec<(String, PlannedTensor)> =
            saved.into_iter().map(|tensor| (base.own_name(&tensor.name), tensor)).collect();
        let weights: HashSet<String> =
            saved.iter().filter_map(|(own, _)| own.strip_suffix(".weight")).map(str::to_owned).collect();
        let adapted: HashSet<&str> = modules.iter().map(|module| module.path.as_str()).collect();
        let (mut modules_to_save, mut biases): (Vec<String>, bool) = (Vec::new(), false);
        for (own, tensor) in saved {
            let (path, last) = own.rsplit_once('.').unwrap_or((&own, ""));
            let name = match last == "bias" && !weights.contains(path) {
                // PEFT's `bias: all`, under the bias's name in a wrapped module.
                true => {
                    biases = true;
                    let wrapped = if adapted.contains(path) { ".base_layer" } else { "" };
                    format!("{PREFIX}{path}{wrapped}.bias")
                }
                false => {
                    if !modules_to_save.iter().any(|module| module == path) {
                        modules_to_save.push(path.to_owned());
                    }
                    format!("{PREFIX}{own}")
                }
            };
            tensors.tensors.push(PlannedTensor { name, ..tensor });
        }
        Ok(Self { config: config(base, &modules, parameters, &modules_to_save, biases), tensors })
    }

    /// The adapter's folder.
    pub fn output(&self) -> Output {
        Output::adapter(&self.config, self.tensors.clone())
    }
}

fn module<'a>(base: &Base, name: &str, update: &'a LowRank) -> Result<Module<'a>> {
    let own = base.own_name(name);
    let Some(path) = own.strip_suffix(".weight").filter(|path| !path.contains(".experts.")) else {
        return Err(Finding::new(base.path(), format!("tensor {name:?}"))
            .expected("the weight of a module, for PEFT to find it by")
            .found("another")
            .unsupported());
    };
    let rank = rows(&update.a.shape());
    Ok(Module { path: path.to_owned(), update, rank, alpha: update.scale * rank as f64 })
}

/// The most frequent number among the modules; of equally frequent ones, the first module's.
fn usual<T: Copy + PartialEq>(of: &[Module], number: impl Fn(&Module) -> T) -> Option<T> {
    let count = |n: T| of.iter().filter(|module| number(module) == n).count();
    of.iter().map(&number).rev().max_by_key(|n| count(*n))
}

/// The content of adapter_config.json: the most frequent numbers, and patterns for modules that differ.
fn config(
    base: &Base,
    modules: &[Module],
    parameters: &[ParameterUpdate],
    modules_to_save: &[String],
    biases: bool,
) -> Map<String, Value> {
    // Patterns are for modules, so the numbers of experts come first.
    let of_experts = parameters.first().map(|update| update.rank);
    let r = of_experts.or_else(|| usual(modules, |module| module.rank)).unwrap_or(1);
    let alpha = of_experts.map(|rank| rank as f64).or_else(|| usual(modules, |module| module.alpha)).unwrap_or(1.0);
    // A path is a pattern that matches only itself. Older versions of PEFT look the path up as a key, which works too.
    let others = |value: &dyn Fn(&Module) -> Option<Value>| -> Map<String, Value> {
        modules.iter().filter_map(|module| Some((module.path.clone(), value(module)?))).collect()
    };
    let number = |n: f64| if n.fract() == 0.0 && n.abs() < 1e15 { json!(n as i64) } else { json!(n) };
    let mut config = Map::new();
    let mut set = |field: &str, value: Value| config.insert(field.to_owned(), value);
    set("peft_type", json!("LORA"));
    set("task_type", if base.has_head() { json!("CAUSAL_LM") } else { Value::Null });
    set("base_model_name_or_path", base.config().get("_name_or_path").cloned().unwrap_or(Value::Null));
    set("r", json!(r));
    set("lora_alpha", number(alpha));
    set("use_rslora", json!(false));
    let no_modules = if parameters.is_empty() { json!(NO_MODULES) } else { json!([]) };
    set("target_modules", if modules.is_empty() { no_modules } else { json!(target_modules(base, modules)) });
    if !parameters.is_empty() {
        set("target_parameters", parameters.iter().map(ParameterUpdate::path).collect());
    }
    set("rank_pattern", Value::Object(others(&|module| (module.rank != r).then(|| json!(module.rank)))));
    set("alpha_pattern", Value::Object(others(&|module| (module.alpha != alpha).then(|| number(module.alpha)))));
    set("modules_to_save", if modules_to_save.is_empty() { Value::Null } else { json!(modules_to_save) });
    set("lora_dropout", json!(0.0));
    set("bias", json!(if biases { "all" } else { "none" }));
    set("fan_in_fan_out", json!(modules.iter().any(|m| m.update.layout == WeightLayout::InputsFirst)));
    set("inference_mode", json!(true));
    set("init_lora_weights", json!(true));
    config
}

/// The last parts of the modules' paths, as PEFT's users write them, if these select exactly the given modules; whole
/// paths otherwise.
fn target_modules(base: &Base, modules: &[Module]) -> Vec<String> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
    let adapted: HashSet<&str> = modules.iter().map(|module| module.path.as_str()).collect();
    let mut all: BTreeMap<String, bool> = BTreeMap::new();
    let named =
        base.named().filter(|(_, tensor)| tensor.shape.len() == 2 && base.main_name(&tensor.name) == tensor.name);
    for (name, tensor) in named {
        let Some(path) = name.strip_suffix(".weight") else { continue };
        // A tied head isn't a separate module until it is adapted.
        let tied = base.tied_head().is_some_and(|head| head.name == tensor.name);
        *all.entry(last(path)).or_insert(true) &= adapted.contains(path) || tied;
    }
    let mut names: Vec<String> = Vec::new();
    for module in modules {
        let name = last(&module.path);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    match names.iter().all(|name| all.get(name) == Some(&true)) {
        true => names,
        false => modules.iter().map(|module| module.path.clone()).collect(),
    }
}
