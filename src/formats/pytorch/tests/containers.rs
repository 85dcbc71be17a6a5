//! Tests of hostile archives.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::DeflateEncoder;

use super::*;

/// An entry of which every field can be set wrongly.
#[derive(Clone)]
struct Raw {
    name: &'static str,
    method: u16,
    flags: u16,
    size: u32,
    crc: u32,
    data: Vec<u8>,
}

fn stored(name: &'static str, data: &[u8]) -> Raw {
    Raw { name, method: 0, flags: 0, size: data.len() as u32, crc: crc32fast::hash(data), data: data.to_vec() }
}

fn deflated(name: &'static str, data: &[u8]) -> Raw {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(data).unwrap();
    Raw { method: 8, data: encoder.finish().unwrap(), ..stored(name, data) }
}

/// The header fields that an entry has in both places.
fn common(raw: &Raw) -> Vec<u8> {
    let mut out = Vec::new();
    for short in [20, raw.flags, raw.method, 0, 0] {
        out.extend(short.to_le_bytes());
    }
    for long in [raw.crc, raw.data.len() as u32, raw.size] {
        out.extend(long.to_le_bytes());
    }
    out.extend((raw.name.len() as u16).to_le_bytes());
    out.extend([0; 2]);
    out
}

fn zip(entries: &[Raw]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut directory = Vec::new();
    for raw in entries {
        let start = out.len() as u32;
        out.extend([b"PK\x03\x04", &common(raw)[..], raw.name.as_bytes(), &raw.data].concat());
        directory.extend([b"PK\x01\x02\x14\0", &common(raw)[..], &[0; 10]].concat());
        directory.extend(start.to_le_bytes());
        directory.extend(raw.name.as_bytes());
    }
    let start = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend((entries.len() as u16).to_le_bytes());
    out.extend((entries.len() as u16).to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0; 2]);
    out
}

/// `{"w": six numbers}` and its records.
fn checkpoint() -> Vec<Raw> {
    let pickle = named(&tensor("FloatStorage", 6, 0, &[6], &[1]));
    vec![stored("a/data.pkl", &pickle), stored("a/byteorder", b"little"), stored("a/data/0", &[3; 24])]
}

/// The checkpoint with entry `number` changed.
fn with(number: usize, change: impl FnOnce(&mut Raw)) -> Vec<u8> {
    let mut entries = checkpoint();
    change(&mut entries[number]);
    zip(&entries)
}

fn refused(file: &[u8], expected: &str) {
    let message = refusal(file);
    assert!(message.contains(expected), "{message}");
}

#[test]
fn a_small_archive_is_read_and_records_of_no_use_are_named() {
    let mut entries = checkpoint();
    entries.extend([stored("a/extra/notes.txt", b"x"), stored("a/data/7", b"yy"), stored("a/version", b"3\n")]);
    let file = open(&zip(&entries)).unwrap();
    assert_eq!(*file.bytes(0), [3; 24]);
    let others: Vec<(&str, &str)> = file.others().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(others, [("a/extra/notes.txt", "zip entry of 1 bytes"), ("a/data/7", "zip entry of 2 bytes")]);
    let pickle = checkpoint().remove(0).data;
    let packed = [deflated("x/data.pkl", &pickle), deflated("x/data/0", &[3; 24])];
    assert_eq!(*open(&zip(&packed)).unwrap().bytes(0), [3; 24]);
}

#[test]
fn records_that_are_missing_double_or_misnamed_are_refused() {
    refused(&zip(&checkpoint()[..2]), "storage \"0\": expected data/0, found no such entry");
    refused(&zip(&checkpoint()[1..]), "expected data.pkl in a folder");
    let mut entries = checkpoint();
    entries.push(stored("a/data/0", &[4; 24]));
    refused(&zip(&entries), "zip entry \"a/data/0\": expected each name once, found it twice");
    let mut entries = checkpoint();
    entries.push(stored("b/data.pkl", b"\x80\x02}."));
    refused(&zip(&entries), "expected one data.pkl, found \"a/data.pkl\" and \"b/data.pkl\"");
    for name in ["../data.pkl", "/data.pkl", "a/../data.pkl", "a\\data.pkl", "a//data.pkl", "./data.pkl", "a/x\0y", ""]
    {
        let message = refusal(&with(1, |raw| raw.name = name));
        assert!(message.contains("expected a plain relative path"), "{message}");
    }
    // A storage's key that looks like a path: it is only looked for among the entries.
    let pickle = checkpoint().remove(0).data;
    let at = pickle.windows(6).position(|w| w == b"X\x01\0\0\x000").unwrap();
    let elsewhere = [&pickle[..at], b"X\x0b\0\0\0/etc/passwd", &pickle[at + 6..]].concat();
    refused(&with(0, |raw| *raw = stored("a/data.pkl", &elsewhere)), "expected data//etc/passwd, found no such entry");
}

