//! Tests of the fit on LoRAs with known common factors, and on LoRAs without common factors.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::adapter::{Lora, LoraConfig};
use crate::arch::ModelConfig;
use crate::checkpoint::Checkpoint;
use crate::linalg::{Random, from_rows};

fn base() -> ModelConfig {
    deeper(0)
}

/// The demo's base with some layers more.
fn deeper(layers: u64) -> ModelConfig {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/demo/base");
    let mut json = Checkpoint::open(&folder).unwrap().config_json;
    let count = json["num_hidden_layers"].as_u64().unwrap();
    json["num_hidden_layers"] = (count + layers).into();
    ModelConfig::from_json(&folder.join("config.json"), &json).unwrap()
}

fn random(rows: usize, cols: usize, random: &mut Random) -> Matrix {
    Matrix::from_fn(rows, cols, |_, _| f64::from(random.normal()))
}

/// Llama's modules for queries, values and down.
fn modules() -> [Module; 3] {
    ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]
        .map(|name| Module::of_path(&format!("model.layers.{{l}}.{name}")).unwrap())
}

fn size(base: &ModelConfig, site: LinearLayer) -> (usize, usize) {
    let linear = base.linear(site).unwrap();
    (linear.d_out, linear.d_in)
}

/// A LoRA with the given factors by site. Alpha and rslora depend on `number`; B is divided by the scale.
fn lora(number: usize, factors: BTreeMap<LinearLayer, (Matrix, Matrix)>) -> Lora {
    let r = factors.values().next().unwrap().0.nrows();
    let config = LoraConfig {
        r,
        lora_alpha: [8.0, 16.0, 3.0][number % 3],
        use_rslora: number % 2 == 1,
        target_modules: None,
        base_model_name_or_path: String::new(),
        ..LoraConfig::default()
    };
    let scale = f64::from(config.scale());
    let mut tensors = BTreeMap::new();
    for (site, (a, b)) in factors {
        tensors.insert(site.factor_name('A'), host(&a));
        tensors.insert(site.factor_name('B'), host(&(b / scale)));
    }
    Lora { path: PathBuf::from(format!("lora-{number}")), config, tensors }
}

/// LoRAs of these ranks: `B_l C_i A_l` with common factors of rank `common`, or with separate factors if `None`.
fn loras(ranks: &[usize], common: Option<usize>, base: &ModelConfig, seed: u64) -> Vec<Lora> {
    let mut rng = Random::new(seed);
    let sites: Vec<LinearLayer> =
        (0..base.num_hidden_layers).flat_map(|layer| modules().map(|module| LinearLayer { layer, module })).collect();
    let shared: Vec<(Matrix, Matrix)> = sites
        .iter()
        .map(|site| {
            let ((d_out, d_in), r) = (size(base, *site), common.unwrap_or(1));
            (random(d_out, r, &mut rng), random(r, d_in, &mut rng))
        })
        .collect();
    let make = |(number, r): (usize, &usize)| {
        let atom = common.map(|common| (random(common, *r, &mut rng), random(*r, common, &mut rng)));
        let factors = sites.iter().zip(&shared).map(|(site, (left, right))| {
            let (d_out, d_in) = size(base, *site);
            let factors = match &atom {
                Some((c_left, c_right)) => (c_right * right, left * c_left),
                None => (random(*r, d_in, &mut rng), random(d_out, *r, &mut rng)),
            };
            (*site, factors)
        });
        lora(number, factors.collect())
    };
    ranks.iter().enumerate().map(make).collect()
}

fn fit(loras: &[Lora], base: &ModelConfig, rank: Option<usize>) -> Result<BankFit> {
    super::fit(&loras.iter().map(LinearUpdates::from).collect::<Vec<_>>(), base, rank)
}

/// The relative error of each LoRA, computed from the full updates.
fn measured(fit: &BankFit, loras: &[Lora]) -> Vec<f64> {
    let error = |(i, lora): (usize, &Lora)| {
        let (mut error, mut norm) = (0.0, 0.0);
        for (site, (a, b)) in &fit.factors {
            let mut update = Matrix::zeros(b.nrows(), a.ncols());
            if lora.layers().contains(site) {
                let (la, lb) = lora.factors(*site);
                let [lb, la] = [lb, la].map(|t| from_rows(t.shape[0], t.shape[1], &t.values));
                update = lb * la * f64::from(lora.config.scale());
            }
            norm += update.norm_squared();
            error += (b * &fit.atoms[i] * a - update).norm_squared();
        }
        (error / norm).sqrt()
    };
    loras.iter().enumerate().map(error).collect()
}

fn assert_reported(fit: &BankFit, loras: &[Lora]) {
    for (lora, measured) in fit.loras.iter().zip(measured(fit, loras)) {
        assert!((lora.relative_error - measured).abs() < 1e-9, "{} {measured}", lora.relative_error);
    }
}

