//! MiSS, which was called Bone: one block of numbers is added to all parts of the inputs.
//!
//! Reference: huggingface/peft `src/peft/tuners/miss/layer.py` (`get_delta_weight_miss`, and `get_delta_weight` for
//! `init_weights: bat`): everything in f32, rounded once. Adapters that older versions of PEFT call Bone differ in names
//! only (`scripts/convert-bone-to-miss.py`).

use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::module_weight::Weight;
use super::modules::each_module;
use super::rows::made;
use crate::error::Result;
use crate::json::Fields;
use crate::kernel::{Kernel, Routine};
use crate::plan::{RowMap, run_len};

/// How the block acts, as `init_weights` says.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// It is added to every part of the inputs.
    Added,
    /// The same, with one block for several parts of the outputs.
    Mini(usize),
    /// Every part is multiplied by it, too.
    Bat,
}

/// The changes of a MiSS adapter, or of one of Bone, whose block is called `block`.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base, block: &str) -> Result<Vec<Named>> {
    let r = fields.count_or("r", 64)?;
    let mini_r = fields.count_or("mini_r", 1)?;
    let mode = match fields.get::<Value>("init_weights")? {
        Some(Value::String(name)) if name == "bat" => Mode::Bat,
        Some(Value::String(name)) if name == "mini" => Mode::Mini(mini_r),
        None | Some(Value::Bool(_)) => Mode::Added,
        Some(other) => {
            return Err(fields.finding("init_weights").expected("true, false, bat or mini").found(other).unsupported());
        }
    };
    fields.ignore(&["miss_dropout"]);
    each_module(fields, entries, base, block, |entries, module, name| {
        let weight = base.linear_alone(entries, name, module, "MiSS")?;
        let change = match mode {
            Mode::Bat => bat(entries, name, &weight, r)?,
            Mode::Added => added(entries, name, &weight, r, weight.d_out)?,
            Mode::Mini(outputs) => added(entries, name, &weight, r, outputs)?,
        };
        Ok((weight, vec![weight.change(change)]))
    })
}

/// The sum with a block of `r` inputs and `outputs`, over and over.
fn added(entries: &mut Entries, name: &str, weight: &Weight, r: usize, outputs: usize) -> Result<Change> {
    let block = entries.shaped(name, &[r, outputs])?;
    if !weight.d_out.is_multiple_of(outputs) {
        let finding =
            entries.finding(name).expected(format_args!("a divisor of the module's {} outputs", weight.d_out));
        return Err(finding.found(outputs).mismatch());
    }
    let tiled = Tiled { block: block.read()?, outputs };
    Ok(Change::Add(made([weight.d_out, weight.d_in], tiled)))
}

/// A block `[inputs, outputs]` that is repeated over a matrix of outputs by inputs.
#[derive(Debug)]
struct Tiled {
    block: Vec<f32>,
    outputs: usize,
}

impl RowMap for Tiled {
    fn apply(&self, rows: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        for (row, out) in rows.zip(out.chunks_exact_mut(row_len)) {
            let column = self.block[row % self.outputs..].iter().step_by(self.outputs).cycle();
            out.iter_mut().zip(column).for_each(|(out, value)| *out = *value);
        }
    }
}

/// The product of every square part of the weight with the block of its outputs, plus that block.
fn bat(entries: &mut Entries, name: &str, weight: &Weight, r: usize) -> Result<Change> {
    if !weight.d_out.is_multiple_of(r) || !weight.d_in.is_multiple_of(r) {
        let sizes = format!("{} outputs and {} inputs", weight.d_out, weight.d_in);
        let finding = entries.finding(name).expected(format_args!("blocks of a size that divides {sizes}"));
        return Err(finding.found(r).mismatch());
    }
    let blocks = entries.shaped(name, &[weight.d_out / r, r, r])?.read()?.into();
    Ok(Change::Map { others: Vec::new(), map: Arc::new(Bat { blocks, size: r }), transposed: false })
}

/// The smallest size for which MKL multiplies square matrices with fused multiply-adds.
const FUSED: usize = 12;

#[derive(Debug)]
struct Bat {
    /// A square block for each part of the outputs.
    blocks: Arc<[f32]>,
    size: usize,
}

impl RowMap for Bat {
    fn apply(&self, rows: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        Kernel::in_use().run_wide(Parts { bat: self, rows, row_len, out });
    }
}

struct Parts<'a> {
    bat: &'a Bat,
    rows: Range<usize>,
    row_len: usize,
    out: &'a mut [f32],
}

impl Routine for Parts<'_> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        let size = self.bat.size;
        let run = run_len(size);
        let (mut sums, mut part) = (vec![0.0f32; size], vec![0.0f32; size]);
        for (row, out) in self.rows.zip(self.out.chunks_exact_mut(self.row_len)) {
            let block = &self.bat.blocks[row / size * size * size..][..size * size];
            let added = &block[row % size * size..][..size];
            for values in out.chunks_exact_mut(size) {
                sums.fill(0.0);
                part.fill(0.0);
                for (i, (value, factors)) in values.iter().zip(block.chunks_exact(size)).enumerate() {
                    if i > 0 && i.is_multiple_of(run) {
                        sums.iter_mut().zip(&mut part).for_each(|(sum, part)| *sum += std::mem::take(part));
                    }
                    for (part, factor) in part.iter_mut().zip(factors) {
                        *part = if size < FUSED { *part + value * factor } else { value.mul_add(*factor, *part) };
                    }
                }
                for (i, value) in values.iter_mut().enumerate() {
                    *value += (sums[i] + part[i]) + added[i];
                }
            }
        }
    }
}
