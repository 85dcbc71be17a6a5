//! The copy of an archive without deflated entries, for new values: a deflated storage has no bytes of its own to be
//! replaced. The content of every entry is the same.

use std::os::unix::fs::FileExt;

use super::PytorchFile;
use super::storages::{Place, inflate_one};
use super::zip::{ZipLayout, read_directory};
use crate::error::{IoContext, Result};

impl PytorchFile {
    /// This file for a [`PytorchFile::rewritten`] of the tensors `places`: itself, or where a storage of these is
    /// deflated, a copy in a temporary file (`TMPDIR`) with every entry stored. The copy lasts as long as it is open. `key`
    /// is that with which the file was opened.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::Format`] for an entry that doesn't have its size and checksum.
    pub(crate) fn stored(self, key: Option<&str>, places: &[usize]) -> Result<Self> {
        if !places.iter().any(|number| self.views[*number].inflated) {
            return Ok(self);
        }
        let (path, bytes) = (self.file.path(), self.file.bytes());
        let entries = read_directory(path, bytes)?;
        let mut zip = ZipLayout::new();
        let starts: Vec<u64> =
            entries.iter().map(|entry| zip.add_known(entry.name.to_owned(), entry.size, entry.crc)).collect();
        let layout = zip.finish(String::new());
        let folder = std::env::temp_dir();
        let file = tempfile::NamedTempFile::new().at(&folder, "create a temporary file in")?;
        let action = "write a temporary file in";
        file.as_file().set_len(layout.byte_len).at(&folder, action)?;
        let pieces = std::iter::once((0, layout.head.as_slice()));
        for (at, piece) in pieces.chain(layout.pieces.iter().map(|(at, piece)| (*at, piece.as_slice()))) {
            file.as_file().write_all_at(piece, at).at(&folder, action)?;
        }
        for (entry, start) in entries.iter().zip(starts) {
            let data = bytes.get(entry.data.clone()).unwrap_or_default();
            if !entry.deflated {
                file.as_file().write_all_at(data, start).at(&folder, action)?;
                continue;
            }
            let place = Place { data: entry.data.clone(), size: entry.size as usize, deflated: Some(entry.crc) };
            let mut at = start;
            inflate_one(path, entry.name, data, &place, &mut |chunk| {
                file.as_file().write_all_at(chunk, at).at(&folder, action)?;
                at += chunk.len() as u64;
                Ok(())
            })?;
        }
        let copy = Self::open_whole(file.path(), key)?;
        Ok(Self { _temporary: Some(file.into_temp_path()), ..copy })
    }
}
