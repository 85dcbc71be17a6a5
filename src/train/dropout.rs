//! Dropout on the input of a LoRA's updates, as PEFT's `lora_dropout`.
//!
//! Which values are dropped follows from the run's seed, the step, the forward pass and the linear layer. So a resumed
//! run drops the same ones, and so does a part of the layers that is computed again for its gradients.
//!
//! Reference: PEFT `tuners/lora/layer.py` (`lora_B(lora_A(dropout(x))) * scaling`).

use candle_core::Tensor;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::arch::LinearLayer;
use crate::error::Result;
use crate::model::{Batch, Hook, ops};

/// The dropout of one forward pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dropout {
    /// The share of values that are dropped, below 1.
    pub(super) share: f64,
    pub(super) seed: u64,
    /// The number of steps before this one.
    pub(super) step: usize,
    /// The number of forward passes before this one in the step.
    pub(super) pass: usize,
}

impl Dropout {
    /// The same in another forward pass of the step.
    pub(super) fn in_pass(self, pass: usize) -> Self {
        Self { pass, ..self }
    }

    /// `x` with a share of its values set to 0, and the others scaled up, so that their mean stays.
    fn of(&self, site: LinearLayer, x: &Tensor) -> Result<Tensor> {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seed.to_le_bytes());
        seed[8..16].copy_from_slice(&(self.step as u64).to_le_bytes());
        seed[16..24].copy_from_slice(&(self.pass as u64).to_le_bytes());
        seed[24..28].copy_from_slice(&crc32fast::hash(site.to_string().as_bytes()).to_le_bytes());
        let mut random = ChaCha8Rng::from_seed(seed);
        let limit = (self.share * 2f64.powi(32)) as u64;
        let kept = (1.0 / (1.0 - self.share)) as f32;
        let factors = (0..x.elem_count()).map(|_| if u64::from(random.next_u32()) < limit { 0.0 } else { kept });
        let factors = Tensor::from_iter(factors, x.device())?.reshape(x.shape())?;
        Ok((x * factors)?)
    }
}

/// The hook of a LoRA, with dropout on the input of each update.
pub(super) struct Dropped<H> {
    pub(super) hook: H,
    pub(super) dropout: Dropout,
}

impl<H: Hook> Hook for Dropped<H> {
    fn bottleneck(&mut self, site: LinearLayer, x: &Tensor) -> Result<Option<(Tensor, Tensor, f64)>> {
        let Some((a, b, scale)) = self.hook.low_rank(site)? else { return Ok(None) };
        Ok(Some((ops::linear(&self.dropout.of(site, x)?, &a)?, b, scale)))
    }

    fn layers_together(&self) -> usize {
        self.hook.layers_together()
    }

    fn continue_with(&mut self, batch: &Batch) -> Result<()> {
        self.hook.continue_with(batch)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::arch::Module;

    #[test]
    fn what_is_dropped_follows_from_step_pass_and_layer() {
        let dropout = Dropout { share: 0.25, seed: 7, step: 3, pass: 0 };
        let site = |layer| LinearLayer { layer, module: Module::of_path("model.layers.{l}.self_attn.q_proj").unwrap() };
        let x = Tensor::ones((2, 50, 40), candle_core::DType::F32, &Device::Cpu).unwrap();
        let of = |dropout: Dropout, layer| {
            dropout.of(site(layer), &x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let found = of(dropout, 0);
        assert!(found.iter().all(|value| *value == 0.0 || *value == 1.0 / 0.75));
        let dropped = found.iter().filter(|value| **value == 0.0).count();
        assert!((900..1100).contains(&dropped), "{dropped} of 4000");
        assert_eq!(found, of(dropout, 0));
        for other in [of(dropout, 1), of(dropout.in_pass(1), 0), of(Dropout { step: 4, ..dropout }, 0)] {
            assert_ne!(found, other);
        }
    }
}
