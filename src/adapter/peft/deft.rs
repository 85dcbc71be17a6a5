//! DEFT: a subspace of the outputs is removed from the weight, and other rows are put into it. PaRa only removes.
//!
//! Reference: huggingface/peft `src/peft/tuners/deft/layer.py` (`_merge_factor`, `_delta_from_factor`):
//! `W + Q (s R - P^T W)` in f32, where `P` is the rectified `Q`, or both are the orthogonal factor of a QR decomposition;
//! the update is rounded to the weight's type before it is added. The decomposition is LAPACK's up to rounding.

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::modules::each_module;
use super::weights::times_weight;
use crate::error::Result;
use crate::json::Fields;
use crate::plan::{Expr, is_fused};

/// The changes of a DEFT adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let fan_in_fan_out = fields.get("fan_in_fan_out")?.unwrap_or(false);
    let r = fields.count_or("r", 8)?;
    let method: String = fields.get("decomposition_method")?.unwrap_or_else(|| "relu".to_owned());
    if method != "relu" && method != "qr" {
        return Err(fields.finding("decomposition_method").expected("relu or qr").found(method).unsupported());
    }
    let alpha: Option<f64> = fields.get("alpha")?;
    let only_removes = fields.get("para")?.unwrap_or(false);
    fields.ignore(&["deft_dropout", "init_scale", "init_weights"]);
    each_module(fields, entries, base, "deft_P", |entries, module, name| {
        let weight = base.linear(entries, name, module, fan_in_fan_out)?;
        let (d_out, d_in) = (weight.d_out, weight.d_in);
        let rank = r.min(d_out);
        let mut outward = entries.shaped(name, &[d_out, rank])?.read()?;
        let mut inward = outward.clone();
        if method == "qr" {
            outward = orthogonal(&outward, rank);
            inward = outward.clone();
        }
        if method == "relu" {
            inward.iter_mut().for_each(|value| *value = value.max(0.0));
        }
        let turned: Vec<f32> = (0..rank * d_out).map(|i| inward[i % d_out * rank + i / d_out]).collect();
        let mut rows = times_weight(&turned, rank, &weight, is_fused(rank, d_in))?;
        // The sign is exact: it is that of the whole update.
        let sign = if only_removes { -1.0 } else { 1.0 };
        if !only_removes {
            let injected = entries.shaped(&format!("{module}.deft_R"), &[rank, d_in])?.read()?;
            let scale = alpha.filter(|alpha| *alpha != 0.0).map_or(1.0, |alpha| (alpha / rank as f64) as f32);
            rows.iter_mut().zip(&injected).for_each(|(removed, injected)| *removed = injected * scale - *removed);
        }
        let expr = |shape: [usize; 2], values: Vec<f32>| Expr::Values { shape: shape.to_vec(), values: values.into() };
        let (left, right) = (expr([d_out, rank], outward), expr([rank, d_in], rows));
        let turn = |of: Expr| Expr::Transpose(Box::new(of));
        let product = match weight.transposed {
            false => Expr::product(left, right),
            true => Expr::product(turn(right), turn(left)),
        };
        let signed = Expr::Scale { of: Box::new(product), factor: sign };
        let delta = base.rounded(signed, weight.tensor.dtype);
        Ok((weight, vec![weight.change(Change::Add(delta))]))
    })
}

/// The orthogonal factor of the QR decomposition of a matrix with `cols` columns, with the signs of LAPACK's Householder
/// reflections.
fn orthogonal(values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols;
    // Columns one after the other.
    let mut columns: Vec<Vec<f64>> =
        (0..cols).map(|col| values[col..].iter().step_by(cols).map(|v| f64::from(*v)).collect()).collect();
    let mut reflections: Vec<(Vec<f64>, f64)> = Vec::with_capacity(cols);
    let reflect = |(direction, factor): &(Vec<f64>, f64), column: &mut [f64]| {
        let along: f64 = direction.iter().zip(column.iter()).map(|(d, c)| d * c).sum();
        column.iter_mut().zip(direction).for_each(|(c, d)| *c -= factor * along * d);
    };
    for pivot in 0..cols {
        let mut column = std::mem::take(&mut columns[pivot]);
        reflections.iter().for_each(|reflection| reflect(reflection, &mut column));
        column[..pivot].fill(0.0);
        let below: f64 = column[pivot + 1..].iter().map(|v| v * v).sum();
        let length = (column[pivot] * column[pivot] + below).sqrt();
        // LAPACK leaves a column as it is that has nothing below the pivot.
        let factor = if below == 0.0 {
            0.0
        } else {
            column[pivot] += length.copysign(column[pivot]);
            2.0 / (column[pivot] * column[pivot] + below)
        };
        reflections.push((column, factor));
    }
    let mut out = vec![0.0; values.len()];
    for col in 0..cols {
        let mut unit = vec![0.0; rows];
        unit[col] = 1.0;
        reflections.iter().rev().for_each(|reflection| reflect(reflection, &mut unit));
        unit.iter().enumerate().for_each(|(row, v)| out[row * cols + col] = *v as f32);
    }
    out
}
