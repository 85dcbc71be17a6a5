//! A model before its weights are downloaded: all other files, and only the headers of the weights, which are fetched
//! by ranges. This is enough to describe a model and to plan its conversion, so a conversion that can't work is refused
//! before gigabytes are fetched.
//!
//! The folder is a temporary one. The cache only gets whole files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::cache::{Snapshot, Store, make_parent};
use super::client::Client;
use super::fetch::{Chosen, Failed, Fetch};
use super::files::Need;
use super::header::Form;
use super::metadata::{self, ModelInfo};
use super::name::Name;
use super::{Event, HubModel, HubSettings, Looked};
use crate::error::{Error, IoContext, Result};
use crate::plan::{Unfinished, folder_start, remove_abandoned_folders};
use crate::source::Watched;

/// A model whose weights consist of headers only. Its files are deleted on drop.
pub struct Outline {
    /// The folder or the GGUF file to read.
    pub model: HubModel,
    name: Name,
    need: Need,
    info: ModelInfo,
    /// The temporary folder, and the folder of the cache that it stands for.
    places: (PathBuf, PathBuf),
    watched: Watched,
    folder: Option<Folder>,
}

/// The start of the names of temporary folders.
const KIND: &str = "atombank-hub-";

/// A temporary folder. It is deleted on drop, and when a signal ends the program.
struct Folder {
    folder: tempfile::TempDir,
    _listed: Unfinished,
}

impl Folder {
    fn new() -> Result<Self> {
        let place = std::env::temp_dir();
        // The canonical path, because others may use that one.
        let place = fs::canonicalize(&place).unwrap_or(place);
        let folder = tempfile::Builder::new().prefix(&folder_start(KIND)).tempdir_in(&place);
        let folder = folder.at(&place, "make a folder in")?;
        let (listed, ()) = Unfinished::make(folder.path(), |_| Ok(())).at(folder.path(), "open")?;
        // A process that was killed couldn't delete its own.
        remove_abandoned_folders(folder.path(), KIND);
        Ok(Self { folder, _listed: listed })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Outline {
    /// Returns whether any code read values, which an outline doesn't have. Results made from them are wrong.
    pub fn values_were_wanted(&self) -> bool {
        self.watched.values_were_wanted()
    }

    /// Fetches the missing files of the model, at the commit of the outline. The files of the outline are deleted.
    ///
    /// # Errors
    /// As [`super::resolve`].
    pub fn fetch(mut self, settings: &HubSettings, tell: &dyn Fn(Event<'_>)) -> Result<HubModel> {
        // This must come before the download, because a signal may end the program during it.
        self.close();
        let client = Client::new(settings, tell)?;
        let store = Store::new(&settings.cache, &self.name);
        let fetch = Fetch { name: &self.name, settings, client: &client, store: &store, need: self.need };
        let path = fetch.whole(&self.info).map_err(|failed| failed.into_error(&self.name, settings))?;
        Ok(HubModel { path, id: self.name.id.clone() })
    }

    /// Returns `text` with the path of the temporary folder replaced by the model's path in the cache.
    pub fn with_real_paths(&self, text: &str) -> String {
        let (temporary, real) = &self.places;
        text.replace(&*temporary.to_string_lossy(), &real.to_string_lossy())
    }

    /// Does the same in the texts of an error.
    pub fn error_with_real_paths(&self, error: Error) -> Error {
        error.map_texts(&|text| self.with_real_paths(text))
    }

    fn close(&mut self) {
        self.watched.forget();
        self.folder = None;
    }
}

impl Drop for Outline {
    fn drop(&mut self) {
        self.close();
    }
}

impl Fetch<'_> {
    /// Creates the outline of `revision`. If the weights have no headers that could be fetched on their own, the files
    /// that `need` asks for are fetched whole. `tries` is as in [`Fetch::run`].
    pub(super) fn look(&self, revision: &str, tries: bool, need: Need) -> Result<Looked, Failed> {
        let info = metadata::model(self.client, self.settings, self.name, revision, tries)?;
        let snapshot = self.store.snapshot(&info.commit);
        let chosen = self.chosen(&info, &snapshot)?;
        let has_header = |name: &String| Form::of(name).is_some();
        let is_missing = |name: &String| !snapshot.has(name) || self.settings.refresh;
        if chosen.weights.iter().any(is_missing) && chosen.weights.iter().all(has_header) {
            match self.headers(&info, &snapshot, &chosen) {
                Ok((folder, watched)) => {
                    self.remember(&info, &snapshot)?;
                    let temporary = folder.path().join(&info.commit);
                    return Ok(Looked::Outline(Box::new(Outline {
                        model: HubModel { path: chosen.path_in(&temporary), id: self.name.id.clone() },
                        name: self.name.clone(),
                        need,
                        places: (temporary, snapshot.path()),
                        info,
                        watched,
                        folder: Some(folder),
                    })));
                }
                Err(failed) if failed.fault.tries() > 0 => return Err(failed),
                // Only whole files can be checked against a hash. That check shows whether the file or the connection
                // is at fault.
                Err(_) => {}
            }
        }
        let path = Fetch { need, ..*self }.whole(&info)?;
        Ok(Looked::Whole(HubModel { path, id: self.name.id.clone() }))
    }

    /// Creates a temporary folder with the files of a snapshot, and with headers for the weights that it lacks.
    fn headers(&self, info: &ModelInfo, snapshot: &Snapshot, chosen: &Chosen) -> Result<(Folder, Watched), Failed> {
        let folder = Folder::new()?;
        // It has the same name as in the cache, because a model's name may come from its folder.
        let path = folder.path().join(&info.commit);
        let is_outlined =
            |name: &String| chosen.weights.contains(name) && (self.settings.refresh || !snapshot.has(name));
        let mut linked = snapshot.names();
        linked.retain(|name| info.names.contains(name) && !is_outlined(name));
        for name in &linked {
            link(&snapshot.file(name), &path.join(name))?;
        }
        let watched = Watched::default();
        for name in chosen.weights.iter().filter(|name| is_outlined(name)) {
            let Some(form) = Form::of(name) else { continue };
            let failed = |fault| Failed { fault, file: name.clone() };
            self.header(info, (name, form), &path.join(name), &watched).map_err(failed)?;
        }
        Ok((folder, watched))
    }
}

/// Makes a link at `to` that leads to the file at `from`.
pub(super) fn link(from: &Path, to: &Path) -> Result<()> {
    make_parent(to)?;
    let from = fs::canonicalize(from).at(from, "open")?;
    symlink(from, to).at(to, "make the link")
}
