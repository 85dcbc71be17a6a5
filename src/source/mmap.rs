//! The one place that maps files into memory.

use std::fs::{File, Metadata};
use std::io::{BufWriter, IntoInnerError, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memmap2::Mmap;

use super::outline::ValuesWanted;
use crate::error::{Finding, IoContext, Result, no_lfs_pointer};

/// A file mapped read-only.
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Mmap,
    file: File,
    /// The modification time of the file when it was mapped.
    modified: Option<SystemTime>,
    /// Set if only the file's header is available.
    outline: Option<ValuesWanted>,
}

impl MappedFile {
    /// Maps the file at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        // Checked before the file is opened, too: opening a pipe would wait for a writer.
        only_regular(&std::fs::metadata(path).at(path, "open")?, path)?;
        Self::of(&File::open(path).at(path, "open")?, path)
    }

    /// Maps an open file. `path` is its name in messages.
    pub(crate) fn of(file: &File, path: &Path) -> Result<Self> {
        only_regular(&file.metadata().at(path, "read")?, path)?;
        #[allow(unsafe_code)]
        // SAFETY: the map is private to this struct and only handed out as `&[u8]`. No program that maps a file can
        // prevent others from shortening or rewriting it meanwhile. Our own outputs appear by rename and never change a
        // file in place (docs/threats.md).
        let map = unsafe { Mmap::map(file) }.at(path, "map")?;
        no_lfs_pointer(path, &map)?;
        let found = file.metadata().at(path, "read")?;
        let (modified, outline) = (found.modified().ok(), ValuesWanted::of(&found));
        Ok(Self { path: path.to_owned(), map, file: file.try_clone().at(path, "open")?, modified, outline })
    }

    /// Makes a temporary file without a name, which disappears with the map. `write` gets a function that appends bytes
    /// to it. `path` is its name in messages.
    pub(crate) fn temporary(path: &Path, write: impl FnOnce(&mut Put) -> Result<()>) -> Result<Self> {
        let folder = std::env::temp_dir();
        let mut file = BufWriter::new(tempfile::tempfile().at(&folder, "create a temporary file in")?);
        let action = "write a temporary file in";
        write(&mut |bytes| file.write_all(bytes).at(&folder, action))?;
        Self::of(&file.into_inner().map_err(IntoInnerError::into_error).at(&folder, action)?, path)
    }

    /// As [`super::Source::check_unchanged`]. The part of a map that a shortened file no longer covers can't be read: a
    /// system call that reads it fails with "bad address", and a direct read ends the process.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        let found = self.file.metadata().at(&self.path, "read")?;
        let finding = || Finding::new(&self.path, "").hint("wait until it is complete, or stop what writes it");
        if found.len() < self.map.len() as u64 {
            let length = format!("{} bytes", self.map.len());
            return Err(finding()
                .expected(length)
                .found(format!("{} now: it was cut while it was read", found.len()))
                .mismatch());
        }
        if found.modified().ok() != self.modified {
            return Err(finding().found("it was written to while it was read").mismatch());
        }
        Ok(())
    }

    /// As [`super::Source::check_values`].
    pub(crate) fn check_values(&self) -> Result<()> {
        let Some(outline) = &self.outline else { return Ok(()) };
        outline.note();
        let finding = Finding::new(&self.path, "").expected("the values of its tensors");
        Err(finding.found("its header alone, which was fetched without them").mismatch())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The bytes of tensor data in `range`. An outline has no data, so this notes the access.
    pub(crate) fn values(&self, range: Range<usize>) -> &[u8] {
        if let Some(outline) = &self.outline {
            outline.note();
        }
        &self.map[range]
    }
}

/// A function that takes bytes, one piece after the other.
pub(crate) type Put<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

fn only_regular(found: &Metadata, path: &Path) -> Result<()> {
    if found.is_file() {
        return Ok(());
    }
    Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")).at(path, "open")
}
