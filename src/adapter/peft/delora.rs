//! DeLoRA: a low-rank update with normalised directions, scaled by the norms of the base's inputs.
//!
//! Reference: huggingface/peft `src/peft/tuners/delora/layer.py` (`_compute_delta`): the update in f32, rounded to the
//! weight's type before it is added. The base's norms are in the adapter's file.

use super::Named;
use super::base::Base;
use super::change::Change;
use super::dora::{column_norms, norm};
use super::entries::Entries;
use super::modules::each_module;
use super::patterns::{self, Patterns};
use super::rows::{ScaleColumns, map};
use crate::error::Result;
use crate::json::Fields;
use crate::plan::Expr;

/// The least norm of a direction.
const LEAST: f32 = 1e-4;

/// The changes of a DeLoRA adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let r = fields.count_or("r", 8)?;
    let rank_pattern = Patterns::read(fields, "rank_pattern", patterns::rank)?;
    // The trained bounds are in the file.
    fields.ignore(&["delora_lambda", "lambda_pattern"]);
    fields.ignore(&["init_weights", "module_dropout"]);
    each_module(fields, entries, base, "delora_A", |entries, module, name| {
        let weight = base.linear_alone(entries, name, module, "DeLoRA")?;
        let rank = rank_pattern.first_match(module).unwrap_or(r);
        let a = entries.shaped(name, &[rank, weight.d_in])?;
        let b = entries.shaped(&format!("{module}.delora_B"), &[weight.d_out, rank])?;
        let bound = entries.shaped(&format!("{module}.delora_lambda"), &[1])?.read()?;
        let inputs = entries.shaped(&format!("{module}.delora_w_norm"), &[weight.d_in])?.read()?;
        let share = bound.first().copied().unwrap_or_default() / rank as f32;
        let norms_a = a.read()?.chunks_exact(weight.d_in).map(norm).collect::<Vec<f32>>();
        let norms_b = column_norms(&b.read()?, rank);
        let factors: Vec<f32> =
            norms_a.iter().zip(&norms_b).map(|(a, b)| share / (a.max(LEAST) * b.max(LEAST))).collect();
        let product = Expr::product(map(b.expr, ScaleColumns(factors.into())), a.expr);
        let delta = base.rounded(map(product, ScaleColumns(inputs.into())), weight.tensor.dtype);
        Ok((weight, vec![weight.change(Change::Add(delta))]))
    })
}
