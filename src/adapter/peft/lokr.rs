//! LoKr: a Kronecker product. Each factor can be low-rank.
//!
//! Reference: huggingface/peft `src/peft/tuners/lokr/layer.py` (`get_delta_weight`, `make_kron`): one
//! multiplication for every element, then another by the scale.

use std::collections::{BTreeSet, HashSet};

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::lycoris::Settings;
use super::rows::product;
use super::targets::Targets;
use crate::error::Result;
use crate::json::Fields;
use crate::plan::Expr;
use crate::source::show_shape;

/// The changes of a LoKr adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let settings = Settings::read(fields)?;
    // The shapes show how each factor is composed.
    fields.ignore(&["decompose_both", "decompose_factor"]);
    let targets = Targets::read(fields)?;
    let (mut changes, mut adapted) = (Vec::new(), HashSet::new());
    let mut modules: BTreeSet<String> = entries.modules("lokr_w1").into_iter().collect();
    modules.extend(entries.modules("lokr_w1_a"));
    for module in modules {
        let whole = format!("{module}.lokr_w1");
        let weight = base.linear_only(entries, &whole, &module, "LoKr")?;
        let rank = settings.rank(&module);
        let left = factor(entries, &whole, rank)?;
        let right = factor(entries, &format!("{module}.lokr_w2"), rank)?;
        let scale = settings.scale(&module, rank);
        let (l, r, shape) = (left.shape(), right.shape(), [weight.d_out, weight.d_in]);
        if !(0..2).all(|i| l[i].checked_mul(r[i]) == Some(shape[i])) {
            return Err(entries
                .finding(&whole)
                .expected(format_args!(
                    "a factor of {} by the base model, as {} is",
                    show_shape(&shape),
                    show_shape(&r)
                ))
                .found(show_shape(&l))
                .hint("this adapter belongs to another base model")
                .mismatch());
        }
        changes.push((weight.tensor.name.clone(), Change::Add(delta(left, right, scale))));
        adapted.insert(weight.tensor.name.clone());
    }
    targets.complete(entries, base, &adapted, "lokr_w1")?;
    Ok(changes)
}

/// One of the two factors: the tensor called `name`, or a product of two tensors.
fn factor(entries: &mut Entries, name: &str, rank: usize) -> Result<Expr> {
    let found = match entries.take(name) {
        Some(tensor) => tensor.expr,
        None => {
            let (first, second) = (format!("{name}_a"), format!("{name}_b"));
            let (a, b) = (entries.need(&first)?, entries.need(&second)?);
            for (name, tensor, dimension) in [(&first, &a, 1), (&second, &b, 0)] {
                if tensor.shape.len() != 2 || tensor.shape[dimension] != rank {
                    return Err(entries
                        .finding(name)
                        .expected(format_args!("a matrix of rank {rank} by adapter_config.json"))
                        .found(show_shape(&tensor.shape))
                        .hint("its config is not its own, or it is of a convolution, which this version can't merge")
                        .mismatch());
                }
            }
            product(a.expr, b.expr)
        }
    };
    match found.shape().len() {
        2 => Ok(found),
        _ => Err(entries.finding(name).expected("a matrix").found(show_shape(&found.shape())).unsupported()),
    }
}

/// `scale` times the Kronecker product, the scale last.
pub(in crate::adapter) fn delta(left: Expr, right: Expr, scale: f32) -> Expr {
    let product = Expr::Kronecker { left: Box::new(left), right: Box::new(right) };
    Expr::Scale { of: Box::new(product), factor: scale }
}
