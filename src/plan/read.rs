//! Reads the values of planned tensors as f32.

use std::ops::Range;

use rayon::prelude::*;

use super::{Number, PlannedTensor};
use crate::dtype::DType;
use crate::error::Result;

/// How many elements one task computes when a whole tensor is read.
const READ_ELEMS: usize = 1 << 18;

impl PlannedTensor {
    /// Returns rows `rows` as f32 values, rounded to the output's type and back, as a reader of the output would get
    /// them.
    ///
    /// # Errors
    /// The same as for [`PlannedTensor::encode_rows`]; [`crate::Error::Unsupported`] for a type that can't be decoded.
    pub fn read_rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        self.read_rows_into(rows, &mut values)?;
        Ok(values)
    }

    /// Does the same as [`PlannedTensor::read_rows`], into a buffer that the caller reuses.
    pub(crate) fn read_rows_into(&self, rows: Range<usize>, values: &mut Vec<f32>) -> Result<()> {
        self.check_values()?;
        self.check_readable(&rows)?;
        // The buffer is not cleared first: every value in it is overwritten.
        values.resize(rows.len() * self.row_len(), 0.0);
        if self.dtype == DType::F32 {
            // F32 output needs no rounding, so no encoding either.
            return self.eval_finite(rows, values);
        }
        let mut bytes = Vec::new();
        self.encode_rows(rows.clone(), values, &mut bytes)?;
        values.resize(rows.len() * self.row_len(), 0.0);
        self.decode(&bytes, values)
    }

    /// Returns all rows as [`PlannedTensor::read_rows`] does, computed in parallel on rayon's current pool.
    ///
    /// # Errors
    /// The same as for [`PlannedTensor::encode_rows`]; [`crate::Error::Unsupported`] for a type that can't be decoded.
    pub fn read(&self) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.elems()];
        self.fill(0..self.rows(), &mut values)?;
        Ok(values)
    }

    /// Returns rows `rows` as values of `T`, not rounded to the output's type.
    ///
    /// # Errors
    /// The same as for [`PlannedTensor::read_rows`].
    pub(crate) fn values<T: Number>(&self, rows: Range<usize>) -> Result<Vec<T>> {
        self.check_values()?;
        self.check_readable(&rows)?;
        let mut values = vec![T::default(); rows.len() * self.row_len()];
        self.eval_finite(rows, &mut values)?;
        Ok(values)
    }

    /// Writes rows to `values`, computed in parallel on rayon's current pool.
    ///
    /// # Errors
    /// As [`PlannedTensor::read`].
    pub(crate) fn fill(&self, rows: Range<usize>, values: &mut [f32]) -> Result<()> {
        self.check_values()?;
        self.check_readable(&rows)?;
        let row_len = self.row_len();
        let step = (READ_ELEMS / row_len.max(1)).max(1);
        values.par_chunks_mut((step * row_len).max(1)).enumerate().try_for_each_init(
            || (Vec::new(), Vec::new()),
            |(scratch, bytes), (i, out)| -> Result<()> {
                let start = rows.start + i * step;
                let rows = start..start + out.len() / row_len.max(1);
                match self.borrow_rows(rows.clone()) {
                    Some(stored) => self.decode(stored?, out),
                    None => {
                        self.encode_rows(rows, scratch, bytes)?;
                        self.decode(bytes, out)
                    }
                }
            },
        )
    }

    /// Returns whether two tensors have the same shape and the same values, as [`PlannedTensor::read_rows`] gives them.
    ///
    /// # Errors
    /// The same as for [`PlannedTensor::read_rows`].
    pub fn same_values(&self, other: &PlannedTensor) -> Result<bool> {
        if self.shape != other.shape {
            return Ok(false);
        }
        // A shape without elements can still have a huge number of rows.
        if self.elems() == 0 {
            return Ok(true);
        }
        let (total, step) = (self.rows(), (READ_ELEMS / self.row_len().max(1)).max(1));
        let starts: Vec<usize> = (0..total).step_by(step).collect();
        let same = |start: &usize| {
            let rows = *start..(start + step).min(total);
            Ok(self.read_rows(rows.clone())? == other.read_rows(rows)?)
        };
        starts.par_iter().map(same).find_first(|same| !matches!(same, Ok(true))).unwrap_or(Ok(true))
    }
}
