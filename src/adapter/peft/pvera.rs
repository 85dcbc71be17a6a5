//! PVeRA: a VeRA whose projections give means and variances. Merging takes the means.
//!
//! Reference: huggingface/peft `src/peft/tuners/pvera/layer.py` (`get_delta_weight`).

use super::Named;
use super::base::Base;
use super::change::{Change, LowRank};
use super::entries::Entries;
use super::modules::each_module;
use super::rows::{ScaleRows, corner, map};
use super::vera::{need_projections, shared};
use crate::error::Result;
use crate::json::Fields;
use crate::source::show_shape;

const PROJECTIONS: [&str; 2] = ["base_model.pvera_A", "base_model.pvera_B"];

/// The changes of a PVeRA adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let fan_in_fan_out = fields.get("fan_in_fan_out")?.unwrap_or(false);
    let r = fields.count_or("r", 256)?;
    need_projections(fields, true)?;
    // Sampling is for forward passes.
    fields.ignore(&["generator_seed", "sample_at_inference"]);
    fields.ignore(&["d_initial", "init_weights", "projection_prng_key", "pvera_dropout"]);
    let (a, b) = (shared(entries, PROJECTIONS[0])?, shared(entries, PROJECTIONS[1])?);
    each_module(fields, entries, base, "pvera_lambda_b", |entries, module, name| {
        let weight = base.linear(entries, name, module, fan_in_fan_out)?;
        let lambda_b = entries.shaped(name, &[weight.d_out])?.read()?;
        let lambda_d = entries.shaped(&format!("{module}.pvera_lambda_d"), &[2 * r])?.read()?;
        for (name, tensor, least, exact) in
            [(PROJECTIONS[0], &a, [2 * r, weight.d_in], 0), (PROJECTIONS[1], &b, [weight.d_out, r], 1)]
        {
            let fits = tensor.shape.len() == 2
                && (0..2).all(|d| tensor.shape[d] >= least[d])
                && tensor.shape[exact] == least[exact];
            if !fits {
                return Err(entries
                    .shared_finding(name)
                    .expected(format_args!("{} or larger, for {module}", show_shape(&least)))
                    .found(show_shape(&tensor.shape))
                    .hint("this adapter belongs to another base model, or its config is not its own")
                    .mismatch());
            }
        }
        // The first half of A and of its factors is for the means.
        let means = lambda_d[..r].to_vec();
        let update = LowRank {
            scale: 1.0,
            alpha: None,
            a: map(corner(a.expr.clone(), a.shape[1], r, weight.d_in), ScaleRows(means.into())),
            b: map(corner(b.expr.clone(), r, weight.d_out, r), ScaleRows(lambda_b.into())),
            layout: weight.layout(),
            rounded: None,
        };
        Ok((weight, vec![weight.change(Change::LowRank(update))]))
    })
}
