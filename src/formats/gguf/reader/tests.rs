//! Round trips through the writer, and hostile files: each refused by the message that fits.

use std::io::Write;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::Error;
use crate::formats::gguf::layout;
use crate::plan::{Expr, PlannedTensor};

fn open(bytes: &[u8]) -> Result<GgufFile> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    GgufFile::open(file.path())
}

fn planned(name: &str, dtype: DType, shape: &[usize]) -> PlannedTensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i| i as f32).collect();
    PlannedTensor { name: name.into(), dtype, shape: shape.to_vec(), expr: Expr::Values(Arc::from(values)) }
}

/// A file as the executor would write it, with bytes that count up for data.
fn written(metadata: &Metadata, tensors: &[PlannedTensor]) -> Vec<u8> {
    let layout = layout(metadata, tensors).unwrap();
    let mut bytes = layout.files[0].head.clone();
    bytes.resize(layout.files[0].byte_len as usize, 0);
    for (place, tensor) in layout.places.iter().zip(tensors) {
        let at = place.offset as usize;
        for (i, b) in bytes[at..at + tensor.byte_len() as usize].iter_mut().enumerate() {
            *b = i as u8;
        }
    }
    bytes
}

fn every_type() -> Metadata {
    let mut metadata = Metadata::new("test.gguf");
    metadata.insert("u8", 1u8);
    metadata.insert("i8", -1i8);
    metadata.insert("u16", 2u16);
    metadata.insert("i16", -2i16);
    metadata.insert("u32", 3u32);
    metadata.insert("i32", -3i32);
    metadata.insert("f32", 0.5f32);
    metadata.insert("bool", true);
    metadata.insert("text", "größe");
    metadata.insert("bytes", vec![0xffu8, 0]);
    metadata.insert("u64", u64::MAX);
    metadata.insert("i64", i64::MIN);
    metadata.insert("f64", 1e300f64);
    metadata.insert("u8s", Array::U8(vec![1, 2]));
    metadata.insert("i8s", Array::I8(vec![-1]));
    metadata.insert("u16s", Array::U16(vec![1]));
    metadata.insert("i16s", Array::I16(vec![-1]));
    metadata.insert("u32s", Array::U32(vec![]));
    metadata.insert("i32s", Array::I32(vec![-1, 1, 7]));
    metadata.insert("f32s", Array::F32(vec![0.25]));
    metadata.insert("bools", Array::Bool(vec![true, false]));
    metadata.insert("texts", Array::texts(["a", "", "ü"]));
    metadata.insert("u64s", Array::U64(vec![u64::MAX]));
    metadata.insert("i64s", Array::I64(vec![i64::MIN]));
    metadata.insert("f64s", Array::F64(vec![-0.0]));
    metadata
}

#[test]
fn reads_back_what_was_laid_out() {
    let tensors =
        [planned("a", DType::F32, &[3]), planned("b", DType::Q8_0, &[5, 64]), planned("c", DType::F16, &[2, 1, 3])];
    for alignment in [None, Some(1u32), Some(8), Some(64), Some(4096)] {
        let mut metadata = every_type();
        if let Some(alignment) = alignment {
            metadata.insert("general.alignment", alignment);
        }
        let bytes = written(&metadata, &tensors);
        let file = open(&bytes).unwrap();
        let alignment = alignment.map_or(32, u64::from);
        assert_eq!((file.version(), file.alignment()), (3, alignment));
        assert_eq!(file.metadata(), &metadata);
        assert!((bytes.len() as u64).is_multiple_of(alignment));
        for (i, (info, tensor)) in file.tensors().iter().zip(&tensors).enumerate() {
            assert_eq!((&info.name, info.dtype, &info.shape), (&tensor.name, tensor.dtype, &tensor.shape));
            assert_eq!(file.bytes(i).len() as u64, tensor.byte_len());
            assert!(file.bytes(i).iter().enumerate().all(|(i, b)| *b == i as u8));
            assert!((file.range(i).start as u64).is_multiple_of(alignment));
        }
    }
}

#[test]
fn reads_files_without_tensors_and_without_keys() {
    let file = open(&written(&Metadata::default(), &[])).unwrap();
    assert!(file.metadata().is_empty() && file.tensors().is_empty());
    let unpadded = [b"GGUF".as_slice(), &3u32.to_le_bytes(), &[0; 16]].concat();
    assert!(open(&unpadded).unwrap().tensors().is_empty());
}

#[test]
fn reads_version_2_and_a_last_tensor_without_padding() {
    let mut bytes = written(&every_type(), &[planned("a", DType::F32, &[3])]);
    bytes[4] = 2;
    bytes.truncate(bytes.len() - 20);
    let file = open(&bytes).unwrap();
    assert_eq!(file.version(), 2);
    assert_eq!(file.bytes(0).len(), 12);
}

