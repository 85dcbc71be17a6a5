use super::*;
use crate::dtype::DType;
use crate::merge::combine::Weights;

fn plan(tensors: &[(&str, &[usize], &[f32])]) -> Plan {
    let tensor = |(name, shape, values): &(&str, &[usize], &[f32])| PlannedTensor {
        name: (*name).to_owned(),
        dtype: DType::F32,
        shape: shape.to_vec(),
        expr: Expr::Values { shape: shape.to_vec(), values: Arc::from(*values) },
    };
    Plan { tensors: tensors.iter().map(tensor).collect() }
}

fn vector(values: &[f32]) -> Plan {
    plan(&[("w", &[values.len()], values)])
}

fn combined(base: Option<&Plan>, models: &[&Plan], method: &str, options: &CombineOptions) -> Vec<f32> {
    let combined = combine_models(base, models, method.parse().unwrap(), options).unwrap();
    combined.result.check().unwrap();
    combined.measure(&|| ()).unwrap();
    combined.result.tensors[0].read().unwrap()
}

fn error(base: Option<&Plan>, models: &[&Plan], method: &str, options: &CombineOptions) -> String {
    combine_models(base, models, method.parse().unwrap(), options).unwrap_err().to_string()
}

fn weighing(weights: &[f64]) -> CombineOptions {
    CombineOptions { weights: Weights::new(weights), ..Default::default() }
}

#[test]
fn names_are_mergekits() {
    assert!(ModelMethod::names().all(|name| name.parse::<ModelMethod>().unwrap().name() == name));
    assert_eq!(ModelMethod::names().count(), 20);
}

#[test]
fn linear_is_the_mean_unless_it_is_not_normalized() {
    let (a, b) = (vector(&[1.0, 2.0]), vector(&[3.0, 6.0]));
    assert_eq!(combined(None, &[&a, &b], "linear", &weighing(&[3.0, 1.0])), [1.5, 3.0]);
    let sum = CombineOptions { normalize: Some(false), ..weighing(&[3.0, 1.0]) };
    assert_eq!(combined(None, &[&a, &b], "linear", &sum), [6.0, 12.0]);
    let nothing = error(None, &[&a, &b], "linear", &weighing(&[1.0, -1.0]));
    assert!(nothing.contains("tensor \"w\": expected weights that sum to something"), "{nothing}");
}

#[test]
fn nuslerp_is_of_the_models_unless_it_is_told_to_be_of_their_updates() {
    let (base, a, b) = (vector(&[1.0, 1.0]), vector(&[2.0, 0.0]), vector(&[0.0, 2.0]));
    let near = |found: Vec<f32>, expected: [f32; 2]| {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
    };
    let options = weighing(&[1.0, 1.0]);
    let root = 2f32.sqrt();
    near(combined(None, &[&a, &b], "nuslerp", &options), [root, root]);
    near(combined(Some(&base), &[&a, &b], "nuslerp", &options), [root, root]);
    // Opposite updates have no angle: half of each is taken.
    let updates = CombineOptions { nuslerp_updates: true, ..options };
    near(combined(Some(&base), &[&a, &b], "nuslerp", &updates), [1.0, 1.0]);
}

#[test]
fn task_arithmetic_adds_updates() {
    let (base, a, b) = (vector(&[1.0, 1.0]), vector(&[2.0, 1.0]), vector(&[1.0, 3.0]));
    let options = CombineOptions { lambda: 0.5, ..weighing(&[1.0, 2.0]) };
    assert_eq!(combined(Some(&base), &[&a, &b], "task_arithmetic", &options), [1.5, 3.0]);
}

#[test]
fn weights_that_sum_to_nothing_divide_by_one() {
    let (base, a, b) = (vector(&[0.0]), vector(&[3.0]), vector(&[1.0]));
    let options = CombineOptions { normalize: Some(true), ..weighing(&[1.0, -1.0]) };
    assert_eq!(combined(Some(&base), &[&a, &b], "task_arithmetic", &options), [2.0]);
}

#[test]
fn of_equal_variances_sce_keeps_those_that_torch_keeps() {
    let values = [3.0, 1.0, 2.0, 2.0, 1.0, 2.0, 3.0, 2.0, 0.0, 2.0, 1.0, 2.0, 2.0, 3.0, 2.0];
    let base = vector(&[0.0; 15]);
    let (a, b) = (vector(&values), vector(&values.map(|value| 3.0 * value)));
    let options = CombineOptions { select_topk: 0.36, ..weighing(&[]) };
    let found = combined(Some(&base), &[&a, &b], "sce", &options);
    let kept: Vec<usize> = (0..15).filter(|i| found[*i] != 0.0).collect();
    // torch.topk(torch.tensor(values) ** 2, int(14 * 0.36)).indices
    assert_eq!(kept, [0, 6, 9, 11, 13]);
}

