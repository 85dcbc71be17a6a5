use std::sync::Arc;

use super::*;
use crate::dtype::DType;
use crate::linalg::{Matrix, Random, svd};
use crate::plan::{Expr, Plan, PlannedTensor};

/// A weight whose spectrum falls along every axis, as those of trained ones do.
fn weight(shape: &[usize], seed: u64) -> PlannedTensor {
    let size = KernelSize::of_weight(shape).unwrap();
    let mut random = Random::new(seed);
    let mixing = |taps: usize, random: &mut Random| {
        Matrix::from_fn(taps, taps, |row, _| 0.6f64.powi(row as i32) * f64::from(random.normal()))
    };
    let mix = mixing(size.time, &mut random).kronecker(&mixing(size.area(), &mut random));
    let rows = shape[0] * shape[1];
    let values = Matrix::from_fn(rows, size.taps(), |_, _| f64::from(random.normal())) * mix;
    named("a.weight", shape, crate::linalg::to_rows(&values))
}

fn named(name: &str, shape: &[usize], values: Vec<f32>) -> PlannedTensor {
    let expr = Expr::Values { shape: shape.to_vec(), values: values.into() };
    PlannedTensor { name: name.to_owned(), dtype: DType::F32, shape: shape.to_vec(), expr }
}

fn moment(of: &PlannedTensor) -> Moment {
    Moment::of(&Taps::new(of, KernelSize::of_weight(&of.shape).unwrap())).unwrap()
}

fn error(of: &PlannedTensor, atoms: &Atoms) -> f64 {
    missed(&Taps::new(of, KernelSize::of_weight(&of.shape).unwrap()), atoms).unwrap().error()
}

fn assert_orthonormal(rows: &Matrix) {
    let gram = rows * rows.transpose();
    assert!((gram - Matrix::identity(rows.nrows(), rows.nrows())).norm() < 1e-12);
}

#[test]
fn all_atoms_hold_the_kernel_and_each_lowers_the_error() {
    for shape in
        [&[8, 6, 3, 3, 3][..], &[4, 6, 5, 3, 7], &[12, 1, 3, 3, 3], &[8, 3, 7, 7], &[8, 6, 9], &[3, 2, 1, 3, 3]]
    {
        let weight = weight(shape, 1);
        let size = KernelSize::of_weight(shape).unwrap();
        let found = moment(&weight);
        let search = Search::new(&found);
        let mut before: Vec<f64> = vec![1.0; size.area() + 1];
        for n in 1..=size.time {
            for m in 1..=size.area() {
                let (atoms, energy) = search.atoms(n, m);
                assert_orthonormal(&atoms.temporal);
                assert_orthonormal(&atoms.spatial);
                let error = error(&weight, &atoms);
                assert!((1.0 - error * error - energy).abs() < 1e-12, "{shape:?} {n} {m}");
                assert!(error <= before[m] + 1e-9 && error <= before[m - 1] + 1e-9);
                before[m] = error;
            }
        }
        assert!(before[size.area()] < 1e-12, "{shape:?}: {}", before[size.area()]);
    }
}

#[test]
fn with_one_mode_the_error_is_that_of_the_singular_values() {
    let weight = weight(&[16, 12, 5, 5], 2);
    let values = Matrix::from_row_iterator(192, 25, weight.read().unwrap().into_iter().map(f64::from));
    let singular = svd(values).s;
    let squares = |from: usize| singular[from..].iter().map(|s| s * s).sum::<f64>();
    let found = moment(&weight);
    let search = Search::new(&found);
    for m in [1, 6, 24] {
        let bound = (squares(m) / squares(0)).sqrt();
        assert!((error(&weight, &search.atoms(1, m).0) - bound).abs() < 1e-9, "{m}");
    }
}

#[test]
fn rows_are_in_order_and_their_largest_entry_is_positive() {
    let weight = weight(&[16, 12, 3, 3, 3], 3);
    let found = moment(&weight);
    let (atoms, _) = Search::new(&found).atoms(2, 5);
    for rows in [&atoms.temporal, &atoms.spatial] {
        for row in rows.row_iter() {
            let largest = row.iter().fold(0.0f64, |largest, v| if v.abs() > largest.abs() { *v } else { largest });
            assert!(largest > 0.0);
        }
    }
}

