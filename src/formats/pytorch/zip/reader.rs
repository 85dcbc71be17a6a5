//! Reads a zip's directory: every entry must be inside the file, no two may overlap, and each name must occur once.

use std::collections::HashSet;
use std::fmt::Display;
use std::ops::Range;
use std::path::Path;

use super::{CENTRAL, DESCRIPTOR, DESCRIPTOR_MARK, ENCRYPTED, END, END_64, EXTRA_64, FULL, LOCAL, LOCATOR_64};
use crate::error::{Error, Finding, Result};

/// The length of the end of the directory without its comment.
const END_BYTES: usize = 22;
/// The length of the locator of a 64-bit end.
const LOCATOR_BYTES: usize = 20;
/// The length of an entry's local header without name and extra field.
const LOCAL_BYTES: usize = 30;
/// The length of an entry in the directory without name, extra field and comment.
const CENTRAL_BYTES: usize = 46;
/// The method of deflated entries (4.4.5).
const DEFLATED: u16 = 8;
/// The largest number of bytes that one deflated byte can expand to: two bits can repeat 258 bytes, plus some margin.
const MAX_DEFLATE_RATIO: u64 = 1040;

/// One file of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::formats::pytorch) struct Entry<'a> {
    /// The name, including folders.
    pub name: &'a str,
    /// Whether the data is deflated; otherwise it is stored.
    pub deflated: bool,
    /// The CRC-32 from the directory.
    pub crc: u32,
    /// The size of the content in bytes.
    pub size: u64,
    /// The range of the data in the archive.
    pub data: Range<usize>,
}

/// An entry of the directory.
struct Listed<'a> {
    name: &'a str,
    flags: u16,
    method: u16,
    crc: u32,
    sizes: Sizes,
    /// The position of its local header.
    start: usize,
}

/// The numbers of an entry that may need 64 bits.
struct Sizes {
    packed: u64,
    size: u64,
    offset: u64,
}

/// Reads the directory of the archive `bytes`.
///
/// # Errors
/// [`Error::Format`] or, for encryption and other methods, [`Error::Unsupported`].
pub(in crate::formats::pytorch) fn read_directory<'a>(path: &Path, bytes: &'a [u8]) -> Result<Vec<Entry<'a>>> {
    let zip = Zip { path, bytes };
    let (count, directory) = zip.find_directory()?;
    let mut at = directory.start;
    let mut entries = Vec::new();
    let mut spans = Vec::new();
    let mut names = HashSet::new();
    for number in 0..count {
        let (listed, next) = zip.listed(number, at, directory.end)?;
        if !names.insert(listed.name) {
            return Err(zip.named(listed.name).expected("each name once").found("it twice").format());
        }
        let data = zip.local(&listed)?;
        spans.push((listed.start, data.end, listed.name));
        let Listed { name, crc, sizes, .. } = listed;
        entries.push(Entry { name, deflated: listed.method == DEFLATED, crc, size: sizes.size, data });
        at = next;
    }
    if at != directory.end {
        return Err(zip.breach(format_args!("{count} entries in the directory"), "more bytes behind them"));
    }
    spans.sort_unstable();
    let mut end = 0;
    for (start, next, name) in spans {
        if start < end {
            return Err(zip.named(name).expected("bytes of its own").found("bytes shared with another").format());
        }
        end = next;
    }
    if end > directory.start {
        return Err(zip.breach("entries before the directory", "one that reaches into it"));
    }
    Ok(entries)
}

/// Where the checksum of an entry stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::formats::pytorch) struct Sums {
    /// The range of its data.
    pub data: Range<usize>,
    /// The positions of the CRC-32 of its content: in the directory, and in the local header or behind the data.
    pub at: Vec<usize>,
}

