//! Estimates the errors of rounding merged weights to a coarse type.

use std::fmt;

use rayon::prelude::*;

use crate::dtype::DType;
use crate::error::Result;
use crate::plan::{Plan, PlannedTensor};

/// Number of rows of each tensor that are examined, spread over the tensor.
const ROWS: usize = 16;

/// Rounding errors, estimated on some rows of every tensor that is rounded.
#[derive(Debug, Clone, PartialEq)]
pub struct Rounding {
    /// The number of tensors that are decoded, changed and encoded again.
    pub tensors: usize,
    /// `||rounded - exact|| / ||exact||` over all examined rows.
    pub relative: f64,
    /// The tensor with the largest relative error, and that error.
    pub worst: (String, f64),
    /// `||rounded - exact|| / ||exact - before||`. If it is above 1, the rounding error is larger than the merged
    /// change.
    pub of_change: f64,
}

impl fmt::Display for Rounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} quantized tensors are changed and quantized again: that adds a relative error of {:.1e} \
             (at most {:.1e}, {}), {:.2} of what the adapter changes",
            self.tensors, self.relative, self.worst.1, self.worst.0, self.of_change
        )
    }
}

/// Sums of squares over the examined rows.
#[derive(Debug, Clone, Copy, Default)]
struct Squares {
    error: f64,
    exact: f64,
    change: f64,
}

/// Estimates the errors of encoding the quantized tensors of `after`, which are computed from those of `before`, in
/// their types; `None` where there are none. Both plans must have their tensors in the same order.
///
/// # Errors
/// As [`PlannedTensor::read_rows`].
pub fn rounding(before: &Plan, after: &Plan) -> Result<Option<Rounding>> {
    let changed: Vec<(&PlannedTensor, &PlannedTensor)> = before
        .tensors
        .iter()
        .zip(&after.tensors)
        .filter(|(_, after)| !after.dtype.is_plain() && after.expr.raw_dtype().is_none())
        .collect();
    after.check()?;
    let squares: Vec<Squares> =
        changed.par_iter().map(|(before, after)| squares(before, after)).collect::<Result<_>>()?;
    let relative = |s: &Squares| (s.error / s.exact.max(f64::MIN_POSITIVE)).sqrt();
    let worst = changed.iter().zip(&squares).max_by(|a, b| relative(a.1).total_cmp(&relative(b.1)));
    let Some(((_, tensor), worst)) = worst else { return Ok(None) };
    let sum = squares.iter().fold(Squares::default(), |sum, s| Squares {
        error: sum.error + s.error,
        exact: sum.exact + s.exact,
        change: sum.change + s.change,
    });
    Ok(Some(Rounding {
        tensors: changed.len(),
        relative: relative(&sum),
        worst: (tensor.name.clone(), relative(worst)),
        of_change: (sum.error / sum.change.max(f64::MIN_POSITIVE)).sqrt(),
    }))
}

fn squares(before: &PlannedTensor, after: &PlannedTensor) -> Result<Squares> {
    let exact = PlannedTensor { dtype: DType::F32, ..after.clone() };
    let before = PlannedTensor { dtype: DType::F32, ..before.clone() };
    let mut squares = Squares::default();
    let step = after.rows().div_ceil(ROWS).max(1);
    for row in (0..after.rows()).step_by(step) {
        let [rounded, exact, before] = [after, &exact, &before].map(|tensor| tensor.read_rows(row..row + 1));
        for ((rounded, exact), before) in rounded?.into_iter().zip(exact?).zip(before?) {
            let square = |a: f32, b: f32| f64::from(a - b).powi(2);
            squares.error += square(rounded, exact);
            squares.exact += square(exact, 0.0);
            squares.change += square(exact, before);
        }
    }
    Ok(squares)
}
