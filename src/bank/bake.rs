//! The fixed update that a bank makes to its base once the weights of its atoms are fixed.

use super::AtomBank;
use crate::adapter::peft::{Base, Change, Changes, LowRank, WeightLayout};
use crate::adapter::{HostTensor, Lora, LoraConfig, Tensors};
use crate::arch::ModelConfig;
use crate::plan::Expr;

impl AtomBank {
    /// The update `s B_l M_b A_l` of every linear layer that the bank adapts, as changes to the weights of `base`, whose
    /// typed config is `config`. `alphas` are the weights of the atoms by block, each `[K]`.
    ///
    /// # Panics
    /// If there are fewer alphas than blocks.
    pub fn changes(&self, alphas: &[Vec<f32>], base: &Base, config: &ModelConfig) -> Changes {
        let operators: Vec<Vec<f32>> = alphas.iter().map(|alpha| self.operator(alpha)).collect();
        let values = |shape: &[usize], values| Expr::Values { shape: shape.to_vec(), values };
        let mut changes = Changes::default();
        for layer in self.layers() {
            let (a, b) = self.factors(layer);
            let left = self.left_factor(layer, &operators[layer.layer / self.config.block_size]);
            let update = LowRank {
                scale: f64::from(self.scale()),
                alpha: None,
                a: values(&a.shape, a.values.clone()),
                b: values(&b.shape, left.into()),
                layout: WeightLayout::of_linear(config.linear(layer).is_some_and(|linear| linear.is_transposed)),
                rounded: None,
            };
            let name = layer.weight_name();
            let name = base.tensor(&name).map_or(name, |tensor| tensor.name.clone());
            changes.changes.push((name, Change::LowRank(update)));
        }
        changes
    }

    /// The same update as an ordinary LoRA: `lora_B' = B_l M_b`, `lora_A' = A_l`, same rank and alpha.
    ///
    /// # Panics
    /// As [`AtomBank::changes`].
    pub fn static_lora(&self, alphas: &[Vec<f32>]) -> Lora {
        let config = LoraConfig {
            r: self.config.r,
            lora_alpha: self.config.lora_alpha,
            use_rslora: self.config.use_rslora,
            target_modules: Some(self.config.target_modules.clone()),
            base_model_name_or_path: self.config.base_model_name_or_path.clone(),
            ..LoraConfig::default()
        };
        let mut tensors = Tensors::new();
        for layer in self.layers() {
            let (a, b) = self.factors(layer);
            let operator = self.operator(&alphas[layer.layer / self.config.block_size]);
            let left = self.left_factor(layer, &operator);
            tensors.insert(layer.factor_name('A'), a.clone());
            tensors.insert(layer.factor_name('B'), HostTensor { shape: b.shape.clone(), values: left.into() });
        }
        Lora { path: self.path.clone(), config, tensors }
    }
}
