//! The origin of a model, and the metadata keys for it.
//!
//! Reference: llama.cpp `gguf-py/gguf/metadata.py` (`Metadata`, `load_metadata_override`,
//! `set_gguf_meta_model`).

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map as JsonMap, Value as Json};

use crate::error::{Finding, Result};
use crate::formats::gguf::{Array, Metadata};
use crate::yaml::{Node, Typed};

/// Keys with a single text, without `general.`, in the order of writing.
const TEXTS: &[&str] = &[
    "name",
    "author",
    "version",
    "organization",
    "finetune",
    "basename",
    "description",
    "quantized_by",
    "size_label",
    "license",
    "license.name",
    "license.link",
    "url",
    "doi",
    "uuid",
    "repo_url",
    "source.url",
    "source.doi",
    "source.uuid",
    "source.repo_url",
];

/// The fields of each base model and data set, in the order of writing.
const SOURCE: &[&str] = &["name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url"];

/// The only text that a metadata file can't set, as in the reference.
const NOT_IN_FILE: &str = "license";

/// The collected facts. Texts may still be any value that a model card can hold.
#[derive(Debug, Default)]
pub(super) struct Authorship {
    texts: HashMap<&'static str, Node>,
    /// `None` where no source has a list; an empty list is written as the count 0.
    pub(super) base_models: Option<Vec<Node>>,
    pub(super) datasets: Option<Vec<Node>>,
    pub(super) tags: Vec<Node>,
    pub(super) languages: Vec<Node>,
}

impl Authorship {
    /// The text at `key`; null counts as none.
    pub(super) fn text(&self, key: &str) -> Option<&Node> {
        self.texts.get(key).filter(|node| **node != Node::Null)
    }

    /// Sets a text.
    pub(super) fn set_text(&mut self, key: &'static str, node: Node) {
        self.texts.insert(key, node);
    }

    /// Sets a text if there is none yet. An existing empty text stays.
    pub(super) fn default_text(&mut self, key: &'static str, node: Node) {
        if self.text(key).is_none() {
            self.set_text(key, node);
        }
    }

    /// Applies a metadata file. A null removes a value. Keys about sampling are handled elsewhere.
    pub(super) fn override_with(
        &mut self,
        path: &Path,
        json: &JsonMap<String, Json>,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        for (full, value) in json {
            let finding = || Finding::new(path, full.as_str());
            let key = full.strip_prefix("general.").unwrap_or_default();
            let text_key = TEXTS.iter().find(|text| **text == key && **text != NOT_IN_FILE);
            match (key, value) {
                _ if key.starts_with("sampling.") => {}
                ("base_models", value) => self.base_models = descriptions(value, finding)?,
                ("datasets", value) => self.datasets = descriptions(value, finding)?,
                ("tags", value) => self.tags = texts(value, finding)?,
                ("languages", value) => self.languages = texts(value, finding)?,
                (_, Json::Null | Json::String(_)) if text_key.is_some() => {
                    self.texts.extend(text_key.map(|key| (*key, value.into())));
                }
                _ if text_key.is_some() => return Err(finding().expected("a text").found(value).format()),
                _ => {
                    let finding = finding().expected("a key that metadata files set").found("another, left out");
                    notes.push(finding.hint("`override_key` sets any key").to_string());
                }
            }
        }
        Ok(())
    }

    /// Writes the keys. Values of a card that have no form in the file get a note.
    pub(super) fn write(&self, metadata: &mut Metadata, card: &Path, notes: &mut Vec<String>) {
        let mut writer = Writer { metadata, card, notes };
        for key in TEXTS {
            let Some(node) = self.text(key) else { continue };
            match node {
                // Several licences become one text.
                Node::List(items) if *key == "license" => {
                    let items: Vec<&str> = items.iter().filter_map(|item| writer.spelled(key, item)).collect();
                    writer.text(key, &Node::Text(items.join(",")));
                }
                node => writer.text(key, node),
            }
        }
        writer.sources("base_model", self.base_models.as_deref());
        writer.sources("dataset", self.datasets.as_deref());
        writer.array("tags", &self.tags);
        writer.array("languages", &self.languages);
    }
}

