//! Joins tensors of a layer that llama.cpp can also read as one: queries, keys and values; gates and projections up of
//! the experts.
//!
//! Reference: llama.cpp `conversion/base.py` (`prepare_qkv_fusion`, `modify_tensors`).

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::arch::steps::joined;
use crate::error::{Finding, Result};
use crate::plan::{Plan, PlannedTensor};

/// Which tensors of a layer are joined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fuse {
    /// `attn_q`, `attn_k` and `attn_v` become `attn_qkv`.
    pub qkv: bool,
    /// `ffn_gate_exps` and `ffn_up_exps` become `ffn_gate_up_exps`.
    pub gate_up_experts: bool,
}

/// Architectures that have `attn_qkv` in llama.cpp (`gguf-py/gguf/constants.py`).
const WITH_QKV: &[&str] = &[
    "afmoe",
    "apertus",
    "arcee",
    "arctic",
    "baichuan",
    "bailingmoe",
    "bailingmoe2",
    "bert",
    "bloom",
    "chameleon",
    "chatglm",
    "codeshell",
    "cogvlm",
    "cohere2",
    "command-r",
    "dbrx",
    "deci",
    "deepseek",
    "deepseek2-ocr",
    "dots1",
    "dream",
    "ernie4_5",
    "ernie4_5-moe",
    "eurobert",
    "exaone",
    "exaone-moe",
    "exaone4",
    "falcon",
    "falcon-h1",
    "gemma",
    "gemma-embedding",
    "gemma2",
    "gemma3",
    "gemma3n",
    "gemma4",
    "glm4",
    "glm4moe",
    "gpt-oss",
    "gpt2",
    "gptj",
    "gptneox",
    "granite",
    "granitehybrid",
    "granitemoe",
    "graniteswitch",
    "grok",
    "grovemoe",
    "hunyuan-dense",
    "hunyuan-moe",
    "hunyuan_vl",
    "internlm2",
    "jais",
    "jais2",
    "jamba",
    "jina-bert-v2",
    "jina-bert-v3",
    "kimi-linear",
    "lfm2",
    "lfm2moe",
    "llada",
    "llada-moe",
    "llama",
    "llama-embed",
    "llama4",
    "maincoder",
    "mimo2",
    "minicpm",
    "minimax-01",
    "minimax-m2",
    "mistral3",
    "modern-bert",
    "mpt",
    "muse-glimmer",
    "nemotron",
    "nemotron_h",
    "nemotron_h_moe",
    "neo-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "olmo",
    "olmo2",
    "olmoe",
    "openelm",
    "orion",
    "paddleocr",
    "pangu-embedded",
    "phi2",
    "phi3",
    "phimoe",
    "plamo",
    "plamo2",
    "plamo3",
    "qwen",
    "qwen2",
    "qwen2moe",
    "qwen2vl",
    "qwen3",
    "qwen35",
    "qwen35moe",
    "qwen3moe",
    "qwen3next",
    "qwen3vl",
    "qwen3vlmoe",
    "qwen4exp",
    "refact",
    "rnd1",
    "seed_oss",
    "smallthinker",
    "smollm3",
    "spark2_5",
    "stablelm",
    "starcoder",
    "starcoder2",
    "step35",
    "xverse",
];

