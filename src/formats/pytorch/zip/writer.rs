//! Lays out a zip of stored entries before any of their content exists.

use crate::plan::{Checksum, FileLayout};

use super::{CENTRAL, END, END_64, EXTRA_64, FULL, LOCAL, LOCATOR_64, UTF8};

/// Content starts at multiples of this, as in torch, so that it can be mapped.
const ALIGNMENT: u64 = 64;
/// The extra field with which torch pads.
const EXTRA_PADDING: u16 = u16::from_le_bytes(*b"FB");
/// 4.4.3: the version of the format that an entry needs; 4.5 brought 64-bit sizes.
const VERSION: u16 = 20;
const VERSION_64: u16 = 45;
/// 4.4.6, in MS-DOS format: 1 January 1980. Outputs must not depend on the clock.
const DATE: u16 = 1 << 5 | 1;
/// Offsets of the CRC-32 in an entry's local header and in its directory entry.
const LOCAL_CRC: u64 = 14;
const CENTRAL_CRC: u64 = 16;

/// An archive that is being laid out, entry by entry.
pub(in crate::formats::pytorch) struct ZipLayout {
    /// The bytes known so far, as pieces: the offset and content of each. The last one grows.
    pieces: Vec<(u64, Vec<u8>)>,
    entries: Vec<EntryLayout>,
    /// The offset of the next entry.
    end: u64,
}

struct EntryLayout {
    name: String,
    start: u64,
    data: u64,
    size: u64,
    /// `None` if the content is written later.
    crc: Option<u32>,
}

impl ZipLayout {
    /// An empty archive.
    pub(in crate::formats::pytorch) fn new() -> Self {
        Self { pieces: vec![(0, Vec::new())], entries: Vec::new(), end: 0 }
    }

    /// Adds an entry with known content.
    pub(in crate::formats::pytorch) fn add_bytes(&mut self, name: String, content: &[u8]) {
        self.header(name, content.len() as u64, Some(crc32fast::hash(content)));
        self.write(content);
    }

    /// Adds an entry whose `size` bytes, of a known checksum, are written later. Returns their offset.
    pub(in crate::formats::pytorch) fn add_known(&mut self, name: String, size: u64, crc: u32) -> u64 {
        self.space(name, size, Some(crc))
    }

    /// Adds an entry whose `size` bytes are written later. Returns their offset.
    pub(in crate::formats::pytorch) fn add_space(&mut self, name: String, size: u64) -> u64 {
        self.space(name, size, None)
    }

    fn space(&mut self, name: String, size: u64, crc: Option<u32>) -> u64 {
        self.header(name, size, crc);
        let data = self.end;
        self.end += size;
        self.pieces.push((self.end, Vec::new()));
        data
    }

    /// The file, with its directory at the end.
    pub(in crate::formats::pytorch) fn finish(mut self, name: String) -> FileLayout {
        let start = self.end;
        let mut checksums = Vec::new();
        let entries = std::mem::take(&mut self.entries);
        for entry in &entries {
            if entry.crc.is_none() {
                checksums.push(Checksum {
                    over: entry.data..entry.data + entry.size,
                    at: vec![entry.start + LOCAL_CRC, self.end + CENTRAL_CRC],
                });
            }
            self.write(&entry.central());
        }
        let end = directory_end(entries.len() as u64, start, self.end);
        self.write(&end);
        let byte_len = self.end;
        let mut pieces = self.pieces.into_iter().filter(|(_, piece)| !piece.is_empty());
        let (_, head) = pieces.next().unwrap_or_default();
        FileLayout { pieces: pieces.collect(), checksums, ..FileLayout::new(name, head, byte_len) }
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some((_, piece)) = self.pieces.last_mut() {
            piece.extend_from_slice(bytes);
        }
        self.end += bytes.len() as u64;
    }

    /// 4.3.7: writes the local header, with padding that aligns the content.
    fn header(&mut self, name: String, size: u64, crc: Option<u32>) {
        let start = self.end;
        let mut extra = Vec::new();
        let narrow = u32::try_from(size).unwrap_or(FULL);
        if narrow == FULL {
            put_u16(&mut extra, &[EXTRA_64, 16]);
            put_u64(&mut extra, &[size, size]);
        }
        let unpadded = start + 30 + name.len() as u64 + extra.len() as u64 + 4;
        let padding = unpadded.next_multiple_of(ALIGNMENT) - unpadded;
        put_u16(&mut extra, &[EXTRA_PADDING, padding as u16]);
        extra.resize(extra.len() + padding as usize, b'Z');
        let mut header = Vec::new();
        put_u32(&mut header, &[LOCAL]);
        put_u16(&mut header, &[if narrow == FULL { VERSION_64 } else { VERSION }, UTF8, 0, 0, DATE]);
        put_u32(&mut header, &[crc.unwrap_or(0), narrow, narrow]);
        put_u16(&mut header, &[name.len() as u16, extra.len() as u16]);
        header.extend(name.as_bytes());
        header.extend(extra);
        self.write(&header);
        self.entries.push(EntryLayout { name, start, data: self.end, size, crc });
    }
}

