//! LoRA adapters of PEFT as llama.cpp loads them, and back.
//!
//! Reference: llama.cpp `convert_lora_to_gguf.py` and `src/llama-adapter.cpp`. Where the reference
//! writes alpha alone and leaves use_rslora, rank_pattern and alpha_pattern out, the true scale of
//! each update is put into the file: see [`to_gguf`].

mod base;
mod peft;
mod unpack;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub use base::{BaseModel, RowOrder, TableBase};
pub use unpack::{Unpacked, from_gguf};

use self::peft::PeftConfig;
use super::OutType;
use super::general::{self, GeneralOptions, TensorTotals};
use serde_json::Map;

use crate::adapter::AdapterFiles;
use crate::adapter::peft::PREFIX as PEFT_PREFIX;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::formats::gguf::{Array, Metadata, Value};
use crate::json::read_json_object;
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::source::{row_len, show_shape};

const ALPHA_KEY: &str = "adapter.lora.alpha";
const ALORA_KEY: &str = "adapter.alora.invocation_tokens";

/// `GGML_QUANT_VERSION`: the layout of quantized blocks.
const QUANTIZATION_VERSION: u32 = 2;

/// GGUF's name of the embeddings, whose factors llama.cpp takes the other way round.
const EMBEDDINGS: &str = "token_embd.weight";

/// The two factors of a module's update, as PEFT keeps them.
struct Pair {
    module: String,
    /// Of an embedding, whose A is `[r, vocab]` and stands under another name.
    embedding: bool,
    a: Option<PlannedTensor>,
    b: Option<PlannedTensor>,
}

/// Metadata and tensors of the GGUF file that holds the LoRA in `folder`, trained on `base`, and
/// notes on what stays behind.
///
/// llama.cpp multiplies every update by alpha / rank, with one alpha for the file. That is the
/// config's own lora_alpha (with use_rslora: lora_alpha * sqrt(r)); where patterns give a module
/// another scale, its `lora_b` is multiplied by what is missing, in f32 and rounded once.
///
/// # Errors
/// [`crate::Error::Unsupported`] for what llama.cpp's adapters can't carry: DoRA, whole weights,
/// biases, modules that the base's GGUF has no weight for; [`crate::Error::Mismatch`] for factors
/// that don't fit each other, the config or the base.
pub fn to_gguf(folder: &Path, base: &dyn BaseModel, outtype: OutType) -> Result<(Metadata, Plan, Vec<String>)> {
    let config_path = folder.join("adapter_config.json");
    let config = PeftConfig::from_json(&config_path, &read_json_object(&config_path)?)?;
    let files = AdapterFiles::find(folder)?;
    let (file, tensors) = (files.file().to_owned(), files.tensors().clone());
    let mut notes = Vec::new();
    let outtype = outtype.dtype(&tensors);
    let pairs = pairs(&file, base, tensors, &mut notes)?;
    let alpha = config.file_alpha()?;
    let mut plan = Plan::default();
    for pair in pairs {
        factors(&file, base, &config, alpha, outtype, pair, &mut plan)?;
    }
    if plan.tensors.is_empty() {
        return Err(Finding::new(&file, "").expected("lora_A and lora_B tensors").found("none").format());
    }
    let mut metadata = Metadata::new(folder);
    metadata.insert("general.architecture", base.architecture());
    metadata.insert("general.type", "adapter");
    metadata.insert("adapter.type", "lora");
    // Names are those of the folder, also where it is given as `.`.
    let folder: PathBuf = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let (totals, options) = (TensorTotals::of(&plan), GeneralOptions::default());
    general::write(&mut metadata, &folder, &Map::new(), base.architecture(), totals, &options, &mut notes)?;
    metadata.insert("general.type", "adapter");
    metadata.insert(ALPHA_KEY, alpha);
    if !config.alora_invocation_tokens.is_empty() {
        metadata.insert(ALORA_KEY, Value::Array(Array::U32(config.alora_invocation_tokens)));
    }
    metadata.insert("general.quantization_version", QUANTIZATION_VERSION);
    Ok((metadata, plan, notes))
}

/// The factors by module, in the order in which modules first come up; whatever else is there is
/// the base's own weight once more, or refused.
fn pairs(file: &Path, base: &dyn BaseModel, tensors: Plan, notes: &mut Vec<String>) -> Result<Vec<Pair>> {
    let mut pairs: Vec<Pair> = Vec::new();
    let mut places: HashMap<(String, bool), usize> = HashMap::new();
    for tensor in tensors.tensors {
        let name = tensor.name.clone();
        let factor = name.strip_prefix(PEFT_PREFIX).and_then(|path| {
            let suffixes = [
                (".lora_A.weight", 'A', false),
                (".lora_B.weight", 'B', false),
                (".lora_embedding_A", 'A', true),
                (".lora_embedding_B", 'B', true),
            ];
            suffixes.into_iter().find_map(|(end, which, embedding)| Some((path.strip_suffix(end)?, which, embedding)))
        });
        let Some((module, which, embedding)) = factor else {
            whole_weight(file, base, &tensor, notes)?;
            continue;
        };
        let place = *places.entry((module.to_owned(), embedding)).or_insert_with(|| {
            pairs.push(Pair { module: module.to_owned(), embedding, a: None, b: None });
            pairs.len() - 1
        });
        if let Some(pair) = pairs.get_mut(place) {
            *(if which == 'A' { &mut pair.a } else { &mut pair.b }) = Some(tensor);
        }
    }
    Ok(pairs)
}

