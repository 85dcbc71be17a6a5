//! Fetches a model into the cache: which files, in which order, and what the cache remembers about them.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use super::address::quoted;
use super::cache::{Snapshot, Store};
use super::client::Client;
use super::download::Wanted;
use super::fault::Fault;
use super::files::{self, Need, Weights};
use super::metadata::{self, FileInfo, ModelInfo};
use super::name::Name;
use super::{super::read_index, HubSettings};
use crate::error::{Error, Finding};

/// A model to fetch.
#[derive(Clone, Copy)]
pub(super) struct Fetch<'a> {
    pub(super) name: &'a Name,
    pub(super) settings: &'a HubSettings,
    pub(super) client: &'a Client<'a>,
    pub(super) store: &'a Store,
    pub(super) need: Need,
}

/// The weights of a model that a command uses.
pub(super) struct Chosen {
    pub(super) weights: Vec<String>,
    /// The GGUF, or its first part, if that is the model; otherwise the model is the folder.
    gguf: Option<String>,
}

impl Chosen {
    /// Returns the model's path if its files are in `folder`.
    pub(super) fn path_in(&self, folder: &Path) -> PathBuf {
        self.gguf.as_ref().map_or_else(|| folder.to_owned(), |file| folder.join(file))
    }
}

/// The fault that ended a fetch, and the file that caused it.
pub(super) struct Failed {
    pub(super) fault: Fault,
    pub(super) file: String,
}

impl Failed {
    /// Returns the error for a user who asked for `name`.
    pub(super) fn into_error(self, name: &Name, settings: &HubSettings) -> Error {
        self.fault.into_error(name, settings, &self.file)
    }
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Self { fault, file: String::new() }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Fault::Own(error).into()
    }
}

