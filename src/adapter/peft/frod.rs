//! FRoD: the weight is taken apart along directions that layers share; singular values and some numbers beside them are
//! trained, and it is put together again.
//!
//! Reference: huggingface/peft `src/peft/tuners/frod/layer.py` (`_calculate_frod_u_and_lambda`, in f64, and
//! `get_delta_weight`, in the weight's type: each product and the difference are rounded to it) and `model.py`
//! (`_category_from_key`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use nalgebra::{Dyn, LU};

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::module_weight::Weight;
use super::modules::each_module;
use super::rows::{made, round};
use super::vblora::integers;
use super::vera::{need_projections, shared};
use super::weights::{aside, values_of, whole};
use crate::dtype::DType;
use crate::error::Result;
use crate::json::Fields;
use crate::linalg::{from_rows, to_rows};
use crate::plan::{Expr, RowMap};
use crate::source::show_shape;

/// What the modules of a category share.
struct Shared {
    /// `[d_in, d_in]`, rounded to the weights' type.
    directions: Expr,
    /// Its decomposition, with which weights are taken apart.
    solver: LU<f64, Dyn, Dyn>,
    /// Rows and columns of the trained numbers.
    places: Vec<(usize, usize)>,
}

/// The changes of a FRoD adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let fan_in_fan_out = fields.get("fan_in_fan_out")?.unwrap_or(false);
    need_projections(fields, true)?;
    fields.ignore(&[
        "frod_dropout",
        "init_weights",
        "progressbar",
        "projection_prng_key",
        "runtime_offload_base_weight",
    ]);
    // They have had their part in the projections.
    fields.ignore(&["regularization_alpha", "sparse_rate"]);
    let mut categories: BTreeMap<String, Shared> = BTreeMap::new();
    each_module(fields, entries, base, "frod_lambda_l", |entries, module, name| {
        let weight = base.linear(entries, name, module, fan_in_fan_out)?;
        let (d_out, d_in) = (weight.d_out, weight.d_in);
        let category = category(module);
        if !categories.contains_key(&category) {
            categories.insert(category.clone(), of_category(entries, base, &category, &weight)?);
        }
        let found = &categories[&category];
        let lambda = entries.shaped(name, &[d_in])?.expr;
        let numbers = entries.shaped(&format!("{module}.frod_lambda_s_values"), &[found.places.len()])?;
        let rounded = |of: Expr| base.rounded(of, weight.tensor.dtype);
        let numbers = if found.places.is_empty() { Vec::new() } else { values_of(rounded(row_of(numbers.expr)))? };
        let core = core(&found.places, numbers, values_of(rounded(row_of(lambda)))?);
        // The directions of outputs: the columns of W V^-T, each of length one.
        let Some(mut outputs) = found.solver.solve(&whole(&weight)?.transpose()).map(|turned| turned.transpose())
        else {
            let finding = entries.finding(name).expected("shared directions that are independent");
            return Err(finding.found("others, for which PEFT takes a pseudo-inverse").unsupported());
        };
        for mut column in outputs.column_iter_mut() {
            let length = column.norm();
            if length > 1e-12 {
                column /= length;
            } else {
                column.fill(0.0);
            }
        }
        let outputs = aside([d_out, d_in], &to_rows(&outputs))?;
        let left = rounded(Expr::product(rounded(outputs), made([d_in, d_in], core)));
        let left = aside([d_out, d_in], &values_of(left)?)?;
        let turn = |of: Expr| Expr::Transpose(Box::new(of));
        let whole = match weight.transposed {
            false => Expr::product(left, turn(found.directions.clone())),
            true => Expr::product(found.directions.clone(), turn(left)),
        };
        let map = Arc::new(Toward { rounded: base.rounding(weight.tensor.dtype) });
        Ok((weight, vec![weight.change(Change::Map { others: vec![rounded(whole)], map, transposed: false })]))
    })
}

