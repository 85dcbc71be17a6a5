//! Converts atom banks to GGUF and back without loss: settings become typed keys, tensors keep
//! their types.
//!
//! The namespace `atombank.*` belongs to this crate; no other program reads banks.
//! docs/formats/bank.md describes banks, docs/formats/adapters-gguf.md the keys.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Number, Value as Json};

use super::AtomBank;
use crate::adapter::peft::PREFIX as PEFT_PREFIX;
use crate::adapter::{ADAPTER_CONFIG, WEIGHTS_FILE};
use crate::error::{Finding, Result};
use crate::formats::gguf::{Array, Metadata, Value};
use crate::formats::safetensors::SafetensorsFile;
use crate::json::read_json_object;
use crate::output::{Output, Sidecars, json_text, left_out_keys, parsed};
use crate::plan::{Plan, PlannedTensor};
use crate::source::Source;

/// The value of `general.architecture` and `adapter.type` in these files.
pub const ARCHITECTURE: &str = "atombank";

const PREFIX: &str = "atombank.";

/// Fields of adapter_config.json that aren't settings, as one JSON object.
const OTHER_FIELDS: &str = "atombank.other_fields";

/// The field of the sizes before growths.
const GROWTH: &str = "growth";

/// The prefix of the names of the bank's own tensors.
const BANK_PREFIX: &str = "atom_bank.";

/// The GGUF file of the bank in `folder`, with notes on what is left out. Tensors are taken unchanged from the bank's file.
///
/// # Errors
/// Those of [`AtomBank::open`]; [`crate::Error::Mismatch`] for a plain LoRA.
pub fn to_gguf(folder: &Path) -> Result<Output> {
    let json = read_json_object(&folder.join(ADAPTER_CONFIG))?;
    let file = folder.join(WEIGHTS_FILE);
    let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(&file)?);
    let mut plan = Plan::taking(&source);
    let bank = AtomBank::from_parts(folder, &file, &json, &plan)?;
    let (mut beside, notes) = Sidecars::read(folder, &plan)?;
    beside.files.remove(ADAPTER_CONFIG);
    for tensor in &mut plan.tensors {
        // Without the prefix, names stay within GGUF's limit of 63 bytes in models of any depth.
        if let Some(short) = tensor.name.strip_prefix(PEFT_PREFIX) {
            tensor.name = short.to_owned();
        }
    }

    let mut metadata = Metadata::new(folder);
    metadata.insert("general.architecture", ARCHITECTURE);
    metadata.insert("general.type", "adapter");
    metadata.insert("adapter.type", ARCHITECTURE);
    if let Some(name) = folder.file_name().and_then(|name| name.to_str()) {
        metadata.insert("general.name", name);
    }
    metadata.insert("atombank.format_version", 1u32);
    let mut others = json;
    others.remove("peft_type");
    others.remove("format_version");
    let settings = serde_json::to_value(&bank.config).expect("plain values serialize");
    // Sizes before growths are objects, for which GGUF has no type: they stay among the other fields.
    for (field, value) in settings.as_object().into_iter().flatten().filter(|(field, _)| *field != GROWTH) {
        others.remove(field);
        metadata.insert(format!("{PREFIX}{field}"), setting(folder, field, value)?);
    }
    if !others.is_empty() {
        metadata.insert(OTHER_FIELDS, json_text(&others));
    }
    beside.put(&mut metadata, PREFIX);
    Ok(Output::gguf(metadata, plan, notes))
}

/// A setting as a GGUF value: counts as uint32, other numbers as float64.
fn setting(folder: &Path, field: &str, value: &Json) -> Result<Value> {
    let as_gguf = match value {
        Json::Bool(value) => Some(Value::from(*value)),
        Json::String(text) => Some(Value::from(text.as_str())),
        Json::Number(number) if number.is_u64() => {
            number.as_u64().and_then(|number| u32::try_from(number).ok()).map(Value::from)
        }
        Json::Number(number) => number.as_f64().map(Value::from),
        Json::Array(items) => {
            let texts: Option<Vec<&str>> = items.iter().map(Json::as_str).collect();
            texts.map(|texts| Value::Array(Array::texts(texts)))
        }
        Json::Null | Json::Object(_) => None,
    };
    as_gguf.ok_or_else(|| {
        let finding = Finding::new(folder.join(ADAPTER_CONFIG), field);
        finding.expected("a value that GGUF has a type for").found(value).unsupported()
    })
}