/// Bytes of a file, piece by piece.
#[derive(Clone)]
struct Raw(Vec<u8>);

impl Raw {
    fn new(version: u32, tensors: u64, keys: u64) -> Self {
        Raw([b"GGUF".as_slice(), &version.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat())
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn string(self, bytes: &[u8]) -> Self {
        self.u64(bytes.len() as u64).raw(bytes)
    }

    fn tensor(self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        let head = self.string(name.as_bytes()).u32(dims.len() as u32);
        dims.iter().fold(head, |raw, dim| raw.u64(*dim)).u32(kind).u64(offset)
    }

    /// Padded to 32 bytes, and `len` bytes of data.
    fn data(mut self, len: usize) -> Self {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + len, 0);
        self
    }
}

#[test]
fn refuses_what_the_format_forbids_by_name() {
    let key = |keys: u64| Raw::new(3, 0, keys).string(b"k");
    let tensor = |dims: &[u64], kind: u32| Raw::new(3, 1, 0).tensor("w", dims, kind, 0).data(64);
    let two =
        |second: &str, offset: u64| Raw::new(3, 2, 0).tensor("w", &[4], 0, 0).tensor(second, &[4], 0, offset).data(64);
    let alignment = |value: u32| Raw::new(3, 0, 1).string(b"general.alignment").u32(4).u32(value).data(0);
    let long = "n".repeat(64);
    let cases: Vec<(Raw, &str)> = vec![
        (Raw(vec![]), "GGUF header: expected 4 bytes at offset 0, found 0"),
        (Raw(b"GGUFxx".to_vec()), "GGUF header: expected 4 bytes at offset 4, found 2"),
        (Raw(b"FUGG\0\0\0\x03".to_vec()), "expected the magic \"GGUF\", found \"FUGG\""),
        (Raw(b"version https://git-lfs".to_vec()), "found \"vers\""),
        (Raw::new(0, 0, 0), "expected version 2 or 3, found 0"),
        (Raw::new(1, 0, 0), "expected version 2 or 3, found 1"),
        (Raw::new(4, 0, 0), "expected version 2 or 3, found 4"),
        (Raw::new(3u32.swap_bytes(), 0, 0), "found a byte-swapped (big-endian) one"),
        (Raw::new(3, u64::MAX, 0), "tensor count: expected a count of at most 0, as many as fit into the file"),
        (Raw::new(3, 0, u64::MAX), "key count: expected a count of at most 0"),
        (Raw::new(3, 0, 2).raw(&[0; 20]), "key count: expected a count of at most 1"),
        (Raw::new(3, 0, 1).u64(u64::MAX).data(28), "key 0: expected 18446744073709551615 bytes"),
        (Raw::new(3, 0, 1).string(b"").u32(0).data(28), "key 0: expected a name, found an empty one"),
        (Raw::new(3, 0, 1).string(b"\xff").u32(0).data(28), "key 0: expected a UTF-8 name, found \"\\xff\""),
        (key(1).u32(13).data(28), "key \"k\": expected a value type from 0 to 12, found 13"),
        (key(1).u32(7).raw(&[2]), "key \"k\": expected a bool of 0 or 1, found 2"),
        (key(1).u32(9).u32(7).u64(2).raw(&[0, 3]), "key \"k\": expected a bool of 0 or 1, found 3"),
        (key(1).u32(9).u32(9).u64(0), "key \"k\": expected elements of a plain type, found arrays inside an array"),
        (key(1).u32(9).u32(13).u64(0), "key \"k\": expected a value type"),
        (key(1).u32(9).u32(4).u64(1 << 62), "key \"k\": expected a count of at most 0"),
        (key(1).u32(9).u32(8).u64(2).u64(0), "key \"k\": expected a count of at most 1"),
        (key(1).u32(9).u32(8).u64(1).u64(9).raw(b"short"), "key \"k\": expected 9 bytes at offset"),
        (key(1).u32(8).u64(9).raw(b"short"), "key \"k\": expected 9 bytes at offset"),
        (key(1).u32(12).raw(&[0; 7]), "key \"k\": expected 8 bytes at offset"),
        (key(2).u32(0).raw(&[1]).string(b"k").u32(0).raw(&[1]), "key \"k\": expected each key once, found it twice"),
        (alignment(0), "key \"general.alignment\": expected a power of two as uint32, found uint32 0"),
        (alignment(24), "found uint32 24"),
        (Raw::new(3, 0, 1).string(b"general.alignment").u32(10).u64(32), "found uint64 32"),
        (Raw::new(3, 1, 0).tensor("", &[4], 0, 0).data(64), "tensor 0: expected a name of 1 to 63 bytes, found 0"),
        (Raw::new(3, 1, 0).tensor(&long, &[4], 0, 0).data(64), "expected a name of 1 to 63 bytes, found 64"),
        (tensor(&[], 0), "tensor \"w\": expected 1 to 4 dimensions, found 0"),
        (tensor(&[1, 1, 1, 1, 1], 0), "tensor \"w\": expected 1 to 4 dimensions, found 5"),
        (tensor(&[4, 0], 0), "tensor \"w\": expected dimensions from 1 to 2^63 - 1, found 0"),
        (tensor(&[1 << 63], 0), "tensor \"w\": expected dimensions from 1 to 2^63 - 1"),
        (tensor(&[1 << 40, 1 << 40], 0), "tensor \"w\": expected a size below 2^63 bytes"),
        (tensor(&[1 << 62, 2], 0), "tensor \"w\": expected a size below 2^63 bytes"),
        (tensor(&[1 << 61], 28), "tensor \"w\": expected a size below 2^63 bytes"),
        (tensor(&[4], 4), "found Q4_2 (type 4), which was removed"),
        (tensor(&[4], 31), "found Q4_0_4_4 (type 31), which was removed"),
        (tensor(&[4], 1000), "expected a type this version knows, found type 1000"),
        (tensor(&[33], 8), "expected rows that divide into blocks of 32 for Q8_0, found rows of 33"),
        (tensor(&[17], 0), "tensor \"w\": expected 68 bytes for F32 [17], found 64 bytes until the file's end"),
        (tensor(&[1 << 50], 0), "until the file's end; the file is cut short"),
        (Raw::new(3, 1, 0).tensor("w", &[4], 0, 32).data(64), "tensor \"w\": expected offset 0"),
        (two("w", 32), "tensor \"w\": expected each name once, found it twice"),
        (two("v", 16), "tensor \"v\": expected offset 32, the padded end of the tensor before it, found offset 16"),
        (two("v", 0), "tensor \"v\": expected offset 32"),
        (two("v", 64), "tensor \"v\": expected offset 32"),
    ];
    for (raw, expected) in cases {
        match open(&raw.0) {
            Err(error @ (Error::Format(_) | Error::Unsupported(_))) => {
                assert!(error.to_string().contains(expected), "{expected}\n{error}");
            }
            Err(other) => panic!("another kind of error: {other}"),
            Ok(_) => panic!("accepted: {expected}"),
        }
    }
    // What the cases are made of is right by itself.
    assert!(open(&two("v", 32).0).is_ok());
    assert!(open(&alignment(64).0).is_ok());
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let long = "n".repeat(64);
    let cases = [
        (vec![planned("", DType::F32, &[1])], "expected a name of 1 to 63 bytes"),
        (vec![planned(&long, DType::F32, &[1])], "expected a name of 1 to 63 bytes, found 64"),
        (vec![planned("w", DType::F32, &[])], "expected 1 to 4 dimensions, none of them 0, found shape []"),
        (vec![planned("w", DType::F32, &[2, 0])], "found shape [2, 0]"),
        (vec![planned("w", DType::F32, &[1, 1, 1, 1, 1])], "expected 1 to 4 dimensions"),
        (vec![planned("w", DType::U8, &[4])], "expected a type of GGUF, found U8"),
        (vec![planned("w", DType::Q8_0, &[2, 16])], "expected rows of whole Q8_0 blocks"),
        (vec![planned("w", DType::F32, &[1]), planned("w", DType::F32, &[1])], "expected each name once"),
    ];
    for (tensors, expected) in cases {
        let error = layout(&Metadata::new("out.gguf"), &tensors).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let mut metadata = Metadata::default();
    metadata.insert("general.alignment", 12u32);
    assert!(layout(&metadata, &[]).unwrap_err().to_string().contains("expected a power of two"));
}

proptest! {
    /// Whatever happens to a file on its way, opening it ends in a value or an error.
    #[test]
    fn damage_never_panics(cut in 0.0..1.0f64, flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)) {
        let tensors = [planned("first", DType::F32, &[3]), planned("second", DType::Q8_0, &[2, 32])];
        let mut bytes = written(&every_type(), &tensors);
        for (place, byte) in flips {
            let at = place.index(bytes.len());
            bytes[at] = byte;
        }
        let whole = bytes.len();
        if cut < 0.5 {
            bytes.truncate((whole as f64 * cut * 2.0) as usize);
        }
        if let Ok(file) = open(&bytes) {
            for i in 0..file.tensors().len() {
                prop_assert!(file.bytes(i).len() <= whole);
            }
        }
    }
}
