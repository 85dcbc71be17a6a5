//! Tests of valid files, and of the attacks that the format's own repository describes
//! (`attacks/README.md`, the tests of `tensor.rs`): each is refused with the right message.

use std::io::Write;

use proptest::prelude::*;

use super::*;

fn raw(length: u64, rest: &[&[u8]]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&length.to_le_bytes()).unwrap();
    rest.iter().for_each(|bytes| file.write_all(bytes).unwrap());
    file
}

fn open(header: &str, data: &[u8]) -> Result<SafetensorsFile> {
    SafetensorsFile::open(raw(header.len() as u64, &[header.as_bytes(), data]).path())
}

/// The error's message without the file's name.
fn message(result: Result<SafetensorsFile>) -> String {
    match result {
        Err(Error::Format(finding) | Error::Unsupported(finding)) => {
            finding.to_string().split_once(": ").unwrap().1.to_owned()
        }
        Err(other) => panic!("another kind of error: {other}"),
        Ok(_) => panic!("accepted"),
    }
}

fn entry(name: &str, dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
}

fn one(dtype: &str, shape: &str, offsets: &str) -> String {
    format!("{{{}}}", entry("w", dtype, shape, offsets))
}

fn two(first: (&str, &str), second: (&str, &str)) -> String {
    format!("{{{},{}}}", entry(first.0, "F32", "[1]", first.1), entry(second.0, "F32", "[1]", second.1))
}

fn refused(cases: &[(String, &[u8], &str)]) {
    for (header, data, expected) in cases {
        let message = message(open(header, data));
        assert!(message.contains(expected), "{header}\n{expected}\n{message}");
    }
}

#[test]
fn reads_names_shapes_and_bytes_in_file_order() {
    let file = open(
        r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2],"data_offsets":[4,8]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#,
        &[1, 2, 3, 4, 5, 6, 7, 8],
    )
    .unwrap();
    assert_eq!(file.text_metadata().unwrap()["format"], "pt");
    assert_eq!(file.tensors()[0], TensorInfo { name: "b".into(), dtype: DType::F16, shape: vec![2] });
    assert_eq!(*file.bytes(0), [5, 6, 7, 8]);
    assert_eq!(*file.bytes(1), [1, 2, 3, 4]);
}

#[test]
fn reads_empty_tensors_and_headers_padded_on_either_side() {
    let header = format!("{{{},{}}}", entry("empty", "I32", "[2,0]", "[0,0]"), entry("w", "U8", "[1]", "[0,1]"));
    let file = open(&header, &[7]).unwrap();
    assert_eq!((file.bytes(0).len(), &*file.bytes(1)), (0, [7].as_slice()));
    for header in ["{}\r \t\n", "\t\n{}\r ", "{}"] {
        assert!(open(header, &[]).unwrap().tensors().is_empty(), "{header:?}");
    }
}

#[test]
fn refuses_what_the_format_forbids_by_name() {
    refused(&[
        (one("F32", "[2]", "[0,4]"), &[0; 4], "tensor \"w\": expected 8 bytes for F32 [2], found 4 bytes"),
        (one("F32", "[2]", "[0,8]"), &[0; 4], "expected offsets inside the 4 bytes of data, found [0, 8]"),
        (
            one("F32", "[1]", "[4,0]"),
            &[0; 4],
            "tensor \"w\": expected offsets inside the 4 bytes of data, found [4, 0]",
        ),
        (one("F32", "[4294967296,4294967296,2]", "[0,4]"), &[0; 4], "expected a size below 2^64 bytes"),
        (one("I32", "[2,18446744073709551614]", "[0,16]"), &[0; 16], "expected a size below 2^64 bytes"),
        (one("I32", "[2,9223372036854775807]", "[0,16]"), &[0; 16], "expected a size below 2^64 bytes"),
        (one("F32", "[1]", "[0,4]"), &[0; 8], "tensor data: expected 4 bytes, as the header says, found 8 bytes"),
        ("{}".into(), b"PK\x03\x04", "tensor data: expected 0 bytes, as the header says, found 4 bytes"),
        (
            one("F32", "[1]", "[4,8]"),
            &[0; 8],
            "tensor \"w\": expected data from offset 0, where the tensor before it ends",
        ),
        (two(("v", "[0,4]"), ("w", "[8,12]")), &[0; 12], "tensor \"w\": expected data from offset 4"),
        (two(("v", "[0,4]"), ("w", "[0,4]")), &[0; 4], "tensor \"w\": expected data from offset 4"),
        (two(("v", "[0,4]"), ("w", "[2,6]")), &[0; 6], "tensor \"w\": expected data from offset 4"),
        (two(("w", "[0,4]"), ("w", "[4,8]")), &[0; 8], "tensor \"w\": expected each name once, found it twice"),
        (one("F32", "[1]", "[18446744073709551612,18446744073709551615]"), &[0; 4], "expected offsets inside"),
    ]);
}

