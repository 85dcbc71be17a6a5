//! Writes an architecture's keys from the config, by the family.
//!
//! Reference: llama.cpp `conversion/base.py` (`set_gguf_parameters`, `_try_set_pooling_type`) and the
//! same method of each model.

use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::arch::params::Params;
use crate::arch::{Key, KeyGroup, KeyType, rope, whole_key};
use crate::error::{Finding, IoContext, Result};
use crate::formats::gguf::{Array, Metadata, QUANTIZATION_VERSION, QUANTIZATION_VERSION_KEY, Value};
use crate::json::read_json_object;

/// Writes the architecture's keys, the file type and the quantization version.
pub(super) fn model(metadata: &mut Metadata, folder: &Path, params: &Params, file_type: u32) -> Result<()> {
    for key in &params.family.keys {
        write(metadata, folder, params, file_type, key)?;
    }
    metadata.insert(QUANTIZATION_VERSION_KEY, QUANTIZATION_VERSION);
    Ok(())
}

/// Writes the family's keys that come right behind the architecture's name.
pub(super) fn early(metadata: &mut Metadata, folder: &Path, params: &Params) -> Result<()> {
    params.family.early_keys.iter().try_for_each(|key| write(metadata, folder, params, 0, key))
}

/// Writes the family's keys that follow the vocabulary.
pub(super) fn after_vocab(metadata: &mut Metadata, folder: &Path, params: &Params) -> Result<()> {
    params.family.vocab_keys.iter().try_for_each(|key| write(metadata, folder, params, 0, key))
}

/// The keys that `params` give by themselves, without those of other files. A key whose formula asks for more than a
/// config is left out.
pub(super) fn of_config(params: &Params) -> Metadata {
    let mut metadata = Metadata::new(Path::new(""));
    for key in params.family.early_keys.iter().chain(&params.family.keys) {
        if !matches!(key, Key::Group(KeyGroup::Pooling | KeyGroup::FileType)) {
            // An error is found where the config is used.
            let _ = write(&mut metadata, Path::new(""), params, 0, key);
        }
    }
    metadata
}

fn write(metadata: &mut Metadata, folder: &Path, params: &Params, file_type: u32, key: &Key) -> Result<()> {
    let written = write_value(metadata, folder, params, file_type, key);
    match key {
        Key::Value { name, .. } => params.of_statement(|| format!("key {name}"), written),
        Key::Group(_) => written,
    }
}

fn write_value(metadata: &mut Metadata, folder: &Path, params: &Params, file_type: u32, key: &Key) -> Result<()> {
    let prefix = params.family.gguf.as_str();
    match key {
        Key::Value { kind, name, value: formula, when } => {
            if !params.holds(when.as_ref(), None)? {
                return Ok(());
            }
            let value = params.value_of(formula, None)?;
            let subject = params.subject(formula, None);
            let subject = if subject.is_empty() { name.clone() } else { subject };
            let wrong = |expected: &str| params.finding(&subject).expected(expected).found(&value).format();
            if value.is_null() {
                // llama.cpp loads no model without it.
                return if name.ends_with("epsilon") && is_number_by_default(params, &subject) {
                    Err(wrong("a number"))
                } else {
                    Ok(())
                };
            }
            let is_field = params.settings().get(&subject) == Some(&value) && is_number_by_default(params, &subject);
            if is_field && !value.is_number() && !(value.is_array() && BY_LAYER.contains(&name.as_str())) {
                return Err(wrong("a number"));
            }
            let value = typed(*kind, &value).and_then(|value| in_range(name, value)).map_err(wrong)?;
            metadata.insert(whole_key(prefix, name), value);
        }
        Key::Group(KeyGroup::Rope) => rope::write(metadata, params)?,
        Key::Group(KeyGroup::RopeScaling) => rope::write_scaling(metadata, params)?,
        Key::Group(KeyGroup::RopeBase) => rope::write_base(metadata, params)?,
        Key::Group(KeyGroup::FileType) => {
            metadata.insert("general.file_type", file_type);
        }
        Key::Group(KeyGroup::Pooling) => pooling(metadata, folder, prefix)?,
        Key::Group(KeyGroup::Labels) => {
            if let Some(labels) = labels(params) {
                metadata.insert(format!("{prefix}.classifier.output_labels"), Array::texts(labels));
            }
        }
    }
    Ok(())
}

/// Keys whose value llama.cpp takes as one number or as one for each layer.
const BY_LAYER: [&str; 4] =
    ["attention.head_count", "attention.head_count_kv", "feed_forward_length", "attention.sliding_window_pattern"];

/// Whether the class's config has a number in this field where config.json has none.
fn is_number_by_default(params: &Params, field: &str) -> bool {
    params.family.defaults.get(field).is_some_and(Json::is_number)
}

/// Refuses numbers with which no model computes. The error is what was expected.
fn in_range(name: &str, value: Value) -> std::result::Result<Value, &'static str> {
    match value {
        Value::F32(number) if !number.is_finite() => Err("a number that 32 bits can hold"),
        Value::F32(number) if name.ends_with("epsilon") && !(0.0..=1.0).contains(&number) => {
            Err("a number from 0 to 1")
        }
        Value::F32(number) if name.starts_with("rope.freq_base") && number <= 0.0 => Err("a number above 0"),
        Value::U32(0) if name == "context_length" => Err("a count from 1 on"),
        value => Ok(value),
    }
}

