//! Instructions with names, which rows refer to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::read::object;
use crate::error::{Finding, IoContext, Result};

/// The instructions of a file, by name.
pub(super) struct NamedInstructions {
    path: PathBuf,
    by_name: BTreeMap<String, String>,
}

impl NamedInstructions {
    /// Reads a JSON object of texts, or lines of a name, a tab and an instruction.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for a line without a tab, an empty instruction, and a name that stands twice.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).at(path, "read")?;
        let entries: Vec<(String, String)> = match path.extension().is_some_and(|extension| extension == "json") {
            true => {
                let text = |(name, value): (String, Value)| match value {
                    Value::String(text) => Ok((name, text)),
                    other => Err(Finding::new(path, format!("{name:?}")).expected("a text").found(other).format()),
                };
                object(&bytes, || Finding::new(path, ""))?.into_iter().map(text).collect::<Result<_>>()?
            }
            false => lines(path, &bytes)?,
        };
        let mut by_name = BTreeMap::new();
        for (name, instruction) in entries {
            let finding = || Finding::new(path, format!("{name:?}"));
            if instruction.trim().is_empty() {
                return Err(finding().expected("an instruction").found("none").format());
            }
            if by_name.contains_key(&name) {
                return Err(finding().expected("each name once").found("it twice").format());
            }
            by_name.insert(name, instruction);
        }
        if by_name.is_empty() {
            return Err(Finding::new(path, "").expected("at least one instruction").found("none").mismatch());
        }
        Ok(Self { path: path.to_owned(), by_name })
    }

    /// The instruction called `name`. An error completes `finding`.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for an unknown name.
    pub(super) fn get(&self, name: &str, finding: impl FnOnce() -> Finding) -> Result<&str> {
        self.by_name.get(name).map(String::as_str).ok_or_else(|| {
            let known: Vec<&str> = self.by_name.keys().map(String::as_str).collect();
            let expected = format!("the name of an instruction in {}", self.path.display());
            finding().expected(expected).found(format!("{name:?}")).did_you_mean(name, &known).mismatch()
        })
    }
}

fn lines(path: &Path, bytes: &[u8]) -> Result<Vec<(String, String)>> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Finding::new(path, "").expected("UTF-8 text").found(error).format())?;
    let mut entries = Vec::new();
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let (name, instruction) = line.split_once('\t').ok_or_else(|| {
            let finding = Finding::new(path, format!("line {}", number + 1));
            finding.expected("a name, a tab and an instruction").found(format!("{line:?}")).format()
        })?;
        entries.push((name.trim().to_owned(), instruction.trim().to_owned()));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(name: &str, text: &str) -> Result<NamedInstructions> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        NamedInstructions::open(&path)
    }

    #[test]
    fn names_stand_for_instructions() {
        for (name, text) in [
            ("i.txt", "rev\tReverse the letters.\n\nup\tUse capitals.\n"),
            ("i.json", "{\"rev\": \"Reverse the letters.\"}"),
        ] {
            let named = open(name, text).unwrap();
            let finding = || Finding::new("rows", "line 2");
            assert_eq!(named.get("rev", finding).unwrap(), "Reverse the letters.");
            let error = named.get("revv", finding).unwrap_err().to_string();
            assert!(error.starts_with("rows: line 2: expected the name of an instruction in"), "{error}");
            assert!(error.ends_with("found \"revv\"; did you mean rev?"), "{error}");
        }
    }

    #[test]
    fn what_is_no_list_of_instructions_is_refused() {
        for (name, text, expected) in [
            ("i.txt", "a b\n", "line 1: expected a name, a tab and an instruction, found \"a b\""),
            ("i.txt", "a\tb\na\tc\n", "\"a\": expected each name once, found it twice"),
            ("i.txt", "a\t \n", "\"a\": expected an instruction, found none"),
            ("i.txt", "\n", "expected at least one instruction, found none"),
            ("i.json", "{\"a\": 1}", "\"a\": expected a text, found 1"),
        ] {
            let error = open(name, text).err().unwrap().to_string();
            assert!(error.ends_with(expected), "{error}");
        }
    }
}
