//! The chat template: where it is found, and its keys.
//!
//! Reference: llama.cpp `gguf-py/gguf/vocab.py` (`SpecialVocab`), `gguf-py/gguf/gguf_writer.py`
//! (`add_chat_template`).

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use serde_json::Value as Json;

use super::files::{Object, read_text};
use crate::error::{IoContext, Result};
use crate::formats::gguf::{Array, Metadata};
use crate::json::read_json_object;
use crate::tokenizer::keys;

/// The chat template: of tokenizer_config.json, else chat_template.jinja, else chat_template.json.
/// A text, or a list of templates with names.
pub(super) fn find(folder: &Path, config: &Object, notes: &mut Vec<String>) -> Result<Option<Json>> {
    let template = match config.get("chat_template") {
        Some(template) => Some(template.clone()),
        None => beside(folder)?,
    };
    let usable = |template: &Json| template.is_string() || template.is_array();
    if template.as_ref().is_some_and(|template| !template.is_null() && !usable(template)) {
        notes.push("the chat template is neither a text nor a list of texts: left out".to_owned());
    }
    Ok(template.filter(usable))
}

/// The name of the template that is used unless another one is asked for.
pub(crate) const DEFAULT_TEMPLATE: &str = "default";

/// The chat templates by name as transformers takes them: of files, else of tokenizer_config.json.
///
/// Reference: transformers `tokenization_utils_base.py` (`_from_pretrained`).
pub(crate) fn chat_templates(folder: &Path, config: &Object) -> Result<BTreeMap<String, String>> {
    let found = beside(folder)?;
    Ok(found.as_ref().or_else(|| config.get("chat_template")).map(templates_by_name).unwrap_or_default())
}

/// Templates by name: a single one is the default. What isn't a text is left out.
pub(crate) fn templates_by_name(found: &Json) -> BTreeMap<String, String> {
    match found {
        Json::String(text) => BTreeMap::from([(DEFAULT_TEMPLATE.to_owned(), text.clone())]),
        Json::Array(list) => {
            let text = |entry: &Json, field: &str| Some(entry.get(field)?.as_str()?.to_owned());
            list.iter().filter_map(|entry| Some((text(entry, "name")?, text(entry, "template")?))).collect()
        }
        _ => BTreeMap::new(),
    }
}

/// The template in a file beside tokenizer_config.json.
fn beside(folder: &Path) -> Result<Option<Json>> {
    let jinja = folder.join("chat_template.jinja");
    if jinja.is_file() {
        let default = read_text(&jinja)?;
        let others = additional(&folder.join("additional_chat_templates"))?;
        if others.is_empty() {
            return Ok(Some(Json::String(default)));
        }
        let named = |(name, template): (String, String)| serde_json::json!({ "name": name, "template": template });
        let all = std::iter::once((DEFAULT_TEMPLATE.to_owned(), default)).chain(others);
        return Ok(Some(all.map(named).collect()));
    }
    let json = folder.join("chat_template.json");
    match json.is_file() {
        true => Ok(read_json_object(&json)?.remove("chat_template")),
        false => Ok(None),
    }
}

/// Further templates with their names, sorted: each is a file.
fn additional(folder: &Path) -> Result<Vec<(String, String)>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut templates = Vec::new();
    for entry in fs::read_dir(folder).at(folder, "read")? {
        let path = entry.at(folder, "read")?.path();
        if path.extension().is_some_and(|extension| extension == "jinja") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            templates.push((name, read_text(&path)?));
        }
    }
    templates.sort();
    Ok(templates)
}

/// Writes one template, or several: the one called default, and the others with their names.
pub(super) fn write(metadata: &mut Metadata, template: &Json) {
    let mut put = |key: String, text: &str| {
        if !text.is_empty() {
            metadata.insert(key, text);
        }
    };
    let key = keys::CHAT_TEMPLATE;
    let choices = match template {
        Json::String(text) => return put(key.to_owned(), text),
        other => other.as_array().map_or(&[][..], Vec::as_slice),
    };
    let mut default = None;
    let mut names: Vec<String> = Vec::new();
    let mut seen = HashSet::new();
    for choice in choices {
        let text = |field: &str| choice.get(field).and_then(Json::as_str);
        let name: String = text("name").unwrap_or_default().chars().map(plain).collect();
        match (name.as_str(), text("template")) {
            ("", _) | (_, None) => {}
            ("default", Some(template)) => default = Some(template),
            (_, Some(template)) => {
                put(format!("{key}.{name}"), template);
                if seen.insert(name.clone()) {
                    names.push(name);
                }
            }
        }
    }
    if !names.is_empty() {
        metadata.insert(keys::CHAT_TEMPLATES, Array::texts(names));
    }
    if let Some(default) = default.filter(|text| !text.is_empty()) {
        metadata.insert(key, default);
    }
}

/// A character of a template's name, which becomes part of a key: letters and digits only.
fn plain(c: char) -> char {
    if c.is_ascii_alphanumeric() { c } else { '_' }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(config: Json) -> (Option<Json>, Vec<String>) {
        let mut notes = Vec::new();
        let folder = tempfile::tempdir().unwrap();
        (find(folder.path(), config.as_object().unwrap(), &mut notes).unwrap(), notes)
    }

    #[test]
    fn the_config_goes_before_files_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let find = |config: Json| find(folder.path(), config.as_object().unwrap(), &mut Vec::new()).unwrap();
        fs::write(folder.path().join("chat_template.json"), r#"{"chat_template": "of json"}"#).unwrap();
        assert_eq!(find(json!({})), Some(json!("of json")));
        fs::write(folder.path().join("chat_template.jinja"), "of\r\njinja").unwrap();
        assert_eq!(find(json!({})), Some(json!("of\njinja")));
        assert_eq!(find(json!({"chat_template": "of config"})), Some(json!("of config")));
        assert_eq!(find(json!({"chat_template": null})), None);
        fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
        fs::write(folder.path().join("additional_chat_templates/rag.jinja"), "r").unwrap();
        let both = json!([{"name": "default", "template": "of\njinja"}, {"name": "rag", "template": "r"}]);
        assert_eq!(find(json!({})), Some(both));
    }

    #[test]
    fn templates_of_other_types_are_left_out_with_a_note() {
        assert_eq!(found(json!({"chat_template": {"a": "b"}})).0, None);
        assert_eq!(
            found(json!({"chat_template": 1})).1,
            ["the chat template is neither a text nor a list of texts: left out"]
        );
        assert!(found(json!({"chat_template": null})).1.is_empty());
    }

    #[test]
    fn named_templates_get_keys_of_their_own() {
        let mut metadata = Metadata::new("m");
        let template = json!([
            {"name": "default", "template": "d"}, {"name": "tool use", "template": "t"},
            {"name": "", "template": "nameless"}, {"name": "empty"}
        ]);
        write(&mut metadata, &template);
        let keys: Vec<&str> = metadata.iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["tokenizer.chat_template.tool_use", "tokenizer.chat_templates", "tokenizer.chat_template"]);
        assert_eq!(metadata.strings("tokenizer.chat_templates").unwrap(), [b"tool_use"]);
    }
}
