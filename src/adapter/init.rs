//! Fresh adapters: random factors and atoms, updates that start at zero.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Adapter, AdapterConfig, HostTensor, LoraConfig};
use crate::arch::{LinearLayer, ModelConfig, Module};
use crate::bank::BankConfig;
use crate::error::Result;
use crate::linalg::Random;

/// A bank for `base` with B = 0: it changes nothing until it is trained. The distributions are
/// those of Queryable LoRA: atoms near the identity, unit-normal keys and descriptors, projections
/// scaled by their fan-in, A Kaiming-uniform with a = sqrt 5.
///
/// # Errors
/// [`crate::Error::Mismatch`] for settings that contradict each other or the base.
pub fn new_bank(path: &Path, config: BankConfig, base: &ModelConfig, seed: u64) -> Result<Adapter> {
    config.check(path)?;
    let mut random = Random::new(seed);
    let mut tensors = BTreeMap::new();
    let r = config.r;
    for (name, shape) in config.global_tensors() {
        let blocks = config.blocks(base.num_hidden_layers);
        let shape: Vec<usize> = shape.into_iter().map(|d| d.unwrap_or(blocks)).collect();
        let std = match name {
            "atom_bank.atoms" => 0.5 / (r as f32).sqrt(),
            "atom_bank.router.block_bias" | "atom_bank.router.summary_init" => 0.1,
            "atom_bank.router.instruction_proj.weight" => 1.0 / (config.instruction_dim as f32).sqrt(),
            name if name.starts_with("atom_bank.router.") => 1.0 / (r as f32).sqrt(),
            _ => 1.0,
        };
        let mut values: Vec<f32> = (0..shape.iter().product()).map(|_| std * random.normal()).collect();
        if name == "atom_bank.atoms" {
            for atom in values.chunks_exact_mut(r * r) {
                atom.iter_mut().step_by(r + 1).for_each(|diagonal| *diagonal += 1.0);
            }
        }
        tensors.insert(name.to_owned(), HostTensor { shape, values: values.into() });
    }
    factors(&mut tensors, &config.target_modules, r, base, &mut random);
    let adapter = Adapter { path: path.to_owned(), config: AdapterConfig::Bank(config), tensors };
    adapter.check_base(base)?;
    Ok(adapter)
}

/// A plain LoRA for `base` with B = 0.
///
/// # Errors
/// As [`new_bank`].
pub fn new_lora(path: &Path, config: LoraConfig, base: &ModelConfig, seed: u64) -> Result<Adapter> {
    let mut random = Random::new(seed);
    let mut tensors = BTreeMap::new();
    let targets = config.target_modules.clone().unwrap_or_default();
    factors(&mut tensors, &targets, config.r, base, &mut random);
    let adapter = Adapter { path: path.to_owned(), config: AdapterConfig::Lora(config), tensors };
    adapter.check_names(path)?;
    Ok(adapter)
}

/// A and B of every target in every layer.
fn factors(
    tensors: &mut BTreeMap<String, HostTensor>,
    targets: &[String],
    r: usize,
    base: &ModelConfig,
    random: &mut Random,
) {
    for layer in 0..base.num_hidden_layers {
        for module in Module::ALL.into_iter().filter(|m| targets.iter().any(|t| t == m.name())) {
            let site = LinearLayer { layer, module };
            let (d_out, d_in) = module.shape(base);
            // Kaiming-uniform with a = sqrt 5 comes to a bound of 1 / sqrt(fan-in).
            let bound = 1.0 / (d_in as f32).sqrt();
            let a = (0..r * d_in).map(|_| bound * (2.0 * random.uniform() - 1.0)).collect();
            tensors.insert(site.factor_name('A'), HostTensor { shape: vec![r, d_in], values: a });
            tensors.insert(
                site.factor_name('B'),
                HostTensor { shape: vec![d_out, r], values: vec![0.0; d_out * r].into() },
            );
        }
    }
}
