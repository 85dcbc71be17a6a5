//! Temporary files and folders of unfinished outputs: their names, and their deletion.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The temporary files and folders that this process is writing.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A newer temporary file of another process may not be locked yet.
const MIN_AGE: Duration = Duration::from_secs(10);

/// A temporary file or folder. Until this is dropped, it is in the list of this process, and locked.
pub(crate) struct Unfinished {
    path: PathBuf,
    _lock: Option<File>,
}

impl Unfinished {
    /// Creates the temporary `path` with `make` and adds it to the list. A signal can't come between the two steps.
    pub(crate) fn make<T>(path: &Path, make: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<(Self, T)> {
        let mut list = lock();
        let made = make(path)?;
        list.insert(path.to_owned());
        drop(list);
        // A file system without locks fails here, and in `remove_abandoned` too, so the temporary is never deleted as
        // abandoned.
        let locked = File::open(path).ok().filter(|file| file.try_lock().is_ok());
        Ok((Self { path: path.to_owned(), _lock: locked }, made))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        lock().remove(&self.path);
    }
}

/// Locks the list of this process. While the list is locked, [`remove_unfinished`] waits.
pub(super) fn lock() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Deletes all temporary files and folders of this process. Call it right before a signal ends the process. It waits
/// while an output is being renamed to its final name. Afterwards, no new ones can be created.
pub fn remove_unfinished() {
    let list = lock();
    for path in list.iter() {
        // Threads that still write may add a file to a folder while it is being deleted.
        for _ in 0..10 {
            remove(path);
            if !path.exists() {
                break;
            }
        }
    }
    std::mem::forget(list);
}

fn remove(path: &Path) {
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

/// Returns this process's temporary name for `target`; `None` for a path without a last part.
pub(super) fn temporary(target: &Path) -> Option<PathBuf> {
    let name = target.file_name()?.to_string_lossy();
    Some(target.with_file_name(format!(".{name}.{}.partial", std::process::id())))
}

/// Returns the id of the process that created the temporary file of `target` with this name.
fn process_of(target: &Path, name: &str) -> Option<u32> {
    let stem = target.file_name()?.to_str()?;
    let process = name.strip_prefix('.')?.strip_prefix(stem)?.strip_prefix('.')?.strip_suffix(".partial")?;
    process.parse().ok()
}

/// Deletes temporary files and folders of `target` whose process has ended, so that nobody holds their lock any more.
/// If locking fails for another reason, they stay.
pub(super) fn remove_abandoned(target: &Path) {
    let folder = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| process_of(target, name)) else { continue };
        remove_if_abandoned(&entry.path(), process);
    }
}

/// Deletes the temporary file or folder `path` of `process`, if that has ended.
fn remove_if_abandoned(path: &Path, process: u32) {
    if process == std::process::id() {
        return;
    }
    let Ok(found) = fs::symlink_metadata(path) else { return };
    let old = found.modified().ok().and_then(|time| time.elapsed().ok()).is_some_and(|age| age > MIN_AGE);
    let gone = !Path::new("/proc").join(process.to_string()).exists();
    if found.is_symlink() || !(old || gone) {
        return;
    }
    if File::open(path).is_ok_and(|file| file.try_lock().is_ok()) {
        remove(path);
    }
}

/// The start of the names of this process's temporary folders of one kind. Others may be beside them.
#[cfg_attr(not(feature = "hub"), allow(dead_code, reason = "only models on the hub have such folders"))]
pub(crate) fn folder_start(kind: &str) -> String {
    format!("{kind}{}.", std::process::id())
}

/// Deletes the temporary folders of this kind beside `own`, one of this process, whose processes have ended. Those of
/// other users stay.
#[cfg_attr(not(feature = "hub"), allow(dead_code, reason = "only models on the hub have such folders"))]
pub(crate) fn remove_abandoned_folders(own: &Path, kind: &str) {
    let user = |path: &Path| fs::symlink_metadata(path).ok().map(|found| (found.is_dir(), found.uid()));
    let (Some(place), Some(expected)) = (own.parent(), user(own)) else { return };
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(kind)?.split_once('.')?.0.parse().ok());
        if let Some(process) = process.filter(|_| user(&entry.path()) == Some(expected)) {
            remove_if_abandoned(&entry.path(), process);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_dead_processes_go_and_all_others_stay() {
        let place = tempfile::tempdir().unwrap();
        let make = |name: String| {
            let path = place.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("model.safetensors"), b"header").unwrap();
            path
        };
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let own = make(format!("{}abc", folder_start("kind-")));
        let dead = make(format!("kind-{}.xyz", child.id()));
        // A process of another namespace, which holds the lock.
        let locked = make(format!("kind-{}.held", child.id()));
        let lock = File::open(&locked).unwrap();
        lock.try_lock().unwrap();
        let others = ["kind-xyz", "kind-12", "other-1.xyz"].map(|name| make(name.to_owned()));
        let link = place.path().join(format!("kind-{}.link", child.id()));
        std::os::unix::fs::symlink(&others[0], &link).unwrap();
        remove_abandoned_folders(&own, "kind-");
        assert!(!dead.exists());
        assert!(own.exists() && locked.exists() && others.iter().all(|path| path.exists()) && link.is_symlink());
        drop(lock);
        remove_abandoned_folders(&own, "kind-");
        assert!(!locked.exists());
    }

    #[test]
    fn names_of_temporaries_say_whose_they_are() {
        let target = Path::new("folder/model.gguf");
        let name = temporary(target).unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(process_of(target, &name), Some(std::process::id()));
        for other in [".model.gguf.partial", ".model.gguf.12x.partial", "model.gguf.12.partial", ".other.12.partial"] {
            assert_eq!(process_of(target, other), None, "{other}");
        }
    }
}