#[test]
fn sizes_that_disagree_are_refused() {
    refused(&with(2, |raw| *raw = stored("a/data/0", &[3; 20])), "expected 6 elements of float32, found 20 bytes");
    refused(&with(2, |raw| raw.size = 48), "expected 48 bytes, as it says, found 24");
    refused(&with(2, |raw| raw.size = u32::MAX), "expected 64-bit sizes in the extra field, found none");
    refused(&with(1, |raw| *raw = stored("a/byteorder", b"middle")), "expected little or big, found \"middle\"");
    refused(&with(1, |raw| *raw = stored("a/byteorder", &[b'l'; 99])), "expected at most 16 bytes, found 99");
    let pickle = [&checkpoint().remove(0).data[..], b"N."].concat();
    refused(&with(0, |raw| *raw = stored("a/data.pkl", &pickle)), "expected one pickle, found 2 bytes behind it");
}

#[test]
fn zip_bombs_stop_at_the_size_that_the_pickle_asks_for() {
    // More content than the directory says, and less.
    let bomb = |content: &[u8], size: u32| with(2, |raw| *raw = Raw { size, ..deflated("a/data/0", content) });
    refused(&bomb(&vec![0; 1 << 24], 24), "expected 24 bytes when inflated, found more");
    refused(&bomb(&[0; 23], 24), "expected 24 bytes when inflated, found 1 less");
    // A size that the deflated data can't reach.
    let claim = with(2, |raw| *raw = Raw { size: 1 << 30, ..deflated("a/data/0", &[0; 24]) });
    refused(&claim, "expected a size that deflated data can have, found 1073741824 bytes out of");
    refused(
        &with(2, |raw| *raw = Raw { crc: 1, ..deflated("a/data/0", &[0; 24]) }),
        "content with the CRC-32 00000001",
    );
    refused(&with(2, |raw| *raw = Raw { method: 8, ..stored("a/data/0", &[0xff; 24]) }), "expected deflated data");
    // The pickle itself.
    let pickle = with(0, |raw| *raw = Raw { size: 8, ..deflated("a/data.pkl", &vec![b'N'; 1 << 20]) });
    refused(&pickle, "zip entry \"a/data.pkl\": expected 8 bytes when inflated, found more");
    let large = with(0, |raw| *raw = deflated("a/data.pkl", &vec![b'N'; (128 << 20) + 1]));
    refused(&large, "expected at most 134217728 bytes, found 134217729");
}

#[test]
fn other_kinds_of_archives_are_refused_by_name() {
    refused(&with(2, |raw| raw.flags = 1), "expected an entry that is not encrypted, found an encrypted one");
    refused(&with(2, |raw| raw.method = 12), "expected an entry that is stored or deflated, found method 12");
    let mut entries = checkpoint();
    entries.push(stored("a/constants.pkl", b""));
    refused(&zip(&entries), "found a TorchScript program");
}

