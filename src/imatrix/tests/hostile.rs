//! Tests of hostile files in both forms: each is refused with the right message.

use super::*;
use crate::Error;
use crate::imatrix::read::COUNT_LIMIT;

/// The bytes of a file of the older form, built piece by piece.
#[derive(Clone, Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn entries(count: i32) -> Self {
        Raw::default().number(count)
    }

    fn number(mut self, number: i32) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// Adds a valid entry.
    fn entry(self, name: &str, calls: i32, values: &[f32]) -> Self {
        let raw = self.number(name.len() as i32).raw(name.as_bytes()).number(calls).number(values.len() as i32);
        values.iter().fold(raw, |raw, value| raw.raw(&value.to_le_bytes()))
    }
}

#[test]
fn refuses_older_files_by_name() {
    let start = || Raw::entries(1).number(1).raw(b"w");
    let cases: Vec<(Raw, &str)> = vec![
        (Raw::default(), "expected an importance matrix: GGUF, or the older form"),
        (Raw::default().raw(b"GG"), "found 2 bytes"),
        (Raw::default().raw(b"version https://git-lfs"), "entries in 19 bytes; is the download complete?"),
        (Raw::entries(0).raw(&[0; 64]), "found 0 entries in 64 bytes"),
        (Raw::entries(-1).raw(&[0; 64]), "found -1 entries in 64 bytes"),
        (Raw::entries(i32::MAX).raw(&[0; 64]), "found 2147483647 entries in 64 bytes"),
        (Raw::entries(2).raw(&[0; 33]), "found 2 entries in 33 bytes"),
        (Raw::entries(1).number(0).raw(&[0; 64]), "entry 0: expected a number from 1 on, found 0"),
        (Raw::entries(1).number(-4).raw(&[0; 64]), "entry 0: expected a number from 1 on, found -4"),
        (Raw::entries(1).number(i32::MAX).raw(&[0; 64]), "entry 0: expected 2147483647 bytes, found 64 until"),
        (Raw::entries(1).number(2).raw(b"\xffw").raw(&[0; 64]), "entry 0: expected a UTF-8 name without zeros"),
        (Raw::entries(1).number(2).raw(b"w\0").raw(&[0; 64]), "found \"w\\x00\""),
        (start().number(-1).raw(&[0; 64]), "entry \"w\": expected a number from 0 on, found -1"),
        (start().number(1).number(0).raw(&[0; 64]), "entry \"w\": expected a number from 1 on, found 0"),
        (start().number(1).number(-1).raw(&[0; 64]), "entry \"w\": expected a number from 1 on, found -1"),
        (start().number(1).number(i32::MAX).raw(&[0; 64]), "entry \"w\": expected 8589934588 bytes, found 64 until"),
        (start().number(1).number(3).raw(&[0; 11]), "entry \"w\": expected 12 bytes, found 11 until the file's end"),
        (
            Raw::entries(1).entry("w", 1, &[1.0, f32::NAN]),
            "entry \"w\": expected finite means of squares, found NaN at 1",
        ),
        (Raw::entries(1).entry("w", 1, &[f32::INFINITY]), "found inf at 0"),
        (Raw::entries(1).entry("w", 0, &[-0.5]), "found -0.5 at 0; compute the importance matrix again"),
        (Raw::entries(2).entry("w", 1, &[1.0]).entry("w", 1, &[1.0]), "entry \"w\": expected each name once, found it"),
        (Raw::entries(2).entry("a name of many bytes", 1, &[1.0, 2.0]), "entry 1: expected 4 bytes, found 0 until"),
        (Raw::entries(1).entry("w", 1, &[1.0]).raw(&[0; 3]), "number of chunks: expected 4 bytes, found 3 until"),
        (Raw::entries(1).entry("w", 1, &[1.0]).number(-8), "number of chunks: expected a number from 0 on, found -8"),
        (
            Raw::entries(1).entry("w", 1, &[1.0]).number(8).number(-1),
            "length of the dataset's name: expected a number from 0 on, found -1",
        ),
        (
            Raw::entries(1).entry("w", 1, &[1.0]).number(8).number(9).raw(b"text.txt"),
            "name of the dataset: expected 9 bytes, found 8 until the file's end",
        ),
    ];
    for (raw, expected) in cases {
        refused(&bytes_file(&raw.0), expected);
    }
}

#[test]
fn what_follows_the_entries_may_be_missing() {
    let entries = Raw::entries(1).entry("w", 2, &[1.0, 3.0]);
    let cases = [
        (entries.clone(), 0, vec![]),
        (entries.clone().number(8), 8, vec![]),
        (entries.clone().number(8).number(0), 8, vec![]),
        (entries.clone().number(8).number(5).raw(b"a\0txtmore"), 8, vec![b"a".to_vec()]),
    ];
    for (raw, chunks, datasets) in cases {
        let matrix = ImportanceMatrix::open(bytes_file(&raw.0).path()).unwrap();
        assert_eq!((matrix.chunk_count(), matrix.datasets()), (chunks, datasets.as_slice()));
        assert_eq!(matrix.weights("w").unwrap(), [0.5, 1.5]);
    }
}