#[test]
fn loras_of_one_basis_are_recovered() {
    let base = base();
    for (ranks, common) in [
        (&[4, 6, 8, 10, 12, 14, 16, 16][..], 16),
        (&[8, 8], 8),
        (&[2, 5], 5),
        (&[4, 4, 4], 4),
        (&[4, 4, 4, 4, 4, 4], 10),
    ] {
        for seed in 0..3 {
            let loras = loras(ranks, Some(common), &base, seed);
            let fit = fit(&loras, &base, Some(common)).unwrap();
            let worst = measured(&fit, &loras).into_iter().fold(0.0, f64::max);
            println!("{ranks:?} of {common}: {worst:.1e} after {} rounds", fit.rounds);
            assert!(worst < 1e-5, "{ranks:?} of {common}, seed {seed}: {worst:.1e} after {} rounds", fit.rounds);
            assert_reported(&fit, &loras);
        }
    }
}

#[test]
fn unrelated_loras_are_reported_as_they_are_and_held_by_the_sum_of_their_ranks() {
    let base = base();
    let loras = loras(&[2, 3, 4], None, &base, 9);
    let small = fit(&loras, &base, None).unwrap();
    assert_eq!(small.rank, 4);
    assert_reported(&small, &loras);
    println!("unrelated: {:.3} after {} rounds", small.relative_error, small.rounds);
    assert!((0.3..1.0).contains(&small.relative_error), "{}", small.relative_error);
    let mut last = small.relative_error;
    for rank in 5..=loras.iter().map(|lora| lora.config.r).sum() {
        let fit = fit(&loras, &base, Some(rank)).unwrap();
        assert!(fit.relative_error < last, "rank {rank}");
        last = fit.relative_error;
    }
    assert!(last < 1e-6, "{last}");
}

#[test]
fn noise_is_all_that_is_lost() {
    let base = base();
    let mut loras = loras(&[6; 5], Some(6), &base, 4);
    let mut rng = Random::new(8);
    for tensor in loras.iter_mut().flat_map(|lora| lora.tensors.values_mut()) {
        let scale = 0.01 * (tensor.values.iter().map(|v| v * v).sum::<f32>() / tensor.values.len() as f32).sqrt();
        tensor.values = tensor.values.iter().map(|v| v + scale * rng.normal()).collect();
    }
    let fit = fit(&loras, &base, None).unwrap();
    println!("noise of 1%: {:.4} after {} rounds", fit.relative_error, fit.rounds);
    assert!(fit.relative_error < 0.02, "{}", fit.relative_error);
}

#[test]
fn sites_that_a_lora_lacks_count_as_zero() {
    let base = base();
    let mut loras = loras(&[4, 4], Some(4), &base, 2);
    let lacked = LinearLayer { layer: 1, module: modules()[1] };
    let norm = |lora: &Lora, site| {
        let (a, b) = lora.factors(site);
        let [b, a] = [b, a].map(|t| from_rows(t.shape[0], t.shape[1], &t.values));
        (b * a).norm_squared()
    };
    loras.iter_mut().for_each(|lora| {
        // Both LoRAs lack this site in layer 2, so no atom has to represent it.
        for which in ['A', 'B'] {
            lora.tensors.remove(&LinearLayer { layer: 2, ..lacked }.factor_name(which));
        }
    });
    let without = fit(&loras, &base, None).unwrap();
    assert!(without.relative_error < 1e-5);
    assert_eq!(without.loras[0].missing_sites, 1);
    let share = norm(&loras[1], lacked) / loras[1].layers().iter().map(|s| norm(&loras[1], *s)).sum::<f64>();
    for which in ['A', 'B'] {
        loras[1].tensors.remove(&lacked.factor_name(which));
    }
    let fit = fit(&loras, &base, None).unwrap();
    assert_eq!((fit.loras[0].missing_sites, fit.loras[1].missing_sites), (1, 2));
    assert_reported(&fit, &loras);
    println!("lacked: {:.4} of share {share:.4}", fit.loras[1].relative_error);
    assert!(fit.loras[1].relative_error > 1e-3 && fit.relative_error < share.sqrt());
}

#[test]
fn a_lora_that_changes_nothing_gets_an_atom_of_zeros() {
    let base = base();
    let mut loras = loras(&[4, 4, 4], Some(4), &base, 6);
    for (name, tensor) in &mut loras[1].tensors {
        if name.contains("lora_B") {
            tensor.values = vec![0.0; tensor.values.len()].into();
        }
    }
    let fit = fit(&loras, &base, None).unwrap();
    assert_eq!(fit.loras[1].relative_error, 0.0);
    assert!(fit.atoms[1].norm() < 1e-9 * fit.atoms[0].norm());
    assert!(fit.relative_error < 1e-5);
}

#[test]
fn what_makes_no_bank_is_refused() {
    let base = base();
    let some = loras(&[4, 4], Some(4), &base, 0);
    let message = |loras: &[Lora], rank| fit(loras, &base, rank).err().unwrap().to_string();
    assert!(message(&some[..1], None).contains("LoRAs for a bank: expected two or more, found 1"));
    assert!(message(&some, Some(9)).contains("rank: expected 1 to 8, the sum of the LoRAs' ranks, found 9"));
    let deep = deeper(1);
    let other = [some[0].clone(), loras(&[4], Some(4), &deep, 0).remove(0)];
    assert!(message(&other, None).contains("this adapter belongs to another base model"));
}
