//! Hostile files, written byte by byte: each is refused with the right message.

use super::*;
use crate::Error;

/// The bytes of a file, built piece by piece.
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

    /// Pads to 32 bytes and adds `len` bytes of data.
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
        (Raw::new(0, 0, 0), "expected version 2 or 3, found version 0"),
        (Raw::new(1, 0, 0), "expected version 2 or 3, found version 1"),
        (Raw::new(4, 0, 0), "expected version 2 or 3, found version 4"),
        (Raw::new(1u32.swap_bytes(), 0, 0), "expected version 2 or 3, found version 1, big-endian"),
        (Raw::new(4u32.swap_bytes(), 0, 0), "expected version 2 or 3, found version 4, big-endian"),
        (Raw::new(3u32.swap_bytes(), 1, 0), "tensor count: expected a count of at most 0"),
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
        (tensor(&[1, 1, 1, 1, 1], 0), "tensor \"w\": expected at most 4 dimensions, found 5"),
        (tensor(&[1 << 63], 0), "tensor \"w\": expected dimensions below 2^63, found 9223372036854775808"),
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
    // Without their defects, the cases are valid.
    assert!(open(&two("v", 32).0).is_ok());
    assert!(open(&alignment(64).0).is_ok());
}

fn refused(cases: Vec<(&str, Raw, &str)>) {
    for (kind, raw, expected) in cases {
        match open(&raw.0) {
            Err(error @ (Error::Format(_) | Error::Unsupported(_))) => {
                assert!(error.to_string().contains(expected), "{kind}: {expected}\n{error}");
            }
            Err(other) => panic!("{kind}: another kind of error: {other}"),
            Ok(_) => panic!("{kind}: accepted"),
        }
    }
}

