//! Updates to weights, as plans: what an adapter adds to a base model.

mod adapters;
pub mod combine;
pub mod extract;
mod rounding;
mod truncation;

use std::collections::BTreeMap;

pub use adapters::{Merged, with_adapters};
pub use rounding::{Rounding, rounding};
pub use truncation::Truncation;

use crate::adapter::{Adapter, AdapterConfig, HostTensor, LoraConfig};
use crate::arch::LinearLayer;
use crate::bank::AtomBank;
use crate::error::{Finding, Result};
use crate::plan::{Expr, Plan};
use crate::source::show_shape;

/// What is added to weights, by their names.
pub type Updates = BTreeMap<String, Expr>;

/// `s B_l M_b A_l` for every site of a bank, under one fixed routing: `alphas` by block, each `[K]`.
///
/// # Panics
/// Where there are fewer alphas than blocks.
pub fn bank_updates(bank: &AtomBank, alphas: &[Vec<f32>]) -> Updates {
    let operators: Vec<Vec<f32>> = alphas.iter().map(|alpha| bank.operator(alpha)).collect();
    let update = |site: LinearLayer| {
        let (a, b) = bank.adapter.factors(site);
        let left = bank.left_factor(site, &operators[site.layer / bank.config.block_size]);
        Expr::Product {
            scale: bank.adapter.config.scale(),
            left: Box::new(Expr::Values { shape: b.shape.clone(), values: left.into() }),
            right: Box::new(Expr::Values { shape: a.shape.clone(), values: a.values.clone() }),
        }
    };
    bank.adapter.sites().into_iter().map(|site| (site.weight_name(), update(site))).collect()
}

/// `base` with each update added to its weight, in f32 before the one rounding.
///
/// # Errors
/// [`crate::Error::Mismatch`] for an update whose weight is not there or has another shape.
pub fn with_updates(base: &Plan, updates: &Updates) -> Result<Plan> {
    let mut plan = base.clone();
    let mut left: BTreeMap<&str, &Expr> = updates.iter().map(|(name, u)| (name.as_str(), u)).collect();
    for tensor in &mut plan.tensors {
        let Some(update) = left.remove(tensor.name.as_str()) else { continue };
        if tensor.shape != update.shape() {
            return Err(Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name))
                .expected(format_args!("{}, the update's shape", show_shape(&update.shape())))
                .found(show_shape(&tensor.shape))
                .mismatch());
        }
        tensor.expr = Expr::Add { of: Box::new(tensor.expr.clone()), delta: Box::new(update.clone()) };
    }
    match left.keys().next() {
        None => Ok(plan),
        Some(name) => {
            let file = base.tensors.first().map(|t| t.expr.source_path()).unwrap_or_default();
            Err(Finding::new(file, format!("tensor {name:?}"))
                .expected("it, for an update to add to")
                .found("nothing")
                .mismatch())
        }
    }
}

/// The same update as an ordinary LoRA: `lora_B' = B_l M_b`, `lora_A' = A_l`, same rank and alpha.
pub fn static_lora(bank: &AtomBank, alphas: &[Vec<f32>]) -> Adapter {
    let config = LoraConfig {
        r: bank.config.r,
        lora_alpha: bank.config.lora_alpha,
        use_rslora: bank.config.use_rslora,
        target_modules: Some(bank.config.target_modules.clone()),
        base_model_name_or_path: bank.config.base_model_name_or_path.clone(),
    };
    let mut tensors = BTreeMap::new();
    for site in bank.adapter.sites() {
        let (a, b) = bank.adapter.factors(site);
        let operator = bank.operator(&alphas[site.layer / bank.config.block_size]);
        let left = bank.left_factor(site, &operator);
        tensors.insert(site.factor_name('A'), a.clone());
        tensors.insert(site.factor_name('B'), HostTensor { shape: b.shape.clone(), values: left.into() });
    }
    Adapter { path: bank.adapter.path.clone(), config: AdapterConfig::Lora(config), tensors }
}
