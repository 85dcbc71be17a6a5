//! Rows of a planned tensor as they are stored: for products that expand them in registers.

use std::ops::Range;
use std::sync::OnceLock;

use super::{Expr, PlannedTensor, TensorRef};
use crate::dtype::DType;
use crate::error::Result;

/// Some rows of a tensor in a file.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) tensor: TensorRef,
    pub(crate) rows: Range<usize>,
}

/// The rows of a planned tensor, or some of them, all of one type and without a change of values.
pub(crate) struct StoredRows {
    pub(crate) dtype: DType,
    pub(crate) row_len: usize,
    /// Parts of about [`PART`] bytes: how many rows each has, and where they are.
    pub(crate) parts: Vec<(usize, Vec<Run>)>,
    is_checked: OnceLock<()>,
}

/// The bytes of a part: a thread takes one at a time.
const PART: usize = 256 << 10;

impl StoredRows {
    /// The stored rows `rows` of `tensor`; `None` where its values are computed, rounded, or of several types.
    pub(crate) fn of(tensor: &PlannedTensor, rows: Range<usize>) -> Option<Self> {
        let mut runs = Vec::new();
        collect(&tensor.expr, rows, tensor.row_len(), &mut runs)?;
        let dtype = runs.first()?.tensor.info().dtype;
        // A value in F32 isn't rounded, nor one in the type that it has.
        let is_kept = tensor.dtype == DType::F32 || tensor.dtype == dtype;
        if !is_kept || runs.iter().any(|run| run.tensor.info().dtype != dtype) {
            return None;
        }
        let row_len = tensor.row_len();
        let bytes = dtype.bytes_of(row_len as u64, row_len as u64)?.max(1);
        let most = (PART as u64 / bytes).max(1) as usize;
        let mut parts: Vec<(usize, Vec<Run>)> = Vec::new();
        for run in runs {
            let mut rows = run.rows;
            while !rows.is_empty() {
                if parts.last().is_none_or(|(count, _)| *count >= most) {
                    parts.push((0, Vec::new()));
                }
                let (count, of_part) = parts.last_mut()?;
                let taken = rows.len().min(most - *count);
                of_part.push(Run { tensor: run.tensor.clone(), rows: rows.start..rows.start + taken });
                *count += taken;
                rows.start += taken;
            }
        }
        Some(Self { dtype, row_len, parts, is_checked: OnceLock::new() })
    }

    /// Checks once that no value is a NaN or an infinity, as every other way to read them does.
    ///
    /// # Errors
    /// [`crate::Error::NotFinite`]; a file that has changed.
    pub(crate) fn check(&self, tensor: &PlannedTensor) -> Result<()> {
        if self.is_checked.get().is_some() {
            return Ok(());
        }
        tensor.check_values()?;
        for run in self.parts.iter().flat_map(|(_, runs)| runs) {
            if crate::quant::has_non_finite(self.dtype, &run.tensor.rows(run.rows.clone())) {
                return Err(tensor.not_finite("a NaN or an infinity"));
            }
        }
        let _ = self.is_checked.set(());
        Ok(())
    }
}

/// Adds the runs of rows `rows` of an expression whose rows have `row_len` values.
fn collect(expr: &Expr, rows: Range<usize>, row_len: usize, runs: &mut Vec<Run>) -> Option<()> {
    match expr {
        Expr::Take(tensor) if tensor.info().row_len() == row_len => {
            match runs.last_mut() {
                Some(last) if last.tensor.is_same(tensor) && last.rows.end == rows.start => last.rows.end = rows.end,
                _ => runs.push(Run { tensor: tensor.clone(), rows }),
            }
            Some(())
        }
        Expr::Reshape { of, shape } if shape.last() == of.shape().last() => collect(of, rows, row_len, runs),
        Expr::Rows { of, picks, .. } => {
            let mut start = 0;
            for pick in &picks[..] {
                let (from, to) = (rows.start.max(start), rows.end.min(start + pick.len));
                if from < to {
                    let first = pick.start + from - start;
                    collect(of.get(pick.of)?, first..first + to - from, row_len, runs)?;
                }
                start += pick.len;
            }
            Some(())
        }
        _ => None,
    }
}