/// A value as the type that the key has, or as an array of it. The error is what was expected.
fn typed(kind: KeyType, value: &Json) -> std::result::Result<Value, &'static str> {
    // gguf-py makes arrays of 32 bits with a sign of all lists of whole numbers.
    let whole = |value: &Json| value.as_i64().or_else(|| value.as_bool().map(i64::from));
    let float = |value: &Json| value.as_f64().or_else(|| value.as_bool().map(|v| f64::from(u8::from(v))));
    if let Json::Array(values) = value {
        return Ok(Value::Array(match kind {
            KeyType::F32 => {
                let values = values.iter().map(|v| Some(float(v)? as f32)).collect::<Option<_>>();
                Array::F32(values.ok_or("a list of numbers")?)
            }
            KeyType::Bool => {
                let values = values.iter().map(Json::as_bool).collect::<Option<_>>();
                Array::Bool(values.ok_or("a list of true and false")?)
            }
            KeyType::Text => {
                let texts = values.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
                Array::texts(texts.ok_or("a list of texts")?)
            }
            KeyType::U64 => {
                let number = |v: &Json| v.as_u64().or_else(|| v.as_f64().filter(|v| *v >= 0.0).map(|v| v as u64));
                let values = values.iter().map(number).collect::<Option<_>>();
                Array::U64(values.ok_or("a list of counts")?)
            }
            KeyType::U32 | KeyType::I32 => {
                let values = values.iter().map(|v| i32::try_from(whole(v)?).ok()).collect::<Option<_>>();
                Array::I32(values.ok_or("a list of whole numbers below 2^31")?)
            }
        }));
    }
    Ok(match kind {
        KeyType::U32 => {
            let number = whole(value).and_then(|value| u32::try_from(value).ok());
            Value::U32(number.ok_or("a count below 2^32")?)
        }
        KeyType::I32 => {
            let number = whole(value).and_then(|value| i32::try_from(value).ok());
            Value::I32(number.ok_or("a whole number below 2^31")?)
        }
        KeyType::U64 => {
            let number = whole(value).and_then(|value| u64::try_from(value).ok());
            Value::U64(number.ok_or("a count")?)
        }
        KeyType::F32 => Value::F32(float(value).ok_or("a number")? as f32),
        KeyType::Bool => Value::Bool(crate::arch::language::holds(value)),
        KeyType::Text => Value::from(value.as_str().ok_or("a text")?),
    })
}

/// The labels of a classifier, in order of their numbers; `None` if they are transformers' two
/// default labels.
fn labels(params: &Params) -> Option<Vec<String>> {
    let mut labels: Vec<(u64, &str)> = params
        .get(&["id2label"])?
        .as_object()?
        .iter()
        .map(|(number, label)| Some((number.parse().ok()?, label.as_str()?)))
        .collect::<Option<_>>()?;
    labels.sort_unstable();
    let default = labels.len() == 2 && labels[0] == (0, "LABEL_0");
    (!default && !labels.is_empty()).then(|| labels.into_iter().map(|(_, label)| label.to_owned()).collect())
}

/// Writes how a sentence-transformers folder pools all positions into one vector
/// (conversion/base.py, `_try_set_pooling_type`).
fn pooling(metadata: &mut Metadata, folder: &Path, prefix: &str) -> Result<()> {
    let path = folder.join("modules.json");
    if !path.is_file() {
        return Ok(());
    }
    let text = std::fs::read(&path).at(&path, "read")?;
    let modules: Vec<Map<String, Json>> =
        crate::json::read(&text, || Finding::new(&path, "").expected("a list of modules"))?;
    let text = |module: &Map<String, Json>, name: &str| module.get(name).and_then(Json::as_str).map(str::to_owned);
    let module = modules.iter().find(|module| text(module, "type").is_some_and(|kind| kind.ends_with("Pooling")));
    let Some(module) = module else { return Ok(()) };
    let inner = text(module, "path").unwrap_or_default();
    if Path::new(&inner).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
        return Err(Finding::new(&path, "path").expected("a folder inside this one").found(inner).format());
    }
    let path = folder.join(inner).join("config.json");
    let config = read_json_object(&path)?;
    let on = |name: &str| config.get(name).and_then(Json::as_bool).unwrap_or(false);
    // The numbers of llama.cpp's `enum llama_pooling_type`.
    let kind: u32 = match config.get("pooling_mode").and_then(Json::as_str) {
        _ if on("pooling_mode_mean_tokens") => 1,
        _ if on("pooling_mode_cls_token") => 2,
        _ if on("pooling_mode_lasttoken") => 3,
        Some("mean") => 1,
        Some("cls") => 2,
        Some("lasttoken") => 3,
        _ => {
            let finding = Finding::new(&path, "pooling mode");
            return Err(finding.expected("mean, cls or lasttoken").found("another").unsupported());
        }
    };
    metadata.insert(format!("{prefix}.pooling_type"), kind);
    Ok(())
}
