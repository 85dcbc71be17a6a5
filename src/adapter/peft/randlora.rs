//! RandLoRA: a sum over random bases, each scaled by numbers of the module.
//!
//! Reference: huggingface/peft `src/peft/tuners/randlora/layer.py` (`get_scaled_bases`, `get_delta_weight`, `merge`,
//! which rounds the update to the weight's type before it adds it). The inner dimension of one factor runs over ranks
//! and then bases, that of the other over bases and then ranks. PEFT multiplies them like that, and adapters are
//! trained with it.

use std::collections::HashSet;
use std::sync::Arc;

use super::Named;
use super::base::Base;
use super::change::{Change, LowRank};
use super::entries::Entries;
use super::rows::{Multiply, ScaleRows, corner, map};
use super::targets::Targets;
use super::vera::{need_projections, shared};
use crate::error::Result;
use crate::json::Fields;
use crate::plan::{Expr, Pick, PlannedTensor};
use crate::source::show_shape;

const LAMBDA: &str = "randlora_lambda";
const SHARED: [&str; 2] = ["base_model.randlora_A", "base_model.randlora_B"];

/// The changes of a RandLoRA adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let fan_in_fan_out = fields.get("fan_in_fan_out")?.unwrap_or(false);
    let r = fields.count_or("r", 32)?;
    let alpha: f64 = fields.get("randlora_alpha")?.unwrap_or(640.0);
    need_projections(fields, false)?;
    fields.ignore(&["init_weights", "projection_prng_key", "randlora_dropout", "sparse", "very_sparse"]);
    let targets = Targets::read(fields)?;
    let (a, b) = (shared(entries, SHARED[0])?, shared(entries, SHARED[1])?);
    for copy in ["randlora_A", "randlora_B"] {
        // PEFT saves another copy of the bases with every module.
        for module in entries.modules(copy) {
            entries.take(&format!("{module}.{copy}"));
        }
    }
    let (mut changes, mut adapted) = (Vec::new(), HashSet::new());
    for module in entries.modules(LAMBDA) {
        let name = format!("{module}.{LAMBDA}");
        let weight = base.linear(entries, &name, &module, fan_in_fan_out)?;
        let (small, large) = (weight.d_in.min(weight.d_out), weight.d_in.max(weight.d_out));
        let bases = small.div_ceil(r);
        check_shared(entries, &module, [&a, &b], [&[r, 1, small], &[large, bases, r]])?;
        let lambda = entries.shaped(&name, &[r, bases])?.read()?;
        let gamma = entries.shaped(&format!("{module}.randlora_gamma"), &[bases, small])?;
        let narrow = scaled(&a, lambda, gamma.expr, r, small);
        let wide = corner(b.expr.clone(), b.shape[1] * r, large, bases * r);
        let transpose = |of| Expr::Transpose(Box::new(of));
        let (a, b) = match weight.d_in == small {
            true => (narrow, wide),
            false => (transpose(wide), transpose(narrow)),
        };
        let scale = alpha / r as f64;
        let rounded = base.rounding(weight.tensor.dtype);
        let update = LowRank { scale, alpha: None, a, b, layout: weight.layout(), rounded };
        changes.push((weight.tensor.name.clone(), Change::LowRank(update)));
        adapted.insert(weight.tensor.name.clone());
    }
    targets.complete(entries, base, &adapted, LAMBDA)?;
    Ok(changes)
}

/// Checks that the shared bases are large enough for a module. The first two dimensions of the first base and the last
/// one of the second must match exactly.
fn check_shared(entries: &Entries, module: &str, found: [&PlannedTensor; 2], needed: [&[usize; 3]; 2]) -> Result<()> {
    let exact: [&[usize]; 2] = [&[0, 1], &[2]];
    for (i, name) in SHARED.into_iter().enumerate() {
        let shape = &found[i].shape;
        let fits = shape.len() == 3
            && (0..3).all(|d| if exact[i].contains(&d) { shape[d] == needed[i][d] } else { shape[d] >= needed[i][d] });
        if !fits {
            return Err(entries
                .shared_finding(name)
                .expected(format_args!("{} or larger, for {module}", show_shape(needed[i])))
                .found(show_shape(shape))
                .hint("this adapter belongs to another base model, or its config is not its own")
                .mismatch());
        }
    }
    Ok(())
}

/// `lambda * A * gamma`, `[r * bases, small]`: every rank combined with every base.
fn scaled(a: &PlannedTensor, lambda: Vec<f32>, gamma: Expr, r: usize, small: usize) -> Expr {
    let bases = lambda.len() / r;
    let shape = vec![lambda.len(), small];
    let of = vec![corner(a.expr.clone(), a.shape[2], r, small)];
    let picks = (0..lambda.len()).map(|row| Pick { of: 0, start: row / bases, len: 1 }).collect();
    let ranks = map(Expr::Rows { shape: shape.clone(), of, picks }, ScaleRows(lambda.into()));
    let picks = vec![Pick { of: 0, start: 0, len: bases }; r].into();
    let gammas = Expr::Rows { shape, of: vec![gamma], picks };
    Expr::Map { of: vec![ranks, gammas], map: Arc::new(Multiply) }
}
