//! JSON objects of which every field is consumed, or refused by name.

mod fault;

use std::any::TypeId;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Finding, IoContext, Result, no_lfs_pointer};

pub(crate) use fault::{plain, read, read_value};

/// Reads a file that holds one JSON object.
pub(crate) fn read_json_object(path: &Path) -> Result<Map<String, Value>> {
    // Reading a link to a device may never end, and reading a pipe waits for a writer.
    if !std::fs::metadata(path).at(path, "read")?.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")).at(path, "read");
    }
    let text = std::fs::read(path).at(path, "read")?;
    no_lfs_pointer(path, &text)?;
    read(&text, || Finding::new(path, "").expected("a JSON object"))
}

/// The expectation for a field of type `T`, in words; `None` for types whose own error is better.
fn words_for<T: 'static>() -> Option<&'static str> {
    let words: [(TypeId, &str); 11] = [
        (TypeId::of::<bool>(), "true or false"),
        (TypeId::of::<u32>(), "a whole number from 0 to 4294967295"),
        (TypeId::of::<u64>(), "a whole number that is not negative"),
        (TypeId::of::<usize>(), "a whole number that is not negative"),
        (TypeId::of::<f64>(), "a number"),
        (TypeId::of::<String>(), "a text"),
        (TypeId::of::<Vec<u32>>(), "a list of whole numbers"),
        (TypeId::of::<Vec<u64>>(), "a list of whole numbers"),
        (TypeId::of::<Vec<usize>>(), "a list of whole numbers"),
        (TypeId::of::<Vec<String>>(), "a list of texts"),
        (TypeId::of::<Map<String, Value>>(), "an object"),
    ];
    words.into_iter().find(|(id, _)| *id == TypeId::of::<T>()).map(|(_, words)| words)
}

/// The fields of a JSON object. It remembers which ones were consumed.
pub(crate) struct Fields<'a> {
    path: PathBuf,
    prefix: String,
    map: &'a Map<String, Value>,
    taken: HashSet<&'static str>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(path: &Path, map: &'a Map<String, Value>) -> Self {
        Self { path: path.to_owned(), prefix: String::new(), map, taken: HashSet::new() }
    }

    /// The fields of the object in field `name` of the file at `path`.
    pub(crate) fn inside(path: &Path, name: &str, map: &'a Map<String, Value>) -> Self {
        Self { path: path.to_owned(), prefix: format!("{name}."), map, taken: HashSet::new() }
    }

    /// Consumes `name` and returns its value; null counts as missing.
    fn raw(&mut self, name: &'static str) -> Option<&'a Value> {
        self.taken.insert(name);
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// Consumes `name` and returns its value as a `T`, if it exists.
    pub(crate) fn get<T: DeserializeOwned + 'static>(&mut self, name: &'static str) -> Result<Option<T>> {
        let Some(value) = self.raw(name) else { return Ok(None) };
        match words_for::<T>() {
            Some(words) => serde_json::from_value(value.clone())
                .map_err(|_| self.finding(name).expected(words).found(value).format()),
            None => read_value(value.clone(), || self.finding(name).expected("a value that this field can have")),
        }
        .map(Some)
    }

    /// Consumes `name`, which must exist, and returns its value.
    pub(crate) fn need<T: DeserializeOwned + 'static>(&mut self, name: &'static str) -> Result<T> {
        self.get(name)?.ok_or_else(|| self.finding(name).expected("a value").found("none").format())
    }

    /// Consumes a count, which must exist and be from 1 to 2^31.
    pub(crate) fn count(&mut self, name: &'static str) -> Result<usize> {
        let value: u64 = self.need(name)?;
        self.checked_count(name, value)
    }

    /// Like [`Fields::count`], for things that each take memory: at most 65,536.
    #[cfg(feature = "train")]
    pub(crate) fn small_count(&mut self, name: &'static str) -> Result<usize> {
        match self.count(name)? {
            count @ ..=65_536 => Ok(count),
            count => Err(self.finding(name).expected("at most 65536").found(count).format()),
        }
    }

    /// Like [`Fields::count`], with `default` where the field is missing.
    pub(crate) fn count_or(&mut self, name: &'static str, default: usize) -> Result<usize> {
        match self.get::<u64>(name)? {
            Some(value) => self.checked_count(name, value),
            None => Ok(default),
        }
    }

    fn checked_count(&self, name: &str, value: u64) -> Result<usize> {
        if (1..=1 << 31).contains(&value) {
            return Ok(value as usize);
        }
        Err(self.finding(name).expected("a count from 1 to 2^31").found(value).format())
    }

    /// Consumes `name` and refuses any value that isn't in `allowed`. It may be missing.
    pub(crate) fn only(&mut self, name: &'static str, allowed: &[Value]) -> Result<()> {
        match self.raw(name) {
            Some(value) if !allowed.contains(value) => {
                let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
                Err(self.finding(name).expected(allowed.join(" or ")).found(value).unsupported())
            }
            _ => Ok(()),
        }
    }

    /// Consumes fields that don't affect the weights.
    pub(crate) fn ignore(&mut self, names: &[&'static str]) {
        self.taken.extend(names);
    }

    /// Consumes `name` and returns its value, if that switches something on.
    pub(crate) fn switched_on(&mut self, name: &'static str) -> Option<&'a Value> {
        self.raw(name).filter(|value| !is_off(value))
    }

    /// Refuses fields that weren't consumed. Null, false and empty values switch nothing on, so
    /// they pass.
    pub(crate) fn finish(self) -> Result<()> {
        let left = self.map.iter().find(|(name, value)| !self.taken.contains(name.as_str()) && !is_off(value));
        match left {
            None => Ok(()),
            Some((name, value)) => Err(self
                .finding(name)
                .expected("a field this version knows")
                .found(value)
                .hint("remove it if it is only a note and does not change what the model computes")
                .unsupported()),
        }
    }

    /// What nothing has asked for.
    pub(crate) fn left(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.map.iter().map(|(name, value)| (name.as_str(), value)).filter(|(name, _)| !self.taken.contains(name))
    }

    /// The file that the fields stand in.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A finding about field `name`.
    pub(crate) fn finding(&self, name: &str) -> Finding {
        Finding::new(&self.path, format!("{}{name}", self.prefix))
    }
}

/// Whether a value switches nothing on: null, false, or empty.
pub(crate) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_device_in_place_of_a_file_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("config.json");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        let error = read_json_object(&link).unwrap_err().to_string();
        assert!(error.ends_with("config.json: cannot read: not a regular file"), "{error}");
    }

    #[test]
    fn messages_name_types_in_words() {
        let map = json!({"flag": 1, "names": [1], "size": -1, "map": {"a": 1}});
        let map = map.as_object().unwrap();
        let mut fields = Fields::new(Path::new("config.json"), map);
        let message = |error: Result<()>| error.unwrap_err().to_string();
        let flag = fields.get::<bool>("flag").map(drop);
        assert_eq!(message(flag), "config.json: flag: expected true or false, found 1");
        let names = fields.get::<Vec<String>>("names").map(drop);
        assert_eq!(message(names), "config.json: names: expected a list of texts, found [1]");
        let size = fields.get::<usize>("size").map(drop);
        assert_eq!(message(size), "config.json: size: expected a whole number that is not negative, found -1");
        let other = fields.get::<std::collections::HashMap<String, bool>>("map").map(drop);
        assert_eq!(message(other), "config.json: map.a: expected true or false, found 1");
    }
}
