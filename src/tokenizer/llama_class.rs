//! Where transformers puts the space before a text, for tokenizers of the class `LlamaTokenizer`.
//!
//! Files of the first converters put one before every stretch of text, also before one that begins with a space, and behind
//! every special token. transformers 5 doesn't use that part of the file: its class puts a space where there is none, before
//! every stretch if the tokenizer says `legacy`, and otherwise before the text alone. llama.cpp does as the files say, so a
//! conversion keeps it.
//!
//! Reference: transformers 5.23 `models/llama/tokenization_llama.py`, `models/auto/tokenization_auto.py`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::from_hf::is_wrongly_named;
use crate::error::{Finding, Result};
use crate::json::{read, read_json_object};

const CLASS: &str = "LlamaTokenizer";

/// The tokenizer.json `json` of the model in `folder` as transformers runs it. `is_made` says that it was made of
/// tokenizer.model.
///
/// # Errors
/// [`crate::Error::Format`] for files that aren't JSON.
pub(crate) fn as_in_transformers(folder: &Path, json: Vec<u8>, is_made: bool) -> Result<Vec<u8>> {
    let object = |name: &str| match folder.join(name) {
        path if path.is_file() => read_json_object(&path),
        _ => Ok(Map::new()),
    };
    let (settings, config) = (object("tokenizer_config.json")?, object("config.json")?);
    let text = |from: &Map<String, Value>, key: &str| from.get(key).and_then(Value::as_str).map(str::to_owned);
    let class = text(&settings, "tokenizer_class").or_else(|| text(&config, "tokenizer_class")).unwrap_or_default();
    let is_other = text(&config, "model_type").is_some_and(|kind| is_wrongly_named(&kind));
    if class.strip_suffix("Fast").unwrap_or(&class) != CLASS
        || settings.contains_key("auto_map")
        || is_other && !is_made
    {
        return Ok(json);
    }
    let finding = || Finding::new(folder.join("tokenizer.json"), "").expected("a JSON object");
    let mut tokenizer: Map<String, Value> = read(&json, finding)?;
    if !puts_a_space(&tokenizer) {
        return Ok(json);
    }
    let is_legacy = settings.get("legacy") == Some(&Value::Bool(true));
    let scheme = if is_legacy { "always" } else { "first" };
    tokenizer.insert("normalizer".to_owned(), Value::Null);
    tokenizer.insert(
        "pre_tokenizer".to_owned(),
        json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": false}),
    );
    Ok(Value::Object(tokenizer).to_string().into_bytes())
}

/// Whether a tokenizer is BPE over whole texts in which spaces are U+2581, with one more before the text.
fn puts_a_space(tokenizer: &Map<String, Value>) -> bool {
    let part = |name: &str| tokenizer.get(name).unwrap_or(&Value::Null);
    if part("model")["type"] != "BPE" {
        return false;
    }
    let (normalizer, pre_tokenizer) = (part("normalizer"), part("pre_tokenizer"));
    let prepend = json!({"type": "Prepend", "prepend": "\u{2581}"});
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let is_old = normalizer["normalizers"] == json!([prepend, replace]) && pre_tokenizer.is_null();
    let is_metaspace = pre_tokenizer["type"] == "Metaspace" && pre_tokenizer["split"] == false;
    let has_space = ["always", "first"].into_iter().any(|scheme| pre_tokenizer["prepend_scheme"] == scheme);
    is_old || normalizer.is_null() && is_metaspace && has_space
}