impl Fetch<'_> {
    /// Fetches the missing files of `revision`, and returns the folder or the GGUF. `tries` says whether to ask again
    /// if the hub doesn't list the model's files.
    pub(super) fn run(&self, revision: &str, tries: bool) -> Result<PathBuf, Failed> {
        self.whole(&metadata::model(self.client, self.settings, self.name, revision, tries)?)
    }

    /// Does the same for a commit whose files are known.
    pub(super) fn whole(&self, info: &ModelInfo) -> Result<PathBuf, Failed> {
        let snapshot = self.store.snapshot(&info.commit);
        let chosen = self.chosen(info, &snapshot)?;
        // Weights come last: if they are there, all other files are there, too.
        self.files(info, &snapshot, chosen.weights.iter().map(String::as_str))?;
        self.remember(info, &snapshot)?;
        Ok(chosen.path_in(&snapshot.path()))
    }

    /// Chooses the weights to fetch. This fetches the other files, because an index lists its shards.
    pub(super) fn chosen(&self, info: &ModelInfo, snapshot: &Snapshot) -> Result<Chosen, Failed> {
        if let Some(file) = &self.name.file {
            let weights = files::parts(file, &info.names);
            if !info.names.contains(file) || weights.len() != files::part_count(file) {
                return Err(self.choose(info, file).into());
            }
            return Ok(Chosen { weights, gguf: Some(file.clone()) });
        }
        let forms = files::weights(&info.names, self.need);
        if let [Weights::Gguf(found)] = forms.as_slice() {
            let [only] = found.as_slice() else { return Err(self.choose(info, "weights").into()) };
            if only.len() != files::part_count(&only[0]) {
                return Err(self.choose(info, &only[0]).into());
            }
            return Ok(Chosen { weights: only.clone(), gguf: Some(only[0].clone()) });
        }
        self.files(info, snapshot, files::companions(&info.names))?;
        Ok(Chosen { weights: self.weights(info, snapshot, forms)?, gguf: None })
    }

    /// Stores the commit of the revision, and which of the usual files it doesn't have.
    pub(super) fn remember(&self, info: &ModelInfo, snapshot: &Snapshot) -> Result<(), Failed> {
        self.store.keep_commit(&self.name.revision, &info.commit)?;
        if self.name.file.is_none() {
            snapshot.keep_absences(&info.names);
        }
        Ok(())
    }

    /// Returns the names of the files that hold weights. For shards, this fetches their index and returns the names in
    /// it.
    fn weights(&self, info: &ModelInfo, snapshot: &Snapshot, forms: Vec<Weights>) -> Result<Vec<String>, Failed> {
        let mut wanted: Vec<String> = Vec::new();
        for form in forms {
            match form {
                Weights::Files(names) => wanted.extend(names),
                Weights::Indexed(index) => {
                    self.file(info, snapshot, index)?;
                    let mut shards: Vec<String> = read_index(&snapshot.file(index))?.into_values().collect();
                    shards.sort_unstable();
                    shards.dedup();
                    if let Some(missing) = shards.iter().find(|shard| !info.names.contains(shard)) {
                        let finding =
                            Finding::new(&self.name.text, index).expected("shards that are in the repository");
                        return Err(finding.found(format_args!("{missing:?}, which isn't")).mismatch().into());
                    }
                    wanted.extend(shards);
                }
                Weights::Gguf(_) => {}
            }
        }
        Ok(wanted)
    }

    /// Returns the error that lists the repository's GGUF files.
    fn choose(&self, info: &ModelInfo, subject: &str) -> Error {
        let ggufs: Vec<&str> = info.names.iter().map(String::as_str).filter(|name| name.ends_with(".gguf")).collect();
        let finding =
            Finding::new(&self.name.text, subject).expected("safetensors, PyTorch's weights or one GGUF file");
        let parts = files::part_count(subject);
        if parts > 1 && info.names.iter().any(|name| name == subject) {
            let there = files::parts(subject, &info.names).len();
            return finding.expected(format_args!("{parts} parts")).found(there).mismatch();
        }
        match ggufs.first() {
            None => finding.found("none").mismatch(),
            Some(first) => finding
                .found(format_args!("{} GGUF files: {}", ggufs.len(), ggufs.join(", ")))
                .hint(format_args!("choose one: hf:{}/{first}", self.name.id))
                .mismatch(),
        }
    }

    fn files<'n>(
        &self,
        info: &ModelInfo,
        snapshot: &Snapshot,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<(), Failed> {
        names.into_iter().try_for_each(|name| self.file(info, snapshot, name))
    }

    /// Returns the hub's facts about a file. The hub is asked only once.
    pub(super) fn known(&self, info: &ModelInfo, file: &str) -> Result<FileInfo, Fault> {
        if let Some(known) = info.files.borrow().get(file) {
            return Ok(known.clone());
        }
        let Self { name, settings, .. } = self;
        let address = format!("{}/{}/resolve/{}/{}", settings.endpoint, name.id, info.commit, quoted(file, b"/"));
        let known = metadata::file(self.client, name, &address, &info.commit, file)?;
        info.files.borrow_mut().insert(file.to_owned(), known.clone());
        Ok(known)
    }

    /// Brings one file into the snapshot unless it is there. With `refresh`, a file that is there is checked again.
    fn file(&self, info: &ModelInfo, snapshot: &Snapshot, file: &str) -> Result<(), Failed> {
        if snapshot.has(file) && !self.settings.refresh {
            return Ok(());
        }
        let failed = |fault| Failed { fault, file: file.to_owned() };
        let known = self.known(info, file).map_err(failed)?;
        if snapshot.is_copy(file, known.size) {
            return Ok(());
        }
        let wanted = Wanted {
            store: self.store,
            info: &known,
            commit: &info.commit,
            file,
            title: format!("{}: {file}", self.name.text),
            timeout: self.settings.download_timeout,
            start: Cell::new(info.starts.borrow_mut().remove(file).unwrap_or_default()),
        };
        let blob = wanted.fetch(self.client).map_err(failed)?;
        snapshot.link(file, &blob).map_err(|error| failed(Fault::Own(error)))
    }
}
