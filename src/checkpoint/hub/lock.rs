//! Makes sure that only one process at a time fetches a content. The others wait, and then use the result.
//!
//! The lock works like that of Python's `filelock`: flock on a file in the cache's folder `.locks`. That file may be
//! deleted when the lock is released.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::cache::make_parent;
use crate::error::{Finding, IoContext, Result};

/// How often this process tries a lock that another process holds.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long this process waits for a lock before it tells the user.
const QUIET: Duration = Duration::from_millis(500);

/// A lock that this process holds until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    /// `None` if the file system has no locks.
    file: Option<File>,
}

impl Lock {
    /// Waits for the lock at `path`. `part` is the file that the holder writes to. As long as it changes, the holder is
    /// making progress; without a change for `patience`, the wait ends. `note` receives a message about the wait.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] if the holder makes no progress; [`crate::Error::Io`].
    pub(super) fn wait(path: &Path, part: &Path, patience: Duration, note: &dyn Fn(&str)) -> Result<Self> {
        make_parent(path)?;
        let started = Instant::now();
        let mut seen = (progress(part), Instant::now());
        let mut told = false;
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o664).open(path);
            let file = file.at(path, "open")?;
            match file.try_lock() {
                // The last holder may have deleted the file between our opening and locking it.
                Ok(()) if is_at(&file, path) => return Ok(Self { file: Some(file) }),
                Ok(()) => continue,
                Err(TryLockError::Error(_)) => return Ok(Self { file: None }),
                Err(TryLockError::WouldBlock) => {}
            }
            if !told && started.elapsed() >= QUIET {
                note("another process is fetching it: waiting for that");
                told = true;
            }
            let now = progress(part);
            if now != seen.0 {
                seen = (now, Instant::now());
            } else if seen.1.elapsed() >= patience {
                return Err(Finding::new(path, "lock")
                    .expected("another process to finish its download")
                    .found(format_args!("no byte of it for {} s", patience.as_secs()))
                    .hint("end that process, then try again")
                    .mismatch());
            }
            std::thread::sleep(INTERVAL);
        }
    }

    /// Returns whether the lock really excludes other processes.
    pub(super) fn holds(&self) -> bool {
        self.file.is_some()
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    file.metadata().is_ok_and(|a| fs::metadata(path).is_ok_and(|b| same(a, b)))
}

/// Returns the lengths and times of the partial files of a content: `MARK.incomplete`, and `MARK.xxxxxxxx.incomplete`
/// of newer programs.
fn progress(part: &Path) -> Vec<(PathBuf, u64, Option<SystemTime>)> {
    let stem = part.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let folder = part.parent().unwrap_or(part);
    let parts = fs::read_dir(folder).into_iter().flatten().flatten().filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with(&stem) && name.ends_with(".incomplete")
    });
    let mut seen: Vec<_> = parts
        .filter_map(|entry| entry.metadata().ok().map(|data| (entry.path(), data.len(), data.modified().ok())))
        .collect();
    seen.sort_unstable();
    seen
}