/// Reads where the checksums of all entries of the archive `bytes` stand.
///
/// # Errors
/// The same as for [`read_directory`].
pub(in crate::formats::pytorch) fn read_sums(path: &Path, bytes: &[u8]) -> Result<Vec<Sums>> {
    let zip = Zip { path, bytes };
    let (count, directory) = zip.find_directory()?;
    let mut at = directory.start;
    let mut found = Vec::new();
    for number in 0..count {
        let (listed, next) = zip.listed(number, at, directory.end)?;
        let data = zip.local(&listed)?;
        let mut sums = vec![at + 16];
        if zip.u16(listed.start + 6)? & DESCRIPTOR == 0 {
            sums.push(listed.start + 14);
        } else {
            let is_mark = zip.u32(data.end).is_ok_and(|mark| mark == DESCRIPTOR_MARK);
            let place = data.end + if is_mark { 4 } else { 0 };
            // A descriptor that doesn't have the sum is none.
            if place + 4 <= directory.start && zip.u32(place)? == listed.crc {
                sums.push(place);
            }
            // Some writers leave the sum in the header, too.
            if zip.u32(listed.start + 14)? == listed.crc && listed.crc != 0 {
                sums.push(listed.start + 14);
            }
        }
        found.push(Sums { data, at: sums });
        at = next;
    }
    Ok(found)
}

/// An entry of an archive whose directory alone is available.
#[cfg(feature = "hub")]
pub(in crate::formats::pytorch) struct Place<'a> {
    pub name: &'a str,
    /// From its local header to the next entry or the directory.
    pub span: Range<u64>,
    /// A header to use instead of its local header, which may be longer.
    pub header: Vec<u8>,
}

/// Reads the directory of the archive `bytes`, in which the entries themselves may be missing.
///
/// # Errors
/// The same as for [`read_directory`].
#[cfg(feature = "hub")]
pub(in crate::formats::pytorch) fn read_places<'a>(path: &Path, bytes: &'a [u8]) -> Result<Vec<Place<'a>>> {
    let zip = Zip { path, bytes };
    let (count, directory) = zip.find_directory()?;
    let mut at = directory.start;
    let mut found = Vec::new();
    for number in 0..count {
        let (listed, next) = zip.listed(number, at, directory.end)?;
        found.push(listed);
        at = next;
    }
    found.sort_unstable_by_key(|listed| listed.start);
    let ends: Vec<usize> = found.iter().skip(1).map(|next| next.start).chain([directory.start]).collect();
    let place = |(listed, end): (&Listed<'a>, usize)| {
        let header = listed.header();
        let room = end.checked_sub(listed.start).filter(|room| *room >= header.len());
        let room =
            room.ok_or_else(|| zip.breach("room for every entry", format_args!("none for {:?}", listed.name)))?;
        let start = listed.start as u64;
        Ok(Place { name: listed.name, span: start..start + room as u64, header })
    };
    found.iter().zip(ends).map(place).collect()
}

#[cfg(feature = "hub")]
impl Listed<'_> {
    /// Returns the local header of an entry with this name and these sizes, without an extra field.
    fn header(&self) -> Vec<u8> {
        let narrow = |size: u64| u32::try_from(size).unwrap_or(FULL).to_le_bytes();
        let mut header = LOCAL.to_le_bytes().to_vec();
        // The required version, which no reader checks.
        header.extend([0; 2]);
        header.extend((self.flags & !DESCRIPTOR).to_le_bytes());
        header.extend(self.method.to_le_bytes());
        // Time and date.
        header.extend([0; 4]);
        header.extend(self.crc.to_le_bytes());
        header.extend(narrow(self.sizes.packed));
        header.extend(narrow(self.sizes.size));
        // The length fits, because in the directory it has two bytes, too.
        header.extend((self.name.len() as u16).to_le_bytes());
        header.extend([0; 2]);
        header.extend(self.name.as_bytes());
        header
    }
}

struct Zip<'p, 'a> {
    path: &'p Path,
    bytes: &'a [u8],
}

