//! HRA: inputs are reflected, along one direction after the other or, orthogonalised, along all at once.
//!
//! Reference: huggingface/peft `src/peft/tuners/hra/layer.py` (`get_delta_weight`, `merge`). There, the weight is
//! multiplied by the matrix of all reflections, which is computed in f32 in an order of MKL's own. Here each row of the
//! weight is reflected in f64.

use std::ops::Range;
use std::sync::Arc;

use super::Named;
use super::base::Base;
use super::change::Change;
use super::dora::column_norms;
use super::entries::Entries;
use super::modules::each_module;
use crate::error::Result;
use crate::json::Fields;
use crate::plan::RowMap;

/// The changes of an HRA adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let r = fields.count_or("r", 8)?;
    let orthogonal = fields.get("apply_GS")?.unwrap_or(false);
    fields.ignore(&["init_weights"]);
    each_module(fields, entries, base, "hra_u", |entries, module, name| {
        let weight = base.not_turned(entries, name, module, "HRA")?;
        if let [_] | [_, _, _] = weight.taps() {
            return Err(entries
                .finding(name)
                .expected("a linear layer or a convolution of two dimensions: PEFT has HRA for no other")
                .found(format_args!("a convolution of {}", weight.taps().len()))
                .unsupported());
        }
        let values = entries.shaped(name, &[weight.d_in, r])?.read()?;
        let norms = column_norms(&values, r);
        if norms.contains(&0.0) {
            return Err(entries.finding(name).expected("directions").found("a column of zeros").not_finite());
        }
        let direction = |(col, norm): (usize, &f32)| {
            values[col..].iter().step_by(r).map(|value| f64::from(value / norm)).collect::<Vec<f64>>()
        };
        let mut directions: Vec<Vec<f64>> = norms.iter().enumerate().map(direction).collect();
        if orthogonal {
            orthogonalize(&mut directions);
        }
        let map = Arc::new(Reflect { directions });
        Ok((weight, vec![weight.change(Change::Map { others: Vec::new(), map, transposed: false })]))
    })
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Makes the directions orthonormal, each without its parts along those before it.
fn orthogonalize(directions: &mut [Vec<f64>]) {
    for i in 0..directions.len() {
        let (before, rest) = directions.split_at_mut(i);
        let Some(direction) = rest.first_mut() else { return };
        for other in before.iter() {
            let along = dot(direction, other);
            direction.iter_mut().zip(other).for_each(|(value, other)| *value -= along * other);
        }
        let norm = dot(direction, direction).sqrt();
        direction.iter_mut().for_each(|value| *value /= norm);
    }
}

/// Reflects every row along one direction after the other.
#[derive(Debug)]
struct Reflect {
    directions: Vec<Vec<f64>>,
}

impl RowMap for Reflect {
    fn apply(&self, _: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        for row in out.chunks_exact_mut(row_len) {
            let mut values: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
            for direction in &self.directions {
                let twice = 2.0 * dot(&values, direction);
                values.iter_mut().zip(direction).for_each(|(value, direction)| *value -= twice * direction);
            }
            row.iter_mut().zip(&values).for_each(|(out, value)| *out = *value as f32);
        }
    }

    fn not_finite(&self) -> Option<&str> {
        Some("directions of reflections that depend on each other")
    }
}
