//! The older binary form, `imatrix.dat`: a count of entries, the entries, and the text from which
//! they were measured.
//!
//! It has no magic number: a file of this form is recognised by lengths that fit the file. All
//! numbers are little-endian and have 4 bytes:
//!
//! ```text
//! entries
//!   name length, name, calls, values, value * values     once for each entry
//! chunks, dataset length, dataset                        may be missing, or the dataset alone
//! ```
//!
//! A value is the mean of squares times `calls`. Bytes after the end are ignored, as in llama.cpp.
//!
//! Reference: llama.cpp `common/imatrix-loader.cpp` (`common_imatrix_load_legacy`),
//! `tools/quantize/quantize.cpp` (`load_imatrix`).

use std::collections::BTreeMap;
use std::path::Path;

use super::read::floats;
use super::{ImportanceMatrix, check_weights, entry_finding, until_zero};
use crate::error::{Finding, Result};

/// The fewest bytes of an entry: three numbers, a one-byte name and one value.
const MIN_ENTRY_BYTES: usize = 3 * 4 + 1 + 4;

/// Parses `bytes`, the whole content of the file at `path`.
pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<ImportanceMatrix> {
    let mut rest = Rest { path, bytes };
    let count = rest.entry_count()?;
    let mut entries = BTreeMap::new();
    for number in 0..count {
        let (name, weights) = rest.entry(number)?;
        if entries.contains_key(&name) {
            return Err(entry_finding(path, &name).expected("each name once").found("it twice").format());
        }
        entries.insert(name, weights);
    }
    let mut matrix = ImportanceMatrix { path: path.to_owned(), entries, datasets: Vec::new(), chunk_count: 0 };
    if !rest.bytes.is_empty() {
        matrix.chunk_count = rest.number("number of chunks", 0)?;
    }
    if !rest.bytes.is_empty() {
        let len = rest.number("length of the dataset's name", 0)?;
        let name = rest.take(len as usize, "name of the dataset")?;
        if !name.is_empty() {
            matrix.datasets.push(until_zero(name).to_vec());
        }
    }
    Ok(matrix)
}

/// The part of the file that hasn't been read yet.
struct Rest<'a> {
    path: &'a Path,
    bytes: &'a [u8],
}

impl<'a> Rest<'a> {
    /// Reads the count of entries, which also shows whether the file can be of this form at all.
    fn entry_count(&mut self) -> Result<u32> {
        let finding = || {
            Finding::new(self.path, "")
                .expected("an importance matrix: GGUF, or the older form that starts with its number of entries")
                .hint("is the download complete?")
        };
        let Some((number, rest)) = self.bytes.split_first_chunk::<4>() else {
            return Err(finding().found(format_args!("{} bytes", self.bytes.len())).format());
        };
        let limit = rest.len() / MIN_ENTRY_BYTES;
        let count = i32::from_le_bytes(*number);
        match u32::try_from(count) {
            Ok(count) if count > 0 && count as usize <= limit => {
                self.bytes = rest;
                Ok(count)
            }
            _ => {
                let found = format!("{count} entries in {} bytes", rest.len());
                Err(finding().found(found).format())
            }
        }
    }

    /// Reads entry `number`: its name, and its values as means.
    fn entry(&mut self, number: u32) -> Result<(String, Vec<f32>)> {
        let place = format!("entry {number}");
        let len = self.number(&place, 1)?;
        let name = self.take(len as usize, &place)?;
        let name = std::str::from_utf8(name).ok().filter(|text| !text.contains('\0')).ok_or_else(|| {
            let found = format!("\"{}\"", name.escape_ascii());
            Finding::new(self.path, &place).expected("a UTF-8 name without zeros").found(found).format()
        })?;
        let place = format!("entry {name:?}");
        let calls = self.number(&place, 0)?;
        let count = self.number(&place, 1)?;
        let bytes =
            (count as usize).checked_mul(4).ok_or_else(|| self.cut_short(format_args!("{count} x 4"), &place))?;
        let mut weights = floats(self.take(bytes, &place)?);
        // With 0 calls, the values stay unchanged.
        if calls > 0 {
            weights.iter_mut().for_each(|value| *value /= calls as f32);
        }
        check_weights(self.path, name, &weights)?;
        Ok((name.to_owned(), weights))
    }

    /// Reads an integer, which must be at least `least`.
    fn number(&mut self, subject: &str, least: i32) -> Result<u32> {
        let (number, rest) = self.bytes.split_first_chunk::<4>().ok_or_else(|| self.cut_short(4, subject))?;
        self.bytes = rest;
        let number = i32::from_le_bytes(*number);
        let fits = u32::try_from(number).ok().filter(|_| number >= least);
        fits.ok_or_else(|| {
            let finding = Finding::new(self.path, subject).expected(format_args!("a number from {least} on"));
            finding.found(number).hint("the file is damaged, or no importance matrix").format()
        })
    }

    /// Takes the next `len` bytes.
    fn take(&mut self, len: usize, subject: &str) -> Result<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(len).ok_or_else(|| self.cut_short(len, subject))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn cut_short(&self, needed: impl std::fmt::Display, subject: &str) -> crate::Error {
        Finding::new(self.path, subject)
            .expected(format_args!("{needed} bytes"))
            .found(format_args!("{} until the file's end", self.bytes.len()))
            .hint("the file is cut short or damaged; fetch it again")
            .format()
    }
}
