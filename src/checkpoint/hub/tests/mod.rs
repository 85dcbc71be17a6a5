//! Names of the hub against caches on the disk and a hub on this machine.

mod caches;
mod fetching;
mod hostile;
mod outlines;
mod server;
mod settings;
mod transfers;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use self::server::Hub;
use super::*;

impl Hub {
    /// The settings of a user of this hub with an empty cache.
    pub(super) fn settings(&self, cache: &tempfile::TempDir) -> HubSettings {
        let home = cache.path().to_string_lossy().into_owned();
        let variables = HashMap::from([("HF_HOME", home), ("HF_ENDPOINT", format!("{}/", self.endpoint))]);
        let settings = HubSettings::from_variables(|name| variables.get(name).cloned()).unwrap();
        let (pause, timeout) = (Duration::from_millis(5), Duration::from_secs(10));
        HubSettings { pause, etag_timeout: timeout, download_timeout: timeout, ..settings }
    }
}

/// What was told while `resolve` ran, and what came of it.
struct Run {
    result: Result<HubModel>,
    notes: Vec<String>,
    done: Vec<(String, u64)>,
}

impl Run {
    fn of(name: &str, settings: &HubSettings, need: Need) -> Self {
        let notes = Mutex::new(Vec::new());
        let done = Mutex::new(Vec::new());
        let result = resolve(name, settings, need, &|event| match event {
            Event::Note(note) => notes.lock().unwrap().push(note.to_owned()),
            Event::Download(d) if d.done == d.total => done.lock().unwrap().push((d.file.to_owned(), d.total)),
            Event::Download(_) => {}
        });
        Self { result, notes: notes.into_inner().unwrap(), done: done.into_inner().unwrap() }
    }

    #[track_caller]
    fn path(&self) -> &Path {
        &self.result.as_ref().unwrap().path
    }

    /// The error, in the one line that a user sees.
    #[track_caller]
    fn message(&self) -> String {
        let message = self.result.as_ref().unwrap_err().to_string();
        assert!(!message.contains('\n'), "{message}");
        assert!(message.starts_with("hf:"), "{message}");
        message
    }

    fn noted(&self, text: &str) -> bool {
        self.notes.iter().any(|note| note.contains(text))
    }
}

fn run(name: &str, settings: &HubSettings) -> Run {
    Run::of(name, settings, Need::Everything)
}

/// Every file below `folder`, without what is only there for locks.
fn files_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => open.push(entry.path()),
                false => found.push(entry.path().strip_prefix(folder).unwrap().to_string_lossy().into_owned()),
            }
        }
    }
    found.retain(|name| !name.ends_with(".lock"));
    found.sort_unstable();
    found
}
