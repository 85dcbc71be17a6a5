//! Tests of limits and refusals; tests/gguf.rs compares the bytes with the reference's.

use std::sync::Arc;

use super::*;
use crate::DType;
use crate::plan::Expr;

fn planned(name: &str, elems: usize) -> PlannedTensor {
    let expr = Expr::Values { shape: vec![elems], values: Arc::from(vec![0.0; elems]) };
    PlannedTensor { name: name.into(), dtype: DType::F32, shape: vec![elems], expr }
}

fn names(tensors: &[PlannedTensor], limits: SplitLimits) -> Vec<(String, usize)> {
    let layout = split_layout(&Metadata::new("in.gguf"), tensors, "out", limits).unwrap();
    let in_file = |i| layout.places.iter().filter(|place| place.file == i).count();
    let named = layout.files.iter().enumerate();
    named.map(|(i, file)| (file.name.display().to_string(), in_file(i))).collect()
}

#[test]
fn a_plan_that_fits_one_shard_stays_whole() {
    let tensors = [planned("a", 8), planned("b", 8)];
    let whole = [("out.gguf".to_owned(), 2)];
    assert_eq!(names(&tensors, SplitLimits::default()), whole);
    assert_eq!(names(&tensors, SplitLimits { max_tensors: Some(2), ..Default::default() }), whole);
    assert_eq!(names(&tensors, SplitLimits { max_bytes: Some(64), ..Default::default() }), whole);
    let halves = [("out-00001-of-00002.gguf".to_owned(), 1), ("out-00002-of-00002.gguf".to_owned(), 1)];
    assert_eq!(names(&tensors, SplitLimits { max_bytes: Some(63), ..Default::default() }), halves);
    assert_eq!(names(&[], SplitLimits { max_tensors: Some(1), ..Default::default() }), [("out.gguf".to_owned(), 0)]);
}

#[test]
fn the_first_shard_may_hold_keys_alone() {
    let tensors = [planned("a", 8), planned("b", 8)];
    let limits = SplitLimits { no_tensor_first: true, ..Default::default() };
    let expected = [("out-00001-of-00002.gguf".to_owned(), 0), ("out-00002-of-00002.gguf".to_owned(), 2)];
    assert_eq!(names(&tensors, limits), expected);
}

#[test]
fn refuses_limits_of_nothing_repeated_names_and_too_many_shards() {
    let refusal = |tensors: &[PlannedTensor], limits| {
        split_layout(&Metadata::new("in.gguf"), tensors, "out", limits).unwrap_err().to_string()
    };
    let one = SplitLimits { max_tensors: Some(1), ..Default::default() };
    let zero = "out.gguf: limit of a shard: expected a number above 0, found 0";
    assert_eq!(refusal(&[], SplitLimits { max_tensors: Some(0), ..Default::default() }), zero);
    assert_eq!(refusal(&[], SplitLimits { max_bytes: Some(0), ..Default::default() }), zero);
    let twice = refusal(&[planned("a", 1), planned("a", 1)], one);
    assert_eq!(twice, "in.gguf: tensor \"a\": expected each name once, found it twice");
    let many: Vec<PlannedTensor> = (0..65536).map(|i| planned(&format!("t{i}"), 1)).collect();
    assert_eq!(
        refusal(&many, one),
        "out.gguf: shards: expected at most 65535, found 65536; allow more tensors or bytes in each shard"
    );
}