impl EntryLayout {
    /// 4.3.12: the bytes of the entry in the directory.
    fn central(&self) -> Vec<u8> {
        let size = u32::try_from(self.size).unwrap_or(FULL);
        let start = u32::try_from(self.start).unwrap_or(FULL);
        let mut wide = Vec::new();
        if size == FULL {
            put_u64(&mut wide, &[self.size, self.size]);
        }
        if start == FULL {
            put_u64(&mut wide, &[self.start]);
        }
        let mut extra = Vec::new();
        if !wide.is_empty() {
            put_u16(&mut extra, &[EXTRA_64, wide.len() as u16]);
            extra.extend(wide);
        }
        let version = if extra.is_empty() { VERSION } else { VERSION_64 };
        let mut out = Vec::new();
        put_u32(&mut out, &[CENTRAL]);
        put_u16(&mut out, &[version, version, UTF8, 0, 0, DATE]);
        put_u32(&mut out, &[self.crc.unwrap_or(0), size, size]);
        // Lengths of name, extra field and comment; disk number; internal and external attributes.
        put_u16(&mut out, &[self.name.len() as u16, extra.len() as u16, 0, 0, 0]);
        put_u32(&mut out, &[0, start]);
        out.extend(self.name.as_bytes());
        out.extend(extra);
        out
    }
}

/// 4.3.14 to 4.3.16: the end of a directory from `start` to `end`, with 64-bit numbers if 32 bits
/// aren't enough.
fn directory_end(count: u64, start: u64, end: u64) -> Vec<u8> {
    let size = end - start;
    let mut out = Vec::new();
    if count >= u64::from(u16::MAX) || start >= u64::from(FULL) || size >= u64::from(FULL) {
        put_u32(&mut out, &[END_64]);
        put_u64(&mut out, &[44]);
        put_u16(&mut out, &[VERSION_64, VERSION_64]);
        put_u32(&mut out, &[0, 0]);
        put_u64(&mut out, &[count, count, size, start]);
        put_u32(&mut out, &[LOCATOR_64, 0]);
        put_u64(&mut out, &[end]);
        put_u32(&mut out, &[1]);
    }
    let count = u16::try_from(count).unwrap_or(u16::MAX);
    put_u32(&mut out, &[END]);
    put_u16(&mut out, &[0, 0, count, count]);
    put_u32(&mut out, &[u32::try_from(size).unwrap_or(FULL), u32::try_from(start).unwrap_or(FULL)]);
    put_u16(&mut out, &[0]);
    out
}

fn put_u16(out: &mut Vec<u8>, numbers: &[u16]) {
    numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
}

fn put_u32(out: &mut Vec<u8>, numbers: &[u32]) {
    numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
}

fn put_u64(out: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
}

#[cfg(test)]
mod tests {
    use super::super::read_directory;
    use super::*;

    /// The archive's bytes, with zeros for content that is written later.
    fn bytes_of(file: &FileLayout) -> Vec<u8> {
        let mut bytes = vec![0; file.byte_len as usize];
        for (start, piece) in std::iter::once(&(0, file.head.clone())).chain(&file.pieces) {
            bytes[*start as usize..*start as usize + piece.len()].copy_from_slice(piece);
        }
        bytes
    }

    #[test]
    fn entries_are_aligned_and_our_own_reader_finds_them() {
        let mut zip = ZipLayout::new();
        zip.add_bytes("a/x".into(), b"12345");
        let data = zip.add_space("a/data/0".into(), 100);
        assert_eq!(data % 64, 0);
        zip.add_space("a/data/1".into(), 0);
        let file = zip.finish("f".into());
        let bytes = bytes_of(&file);
        let entries = read_directory("f".as_ref(), &bytes).unwrap();
        assert_eq!(
            entries.iter().map(|e| (e.name, e.size)).collect::<Vec<_>>(),
            [("a/x", 5), ("a/data/0", 100), ("a/data/1", 0)]
        );
        assert_eq!(&bytes[entries[0].data.clone()], b"12345");
        assert_eq!(entries[1].data.start as u64, data);
        assert_eq!(file.checksums.iter().map(|c| c.over.clone()).collect::<Vec<_>>()[0], data..data + 100);
    }

    #[test]
    fn sizes_and_places_past_32_bits_stand_in_the_extra_fields() {
        let mut zip = ZipLayout::new();
        zip.add_space("a/data/0".into(), 5 << 30);
        let after = zip.add_space("a/data/1".into(), 4);
        assert!(after > 5 << 30);
        let file = zip.finish("f".into());
        // The local header before the five gigabytes, and the directory after them.
        let wide =
            |n: u64| [&EXTRA_64.to_le_bytes()[..], &16u16.to_le_bytes(), &n.to_le_bytes(), &n.to_le_bytes()].concat();
        let holds = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
        assert!(holds(&file.head, &wide(5 << 30)));
        let tail = &file.pieces.last().unwrap().1;
        assert!(holds(tail, &wide(5 << 30)));
        assert!(holds(tail, &END_64.to_le_bytes()) && holds(tail, &LOCATOR_64.to_le_bytes()));
    }
}
