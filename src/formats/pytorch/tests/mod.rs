//! Tests of hostile files: each is refused with one line, and none makes the reader panic.

mod containers;
mod pickles;

use std::io::Write;

use proptest::prelude::*;

use super::PytorchFile;
use crate::error::{Error, Result};
use crate::source::Source;

/// The first three pickles of the older form: magic number, protocol, machine.
const LEGACY_HEAD: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.";

fn open(bytes: &[u8]) -> Result<PytorchFile> {
    open_under(bytes, None)
}

fn open_under(bytes: &[u8], key: Option<&str>) -> Result<PytorchFile> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    PytorchFile::open(file.path(), key)
}

/// The error's message without the file's name.
fn refusal(bytes: &[u8]) -> String {
    match open(bytes) {
        Err(Error::Format(finding) | Error::Unsupported(finding)) => {
            finding.to_string().split_once(": ").unwrap().1.to_owned()
        }
        Err(other) => panic!("another kind of error: {other}"),
        Ok(file) => panic!("accepted: {:?} {:?}", file.tensors(), file.others()),
    }
}

/// A file of the older form around `pickle`, without storages.
fn legacy(pickle: &[u8]) -> Vec<u8> {
    [LEGACY_HEAD, pickle, b"\x80\x02]."].concat()
}

/// A file of the older form with one storage, `"0"`: its header says `elems` elements, and its
/// bytes are `data`.
fn legacy_with(pickle: &[u8], elems: u64, data: &[u8]) -> Vec<u8> {
    [LEGACY_HEAD, pickle, b"\x80\x02]X\x01\0\0\x000a.", &elems.to_le_bytes(), data].concat()
}

/// A tuple of whole numbers.
fn numbers(numbers: &[i64]) -> Vec<u8> {
    let each = numbers.iter().flat_map(|number| [&[0x8a, 8][..], &number.to_le_bytes()].concat());
    [&b"("[..], &each.collect::<Vec<u8>>(), b"t"].concat()
}

/// A call of `_rebuild_tensor_v2` on storage `"0"`, of class `class` with `elems` elements.
fn tensor(class: &str, elems: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let number = |number: i64| [&[0x8a, 8][..], &number.to_le_bytes()].concat();
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\n".to_vec(),
        format!("{class}\n").into_bytes(),
        b"X\x01\0\0\x000X\x03\0\0\0cpu".to_vec(),
        number(elems),
        b"tQ".to_vec(),
        number(offset),
        numbers(shape),
        numbers(strides),
        b"\x89NtR".to_vec(),
    ]
    .concat()
}

/// A dictionary `{"w": tensor}`.
fn named(tensor: &[u8]) -> Vec<u8> {
    [b"\x80\x02}X\x01\0\0\0w", tensor, b"s."].concat()
}

fn fixture(name: &str) -> Vec<u8> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pytorch");
    std::fs::read(folder.join(name)).unwrap()
}

/// Reads all tensors of a file, as a conversion would.
fn read_all(file: &PytorchFile) {
    for (i, tensor) in file.tensors().iter().enumerate() {
        let bytes = tensor.dtype.bytes_of(tensor.elems() as u64, 1).unwrap();
        if bytes < 1 << 22 {
            assert_eq!(file.bytes(i).len() as u64, bytes);
        } else if tensor.rows() > 0 {
            file.rows(i, tensor.rows() - 1..tensor.rows());
        }
    }
}

#[test]
fn files_cut_short_at_any_byte_are_refused() {
    for name in ["legacy.bin", "plain.bin", "protocol-4.bin", "deflated.bin", "streamed.bin"] {
        let bytes = fixture(name);
        for length in 0..bytes.len() {
            assert!(open(&bytes[..length]).is_err(), "{name} cut to {length} bytes");
        }
        read_all(&open(&bytes).unwrap());
    }
}

#[test]
fn other_files_are_told_apart() {
    for (bytes, expected) in [
        (&b""[..], "expected a file of torch.save, found other bytes; is the download complete"),
        (b"version https://git-lfs.github.com/spec/v1", "expected the file itself, found a pointer of git-lfs"),
        (b"GGUF\x03\0\0\0", "found a GGUF file"),
        (b"\x02\0\0\0\0\0\0\0{}", "found what looks like a safetensors file; rename it to .safetensors"),
        (b"\x80\x02}.", "found a pickle of something else"),
    ] {
        let message = refusal(bytes);
        assert!(message.contains(expected), "{message}");
    }
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    assert!(refusal(&tar).contains("found the tar form of torch before 0.2"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn damage_never_panics(
        name in prop::sample::select(vec![
            "legacy.bin", "shared-legacy.bin", "protocol-1-legacy.bin", "plain.bin", "types.bin", "strided.bin",
            "lightning.bin", "opaque.bin", "parameters.bin", "protocol-5.bin", "deflated.bin", "streamed.bin",
        ]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        key in prop::sample::select(vec![None, Some("state_dict"), Some("layer"), Some("0.1")]),
    ) {
        let mut bytes = fixture(name);
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if let Ok(file) = open_under(&bytes, key) {
            read_all(&file);
        }
    }
}