/// A vector as a row.
fn row_of(vector: Expr) -> Expr {
    let len = vector.shape().iter().product();
    Expr::Reshape { of: Box::new(vector), shape: vec![1, len] }
}

/// The category of a module: the last two parts of its path, which modules of the same role in other layers have too.
fn category(module: &str) -> String {
    let parts: Vec<&str> = module.split('.').collect();
    match *parts.as_slice() {
        [.., "attention", "output", "dense"] => "attention_output".to_owned(),
        [.., before, last] if !before.bytes().all(|byte| byte.is_ascii_digit()) => format!("{before}_{last}"),
        [.., last] => last.to_owned(),
        [] => String::new(),
    }
}

fn of_category(entries: &mut Entries, base: &Base, category: &str, weight: &Weight) -> Result<Shared> {
    let d_in = weight.d_in;
    let name = |part: &str| format!("base_model.frod_{part}.{category}");
    let check = |entries: &Entries, name: &str, fits: bool, found: &[usize]| match fits {
        true => Ok(()),
        false => Err(entries
            .shared_finding(name)
            .expected(format_args!("a shape for {d_in} inputs"))
            .found(show_shape(found))
            .hint("this adapter belongs to another base model")
            .mismatch()),
    };
    let directions = shared(entries, &name("V"))?;
    check(entries, &name("V"), directions.shape == [d_in, d_in], &directions.shape)?;
    let values = values_of(base.rounded(directions.expr, weight.tensor.dtype))?;
    let solver = LU::new(from_rows(d_in, d_in, &values));
    let indices = shared(entries, &name("s_indices"))?;
    check(entries, &name("s_indices"), indices.shape.len() == 2 && indices.shape[0] == 2, &indices.shape)?;
    let size = shared(entries, &name("s_size"))?;
    let found = integers(&size).zip(if indices.elems() == 0 { Some(Vec::new()) } else { integers(&indices) });
    let Some((_, indices)) = found.filter(|(size, indices)| *size == [d_in; 2] && indices.iter().all(|i| *i < d_in))
    else {
        let finding = entries.shared_finding(&name("s_indices")).expected(format_args!("whole numbers below {d_in}"));
        return Err(finding.found("others").format());
    };
    let (rows, columns) = indices.split_at(indices.len() / 2);
    let places = rows.iter().copied().zip(columns.iter().copied()).collect();
    Ok(Shared { directions: aside([d_in, d_in], &values)?, solver, places })
}

/// The square matrix with `diagonal` and with `numbers` at `places`.
fn core(places: &[(usize, usize)], numbers: Vec<f32>, diagonal: Vec<f32>) -> Core {
    let mut entries: Vec<(usize, usize, f32)> =
        places.iter().zip(numbers).map(|((row, column), number)| (*row, *column, number)).collect();
    entries.extend(diagonal.into_iter().enumerate().map(|(i, number)| (i, i, number)));
    entries.sort_by_key(|(row, column, _)| (*row, *column));
    Core { entries }
}

#[derive(Debug)]
struct Core {
    entries: Vec<(usize, usize, f32)>,
}

impl RowMap for Core {
    fn apply(&self, rows: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        let first = self.entries.partition_point(|(row, ..)| *row < rows.start);
        let here = self.entries[first..].iter().take_while(|(row, ..)| *row < rows.end);
        here.for_each(|(row, column, number)| out[(row - rows.start) * row_len + column] += number);
    }
}

/// `W + (F - W)`: the difference is rounded in between.
#[derive(Debug)]
struct Toward {
    rounded: Option<DType>,
}

impl RowMap for Toward {
    fn apply(&self, _: Range<usize>, _: usize, others: &[Vec<f32>], out: &mut [f32]) {
        let mut change: Vec<f32> = others[0].iter().zip(&*out).map(|(after, before)| after - before).collect();
        round(&mut change, self.rounded);
        out.iter_mut().zip(&change).for_each(|(weight, change)| *weight += change);
    }
}