#[test]
fn ties_elects_signs_of_the_largest() {
    let base = vector(&[0.0; 4]);
    let (a, b) = (vector(&[4.0, 1.0, -3.0, 0.5]), vector(&[-1.0, 2.0, 5.0, 0.5]));
    let options = CombineOptions { density: vec![0.5], ..weighing(&[1.0, 1.0]) };
    // Kept are 4, -3 and 2, 5: where both have a value, the positive sign is elected.
    assert_eq!(combined(Some(&base), &[&a, &b], "ties", &options), [4.0, 2.0, 5.0, 0.0]);
    // A share of less than one value keeps one value; a share of no values keeps none.
    let few = CombineOptions { density: vec![0.1], ..options };
    assert_eq!(combined(Some(&base), &[&a, &b], "ties", &few), [4.0, 0.0, 5.0, 0.0]);
    let none = CombineOptions { density: vec![0.0], ..few };
    assert_eq!(combined(Some(&base), &[&a, &b], "ties", &none), [0.0; 4]);
}

#[test]
fn dare_keeps_the_sum_of_magnitudes() {
    let base = vector(&[0.0; 64]);
    let ones = vector(&[1.0; 64]);
    let options = CombineOptions { density: vec![0.25], seed: 3, ..weighing(&[1.0]) };
    let kept = combined(Some(&base), &[&ones], "dare_linear", &options);
    assert!((kept.iter().sum::<f32>() - 64.0).abs() < 1e-3);
    assert!(kept.contains(&0.0));
    let plain = combined(Some(&base), &[&ones], "dare_linear", &CombineOptions { rescale: Some(false), ..options });
    assert!(plain.iter().all(|v| *v == 0.0 || *v == 1.0));
    assert_eq!(plain.iter().map(|v| *v != 0.0).collect::<Vec<_>>(), kept.iter().map(|v| *v != 0.0).collect::<Vec<_>>());
}

#[test]
fn draws_go_through_tensors_by_name() {
    let make = |value: f32| {
        let values = [value; 8];
        plan(&[("b", &[8], &values), ("a", &[2, 4], &values)])
    };
    let options = CombineOptions { density: vec![0.5], rescale: Some(false), seed: 11, ..weighing(&[1.0]) };
    let result = combine_models(Some(&make(0.0)), &[&make(1.0)], ModelMethod::DareLinear, &options).unwrap().result;
    let mut generator = super::super::Mt19937::new(11);
    let mut drawn = || [(); 8].map(|()| if generator.uniform() < 0.5 { 1.0 } else { 0.0 });
    assert_eq!(result.get("a").unwrap().read().unwrap(), drawn());
    assert_eq!(result.get("b").unwrap().read().unwrap(), drawn());
}

#[test]
fn what_does_not_fit_is_refused() {
    let (two, three) = (vector(&[1.0, 2.0]), vector(&[1.0, 2.0, 3.0]));
    let options = weighing(&[1.0, 1.0]);
    let shapes = error(None, &[&two, &three], "linear", &options);
    assert!(shapes.contains("tensor \"w\": expected [2], as in"), "{shapes}");
    let missing = error(None, &[&two, &Plan::default()], "linear", &options);
    assert!(missing.contains("tensor \"w\": expected it, as in"), "{missing}");
    let more = plan(&[("w", &[2], &[1.0, 2.0]), ("x", &[1], &[1.0])]);
    let extra = error(None, &[&two, &more], "linear", &options);
    assert!(extra.contains("tensor \"x\": expected only tensors that"), "{extra}");
    assert_eq!(error(None, &[&two, &two], "ties", &options), "method: expected a base for ties, found none");
    assert_eq!(error(None, &[&two], "slerp", &options), "method: expected two models for slerp, found 1");
    let updates = CombineOptions { nuslerp_updates: true, ..options.clone() };
    let nuslerp = error(None, &[&two, &two], "nuslerp", &updates);
    assert_eq!(nuslerp, "nuslerp_updates: expected a base that the models change, found none");
    let slerp = error(Some(&two), &[&two], "slerp", &options);
    assert_eq!(slerp, "t: expected a number from 0 to 1 for slerp, found none");
    let steep = CombineOptions { t: Some(1.5), ..options.clone() };
    assert_eq!(error(Some(&two), &[&two], "slerp", &steep), "t: expected a number from 0 to 1, found 1.5");
    let nearswap = error(Some(&two), &[&two], "nearswap", &options);
    assert_eq!(nearswap, "t: expected a distance for nearswap, found none");
    let fusion = error(Some(&two), &[&two, &two], "arcee_fusion", &options);
    assert_eq!(fusion, "method: expected one model beside the base for arcee_fusion, found 2");
    let passthrough = error(Some(&two), &[&two, &two], "passthrough", &options);
    assert_eq!(passthrough, "method: expected one model for passthrough, found 2");
    let sum = error(Some(&two), &[&two, &two], "multislerp", &weighing(&[1.0, -1.0]));
    assert!(sum.contains("tensor \"w\": expected weights that sum to something"), "{sum}");
    let della = error(Some(&two), &[&two, &two], "della", &CombineOptions { density: vec![0.9], ..options });
    assert!(della.starts_with("epsilon: expected less than 0.09"), "{della}");
}
