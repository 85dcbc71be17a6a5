//! Evaluation: any range of rows of a planned tensor, as f32 values or as output bytes.

use std::ops::Range;

use rayon::prelude::*;

use super::{Expr, LowRank, PlannedTensor};
use crate::error::{Finding, Result};
use crate::quant;

/// Elements that one task of [`PlannedTensor::read`] makes.
const READ_ELEMS: usize = 1 << 18;

impl PlannedTensor {
    /// Rows `rows` as they stand in the output: rounded to the output's type, little-endian.
    ///
    /// # Errors
    /// [`crate::Error::NotFinite`] where a source, or the rounded result, holds a NaN or an infinity.
    pub fn encode_rows(&self, rows: Range<usize>, scratch: &mut Vec<f32>, out: &mut Vec<u8>) -> Result<()> {
        let elems = rows.len() * self.row_len();
        let bytes = elems / self.dtype.block_elems() * self.dtype.block_bytes();
        out.clear();
        if self.expr.raw_dtype() == Some(self.dtype) {
            out.reserve(bytes);
            self.expr.copy_rows(rows.clone(), self.rows(), out);
            if quant::has_non_finite(self.dtype, out) {
                return Err(self.not_finite("a NaN or an infinity"));
            }
            return Ok(());
        }
        scratch.resize(elems, 0.0);
        self.expr.eval_rows(rows, self.rows(), self.row_len(), scratch);
        if scratch.iter().fold(false, |bad, v| bad | !v.is_finite()) {
            return Err(self.not_finite("a NaN or an infinity"));
        }
        out.resize(bytes, 0);
        quant::encode(self.dtype, scratch, out);
        if quant::has_non_finite(self.dtype, out) {
            return Err(self.not_finite(&format!("a value too large for {}", self.dtype)));
        }
        Ok(())
    }

    /// Rows `rows` as f32 values, rounded to the output's type and back: what a reader of the
    /// output would see.
    ///
    /// # Errors
    /// As [`PlannedTensor::encode_rows`]; [`crate::Error::Unsupported`] for a type that can't be decoded.
    pub fn read_rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        self.check_decodable()?;
        let mut values = Vec::new();
        let mut bytes = Vec::new();
        self.encode_rows(rows.clone(), &mut values, &mut bytes)?;
        values.resize(rows.len() * self.row_len(), 0.0);
        quant::decode(self.dtype, &bytes, &mut values);
        Ok(values)
    }

    /// All rows as [`PlannedTensor::read_rows`] gives them, made in parallel on rayon's current pool.
    ///
    /// # Errors
    /// As [`PlannedTensor::encode_rows`]; [`crate::Error::Unsupported`] for a type that can't be decoded.
    pub fn read(&self) -> Result<Vec<f32>> {
        self.check_decodable()?;
        let row_len = self.row_len();
        let step = (READ_ELEMS / row_len.max(1)).max(1);
        let mut values = vec![0.0; self.elems()];
        values.par_chunks_mut((step * row_len).max(1)).enumerate().try_for_each_init(
            || (Vec::new(), Vec::new()),
            |(scratch, bytes), (i, out)| -> Result<()> {
                let rows = i * step..i * step + out.len() / row_len.max(1);
                self.encode_rows(rows, scratch, bytes)?;
                quant::decode(self.dtype, bytes, out);
                Ok(())
            },
        )?;
        Ok(values)
    }

    /// The bytes of rows `rows` right out of the source's map, where no work on them is needed.
    pub(super) fn borrow_rows(&self, rows: Range<usize>) -> Option<Result<&[u8]>> {
        let Expr::Take(tensor) = &self.expr else { return None };
        if tensor.info().dtype != self.dtype {
            return None;
        }
        let bytes = tensor.bytes();
        let row_bytes = bytes.len() / self.rows().max(1);
        let bytes = &bytes[rows.start * row_bytes..rows.end * row_bytes];
        Some(match quant::has_non_finite(self.dtype, bytes) {
            true => Err(self.not_finite("a NaN or an infinity")),
            false => Ok(bytes),
        })
    }

    /// Copying needs no decoding, so [`super::Plan::check`] lets through types that can only be copied.
    fn check_decodable(&self) -> Result<()> {
        if quant::can_decode(self.dtype) {
            return Ok(());
        }
        Err(Finding::new(self.expr.source_path(), format!("tensor {:?}", self.name))
            .expected("a type this version can decode")
            .found(self.dtype)
            .unsupported())
    }

    fn not_finite(&self, found: &str) -> crate::Error {
        let source = self.expr.sources().first().map_or(self.name.as_str(), |t| t.info().name.as_str()).to_owned();
        Finding::new(self.expr.source_path(), format!("tensor {source:?}"))
            .expected("finite numbers")
            .found(found)
            .not_finite()
    }
}