#[test]
fn energy_gives_the_smallest_numbers_that_reach_it() {
    for (shape, share) in
        [(&[16, 12, 3, 3, 3][..], 0.95), (&[8, 6, 5, 3, 3], 0.99), (&[8, 6, 5, 5], 0.9), (&[8, 6, 9], 0.8)]
    {
        let found = moment(&weight(shape, 4));
        let search = Search::new(&found);
        let (n, m) = search.reaching(share).0.counts();
        assert!(search.atoms(n, m).1 >= share);
        let size = found.size();
        for p in 1..=size.time {
            for q in 1..=size.area() {
                let smaller = p * q < n * m || p * q == n * m && q < m;
                assert!(!smaller || search.atoms(p, q).1 < share, "{shape:?}: {n} {m}, but {p} {q}");
            }
        }
        let (n, m) = search.reaching(1.0).0.counts();
        assert_eq!((n, m), (size.time, size.area()));
    }
}

#[test]
fn a_kernel_of_zeros_has_atoms_and_no_error() {
    let weight = named("a.weight", &[2, 2, 3, 3], vec![0.0; 36]);
    let found = moment(&weight);
    let search = Search::new(&found);
    let (atoms, energy) = search.atoms(1, 4);
    assert_orthonormal(&atoms.spatial);
    assert_eq!((energy, error(&weight, &atoms)), (1.0, 0.0));
    assert_eq!(search.reaching(0.9).0.counts(), (1, 1));
}

#[test]
fn threads_change_nothing() {
    let weight = weight(&[64, 40, 3, 3, 3], 5);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let found = moment(&weight);
            let atoms = Search::new(&found).atoms(2, 4).0;
            let missed = missed(&Taps::new(&weight, found.size()), &atoms).unwrap();
            (found, atoms, missed)
        })
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn equal_atoms_are_no_change_and_others_a_map_of_taps() {
    let weight = weight(&[4, 3, 3, 3, 3], 6);
    let found = moment(&weight);
    let (old, _) = Search::new(&found).atoms(2, 4);
    assert!(old.change_to(&old).iter().all(|value| *value == 0.0));
    let mut random = Random::new(7);
    let mut new = old.clone();
    new.temporal.iter_mut().chain(new.spatial.iter_mut()).for_each(|value| *value += 0.1 * f64::from(random.normal()));
    let products = |atoms: &Atoms| Matrix::from_row_slice(8, 27, &atoms.products());
    // With orthonormal rows, the pseudoinverse is the transpose.
    let expected = products(&old).transpose() * (products(&new) - products(&old));
    let map = Matrix::from_row_slice(27, 27, &old.change_to(&new));
    assert!((map - expected).norm() < 1e-12);
    // More atoms than taps: least squares.
    let many = Atoms {
        size: KernelSize::plane(2, 2),
        temporal: Matrix::identity(1, 1),
        spatial: Matrix::from_fn(7, 4, |_, _| f64::from(random.normal())),
    };
    let doubled = Atoms { spatial: 2.0 * &many.spatial, ..many.clone() };
    let map = Matrix::from_row_slice(4, 4, &many.change_to(&doubled));
    assert!((map - Matrix::identity(4, 4)).norm() < 1e-12);
}

/// A bank in memory.
fn bank(layers: &[(&str, &[usize], usize, usize)], shared: bool) -> FilterBank {
    let tensors: Vec<PlannedTensor> = (layers.iter().enumerate())
        .map(|(seed, (name, shape, ..))| PlannedTensor { name: format!("{name}.weight"), ..weight(shape, seed as u64) })
        .collect();
    let plan = Plan { tensors };
    let selection = Selection::of(&plan, &Targets::default(), "model".as_ref()).unwrap();
    let counts = Counts::Given { temporal: Some(layers[0].2), spatial: Some(layers[0].3) };
    let found = Decomposition::of(&selection, counts, shared, &|| ()).unwrap();
    let json = found.config("model").to_json();
    FilterBank::read("config".as_ref(), json.as_object().unwrap(), "file".as_ref(), found.plan(DType::F32)).unwrap()
}

