//! The fields of a row, of which each is used, or named.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::place::Place;
use super::read::{Columns, unique};
use crate::chat::python_json;
use crate::error::{Finding, Result};
use crate::train::DataSettings;

/// The fields of a row. It remembers which were used.
pub(super) struct RowFields<'a> {
    settings: &'a DataSettings,
    place: &'a Place,
    columns: Columns,
    taken: HashSet<String>,
}

impl<'a> RowFields<'a> {
    /// The columns of a row, renamed as the settings say.
    ///
    /// # Errors
    /// [`crate::Error::Format`] where a column gets a name that another has.
    pub(super) fn new(settings: &'a DataSettings, place: &'a Place, mut columns: Columns) -> Result<Self> {
        for (name, column) in settings.fields.iter().filter(|(name, column)| name != column) {
            // `shift_remove` keeps the order of the others.
            let Some(value) = columns.shift_remove(column) else { continue };
            if columns.get(name).is_some_and(|other| !other.is_null()) && !settings.ignore_fields.contains(name) {
                let found = format!("both {column:?}, which data.fields calls so, and {name:?}");
                return Err(place.field(name).expected("one column").found(found).format());
            }
            columns.insert(name.clone(), value);
        }
        Ok(Self { settings, place, columns, taken: HashSet::new() })
    }

    pub(super) fn place(&self) -> &'a Place {
        self.place
    }

    /// A finding about a field, by its column's name.
    pub(super) fn finding(&self, name: &str) -> Finding {
        self.place.field(self.settings.fields.get(name).map_or(name, String::as_str))
    }

    /// Whether the row has the field, null or not.
    pub(super) fn has(&self, name: &str) -> bool {
        self.columns.contains_key(name)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.columns.get(name)
    }

    /// The names of the fields, for a message.
    pub(super) fn names(&self) -> String {
        match self.columns.is_empty() {
            true => "none".to_owned(),
            false => self.columns.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        }
    }

    /// Uses the one field of several with the same meaning; null counts as missing.
    fn take(&mut self, names: &[&str]) -> Result<Option<(String, Value)>> {
        self.taken.extend(names.iter().map(|name| (*name).to_owned()));
        let mut found =
            names.iter().filter_map(|name| Some((*name, self.columns.get(*name).filter(|v| !v.is_null())?)));
        let Some((name, value)) = found.next() else { return Ok(None) };
        if let Some((other, _)) = found.next() {
            let found = format!("both {name:?} and {other:?}");
            return Err(self.finding(name).expected("one field of this meaning").found(found).format());
        }
        Ok(Some((name.to_owned(), value.clone())))
    }

    /// Uses a text.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for a value that is no text, unless the settings have it written as JSON.
    pub(super) fn text(&mut self, names: &[&str]) -> Result<Option<String>> {
        let Some((name, value)) = self.take(names)? else { return Ok(None) };
        text_of(&value, self.settings, || self.finding(&name)).map(Some)
    }

    /// Uses a text that must be there.
    pub(super) fn need_text(&mut self, names: &[&str]) -> Result<String> {
        match self.text(names)? {
            Some(text) => Ok(text),
            None => Err(self.missing(names, "a text")),
        }
    }

    /// Uses a list, or a text that is the JSON of one.
    pub(super) fn list(&mut self, names: &[&str]) -> Result<Option<Vec<Value>>> {
        let Some((name, value)) = self.take(names)? else { return Ok(None) };
        match parsed(value) {
            Value::Array(list) => Ok(Some(list)),
            other => Err(self.finding(&name).expected("a list").found(other).format()),
        }
    }

    /// Uses a list that must be there.
    pub(super) fn need_list(&mut self, names: &[&str]) -> Result<Vec<Value>> {
        match self.list(names)? {
            Some(list) => Ok(list),
            None => Err(self.missing(names, "a list")),
        }
    }

    fn missing(&self, names: &[&str], expected: &str) -> crate::Error {
        let name = names.iter().find(|name| self.has(name)).or(names.first()).copied().unwrap_or_default();
        let found = if self.has(name) { "null" } else { "none" };
        self.finding(name).expected(expected).found(found).format()
    }

    /// Uses an object, or a text that is the JSON of one.
    pub(super) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>> {
        let Some((name, value)) = self.take(&[name])? else { return Ok(None) };
        match parsed(value) {
            Value::Object(fields) => Ok(Some(fields)),
            other => Err(self.finding(&name).expected("an object").found(other).format()),
        }
    }

    /// Uses a list of pairs of texts.
    pub(super) fn pairs(&mut self, name: &str) -> Result<Vec<(String, String)>> {
        let Some(list) = self.list(&[name])? else { return Ok(Vec::new()) };
        let pair = |value: &Value| match value.as_array().map(Vec::as_slice) {
            Some([Value::String(question), Value::String(answer)]) => Ok((question.clone(), answer.clone())),
            _ => Err(self.finding(name).expected("pairs of a question and its answer").found(value).format()),
        };
        list.iter().map(pair).collect()
    }

    /// Refuses fields that weren't used.
    pub(super) fn finish(self) -> Result<()> {
        let is_known = |name: &String| self.taken.contains(name) || self.settings.ignore_fields.contains(name);
        let unknown: Vec<&String> = self.columns.keys().filter(|name| !is_known(name)).collect();
        let Some(first) = unknown.first() else { return Ok(()) };
        let found = match unknown.len() {
            1 => format!("unknown field `{first}`"),
            _ => format!(
                "unknown fields {}",
                unknown.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
            ),
        };
        Err(self.place.finding().found(found).hint("data.fields gives it a meaning, data.ignore_fields none").format())
    }
}

/// A text, or another value as JSON where the settings say so. An error completes `finding`.
pub(super) fn text_of(value: &Value, settings: &DataSettings, finding: impl Fn() -> Finding) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Null => Err(finding().expected("a text").found("null").format()),
        other if settings.json_values => Ok(python_json(other)),
        other => Err(finding().expected("a text").found(other).hint("data.json_values writes values as JSON").format()),
    }
}

/// The value of a text that is the JSON of a list or an object; other values as they are.
pub(super) fn parsed(value: Value) -> Value {
    let inner = value.as_str().and_then(unique).filter(|inner| inner.is_array() || inner.is_object());
    inner.unwrap_or(value)
}
