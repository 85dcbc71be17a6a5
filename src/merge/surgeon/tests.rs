use super::points::{Points, picked};
use super::*;

pub(super) fn tensor(rows: &[&[f32]]) -> PlannedTensor {
    let shape = vec![rows.len(), rows[0].len()];
    let expr = Expr::Values { shape: shape.clone(), values: rows.concat().into() };
    PlannedTensor { name: "e".into(), dtype: DType::F32, shape, expr }
}

#[test]
fn a_pursuit_finds_the_points_that_a_row_is_made_of() {
    let of = tensor(&[&[1.0, 0.0, 0.0], &[1.0, 2.0, 0.0], &[0.0, 0.0, 3.0], &[2.0, 4.0, 1.5], &[0.0, 0.0, 0.0]]);
    let points = Points::new(&of, vec![0, 1, 2]);
    let found = pursuit::weights(&of, &[3, 4], &points, 3).unwrap();
    let close = |found: &[(usize, f32)], expected: &[(usize, f32)]| {
        found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-6)
    };
    // The third point adds nothing.
    assert!(close(&found[0][..2], &[(1, 2.0), (2, 0.5)]), "{found:?}");
    assert!(found[1].is_empty());
    assert_eq!((pursuit::batch(1 << 30, 4096, 64), pursuit::batch(0, 4096, 64)), (252, 1));
}

#[test]
fn nearest_points_are_weighted() {
    let of = tensor(&[&[1.0, 0.0], &[0.0, 1.0], &[9.0, 9.0], &[0.5, 0.5]]);
    let points = Points::new(&of, vec![2, 0, 1]);
    let weights = |distance, weighting| nearest::weights(&of, &[3], &points, 2, distance, weighting).unwrap().remove(0);
    for weighting in [Weighting::DistanceProportional, Weighting::Barycentric, Weighting::LeastSquares] {
        let mut found = weights(Distance::Euclidean, weighting);
        found.sort_by_key(|(place, _)| *place);
        assert!(found.iter().map(|(place, _)| *place).eq([1, 2]), "{found:?}");
        assert!(found.iter().all(|(_, weight)| (weight - 0.5).abs() < 1e-6), "{found:?}");
    }
    assert_eq!(weights(Distance::Cosine, Weighting::DistanceProportional)[0].0, 0);
}

#[test]
fn parts_of_words_are_weighted_by_their_place() {
    let parts = [4, 7];
    assert_eq!(Subwords::Mean.weights(&parts, false), [(4, 0.5), (7, 0.5)]);
    assert_eq!(Subwords::Sum.weights(&parts, false), [(4, 1.0), (7, 1.0)]);
    assert_eq!(Subwords::WeightedMean.weights(&parts, false), [(4, 2.0 / 3.0), (7, 1.0 / 3.0)]);
    assert_eq!(Subwords::WeightedMean.weights(&parts, true), [(4, 1.0 / 3.0), (7, 2.0 / 3.0)]);
    assert_eq!(Subwords::FirstLast.weights(&parts, false), [(7, 1.0)]);
    assert_eq!(Subwords::FirstLast.weights(&parts, true), [(4, 1.0)]);
    assert!(Subwords::Mean.weights(&[], true).is_empty() && Subwords::FirstLast.weights(&[], true).is_empty());
}

#[test]
fn combinations_are_made_row_by_row() {
    let mut made = Combinations::new(tensor(&[&[1.0, 2.0], &[4.0, 8.0]]));
    made.push(&[(0, 2.0), (1, 0.25)]);
    made.push(&[]);
    made.push(&[(1, -1.0)]);
    let of = PlannedTensor { shape: vec![3, 2], expr: made.rows(), ..tensor(&[&[0.0, 0.0]]) };
    assert_eq!(of.read().unwrap(), [3.0, 6.0, 0.0, 0.0, -4.0, -8.0]);
    assert_eq!(picked(&of, &[2, 0]).read().unwrap(), [-4.0, -8.0, 3.0, 6.0]);
}