/// Parses a list of objects, each about one model or data set.
fn descriptions(value: &Json, finding: impl Fn() -> Finding) -> Result<Option<Vec<Node>>> {
    if value.is_null() {
        return Ok(None);
    }
    let fits = |item: &Json| {
        item.as_object().is_some_and(|entry| {
            let known = |key: &String| SOURCE.contains(&key.as_str());
            entry.iter().all(|(key, value)| known(key) && (value.is_string() || value.is_null()))
        })
    };
    let items = value.as_array().filter(|items| items.iter().all(fits));
    let items = items.ok_or_else(|| {
        let expected = format!("a list of objects with texts for some of {}", SOURCE.join(", "));
        finding().expected(expected).found(value).format()
    })?;
    Ok(Some(items.iter().map(Node::from).collect()))
}

/// Parses a list of texts.
fn texts(value: &Json, finding: impl Fn() -> Finding) -> Result<Vec<Node>> {
    match value {
        Json::Null => Ok(Vec::new()),
        Json::Array(items) if items.iter().all(Json::is_string) => Ok(items.iter().map(Node::from).collect()),
        other => Err(finding().expected("a list of texts").found(other).format()),
    }
}

/// The metadata to which keys are written, and the notes.
struct Writer<'a> {
    metadata: &'a mut Metadata,
    card: &'a Path,
    notes: &'a mut Vec<String>,
}

impl<'a> Writer<'a> {
    fn note(&mut self, key: &str, expected: &str, found: &str) {
        self.notes.push(Finding::new(self.card, format!("general.{key}")).expected(expected).found(found).to_string());
    }

    /// The text of a node. A value that isn't text in YAML is taken as it is spelled in the card,
    /// with a note.
    fn spelled<'n>(&mut self, key: &str, node: &'n Node) -> Option<&'n str> {
        match node {
            Node::Text(text) => Some(text),
            Node::Typed(_, text) => {
                self.note(key, "a text", &format!("{text}, written as it stands there"));
                Some(text)
            }
            Node::Null => {
                self.note(key, "a text", "none, left out");
                None
            }
            Node::List(_) | Node::Map(_) => {
                self.note(key, "a text", "a list or mapping, left out");
                None
            }
        }
    }

    /// Writes a text. Empty texts, zero and false are skipped, as in the reference.
    fn text(&mut self, key: &str, node: &Node) {
        if node.is_falsy() {
            return;
        }
        if let Some(text) = self.spelled(key, node).filter(|text| !text.is_empty()) {
            self.metadata.insert(format!("general.{key}"), text);
        }
    }

    fn sources(&mut self, name: &str, entries: Option<&[Node]>) {
        let Some(entries) = entries else { return };
        self.metadata.insert(format!("general.{name}.count"), u32::try_from(entries.len()).unwrap_or(u32::MAX));
        for (i, entry) in entries.iter().enumerate() {
            let Node::Map(map) = entry else {
                self.note(&format!("{name}.{i}"), "a name, an address or keys and values", "something else, left out");
                continue;
            };
            for key in SOURCE {
                if let Some(node) = map.get(key) {
                    self.text(&format!("{name}.{i}.{key}"), node);
                }
            }
        }
    }

    /// Writes an array of texts, or of numbers or booleans if a card has nothing else, as the
    /// reference does.
    fn array(&mut self, key: &str, items: &[Node]) {
        let typed: Option<Vec<Typed>> = items
            .iter()
            .map(|item| match item {
                Node::Typed(typed, _) => Some(*typed),
                _ => None,
            })
            .collect();
        let array = typed.and_then(|typed| alike(&typed)).unwrap_or_else(|| {
            let texts = items.iter().filter_map(|item| self.spelled(key, item));
            Array::texts(texts.collect::<Vec<_>>())
        });
        if !array.is_empty() {
            self.metadata.insert(format!("general.{key}"), array);
        }
    }
}

/// An array of values that all have the same type.
fn alike(values: &[Typed]) -> Option<Array> {
    let bools = values.iter().map(|v| if let Typed::Bool(v) = v { Some(*v) } else { None });
    let ints = values.iter().map(|v| if let Typed::Int(v) = v { i32::try_from(*v).ok() } else { None });
    let floats = values.iter().map(|v| if let Typed::Float(v) = v { Some(*v as f32) } else { None });
    let bools = bools.collect::<Option<Vec<_>>>().map(Array::Bool);
    bools
        .or_else(|| ints.collect::<Option<Vec<_>>>().map(Array::I32))
        .or_else(|| floats.collect::<Option<Vec<_>>>().map(Array::F32))
}
