//! Metadata: keys and typed values in the file's order.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::{Array, Value};
use crate::error::{Finding, Result};

/// Keys and values in order, and the file that messages name.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    file: PathBuf,
    entries: Vec<(String, Value)>,
    places: HashMap<String, usize>,
}

/// Equality of keys, values and order; the file doesn't matter.
impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl Metadata {
    /// Makes empty metadata for `file`.
    pub fn new(file: impl AsRef<Path>) -> Self {
        Self { file: file.as_ref().to_owned(), ..Self::default() }
    }

    /// The file that messages name.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Iterates over keys and values in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Sets `key`: at its old position, or at the end if it is new. Returns the old value.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        if let Some(&place) = self.places.get(&key) {
            return Some(std::mem::replace(&mut self.entries[place].1, value));
        }
        self.places.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        None
    }

    /// Removes `key` and returns its value. The keys after it move up.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let place = self.places.remove(key)?;
        self.places.values_mut().filter(|p| **p > place).for_each(|p| *p -= 1);
        Some(self.entries.remove(place).1)
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.places.get(key).map(|&place| &self.entries[place].1)
    }

    /// The value of `key`, which must exist.
    ///
    /// # Errors
    /// [`crate::Error::Format`] naming file and key, as all getters below.
    pub fn need(&self, key: &str) -> Result<&Value> {
        self.get(key).ok_or_else(|| self.finding(key).expected("a value").found("none").format())
    }

    /// The text at `key`.
    ///
    /// # Errors
    /// As [`Metadata::need`]; also for bytes that aren't UTF-8.
    pub fn text(&self, key: &str) -> Result<&str> {
        let value = self.need(key)?;
        value.as_text().ok_or_else(|| self.wrong(key, "a UTF-8 string", value))
    }

    /// The whole number at `key`, of any integer type.
    ///
    /// # Errors
    /// As [`Metadata::need`]; also for numbers below zero or above 2^32 - 1.
    pub fn u32(&self, key: &str) -> Result<u32> {
        let value = self.need(key)?;
        let number = value.as_unsigned().and_then(|v| u32::try_from(v).ok());
        number.ok_or_else(|| self.wrong(key, "a whole number below 2^32", value))
    }

    /// The number at `key`, of a floating-point type.
    ///
    /// # Errors
    /// As [`Metadata::need`].
    pub fn f64(&self, key: &str) -> Result<f64> {
        match self.need(key)? {
            Value::F32(v) => Ok(f64::from(*v)),
            Value::F64(v) => Ok(*v),
            other => Err(self.wrong(key, "a float32 or float64", other)),
        }
    }

    /// The bool at `key`.
    ///
    /// # Errors
    /// As [`Metadata::need`].
    pub fn bool(&self, key: &str) -> Result<bool> {
        match self.need(key)? {
            Value::Bool(v) => Ok(*v),
            other => Err(self.wrong(key, "a bool", other)),
        }
    }

    /// The array at `key`.
    ///
    /// # Errors
    /// As [`Metadata::need`].
    pub fn array(&self, key: &str) -> Result<&Array> {
        match self.need(key)? {
            Value::Array(v) => Ok(v),
            other => Err(self.wrong(key, "an array", other)),
        }
    }

    /// The array of byte strings at `key`.
    ///
    /// # Errors
    /// As [`Metadata::need`].
    pub fn strings(&self, key: &str) -> Result<&[Vec<u8>]> {
        match self.need(key)? {
            Value::Array(Array::String(v)) => Ok(v),
            other => Err(self.wrong(key, "an array of strings", other)),
        }
    }

    /// A finding about `key`.
    pub fn finding(&self, key: &str) -> Finding {
        Finding::new(&self.file, format!("key {key:?}"))
    }

    fn wrong(&self, key: &str, expected: impl fmt::Display, found: &Value) -> crate::Error {
        self.finding(key).expected(expected).found(found).format()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacing_keeps_the_place() {
        let mut metadata = Metadata::new("m.gguf");
        metadata.insert("a", 1u32);
        metadata.insert("b", "two");
        assert_eq!(metadata.insert("a", 3u8), Some(Value::U32(1)));
        let keys: Vec<&str> = metadata.iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["a", "b"]);
        assert_eq!(metadata.u32("a").unwrap(), 3);
    }

    #[test]
    fn removing_moves_the_others_up() {
        let mut metadata = Metadata::new("m.gguf");
        for (i, key) in ["a", "b", "c"].into_iter().enumerate() {
            metadata.insert(key, i as u32);
        }
        assert_eq!(metadata.remove("b"), Some(Value::U32(1)));
        assert_eq!(metadata.remove("b"), None);
        assert_eq!((metadata.u32("a").unwrap(), metadata.u32("c").unwrap()), (0, 2));
        metadata.insert("c", 7u32);
        assert_eq!(metadata.iter().map(|(key, _)| key).collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(metadata.u32("c").unwrap(), 7);
    }

    #[test]
    fn getters_name_file_and_key() {
        let mut metadata = Metadata::new("m.gguf");
        metadata.insert("n", -1i32);
        metadata.insert("raw", vec![0xffu8]);
        let cases = [
            (metadata.u32("n").map(|_| ()), "m.gguf: key \"n\": expected a whole number below 2^32, found int32 -1"),
            (metadata.bool("n").map(|_| ()), "expected a bool, found int32 -1"),
            (metadata.f64("n").map(|_| ()), "expected a float32 or float64"),
            (metadata.array("n").map(|_| ()), "expected an array"),
            (metadata.strings("n").map(|_| ()), "expected an array of strings"),
            (metadata.text("raw").map(|_| ()), "expected a UTF-8 string"),
            (metadata.text("gone").map(|_| ()), "m.gguf: key \"gone\": expected a value, found none"),
        ];
        for (result, expected) in cases {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
