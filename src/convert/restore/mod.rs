//! Converts GGUF files back to Hugging Face folders: config, tensors, tokenizer, generation config.
//!
//! It applies the tables of [`crate::arch`] in reverse. Keys and tensors that nothing reads are refused by name if they
//! may change what the model computes, and named in a note otherwise.

mod config;
mod fields;
mod tensors;

use std::collections::HashSet;

use serde_json::{Map, Value as Json, json};

use self::config::RopeFactors;
pub(crate) use self::tensors::FIELDS;
use super::general::sampling_fields;
use super::source_record;
use crate::arch::lookup::matches;
use crate::arch::params::Params;
use crate::arch::{self, Config, GgufContents};
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::formats::gguf::{GgufModel, Metadata, QUANTIZATION_VERSION_KEY, Value};
use crate::output::Output;
use crate::plan::{Plan, PlannedTensor, TensorRef};
use crate::tokenizer::{self, Vocab};

/// The config and the folder to which `model` is converted back; the folder contains the config as config.json. `None`
/// if this crate has no family for the architecture.
///
/// Tensors get the type `outtype`. Without it, they get types that lose nothing: plain types stay, and quantized ones
/// become F16.
///
/// # Errors
/// [`crate::Error::Unsupported`] for an unknown key or tensor, [`crate::Error::Mismatch`] for tensors that don't fit
/// the keys, [`crate::Error::Format`] for keys of the wrong type.
pub fn from_gguf(model: &GgufModel, outtype: Option<DType>) -> Result<Option<(Config, Output)>> {
    let metadata = model.metadata();
    let shapes = model.tensors().iter().map(|t| (t.info().name.as_str(), t.info().shape.as_slice()));
    let found = GgufContents { metadata, tensors: shapes.collect() };
    let Some(family) = arch::of_gguf(metadata.text("general.architecture")?, &found) else { return Ok(None) };
    if model.tensors().is_empty() {
        return Err(Finding::new(model.path(), "tensors")
            .expected("those of a model")
            .found("none: the file holds keys and a vocabulary alone")
            .hint("take the GGUF that has the model's weights")
            .mismatch());
    }
    let mut notes = Vec::new();
    let values = |name: &str| model.get(name).map(read).transpose();
    let factors = RopeFactors {
        freqs: values("rope_freqs.weight")?,
        long: values("rope_factors_long.weight")?,
        short: values("rope_factors_short.weight")?,
    };
    let vocab_size = model.get("token_embd.weight").and_then(|t| t.info().shape.first().copied()).unwrap_or_default();
    let record = source_record::read(metadata)?;
    let mut config = match &record {
        Some(record) => record.config.clone(),
        None => config::config(family, &found, vocab_size, &factors, &mut notes)?,
    };
    let Some(params) = Params::of_gguf(model.path(), &config, &mut notes)? else { return Ok(None) };
    let params = params.with_stored(model.tensors().iter().map(|t| t.info().name.clone()).collect(), metadata.clone());
    if record.is_none() {
        compare_keys(metadata, &params, &mut notes)?;
    }
    let plan = tensors::plan(&params, metadata, model.tensors(), outtype, record.as_ref())?;
    let main = outtype.unwrap_or_else(|| tensors::main_type(model.tensors()));
    let name = main.torch_name().unwrap_or("float32");
    if record.is_none() || outtype.is_some() {
        config.remove("torch_dtype");
        config.insert("dtype".to_owned(), json!(name));
    }
    let mut files = tokenizer::to_hf(metadata, &mut notes)?;
    if family.vocab == Vocab::Phi3 && metadata.text("tokenizer.ggml.model").is_ok_and(|model| model == "gpt2") {
        named_as_gpt2(&mut files);
    }
    pooling(metadata, &family.gguf, &config, &mut files);
    if family.gguf != "bert" {
        generation(metadata, &config, &mut files);
    }
    left_out(metadata, &mut notes);
    let mut output = Output { notes, ..Output::folder("model", plan) };
    output.sidecars.files = files.into_iter().collect();
    output.put_json("config.json", &config);
    Ok(Some((config, output)))
}

/// The tensors of `model`, of which some were changed after [`from_gguf`]. `plan` holds all of them under transformers'
/// names, for the config `config`; `changed` are the names of the changed ones. Unchanged tensors are copied from the
/// file, changed ones keep their type. A tensor that the file doesn't have is added at the end, with the type of the
/// embeddings.
///
/// # Errors
/// As [`super::to_gguf`] for tensors that don't fit the config.
pub fn with_changed(model: &GgufModel, config: &Config, plan: &Plan, changed: &HashSet<String>) -> Result<Plan> {
    let mut notes = Vec::new();
    let origin = model.path();
    let Some(params) = Params::of_gguf(origin, config, &mut notes)? else { return Ok(Plan::default()) };
    // All rows are kept, whatever the tokenizer has.
    let request = super::tensors::Request {
        origin,
        stored_name: &|name| name,
        vocab_rows: &|| Ok(usize::MAX),
        outtype: Some(DType::F32),
        companions: &Plan::default(),
    };
    let (new, params) = super::tensors::plan(&request, params, plan, &mut notes)?;
    let main = params.size("main")?;
    let touched: HashSet<String> = changed
        .iter()
        .flat_map(|name| matches(params.family, name, main))
        .filter_map(|known| known.gguf_name())
        .collect();
    let mut tensors: Plan = model.tensors().iter().cloned().collect();
    let embeddings = tensors.get("token_embd.weight").map_or(DType::F32, |tensor| tensor.dtype);
    for tensor in new.tensors.into_iter().filter(|tensor| touched.contains(&tensor.name)) {
        match tensors.tensors.iter_mut().find(|there| there.name == tensor.name) {
            Some(there) => there.expr = tensor.expr,
            None => tensors.tensors.push(PlannedTensor { dtype: embeddings, ..tensor }),
        }
    }
    Ok(tensors)
}