/// Many tensors on the same bytes: small on disk, large once loaded.
#[test]
fn refuses_a_thousand_tensors_on_the_same_bytes() {
    let entries: Vec<String> = (0..1000).map(|i| entry(&format!("w{i:04}"), "F32", "[4]", "[0,16]")).collect();
    let message = message(open(&format!("{{{}}}", entries.join(",")), &[0; 16]));
    assert!(message.starts_with("tensor \"w0001\": expected data from offset 16"), "{message}");
}

#[test]
fn refuses_headers_that_are_not_tensors_in_json() {
    let odd = |value: &str| format!(r#"{{"w":{value}}}"#);
    let nested = |n: usize| "[".repeat(n);
    refused(&[
        (String::new(), &[], "safetensors header: expected a JSON object of tensors, found a text that breaks off"),
        ("{".into(), &[], "found a text that breaks off"),
        ("[1]".into(), &[], "found a list, where an object of tensors is expected"),
        ("null".into(), &[], "found null"),
        ("\u{feff}{}".into(), &[], "found something that is no value"),
        ("{}x".into(), &[], "found more text after the end"),
        ("{}{}".into(), &[], "found more text after the end"),
        (odd("[1]"), &[], "in \"w\": 1, where a text is expected"),
        (odd("null"), &[], "in \"w\": null, where"),
        (odd("{}"), &[], "in \"w\": no field \"dtype\""),
        (odd(r#"{"dtype":"F32","shape":[]}"#), &[], "in \"w\": no field \"data_offsets\""),
        (odd(r#"{"dtype":"F32","dtype":"F16","shape":[],"data_offsets":[0,4]}"#), &[0; 4], "the field \"dtype\" twice"),
        (odd(r#"{"dtype":"F32","shape":[],"data_offsets":[0,4],"strides":[2]}"#), &[0; 4], "unknown field `strides`"),
        (odd(r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#), &[0; 4], "in \"w\": unknown field `a`"),
        (
            one("F32", "[true]", "[0,4]"),
            &[0; 4],
            "in \"w\": true, where a whole number that is not negative is expected",
        ),
        (one("F32", "[-1]", "[0,4]"), &[0; 4], "in \"w\": -1, where a whole number that is not negative is expected"),
        (one("F32", "[1.0]", "[0,4]"), &[0; 4], "in \"w\": 1.0, where a whole number that is not negative is expected"),
        (
            one("F32", "[\"1\"]", "[0,4]"),
            &[0; 4],
            "in \"w\": \"1\", where a whole number that is not negative is expected",
        ),
        (one("F32", "1", "[0,4]"), &[0; 4], "in \"w\": 1, where a list is expected"),
        (one("F32", "[18446744073709551616]", "[0,4]"), &[0; 4], "in \"w\": 1.8446744073709552e+19, where"),
        (one("F32", "[1]", "[-4,0]"), &[0; 4], "in \"w\": -4, where a whole number that is not negative is expected"),
        (one("F32", "[1]", "[0]"), &[0; 4], "in \"w\": 1 of them, where a list of 2 is expected"),
        (one("F32", "[1]", "[0,4,8]"), &[0; 4], "in \"w\""),
        (r#"{"__metadata__":{"n":1}}"#.into(), &[], "in \"__metadata__\": 1, where a text is expected"),
        (r#"{"__metadata__":{"n":{"m":"x"}}}"#.into(), &[], "in \"__metadata__\": an object, where a text is expected"),
        (r#"{"__metadata__":[]}"#.into(), &[], "in \"__metadata__\": a list, where an object is expected"),
        (r#"{"__metadata__":{},"__metadata__":{"a":"b"}}"#.into(), &[], "the field \"__metadata__\" twice"),
        (nested(100_000), &[], "found a list, where"),
        (odd(&nested(100_000)), &[], "in \"w\": a list, where"),
        (format!(r#"{{"w":{}"#, r#"{"w":"#.repeat(100_000)), &[], "in \"w\": unknown field `w`"),
    ]);
    let not_text = SafetensorsFile::open(raw(4, &[b"{\"\xff\""]).path());
    assert!(message(not_text).contains("found bytes that aren't UTF-8"), "names are UTF-8");
    let not_text = SafetensorsFile::open(raw(1, &[b"\xff"]).path());
    assert!(message(not_text).contains("found something that is no value, in line 1, column 1"));
}

#[test]
fn refuses_types_it_does_not_read_by_name() {
    for dtype in UNREAD_TYPES {
        let error = open(&one(dtype, "[4]", "[0,2]"), &[0; 2]).err().unwrap();
        assert!(matches!(error, Error::Unsupported(_)));
        let expected = format!("tensor \"w\": expected a type this version reads, found {dtype}");
        assert!(error.to_string().ends_with(&expected), "{error}");
    }
    for dtype in ["", "f32", "F99", "Q8_0", "F8"] {
        let message = message(open(&one(dtype, "[1]", "[0,4]"), &[0; 4]));
        assert_eq!(message, format!("tensor \"w\": expected a type of safetensors, found {dtype:?}"));
    }
}

#[test]
fn refuses_a_header_length_past_the_file_without_allocating_it() {
    let of = |length, rest: &[u8]| message(SafetensorsFile::open(raw(length, &[rest]).path()));
    assert!(of(u64::MAX, b"").contains("expected a length of at most 0 bytes, found 18446744073709551615"));
    assert!(of(60, b"").contains("expected a length of at most 0 bytes, found 60"));
    assert!(of(10_000_000_000, b"{}").contains("expected a length of at most 2 bytes, found 10000000000"));
    let short = |bytes: &[u8]| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        message(SafetensorsFile::open(file.path()))
    };
    assert!(short(b"").starts_with("safetensors header: expected at least 8 bytes, found 0; is the download complete"));
    assert!(short(b"abc").contains("expected at least 8 bytes, found 3"));
    assert!(
        short(b"version https://git-lfs.github.com/spec/v1\n")
            .contains("expected the file itself, found a pointer of git-lfs")
    );
    // A header longer than any reader accepts, in a sparse file that is long enough for it.
    let file = raw(MAX_HEADER_BYTES + 1, &[]);
    file.as_file().set_len(MAX_HEADER_BYTES + 1000).unwrap();
    let message = message(SafetensorsFile::open(file.path()));
    assert!(message.contains("expected a length of at most 100000000 bytes, found 100000001"), "{message}");
}

proptest! {
    /// Opening a damaged file gives a value or an error, never a panic. A file that is read gives
    /// the same as with the format's own reader.
    #[test]
    fn damage_never_panics(
        cut in 0.0..2.0f64,
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let header = format!("{{{},{}}}", entry("v", "F16", "[3]", "[0,6]"), entry("w", "F32", "[2,1]", "[6,14]"));
        let mut bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[9; 14]].concat();
        for (place, byte) in flips {
            let at = place.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate((bytes.len() as f64 * cut) as usize);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        if let Ok(file) = SafetensorsFile::open(file.path()) {
            let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
            prop_assert_eq!(theirs.len(), file.tensors().len());
            for (i, info) in file.tensors().iter().enumerate() {
                let tensor = theirs.tensor(&info.name).unwrap();
                prop_assert_eq!(tensor.data(), &*file.bytes(i));
                prop_assert_eq!(tensor.shape(), &info.shape);
                prop_assert_eq!(tensor.dtype().to_string(), info.dtype.name());
            }
        }
    }
}
