use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::Error;
use crate::formats::safetensors::SafetensorsFile;
use crate::source::Source;

fn values(name: &str, shape: &[usize], values: &[f32]) -> PlannedTensor {
    let expr = Expr::Values { shape: shape.to_vec(), values: values.into() };
    PlannedTensor { name: name.into(), dtype: DType::F32, shape: shape.to_vec(), expr }
}

fn plan<const N: usize>(tensors: [PlannedTensor; N]) -> Plan {
    Plan { tensors: tensors.into() }
}

fn difference(comparison: &Comparison, index: usize) -> &Difference {
    match &comparison.tensors[index].outcome {
        Outcome::Compared(difference) => difference,
        other => panic!("{other:?}"),
    }
}

/// A safetensors file with this header and data.
fn file(header: &str, data: &[u8]) -> (tempfile::TempDir, Arc<dyn Source>) {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("m.safetensors");
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    std::fs::write(&path, bytes).unwrap();
    let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(&path).unwrap());
    (dir, source)
}

#[test]
fn differences_are_summed_over_elements_not_tensors() {
    let a = plan([values("x", &[2, 2], &[3.0, 4.0, 0.0, 0.0]), values("y", &[3], &[1.0, -2.0, 2.0])]);
    let b = plan([values("x", &[2, 2], &[3.0, 4.0, 0.5, -1.0]), values("y", &[3], &[1.0, -2.0, 2.0])]);
    let found = Comparison::of(&a, &b).unwrap();
    let x = difference(&found, 0);
    assert_eq!((x.elements, x.max_difference, x.identical), (4, 1.0, false));
    assert_eq!(x.rms_difference, (1.25f64 / 4.0).sqrt());
    assert_eq!(x.relative_error, Some((1.25f64 / 25.0).sqrt()));
    assert!(difference(&found, 1).identical && difference(&found, 1).relative_error == Some(0.0));
    let totals = &found.totals;
    assert_eq!((totals.compared, totals.identical, totals.elements), (2, 1, 7));
    assert_eq!(totals.relative_error, Some((1.25f64 / 34.0).sqrt()));
    assert_eq!((totals.worst.as_deref(), totals.max_difference), (Some("x"), 1.0));
}

#[test]
fn zeros_have_no_relative_error_and_a_sign() {
    let a = plan([values("x", &[2], &[0.0, 0.0]), values("y", &[1], &[0.0]), values("z", &[1], &[1.0])]);
    let b = plan([values("x", &[2], &[0.0, 1.0]), values("y", &[1], &[-0.0]), values("z", &[1], &[9.0])]);
    let found = Comparison::of(&a, &b).unwrap();
    assert_eq!(difference(&found, 0).relative_error, None);
    assert_eq!(found.totals.worst.as_deref(), Some("x"), "nothing is worse than a difference from nothing");
    let y = difference(&found, 1);
    assert_eq!((y.relative_error, y.max_difference, y.identical), (Some(0.0), 0.0, false));
    let empty = plan([values("e", &[0, 4], &[]), values("f", &[4, 0], &[]), values("g", &[0], &[])]);
    let found = Comparison::of(&empty, &empty).unwrap();
    assert_eq!((found.totals.identical, found.totals.elements, found.totals.worst), (3, 0, None));
    assert_eq!(Comparison::of(&Plan::default(), &Plan::default()).unwrap().totals.relative_error, Some(0.0));
}

#[test]
fn models_without_a_tensor_in_common_are_refused() {
    let a = plan([values("x", &[2], &[0.0, 0.0])]);
    let refusal = |b: &Plan| Comparison::of(&a, b).unwrap_err().to_string();
    let other = plan([values("y", &[2], &[0.0, 0.0]), values("z", &[1], &[1.0])]);
    assert!(refusal(&other).contains("found none among its 2"), "{}", refusal(&other));
    assert!(refusal(&Plan::default()).contains("found none among its 0"));
    // One is enough, of whatever shape.
    let other = plan([values("x", &[1], &[0.0]), values("z", &[1], &[1.0])]);
    assert_eq!(Comparison::of(&a, &other).unwrap().totals.other_shape, 1);
}

