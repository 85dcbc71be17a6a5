//! HiRA: the weight, multiplied elementwise by a low-rank matrix, is added to it.
//!
//! Reference: huggingface/peft `src/peft/tuners/hira/layer.py` (`_merge`, `get_delta_weight`): the low-rank matrix in
//! f32, rounded to the weight's type; then its product with the weight, and the sum of both, each rounded. PEFT reads
//! `rank_pattern`, but doesn't use it.

use std::ops::Range;
use std::sync::Arc;

use super::Named;
use super::base::Base;
use super::change::{Change, LowRank, WeightLayout};
use super::entries::Entries;
use super::module_weight::Weight;
use super::modules::each_module_after;
use super::rows::round;
use crate::dtype::DType;
use crate::error::Result;
use crate::json::Fields;
use crate::plan::{Expr, RowMap};

const EMBEDDING: &str = "hira_embedding_A";

/// The changes of a HiRA adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let fan_in_fan_out = fields.get("fan_in_fan_out")?.unwrap_or(false);
    let r = fields.count_or("r", 32)?;
    fields.ignore(&["hira_dropout", "init_weights", "rank_pattern"]);
    entries.check_pairs(base, &[("hira_A", "hira_B"), (EMBEDDING, "hira_embedding_B")])?;
    let mut embeddings: Vec<(Weight, Vec<Named>)> = Vec::new();
    for module in entries.modules(EMBEDDING) {
        let name = format!("{module}.{EMBEDDING}");
        let tensor = base.matrix(entries, &name, &format!("{module}.weight"))?;
        let weight = Weight { tensor, d_out: tensor.shape[1], d_in: tensor.shape[0], transposed: true };
        let a = entries.shaped(&name, &[r, weight.d_in])?.expr;
        let b = entries.shaped(&format!("{module}.hira_embedding_B"), &[weight.d_out, r])?.expr;
        embeddings.push((weight, vec![multiplied(base, &weight, a, b, WeightLayout::Embedding)]));
    }
    each_module_after(embeddings, fields, entries, base, "hira_A", |entries, module, name| {
        let weight = base.linear_or_kernel(entries, name, module, fan_in_fan_out)?;
        let (shape_a, shape_b) = match weight.is_kernel() {
            true => (weight.with_taps([r, weight.inputs()]), weight.with_ones([weight.d_out, r])),
            false => (vec![r, weight.d_in], vec![weight.d_out, r]),
        };
        let a = entries.shaped(name, &shape_a)?.expr;
        let b = entries.shaped(&format!("{module}.hira_B"), &shape_b)?.expr;
        let matrix = |of: Expr, shape: [usize; 2]| Expr::Reshape { of: Box::new(of), shape: shape.to_vec() };
        let (a, b) = (matrix(a, [r, weight.d_in]), matrix(b, [weight.d_out, r]));
        // PEFT multiplies the factors of two-dimensional convolutions with one tap.
        let layout = match weight.taps() {
            [] | [1, 1] => weight.layout(),
            _ => WeightLayout::Kernel,
        };
        Ok((weight, vec![multiplied(base, &weight, a, b, layout)]))
    })
}

/// The change of a weight by the factors of its low-rank matrix.
fn multiplied(base: &Base, weight: &Weight, a: Expr, b: Expr, layout: WeightLayout) -> Named {
    let rounded = base.rounding(weight.tensor.dtype);
    let factors = LowRank { scale: 1.0, alpha: None, a, b, layout, rounded }.delta();
    let map = Arc::new(Hadamard { rounded });
    weight.change(Change::Map { others: vec![factors], map, transposed: false })
}

/// `W + W * F`, elementwise.
#[derive(Debug)]
struct Hadamard {
    /// The type to which the product is rounded.
    rounded: Option<DType>,
}

impl RowMap for Hadamard {
    fn apply(&self, _: Range<usize>, _: usize, others: &[Vec<f32>], out: &mut [f32]) {
        let mut products: Vec<f32> = out.iter().zip(&others[0]).map(|(weight, factor)| weight * factor).collect();
        round(&mut products, self.rounded);
        out.iter_mut().zip(&products).for_each(|(weight, product)| *weight += product);
    }
}
