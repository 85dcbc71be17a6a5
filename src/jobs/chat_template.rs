//! The chat template that a mergekit configuration asks for.
//!
//! Reference: mergekit 0.1.5 `merge.py` (`_set_chat_template`).

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Finding, Result};
use crate::json::read_json_object;
use crate::output::{Output, json_text};
use crate::tokenizer::{DEFAULT_TEMPLATE, chat_templates};

/// Templates by mergekit's names.
const NAMED: &[(&str, &str)] = &[
    ("alpaca", include_str!("chat_template/alpaca.jinja")),
    ("chatml", include_str!("chat_template/chatml.jinja")),
    ("exaone", include_str!("chat_template/exaone.jinja")),
    ("llama3", include_str!("chat_template/llama3.jinja")),
    ("mistral", include_str!("chat_template/mistral.jinja")),
];

const FILE: &str = "chat_template.jinja";

/// The template for `choice`: `auto`, a name, or the template itself. `folders` are those of the models; `auto` takes the
/// template that most of them have. `None` if none of them has one.
///
/// # Errors
/// [`crate::Error::Format`] for what is neither a name nor a template; errors of reading the models' files.
pub(super) fn template(config: &Path, choice: &str, folders: &[PathBuf]) -> Result<Option<String>> {
    if choice == "auto" {
        return most_common(folders);
    }
    if let Some((_, text)) = NAMED.iter().find(|(name, _)| *name == choice) {
        return Ok(Some((*text).to_owned()));
    }
    if choice.len() >= 20 && choice.contains('{') {
        return Ok(Some(choice.to_owned()));
    }
    let names: Vec<&str> = NAMED.iter().map(|(name, _)| *name).collect();
    let expected = format!("auto, a template, or one of {}", names.join(", "));
    let finding = Finding::new(config, "chat_template").expected(expected).found(format_args!("{choice:?}"));
    Err(finding.did_you_mean(choice, &names).format())
}

/// The template that most of the folders have; of several, the first.
fn most_common(folders: &[PathBuf]) -> Result<Option<String>> {
    let mut found: Vec<(String, usize)> = Vec::new();
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        let Some(text) = of_folder(folder)? else { continue };
        let text = text.trim().to_owned();
        match found.iter_mut().find(|(known, _)| *known == text) {
            Some((_, count)) => *count += 1,
            None if text.is_empty() => {}
            None => found.push((text, 1)),
        }
    }
    let most = found.iter().map(|(_, count)| *count).max();
    Ok(found.into_iter().find(|(_, count)| Some(*count) == most).map(|(text, _)| text))
}

/// The default template in a folder's tokenizer files.
fn of_folder(folder: &Path) -> Result<Option<String>> {
    let path = folder.join("tokenizer_config.json");
    let config = if path.is_file() { read_json_object(&path)? } else { Map::new() };
    Ok(chat_templates(folder, &config)?.remove(DEFAULT_TEMPLATE))
}

/// Gives the output this template, in the place of any other.
pub(super) fn put(output: &mut Output, template: &str) {
    if let Some(metadata) = output.metadata_mut() {
        metadata.insert("tokenizer.chat_template", template.to_owned());
        return;
    }
    let files = &mut output.sidecars.files;
    files.retain(|name, _| name != "chat_template.json" && !name.starts_with("additional_chat_templates/"));
    if let Some(bytes) = files.get("tokenizer_config.json")
        && let Ok(mut config) = serde_json::from_slice::<Map<String, Value>>(bytes)
        && config.remove("chat_template").is_some()
    {
        files.insert("tokenizer_config.json".to_owned(), (json_text(&config) + "\n").into_bytes());
    }
    files.insert(FILE.to_owned(), template.as_bytes().to_vec());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_named_given_or_found() {
        let file = Path::new("c.yml");
        assert!(template(file, "chatml", &[]).unwrap().unwrap().contains("<|im_start|>"));
        let text = "{{ messages[0]['content'] }}";
        assert_eq!(template(file, text, &[]).unwrap().as_deref(), Some(text));
        let wrong = template(file, "chatmll", &[]).unwrap_err().to_string();
        assert!(wrong.starts_with("c.yml: chat_template: expected auto, a template, or one of alpaca, "), "{wrong}");
        assert!(wrong.ends_with("did you mean chatml?"), "{wrong}");
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str, text: &str| {
            let folder = dir.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join(FILE), text).unwrap();
            folder
        };
        let folders = [folder("a", "one"), folder("b", "two"), folder("c", "two\n")];
        assert_eq!(template(file, "auto", &folders).unwrap().as_deref(), Some("two"));
        assert_eq!(template(file, "auto", &[]).unwrap(), None);
    }
}
