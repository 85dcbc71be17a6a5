//! Where a model's chat templates are, and the texts of its special tokens.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Finding, IoContext, Result};
use crate::formats::gguf::GgufModel;
use crate::json::{read, read_json_object};
use crate::tokenizer::{DEFAULT_TEMPLATE, chat_templates, templates_by_name, to_hf};

/// The most bytes of a template: the largest published ones have some ten thousand.
const MAX_BYTES: u64 = 16 << 20;

/// Templates by name.
pub(super) struct Templates {
    /// The file, for messages.
    pub(super) path: PathBuf,
    pub(super) texts: BTreeMap<String, String>,
    /// `bos_token`, `eos_token` and the like, as texts.
    pub(super) special_tokens: Map<String, Value>,
}

impl Templates {
    pub(super) fn find(model: &Path, choice: Option<&Path>) -> Result<Self> {
        let (config, mut texts) = match model.is_dir() {
            true => of_folder(model)?,
            false => of_gguf(model)?,
        };
        let special_tokens = special_tokens(&config);
        let Some(choice) = choice else {
            return Ok(Self { path: model.to_owned(), texts, special_tokens });
        };
        if choice.is_file() {
            let text = read_template(choice)?;
            let texts = BTreeMap::from([(DEFAULT_TEMPLATE.to_owned(), text)]);
            return Ok(Self { path: choice.to_owned(), texts, special_tokens });
        }
        let name = choice.to_string_lossy();
        match texts.remove(&*name) {
            Some(text) => {
                let texts = BTreeMap::from([(DEFAULT_TEMPLATE.to_owned(), text)]);
                Ok(Self { path: model.to_owned(), texts, special_tokens })
            }
            None => {
                let known: Vec<&str> = texts.keys().map(String::as_str).collect();
                let expected = match known.is_empty() {
                    true => "a file: the base has no templates".to_owned(),
                    false => format!("a file, or a template of the base: {}", known.join(", ")),
                };
                let finding = Finding::new("", "data.chat_template").expected(expected);
                Err(finding.found(format!("{name:?}")).did_you_mean(&name, &known).mismatch())
            }
        }
    }
}

/// The template in a file, with the line ends that Python gives it.
fn read_template(path: &Path) -> Result<String> {
    let size = std::fs::metadata(path).at(path, "read")?.len();
    if size > MAX_BYTES {
        return Err(Finding::new(path, "").expected("a chat template of at most 16 MiB").found(size).format());
    }
    let text = String::from_utf8(std::fs::read(path).at(path, "read")?)
        .map_err(|e| Finding::new(path, "").expected("UTF-8 text").found(e.utf8_error()).format())?;
    Ok(text.replace("\r\n", "\n").replace('\r', "\n"))
}

/// tokenizer_config.json with what special_tokens_map.json adds, and the templates.
fn of_folder(folder: &Path) -> Result<(Map<String, Value>, BTreeMap<String, String>)> {
    let object = |name: &str| match folder.join(name) {
        path if path.is_file() => read_json_object(&path),
        _ => Ok(Map::new()),
    };
    let mut config = object("special_tokens_map.json")?;
    config.extend(object("tokenizer_config.json")?);
    let texts = chat_templates(folder, &config)?;
    Ok((config, texts))
}

/// The same of a GGUF file.
fn of_gguf(path: &Path) -> Result<(Map<String, Value>, BTreeMap<String, String>)> {
    let files = to_hf(GgufModel::open(path)?.metadata(), &mut Vec::new())?;
    let file = |wanted: &str| files.iter().find(|(name, _)| name == wanted).map(|(_, bytes)| bytes.as_slice());
    let config: Map<String, Value> = match file("tokenizer_config.json") {
        Some(bytes) => read(bytes, || Finding::new(path, "tokenizer").expected("a JSON object"))?,
        None => Map::new(),
    };
    let alone = file("chat_template.jinja").map(|text| Value::String(String::from_utf8_lossy(text).into_owned()));
    let texts = alone.as_ref().or_else(|| config.get("chat_template")).map(templates_by_name).unwrap_or_default();
    Ok((config, texts))
}

/// The text of `bos_token` of a model's folder. Where its files don't say, it is that of the tokenizer's class in
/// transformers; `None` if there is none.
///
/// # Errors
/// Errors of reading the files.
pub(crate) fn bos_text(folder: &Path) -> Result<Option<String>> {
    let (config, _) = of_folder(folder)?;
    if config.contains_key("bos_token") {
        let texts = special_tokens(&config);
        return Ok(texts.get("bos_token").and_then(Value::as_str).map(str::to_owned));
    }
    let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
    Ok(match class.strip_suffix("Fast").unwrap_or(class) {
        "LlamaTokenizer" | "CodeLlamaTokenizer" => Some("<s>".to_owned()),
        _ => None,
    })
}

/// The texts of `bos_token`, `eos_token` and all others.
fn special_tokens(config: &Map<String, Value>) -> Map<String, Value> {
    let tokens = config.iter().filter(|(name, _)| name.ends_with("_token"));
    let text = |value: &Value| match value {
        Value::String(_) => Some(value.clone()),
        other => other.get("content").filter(|content| content.is_string()).cloned(),
    };
    tokens.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect()
}