/// The defects in llama.cpp's `tests/test-gguf.cpp`, by their names there.
#[test]
fn every_broken_kind_of_llama_cpp_is_refused_by_name() {
    let keys = |n: u64| Raw::new(3, 0, n);
    let aligned = |id: u32, value: u32| Raw::new(3, 1, 1).string(b"general.alignment").u32(id).u32(value);
    let one = |dims: &[u64], kind: u32| Raw::new(3, 1, 0).tensor("my_tensor_0", dims, kind, 0);
    let two = |raw: Raw, offset: u64| raw.tensor("my_tensor_0", &[3], 24, 0).tensor("my_tensor_1", &[3], 24, offset);
    let i8s = |elems: u64, offset: u64| {
        Raw::new(3, 2, 0).tensor("my_tensor_0", &[elems], 24, 0).tensor("my_tensor_1", &[elems], 24, offset)
    };
    let big = 4 * i32::MAX as u64;
    refused(vec![
        ("HEADER_BAD_MAGIC", Raw(b"FUGG\x03\0\0\0".to_vec()), "expected the magic \"GGUF\", found \"FUGG\""),
        ("HEADER_BAD_VERSION_0", Raw::new(0, 0, 0), "expected version 2 or 3, found version 0"),
        ("HEADER_BAD_VERSION_1", Raw::new(1, 0, 0), "expected version 2 or 3, found version 1"),
        ("HEADER_BAD_VERSION_FUTURE", Raw::new(4, 0, 0), "expected version 2 or 3, found version 4"),
        ("HEADER_BAD_N_TENSORS", Raw::new(3, u64::MAX, 0), "tensor count: expected a count of at most 0"),
        ("HEADER_BAD_N_KV", Raw::new(3, 0, u64::MAX), "key count: expected a count of at most 0"),
        (
            "KV_BAD_KEY_SIZE",
            keys(1).u64(u64::MAX).raw(b"my_key_0").u32(0).data(0),
            "key 0: expected 18446744073709551615",
        ),
        ("KV_EMPTY_KEY", keys(1).string(b"").u32(0).raw(&[1]).data(0), "key 0: expected a name, found an empty one"),
        ("KV_BAD_TYPE", keys(1).string(b"my_key_0").u32(13).raw(&[1]), "expected a value type from 0 to 12, found 13"),
        ("KV_BAD_TYPE", keys(1).string(b"my_key_0").u32(9).u32(13).u64(0), "expected a value type from 0 to 12"),
        (
            "KV_BAD_VALUE_SIZE",
            keys(1).string(b"my_key_0").u32(8).u64(u64::MAX).raw(b"text"),
            "key \"my_key_0\": expected 18446744073709551615 bytes",
        ),
        (
            "KV_DUPLICATE_KEY",
            keys(2).string(b"my_key_0").u32(0).raw(&[1]).string(b"my_key_0").u32(0).raw(&[2]),
            "key \"my_key_0\": expected each key once, found it twice",
        ),
        (
            "KV_BAD_ALIGN",
            keys(1).string(b"general.alignment").u32(4).u32(13),
            "key \"general.alignment\": expected a power of two as uint32, found uint32 13",
        ),
        (
            "KV_WRONG_TYPE_ALIGN",
            keys(1).string(b"general.alignment").u32(5).u32(32),
            "key \"general.alignment\": expected a power of two as uint32, found int32 32",
        ),
        (
            "TENSORS_BAD_NAME_SIZE",
            Raw::new(3, 1, 0).tensor(&"n".repeat(64), &[4], 0, 0).data(16),
            "tensor 0: expected a name of 1 to 63 bytes, found 64 bytes",
        ),
        (
            "TENSORS_BAD_N_DIMS",
            one(&[1; 5], 0).data(16),
            "tensor \"my_tensor_0\": expected at most 4 dimensions, found 5",
        ),
        (
            "TENSORS_BAD_SHAPE",
            one(&[u64::MAX], 0).data(16),
            "expected dimensions below 2^63, found 18446744073709551615",
        ),
        (
            "TENSORS_NE_TOO_BIG",
            one(&[big, big], 24).data(16),
            "expected a size below 2^63 bytes, found shape [8589934588, ",
        ),
        ("TENSORS_NBYTES_TOO_BIG", one(&[1533916891, 1533916891], 27).data(16), "expected a size below 2^63 bytes"),
        (
            "TENSORS_NBYTES_PAD_WRAP",
            one(&[4, 1073741823, 1073741825], 0).data(16),
            "tensor \"my_tensor_0\": expected a size below 2^63 bytes, found shape [1073741825, 1073741823, 4]",
        ),
        ("TENSORS_BAD_TYPE", one(&[4], 43).data(16), "expected a type this version knows, found type 43"),
        (
            "TENSORS_BAD_OFFSET",
            Raw::new(3, 1, 0).tensor("my_tensor_0", &[4], 0, u64::MAX).data(16),
            "expected offset 0, the padded end of the tensor before it, found offset 18446744073709551615",
        ),
        (
            "TENSORS_DUPLICATE_NAME",
            Raw::new(3, 2, 0).tensor("my_tensor", &[8], 0, 0).tensor("my_tensor", &[8], 0, 32).data(64),
            "tensor \"my_tensor\": expected each name once, found it twice",
        ),
        (
            "TENSORS_BAD_ALIGN",
            aligned(4, 13).tensor("my_tensor_0", &[4], 0, 0).data(16),
            "key \"general.alignment\": expected a power of two as uint32, found uint32 13",
        ),
        ("TENSORS_INCONSISTENT_ALIGN", two(Raw::new(3, 2, 0), 3).data(64), "expected offset 32, the padded end"),
        (
            "DATA_NOT_ENOUGH_DATA",
            two(Raw::new(3, 2, 0), 32).data(34),
            "tensor \"my_tensor_1\": expected 3 bytes for I8 [3], found 2 bytes until the file's end",
        ),
        (
            "DATA_BAD_ALIGN",
            aligned(4, 13).tensor("my_tensor_0", &[13], 24, 0).data(13),
            "key \"general.alignment\": expected a power of two as uint32, found uint32 13",
        ),
        ("DATA_INCONSISTENT_ALIGN", two(Raw::new(3, 2, 0), 3).data(6), "expected offset 32, the padded end"),
        (
            "DATA_MEM_SIZE_OVERFLOW",
            i8s(0x7fff_ffff_ffff_ffc0, 0x7fff_ffff_ffff_ffc0).data(32),
            "expected 9223372036854775744 bytes for I8 [9223372036854775744], found 32 bytes until the file's end",
        ),
    ]);
    // llama.cpp accepts two of the kinds, and so does this reader.
    let empty = open(&Raw::new(3, 1, 0).tensor("my_tensor_0", &[4, 0], 0, 0).data(0).0).unwrap();
    assert_eq!(empty.tensors()[0].shape, [0, 4], "TENSORS_ZERO_DIM");
    let aligned = aligned(4, 1).tensor("my_tensor_0", &[3], 24, 0).data(3);
    assert_eq!(open(&aligned.0).unwrap().alignment(), 1, "TENSORS_CUSTOM_ALIGN");
    assert!(open(&two(Raw::new(3, 2, 0), 32).data(35).0).is_ok(), "what the cases are made of");
}

