//! Models as mergekit's configurations name them.

use std::fmt;
use std::path::Path;

use crate::error::Result;
use crate::yaml::{Node, Value};

/// A model: a path or a name on the hub, perhaps with an adapter that is merged into it first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelName {
    /// The model's folder or file, or `org/name`.
    pub path: String,
    /// A revision on the hub.
    pub revision: Option<String>,
    /// The adapter, and its revision on the hub.
    pub lora: Option<(String, Option<String>)>,
    /// A class that is taken in place of the one in its config.json.
    pub architecture: Option<String>,
}

/// What a name has to be.
const WHAT: &str = "a model: a path or org/name, with +adapter if it has one";

impl ModelName {
    /// Reads the value of a key.
    pub(super) fn read(value: &Value) -> Result<Self> {
        let Node::Map(_) = value.node else {
            return Self::parse(value.text(WHAT)?).ok_or_else(|| value.wrong(WHAT));
        };
        let mut keys = value.keys()?;
        let (path, revision) = path_of(&keys.require("model", "a model's path or name")?)?;
        let lora = keys.take("lora").map(|value| path_of(&value)).transpose()?;
        let class = keys.take("override_architecture").map(|value| value.text("a class")).transpose()?;
        keys.finish()?;
        Ok(Self { path, revision, lora, architecture: class.map(str::to_owned) })
    }

    /// The model called `text`: `MODEL`, `MODEL@REVISION` or `MODEL+ADAPTER`.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |path: &str| Self { path: path.to_owned(), revision: None, lora: None, architecture: None };
        let mut parts = text.split('+');
        let (model, lora, more) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        // Folders may have these characters in their names.
        if Path::new(text).exists() && (more.is_some() || !Path::new(model).exists()) {
            return Some(plain(text));
        }
        if more.is_some() {
            return None;
        }
        let (path, revision) = with_revision(model)?;
        let lora = lora.map(|lora| with_revision(lora).ok_or(())).transpose().ok()?;
        Some(Self { revision, lora, ..plain(&path) })
    }

    /// The model without its adapter.
    pub fn without_lora(&self) -> Self {
        Self { lora: None, ..self.clone() }
    }

    /// The name as `path[@revision]` of the model itself.
    pub fn model(&self) -> String {
        joined(&self.path, self.revision.as_deref())
    }

    /// The same of the adapter.
    pub fn adapter(&self) -> Option<String> {
        self.lora.as_ref().map(|(path, revision)| joined(path, revision.as_deref()))
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.model())?;
        match self.adapter() {
            Some(adapter) => write!(f, "+{adapter}"),
            None => Ok(()),
        }
    }
}

fn joined(path: &str, revision: Option<&str>) -> String {
    revision.map_or_else(|| path.to_owned(), |revision| format!("{path}@{revision}"))
}

/// `path` or `path@revision`; `None` for anything else.
fn with_revision(text: &str) -> Option<(String, Option<String>)> {
    if text.is_empty() {
        return None;
    }
    if Path::new(text).exists() {
        return Some((text.to_owned(), None));
    }
    match text.split('@').collect::<Vec<_>>().as_slice() {
        [path] => Some(((*path).to_owned(), None)),
        [path, revision] if !path.is_empty() && !revision.is_empty() => {
            Some(((*path).to_owned(), Some((*revision).to_owned())))
        }
        _ => None,
    }
}

/// A path, as text or with keys of its own.
fn path_of(value: &Value) -> Result<(String, Option<String>)> {
    if let Node::Map(_) = value.node {
        let mut keys = value.keys()?;
        let path = keys.require("path", "a path or a name")?.text("a path or a name")?.to_owned();
        let revision = keys.take("revision").map(|value| value.text("a revision")).transpose()?;
        keys.finish()?;
        return Ok((path, revision.map(str::to_owned)));
    }
    with_revision(value.text("a path or a name")?).ok_or_else(|| value.wrong("a path or a name, with @revision"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_models_revisions_and_adapters() {
        let shown = |text: &str| ModelName::parse(text).map(|name| name.to_string());
        let name = ModelName::parse("org/model@v1+org/lora@main").unwrap();
        assert_eq!((name.path.as_str(), name.revision.as_deref()), ("org/model", Some("v1")));
        assert_eq!(name.lora, Some(("org/lora".to_owned(), Some("main".to_owned()))));
        assert_eq!(name.to_string(), "org/model@v1+org/lora@main");
        for wrong in ["a+b+c", "a@b@c", "", "a+", "a@"] {
            assert_eq!(shown(wrong), None, "{wrong}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v1+v2+v3");
        std::fs::create_dir(&path).unwrap();
        assert_eq!(ModelName::parse(path.to_str().unwrap()).unwrap().lora, None);
    }
}
