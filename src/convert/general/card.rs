//! The model card: the YAML front matter of README.md, and what it says about the model.
//!
//! Reference: llama.cpp `gguf-py/gguf/metadata.py` (`load_model_card`, `apply_metadata_heuristic`).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::authorship::Authorship;
use super::model_id::{self, ModelId};
use crate::error::{Finding, IoContext, Result};
use crate::yaml::{self, Map, Node};

/// The part of README.md that is read. The largest cards contain benchmark tables of 1 MB.
pub(super) const MAX_BYTES: u64 = 8 << 20;

/// The card's fields for each text, in order of precedence.
const TEXTS: &[(&str, &str)] = &[
    ("name", "name"),
    ("author", "author"),
    ("version", "version"),
    ("organization", "organization"),
    ("description", "description"),
    ("finetune", "finetune"),
    ("basename", "basename"),
    ("size_label", "size_label"),
    ("source.url", "url"),
    ("source.doi", "doi"),
    ("source.uuid", "uuid"),
    ("source.repo_url", "repo_url"),
    ("name", "model_name"),
    ("author", "model_author"),
    ("version", "model_version"),
    ("organization", "model_organization"),
    ("description", "model_description"),
    ("finetune", "model_finetune"),
    ("basename", "model_basename"),
    ("size_label", "model_size_label"),
    ("source.url", "model_url"),
    ("source.doi", "model_doi"),
    ("source.uuid", "model_uuid"),
    ("source.repo_url", "model_repo_url"),
    ("author", "model_creator"),
    ("basename", "model_type"),
    ("license", "license"),
    ("license.name", "license_name"),
    ("license.link", "license_link"),
];

/// The front matter of the folder's README.md. A card that can't be read doesn't stop the
/// conversion; it gets a note.
pub(super) fn load(folder: &Path, notes: &mut Vec<String>) -> Result<Map> {
    let path = folder.join("README.md");
    if !path.is_file() {
        return Ok(Map::default());
    }
    let mut bytes = Vec::new();
    File::open(&path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)).at(&path, "read")?;
    let parsed = match front_matter(&bytes) {
        Ok(None) => return Ok(Map::default()),
        Ok(Some(text)) => yaml::parse(&text, 2),
        Err(reason) => Err(reason),
    };
    let reason = match parsed {
        Ok(Node::Map(map)) => return Ok(map),
        Ok(Node::Null) => return Ok(Map::default()),
        Ok(_) => "no keys and values".to_owned(),
        Err(reason) => reason,
    };
    let finding = Finding::new(&path, "model card").expected("YAML between two lines ---").found(reason);
    notes.push(finding.hint("nothing is taken from it").to_string());
    Ok(Map::default())
}

/// The lines between `---` and `---`, with two common mistakes repaired; `None` if the file doesn't
/// start with `---`.
fn front_matter(bytes: &[u8]) -> Result<Option<String>, String> {
    let (text, broken) = match std::str::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(e) => {
            let valid = bytes.get(..e.valid_up_to()).and_then(|valid| std::str::from_utf8(valid).ok());
            // The limit may cut through a character.
            (valid.unwrap_or_default(), e.error_len().map(|_| "bytes that are not UTF-8"))
        }
    };
    let text = text.replace("\r\n", "\n");
    let is_break = |c: char| matches!(c, '\n' | '\r' | '\u{b}'..='\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}'..='\u{2029}');
    let mut lines = text.split(is_break);
    if lines.next() != Some("---") {
        return Ok(None);
    }
    let mut yaml = String::new();
    let mut closed = false;
    for line in lines {
        if line == "---" {
            closed = true;
            break;
        }
        yaml.push_str(line);
        yaml.push('\n');
    }
    if !closed && let Some(broken) = broken {
        return Err(broken.to_owned());
    }
    if !closed && bytes.len() as u64 >= MAX_BYTES {
        return Err(format!("more than {MAX_BYTES} bytes"));
    }
    // The language code of Norway would be read as a boolean, and tabs aren't allowed as
    // indentation.
    Ok(Some(yaml.replace("- no\n", "- \"no\"\n").replace('\t', "  ")))
}

