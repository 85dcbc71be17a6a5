//! Round trips through the writer. Tests of refused files are in `hostile`.

use std::io::Write;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::formats::gguf::layout;
use crate::plan::{Expr, Plan, PlannedTensor, TensorRef};

mod hostile;

fn open(bytes: &[u8]) -> Result<GgufFile> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    GgufFile::open(file.path())
}

fn planned(name: &str, dtype: DType, shape: &[usize]) -> PlannedTensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i| i as f32).collect();
    PlannedTensor {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
        expr: Expr::Values { shape: shape.to_vec(), values: Arc::from(values) },
    }
}

/// The bytes of a file as the executor would write it. Its data are bytes that count up.
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

#[test]
fn reads_scalars_empty_tensors_and_vectors_of_blocks() {
    let tensors = [
        planned("scalar", DType::F32, &[]),
        planned("empty", DType::F16, &[3, 0, 2]),
        planned("vector", DType::Q8_0, &[64]),
    ];
    let file = open(&written(&Metadata::default(), &tensors)).unwrap();
    let bytes: Vec<usize> = (0..3).map(|i| file.bytes(i).len()).collect();
    assert_eq!(bytes, [4, 0, 68]);
    for (info, tensor) in file.tensors().iter().zip(&tensors) {
        assert_eq!(info.shape, tensor.shape);
    }
    // The vector has no rows of whole blocks: no plan works on it.
    let source: Arc<dyn Source> = Arc::new(file);
    let taken = TensorRef::all(&source).nth(2).unwrap();
    let tensor = PlannedTensor { name: "w".into(), dtype: DType::F32, shape: vec![64], expr: Expr::Take(taken) };
    let error = Plan { tensors: vec![tensor] }.check().unwrap_err().to_string();
    assert!(error.contains("tensor \"vector\": expected rows of whole Q8_0 blocks, found shape [64]"), "{error}");
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let long = "n".repeat(64);
    let cases = [
        (vec![planned("", DType::F32, &[1])], "expected a name of 1 to 63 bytes"),
        (vec![planned(&long, DType::F32, &[1])], "expected a name of 1 to 63 bytes, found 64"),
        (
            vec![planned("w", DType::F32, &[1, 1, 1, 1, 1])],
            "expected at most 4 dimensions, found shape [1, 1, 1, 1, 1]",
        ),
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
    /// Opening a damaged file gives a value or an error, never a panic.
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
