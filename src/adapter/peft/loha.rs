//! LoHa: the elementwise product of two low-rank updates.
//!
//! Reference: huggingface/peft `src/peft/tuners/loha/layer.py` (`HadaWeight`): both products in f32,
//! multiplied, then scaled.

use std::collections::HashSet;
use std::sync::Arc;

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::lycoris::Settings;
use super::rows::{Multiply, product};
use super::targets::Targets;
use crate::error::Result;
use crate::json::Fields;
use crate::plan::Expr;

/// The changes of a LoHa adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let settings = Settings::read(fields)?;
    let targets = Targets::read(fields)?;
    let (mut changes, mut adapted) = (Vec::new(), HashSet::new());
    for module in entries.modules("hada_w1_a") {
        let name = |part: &str| format!("{module}.hada_{part}");
        let weight = base.linear_only(entries, &name("w1_a"), &module, "LoHa")?;
        let rank = settings.rank(&module);
        let mut factor =
            |part: &str, shape: [usize; 2]| Ok::<_, crate::Error>(entries.shaped(&name(part), &shape)?.expr);
        let first = product(factor("w1_a", [weight.d_out, rank])?, factor("w1_b", [rank, weight.d_in])?);
        let second = product(factor("w2_a", [weight.d_out, rank])?, factor("w2_b", [rank, weight.d_in])?);
        changes.push((weight.tensor.name.clone(), Change::Add(delta(first, second, settings.scale(&module, rank)))));
        adapted.insert(weight.tensor.name.clone());
    }
    targets.complete(entries, base, &adapted, "hada_w1_a")?;
    Ok(changes)
}

/// `(first * second) * scale`, elementwise, with the scale last.
pub(in crate::adapter) fn delta(first: Expr, second: Expr, scale: f32) -> Expr {
    let multiplied = Expr::Map { of: vec![first, second], map: Arc::new(Multiply) };
    Expr::Scale { of: Box::new(multiplied), factor: scale }
}
