//! Numbers at some places of a weight: SHiRA, and Super-Tuning, which can have a low-rank update as well.
//!
//! Reference: huggingface/peft `src/peft/tuners/shira/layer.py` (`merge`: added in f32, rounded once) and
//! `src/peft/tuners/supertuning/layer.py` (`merge`: the numbers are rounded to the weight's type and added to it; then
//! the low-rank update is, too).

use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use super::Named;
use super::base::Base;
use super::change::{Change, LowRank};
use super::entries::Entries;
use super::modules::each_module;
use super::rows::round;
use super::vblora::integers;
use crate::dtype::DType;
use crate::error::Result;
use crate::json::Fields;
use crate::plan::{PlannedTensor, RowMap};
use crate::source::show_shape;

/// The changes of a SHiRA adapter.
pub(super) fn shira(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    // The places are in the file.
    fields.ignore(&["mask_type", "r", "random_seed"]);
    fields.ignore(&["fan_in_fan_out", "init_weights"]);
    each_module(fields, entries, base, "shira_weight", |entries, module, name| {
        let weight = base.linear_alone(entries, name, module, "SHiRA")?;
        let values = vector(entries, name)?;
        let name = format!("{module}.shira_indices");
        let count = values.len();
        let places = whole_numbers(entries, &name, &[2, count], weight.d_out.max(weight.d_in))?;
        let (rows, columns) = places.split_at(count);
        let outside = |(row, column): (&usize, &usize)| *row >= weight.d_out || *column >= weight.d_in;
        if let Some(first) = rows.iter().zip(columns).position(|(row, column)| outside((row, column))) {
            return Err(entries
                .finding(&name)
                .expected(format_args!("places in {}", show_shape(&[weight.d_out, weight.d_in])))
                .found(format_args!("row {} and column {}", rows[first], columns[first]))
                .hint("this adapter belongs to another base model")
                .mismatch());
        }
        let places = rows.iter().zip(columns).map(|(row, column)| row * weight.d_in + column).collect();
        let change = scattered([weight.d_out, weight.d_in], places, &values, None);
        Ok((weight, vec![weight.change(change)]))
    })
}

/// The changes of a Super-Tuning adapter.
pub(super) fn supertuning(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    if !fields.get("save_precomputed_indices")?.unwrap_or(true) {
        return Err(fields
            .finding("save_precomputed_indices")
            .expected("true: an adapter that has the places of its numbers")
            .found("false, so that torch has to sort the base's weights to find them again")
            .hint("load it in PEFT, where they are found, and save it with save_precomputed_indices set to true")
            .unsupported());
    }
    let r: Option<usize> = fields.get::<Value>("r")?.map(|_| fields.count("r")).transpose()?;
    let alpha: Option<f64> = fields.get("lora_alpha")?;
    fields.ignore(&["init_weights", "lora_dropout", "select_top", "sparsity"]);
    each_module(fields, entries, base, "supertuning_values", |entries, module, name| {
        let weight = base.linear_alone(entries, name, module, "Super-Tuning")?;
        let rounded = base.rounding(weight.tensor.dtype);
        let mut values = vector(entries, name)?;
        let name = format!("{module}.supertuning_indices");
        let places = whole_numbers(entries, &name, &[values.len()], weight.d_out * weight.d_in)?;
        round_each(&mut values, rounded);
        let mut changes = vec![weight.change(scattered([weight.d_out, weight.d_in], places, &values, rounded))];
        if let Some(r) = r {
            let a = entries.shaped(&format!("{module}.supertuning_lora_A.weight"), &[r, weight.d_in])?.expr;
            let b = entries.shaped(&format!("{module}.supertuning_lora_B.weight"), &[weight.d_out, r])?.expr;
            let scale = alpha.unwrap_or(2.0 * r as f64) / r as f64;
            let update = LowRank { scale, alpha: None, a, b, layout: weight.layout(), rounded };
            changes.push(weight.change(Change::LowRank(update)));
        }
        Ok((weight, changes))
    })
}

/// Rounds values of which there needn't be whole blocks.
fn round_each(values: &mut [f32], dtype: Option<DType>) {
    round(values, dtype.filter(|dtype| dtype.block_elems() == 1));
}

/// The values of a vector.
fn vector(entries: &mut Entries, name: &str) -> Result<Vec<f32>> {
    let len = entries.shape(name).map(|shape| shape.iter().product()).unwrap_or_default();
    let tensor = entries.shaped(name, &[len])?;
    if len == 0 { Ok(Vec::new()) } else { tensor.read() }
}

/// The whole numbers of the tensor called `name`, all below `limit`. PEFT saves them as floating-point numbers on
/// Windows.
fn whole_numbers(entries: &mut Entries, name: &str, shape: &[usize], limit: usize) -> Result<Vec<usize>> {
    let tensor = entries.of_whole_numbers(name, shape)?;
    let found = match integers(&tensor) {
        None if tensor.dtype == DType::F32 => from_floats(&tensor)?,
        found => found,
    };
    found.filter(|found| found.iter().all(|number| *number < limit)).ok_or_else(|| {
        let finding = entries.finding(name).expected(format_args!("whole numbers below {limit}"));
        finding.found(format_args!("others, of type {}", tensor.dtype)).format()
    })
}

fn from_floats(tensor: &PlannedTensor) -> Result<Option<Vec<usize>>> {
    if tensor.elems() == 0 {
        return Ok(Some(Vec::new()));
    }
    let whole = |v: f32| (v >= 0.0 && v.fract() == 0.0 && v <= 16_777_216.0).then_some(v as usize);
    Ok(tensor.read()?.into_iter().map(whole).collect())
}

/// The sum of a weight of this shape and `values` at `places`, which are numbered row by row. Each sum is rounded to `rounded`.
pub(super) fn scattered(
    [rows, columns]: [usize; 2],
    places: Vec<usize>,
    values: &[f32],
    rounded: Option<DType>,
) -> Change {
    let mut entries: Vec<(usize, f32)> = places.into_iter().zip(values.iter().copied()).collect();
    // Stable: of several numbers for one place, the first comes first.
    entries.sort_by_key(|(place, _)| *place);
    let starts = (0..=rows).map(|row| entries.partition_point(|(place, _)| *place < row * columns)).collect();
    let map = Arc::new(Scattered { starts, entries, rounded });
    Change::Map { others: Vec::new(), map, transposed: false }
}

#[derive(Debug)]
struct Scattered {
    /// For every row, the first of its entries; then the number of all.
    starts: Vec<usize>,
    /// Places and numbers, by place.
    entries: Vec<(usize, f32)>,
    rounded: Option<DType>,
}

impl RowMap for Scattered {
    fn apply(&self, rows: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        let first = rows.start * row_len;
        for (place, value) in &self.entries[self.starts[rows.start]..self.starts[rows.end]] {
            out[place - first] += value;
            round_each(&mut out[place - first..=place - first], self.rounded);
        }
    }
}