impl Expr {
    /// Appends the source's own bytes of rows `rows`, `total` rows in all. Only for expressions
    /// with a [`Expr::raw_dtype`].
    fn copy_rows(&self, rows: Range<usize>, total: usize, out: &mut Vec<u8>) {
        match self {
            Expr::Take(tensor) => {
                let bytes = tensor.bytes();
                let row_bytes = bytes.len() / total.max(1);
                out.extend_from_slice(&bytes[rows.start * row_bytes..rows.end * row_bytes]);
            }
            Expr::PermuteHalves { of, heads } => {
                for row in rows {
                    let from = permuted_row(row, total, *heads);
                    of.copy_rows(from..from + 1, total, out);
                }
            }
            Expr::Values { .. } | Expr::AddLowRank { .. } | Expr::Product(_) => {
                unreachable!("no bytes of its own: raw_dtype is None")
            }
        }
    }

    /// Writes the f32 values of rows `rows` to `out`; `total` rows of `row_len` in all.
    fn eval_rows(&self, rows: Range<usize>, total: usize, row_len: usize, out: &mut [f32]) {
        match self {
            Expr::Take(tensor) => {
                let dtype = tensor.info().dtype;
                let row_bytes = tensor.bytes().len() / total.max(1);
                quant::decode(dtype, &tensor.bytes()[rows.start * row_bytes..rows.end * row_bytes], out);
            }
            Expr::Values { values, .. } => out.copy_from_slice(&values[rows.start * row_len..rows.end * row_len]),
            Expr::PermuteHalves { of, heads } => {
                for (row, out) in rows.zip(out.chunks_exact_mut(row_len)) {
                    let from = permuted_row(row, total, *heads);
                    of.eval_rows(from..from + 1, total, row_len, out);
                }
            }
            Expr::AddLowRank { of, update } => {
                of.eval_rows(rows.clone(), total, row_len, out);
                let mut sum = vec![0.0; row_len];
                for (row, out) in rows.zip(out.chunks_exact_mut(row_len)) {
                    update.row(row, &mut sum);
                    for (w, delta) in out.iter_mut().zip(&sum) {
                        *w += delta;
                    }
                }
            }
            Expr::Product(product) => {
                for (row, out) in rows.zip(out.chunks_exact_mut(row_len)) {
                    product.row(row, out);
                }
            }
        }
    }
}

impl LowRank {
    /// Row `row` of the product: summed over the rank in order, in f32, then scaled.
    fn row(&self, row: usize, out: &mut [f32]) {
        out.fill(0.0);
        let left = &self.left[row * self.rank..(row + 1) * self.rank];
        for (l, right) in left.iter().zip(self.right.chunks_exact(out.len())) {
            for (sum, r) in out.iter_mut().zip(right) {
                *sum += l * r;
            }
        }
        for sum in out {
            *sum *= self.scale;
        }
    }
}

/// The source row of output row `row` under [`Expr::PermuteHalves`].
fn permuted_row(row: usize, total: usize, heads: usize) -> usize {
    let per_head = total / heads;
    let (head, within) = (row / per_head, row % per_head);
    head * per_head + (within % 2) * (per_head / 2) + within / 2
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::dtype::DType;

    fn planned(shape: &[usize], expr: Expr) -> PlannedTensor {
        PlannedTensor { name: "t".into(), dtype: DType::F32, shape: shape.to_vec(), expr }
    }

    #[test]
    fn halves_become_pairs_within_each_head() {
        let order: Vec<usize> = (0..8).map(|row| permuted_row(row, 8, 2)).collect();
        assert_eq!(order, [0, 2, 1, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn a_product_is_scaled_after_the_sum_and_rows_can_be_made_alone() {
        let update = LowRank { scale: 0.5, rank: 2, left: vec![1., 2., 3., 4.], right: vec![1., 0., 2., 1., 1., 1.] };
        let tensor = planned(&[2, 3], Expr::Product(Arc::new(update)));
        assert_eq!(tensor.read_rows(0..2).unwrap(), [1.5, 1.0, 2.0, 3.5, 2.0, 5.0]);
        assert_eq!(tensor.read_rows(1..2).unwrap(), [3.5, 2.0, 5.0]);
    }

    #[test]
    fn values_too_large_for_the_output_type_are_refused() {
        let mut tensor = planned(&[2], Expr::Values { shape: vec![2], values: Arc::from([1.0, 70000.0]) });
        assert_eq!(tensor.read_rows(0..2).unwrap(), [1.0, 70000.0]);
        tensor.dtype = DType::F16;
        let error = tensor.read_rows(0..2).unwrap_err().to_string();
        assert!(error.contains("a value too large for F16"), "{error}");
    }
}