#[test]
fn lengths_of_gigabytes_are_refused_before_memory_is_taken() {
    const TEN_GB: u64 = 10_000_000_000;
    let key = || Raw::new(3, 0, 1).string(b"k");
    refused(vec![
        ("tensors", Raw::new(3, TEN_GB, 0).data(64), "tensor count: expected a count of at most 3, as many as fit"),
        ("keys", Raw::new(3, 0, TEN_GB).data(64), "key count: expected a count of at most 5"),
        ("key", Raw::new(3, 0, 1).u64(TEN_GB).data(64), "key 0: expected 10000000000 bytes at offset 32, found 64"),
        ("string", key().u32(8).u64(TEN_GB).data(64), "key \"k\": expected 10000000000 bytes at offset"),
        ("bytes", key().u32(9).u32(0).u64(TEN_GB).data(64), "key \"k\": expected a count of at most"),
        ("bools", key().u32(9).u32(7).u64(TEN_GB).data(64), "key \"k\": expected a count of at most"),
        ("strings", key().u32(9).u32(8).u64(TEN_GB).data(64), "key \"k\": expected a count of at most"),
        ("string in array", key().u32(9).u32(8).u64(1).u64(TEN_GB).data(64), "key \"k\": expected 10000000000 bytes"),
        ("name", Raw::new(3, 1, 0).u64(TEN_GB).data(64), "tensor 0: expected 10000000000 bytes at offset 32"),
    ]);
    // A sparse file can have that length at once. Strings above ggml's limit are refused although
    // they fit into the file.
    let holed = |raw: Raw| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&raw.0).unwrap();
        file.as_file().set_len(12 << 30).unwrap();
        GgufFile::open(file.path()).err().unwrap().to_string()
    };
    let cases = [
        (key().u32(8).u64(TEN_GB), "key \"k\": expected a string of at most 1073741824, found 10000000000"),
        (key().u32(9).u32(0).u64(TEN_GB), "key \"k\": expected a count of at most 1073741824, found 10000000000"),
        (Raw::new(3, 1, 0).u64(TEN_GB), "tensor 0: expected a string of at most 1073741824, found 10000000000"),
    ];
    for (raw, expected) in cases {
        let message = holed(raw);
        assert!(message.ends_with(expected), "{message}");
    }
}

#[test]
fn block_types_without_a_known_byte_order_are_refused_in_big_endian_files() {
    let big = |id: u32, elems: u64| {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_be_bytes());
        bytes.extend([1u64.to_be_bytes(), 0u64.to_be_bytes(), 1u64.to_be_bytes()].concat());
        bytes.extend(b"w");
        bytes.extend(1u32.to_be_bytes());
        bytes.extend(elems.to_be_bytes());
        bytes.extend(id.to_be_bytes());
        bytes.extend(0u64.to_be_bytes());
        Raw(bytes).data(2048)
    };
    let mut known = Vec::new();
    for dtype in (0..64).filter_map(DType::from_ggml_id) {
        match open(&big(dtype.ggml_id().unwrap(), 256).0) {
            Ok(file) => {
                assert!(file.big_endian());
                known.push(dtype);
            }
            Err(error @ Error::Unsupported(_)) => {
                let expected = format!(
                    "tensor \"w\": expected a type whose byte order is known to differ in big-endian files, found {dtype}"
                );
                assert!(error.to_string().contains(&expected), "{error}");
            }
            Err(other) => panic!("{dtype}: {other}"),
        }
    }
    use DType::*;
    assert_eq!(known, [F32, F16, Q4_0, Q8_0, Q4_K, Q6_K, I8, I16, I32, I64, F64, BF16, TQ2_0, MXFP4, NVFP4, Q1_0]);
}
