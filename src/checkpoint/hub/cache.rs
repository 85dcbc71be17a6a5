//! The cache that all of Hugging Face's programs share.
//!
//! A model's folder `models--org--name/` has the contents by their ETags (`blobs/`), the commits of branches and tags
//! (`refs/`), a folder of links for each commit (`snapshots/`), and the names of files that a commit is known not to
//! have (`.no_exist/`).
//!
//! Reference: huggingface_hub `file_download.py` (`_hf_hub_download_to_cache_dir`, `try_to_load_from_cache`) and
//! `_tree_cache.py`.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use super::super::ADAPTER_CONFIG;
use super::files;
use super::name::{Name, is_commit};
use crate::error::{IoContext, Result};

/// The version of the format of a stored file list.
const TREE_VERSION: u64 = 1;
/// Marks, in `.no_exist`, a commit whose file list was searched for templates. No repository has a file of that name.
const TEMPLATES_LISTED: &str = "additional_chat_templates/.listed";

/// The part of the cache that belongs to one model.
#[derive(Debug, Clone)]
pub(super) struct Store {
    /// `models--org--name`.
    pub(super) folder: PathBuf,
    locks: PathBuf,
}

impl Store {
    pub(super) fn new(cache: &Path, name: &Name) -> Self {
        let folder = format!("models--{}", name.id.replace('/', "--"));
        Self { locks: cache.join(".locks").join(&folder), folder: cache.join(folder) }
    }

    /// Returns the path of the content with this ETag.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Returns the path of the partial file of a content.
    pub(super) fn part(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Returns the path of the file that a process locks while it fetches this content.
    pub(super) fn lock(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    /// Returns the commit of a revision, if the cache knows it.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Stores the commit of a revision.
    pub(super) fn keep_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        make_parent(&path)?;
        let staged = beside(&path);
        fs::write(&staged, commit).and_then(|()| fs::rename(&staged, &path)).at(&path, "write")
    }

    pub(super) fn snapshot(&self, commit: &str) -> Snapshot {
        Snapshot { folder: self.folder.clone(), commit: commit.to_owned() }
    }
}

/// One commit of a model, with those of its files that the cache has.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    folder: PathBuf,
    commit: String,
}

impl Snapshot {
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join("snapshots").join(&self.commit)
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.file(name).is_file()
    }

    /// Returns whether the file is there itself, not as a link, and has the right length.
    pub(super) fn is_copy(&self, name: &str, size: Option<u64>) -> bool {
        fs::symlink_metadata(self.file(name)).is_ok_and(|data| data.is_file() && Some(data.len()) == size)
    }

    fn absence(&self, name: &str) -> PathBuf {
        self.folder.join(".no_exist").join(&self.commit).join(name)
    }

    /// Returns whether the commit is known not to have this file.
    pub(super) fn lacks(&self, name: &str) -> bool {
        self.absence(name).is_file()
    }

    /// Returns the names of the files that are there, at most two folders deep.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        list(&self.path(), "", 2, &mut names);
        names.sort_unstable();
        names
    }

    /// Returns the names of all files of the commit, if another program has stored the list.
    pub(super) fn listed(&self) -> Option<Vec<String>> {
        let text = fs::read(self.folder.join("trees").join(format!("{}.json", self.commit))).ok()?;
        let tree: Value = serde_json::from_slice(&text).ok()?;
        if tree.get("format_version")?.as_u64()? != TREE_VERSION {
            return None;
        }
        Some(tree.get("files")?.as_object()?.keys().cloned().collect())
    }

    /// Returns whether the commit's file list was searched for everything that a command may need.
    pub(super) fn was_listed(&self) -> bool {
        self.lacks(TEMPLATES_LISTED) || self.listed().is_some()
    }

    /// Returns the names of files other than weights that the commit may have, and the cache doesn't.
    pub(super) fn unknown(&self) -> Vec<String> {
        if let Some(listed) = self.listed() {
            let wanted = files::companions(&listed).into_iter().filter(|name| !self.has(name));
            return wanted.map(str::to_owned).collect();
        }
        let is_adapter = self.has(ADAPTER_CONFIG) && !self.has("config.json");
        let usual = if is_adapter { files::USUAL_OF_ADAPTER } else { files::USUAL };
        let unknown = usual.iter().filter(|name| !self.has(name) && !self.lacks(name));
        let mut unknown: Vec<String> = unknown.map(|name| (*name).to_owned()).collect();
        if !is_adapter && !self.lacks(TEMPLATES_LISTED) {
            unknown.push(files::TEMPLATES.to_owned());
        }
        unknown
    }

    /// Stores which of the usual files the commit doesn't have, as `huggingface_hub` does. `names` are all files it
    /// has.
    pub(super) fn keep_absences(&self, names: &[String]) {
        let usual = files::USUAL.iter().chain(files::USUAL_WEIGHTS).copied();
        let absent = usual.filter(|name| !names.iter().any(|other| other == name));
        for name in absent.chain([TEMPLATES_LISTED]) {
            let path = self.absence(name);
            // If this fails, the hub is asked again, and nothing is lost.
            if !path.exists() && make_parent(&path).is_ok() {
                let _ = fs::OpenOptions::new().create(true).append(true).open(&path);
            }
        }
    }

    /// Links the content `blob` under its name in the snapshot. A link that leads elsewhere is replaced.
    pub(super) fn link(&self, name: &str, blob: &Path) -> Result<()> {
        let path = self.file(name);
        let etag = blob.file_name().unwrap_or_default();
        let target = Path::new(&"../".repeat(name.matches('/').count() + 2)).join("blobs").join(etag);
        if fs::read_link(&path).is_ok_and(|there| there == target) && path.is_file() {
            return Ok(());
        }
        make_parent(&path)?;
        let staged = beside(&path);
        let _ = fs::remove_file(&staged);
        match symlink(&target, &staged) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(error).at(&staged, "make the link");
            }
            // The file system has no links.
            Err(_) => {
                fs::hard_link(blob, &staged).or_else(|_| fs::copy(blob, &staged).map(|_| ())).at(&path, "write")?
            }
        }
        fs::rename(&staged, &path).at(&path, "put in place")
    }
}

/// Returns a name in the same folder as `path` that nobody else uses, not even another thread of this process.
fn beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{count}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// Makes the folder that contains `path`.
pub(super) fn make_parent(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).at(folder, "make the folder")
}

fn list(folder: &Path, prefix: &str, deep: usize, names: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let path = entry.path();
        if path.is_file() {
            names.push(name);
        } else if deep > 0 && path.is_dir() {
            list(&path, &format!("{name}/"), deep - 1, names);
        }
    }
}
