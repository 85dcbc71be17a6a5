//! The one place that maps files into memory.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{IoContext, Result};

/// A file mapped read-only.
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps the file at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::of(&File::open(path).at(path, "open")?, path)
    }

    /// Maps an open file; `path` is what messages call it.
    pub(crate) fn of(file: &File, path: &Path) -> Result<Self> {
        if !file.metadata().at(path, "read")?.is_file() {
            let kind = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file");
            return Err(kind).at(path, "open");
        }
        #[allow(unsafe_code)]
        // SAFETY: the map is private to this struct and only handed out as `&[u8]`. That the file
        // isn't shortened or rewritten meanwhile can't be checked by anyone who maps a file; our
        // own outputs appear by rename and never change a file in place (docs/threats.md).
        let map = unsafe { Mmap::map(file) }.at(path, "map")?;
        Ok(Self { path: path.to_owned(), map })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }
}
