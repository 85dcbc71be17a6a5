//! RoAd: pairs of outputs are rotated and scaled, biases too.
//!
//! Reference: huggingface/peft `src/peft/tuners/road/layer.py` (`_prepare_cols`, `_get_delta_weight`, `merge`). There,
//! the weight is multiplied by a matrix of which only two numbers in a row aren't zero, in the order of its columns and
//! with fused multiply-adds. The cosine and the sine of MKL can differ in their last bits; here they are the nearest.

use std::ops::Range;
use std::sync::Arc;

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::modules::each_module;
use super::rows::round;
use crate::error::Result;
use crate::json::Fields;
use crate::kernel::{Kernel, Routine};
use crate::plan::{Expr, PlannedTensor, RowMap, run_len};

/// The changes of a RoAd adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let variant: String = fields.get("variant")?.unwrap_or_else(|| "road_1".to_owned());
    let Some(variant) = [("road_1", 1), ("road_2", 2), ("road_4", 4)].iter().find(|(name, _)| *name == variant) else {
        return Err(fields.finding("variant").expected("road_1, road_2 or road_4").found(variant).unsupported());
    };
    let group = fields.count_or("group_size", 64)?;
    if !group.is_multiple_of(2) {
        return Err(fields.finding("group_size").expected("an even number").found(group).mismatch());
    }
    fields.ignore(&["init_weights"]);
    each_module(fields, entries, base, "road_theta", |entries, module, name| {
        let weight = base.linear_alone(entries, name, module, "RoAd")?;
        if !weight.d_out.is_multiple_of(group) {
            let finding = entries.finding(name).expected(format_args!("a module whose outputs divide into {group}"));
            return Err(finding.found(weight.d_out).mismatch());
        }
        let size = [weight.d_out / 2 * variant.1];
        let theta = entries.shaped(name, &size)?.read()?;
        let alpha = entries.shaped(&format!("{module}.road_alpha"), &size)?.read()?;
        let (mut own, mut other) = factors(variant.1, group, &theta, &alpha);
        round(&mut own, base.rounding(weight.tensor.dtype));
        round(&mut other, base.rounding(weight.tensor.dtype));
        let pairs = Arc::new(Pairs { own, other, group });
        let rotated = |tensor: &PlannedTensor| {
            let others = vec![Expr::reordered(tensor.expr.clone(), |row| partner(row, group))];
            (tensor.name.clone(), Change::Map { others, map: pairs.clone(), transposed: false })
        };
        let mut changes = vec![rotated(weight.tensor)];
        let bias = base.tensor(&format!("{module}.bias")).filter(|bias| bias.shape == [weight.d_out]);
        changes.extend(bias.map(rotated));
        Ok((weight, changes))
    })
}

/// The output that is paired with `output`: the one in the same place of the other half of its group.
fn partner(output: usize, group: usize) -> usize {
    if output % group < group / 2 { output + group / 2 } else { output - group / 2 }
}

/// For every output, its own factor and that of its partner.
fn factors(variant: usize, group: usize, theta: &[f32], alpha: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let outputs = theta.len() * 2 / variant;
    let half = group / 2;
    // Where the numbers of an output are: those for its cosine and those for its sine.
    let place = |output: usize| match variant {
        1 => [output / group * half + output % half; 2],
        2 => [output; 2],
        _ => [output / group * 2 * group + output % group, output / group * 2 * group + group + output % group],
    };
    let own = |output: usize| {
        let [at, _] = place(output);
        alpha[at] * f64::from(theta[at]).cos() as f32
    };
    let other = |output: usize| {
        let [_, at] = place(output);
        let factor = alpha[at] * f64::from(theta[at]).sin() as f32;
        if output % group < half { -factor } else { factor }
    };
    ((0..outputs).map(own).collect(), (0..outputs).map(other).collect())
}

/// Adds to every row, times its factor, the row of its partner, times another.
#[derive(Debug)]
struct Pairs {
    own: Vec<f32>,
    other: Vec<f32>,
    group: usize,
}

impl RowMap for Pairs {
    fn apply(&self, rows: Range<usize>, row_len: usize, others: &[Vec<f32>], out: &mut [f32]) {
        Kernel::in_use().run_wide(Rows { pairs: self, rows, row_len, others: &others[0], out });
    }
}

struct Rows<'a> {
    pairs: &'a Pairs,
    rows: Range<usize>,
    row_len: usize,
    others: &'a [f32],
    out: &'a mut [f32],
}

impl Routine for Rows<'_> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        let Pairs { own, other, group } = self.pairs;
        let run = run_len(own.len());
        let both = self.out.chunks_exact_mut(self.row_len).zip(self.others.chunks_exact(self.row_len));
        for (row, (out, others)) in self.rows.zip(both) {
            let partner = partner(row, *group);
            let (own, other) = (own[row], other[row]);
            for (value, paired) in out.iter_mut().zip(others) {
                *value = match row / run == partner / run {
                    false => own * *value + other * paired,
                    true if row < partner => other.mul_add(*paired, own * *value),
                    true => own.mul_add(*value, other * paired),
                };
            }
        }
    }
}