#[test]
fn headers_that_disagree_or_overlap_are_refused() {
    let whole = zip(&checkpoint());
    let find = |what: &[u8]| whole.windows(what.len()).position(|w| w == what).unwrap();
    let edited = |at: usize, bytes: &[u8]| {
        let mut file = whole.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let directory = find(b"PK\x01\x02");
    let end = find(b"PK\x05\x06");
    // A wrong local name, size, method and signature of the first entry.
    refused(&edited(30, b"b"), "zip entry \"a/data.pkl\": expected a header that agrees with the directory");
    refused(&edited(18, &[9]), "expected a header that agrees with the directory");
    refused(&edited(8, &[8]), "expected a header that agrees with the directory");
    // A wrong offset of the second entry: at the first one, and past the end.
    let second = directory + 46 + "a/data.pkl".len() + 42;
    refused(&edited(second, &[0; 4]), "expected a header that agrees with the directory");
    refused(&edited(second, &[0xff, 0xff, 0xff, 0x7f]), "expected a place inside the file");
    // A wrong end of the directory: one entry more or fewer, another offset, another disk.
    refused(&edited(end + 8, &[4, 0, 4, 0]), "found 4 entries in 167 bytes");
    refused(&edited(end + 8, &[2, 0, 2, 0]), "expected 2 entries in the directory, found more bytes behind them");
    refused(&edited(end + 8, &[0xff, 0xff, 0xff, 0xff]), "expected a directory that ends at");
    refused(&edited(end + 16, &[1]), "expected a directory that ends at");
    refused(&edited(end + 4, &[1]), "expected an archive in one file");
    // Bytes shared by two entries: the header of the second is inside the data of the first.
    let inner = zip(&[stored("a/x", b"12")]);
    let outer = stored("a/data.pkl", &inner[..35]);
    let mut file = zip(&[outer, stored("a/x", b"12")]);
    let directory = file.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let second = directory + 46 + "a/data.pkl".len() + 42;
    file[second..second + 4].copy_from_slice(&40u32.to_le_bytes());
    refused(&file, "zip entry \"a/x\": expected bytes of its own, found bytes shared with another");
}

#[test]
fn directories_with_64_bit_numbers_are_read_and_have_to_agree() {
    let plain = zip(&checkpoint());
    let end = plain.len() - 22;
    let number = |at: usize| u64::from(u32::from_le_bytes(plain[at..at + 4].try_into().unwrap()));
    let (size, start) = (number(end + 12), number(end + 16));
    let wide = |count: u64, size: u64, start: u64, record: u64, at: u64, narrow: &[u8; 22]| {
        let mut file = plain[..end].to_vec();
        file.extend(b"PK\x06\x06");
        file.extend(record.to_le_bytes());
        file.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        [count, count, size, start].iter().for_each(|n| file.extend(n.to_le_bytes()));
        file.extend(b"PK\x06\x07\0\0\0\0");
        file.extend(at.to_le_bytes());
        file.extend([1, 0, 0, 0]);
        file.extend(narrow);
        file
    };
    let full = b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0";
    let own: &[u8; 22] = plain[end..].try_into().unwrap();
    let at = end as u64;
    for narrow in [full, own] {
        assert_eq!(*open(&wide(3, size, start, 44, at, narrow)).unwrap().bytes(0), [3; 24]);
    }
    refused(&wide(3, size, start, 45, at, full), "expected a 64-bit end of the directory");
    refused(&wide(3, size, start, u64::MAX, at, full), "expected a 64-bit end of the directory");
    refused(&wide(3, size, start, 44, u64::MAX, full), "expected a 64-bit end of the directory");
    refused(&wide(3, size, start, 44, 0, full), "expected a 64-bit end of the directory");
    refused(&wide(2, size, start, 44, at, own), "expected one directory, found two ends that disagree");
    refused(&wide(u64::MAX, size, start, 44, at, full), "expected a directory that ends at");
    refused(&wide(3, u64::MAX, start, 44, at, full), "expected a directory that ends at");
    refused(&wide(3, size, u64::MAX, 44, at, full), "expected a directory that ends at");
}

/// Where entry `number` stands in the directory.
#[cfg(feature = "hub")]
fn listed(file: &[u8], number: usize) -> usize {
    file.windows(4).enumerate().filter(|(_, bytes)| bytes == b"PK\x01\x02").nth(number).unwrap().0
}

#[cfg(feature = "hub")]
#[test]
fn an_archive_without_its_values_is_put_together_from_directory_and_records() {
    for name in ["plain.bin", "big-endian.bin", "protocol-5.bin"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pytorch").join(name);
        let whole = std::fs::read(&path).unwrap();
        let mut outline = vec![0; whole.len()];
        let directory = listed(&whole, 0);
        outline[directory..].copy_from_slice(&whole[directory..]);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &outline).unwrap();
        let mut values = 0;
        for super::super::Record { place, header } in super::super::records(file.path()).unwrap() {
            let place = place.start as usize..place.end as usize;
            match header {
                Some(header) => {
                    outline[place.start..place.start + header.len()].copy_from_slice(&header);
                    values += 1;
                }
                None => outline[place.clone()].copy_from_slice(&whole[place]),
            }
        }
        assert!(values > 0, "{name}");
        let (found, expected) = (open(&outline).unwrap(), PytorchFile::open(&path, None).unwrap());
        assert_eq!((found.tensors(), found.others()), (expected.tensors(), expected.others()), "{name}");
    }
    // Entries that share bytes.
    let mut file = zip(&checkpoint());
    let offset = listed(&file, 1) + 42;
    file[offset..offset + 4].fill(0);
    let written = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(written.path(), &file).unwrap();
    let message = super::super::records(written.path()).err().unwrap().to_string();
    assert!(message.contains("zip archive: expected room for every entry, found none for \"a/"), "{message}");
}
