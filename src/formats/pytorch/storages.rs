//! Storages: the position of each one's bytes, and inflating those that a zip has deflated.

use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use flate2::read::DeflateDecoder;

use super::pickle::{Object, Pickle, Storage};
use crate::error::{Finding, Result};
use crate::source::MappedFile;

/// How many bytes are inflated at a time.
const CHUNK_BYTES: usize = 1 << 16;

/// The position of a storage in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The range of its bytes, deflated or not.
    pub data: Range<usize>,
    /// Its size in bytes when inflated.
    pub size: usize,
    /// If it is deflated, the CRC-32 of its content.
    pub deflated: Option<u32>,
}

/// Every storage that the pickle refers to.
pub(super) fn referred<'p, 'a>(pickle: &'p Pickle<'a>) -> impl Iterator<Item = &'p Storage<'a>> {
    pickle.objects.iter().filter_map(|object| match object {
        Object::Storage(storage) => Some(storage),
        _ => None,
    })
}

/// Checks a storage's size in the pickle against `size`, its size in the file.
pub(super) fn check_size(path: &Path, storage: &Storage<'_>, size: u64) -> Result<()> {
    let (elems, element) = (storage.elems, storage.element);
    if elems.checked_mul(element.bytes as u64) == Some(size) {
        return Ok(());
    }
    Err(Finding::new(path, format!("storage {:?}", storage.key))
        .expected(format_args!("{elems} elements of {}", element.name))
        .found(format_args!("{size} bytes"))
        .hint("the file is cut short or damaged; fetch it again")
        .format())
}

/// Inflates storages into one unnamed temporary file. Also returns the offset of each in that file.
///
/// No storage is inflated beyond the size that the pickle gives, so a few deflated bytes can't fill
/// the disk.
pub(super) fn inflate<'k>(
    path: &Path,
    bytes: &[u8],
    places: impl Iterator<Item = (&'k &'k str, &'k Place)>,
) -> Result<(MappedFile, HashMap<&'k str, usize>)> {
    let mut starts = HashMap::new();
    let mut start = 0;
    let file = MappedFile::temporary(path, |put| {
        for (key, place) in places {
            let packed = bytes.get(place.data.clone()).unwrap_or_default();
            inflate_one(path, key, packed, place, put)?;
            starts.insert(*key, start);
            start += place.size;
        }
        Ok(())
    })?;
    Ok((file, starts))
}

/// Inflates one entry and passes its content to `write` in chunks.
///
/// # Errors
/// [`crate::Error::Format`] if the content doesn't have the expected size and checksum.
pub(super) fn inflate_one(
    path: &Path,
    key: &str,
    packed: &[u8],
    place: &Place,
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let finding = || Finding::new(path, format!("zip entry {key:?}"));
    let mut decoder = DeflateDecoder::new(packed);
    let mut hasher = crc32fast::Hasher::new();
    let mut left = place.size;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read =
            decoder.read(&mut chunk).map_err(|error| finding().expected("deflated data").found(error).format())?;
        if read == 0 {
            break;
        }
        let whole = format_args!("{} bytes when inflated", place.size).to_string();
        left = left.checked_sub(read).ok_or_else(|| finding().expected(whole).found("more").format())?;
        let content = chunk.get(..read).unwrap_or_default();
        hasher.update(content);
        write(content)?;
    }
    if left != 0 {
        let whole = format_args!("{} bytes when inflated", place.size).to_string();
        return Err(finding().expected(whole).found(format_args!("{left} less")).format());
    }
    let sum = hasher.finalize();
    match place.deflated {
        Some(crc) if crc != sum => {
            let finding = finding().expected(format_args!("content with the CRC-32 {crc:08x}"));
            Err(finding.found(format_args!("{sum:08x}")).hint("the file is damaged; fetch it again").format())
        }
        _ => Ok(()),
    }
}
