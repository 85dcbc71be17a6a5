//! Fresh banks: random atoms, routers and factors, with updates that start at zero.

use std::path::Path;

use super::config::INSTRUCTION_CENTER;
use super::{AtomBank, BankConfig};
use crate::adapter::{HostTensor, Tensors, add_fresh_factors};
use crate::arch::ModelConfig;
use crate::error::Result;
use crate::linalg::{Random, random_orthogonal, to_rows};

impl AtomBank {
    /// Makes a bank for `base` with B = 0, which changes nothing until it is trained. The
    /// atoms are random orthogonal matrices, so that they differ from the first step; keys and descriptors are
    /// unit-normal, projections scaled by their fan-in, A is Kaiming-uniform with a = sqrt 5.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for settings that contradict each other or the base.
    pub fn fresh(path: &Path, config: BankConfig, base: &ModelConfig, seed: u64) -> Result<Self> {
        config.check(path)?;
        config.check_size(path, "", base)?;
        let mut random = Random::new(seed);
        let mut tensors = Tensors::new();
        let r = config.r;
        for (name, shape) in config.global_tensors() {
            let blocks = config.blocks(base.num_hidden_layers);
            let shape: Vec<usize> = shape.into_iter().map(|d| d.unwrap_or(blocks)).collect();
            let std = match name {
                "atom_bank.router.block_bias" | "atom_bank.router.summary_init" => 0.1,
                "atom_bank.router.instruction_proj.weight" => 1.0 / (config.instruction_dim as f32).sqrt(),
                name if name.starts_with("atom_bank.router.") => 1.0 / (r as f32).sqrt(),
                _ => 1.0,
            };
            let values: Vec<f32> = match name {
                "atom_bank.atoms" => {
                    (0..config.num_atoms).flat_map(|_| to_rows(&random_orthogonal(r, &mut random))).collect()
                }
                _ => (0..shape.iter().product()).map(|_| std * random.normal()).collect(),
            };
            tensors.insert(name.to_owned(), HostTensor { shape, values: values.into() });
        }
        add_fresh_factors(&mut tensors, &config.target_modules, r, base, &mut random);
        let bank = Self { path: path.to_owned(), config, tensors, instructions: Vec::new() };
        bank.check_base(base)?;
        Ok(bank)
    }

    /// Makes the bank take `center`, `[d_e]`, off every instruction's embedding: the mean of the embeddings of the
    /// instructions that it is trained with. `None`: nothing is taken off.
    pub fn center_on(&mut self, center: Option<HostTensor>) {
        match center {
            Some(center) => self.tensors.insert(INSTRUCTION_CENTER.to_owned(), center),
            None => self.tensors.remove(INSTRUCTION_CENTER),
        };
    }
}