fn swapped(bank: &FilterBank, how: Sampling) -> FilterBank {
    let swapped = bank.sampled(how).unwrap();
    let json = swapped.config.to_json();
    FilterBank::read("config".as_ref(), json.as_object().unwrap(), "file".as_ref(), swapped.plan).unwrap()
}

#[test]
fn dilated_atoms_are_the_dilated_kernel_exactly() {
    for (shape, how, dilation) in [
        (&[6, 5, 3, 3, 3][..], Sampling { dilate_time: Some(2), ..Sampling::default() }, [2, 1, 1]),
        (&[6, 5, 3, 3, 3], Sampling { dilate_space: Some(3), ..Sampling::default() }, [1, 3, 3]),
        // Nine taps become 25: both are summed in the same way.
        (&[6, 5, 3, 3], Sampling { dilate_space: Some(2), ..Sampling::default() }, [1, 2, 2]),
        (&[6, 5, 4], Sampling { dilate_time: Some(5), ..Sampling::default() }, [5, 1, 1]),
        (&[1, 2, 3, 3], Sampling { dilate_space: Some(2), ..Sampling::default() }, [1, 2, 2]),
    ] {
        let before = bank(&[("a", shape, 2, 4)], false);
        let after = swapped(&before, how);
        let model = Plan { tensors: vec![weight(shape, 0)] };
        let kernel =
            |bank: &FilterBank| bank.baked(&model, "model".as_ref(), Form::Dense).unwrap().plan.tensors[0].clone();
        let (narrow, wide) = (kernel(&before), kernel(&after));
        let (old, new) = (before.layers[0].config.size, after.layers[0].config.size);
        assert_eq!(
            new.taps(),
            (0..3).map(|i| dilation[i] * ([old.time, old.height, old.width][i] - 1) + 1).product::<usize>()
        );
        let (narrow, wide) = (narrow.read().unwrap(), wide.read().unwrap());
        let rows = narrow.len() / old.taps();
        let mut expected = vec![0.0f32; rows * new.taps()];
        for r in 0..rows {
            for tap in 0..old.taps() {
                let (t, h, w) = (tap / old.area(), tap / old.width % old.height, tap % old.width);
                let place = (t * dilation[0] * new.height + h * dilation[1]) * new.width + w * dilation[2];
                expected[r * new.taps() + place] = narrow[r * old.taps() + tap];
            }
        }
        assert!(wide.iter().zip(&expected).all(|(a, b)| a == b), "{shape:?}");
    }
}

#[test]
fn resampled_atoms_keep_their_integral_and_come_back() {
    let one = bank(&[("a", &[4, 3, 3, 3, 3], 2, 4)], false);
    let to_five = Sampling { resize_time: Some(5), resize_space: Some((5, 5)), ..Sampling::default() };
    let five = swapped(&one, to_five);
    assert_eq!(five.layers[0].config.size, KernelSize::volume(5, 5, 5));
    let back = swapped(&five, Sampling { resize_time: Some(3), resize_space: Some((3, 3)), ..Sampling::default() });
    let (one, back) = (&one.layers[0].atoms.atoms, &back.layers[0].atoms.atoms);
    assert!((&one.temporal - &back.temporal).norm() < 1e-6 && (&one.spatial - &back.spatial).norm() < 1e-6);
    // The trapezoidal rule over an atom doesn't change with its sampling.
    let integral = |atoms: &Atoms| {
        let row = atoms.temporal.row(0);
        row.sum() - (row[0] + row[row.len() - 1]) / 2.0
    };
    assert!((integral(one) - integral(&five.layers[0].atoms.atoms)).abs() < 1e-6);
}

#[test]
fn sets_that_get_one_size_are_no_longer_shared() {
    let shared = bank(&[("a", &[4, 3, 3], 2, 1), ("b", &[4, 4, 3], 2, 1), ("c", &[4, 3, 5], 2, 1)], true);
    assert_eq!(shared.layers[0].atoms.atoms, shared.layers[1].atoms.atoms);
    let dilated = shared.sampled(Sampling { dilate_time: Some(2), ..Sampling::default() }).unwrap();
    assert!(dilated.config.shared && dilated.notes.is_empty());
    assert_eq!(dilated.plan.tensors.len(), 3 + 2);
    let resized = shared.sampled(Sampling { resize_time: Some(7), ..Sampling::default() }).unwrap();
    assert!(!resized.config.shared && resized.notes[0].contains("no longer shared"));
    assert_eq!(resized.plan.tensors.len(), 6);
}

