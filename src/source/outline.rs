//! Outlines: files whose header alone is available, for inspecting a model on the hub without downloading it.
//!
//! An outline has its file's length, its header, and zeros where the values are. Code that reads values gets an error
//! or zeros. Either way the access is recorded, and results made from the values have to be thrown away.
#![cfg_attr(not(feature = "hub"), allow(dead_code, reason = "only models on the hub have outlines"))]

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::error::{IoContext, Result};

/// Device and inode number of a file.
type Inode = (u64, u64);

/// The registered outlines of this process.
static OUTLINES: LazyLock<Mutex<HashMap<Inode, Arc<AtomicBool>>>> = LazyLock::new(Mutex::default);

/// The number of outlines. It is usually zero, and reading it doesn't need the lock.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Returns whether there are any outlines. If not, no file needs to be checked.
pub(crate) fn any_outlines() -> bool {
    COUNT.load(Ordering::SeqCst) > 0
}

/// Outlines whose files are deleted together, and a flag for whether their values were read. Dropping this removes
/// their registrations. It must be dropped before the files are deleted, because another file can then get the same
/// inode.
#[derive(Debug, Default)]
pub(crate) struct Watched(Arc<AtomicBool>);

impl Watched {
    /// Registers `file`, at `path`, as an outline.
    pub(crate) fn add(&self, file: &File, path: &std::path::Path) -> Result<()> {
        let inode = inode(&file.metadata().at(path, "read")?);
        let mut outlines = OUTLINES.lock().unwrap_or_else(PoisonError::into_inner);
        outlines.insert(inode, self.0.clone());
        COUNT.store(outlines.len(), Ordering::SeqCst);
        Ok(())
    }

    /// Returns whether any code tried to read values.
    pub(crate) fn values_were_wanted(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Removes the registrations. This must happen before the files are deleted.
    pub(crate) fn forget(&self) {
        let mut outlines = OUTLINES.lock().unwrap_or_else(PoisonError::into_inner);
        outlines.retain(|_, wanted| !Arc::ptr_eq(wanted, &self.0));
        COUNT.store(outlines.len(), Ordering::SeqCst);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.forget();
    }
}

/// The registration of a file that is an outline.
#[derive(Debug, Clone)]
pub(super) struct ValuesWanted(Arc<AtomicBool>);

impl ValuesWanted {
    /// Returns the registration of the file, if it is an outline.
    pub(super) fn of(found: &Metadata) -> Option<Self> {
        let outlines = OUTLINES.lock().unwrap_or_else(PoisonError::into_inner);
        outlines.get(&inode(found)).cloned().map(Self)
    }

    /// Records an attempt to read values.
    pub(super) fn note(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn inode(found: &Metadata) -> Inode {
    (found.dev(), found.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outlines_are_forgotten_with_what_watches_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::create(&path).unwrap();
        let found = file.metadata().unwrap();
        let watched = Watched::default();
        watched.add(&file, &path).unwrap();
        ValuesWanted::of(&found).unwrap().note();
        assert!(watched.values_were_wanted());
        drop(watched);
        assert!(ValuesWanted::of(&found).is_none());
    }
}
