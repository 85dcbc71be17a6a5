//! Converts a LoRA of llama.cpp back to PEFT's folder.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value as Json, json};

use super::{ALORA_KEY, ALPHA_KEY, EMBEDDINGS, GgufNames, GgufWeight, RowOrder};
use crate::adapter::peft::{ABSENT, Base, PREFIX};
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::formats::gguf::{Array, Metadata, Value};
use crate::output::{Output, left_out_keys};
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::source::show_shape;

/// The prefix of `general.base_model.0.repo_url`.
const HUB: &str = "https://huggingface.co/";

/// PEFT's folder of a LoRA that was read from a GGUF file.
#[derive(Debug, Clone)]
pub struct PeftFolder {
    /// The content of adapter_config.json.
    pub config: Map<String, Json>,
    /// The factors by PEFT's names.
    pub tensors: Plan,
    /// What the GGUF file contains that has no place in the folder.
    pub notes: Vec<String>,
}

/// One module's update in the GGUF file.
struct Update {
    module: String,
    order: RowOrder,
    embedding: bool,
    a: PlannedTensor,
    b: PlannedTensor,
    rank: usize,
}

/// Converts the LoRA in a GGUF file that llama.cpp would apply to `base`. `metadata` and `tensors`
/// are the file's, the tensors unchanged (see [`Plan::taking`]).
///
/// Factors in F32, F16 and BF16 keep their type, other types become F32.
///
/// # Errors
/// [`crate::Error::Unsupported`] for another kind of file; [`crate::Error::Mismatch`] for tensors
/// that don't fit each other or the base, naming the tensor.
pub fn from_gguf(metadata: &Metadata, tensors: &Plan, base: &Base) -> Result<PeftFolder> {
    for (key, expected) in [("general.type", "adapter"), ("adapter.type", "lora")] {
        let found = metadata.text(key)?;
        if found != expected {
            let finding = metadata.finding(key).expected(expected).found(format!("{found:?}"));
            return Err(match found {
                "atombank" => finding.hint("this is an atom bank: fix an instruction with `jobs::bake`"),
                _ => finding,
            }
            .unsupported());
        }
    }
    let architecture = metadata.text("general.architecture")?;
    let names = GgufNames::of(base)?;
    if architecture != names.architecture() {
        let finding = metadata.finding("general.architecture").expected(format!("{:?}", names.architecture()));
        let finding = finding.found(format!("{architecture:?}"));
        return Err(finding.hint("this adapter belongs to another base model").mismatch());
    }
    let alpha = match metadata.get(ALPHA_KEY) {
        // Without an alpha, llama.cpp multiplies the update by 1.
        None => 0.0,
        Some(Value::F32(alpha)) if alpha.is_finite() => f64::from(*alpha),
        Some(other) => {
            return Err(metadata.finding(ALPHA_KEY).expected("a finite float32").found(other).format());
        }
    };
    let updates = updates(metadata, tensors, &names, base)?;
    let config = config(metadata, &names, alpha, &updates)?;
    let mut tensors = Plan::default();
    for update in updates {
        let names = match update.embedding {
            true => ["lora_embedding_A", "lora_embedding_B"],
            false => ["lora_A.weight", "lora_B.weight"],
        };
        let a = if update.embedding { Expr::Transpose(Box::new(update.a.expr)) } else { update.a.expr };
        let b = update.order.to_hf(update.b.expr);
        for (name, expr, dtype) in [(names[0], a, update.a.dtype), (names[1], b, update.b.dtype)] {
            let dtype = match dtype {
                DType::F32 | DType::F16 | DType::BF16 => dtype,
                _ => DType::F32,
            };
            let name = format!("{PREFIX}{}.{name}", update.module);
            tensors.tensors.push(PlannedTensor { name, dtype, shape: expr.shape(), expr });
        }
    }
    let used =
        |key: &str| ["adapter.type", ALPHA_KEY, ALORA_KEY].contains(&key) || key.starts_with("general.base_model.");
    Ok(PeftFolder { config, tensors, notes: left_out_keys(metadata, used) })
}