/// `plan` with the tensors joined. A joined tensor comes at the place of its last part.
///
/// # Errors
/// [`crate::Error::Unsupported`] if llama.cpp can't read the joined tensors of this architecture, or if the model has
/// none to join.
pub(super) fn fused(plan: Plan, architecture: &str, fuse: Fuse, origin: &Path) -> Result<Plan> {
    let mut plan = plan;
    if fuse.qkv {
        if !WITH_QKV.contains(&architecture) {
            let finding = Finding::new(origin, "fuse_qkv").expected("an architecture with attn_qkv in llama.cpp");
            return Err(finding.found(architecture).unsupported());
        }
        let parts = ["attn_q", "attn_k", "attn_v"];
        let by_layer = layers(&plan, &parts);
        // Biases are joined with the weights, or neither is.
        let all = |found: &HashMap<String, usize>, end: &str| {
            parts.iter().filter(|part| found.contains_key(&format!("{part}.{end}"))).count()
        };
        let fusable: Vec<&String> = by_layer
            .iter()
            .filter(|(_, found)| all(found, "weight") == 3 && matches!(all(found, "bias"), 0 | 3))
            .map(|(layer, _)| layer)
            .collect();
        check_some(&fusable, origin, "fuse_qkv")?;
        let layers: Vec<String> = fusable.into_iter().cloned().collect();
        for end in ["weight", "bias"] {
            plan = join(plan, &layers, &parts, "attn_qkv", end, 0);
        }
    }
    if fuse.gate_up_experts {
        let parts = ["ffn_gate_exps", "ffn_up_exps"];
        let by_layer = layers(&plan, &parts);
        let has =
            |found: &HashMap<String, usize>| parts.iter().all(|part| found.contains_key(&format!("{part}.weight")));
        let fusable: Vec<&String> = by_layer.iter().filter(|(_, found)| has(found)).map(|(layer, _)| layer).collect();
        check_some(&fusable, origin, "fuse_gate_up_exps")?;
        let layers: Vec<String> = fusable.into_iter().cloned().collect();
        plan = join(plan, &layers, &parts, "ffn_gate_up_exps", "weight", 1);
    }
    Ok(plan)
}

fn check_some(layers: &[&String], origin: &Path, option: &str) -> Result<()> {
    match layers.is_empty() {
        false => Ok(()),
        true => {
            let finding = Finding::new(origin, option).expected("layers with tensors to join");
            Err(finding.found("none").unsupported())
        }
    }
}

/// For every layer `blk.N.`, the places of its tensors of these names, with their endings.
fn layers(plan: &Plan, parts: &[&str]) -> HashMap<String, HashMap<String, usize>> {
    let mut all: HashMap<String, HashMap<String, usize>> = HashMap::new();
    for (place, tensor) in plan.tensors.iter().enumerate() {
        let Some((layer, name)) = split(&tensor.name) else { continue };
        if parts.iter().any(|part| name.strip_prefix(part).is_some_and(|end| end.starts_with('.'))) {
            all.entry(layer.to_owned()).or_default().insert(name.to_owned(), place);
        }
    }
    all
}

/// `blk.N.` and the rest of a name.
fn split(name: &str) -> Option<(&str, &str)> {
    let rest = name.strip_prefix("blk.")?;
    let at = "blk.".len() + rest.find('.')? + 1;
    Some(name.split_at(at))
}

/// Joins the tensors `parts` with the ending `end` of these layers along a dimension.
fn join(plan: Plan, layers: &[String], parts: &[&str], name: &str, end: &str, dim: usize) -> Plan {
    let mut waiting: HashMap<String, HashMap<String, PlannedTensor>> = HashMap::new();
    let mut tensors = Vec::new();
    for tensor in plan.tensors {
        let layer = split(&tensor.name).filter(|(layer, _)| layers.iter().any(|known| known == layer));
        let part = layer.and_then(|(_, rest)| parts.iter().find(|part| rest == format!("{part}.{end}")));
        let (Some((layer, _)), Some(part)) = (layer, part) else {
            tensors.push(tensor);
            continue;
        };
        let (layer, part) = (layer.to_owned(), (*part).to_owned());
        let found = waiting.entry(layer.clone()).or_default();
        found.insert(part, tensor);
        if found.len() < parts.len() {
            continue;
        }
        let mut found = waiting.remove(&layer).unwrap_or_default();
        let ordered: Vec<PlannedTensor> = parts.iter().filter_map(|part| found.remove(*part)).collect();
        let dtype = ordered[0].dtype;
        let expr = joined(ordered.into_iter().map(|tensor| tensor.expr).collect(), dim);
        tensors.push(PlannedTensor { name: format!("{layer}{name}.{end}"), dtype, shape: expr.shape(), expr });
    }
    Plan { tensors }
}
