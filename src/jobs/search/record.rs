//! The trials of a search in a file, so that a search that was ended goes on.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Finding, IoContext, Result};

/// The name of the file.
const NAME: &str = "trials.jsonl";

/// One trial of a search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// Its number, from 1.
    pub trial: usize,
    /// The values that it tried, by their names.
    pub parameters: Map<String, Value>,
    /// What was to be small; null where the merged model has no finite numbers.
    pub loss: Option<f64>,
    /// The time that it took.
    pub seconds: f64,
}

/// The file of trials: in the first line what is searched, in every other a trial.
pub(super) struct Record {
    path: PathBuf,
    file: File,
    pub(super) trials: Vec<Trial>,
}

impl Record {
    /// Opens the record in `folder`, or begins it. `search` is what is searched, which has to be the same.
    pub(super) fn open(folder: &Path, search: &Value) -> Result<Self> {
        std::fs::create_dir_all(folder).at(folder, "create")?;
        let path = folder.join(NAME);
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(&path).at(&path, "open")?;
        let text = std::fs::read_to_string(&path).at(&path, "read")?;
        // A line that was being written when the program was ended.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64).at(&path, "write")?;
        let mut record = Self { path, file, trials: Vec::new() };
        let mut lines = text[..whole].lines();
        let Some(first) = lines.next() else {
            record.put(search)?;
            return Ok(record);
        };
        let known: Value = record.parsed(1, first)?;
        if known != *search {
            return Err(Finding::new(&record.path, "line 1")
                .expected("the settings of this search")
                .found(differing(&known, search))
                .hint("choose another folder for another search")
                .mismatch());
        }
        for (number, line) in (2..).zip(lines) {
            let trial = record.parsed(number, line)?;
            record.trials.push(trial);
        }
        Ok(record)
    }

    fn parsed<T: for<'de> Deserialize<'de>>(&self, number: usize, line: &str) -> Result<T> {
        serde_json::from_str(line).map_err(|error| {
            let finding = Finding::new(&self.path, format!("line {number}")).expected("a trial");
            finding.found(crate::json::plain(&error)).format()
        })
    }

    /// Adds a trial.
    pub(super) fn add(&mut self, trial: Trial) -> Result<()> {
        self.put(&trial)?;
        self.trials.push(trial);
        Ok(())
    }

    fn put(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string(line).unwrap_or_default();
        text.push('\n');
        self.file.write_all(text.as_bytes()).at(&self.path, "write")
    }
}

/// The first setting that differs, in words.
fn differing(known: &Value, wanted: &Value) -> String {
    let (Some(known), Some(wanted)) = (known.as_object(), wanted.as_object()) else { return "others".to_owned() };
    let names = wanted.keys().chain(known.keys());
    let mut differing = names.filter(|name| known.get(*name) != wanted.get(*name));
    differing.next().map_or_else(|| "others".to_owned(), |name| format!("another {name}"))
}
