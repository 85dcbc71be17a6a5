//! Outlines: files of which only the header is available, for inspecting a model on the hub without downloading it.
//!
//! An outline has its file's length, its header, and zeros where the values are. Whoever wants values is told that they
//! aren't there, or reads zeros; either way it is noticed, and what was made of them has to be thrown away.
#![cfg_attr(not(feature = "hub"), allow(dead_code, reason = "only models on the hub have outlines"))]

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::error::{IoContext, Result};

/// Device and inode number of a file.
type Inode = (u64, u64);

/// The outlines of this process.
static OUTLINES: LazyLock<Mutex<HashMap<Inode, Arc<AtomicBool>>>> = LazyLock::new(Mutex::default);

/// How many outlines there are: usually none, which is known without the lock.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Whether there are any outlines. Where there are none, nobody has to ask for each file.
pub(crate) fn any_outlines() -> bool {
    COUNT.load(Ordering::SeqCst) > 0
}

/// Outlines whose files are deleted together, and whether values of them were wanted. Dropping this forgets them: it must
/// be dropped before the files are deleted, because another file can then get the same inode.
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

    /// Whether values were wanted.
    pub(crate) fn values_were_wanted(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Forgets the outlines, before their files are deleted.
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

/// The registration of one file that is an outline.
#[derive(Debug, Clone)]
pub(super) struct ValuesWanted(Arc<AtomicBool>);

impl ValuesWanted {
    /// The registration of the file, if it is an outline.
    pub(super) fn of(found: &Metadata) -> Option<Self> {
        let outlines = OUTLINES.lock().unwrap_or_else(PoisonError::into_inner);
        outlines.get(&inode(found)).cloned().map(Self)
    }

    /// Records that values were wanted.
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
