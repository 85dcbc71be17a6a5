use std::io::Write;
use std::sync::Arc;

use super::*;
use crate::dtype::DType;
use crate::formats::safetensors::SafetensorsFile;
use crate::plan::{Plan, Sums, TensorRef};
use crate::source::Source;

fn planned(shape: &[usize], expr: Expr) -> PlannedTensor {
    PlannedTensor { name: "t".into(), dtype: DType::F32, shape: shape.to_vec(), expr }
}

fn counting(shape: &[usize]) -> Expr {
    let elems = shape.iter().product::<usize>();
    Expr::Values { shape: shape.to_vec(), values: (0..elems).map(|i| i as f32).collect() }
}

#[test]
fn rows_are_picked_stacked_and_cut_from_several_tensors() {
    let of = vec![counting(&[3, 2]), counting(&[2, 2])];
    let stack = Expr::concat(of, vec![5, 2]);
    let cut = planned(&[3, 2], Expr::slice(stack, 1, 3, vec![3, 2]));
    assert_eq!(cut.read_rows(0..3).unwrap(), [2., 3., 4., 5., 0., 1.]);
    assert_eq!(cut.read_rows(2..3).unwrap(), [0., 1.]);
    let swapped = planned(&[3, 2], Expr::reordered(counting(&[3, 2]), |row| 2 - row));
    assert_eq!(swapped.read_rows(0..3).unwrap(), [4., 5., 2., 3., 0., 1.]);
}

#[test]
fn columns_become_rows_and_vectors_rows_of_a_matrix() {
    let tensor = planned(&[3, 2], Expr::Transpose(Box::new(counting(&[2, 3]))));
    assert_eq!(tensor.read_rows(0..3).unwrap(), [0., 3., 1., 4., 2., 5.]);
    assert_eq!(tensor.read_rows(1..2).unwrap(), [1., 4.]);
    let row = |from: f32| Expr::Reshape {
        of: Box::new(Expr::AddConstant { of: Box::new(counting(&[2])), constant: from }),
        shape: vec![1, 2],
    };
    let stack = planned(&[2, 2], Expr::concat(vec![row(0.0), row(10.0)], vec![2, 2]));
    assert_eq!(stack.read_rows(1..2).unwrap(), [10., 11.]);
    let flat = planned(&[6], Expr::Reshape { of: Box::new(counting(&[2, 3])), shape: vec![6] });
    assert_eq!(flat.read_rows(2..5).unwrap(), [2., 3., 4.]);
}

#[test]
fn bytes_are_taken_for_another_type_of_their_size() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let header = r#"{"w":{"dtype":"U16","shape":[2,2],"data_offsets":[0,8]}}"#;
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.write_all(&[0x80, 0x3f, 0x00, 0x40, 0x80, 0x7f, 0x40, 0x40]).unwrap();
    let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(file.path()).unwrap());
    let take = || Box::new(Expr::Take(TensorRef::all(&source).next().unwrap()));
    let bits = |dtype| PlannedTensor { dtype, ..planned(&[2, 2], Expr::Bits { of: take(), dtype }) };
    let mut bytes = Vec::new();
    bits(DType::I16).encode_rows(1..2, &mut Vec::new(), &mut bytes).unwrap();
    assert_eq!(bytes, [0x80, 0x7f, 0x40, 0x40], "an infinity's bits are bits like others");
    let scaled = |of| planned(&[2, 2], Expr::Scale { of: Box::new(of), factor: -3.0 });
    assert_eq!(scaled(bits(DType::BF16).expr).read_rows(0..1).unwrap(), [-3.0, -6.0]);
    let check = |tensor| Plan { tensors: vec![tensor] }.check();
    check(bits(DType::I16)).unwrap();
    check(scaled(bits(DType::BF16).expr)).unwrap();
    for (tensor, expected) in [
        (bits(DType::I32), "expected bytes of I32's size, found U16"),
        (
            planned(&[2], Expr::Bits { of: Box::new(counting(&[2])), dtype: DType::F32 }),
            "found values that are computed",
        ),
        (scaled(bits(DType::I16).expr), "expected a type this version can decode, found I16"),
    ] {
        let error = check(tensor).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_product_is_scaled_after_the_sum_and_rows_can_be_made_alone() {
    let values =
        |shape: &[usize], values: &[f32]| Box::new(Expr::Values { shape: shape.to_vec(), values: Arc::from(values) });
    let (left, right) = (values(&[2, 2], &[1., 2., 3., 4.]), values(&[2, 3], &[1., 0., 2., 1., 1., 1.]));
    let tensor = planned(&[2, 3], Expr::Product { scale: 0.5, left, right, sums: Sums::Product });
    assert_eq!(tensor.read_rows(0..2).unwrap(), [1.5, 1.0, 2.0, 3.5, 2.0, 5.0]);
    assert_eq!(tensor.read_rows(1..2).unwrap(), [3.5, 2.0, 5.0]);
}

#[test]
fn kronecker_products_repeat_the_right_factor() {
    let values =
        |values: &[f32], shape: [usize; 2]| Box::new(Expr::Values { shape: shape.to_vec(), values: Arc::from(values) });
    let (left, right) = (values(&[1., 2., 3., 4.], [2, 2]), values(&[1., 10., 100., 5., 6., 7.], [3, 2]));
    let tensor = planned(&[6, 4], Expr::Kronecker { left, right });
    Plan { tensors: vec![tensor.clone()] }.check().unwrap();
    let all = [
        [1., 10., 2., 20.],
        [100., 5., 200., 10.],
        [6., 7., 12., 14.],
        [3., 30., 4., 40.],
        [300., 15., 400., 20.],
        [18., 21., 24., 28.],
    ];
    assert_eq!(tensor.read_rows(0..6).unwrap(), all.concat());
    assert_eq!(tensor.read_rows(2..5).unwrap(), all[2..5].concat());
}

/// The one tensor of a safetensors file with this header and data.
fn taken(dtype: &str, shape: &str, data: &[u8]) -> (tempfile::NamedTempFile, TensorRef) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let header = format!(r#"{{"ids":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{}]}}}}"#, data.len());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.write_all(data).unwrap();
    let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(file.path()).unwrap());
    (file, TensorRef::all(&source).next().unwrap())
}