#[test]
fn refuses_gguf_files_by_name() {
    let good = || pair("w", &[1.0, 2.0], &[1.0]);
    let without = |key: &str| {
        let mut keys = keys("imatrix", 1);
        keys.remove(key);
        written(&keys, &good())
    };
    let with = |key: &str, value: Value| {
        let mut keys = keys("imatrix", 1);
        keys.insert(key, value);
        written(&keys, &good())
    };
    let of = |tensors: Vec<PlannedTensor>| written(&keys("imatrix", 1), &tensors);
    let of_type = |dtype: DType| {
        let mut tensors = good();
        tensors[0].dtype = dtype;
        of(tensors)
    };
    let counts = |count: f32| of(pair("w", &[1.0, 2.0], &[count]));
    let cases = [
        (without(DATASETS), "key \"imatrix.datasets\": expected a value, found none; this isn't an importance matrix"),
        (without(CHUNK_COUNT), "key \"imatrix.chunk_count\": expected a value, found none"),
        (without(CHUNK_SIZE), "key \"imatrix.chunk_size\": expected a value, found none"),
        (with("general.type", "model".into()), "key \"general.type\": expected \"imatrix\", found string \"model\""),
        (with(DATASETS, "text.txt".into()), "expected an array of strings, found string \"text.txt\""),
        (with(CHUNK_COUNT, Value::I32(-1)), "expected a whole number below 2^32, found int32 -1"),
        (with(CHUNK_COUNT, Value::U32(1 << 31)), "expected a number below 2^31, found 2147483648"),
        (with(CHUNK_SIZE, "512".into()), "key \"imatrix.chunk_size\": expected a whole number"),
        (of(vec![]), "tensors: expected names that end in .in_sum2 and .counts, found 0 of other names"),
        (of(vec![planned("w", DType::F32, &[1], &[1.0])]), "found 1 of other names"),
        (of(good()[..1].to_vec()), "entry \"w\": expected sums and counts, found sums alone"),
        (of(good()[1..].to_vec()), "entry \"w\": expected sums and counts, found counts alone"),
        (of(pair("", &[1.0], &[1.0])), "entry \"\": expected a tensor's name, found none"),
        (of_type(DType::F16), "entry \"w\": expected sums and counts in F32, found F16"),
        (of(pair("w", &[1.0; 6], &[1.0; 4])), "expected a count for each matrix"),
        (of(pair("w", &[1.0; 2], &[1.0; 4])), "found sums [2], counts [4]"),
        (of(pair("w", &[], &[1.0])), "found sums [0], counts [1]"),
        (of(pair("w", &[1.0], &[])), "found sums [1], counts [0]"),
        (counts(f32::NAN), "entry \"w\": expected counts from 0 to 2^63, found NaN"),
        (counts(f32::INFINITY), "expected counts from 0 to 2^63, found inf"),
        (counts(-1.0), "expected counts from 0 to 2^63, found -1"),
        (counts(COUNT_LIMIT), "expected counts from 0 to 2^63, found 9223372"),
        (of(pair("w", &[1.0, f32::NAN], &[1.0])), "entry \"w\": expected finite means of squares, found NaN at 1"),
        (of(pair("w", &[f32::INFINITY], &[1.0])), "found inf at 0"),
        (of(pair("w", &[1.0, -2.0], &[4.0])), "found -0.5 at 1"),
    ];
    for (file, expected) in cases {
        refused(&file, expected);
    }
}

#[test]
fn refuses_gguf_files_that_are_cut_short() {
    let bytes = std::fs::read(fixture("llama.gguf")).unwrap();
    for len in [4, 8, 24, 100, 1862, bytes.len() - 64] {
        assert!(matches!(ImportanceMatrix::open(bytes_file(&bytes[..len]).path()), Err(Error::Format(_))), "{len}");
    }
    let mut twice = pair("w", &[1.0], &[1.0]);
    twice[1].name = "w.in_sumx".into();
    let file = written(&keys("imatrix", 1), &twice);
    let mut bytes = std::fs::read(file.path()).unwrap();
    let at = bytes.windows(9).position(|window| window == b"w.in_sumx").unwrap();
    bytes[at + 8] = b'2';
    refused(&bytes_file(&bytes), "tensor \"w.in_sum2\": expected each name once, found it twice");
}

#[test]
fn every_cut_of_an_older_file_is_refused_or_read() {
    let bytes =
        Raw::entries(2).entry("blk.0.w", 2, &[1.0, 3.0]).entry("blk.1.w", 2, &[1.0]).number(8).number(1).raw(b"t");
    let whole = bytes.0.len();
    let entries = whole - 9;
    for len in 0..whole {
        let found = ImportanceMatrix::open(bytes_file(&bytes.0[..len]).path());
        assert_eq!(found.is_ok(), [entries, entries + 4].contains(&len), "{len}");
    }
}

#[test]
fn a_damaged_byte_gives_numbers_or_an_error() {
    let small =
        Raw::entries(2).entry("blk.0.w", 2, &[1.0, 3.0]).entry("blk.1.w", 2, &[1.0]).number(8).number(1).raw(b"t");
    let gguf = std::fs::read(written(&keys("imatrix", 1), &pair("w", &[1.0, 3.0], &[2.0])).path()).unwrap();
    for bytes in [small.0, gguf] {
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                let Ok(matrix) = ImportanceMatrix::open(bytes_file(&bytes).path()) else { continue };
                assert!(!matrix.is_empty() && matrix.keys("i").len() >= 2);
                for name in matrix.names() {
                    assert!(matrix.weights(name).unwrap().iter().all(|w| w.is_finite() && *w >= 0.0), "{at} {value}");
                }
            }
        }
    }
}

fn refused(file: &tempfile::NamedTempFile, expected: &str) {
    let error = ImportanceMatrix::open(file.path()).unwrap_err();
    assert!(matches!(error, Error::Format(_) | Error::NotFinite(_)), "{error:?}");
    let message = error.to_string();
    assert!(message.starts_with(&file.path().display().to_string()), "{message}");
    assert!(message.contains(expected) && !message.contains('\n'), "{message}\nwithout {expected:?}");
}