/// Takes over what the card says about the model and its sources. `total` is the number of elements
/// of all tensors.
pub(super) fn apply(card: &Map, total: i128, authorship: &mut Authorship) {
    for (key, field) in TEXTS {
        if let Some(node) = card.get(field) {
            authorship.default_text(key, node.clone());
        }
    }
    authorship.base_models = sources(card, &["base_model", "base_models", "base_model_sources"], total);
    authorship.datasets = sources(card, &["datasets", "dataset", "dataset_sources"], total);
    authorship.tags = collected(card, &["tags", "pipeline_tag"]);
    authorship.languages = collected(card, &["languages", "language"]);
}

/// All texts of several fields. Each field holds a list or one text.
fn collected(card: &Map, fields: &[&str]) -> Vec<Node> {
    let mut all = Vec::new();
    for field in fields {
        match card.get(field) {
            Some(Node::List(items)) => all.extend(items.iter().cloned()),
            Some(text @ Node::Text(_)) => all.push(text.clone()),
            _ => {}
        }
    }
    all
}

/// Models or data sets in the first of `fields` that exists. Each is a name on the hub, an address,
/// or an object with fields.
fn sources(card: &Map, fields: &[&str], total: i128) -> Option<Vec<Node>> {
    let value = fields.iter().find_map(|field| card.get(field))?;
    let entries = match value {
        Node::List(items) => items.as_slice(),
        text @ Node::Text(_) => std::slice::from_ref(text),
        _ => &[],
    };
    let described = entries.iter().map(|entry| match entry {
        Node::Text(text) => Node::Map(described(text, total)),
        other => other.clone(),
    });
    Some(described.collect())
}

/// What a model's name or address says about it.
fn described(text: &str, total: i128) -> Map {
    let entry = |key: &str, value: String| (key.to_owned(), Node::Text(value));
    let mut entries = Vec::new();
    let is_address = ["http://", "https://", "ssh://"].iter().any(|scheme| text.starts_with(scheme));
    if is_address {
        entries.push(entry("repo_url", text.to_owned()));
    }
    let name = if is_address { hub_name(text) } else { Some(text) };
    let Some(ModelId { name, organization, version, .. }) = name.map(|name| model_id::parse(name, total)) else {
        return entries.into_iter().collect();
    };
    entries.extend(name.as_deref().map(|name| entry("name", model_id::title(name))));
    entries.extend(organization.as_deref().map(|name| entry("organization", model_id::title(name))));
    entries.extend(version.map(|version| entry("version", version)));
    if let (false, Some(organization), Some(name)) = (is_address, organization, name) {
        entries.push(entry("repo_url", format!("https://huggingface.co/{organization}/{name}")));
    }
    entries.into_iter().collect()
}

/// The `org/name` of an address on the hub that ends there.
fn hub_name(address: &str) -> Option<&str> {
    let rest = address.strip_prefix("http://").or(address.strip_prefix("https://"))?;
    let name = rest.strip_prefix("huggingface.co/")?;
    let (organization, model) = name.split_once('/')?;
    (!organization.is_empty() && !model.is_empty() && !model.contains('/')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn front_matter_ends_at_the_second_line_of_dashes() {
        let cases: [(&[u8], Option<&str>); 8] = [
            (b"---\na: b\n---\n# c\n", Some("a: b\n")),
            (b"---\r\na: b\r\n---\r\n", Some("a: b\n")),
            (b"---\na:\n- no\n\t- x\n", Some("a:\n- \"no\"\n  - x\n\n")),
            (b"--- \na: b\n---\n", None),
            (b"\xef\xbb\xbf---\na: b\n---\n", None),
            (b"# Title\n---\n", None),
            (b"", None),
            (b"---\na: b\n---\nbroken \xff\n", Some("a: b\n")),
        ];
        for (bytes, expected) in cases {
            assert_eq!(front_matter(bytes).unwrap().as_deref(), expected, "{}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(front_matter(b"---\na: \xff\n---\n").unwrap_err(), "bytes that are not UTF-8");
    }

    #[test]
    fn addresses_of_the_hub_name_a_model() {
        let cases = [
            ("https://huggingface.co/org/name", Some("org/name")),
            ("http://huggingface.co/org/name", Some("org/name")),
            ("https://huggingface.co/org/name/", None),
            ("https://huggingface.co/org/name/tree/main", None),
            ("https://huggingface.co/datasets/org/name", None),
            ("https://huggingface.co/name", None),
            ("ssh://huggingface.co/org/name", None),
            ("https://example.com/org/name", None),
        ];
        for (address, expected) in cases {
            assert_eq!(hub_name(address), expected, "{address}");
        }
    }
}