#[test]
fn what_cannot_be_decoded_is_an_error_wherever_values_are_read() {
    let (file, tensor) = taken("I32", "[2,2]", &[0; 16]);
    let take = || Expr::Take(tensor.clone());
    let name = file.path().display();
    let expected = format!("{name}: tensor \"ids\": expected a type this version can decode, found I32");
    let integers = PlannedTensor { dtype: DType::I32, ..planned(&[2, 2], take()) };
    let scaled = planned(&[2, 2], Expr::Scale { of: Box::new(take()), factor: 2.0 });
    for tensor in [integers.clone(), planned(&[2, 2], take()), scaled] {
        let errors = [
            tensor.read().unwrap_err(),
            tensor.read_rows(0..1).unwrap_err(),
            tensor.read_rows_into(1..2, &mut Vec::new()).unwrap_err(),
            tensor.same_values(&tensor).unwrap_err(),
        ];
        assert!(errors.iter().all(|error| error.to_string() == expected), "{errors:?}");
    }
    // Bytes that are only copied need no decoding.
    let mut bytes = Vec::new();
    integers.encode_rows(0..2, &mut Vec::new(), &mut bytes).unwrap();
    assert_eq!(bytes, [0; 16]);
    // A type that can't be written is an error, not a panic.
    let to = |dtype| PlannedTensor { dtype, ..planned(&[1, 256], counting(&[1, 256])) };
    let error = to(DType::I8).read_rows(0..1).unwrap_err().to_string();
    assert!(error.contains("expected a type this version can write, found I8"), "{error}");
    let error = to(DType::IQ2_XXS).read().unwrap_err().to_string();
    assert!(error.contains("expected importance of its columns"), "{error}");
}

#[test]
fn rows_without_elements_are_not_counted_through() {
    let (_file, tensor) = taken("F32", "[4611686018427387904,0]", &[]);
    let tensor = planned(&[1 << 62, 0], Expr::Take(tensor));
    assert!(tensor.same_values(&tensor).unwrap());
    assert_eq!(tensor.read().unwrap(), [0.0; 0]);
}

#[test]
fn values_too_large_for_the_output_type_are_refused() {
    let mut tensor = planned(&[2], Expr::Values { shape: vec![2], values: Arc::from([1.0, 70000.0]) });
    assert_eq!(tensor.read_rows(0..2).unwrap(), [1.0, 70000.0]);
    tensor.dtype = DType::F16;
    let error = tensor.read_rows(0..2).unwrap_err().to_string();
    assert!(error.contains("a value too large for F16"), "{error}");
}
