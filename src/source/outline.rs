//! Outlines: files of which only the header is available, for inspecting a model on the hub without downloading it.
//!
//! An outline has its file's length and header; its tensor data reads as zeros. Reads of tensor data are noted, and
//! results that depend on them must be discarded.
#![cfg_attr(not(feature = "hub"), allow(dead_code, reason = "only models on the hub have outlines"))]

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::error::{IoContext, Result};

/// Device and inode number of a file.
type Inode = (u64, u64);

/// The outlines of this process.
static OUTLINES: LazyLock<Mutex<HashMap<Inode, Arc<AtomicBool>>>> = LazyLock::new(Mutex::default);

/// Whether values of outlines were read.
#[derive(Debug, Clone, Default)]
pub(crate) struct ValuesRead(Arc<AtomicBool>);

impl ValuesRead {
    /// Registers `file`, at `path`, as an outline.
    pub(crate) fn watch(&self, file: &File, path: &std::path::Path) -> Result<()> {
        let inode = inode(&file.metadata().at(path, "read")?);
        OUTLINES.lock().unwrap_or_else(PoisonError::into_inner).insert(inode, self.0.clone());
        Ok(())
    }

    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Forgets these outlines. To be called before their files are deleted.
    pub(crate) fn forget(&self) {
        let mut outlines = OUTLINES.lock().unwrap_or_else(PoisonError::into_inner);
        outlines.retain(|_, read| !Arc::ptr_eq(read, &self.0));
    }

    /// The registration of the file, if it is an outline.
    pub(super) fn of(found: &Metadata) -> Option<Self> {
        let outlines = OUTLINES.lock().unwrap_or_else(PoisonError::into_inner);
        outlines.get(&inode(found)).cloned().map(Self)
    }

    /// Notes that tensor data was read.
    pub(super) fn note(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn inode(found: &Metadata) -> Inode {
    (found.dev(), found.ino())
}