impl Zip<'_, '_> {
    fn finding(&self) -> Finding {
        Finding::new(self.path, "zip archive")
    }

    fn named(&self, name: &str) -> Finding {
        Finding::new(self.path, format!("zip entry {name:?}"))
    }

    fn breach(&self, expected: impl Display, found: impl Display) -> Error {
        self.finding().expected(expected).found(found).format()
    }

    fn cut_short(&self, what: &str) -> Error {
        self.finding()
            .expected(what)
            .found("the file's end")
            .hint("the file is cut short or damaged; fetch it again")
            .format()
    }
}

impl<'a> Zip<'_, 'a> {
    fn u16(&self, at: usize) -> Result<u16> {
        let here = self.bytes.get(at..).and_then(|rest| rest.first_chunk());
        here.map(|b| u16::from_le_bytes(*b)).ok_or_else(|| self.cut_short("a number of 2 bytes"))
    }

    fn u32(&self, at: usize) -> Result<u32> {
        let here = self.bytes.get(at..).and_then(|rest| rest.first_chunk());
        here.map(|b| u32::from_le_bytes(*b)).ok_or_else(|| self.cut_short("a number of 4 bytes"))
    }

    fn u64(&self, at: usize) -> Result<u64> {
        let here = self.bytes.get(at..).and_then(|rest| rest.first_chunk());
        here.map(|b| u64::from_le_bytes(*b)).ok_or_else(|| self.cut_short("a number of 8 bytes"))
    }

    /// Returns `length` bytes from `at`, which must not reach beyond `limit`.
    fn slice(&self, at: usize, length: usize, limit: usize, what: &str) -> Result<&'a [u8]> {
        let end = at.checked_add(length).filter(|end| *end <= limit);
        end.and_then(|end| self.bytes.get(at..end)).ok_or_else(|| self.cut_short(what))
    }

    /// Finds the number of entries, and the range of the directory.
    fn find_directory(&self) -> Result<(u64, Range<usize>)> {
        let last = self.bytes.len().checked_sub(END_BYTES).ok_or_else(|| self.cut_short("a directory"))?;
        let first = last.saturating_sub(usize::from(u16::MAX));
        // The end has a comment of any length, which must extend exactly to the file's end.
        let end = (first..=last).rev().find(|&at| {
            self.u32(at).is_ok_and(|n| n == END)
                && self.u16(at + 20).is_ok_and(|comment| at + END_BYTES + usize::from(comment) == self.bytes.len())
        });
        let end = end.ok_or_else(|| self.cut_short("a directory at the end"))?;
        let mut disks = [self.u16(end + 4)?.into(), self.u16(end + 6)?.into()];
        let mut counts: [u64; 2] = [self.u16(end + 8)?.into(), self.u16(end + 10)?.into()];
        let mut size = u64::from(self.u32(end + 12)?);
        let mut offset = u64::from(self.u32(end + 16)?);
        let mut limit = end;
        let locator = end.checked_sub(LOCATOR_BYTES).filter(|at| self.u32(*at).is_ok_and(|n| n == LOCATOR_64));
        if let Some(locator) = locator {
            let at = usize::try_from(self.u64(locator + 8)?).unwrap_or(usize::MAX);
            // The 64-bit end must be directly before its locator: its length is 12 bytes plus the length that it gives.
            let reaches = (at < locator && self.u32(at)? == END_64)
                && usize::try_from(self.u64(at + 4)?).ok().and_then(|n| n.checked_add(at + 12)) == Some(locator);
            if !reaches || locator - at < 56 {
                return Err(self.breach("a 64-bit end of the directory before its pointer", "something else"));
            }
            let wide = [self.u64(at + 24)?, self.u64(at + 32)?, self.u64(at + 40)?, self.u64(at + 48)?];
            let narrow_agrees = (counts[1] == 0xffff || counts[1] == wide[1])
                && (size == u64::from(FULL) || size == wide[2])
                && (offset == u64::from(FULL) || offset == wide[3]);
            if !narrow_agrees {
                return Err(self.breach("one directory", "two ends that disagree"));
            }
            disks = [self.u32(at + 16)?, self.u32(at + 20)?];
            counts = [wide[0], wide[1]];
            (size, offset, limit) = (wide[2], wide[3], at);
        }
        if disks != [0, 0] || counts[0] != counts[1] {
            return Err(self.finding().expected("an archive in one file").found("a part of one").unsupported());
        }
        let start = usize::try_from(offset).ok();
        let stop = offset.checked_add(size).and_then(|n| usize::try_from(n).ok()).filter(|n| *n == limit);
        match (start, stop) {
            (Some(start), Some(stop)) if counts[1] <= size / CENTRAL_BYTES as u64 => Ok((counts[1], start..stop)),
            _ => Err(self.breach(
                format_args!("a directory that ends at byte {limit}"),
                format_args!("{} entries in {size} bytes from {offset}", counts[1]),
            )),
        }
    }

    /// Reads entry `number`, which is at `at` in the directory, and returns the position of the next one, too.
    fn listed(&self, number: u64, at: usize, limit: usize) -> Result<(Listed<'a>, usize)> {
        let what = "an entry of the directory";
        self.slice(at, CENTRAL_BYTES, limit, what)?;
        if self.u32(at)? != CENTRAL {
            return Err(self.breach(format_args!("entry {number} of the directory"), "other bytes"));
        }
        let (flags, method) = (self.u16(at + 8)?, self.u16(at + 10)?);
        let crc = self.u32(at + 16)?;
        let lengths = [self.u16(at + 28)?, self.u16(at + 30)?, self.u16(at + 32)?].map(usize::from);
        let name = self.slice(at + CENTRAL_BYTES, lengths[0], limit, what)?;
        let name = std::str::from_utf8(name)
            .map_err(|_| self.breach("names in UTF-8", format_args!("another in entry {number}")))?;
        plain_name(name).map_err(|found| self.named(name).expected("a plain relative path").found(found).format())?;
        let extra = self.slice(at + CENTRAL_BYTES + lengths[0], lengths[1], limit, what)?;
        let next = at + CENTRAL_BYTES + lengths[0] + lengths[1];
        self.slice(next, lengths[2], limit, what)?;
        let narrow = [self.u32(at + 24)?, self.u32(at + 20)?, self.u32(at + 42)?];
        let sizes = self.wide(name, narrow, extra)?;
        let disk = self.u16(at + 34)?;
        if flags & ENCRYPTED != 0 {
            return Err(self
                .named(name)
                .expected("an entry that is not encrypted")
                .found("an encrypted one")
                .unsupported());
        }
        if !matches!(method, 0 | DEFLATED) || disk != 0 {
            let finding = self.named(name).expected("an entry that is stored or deflated");
            return Err(finding.found(format_args!("method {method} on disk {disk}")).unsupported());
        }
        let deflated = method == DEFLATED;
        if !deflated && sizes.packed != sizes.size {
            let finding = self.named(name).expected(format_args!("{} bytes, as it says", sizes.size));
            return Err(finding.found(format_args!("{}", sizes.packed)).format());
        }
        if deflated && sizes.size / MAX_DEFLATE_RATIO > sizes.packed {
            let finding = self.named(name).expected("a size that deflated data can have");
            return Err(finding.found(format_args!("{} bytes out of {}", sizes.size, sizes.packed)).format());
        }
        let start = usize::try_from(sizes.offset).ok().filter(|n| *n < self.bytes.len());
        let start = start.ok_or_else(|| {
            self.named(name).expected("a place inside the file").found(format_args!("byte {}", sizes.offset)).format()
        })?;
        Ok((Listed { name, flags, method, crc, sizes, start }, next + lengths[2]))
    }

    /// Returns content size, packed size and offset. Those that don't fit into 32 bits are in the extra field, in this
    /// order (4.5.3).
    fn wide(&self, name: &str, narrow: [u32; 3], extra: &[u8]) -> Result<Sizes> {
        let bad = || self.named(name).expected("64-bit sizes in the extra field").found("none").format();
        let mut wide = None;
        let mut rest = extra;
        while let Some((header, tail)) = rest.split_first_chunk::<4>() {
            let [a, b, c, d] = *header;
            let length = usize::from(u16::from_le_bytes([c, d]));
            let Some((content, tail)) = tail.split_at_checked(length) else { break };
            if u16::from_le_bytes([a, b]) == EXTRA_64 && wide.replace(content).is_some() {
                return Err(self.named(name).expected("64-bit sizes once").found("them twice").format());
            }
            rest = tail;
        }
        let mut wide = wide.unwrap_or_default();
        let mut values = [0u64; 3];
        for (value, narrow) in values.iter_mut().zip(narrow) {
            *value = if narrow == FULL {
                let (number, rest) = wide.split_first_chunk::<8>().ok_or_else(bad)?;
                wide = rest;
                u64::from_le_bytes(*number)
            } else {
                narrow.into()
            };
        }
        let [size, packed, offset] = values;
        Ok(Sizes { packed, size, offset })
    }

    /// Returns the range of an entry's data. Its local header has to agree with the directory.
    fn local(&self, listed: &Listed<'_>) -> Result<Range<usize>> {
        let Listed { name, flags, method, ref sizes, start, .. } = *listed;
        let what = "an entry's header";
        let limit = self.bytes.len();
        self.slice(start, LOCAL_BYTES, limit, what)?;
        let disagrees =
            || self.named(name).expected("a header that agrees with the directory").found("another").format();
        if self.u32(start)? != LOCAL {
            return Err(self.named(name).expected("a header at its place").found("other bytes").format());
        }
        let lengths = [self.u16(start + 26)?, self.u16(start + 28)?].map(usize::from);
        let own_name = self.slice(start + LOCAL_BYTES, lengths[0], limit, what)?;
        let own_flags = self.u16(start + 6)?;
        if own_name != name.as_bytes() || self.u16(start + 8)? != method || own_flags & ENCRYPTED != flags & ENCRYPTED {
            return Err(disagrees());
        }
        // Writers that stream set the sizes to zero here, and add a descriptor after the data.
        if own_flags & DESCRIPTOR == 0 {
            let narrow = |size: u64| u32::try_from(size).unwrap_or(FULL);
            for (at, size) in [(start + 18, sizes.packed), (start + 22, sizes.size)] {
                let own = self.u32(at)?;
                if own != narrow(size) && own != FULL {
                    return Err(disagrees());
                }
            }
        }
        let data = start + LOCAL_BYTES + lengths[0] + lengths[1];
        let end = usize::try_from(sizes.packed).ok().and_then(|n| data.checked_add(n)).filter(|end| *end <= limit);
        let end = end.ok_or_else(|| {
            self.named(name)
                .expected(format_args!("{} bytes from byte {data}", sizes.packed))
                .found("the file's end")
                .hint("the file is cut short or damaged; fetch it again")
                .format()
        })?;
        Ok(data..end)
    }
}

/// Rejects names that lead out of a folder. No file is written under an archive's names, but such a name shows that the
/// archive is hostile.
fn plain_name(name: &str) -> std::result::Result<(), &'static str> {
    if name.starts_with('/') || name.contains('\\') {
        return Err("an absolute one, or one with backslashes");
    }
    if name.contains('\0') || name.is_empty() {
        return Err("none, or one with a zero byte");
    }
    let mut parts = name.strip_suffix('/').unwrap_or(name).split('/');
    match parts.any(|part| part == ".." || part == "." || part.is_empty()) {
        true => Err("one with empty parts or dots"),
        false => Ok(()),
    }
}
