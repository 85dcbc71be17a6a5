//! (IA)³: outputs, or inputs of feed-forward layers, are multiplied by learned factors.
//!
//! Reference: huggingface/peft `src/peft/tuners/ia3/layer.py` (`Linear.merge`).

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use regex_lite::Regex;
use serde_json::Value;

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::module_weight::Weight;
use super::rows::{Factors, ScaleColumns, ScaleRows};
use super::targets::Targets;
use crate::error::{Error, Result};
use crate::json::Fields;
use crate::plan::{Number, RowMap};
use crate::source::show_shape;

const FACTORS: &str = "ia3_l";

/// `feedforward_modules`: the modules whose inputs are scaled.
enum FeedForward {
    Ends(Vec<String>),
    Pattern(Regex),
}

impl FeedForward {
    fn read(fields: &mut Fields) -> Result<Self> {
        match fields.get::<Value>("feedforward_modules")? {
            Some(Value::String(pattern)) => {
                let regex = Regex::new(&format!("^(?:{pattern})$")).map_err(|error| {
                    let expected = "a regular expression without look-around or references";
                    fields.finding("feedforward_modules").expected(expected).found(error).unsupported()
                })?;
                Ok(Self::Pattern(regex))
            }
            _ => Ok(Self::Ends(fields.get("feedforward_modules")?.unwrap_or_default())),
        }
    }

    /// Like PEFT, this doesn't require whole parts of a path.
    fn has(&self, module: &str) -> bool {
        match self {
            Self::Ends(ends) => ends.iter().any(|end| module.ends_with(end.as_str())),
            Self::Pattern(pattern) => pattern.is_match(module),
        }
    }
}

/// Multiplies the taps of every input of a convolution by the input's factor.
#[derive(Debug)]
struct ScaleInputs {
    /// Those of all groups.
    factors: Factors,
    /// The inputs and the outputs of one group.
    inputs: usize,
    outputs: usize,
}

impl<T: Number> RowMap<T> for ScaleInputs {
    fn apply(&self, rows: Range<usize>, row_len: usize, _: &[Vec<T>], out: &mut [T]) {
        let taps = (row_len / self.inputs).max(1);
        for (output, row) in rows.zip(out.chunks_exact_mut(row_len)) {
            let factors = &self.factors.of::<T>()[output / self.outputs * self.inputs..][..self.inputs];
            for (factor, values) in factors.iter().zip(row.chunks_exact_mut(taps)) {
                values.iter_mut().for_each(|value| *value *= *factor);
            }
        }
    }

    fn in_f64(&self) -> Option<&dyn RowMap<f64>> {
        self.factors.in_f64(self)
    }
}

fn misfit(entries: &Entries, name: &str, weight: &Weight, shape: &[usize]) -> Error {
    let expected = match weight.is_kernel() {
        false => format!("[1, {}] or [{}, 1] by the base model", weight.d_in, weight.d_out),
        true => {
            format!("[1, {}, 1, ..] by the base model, or with feedforward_modules one for each input", weight.d_out)
        }
    };
    let finding = entries.finding(name).expected(expected).found(show_shape(shape));
    finding.hint("this adapter belongs to another base model").mismatch()
}

/// The changes of an (IA)³ adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let fan_in_fan_out = fields.get("fan_in_fan_out")?.unwrap_or(false);
    // The shape of a linear layer's factors shows whether it is a feed-forward module; that of a convolution's doesn't.
    let feed_forward = FeedForward::read(fields)?;
    fields.ignore(&["init_ia3_weights"]);
    let targets = Targets::read(fields)?;
    let (mut changes, mut adapted) = (Vec::new(), HashSet::new());
    for module in entries.modules(FACTORS) {
        let name = format!("{module}.{FACTORS}");
        let weight = base.linear_or_kernel(entries, &name, &module, fan_in_fan_out)?;
        let tensor = entries.need(&name)?;
        let shape = tensor.shape.as_slice();
        let inputs = match (shape, weight.is_kernel()) {
            ([1, len], false) if *len == weight.d_in => true,
            ([len, 1], false) if *len == weight.d_out => false,
            ([1, len, ones @ ..], true) if ones.len() == weight.taps().len() && ones.iter().all(|one| *one == 1) => {
                let inputs = feed_forward.has(&module);
                let fits = if inputs { len.is_multiple_of(weight.inputs()) } else { *len == weight.d_out };
                if !fits {
                    return Err(misfit(entries, &name, &weight, shape));
                }
                inputs
            }
            _ => return Err(misfit(entries, &name, &weight, shape)),
        };
        let factors: Factors = tensor.values::<f64>(0..tensor.rows())?.into();
        let scale = |map: Arc<dyn RowMap>| Change::Map { others: Vec::new(), map, transposed: false };
        let map: Arc<dyn RowMap> = match (inputs != weight.transposed, weight.is_kernel()) {
            (true, true) => Arc::new(ScaleInputs {
                inputs: weight.inputs(),
                outputs: weight.d_out / (factors.len() / weight.inputs()).max(1),
                factors: factors.clone(),
            }),
            (true, false) => Arc::new(ScaleColumns(factors.clone())),
            (false, _) => Arc::new(ScaleRows(factors.clone())),
        };
        changes.push(weight.change(scale(map)));
        adapted.insert(weight.tensor.name.clone());
        if let Some(bias) =
            base.tensor(&format!("{module}.bias")).filter(|bias| !inputs && bias.shape == [weight.d_out])
        {
            changes.push((bias.name.clone(), scale(Arc::new(ScaleRows(factors)))));
        }
    }
    targets.complete(entries, base, &adapted, FACTORS)?;
    Ok(changes)
}