/// The folder of the bank that [`to_gguf`] stored in a GGUF file. `metadata` and `tensors` are the file's, the tensors
/// unchanged (see [`Plan::taking`]). They keep the file's types.
///
/// # Errors
/// [`crate::Error::Unsupported`] for a file of another kind; otherwise as [`AtomBank::open`].
pub fn from_gguf(metadata: &Metadata, tensors: &Plan) -> Result<Output> {
    let (config, tensors, beside) = parts(metadata, tensors)?;
    // The same checks as for a folder.
    AtomBank::from_parts(metadata.file(), metadata.file(), &config, &tensors)?;
    let mut output = Output::adapter(&config, tensors);
    output.sidecars.safetensors_metadata = beside.safetensors_metadata;
    let config = std::mem::replace(&mut output.sidecars.files, beside.files);
    output.sidecars.files.extend(config);
    output.notes = left_out_keys(metadata, |key| key.starts_with(PREFIX) || key == "adapter.type");
    Ok(output)
}

/// The bank in a GGUF file with these keys and tensors.
///
/// # Errors
/// As [`from_gguf`].
pub(super) fn open(metadata: &Metadata, tensors: &Plan) -> Result<AtomBank> {
    let (config, tensors, beside) = parts(metadata, tensors)?;
    let file = metadata.file();
    let instructions = AtomBank::instructions_in(file, &beside.safetensors_metadata)?;
    Ok(AtomBank { instructions, ..AtomBank::from_parts(file, file, &config, &tensors)? })
}

/// The settings of a bank, its tensors under their names in a folder, and what is beside them.
fn parts(metadata: &Metadata, tensors: &Plan) -> Result<(Map<String, Json>, Plan, Sidecars)> {
    for (key, expected) in
        [("general.type", "adapter"), ("adapter.type", ARCHITECTURE), ("general.architecture", ARCHITECTURE)]
    {
        let found = metadata.text(key)?;
        if found != expected {
            return Err(metadata.finding(key).expected(expected).found(format!("{found:?}")).unsupported());
        }
    }
    let beside = Sidecars::take(metadata, PREFIX)?;
    let mut config = Map::new();
    config.insert("peft_type".into(), super::atom_bank::PEFT_TYPE.into());
    for (key, value) in metadata.iter() {
        let Some(field) = key.strip_prefix(PREFIX) else { continue };
        if key == OTHER_FIELDS || Sidecars::owns(key, PREFIX) {
            continue;
        }
        config.insert(field.to_owned(), field_value(metadata, key, value)?);
    }
    metadata.need("atombank.format_version")?;
    let others: Map<String, Json> = parsed(metadata, OTHER_FIELDS)?.unwrap_or_default();
    for (field, value) in others {
        if config.insert(field.clone(), value).is_some() {
            let finding = metadata.finding(OTHER_FIELDS).expected("fields that have no key of their own");
            return Err(finding.found(format!("{field:?}")).format());
        }
    }
    let tensors = tensors.tensors.iter().map(|tensor| {
        let name = match tensor.name.starts_with(BANK_PREFIX) {
            true => tensor.name.clone(),
            false => format!("{PEFT_PREFIX}{}", tensor.name),
        };
        PlannedTensor { name, ..tensor.clone() }
    });
    Ok((config, Plan { tensors: tensors.collect() }, beside))
}

/// Converts a setting to JSON.
fn field_value(metadata: &Metadata, key: &str, value: &Value) -> Result<Json> {
    let texts = |items: &[Vec<u8>]| {
        items.iter().map(|item| String::from_utf8(item.clone()).ok().map(Json::String)).collect::<Option<Vec<Json>>>()
    };
    let json = match value {
        Value::U32(count) => Some(Json::from(*count)),
        Value::F64(number) => Number::from_f64(*number).map(Json::Number),
        Value::Bool(value) => Some(Json::Bool(*value)),
        Value::String(_) => value.as_text().map(Json::from),
        Value::Array(Array::String(items)) => texts(items).map(Json::Array),
        _ => None,
    };
    json.ok_or_else(|| {
        let expected = "a uint32, a finite float64, a bool, UTF-8 text or an array of texts";
        metadata.finding(key).expected(expected).found(value).format()
    })
}

#[cfg(test)]
mod tests;