#[test]
fn swaps_say_what_becomes_of_padding() {
    let told = |before: KernelSize, after: KernelSize| SizeChange { module: "a".to_owned(), before, after }.to_string();
    assert_eq!(
        told(KernelSize::volume(3, 3, 3), KernelSize::volume(5, 3, 3)),
        "a: kernel 3x3x3 -> 5x3x3; build the model with kernel_size (5, 3, 3), padding grows by (1, 0, 0) (sizes \
         stay at stride 1 with padding (2, 1, 1))"
    );
    assert!(
        told(KernelSize::line(4), KernelSize::line(7))
            .ends_with("kernel_size 7 (sizes stay at stride 1 with padding 3)")
    );
    assert!(
        told(KernelSize::plane(3, 3), KernelSize::plane(4, 4))
            .ends_with("(no padding keeps sizes along an axis of an even number of taps)")
    );
    assert!(told(KernelSize::line(5), KernelSize::line(3)).contains("padding shrinks by 1"));
    assert_eq!(told(KernelSize::line(5), KernelSize::line(5)), "a: kernel 5 as before");
}

#[test]
fn settings_are_read_as_they_are_written_and_wrong_ones_refused() {
    let config = bank(&[("a.0", &[4, 3, 3, 3, 3], 2, 4)], false).config;
    let json = config.to_json();
    let read = |json: &serde_json::Value| BankConfig::from_json("c.json".as_ref(), json.as_object().unwrap());
    assert_eq!(read(&json).unwrap(), config);
    let refused = |change: &dyn Fn(&mut serde_json::Value), expected: &str| {
        let mut json = json.clone();
        change(&mut json);
        let error = read(&json).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(&|j| j["mode"] = "both".into(), "c.json: mode: expected replace or atoms, found \"both\"");
    refused(&|j| j["format_version"] = 2.into(), "format_version: expected 1, found 2");
    refused(&|j| j["scale"] = 0.5.into(), "scale: expected 1 with mode replace");
    refused(&|j| j["rank"] = 3.into(), "rank: expected a field this version knows, found 3");
    refused(&|j| j["layers"] = serde_json::json!({}), "layers: expected at least one layer");
    refused(&|j| j["layers"]["a.0"]["kernel"] = serde_json::json!([3, 3]), "layers.a.0.kernel: expected three sizes");
    refused(
        &|j| j["layers"]["a.0"]["kernel"] = serde_json::json!([0, 3, 3]),
        "expected 1 to 4096 taps, found [0, 3, 3]",
    );
    refused(
        &|j| j["layers"]["a.0"]["kernel"] = serde_json::json!([1u64 << 40, 1u64 << 40, 3]),
        "expected 1 to 4096 taps",
    );
    refused(&|j| j["layers"]["a.0"]["dims"] = 2.into(), "kernel: expected [1, H, W] with `dims` 2");
    refused(&|j| j["layers"]["a.0"]["dims"] = 4.into(), "dims: expected 1 to 3, found 4");
    refused(&|j| j["layers"]["a.0"]["spatial_atoms"] = (1u64 << 30).into(), "expected products of atoms");
    refused(&|j| j["layers"]["a.0"]["stride"] = serde_json::json!([1, 2]), "stride: expected one number, or 3");
    refused(&|j| j["layers"]["a.0"]["bias"] = true.into(), "layers.a.0.bias: expected a field this version knows");
}

#[test]
fn layers_of_one_storage_are_decomposed_once() {
    let shared: Arc<[f32]> = weight(&[4, 3, 3, 3], 1).read().unwrap().into();
    let plan = Plan {
        tensors: vec![
            named("a.weight", &[4, 3, 3, 3], shared.to_vec()),
            named("b.weight", &[4, 3, 3, 3], shared.to_vec()),
        ],
    };
    // Values in memory have no storage: both are layers of their own.
    let selection = Selection::of(&plan, &Targets::default(), "m".as_ref()).unwrap();
    assert!(selection.layers.iter().all(|layer| layer.twin_of.is_none()));
    assert_eq!(Decomposition::steps(&selection), 4);
}
