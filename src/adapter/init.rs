//! Fresh LoRAs: random A, and B at zero, so that they change nothing until they are trained.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Adapter, AdapterConfig, HostTensor, LoraConfig};
use crate::arch::{LinearLayer, ModelConfig, Module};
use crate::error::Result;
use crate::linalg::Random;

/// A plain LoRA for `base` with B = 0.
///
/// # Errors
/// [`crate::Error::Format`] where no module is adapted.
pub fn new_lora(path: &Path, config: LoraConfig, base: &ModelConfig, seed: u64) -> Result<Adapter> {
    let mut random = Random::new(seed);
    let mut tensors = BTreeMap::new();
    let targets = config.target_modules.clone().unwrap_or_default();
    factors(&mut tensors, &targets, config.r, base, &mut random);
    let adapter = Adapter { path: path.to_owned(), config: AdapterConfig::Lora(config), tensors };
    adapter.check_names(path)?;
    Ok(adapter)
}

/// A and B of every target in every layer: A Kaiming-uniform with a = sqrt 5, B zero.
pub(crate) fn factors(
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
