//! The zip form: `NAME/data.pkl`, `NAME/data/KEY` for each storage, `NAME/byteorder`.
//!
//! Reference: torch `serialization.py` (`_load`).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::pickle::{MAX_PICKLE_BYTES, Pickle};
use super::storages::{Place, check_size, inflate_one, referred};
use super::zip::{Entry, read_directory};
use crate::error::{Finding, Result};

/// Records about how the file was made, which don't affect its content.
const INERT: [&str; 4] = ["version", ".format_version", ".storage_alignment", ".data/serialization_id"];

/// Whether `bytes` start like torch's zip files.
pub(super) fn is_archive(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04")
}

/// A checkpoint in a zip.
pub(super) struct Archive<'a> {
    path: &'a Path,
    /// Records by name without the archive's own folder, in the directory's order.
    records: Vec<(&'a str, Entry<'a>)>,
    program: Entry<'a>,
    big_endian: bool,
}

impl<'a> Archive<'a> {
    /// Reads the directory and finds the pickle.
    pub(super) fn read(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let entries = read_directory(path, bytes)?;
        let mut programs = entries
            .iter()
            .filter(|entry| entry.name.strip_suffix("/data.pkl").is_some_and(|folder| !folder.contains('/')));
        let program = programs.next().cloned();
        let finding = || Finding::new(path, "zip archive");
        let Some(program) = program else {
            let names = entries.iter().take(4).map(|entry| entry.name).collect::<Vec<_>>().join(", ");
            return Err(finding().expected("data.pkl in a folder").found(format_args!("{names:?}")).format());
        };
        if let Some(second) = programs.next() {
            let found = format_args!("{:?} and {:?}", program.name, second.name);
            return Err(finding().expected("one data.pkl").found(found).format());
        }
        let folder = program.name.strip_suffix("data.pkl").unwrap_or_default();
        let records: Vec<(&str, Entry<'_>)> = entries
            .into_iter()
            .filter(|entry| !entry.name.ends_with('/'))
            .map(|entry| (entry.name.strip_prefix(folder).unwrap_or(entry.name), entry))
            .collect();
        if records.iter().any(|(name, _)| *name == "constants.pkl" || name.starts_with("code/")) {
            return Err(finding()
                .expected("a checkpoint of tensors")
                .found("a TorchScript program")
                .hint("load it with torch.jit.load and save its state_dict() with torch.save")
                .unsupported());
        }
        let mut archive = Self { path, records, program, big_endian: false };
        archive.big_endian = archive.read_byteorder(bytes)?;
        Ok(archive)
    }

    /// Whether numbers in storages have their most significant byte first.
    pub(super) fn big_endian(&self) -> bool {
        self.big_endian
    }

    fn read_byteorder(&self, bytes: &[u8]) -> Result<bool> {
        // torch before 2.1 didn't write this record, and ran on little-endian machines.
        let Some((_, entry)) = self.records.iter().find(|(name, _)| *name == "byteorder") else { return Ok(false) };
        match &*self.content(entry, bytes, 16)? {
            b"little" => Ok(false),
            b"big" => Ok(true),
            other => Err(Finding::new(self.path, "record byteorder")
                .expected("little or big")
                .found(format_args!("\"{}\"", other.escape_ascii()))
                .format()),
        }
    }

    /// The pickle's bytes.
    pub(super) fn pickle(&self, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        self.content(&self.program, bytes, MAX_PICKLE_BYTES)
    }

    /// The content of a small entry.
    fn content(&self, entry: &Entry<'_>, bytes: &'a [u8], limit: usize) -> Result<Cow<'a, [u8]>> {
        let size = usize::try_from(entry.size).ok().filter(|size| *size <= limit).ok_or_else(|| {
            Finding::new(self.path, format!("zip entry {:?}", entry.name))
                .expected(format_args!("at most {limit} bytes"))
                .found(entry.size)
                .format()
        })?;
        let data = bytes.get(entry.data.clone()).unwrap_or_default();
        if !entry.deflated {
            return Ok(Cow::Borrowed(data));
        }
        let place = Place { data: entry.data.clone(), size, deflated: Some(entry.crc) };
        let mut content = Vec::new();
        inflate_one(self.path, entry.name, data, &place, &mut |chunk| {
            content.extend_from_slice(chunk);
            Ok(())
        })?;
        Ok(Cow::Owned(content))
    }

    /// The position of each storage to which the pickle refers.
    pub(super) fn places<'p>(&self, pickle: &'p Pickle<'_>) -> Result<HashMap<&'p str, Place>> {
        let data: HashMap<&str, &Entry<'_>> =
            self.records.iter().filter_map(|(name, entry)| Some((name.strip_prefix("data/")?, entry))).collect();
        let mut places = HashMap::new();
        for storage in referred(pickle) {
            let entry = data.get(storage.key).ok_or_else(|| {
                Finding::new(self.path, format!("storage {:?}", storage.key))
                    .expected(format_args!("data/{}", storage.key))
                    .found("no such entry")
                    .format()
            })?;
            check_size(self.path, storage, entry.size)?;
            places.entry(storage.key).or_insert_with(|| Place {
                data: entry.data.clone(),
                size: entry.size as usize,
                deflated: entry.deflated.then_some(entry.crc),
            });
        }
        Ok(places)
    }

    /// Entries to which the pickle doesn't refer and that aren't in every file of torch.
    pub(super) fn left_out(&self, pickle: &Pickle<'_>) -> Vec<(String, String)> {
        let used: HashSet<&str> = referred(pickle).map(|storage| storage.key).collect();
        let known = |name: &str| {
            ["data.pkl", "byteorder"].contains(&name)
                || INERT.contains(&name)
                || name.strip_prefix("data/").is_some_and(|key| used.contains(key))
        };
        let unknown = self.records.iter().filter(|(name, _)| !known(name));
        unknown.map(|(_, entry)| (entry.name.to_owned(), format!("zip entry of {} bytes", entry.size))).collect()
    }
}
