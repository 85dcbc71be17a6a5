//! The form used before zip (torch before 1.6): pickles one after the other, then the storages.
//!
//! Reference: torch `serialization.py` (`_legacy_save`, `_legacy_load`). A file consists of five pickles: a magic
//! number, a protocol version, a description of the machine, the checkpoint, and the storages' keys. Then, for every
//! key, it has the number of elements in eight bytes, and the elements. Numbers are little-endian, whatever machine
//! wrote them.

use std::collections::HashMap;
use std::path::Path;

use super::pickle::{Object, Pickle, Storage, Value};
use super::storages::{Place, check_size, referred};
use crate::error::{Finding, Result};

/// The magic number 0x1950a86a20f9469cfc6c (`MAGIC_NUMBER`).
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// The magic number in protocols 0 and 1.
const MAGIC_DIGITS: &[u8] = b"119547037146038801333356";
/// torch's `PROTOCOL_VERSION`.
const PROTOCOL: i64 = 1001;

/// Reads the pickles and finds the position of each storage.
pub(super) fn read<'a>(path: &Path, bytes: &'a [u8]) -> Result<(Pickle<'a>, HashMap<&'a str, Place>)> {
    let mut reader = Reader { path, bytes, at: 0 };
    if !reader.has_magic() {
        return Err(not_torch(path, bytes));
    }
    match reader.pickle()?.root {
        Value::Int(PROTOCOL) => {}
        _ => return Err(reader.finding().expected(format_args!("protocol {PROTOCOL}")).found("another").format()),
    }
    reader.pickle()?;
    let pickle = reader.pickle()?;
    let keys = reader.pickle()?;
    let places = reader.places(&pickle, &keys)?;
    Ok((pickle, places))
}

struct Reader<'p, 'a> {
    path: &'p Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'_, 'a> {
    fn finding(&self) -> Finding {
        Finding::new(self.path, format!("byte {}", self.at))
    }

    /// Skips the first pickle if it is the magic number, and returns whether it was.
    fn has_magic(&mut self) -> bool {
        if !matches!(self.bytes.first(), Some(0x80 | b'L')) {
            return false;
        }
        let window = self.bytes.get(..64).unwrap_or(self.bytes);
        match Pickle::read(self.path, window) {
            Ok(Pickle { root: Value::Long(digits), byte_len, .. }) if digits == MAGIC || digits == MAGIC_DIGITS => {
                self.at = byte_len;
                true
            }
            _ => false,
        }
    }

    /// Reads the next pickle.
    fn pickle(&mut self) -> Result<Pickle<'a>> {
        let pickle = Pickle::read(self.path, self.bytes.get(self.at..).unwrap_or_default())?;
        self.at += pickle.byte_len;
        Ok(pickle)
    }

    /// Finds the storages after the pickles.
    fn places(&mut self, pickle: &Pickle<'a>, keys: &Pickle<'a>) -> Result<HashMap<&'a str, Place>> {
        let Some(Object::List(keys)) = keys.object(keys.root) else {
            return Err(self.finding().expected("a list of storages").found("something else").format());
        };
        let mut storages: HashMap<&str, &Storage<'_>> = HashMap::new();
        for storage in referred(pickle) {
            storages.entry(storage.key).or_insert(storage);
        }
        let mut places: HashMap<&str, Place> = HashMap::new();
        for key in keys {
            let storage = match key {
                Value::Str(key) => storages.get(key),
                _ => None,
            };
            let storage = storage.ok_or_else(|| {
                self.finding().expected("storages that the checkpoint refers to").found("another").format()
            })?;
            let place = self.storage(storage)?;
            if places.insert(storage.key, place).is_some() {
                let finding = Finding::new(self.path, format!("storage {:?}", storage.key));
                return Err(finding.expected("each storage once").found("it twice").format());
            }
        }
        for storage in referred(pickle) {
            let place = places.get(storage.key).ok_or_else(|| {
                let finding = Finding::new(self.path, format!("storage {:?}", storage.key));
                finding.expected("its key in the list of storages").found("only other keys").format()
            })?;
            check_size(self.path, storage, place.size as u64)?;
        }
        if self.at != self.bytes.len() {
            let behind = self.bytes.len() - self.at;
            let finding = self.finding().expected("the file's end behind the last storage");
            return Err(finding.found(format_args!("{behind} bytes more")).format());
        }
        Ok(places)
    }

    /// Reads the number of elements and finds the elements.
    fn storage(&mut self, storage: &Storage<'_>) -> Result<Place> {
        let cut = || {
            Finding::new(self.path, format!("storage {:?}", storage.key))
                .expected(format_args!("{} elements of {}", storage.elems, storage.element.name))
                .found("the file's end")
                .hint("the file is cut short or damaged; fetch it again")
                .format()
        };
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let (elems, rest) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
        let elems = u64::from_le_bytes(*elems);
        let size = elems.checked_mul(storage.element.bytes as u64);
        let size = size.and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= rest.len()).ok_or_else(cut)?;
        let start = self.at + 8;
        self.at = start + size;
        Ok(Place { data: start..start + size, size, deflated: None })
    }
}

/// An error that says what the file probably is instead, by its first bytes.
fn not_torch(path: &Path, bytes: &[u8]) -> crate::Error {
    let finding = Finding::new(path, "").expected("a file of torch.save");
    if bytes.get(257..262) == Some(b"ustar") {
        let finding = finding.found("the tar form of torch before 0.2");
        return finding.hint("load it with an old torch and save it again").unsupported();
    }
    if bytes.starts_with(b"GGUF") {
        return finding.found("a GGUF file").format();
    }
    if bytes.get(8) == Some(&b'{') {
        return finding.found("what looks like a safetensors file").hint("rename it to .safetensors").format();
    }
    if bytes.first() == Some(&0x80) {
        return finding.found("a pickle of something else").format();
    }
    finding.found("other bytes").hint("is the download complete?").format()
}
