//! TinyLoRA: a low-rank update along the base's largest singular directions, with a core that is a sum of random matrices,
//! weighted by a few numbers that modules can share.
//!
//! Reference: huggingface/peft `src/peft/tuners/tinylora/layer.py` (`_compute_R`, `get_delta_weight`) and `model.py`
//! (`_create_and_replace`, which chooses the numbers of a module). The singular directions are in the file.

use super::Named;
use super::base::Base;
use super::change::{Change, LowRank, WeightLayout};
use super::entries::Entries;
use super::module_weight::Weight;
use super::modules::each_module;
use super::order;
use super::vera::{need_projections, shared};
use crate::error::Result;
use crate::json::Fields;
use crate::plan::Expr;

/// The changes of a TinyLoRA adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let fan_in_fan_out = fields.get("fan_in_fan_out")?.unwrap_or(false);
    let r = fields.count_or("r", 2)?;
    let u = fields.count_or("u", 64)?;
    let tying: f64 = fields.get("weight_tying")?.unwrap_or(0.0);
    if !(0.0..=1.0).contains(&tying) {
        return Err(fields.finding("weight_tying").expected("from 0 to 1").found(tying).mismatch());
    }
    need_projections(fields, true)?;
    fields.ignore(&["init_v_bound", "init_weights", "projection_seed", "tinylora_dropout"]);
    let mut modules = entries.modules("tinylora_A");
    order::sort(base, entries, "base_model.tinylora_v", &mut modules)?;
    let groups = ((modules.len() as f64 * (1.0 - tying)).round_ties_even() as usize).max(1);
    let size = (modules.len() / groups).max(1);
    let mut numbers = Vec::with_capacity(groups);
    for group in 0..groups.min(modules.len().div_ceil(size)) {
        let name = format!("base_model.tinylora_v.{group}");
        let tensor = shared(entries, &name)?;
        if tensor.shape != [u] {
            let finding = entries.shared_finding(&name).expected(format_args!("[{u}] by adapter_config.json"));
            return Err(finding.found(format_args!("{:?}", tensor.shape)).mismatch());
        }
        numbers.push(tensor.read()?);
    }
    each_module(fields, entries, base, "tinylora_A", |entries, module, name| {
        let place = modules.iter().position(|other| other == module).unwrap_or_default();
        let numbers = &numbers[(place / size).min(numbers.len() - 1)];
        let embedding = is_embedding(base, module);
        let weight = match embedding {
            true => {
                let tensor = base.matrix(entries, name, &format!("{module}.weight"))?;
                Weight { tensor, d_out: tensor.shape[0], d_in: tensor.shape[1], transposed: false }
            }
            false => base.linear(entries, name, module, fan_in_fan_out)?,
        };
        let rank = r.min(weight.d_out).min(weight.d_in);
        let a = entries.shaped(name, &[rank, weight.d_in])?.expr;
        let b = entries.shaped(&format!("{module}.tinylora_B"), &[weight.d_out, rank])?.expr;
        let random = entries.shaped(&format!("{module}.tinylora_P"), &[u, rank, rank])?.read()?;
        // Products are rounded before they are added, as in every product of so few rows.
        let mut core = vec![0.0f32; rank * rank];
        for (number, matrix) in numbers.iter().zip(random.chunks_exact(rank * rank)) {
            core.iter_mut().zip(matrix).for_each(|(sum, value)| *sum += number * value);
        }
        let core = Expr::Values { shape: vec![rank, rank], values: core.into() };
        let b = Expr::product(b, core);
        let layout = WeightLayout::of_linear(weight.transposed);
        let update = LowRank { scale: 1.0, alpha: None, a, b, layout, rounded: None };
        Ok((weight, vec![weight.change(Change::LowRank(update))]))
    })
}

/// Whether the module is the input embedding.
fn is_embedding(base: &Base, module: &str) -> bool {
    let tensor = base.tensor(&format!("{module}.weight"));
    base.embeddings().zip(tensor).is_some_and(|(embeddings, tensor)| embeddings.name == tensor.name)
}