/// Compares the architecture's keys with those that the restored config gives: what config.json can't say isn't lost
/// without a word.
///
/// # Errors
/// [`crate::Error::Unsupported`] where a count of the model differs.
fn compare_keys(metadata: &Metadata, params: &Params, notes: &mut Vec<String>) -> Result<()> {
    let given = super::keys::of_config(params);
    let prefix = format!("{}.", params.family.gguf);
    let mut others = Vec::new();
    for (key, value) in metadata.iter().filter(|(key, _)| key.starts_with(&prefix)) {
        let Some(other) = given.get(key).filter(|other| !same(value, other)) else { continue };
        if key.ends_with("_count") || key.ends_with("_count_kv") {
            let expected = format!("{other}, as the other keys and the tensors have it");
            return Err(metadata.finding(key).expected(expected).found(value).unsupported());
        }
        others.push(format!("{key} ({value}, config.json says {other})"));
    }
    if !others.is_empty() {
        notes.push(format!("keys whose values {} has no field for: {}", params.family.class(), others.join(", ")));
    }
    Ok(())
}

/// Whether two values say the same: floats to their last bits, and a list of one value over and over like the value alone.
fn same(a: &Value, b: &Value) -> bool {
    let flat = |value: &Value| match value.to_json() {
        Json::Array(values) if values.windows(2).all(|pair| pair[0] == pair[1]) => {
            values.into_iter().next().unwrap_or(Json::Null)
        }
        value => value,
    };
    let (a, b) = (flat(a), flat(b));
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * a.abs().max(b.abs());
    a == b || a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| near(a, b))
}

/// Phi-4 is Phi-3 with a byte-level vocabulary; the reference recognizes it by this name.
fn named_as_gpt2(files: &mut [(String, Vec<u8>)]) {
    let Some((_, content)) = files.iter_mut().find(|(name, _)| name == "tokenizer_config.json") else { return };
    if let Ok(mut config) = serde_json::from_slice::<Map<String, Json>>(content) {
        config.insert("tokenizer_class".to_owned(), json!("GPT2Tokenizer"));
        *content = pretty(&Json::Object(config));
    }
}

/// Reads the values of a small tensor.
fn read(tensor: &TensorRef) -> Result<Vec<f32>> {
    let info = tensor.info();
    let expr = crate::plan::Expr::Take(tensor.clone());
    PlannedTensor { name: info.name.clone(), dtype: DType::F32, shape: info.shape.clone(), expr }.read()
}

/// Adds generation_config.json: the ids that end a text, and the settings from `general.sampling.*`.
fn generation(metadata: &Metadata, config: &Config, files: &mut Vec<(String, Vec<u8>)>) {
    let mut fields = Map::new();
    for name in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        if let Some(id) = config.get(name).filter(|id| !id.is_null()) {
            fields.insert(name.to_owned(), id.clone());
        }
    }
    fields.extend(sampling_fields(metadata));
    if !fields.is_empty() {
        files.push(("generation_config.json".to_owned(), pretty(&Json::Object(fields))));
    }
}

/// Adds the files of a sentence-transformers folder, if the model pools.
fn pooling(metadata: &Metadata, prefix: &str, config: &Config, files: &mut Vec<(String, Vec<u8>)>) {
    let kind = metadata.get(&format!("{prefix}.pooling_type")).and_then(Value::as_unsigned);
    let mode = match kind {
        Some(1) => "mean_tokens",
        Some(2) => "cls_token",
        Some(3) => "lasttoken",
        _ => return,
    };
    let width = ["hidden_size", "dim"].iter().find_map(|name| config.get(*name)).cloned().unwrap_or_default();
    let mut fields = Map::new();
    fields.insert("word_embedding_dimension".to_owned(), width);
    for known in ["cls_token", "mean_tokens", "lasttoken"] {
        fields.insert(format!("pooling_mode_{known}"), json!(known == mode));
    }
    let module = |idx: usize, path: &str, kind: &str| json!({"idx": idx, "name": idx.to_string(), "path": path, "type": format!("sentence_transformers.models.{kind}")});
    let modules = json!([module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling")]);
    files.push(("modules.json".to_owned(), pretty(&modules)));
    files.push(("1_Pooling/config.json".to_owned(), pretty(&Json::Object(fields))));
}

/// Notes the keys about the model's origin: no program reads such facts from a folder.
fn left_out(metadata: &Metadata, notes: &mut Vec<String>) {
    const READ: &[&str] =
        &["general.architecture", "general.type", "general.file_type", QUANTIZATION_VERSION_KEY, "general.alignment"];
    let keys = metadata.iter().map(|(key, _)| key);
    let known = |key: &&str| {
        READ.contains(key)
            || key.starts_with("general.sampling.")
            || key.starts_with("tokenizer.")
            || key.starts_with("atombank.source")
            || metadata
                .get("general.architecture")
                .and_then(Value::as_text)
                .is_some_and(|a| key.starts_with(&format!("{a}.")))
    };
    let left: Vec<&str> = keys.filter(|key| !known(key)).collect();
    if !left.is_empty() {
        notes.push(format!("left out, because a folder has no field for them: {}", left.join(", ")));
    }
}

fn pretty(json: &Json) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(json).unwrap_or_default();
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests;
