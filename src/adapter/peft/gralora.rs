//! GraLoRA: a low-rank update for each block of the weight; its hybrid form has a LoRA as well.
//!
//! Reference: huggingface/peft `src/peft/tuners/gralora/layer.py` (`get_delta_weight`): an einsum over factors that are
//! mostly zeros, in f32, with the LoRA's product added before everything is scaled.

use std::ops::Range;

use super::Named;
use super::base::Base;
use super::change::{Change, LowRank};
use super::entries::Entries;
use super::modules::each_module;
use super::rows::made;
use crate::error::Result;
use crate::json::Fields;
use crate::kernel::{Kernel, Routine};
use crate::plan::{Expr, RowMap, fuses_einsum, run_len};

/// The changes of a GraLoRA adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let fan_in_fan_out = fields.get("fan_in_fan_out")?.unwrap_or(false);
    let r = fields.count_or("r", 32)?;
    let blocks = fields.count_or("gralora_k", 2)?;
    let hybrid: usize = fields.get("hybrid_r")?.unwrap_or(0);
    let alpha: f64 = fields.get("alpha")?.unwrap_or(64.0);
    fields.ignore(&["gralora_dropout", "init_weights"]);
    if !r.is_multiple_of(blocks) {
        let finding = fields.finding("r").expected(format_args!("a multiple of gralora_k, {blocks}"));
        return Err(finding.found(r).mismatch());
    }
    let scale = alpha / (r as f64 + hybrid as f64);
    each_module(fields, entries, base, "gralora_A", |entries, module, name| {
        let weight = base.linear(entries, name, module, fan_in_fan_out)?;
        let (inputs, outputs) = (weight.d_in / blocks, weight.d_out / blocks);
        if inputs * blocks != weight.d_in || outputs * blocks != weight.d_out {
            let finding = entries.finding(name).expected(format_args!("a module of {blocks} equal blocks"));
            return Err(finding.found(format_args!("{} inputs, {} outputs", weight.d_in, weight.d_out)).mismatch());
        }
        let a = entries.shaped(name, &[blocks, inputs, r])?.read()?;
        let b = entries.shaped(&format!("{module}.gralora_B"), &[blocks, r, outputs])?.read()?;
        let fused = fuses_einsum(weight.d_in, r, outputs);
        let granular = Granular { a, b, blocks, r, inputs, outputs, transposed: weight.transposed, fused };
        let shape = if weight.transposed { [weight.d_in, weight.d_out] } else { [weight.d_out, weight.d_in] };
        let mut delta = made(shape, granular);
        if hybrid > 0 {
            let a = entries.shaped(&format!("{module}.gralora_A_general.weight"), &[hybrid, weight.d_in])?.expr;
            let b = entries.shaped(&format!("{module}.gralora_B_general.weight"), &[weight.d_out, hybrid])?.expr;
            let update = LowRank { scale: 1.0, alpha: None, a, b, layout: weight.layout(), rounded: None };
            delta = Expr::Add { of: Box::new(delta), delta: Box::new(update.delta()) };
        }
        let delta = Expr::Scale { of: Box::new(delta), factor: scale };
        Ok((weight, vec![weight.change(Change::Add(delta))]))
    })
}

/// The update of all blocks.
#[derive(Debug)]
struct Granular {
    /// `[blocks, inputs, r]`: a matrix for each part of the inputs.
    a: Vec<f32>,
    /// `[blocks, r, outputs]`: a matrix for each part of the outputs.
    b: Vec<f32>,
    /// The number of parts of the inputs, and of the outputs.
    blocks: usize,
    r: usize,
    /// The inputs of one part, and the outputs.
    inputs: usize,
    outputs: usize,
    /// Whether rows are inputs.
    transposed: bool,
    /// Whether torch sums with fused multiply-adds.
    fused: bool,
}

impl RowMap for Granular {
    fn apply(&self, rows: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        Kernel::in_use().run_wide(Rows { of: self, rows, row_len, out });
    }
}

struct Rows<'a> {
    of: &'a Granular,
    rows: Range<usize>,
    row_len: usize,
    out: &'a mut [f32],
}

impl Routine for Rows<'_> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        let of = self.of;
        let share = of.r / of.blocks;
        let run = run_len(of.r);
        // Values of the row's own factor, and where the others' begin.
        let (own_len, other_len) = if of.transposed { (of.inputs, of.outputs) } else { (of.outputs, of.inputs) };
        let mut part = vec![0.0f32; other_len];
        for (row, out) in self.rows.zip(self.out.chunks_exact_mut(self.row_len)) {
            let (own, place) = (row / own_len, row % own_len);
            for (other, out) in out.chunks_exact_mut(other_len).enumerate() {
                let (of_inputs, of_outputs) = if of.transposed { (own, other) } else { (other, own) };
                let a = |input: usize, s: usize| of.a[(of_inputs * of.inputs + input) * of.r + of_outputs * share + s];
                let b =
                    |output: usize, s: usize| of.b[(of_outputs * of.r + of_inputs * share + s) * of.outputs + output];
                out.fill(0.0);
                part.fill(0.0);
                for s in 0..share {
                    // In torch, zeros are summed as well: the run goes by the place among them.
                    if s > 0 && (of_inputs * share + s).is_multiple_of(run) {
                        out.iter_mut().zip(&mut part).for_each(|(sum, part)| *sum += std::mem::take(part));
                    }
                    for (i, part) in part.iter_mut().enumerate() {
                        let (left, right) = if of.transposed { (a(place, s), b(i, s)) } else { (a(i, s), b(place, s)) };
                        *part = if of.fused { left.mul_add(right, *part) } else { *part + left * right };
                    }
                }
                out.iter_mut().zip(&part).for_each(|(sum, part)| *sum += part);
            }
        }
    }
}