#[test]
fn tensors_longer_than_a_chunk_are_compared_whole_on_any_number_of_threads() {
    let count = 3 * CHUNK_ELEMS + 5;
    let long: Vec<f32> = (0..count).map(|i| (i % 1000) as f32 / 7.0 - 50.0).collect();
    let other: Vec<f32> = long.iter().enumerate().map(|(i, v)| v + (i % 13) as f32 * 1e-3).collect();
    let (a, b) = (plan([values("x", &[count], &long)]), plan([values("x", &[count], &other)]));
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| Comparison::of(&a, &b)).unwrap()
    };
    assert_eq!(on(1), on(3));
    let whole = Sums::of(&long, &other);
    let found = on(2);
    let x = difference(&found, 0);
    assert_eq!((x.elements, x.max_difference), (count as u64, whole.max_difference));
    let (found, expected) = (x.relative_error.unwrap(), whole.relative_error().unwrap());
    assert!((found - expected).abs() < 1e-12 * expected, "{found} {expected}");
    let most = std::sync::atomic::AtomicU64::new(0);
    let watch = |done, total| {
        assert_eq!(total, count as u64);
        most.fetch_max(done, Ordering::Relaxed);
    };
    Comparison::watched(&a, &b, &watch).unwrap();
    assert_eq!(most.into_inner(), count as u64);
}

#[test]
fn what_cannot_be_compared_is_listed_in_order() {
    let a = plan([values("gone", &[1], &[1.0]), values("shape", &[2], &[1.0, 2.0]), values("same", &[1], &[1.0])]);
    let b = plan([values("new", &[1], &[1.0]), values("same", &[1], &[1.0]), values("shape", &[1, 2], &[1.0, 2.0])]);
    let found = Comparison::of(&a, &b).unwrap();
    let names: Vec<&str> = found.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["gone", "shape", "same", "new"]);
    assert_eq!(found.tensors[0].outcome, Outcome::OnlyInA);
    assert_eq!(found.tensors[1].outcome, Outcome::OtherShape);
    assert_eq!(found.tensors[3].outcome, Outcome::OnlyInB);
    assert!(found.tensors[0].b.is_none() && found.tensors[3].a.is_none());
    let totals = found.totals;
    assert_eq!((totals.only_in_a, totals.only_in_b, totals.other_shape, totals.compared), (1, 1, 1, 1));
}

#[test]
fn integers_are_not_decoded_but_their_bytes_compared() {
    let header = concat!(
        r#"{"i":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},"#,
        r#""u":{"dtype":"U8","shape":[2],"data_offsets":[16,18]}}"#
    );
    let data = [[7; 16].as_slice(), &[1, 2]].concat();
    let other = [[7; 16].as_slice(), &[1, 3]].concat();
    let ((_a, a), (_b, b)) = (file(header, &data), file(header, &other));
    let (mut a, b) = (Plan::taking(&a), Plan::taking(&b));
    let same = |found: &Comparison| -> Vec<Option<bool>> {
        let outcomes = found.tensors.iter().map(|t| match &t.outcome {
            Outcome::NotDecoded { same_bytes, reason } => {
                assert!(reason.contains("decode"), "{reason}");
                *same_bytes
            }
            other => panic!("{other:?}"),
        });
        outcomes.collect()
    };
    let found = Comparison::of(&a, &b).unwrap();
    assert_eq!(same(&found), [Some(true), Some(false)]);
    assert_eq!((found.totals.not_decoded, found.totals.compared, found.totals.elements), (2, 0, 0));
    a.tensors[0] = values("i", &[2], &[1.0, 2.0]);
    assert_eq!(same(&Comparison::of(&a, &b).unwrap()), [None, Some(false)]);
    assert_eq!(Comparison::of(&a, &b).unwrap().tensors[0].b.as_ref().unwrap().dtype, "I64");
}

