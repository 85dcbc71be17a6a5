use super::*;
use crate::adapter::peft::WeightLayout;
use crate::merge::combine::Weights;
use crate::merge::combine::statistics::planned;

fn values(shape: &[usize], values: &[f32]) -> Expr {
    Expr::Values { shape: shape.to_vec(), values: values.into() }
}

fn read(of: &Expr) -> Vec<f32> {
    planned(of).read().unwrap()
}

/// An update of rank 1 on two inputs and two outputs.
fn update(scale: f64, a: [f32; 2], b: [f32; 2]) -> LowRank {
    LowRank {
        scale,
        alpha: None,
        a: values(&[1, 2], &a),
        b: values(&[2, 1], &b),
        layout: WeightLayout::OutputsFirst,
        rounded: None,
    }
}

fn combined(updates: &[LowRank], method: &str, options: &CombineOptions) -> LowRank {
    let adapters: Vec<_> = updates.iter().map(|u| vec![("layers.0.q_proj.weight".to_owned(), u.clone())]).collect();
    let combined = combine_loras(&adapters, method.parse().unwrap(), options).unwrap();
    combined.measure(&|| ()).unwrap();
    combined.result[0].1.clone()
}

fn weighing(weights: &[f64]) -> CombineOptions {
    CombineOptions { weights: Weights::new(weights), ..Default::default() }
}

#[test]
fn names_are_pefts() {
    assert!(LoraMethod::names().all(|name| name.parse::<LoraMethod>().unwrap().name() == name));
    assert_eq!(LoraMethod::names().count(), 11);
    let error = "slerp".parse::<LoraMethod>().unwrap_err().to_string();
    assert!(error.starts_with("method: expected one of linear, cat, svd, ties"), "{error}");
}

#[test]
fn linear_sums_factors_by_the_roots_of_their_weights() {
    let updates = [update(2.0, [1.0, 2.0], [3.0, 4.0]), update(1.0, [1.0, -1.0], [1.0, 1.0])];
    let sum = combined(&updates, "linear", &weighing(&[2.0, -4.0]));
    assert_eq!((sum.scale, read(&sum.a), read(&sum.b)), (1.0, vec![0.0, 6.0], vec![8.0, 10.0]));
    let single = combined(&updates[..1], "ties", &weighing(&[2.0]));
    assert_eq!((read(&single.a), read(&single.b)), (vec![2.0, 4.0], vec![6.0, 8.0]), "one alone is scaled only");
}

#[test]
fn cat_is_the_exact_sum_and_svd_is_the_same_of_full_rank() {
    let updates = [update(2.0, [1.0, 2.0], [3.0, 4.0]), update(1.0, [1.0, -1.0], [1.0, 1.0])];
    let options = weighing(&[1.0, -0.5]);
    let cat = combined(&updates, "cat", &options);
    assert_eq!(cat.a.shape(), [2, 2]);
    assert_eq!(read(&cat.b), [3.0, 1.0, 4.0, 1.0]);
    let expected = [5.5, 12.5, 7.5, 16.5];
    assert_eq!(read(&cat.delta()), expected);
    let svd = combined(&updates, "svd", &CombineOptions { rank: Some(2), ..options.clone() });
    let close = |found: Vec<f32>| found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(close(read(&svd.delta())), "{:?}", read(&svd.delta()));
    let svd = combined(&updates, "svd", &options);
    assert_eq!(svd.b.shape(), [2, 1], "the largest rank of any");
}

#[test]
fn modules_that_not_all_adapters_have_are_filled_up_with_zeros() {
    let name = |n: &str| format!("layers.0.{n}.weight");
    let one = update(1.0, [1.0, 2.0], [3.0, 4.0]);
    let adapters = [vec![(name("q_proj"), one.clone()), (name("v_proj"), one.clone())], vec![(name("q_proj"), one)]];
    let result = combine_loras(&adapters, LoraMethod::Cat, &weighing(&[1.0, 1.0])).unwrap().result;
    assert_eq!((read(&result[1].1.a), read(&result[1].1.b)), (vec![1.0, 2.0, 0.0, 0.0], vec![3.0, 0.0, 4.0, 0.0]));
}

#[test]
fn ties_keeps_the_largest_and_of_these_the_elected_sign() {
    // Half of each is kept: [0, 2] and [0, -5] of A, whose elected sign is minus.
    let updates = [update(1.0, [1.0, 2.0], [3.0, -4.0]), update(1.0, [1.0, -5.0], [-6.0, 1.0])];
    let options = CombineOptions { density: vec![0.5], ..weighing(&[1.0, 4.0]) };
    let ties = combined(&updates, "ties", &options);
    assert_eq!((read(&ties.a), read(&ties.b)), (vec![0.0, -10.0], vec![-12.0, -4.0]));
    let pruned = combined(&updates, "magnitude_prune", &options);
    assert_eq!((read(&pruned.a), read(&pruned.b)), (vec![0.0, -8.0], vec![-12.0, -4.0]));
}

#[test]
fn whole_updates_are_pruned_before_they_are_rounded() {
    let exact = update(1.0, [1.0, 1.001], [1.0, 3.003]);
    let rounded = LowRank { rounded: Some(crate::DType::BF16), ..exact.clone() };
    let options = CombineOptions { density: vec![1.0], ..weighing(&[1.0, 0.0]) };
    let pruned = combined(&[rounded.clone(), rounded], "magnitude_prune_svd", &options);
    let found = read(&LowRank { rounded: None, ..pruned }.delta());
    let close = found.iter().zip(read(&exact.delta())).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(close, "{found:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let one = vec![("q_proj.weight".to_owned(), update(1.0, [1.0, 2.0], [3.0, 4.0]))];
    let two = LowRank { a: values(&[2, 2], &[1.0; 4]), b: values(&[2, 2], &[1.0; 4]), ..one[0].1.clone() };
    let two = vec![("q_proj.weight".to_owned(), two)];
    let error = |adapters: &[_], method: &str, options| {
        combine_loras(adapters, method.parse().unwrap(), options).unwrap_err().to_string()
    };
    let options = weighing(&[1.0, 1.0]);
    let ranks = error(&[one.clone(), two.clone()], "linear", &options);
    assert!(
        ranks.contains("tensor \"q_proj.weight\": expected rank 1, that of the first adapter, found rank 2"),
        "{ranks}"
    );
    combine_loras(&[one.clone(), two], LoraMethod::Cat, &options).unwrap();
    assert_eq!(
        error(&[one.clone(), one.clone()], "ties", &options),
        "density: expected a share from 0 to 1 for ties, found none"
    );
    assert_eq!(error(&[one], "cat", &options), "weights: expected 1, one for each that is combined, found 2");
}
