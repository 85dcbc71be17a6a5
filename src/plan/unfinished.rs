//! Temporary files and folders of unfinished outputs: their names, and their deletion.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
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
        if process == std::process::id() {
            continue;
        }
        let path = entry.path();
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        let old = found.modified().ok().and_then(|time| time.elapsed().ok()).is_some_and(|age| age > MIN_AGE);
        let gone = !Path::new("/proc").join(process.to_string()).exists();
        if found.is_symlink() || !(old || gone) {
            continue;
        }
        if File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            remove(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