/// The pairs of factors by module, in the file's order, each checked against the base.
fn updates(metadata: &Metadata, tensors: &Plan, names: &GgufNames, base: &Base) -> Result<Vec<Update>> {
    let file = metadata.file();
    let mut weights = names.weights(base);
    let mut order: Vec<&str> = Vec::new();
    let mut pairs: HashMap<&str, (Option<&PlannedTensor>, Option<&PlannedTensor>)> = HashMap::new();
    for tensor in &tensors.tensors {
        let a = tensor.name.strip_suffix(".lora_a");
        let Some(weight) = a.or(tensor.name.strip_suffix(".lora_b")) else {
            let finding = Finding::new(file, format!("tensor {:?}", tensor.name));
            return Err(finding.expected("a name that ends in .lora_a or .lora_b").found("another").unsupported());
        };
        let pair = pairs.entry(weight).or_insert_with(|| {
            order.push(weight);
            (None, None)
        });
        *(if a.is_some() { &mut pair.0 } else { &mut pair.1 }) = Some(tensor);
    }
    let mut updates = Vec::new();
    for weight in order {
        let finding = |end: &str| Finding::new(file, format!("tensor {:?}", format!("{weight}.{end}")));
        let (a, b) = match pairs.get(weight) {
            Some((Some(a), Some(b))) => (*a, *b),
            Some((None, _)) | None => return Err(finding("lora_a").expected(ABSENT).found("none").format()),
            Some((_, None)) => return Err(finding("lora_b").expected(ABSENT).found("none").format()),
        };
        let Some(GgufWeight { module, shape, order, .. }) = weights.remove(weight) else {
            let finding = finding("lora_a").expected("a weight of the base model").found("none of that name");
            return Err(finding.mismatch());
        };
        let embedding = weight == EMBEDDINGS;
        let rank = b.shape.last().copied().unwrap_or_default();
        let (expected_a, expected_b) = match (shape.as_slice(), embedding) {
            (&[d_out, d_in], false) => (vec![rank, d_in], vec![d_out, rank]),
            (&[vocab, hidden], true) => (vec![vocab, rank], vec![hidden, rank]),
            _ => {
                return Err(finding("lora_a").expected("a matrix for its weight").found(show_shape(&shape)).mismatch());
            }
        };
        for (end, tensor, expected) in [("lora_b", b, &expected_b), ("lora_a", a, &expected_a)] {
            if &tensor.shape != expected {
                let finding = finding(end).expected(format_args!("{} for this base model", show_shape(expected)));
                let finding = finding.found(show_shape(&tensor.shape));
                return Err(finding.hint("this adapter belongs to another base model").mismatch());
            }
        }
        if !order.fits(shape.first().copied().unwrap_or_default()) {
            let finding = finding("lora_b").expected("rows that divide into the base's heads");
            return Err(finding.found(show_shape(&b.shape)).mismatch());
        }
        updates.push(Update { module, order, embedding, a: a.clone(), b: b.clone(), rank });
    }
    if updates.is_empty() {
        return Err(Finding::new(file, "").expected("tensors .lora_a and .lora_b").found("none").format());
    }
    Ok(updates)
}

/// The content of adapter_config.json: one alpha for all, and patterns for ranks that differ.
fn config(metadata: &Metadata, names: &GgufNames, alpha: f64, updates: &[Update]) -> Result<Map<String, Json>> {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for update in updates {
        *counts.entry(update.rank).or_default() += 1;
    }
    let r = counts.iter().max_by_key(|(_, count)| **count).map(|(rank, _)| *rank).unwrap_or_default();
    // A path is a pattern that matches only itself. Older versions of PEFT look the path up as a
    // key, which works too.
    let others = || updates.iter().filter(|update| update.rank != r);
    let rank_pattern: Map<String, Json> = others().map(|u| (u.module.clone(), json!(u.rank))).collect();
    // Without an alpha, llama.cpp multiplies by 1. The same scale results from an alpha equal to
    // each module's rank.
    let (lora_alpha, alpha_pattern) = match alpha {
        0.0 => (json!(r), rank_pattern.clone()),
        whole if whole.fract() == 0.0 && whole.abs() < 1e15 => (json!(whole as i64), Map::new()),
        alpha => (json!(alpha), Map::new()),
    };
    let mut config = Map::new();
    let mut set = |field: &str, value: Json| config.insert(field.to_owned(), value);
    set("peft_type", json!("LORA"));
    set("task_type", json!("CAUSAL_LM"));
    set("base_model_name_or_path", base_name(metadata).map_or(Json::Null, Json::String));
    set("r", json!(r));
    set("lora_alpha", lora_alpha);
    set("use_rslora", json!(false));
    set("target_modules", json!(target_modules(names, updates)));
    set("rank_pattern", Json::Object(rank_pattern));
    set("alpha_pattern", Json::Object(alpha_pattern));
    set("lora_dropout", json!(0.0));
    set("bias", json!("none"));
    set("fan_in_fan_out", json!(false));
    set("inference_mode", json!(true));
    set("init_lora_weights", json!(true));
    match metadata.get(ALORA_KEY) {
        None => {}
        Some(Value::Array(Array::U32(tokens))) => {
            set("alora_invocation_tokens", json!(tokens));
        }
        Some(other) => {
            return Err(metadata.finding(ALORA_KEY).expected("an array of uint32").found(other).format());
        }
    }
    Ok(config)
}

/// The base model's repository, from the model card with which the file was made.
fn base_name(metadata: &Metadata) -> Option<String> {
    let text = |key: &str| metadata.get(key).and_then(Value::as_text).filter(|text| !text.is_empty());
    if let Some(name) = text("general.base_model.0.repo_url").and_then(|url| url.strip_prefix(HUB)) {
        return Some(name.to_owned());
    }
    text("general.base_model.0.name").map(str::to_owned)
}

/// The last parts of the modules' paths, as PEFT's users write them, if these select exactly the
/// given modules; whole paths otherwise.
fn target_modules(names: &GgufNames, updates: &[Update]) -> Vec<String> {
    let last = |module: &str| module.rsplit('.').next().unwrap_or(module).to_owned();
    let mut targets: Vec<String> = Vec::new();
    let mut counts: HashMap<String, usize> = HashMap::new();
    for update in updates {
        let name = last(&update.module);
        *counts.entry(name.clone()).or_default() += 1;
        if !targets.contains(&name) {
            targets.push(name);
        }
    }
    let in_layers = |name: &str| updates.iter().any(|u| last(&u.module) == name && u.module.contains(".layers."));
    let complete = |name: &String| counts.get(name) == Some(&if in_layers(name) { names.layers() } else { 1 });
    match targets.iter().all(complete) {
        true => targets,
        false => updates.iter().map(|update| update.module.clone()).collect(),
    }
}

impl PeftFolder {
    /// The folder to be written.
    pub fn output(&self) -> Output {
        Output { notes: self.notes.clone(), ..Output::adapter(&self.config, self.tensors.clone()) }
    }
}
