//! AdaLoRA: a low-rank update in the form of a singular value decomposition. Training prunes its ranks. The kernel of a
//! convolution is seen as a matrix.
//!
//! Reference: huggingface/peft `src/peft/tuners/adalora/layer.py` (`get_delta_weight`) and `model.py`
//! (`resize_modules_by_rank_pattern`): the product in f32, times alpha, over the initial rank. In modules that
//! rank_pattern resizes, parameters get the base's type, so their factors are rounded to it.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::rows::{ScaleRows, map};
use super::targets::Targets;
use crate::dtype::DType;
use crate::error::Result;
use crate::json::Fields;
use crate::plan::{Expr, PlannedTensor, RowMap};
use crate::source::show_shape;

/// Fields that only affect training, or that PEFT reads for LoRA only.
const INERT: &[&str] = &[
    "alpha_pattern",
    "beta1",
    "beta2",
    "deltaT",
    "init_lora_weights",
    "lora_dropout",
    "megatron_core",
    "orth_reg_weight",
    "qalora_group_size",
    "r",
    "runtime_config",
    "target_r",
    "tfinal",
    "tinit",
    "total_step",
    "use_rslora",
];

/// The changes of an AdaLoRA adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let fan_in_fan_out = fields.get("fan_in_fan_out")?.unwrap_or(false);
    let init_r = fields.count_or("init_r", 12)?;
    let alpha: f64 = fields.get("lora_alpha")?.unwrap_or(8.0);
    // The ranks that remain after training, by tensor name.
    let pattern: HashMap<String, Vec<bool>> = fields.get("rank_pattern")?.unwrap_or_default();
    let pattern: HashMap<String, usize> =
        pattern.into_iter().map(|(name, ranks)| (name, ranks.into_iter().filter(|left| *left).count())).collect();
    fields.ignore(INERT);
    let targets = Targets::read(fields)?;
    let (mut changes, mut adapted) = (Vec::new(), HashSet::new());
    for module in entries.modules("lora_A") {
        let name = format!("{module}.lora_A");
        let weight = base.linear_or_kernel(entries, &name, &module, fan_in_fan_out)?;
        let a = entries.need(&name)?;
        let rank = match *a.shape {
            [rank, d_in] if d_in == weight.d_in && rank <= init_r => rank,
            _ => {
                return Err(entries
                    .finding(&name)
                    .expected(format_args!("{} or of a lower rank", show_shape(&[init_r, weight.d_in])))
                    .found(show_shape(&a.shape))
                    .hint("this adapter belongs to another base model, or its config is not its own")
                    .mismatch());
            }
        };
        let resized = pattern.get(&format!("{module}.lora_E")).copied();
        if let Some(left) = resized.filter(|left| *left != rank) {
            let finding = entries.finding(&name).expected(format_args!("rank {left} by rank_pattern"));
            return Err(finding.found(show_shape(&a.shape)).mismatch());
        }
        let b = entries.shaped(&format!("{module}.lora_B"), &[weight.d_out, rank])?;
        let e = entries.shaped(&format!("{module}.lora_E"), &[rank, 1])?;
        adapted.insert(weight.tensor.name.clone());
        if rank == 0 {
            continue;
        }
        let loaded = |of: PlannedTensor| match resized {
            Some(_) => base.rounded(of.expr, weight.tensor.dtype),
            None => of.expr,
        };
        let e = PlannedTensor { dtype: DType::F32, name: e.name.clone(), shape: e.shape.clone(), expr: loaded(e) };
        let (a, b) = (map(loaded(a), ScaleRows(e.read()?.into())), loaded(b));
        let product = match weight.transposed {
            false => Expr::product(b, a),
            true => Expr::product(Expr::Transpose(Box::new(a)), Expr::Transpose(Box::new(b))),
        };
        let scale = if alpha > 0.0 { alpha as f32 } else { rank as f32 };
        let divided = Divided { scale, by: init_r as f32 + 1e-5 };
        let delta = Expr::Map { of: vec![product], map: Arc::new(divided) };
        changes.push(weight.change(Change::Add(delta)));
    }
    targets.complete(entries, base, &adapted, "lora_A")?;
    Ok(changes)
}

/// Multiplies values by a scale, then divides them by a number.
#[derive(Debug)]
struct Divided {
    scale: f32,
    by: f32,
}

impl RowMap for Divided {
    fn apply(&self, _: Range<usize>, _: usize, _: &[Vec<f32>], out: &mut [f32]) {
        out.iter_mut().for_each(|value| *value = *value * self.scale / self.by);
    }
}