#[test]
fn nan_and_names_that_stand_twice_are_errors() {
    let header = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let data = [1f32.to_le_bytes(), f32::NAN.to_le_bytes()].concat();
    let (_dir, bad) = file(header, &data);
    let (bad, good) = (Plan::taking(&bad), plan([values("w", &[2], &[1.0, 2.0])]));
    for (a, b) in [(&bad, &good), (&good, &bad)] {
        let error = Comparison::of(a, b).unwrap_err();
        assert!(matches!(error, Error::NotFinite(_)) && error.to_string().contains("tensor \"w\""), "{error}");
    }
    let twice = plan([values("x", &[1], &[1.0]), values("x", &[1], &[1.0])]);
    for (a, b) in [(&twice, &good), (&good, &twice)] {
        let error = Comparison::of(a, b).unwrap_err().to_string();
        assert!(error.contains("\"x\": expected each name once"), "{error}");
    }
}

/// A quantized matrix that is stored transposed is compared along its own rows, with the same
/// results.
#[test]
fn turning_both_sides_changes_nothing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/convert/gpt2/model/model.safetensors");
    let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(&folder).unwrap());
    let plain = Plan::taking(&source).get("transformer.h.0.mlp.c_fc.weight").unwrap().clone();
    let turned = Expr::Transpose(Box::new(plain.expr.clone()));
    let quantized = PlannedTensor { name: "q".into(), dtype: DType::Q8_0, shape: turned.shape(), expr: turned };
    let mut bytes = Vec::new();
    quantized.encode_rows(0..quantized.rows(), &mut Vec::new(), &mut bytes).unwrap();
    let (rows, row_len) = (quantized.rows(), quantized.row_len());
    let stored: Arc<dyn Source> = Arc::new(Stored {
        info: [crate::source::TensorInfo { name: "q".into(), dtype: DType::Q8_0, shape: vec![rows, row_len] }],
        bytes,
    });
    let back = Expr::Transpose(Box::new(Plan::taking(&stored).tensors.remove(0).expr));
    let back = PlannedTensor { name: plain.name.clone(), dtype: DType::F32, shape: plain.shape.clone(), expr: back };
    let direct = Sums::of(&plain.read().unwrap(), &back.read().unwrap());
    for (x, y) in [(&plain, &back), (&back, &plain)] {
        let (a, b) = along_rows(x, y);
        assert!(a.shape == [rows, row_len] && b.shape == a.shape);
        assert_eq!(Sums::of(&a.read().unwrap(), &b.read().unwrap()).max_difference, direct.max_difference);
        let found = Comparison::of(&plan([x.clone()]), &plan([y.clone()])).unwrap();
        let tensor = &found.tensors[0];
        assert_eq!(tensor.a.as_ref().unwrap().shape, plain.shape);
        let mut types = [tensor.a.as_ref().unwrap().dtype.as_str(), tensor.b.as_ref().unwrap().dtype.as_str()];
        types.sort_unstable();
        assert_eq!(types, ["BF16", "Q8_0"]);
        let error = difference(&found, 0).relative_error.unwrap();
        assert!((1e-4..0.02).contains(&error), "{error}");
    }
}

struct Stored {
    info: [crate::source::TensorInfo; 1],
    bytes: Vec<u8>,
}

impl Source for Stored {
    fn path(&self) -> &Path {
        Path::new("stored")
    }

    fn tensors(&self) -> &[crate::source::TensorInfo] {
        &self.info
    }

    fn rows(&self, _: usize, rows: Range<usize>) -> std::borrow::Cow<'_, [u8]> {
        self.info[0].slice(&self.bytes, rows).into()
    }
}