/// A tensor that is no factor: PEFT saves embeddings beside adapters that act on them. Where it is
/// the base's own it goes without saying.
fn whole_weight(file: &Path, base: &dyn BaseModel, tensor: &PlannedTensor, notes: &mut Vec<String>) -> Result<()> {
    let name = tensor.name.as_str();
    let refused = |found: &str| {
        Err(Finding::new(file, format!("tensor {name:?}"))
            .expected("only lora_A and lora_B, all that a GGUF adapter can carry")
            .found(found)
            .hint("merge the adapter into its base and convert the result")
            .unsupported())
    };
    if name.contains(".lora_magnitude_vector") {
        return refused("DoRA's magnitudes");
    }
    if name.ends_with(".bias") {
        return refused("a bias");
    }
    if name.contains("trainable_tokens") {
        return refused("rows of the embeddings");
    }
    let module = name.strip_prefix(PEFT_PREFIX).and_then(|path| path.strip_suffix(".weight"));
    let Some(module) = module else { return refused("something else") };
    let module = module.strip_suffix(".base_layer").unwrap_or(module);
    match base.weight(module) {
        Some(weight) if tensor.same_values(weight)? => Ok(()),
        None if name.ends_with(".base_layer.weight") && base.shape(module).as_ref() == Some(&tensor.shape) => {
            notes.push(format!("tensor {name:?} is left out: it is taken for the base's own, which is not at hand"));
            Ok(())
        }
        _ => refused("a whole weight that differs from the base's"),
    }
}

/// Adds the two tensors of one module.
fn factors(
    file: &Path,
    base: &dyn BaseModel,
    config: &PeftConfig,
    file_alpha: f32,
    outtype: Option<DType>,
    pair: Pair,
    plan: &mut Plan,
) -> Result<()> {
    let module = pair.module.as_str();
    let kind =
        if pair.embedding { ("lora_embedding_A", "lora_embedding_B") } else { ("lora_A.weight", "lora_B.weight") };
    let full = |factor: &str| format!("tensor {:?}", format!("{PEFT_PREFIX}{module}.{factor}"));
    let finding = |factor: &str| Finding::new(file, full(factor));
    let missing = |factor: &str| finding(factor).expected("it").found("nothing").format();
    let a = pair.a.ok_or_else(|| missing(kind.0))?;
    let b = pair.b.ok_or_else(|| missing(kind.1))?;
    let unsupported = |expected: &str, found: &str| {
        Err(finding(kind.0).expected(expected).found(found).hint("merge the adapter into its base").unsupported())
    };
    let Some((name, order)) = base.to_gguf(module) else {
        return unsupported("a module whose weight the base's GGUF has", "one that it hasn't");
    };
    if base.tied() && (pair.embedding || name == "output.weight" || name == EMBEDDINGS) {
        let found = "embeddings that are the output head too, where llama.cpp would change both or neither";
        return unsupported("modules of their own", found);
    }
    if pair.embedding != (name == EMBEDDINGS) {
        return unsupported("lora_embedding of embed_tokens and lora_A of linear layers", "them mixed up");
    }

    let rank = config.rank(module);
    let Some(shape) = base.shape(module) else {
        return unsupported("a module of the base model", "none of that name");
    };
    let (expected_a, expected_b) = match (shape.as_slice(), pair.embedding) {
        (&[d_out, d_in], false) => (vec![rank, d_in], vec![d_out, rank]),
        (&[vocab, hidden], true) => (vec![rank, vocab], vec![hidden, rank]),
        _ => return unsupported("a module with a matrix for its weight", "another"),
    };
    for (factor, tensor, expected) in [(kind.0, &a, &expected_a), (kind.1, &b, &expected_b)] {
        if &tensor.shape != expected {
            return Err(finding(factor)
                .expected(format_args!("{} by adapter_config.json and the base model", show_shape(expected)))
                .found(show_shape(&tensor.shape))
                .hint("this adapter belongs to another base model, or its rank is not what its config says")
                .mismatch());
        }
    }
    if !order.fits(expected_b.first().copied().unwrap_or_default()) {
        return Err(finding(kind.1)
            .expected("rows that divide into the base's heads")
            .found(show_shape(&b.shape))
            .mismatch());
    }

    let source = a.dtype;
    let a = if pair.embedding { Expr::Transpose(Box::new(a.expr)) } else { a.expr };
    let mut b = order.to_gguf(b.expr);
    let alpha = config.alpha(module, rank);
    if alpha as f32 != file_alpha {
        // An alpha of 0 is none to llama.cpp: it multiplies by 1 then, not by alpha / rank.
        let applied = if file_alpha == 0.0 { rank as f64 } else { f64::from(file_alpha) };
        b = Expr::Scale { of: Box::new(b), factor: (alpha / applied) as f32 };
    } else if file_alpha == 0.0 {
        b = Expr::Scale { of: Box::new(b), factor: 0.0 };
    }
    for (end, expr) in [("lora_a", a), ("lora_b", b)] {
        let shape = expr.shape();
        let dtype = output_dtype(&shape, outtype, source);
        plan.tensors.push(PlannedTensor { name: format!("{name}.{end}"), dtype, shape, expr });
    }
    Ok(())
}

/// Rows that don't divide into blocks become F16 (conversion/base.py, `prepare_tensors`).
fn output_dtype(shape: &[usize], outtype: Option<DType>, source: DType) -> DType {
    let dtype = outtype.unwrap_or(source);
    if row_len(shape).is_multiple_of(dtype.block_elems()) { dtype } else { DType::F16 }
}

#[cfg(test)]
mod tests;
