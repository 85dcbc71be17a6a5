//! The metrics of a run: a line of JSON for each step and evaluation, and events for TensorBoard.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::MetricsForm;
use super::tensorboard::EventFile;
use crate::error::{IoContext, Result};

/// Where metrics are written.
pub(super) struct Metrics {
    lines: Option<(PathBuf, File)>,
    events: Option<EventFile>,
}

impl Metrics {
    /// Opens the metrics of a run in the folder `output`. Lines of steps after `done`, which a resumed run takes again,
    /// and of the run's end are dropped.
    pub(super) fn open(output: &Path, forms: &[MetricsForm], done: usize) -> Result<Self> {
        let lines = match forms.contains(&MetricsForm::Jsonl) {
            true => Some(Self::open_lines(output.join("metrics.jsonl"), done)?),
            false => None,
        };
        let events = match forms.contains(&MetricsForm::TensorBoard) {
            true => Some(EventFile::create(output, done)?),
            false => None,
        };
        Ok(Self { lines, events })
    }

    /// The file is cut where the first line begins that isn't kept, so that a killed run loses no line before that.
    fn open_lines(path: PathBuf, done: usize) -> Result<(PathBuf, File)> {
        let old = match done {
            0 => String::new(),
            _ => String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned(),
        };
        let is_kept = |line: &&str| {
            let value = serde_json::from_str::<Value>(line).unwrap_or_default();
            let is_end = value.get("end").is_some();
            line.ends_with('\n') && !is_end && value["step"].as_u64().is_some_and(|step| step <= done as u64)
        };
        let kept: usize = old.split_inclusive('\n').take_while(is_kept).map(str::len).sum();
        let mut file = File::options().create(true).truncate(false).write(true).open(&path).at(&path, "open")?;
        file.set_len(kept as u64).and_then(|()| file.seek(SeekFrom::End(0))).at(&path, "write")?;
        Ok((path, file))
    }

    /// Writes what belongs to a step. Numbers go to both forms, everything else to the lines alone.
    pub(super) fn write(&mut self, step: usize, values: &Value) -> Result<()> {
        let mut line = Map::from_iter([("step".to_owned(), Value::from(step))]);
        let values = values.as_object().into_iter().flatten();
        line.extend(values.map(|(name, value)| (name.clone(), value.clone())));
        if let Some(events) = &mut self.events {
            let numbers: Vec<(&str, f64)> = line
                .iter()
                .filter(|(name, _)| *name != "step")
                .filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?)))
                .collect();
            events.scalars(step, &numbers)?;
        }
        match &mut self.lines {
            // In one piece, so that no line is torn by the run's end.
            Some((path, file)) => file.write_all(format!("{}\n", Value::Object(line)).as_bytes()).at(path, "write"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_resumed_run_drops_what_it_does_again() {
        let dir = tempfile::tempdir().unwrap();
        let open = |done| Metrics::open(dir.path(), &[MetricsForm::Jsonl], done).unwrap();
        let text = || fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
        let mut metrics = open(0);
        for step in 1..4 {
            metrics.write(step, &json!({ "loss": 0.5 })).unwrap();
        }
        metrics.write(3, &json!({ "end": "steps" })).unwrap();
        drop(metrics);
        assert_eq!(text().lines().count(), 4);
        let two = "{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":0.5}\n";
        drop(open(3));
        assert_eq!(text().lines().count(), 3, "the end is not the end");
        drop(open(2));
        assert_eq!(text(), two);
        fs::write(dir.path().join("metrics.jsonl"), format!("{two}{{\"step\":3,\"lo")).unwrap();
        drop(open(9));
        assert_eq!(text(), two, "a torn line goes");
        drop(open(0));
        assert_eq!(text(), "");
    }
}
