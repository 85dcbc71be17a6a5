//! LoHa: the elementwise product of two low-rank updates.
//! A kernel's are matrices of its outputs by inputs and taps, or Tucker decompositions (`use_effective_conv2d`).
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
use super::module_weight::Weight;
use super::rows::Multiply;
use super::targets::Targets;
use super::tucker::{First, Tucker};
use crate::error::Result;
use crate::json::Fields;
use crate::plan::Expr;

/// The changes of a LoHa adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let settings = Settings::read(fields)?;
    let targets = Targets::read(fields)?;
    let (mut changes, mut adapted) = (Vec::new(), HashSet::new());
    for module in entries.modules("hada_w1_a") {
        let weight = base.not_turned(entries, &format!("{module}.hada_w1_a"), &module, "LoHa")?;
        let rank = settings.rank(&module);
        let first = side(entries, &weight, &module, rank, '1')?;
        let second = side(entries, &weight, &module, rank, '2')?;
        changes.push(weight.change(Change::Add(delta(first, second, settings.scale(&module, rank)))));
        adapted.insert(weight.tensor.name.clone());
    }
    targets.complete(entries, base, &adapted, "hada_w1_a")?;
    Ok(changes)
}

/// One of the two updates as a matrix: a product, or for a convolution the Tucker decomposition of a kernel.
fn side(entries: &mut Entries, weight: &Weight, module: &str, rank: usize, number: char) -> Result<Expr> {
    let name = |part: &str| format!("{module}.hada_{part}");
    let [core, a, b] = [name(&format!("t{number}")), name(&format!("w{number}_a")), name(&format!("w{number}_b"))];
    if weight.is_kernel() && entries.shape(&core).is_some() {
        let core = entries.shaped(&core, &core_shape(weight, rank))?.expr;
        let outputs = entries.shaped(&a, &[rank, weight.d_out])?.expr;
        let inputs = entries.shaped(&b, &[rank, weight.inputs()])?.expr;
        return Ok(Tucker { core, outputs, inputs }.matrix(First::Inputs));
    }
    Ok(Expr::product(entries.shaped(&a, &[weight.d_out, rank])?.expr, entries.shaped(&b, &[rank, weight.d_in])?.expr))
}

/// The shape of the core of a kernel. That of one dimension has another one of one.
pub(super) fn core_shape(weight: &Weight, rank: usize) -> Vec<usize> {
    let one = if weight.taps().len() == 1 { &[1][..] } else { &[] };
    [&weight.with_taps([rank, rank]), one].concat()
}

/// `(first * second) * scale`, elementwise, with the scale last.
pub(in crate::adapter) fn delta(first: Expr, second: Expr, scale: f64) -> Expr {
    let multiplied = Expr::Map { of: vec![first, second], map: Arc::new(Multiply) };
    Expr::Scale { of: Box::new(multiplied), factor: scale }
}
