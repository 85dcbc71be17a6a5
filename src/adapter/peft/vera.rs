//! VeRA: one pair of random projections for all modules, scaled by vectors of each module.
//!
//! Reference: huggingface/peft `src/peft/tuners/vera/layer.py` (`get_delta_weight`).

use std::collections::HashSet;

use super::base::Base;
use super::change::{Change, LowRank};
use super::entries::Entries;
use super::rows::{ScaleRows, corner, map};
use super::targets::Targets;
use super::{ABSENT, Named};
use crate::error::Result;
use crate::json::Fields;
use crate::plan::PlannedTensor;
use crate::source::show_shape;

const LAMBDA: &str = "vera_lambda_b";

/// The changes of a VeRA adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let fan_in_fan_out = fields.get("fan_in_fan_out")?.unwrap_or(false);
    let r = fields.count_or("r", 256)?;
    need_projections(fields, true)?;
    fields.ignore(&["d_initial", "init_weights", "projection_prng_key", "vera_dropout"]);
    let targets = Targets::read(fields)?;
    let (name_a, name_b) = ("base_model.vera_A", "base_model.vera_B");
    let (a, b) = (shared(entries, name_a)?, shared(entries, name_b)?);
    let (mut changes, mut adapted) = (Vec::new(), HashSet::new());
    for module in entries.modules(LAMBDA) {
        let name = format!("{module}.{LAMBDA}");
        let weight = base.linear(entries, &name, &module, fan_in_fan_out)?;
        let lambda_b = entries.shaped(&name, &[weight.d_out])?.read()?;
        let lambda_d = entries.shaped(&format!("{module}.vera_lambda_d"), &[r])?.read()?;
        let fits = |tensor: &PlannedTensor, rows: usize, cols: usize| matches!(*tensor.shape, [height, width] if height >= rows && width >= cols);
        for (name, tensor, fits, expected) in [
            (name_a, &a, fits(&a, r, weight.d_in) && a.shape[0] == r, [r, weight.d_in]),
            (name_b, &b, fits(&b, weight.d_out, r) && b.shape[1] == r, [weight.d_out, r]),
        ] {
            if !fits {
                return Err(entries
                    .shared_finding(name)
                    .expected(format_args!("{} or larger, for {module}", show_shape(&expected)))
                    .found(show_shape(&tensor.shape))
                    .hint("this adapter belongs to another base model, or its config is not its own")
                    .mismatch());
            }
        }
        let update = LowRank {
            scale: 1.0,
            alpha: None,
            a: map(corner(a.expr.clone(), a.shape[1], r, weight.d_in), ScaleRows(lambda_d.into())),
            b: map(corner(b.expr.clone(), r, weight.d_out, r), ScaleRows(lambda_b.into())),
            layout: weight.layout(),
            rounded: None,
        };
        changes.push((weight.tensor.name.clone(), Change::LowRank(update)));
        adapted.insert(weight.tensor.name.clone());
    }
    targets.complete(entries, base, &adapted, LAMBDA)?;
    Ok(changes)
}

/// Refuses an adapter without its random projections, which only torch's generator could make
/// again. `default` is PEFT's default for whether they are saved.
pub(super) fn need_projections(fields: &mut Fields, default: bool) -> Result<()> {
    if fields.get("save_projection")?.unwrap_or(default) {
        return Ok(());
    }
    Err(fields
        .finding("save_projection")
        .expected("true: an adapter that has its random projections")
        .found("false, so that torch's random numbers have to make them again")
        .hint("load it in PEFT, where they are made, and save it with save_projection set to true")
        .unsupported())
}

/// A tensor that all modules share.
pub(super) fn shared(entries: &mut Entries, name: &str) -> Result<PlannedTensor> {
    entries.take(name).ok_or_else(|| {
        entries
            .shared_finding(name)
            .expected(ABSENT)
            .found("none")
            .hint("save the adapter in PEFT with save_projection set to true")
            .format()
    })
}
