//! The keys `general.sampling.*`: the sampling settings that a model's makers recommend.
//!
//! Reference: llama.cpp `gguf-py/gguf/metadata.py` (`load_generation_config`, `Metadata.load`).

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use crate::error::{Finding, IoContext, Result};
use crate::formats::gguf::{Metadata, Value};

/// The type of a key's value in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Whole,
    Number,
}

/// Names in generation_config.json, in order of precedence; the key without `general.sampling.`;
/// its type. The rows are in the order of writing.
const KEYS: &[(&[&str], &str, Kind)] = &[
    (&["sequence"], "sequence", Kind::Text),
    (&["top_k"], "top_k", Kind::Whole),
    (&["top_p"], "top_p", Kind::Number),
    (&["min_p"], "min_p", Kind::Number),
    (&["xtc_probability"], "xtc_probability", Kind::Number),
    (&["xtc_threshold"], "xtc_threshold", Kind::Number),
    (&["temperature"], "temp", Kind::Number),
    (&["penalty_last_n"], "penalty_last_n", Kind::Whole),
    (&["penalty_repeat", "repetition_penalty"], "penalty_repeat", Kind::Number),
    (&["mirostat"], "mirostat", Kind::Whole),
    (&["mirostat_tau"], "mirostat_tau", Kind::Number),
    (&["mirostat_eta"], "mirostat_eta", Kind::Number),
];

/// Writes the keys, from the metadata file `file` where it has them, otherwise from the folder's
/// generation_config.json.
pub(super) fn write(
    metadata: &mut Metadata,
    folder: &Path,
    file: Option<(&Path, &Map<String, Json>)>,
    notes: &mut Vec<String>,
) -> Result<()> {
    let path = folder.join("generation_config.json");
    let config = generation_config(&path, notes)?;
    for (names, key, kind) in KEYS {
        let key = format!("general.sampling.{key}");
        let configured = names.iter().find_map(|name| Some((path.as_path(), *name, config.get(*name)?)));
        let overridden = file.and_then(|(path, json)| Some((path, key.as_str(), json.get(&key)?)));
        let Some((path, name, value)) = overridden.or(configured) else { continue };
        let wrong = |expected: &str| Finding::new(path, name).expected(expected).found(value).format();
        match (kind, value) {
            (_, Json::Null) => {}
            (Kind::Text, Json::String(text)) if text.is_empty() => {}
            (Kind::Text, Json::String(text)) => {
                metadata.insert(key.as_str(), text.as_str());
            }
            (Kind::Text, _) => return Err(wrong("a text")),
            (Kind::Whole, value) => {
                let number = value.as_bool().map(i64::from).or_else(|| value.as_i64());
                let number = number.and_then(|v| i32::try_from(v).ok());
                metadata.insert(key.as_str(), number.ok_or_else(|| wrong("a whole number of 32 bits"))?);
            }
            (Kind::Number, value) => {
                let number = value.as_bool().map(|v| f64::from(u8::from(v))).or_else(|| value.as_f64());
                let number = number.map(|v| v as f32).filter(|v| v.is_finite());
                metadata.insert(key.as_str(), number.ok_or_else(|| wrong("a number of 32 bits"))?);
            }
        }
    }
    if let Some((path, json)) = file {
        let known = |name: &str| KEYS.iter().any(|(_, key, _)| *key == name);
        for key in json.keys() {
            if key.strip_prefix("general.sampling.").is_some_and(|name| !known(name)) {
                let finding = Finding::new(path, key.as_str()).expected("a key that metadata files set");
                notes.push(finding.found("another, left out").hint("`override_key` sets any key").to_string());
            }
        }
    }
    Ok(())
}

/// Converts the keys back to fields of a generation_config.json.
pub(crate) fn fields(metadata: &Metadata) -> Map<String, Json> {
    let mut fields = Map::new();
    for (names, key, _) in KEYS {
        let value = match metadata.get(&format!("general.sampling.{key}")) {
            Some(Value::String(text)) => String::from_utf8_lossy(text).into_owned().into(),
            Some(Value::I32(number)) => (*number).into(),
            // The shortest decimal that parses to the same number.
            Some(Value::F32(number)) => number.to_string().parse::<f64>().map_or(Json::Null, Json::from),
            _ => continue,
        };
        // Where a key has two names, the last is transformers' own.
        fields.insert(names.last().copied().unwrap_or_default().to_owned(), value);
    }
    fields
}

/// A missing file, or one that isn't JSON, gives no settings.
fn generation_config(path: &PathBuf, notes: &mut Vec<String>) -> Result<Map<String, Json>> {
    if !path.is_file() {
        return Ok(Map::default());
    }
    let text = std::fs::read(path).at(path, "read")?;
    Ok(serde_json::from_slice(&text).unwrap_or_else(|e| {
        let finding = Finding::new(path, "").expected("a JSON object").found(e);
        notes.push(finding.hint("no sampling settings are taken from it").to_string());
        Map::default()
    }))
}
