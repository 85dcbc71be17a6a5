//! Truncated singular value decomposition of a matrix that is read in runs of rows.
//!
//! Reference: Halko, Martinsson, Tropp, "Finding structure with randomness" (SIAM Review 2011),
//! algorithms 4.4 (range finder with power iterations) and 5.1.

use std::ops::Range;

use nalgebra::{DMatrix, DMatrixView, Dyn, U1};
use rayon::prelude::*;

use super::{Matrix, Random, Svd, svd, thin_qr};
use crate::error::Result;
use crate::plan::PlannedTensor;

/// Values of the matrix in memory at a time: 16 MiB as f32.
const CHUNK_ELEMS: usize = 1 << 22;
/// Number of rows that one task reads or multiplies.
const TASK_ROWS: usize = 32;
/// Number of columns that one task multiplies.
const TASK_COLS: usize = 512;

/// A matrix of which any range of rows can be read.
pub trait RowSource: Sync {
    /// The number of rows.
    fn rows(&self) -> usize;

    /// The number of columns.
    fn cols(&self) -> usize;

    /// Reads rows `rows`, one after the other, as f32.
    ///
    /// # Errors
    /// Those of reading, such as a number that isn't finite.
    fn read(&self, rows: Range<usize>) -> Result<Vec<f32>>;
}

impl RowSource for PlannedTensor {
    fn rows(&self) -> usize {
        PlannedTensor::rows(self)
    }

    fn cols(&self) -> usize {
        self.row_len()
    }

    fn read(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        self.read_rows(rows)
    }
}

/// The difference `of - less` of two tensors with the same shape, in f32.
#[derive(Debug, Clone, Copy)]
pub struct Difference<'a> {
    /// The finetuned weight.
    pub of: &'a PlannedTensor,
    /// The base weight.
    pub less: &'a PlannedTensor,
}

impl RowSource for Difference<'_> {
    fn rows(&self) -> usize {
        self.of.rows()
    }

    fn cols(&self) -> usize {
        self.of.row_len()
    }

    fn read(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let mut values = self.of.read_rows(rows.clone())?;
        let less = self.less.read_rows(rows)?;
        values.iter_mut().zip(&less).for_each(|(value, less)| *value -= less);
        Ok(values)
    }
}

/// Settings of the sketch of a large matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sketch {
    /// Columns of the sketch in addition to the requested rank.
    pub oversampling: usize,
    /// How often the matrix and its transpose are applied to the sketch. Each time costs two passes, and separates
    /// singular values that are close together better.
    pub power_iterations: usize,
    /// Seed of the random matrix from which the sketch starts. The same seed gives the same result with any number of
    /// threads.
    pub seed: u64,
}

impl Default for Sketch {
    fn default() -> Self {
        Self { oversampling: 10, power_iterations: 2, seed: 0 }
    }
}

/// At most the first `rank` singular triplets of `matrix`, and its squared Frobenius norm. The triplets are exact up to
/// rounding if the matrix's rank is at most the number of columns of the sketch. Reads the matrix `2 + 2 *
/// power_iterations` times, and takes about 32 bytes for each row and column times the sketch's width.
///
/// # Errors
/// Those of [`RowSource::read`].
pub fn truncated_svd(matrix: &dyn RowSource, rank: usize, sketch: Sketch) -> Result<(Svd, f64)> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let width = (rank + sketch.oversampling).min(rows).min(cols);
    let mut random = Random::new(sketch.seed);
    let start = DMatrix::from_fn(width, cols, |_, _| random.normal());
    let (range, norm_sqr) = times(matrix, &start)?;
    if norm_sqr == 0.0 {
        return Ok((Svd { u: Matrix::zeros(rows, 0), s: Vec::new(), vt: Matrix::zeros(0, cols) }, 0.0));
    }
    let mut range = orthonormal(range);
    // A sketch as wide as the matrix spans its whole range without iterations.
    let iterations = if width < rows.min(cols) { sketch.power_iterations } else { 0 };
    for _ in 0..iterations {
        let corange = orthonormal(transposed_times(matrix, &range)?);
        range = orthonormal(times(matrix, &narrow(&corange).transpose())?.0);
    }
    let (corange, triangle) = thin_qr(transposed_times(matrix, &range)?);
    let mut small = svd(triangle.transpose());
    small.truncate(rank);
    Ok((Svd { u: range * small.u, s: small.s, vt: small.vt * corange.transpose() }, norm_sqr))
}

/// About how many bytes of memory [`truncated_svd`] takes for a matrix of this shape, for deciding how many run at a
/// time.
pub fn truncated_svd_bytes(rows: usize, cols: usize, rank: usize, sketch: Sketch) -> u64 {
    let chunk = CHUNK_ELEMS.max(TASK_ROWS * cols).min(rows.saturating_mul(cols));
    let width = (rank + sketch.oversampling).min(rows).min(cols);
    4 * chunk as u64 + 32 * (rows as u64 + cols as u64) * width as u64
}

/// Computes `|| matrix - left @ right ||_F^2`; `left`, `[rows, k]`, and `right`, `[k, cols]`, are row by row.
///
/// # Errors
/// Those of [`RowSource::read`].
pub fn residual_norm_sqr(matrix: &dyn RowSource, left: &[f32], right: &[f32]) -> Result<f64> {
    let cols = matrix.cols();
    let k = right.len() / cols.max(1);
    let right = DMatrixView::from_slice(right, cols, k);
    let mut sum = 0.0;
    for_chunks(matrix, |rows, chunk| {
        let sums: Vec<f64> = chunk
            .par_chunks(TASK_ROWS * cols)
            .enumerate()
            .map(|(i, chunk)| {
                let (first, n) = (rows.start + i * TASK_ROWS, chunk.len() / cols);
                let product = right * DMatrixView::from_slice(&left[first * k..][..n * k], k, n);
                chunk.iter().zip(product.iter()).map(|(a, b)| f64::from(a - b).powi(2)).sum()
            })
            .collect();
        sum += sums.iter().sum::<f64>();
    })?;
    Ok(sum)
}

/// Calls `with` for one run of rows after the other. The length of runs depends only on the shape, and so does the
/// order of every sum below: results are the same with any number of threads.
fn for_chunks(matrix: &dyn RowSource, mut with: impl FnMut(Range<usize>, &[f32])) -> Result<()> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    if cols == 0 {
        return Ok(());
    }
    let step = (CHUNK_ELEMS / cols).next_multiple_of(TASK_ROWS).max(TASK_ROWS);
    let mut chunk = vec![0.0f32; step.min(rows) * cols];
    for start in (0..rows).step_by(step) {
        let end = (start + step).min(rows);
        let chunk = &mut chunk[..(end - start) * cols];
        chunk.par_chunks_mut(TASK_ROWS * cols).enumerate().try_for_each(|(i, out)| -> Result<()> {
            let first = start + i * TASK_ROWS;
            out.copy_from_slice(&matrix.read(first..first + out.len() / cols)?);
            Ok(())
        })?;
        with(start..end, chunk);
    }
    Ok(())
}

/// Computes `matrix @ right`, with `right` given transposed, `[k, cols]`. Also returns the squared norm of the matrix.
fn times(matrix: &dyn RowSource, right: &DMatrix<f32>) -> Result<(Matrix, f64)> {
    let (rows, cols, k) = (matrix.rows(), matrix.cols(), right.nrows());
    let mut product = Matrix::zeros(rows, k);
    let mut norm_sqr = 0.0;
    for_chunks(matrix, |chunk_rows, chunk| {
        let parts: Vec<(DMatrix<f32>, f64)> = chunk
            .par_chunks(TASK_ROWS * cols)
            // A chunk's rows, seen as columns, are its transpose.
            .map(|chunk| (right * DMatrixView::from_slice(chunk, cols, chunk.len() / cols), norm_sqr_of(chunk)))
            .collect();
        let mut row = chunk_rows.start;
        for (part, norm) in parts {
            norm_sqr += norm;
            for column in part.column_iter() {
                column.iter().enumerate().for_each(|(i, v)| product[(row, i)] = f64::from(*v));
                row += 1;
            }
        }
    })?;
    Ok((product, norm_sqr))
}

fn norm_sqr_of(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum()
}

/// Computes `matrix^T @ left`, where `left` is `[rows, k]`.
fn transposed_times(matrix: &dyn RowSource, left: &Matrix) -> Result<Matrix> {
    let (cols, k) = (matrix.cols(), left.ncols());
    let left = narrow(left);
    let mut product: Vec<Matrix> =
        (0..cols).step_by(TASK_COLS).map(|start| Matrix::zeros(TASK_COLS.min(cols - start), k)).collect();
    for_chunks(matrix, |rows, chunk| {
        let left = left.rows(rows.start, rows.len()).into_owned();
        product.par_iter_mut().enumerate().for_each(|(i, product)| {
            let (n, stride) = (product.nrows(), Dyn(cols));
            let part = &chunk[i * TASK_COLS..];
            let part = DMatrixView::from_slice_with_strides_generic(part, Dyn(n), Dyn(rows.len()), U1, stride);
            let added = part * &left;
            product.iter_mut().zip(added.iter()).for_each(|(sum, added)| *sum += f64::from(*added));
        });
    })?;
    let mut all = Matrix::zeros(cols, k);
    for (i, part) in product.iter().enumerate() {
        all.rows_mut(i * TASK_COLS, part.nrows()).copy_from(part);
    }
    Ok(all)
}

fn narrow(matrix: &Matrix) -> DMatrix<f32> {
    matrix.map(|v| v as f32)
}

/// An orthonormal basis of the space that the columns span.
fn orthonormal(columns: Matrix) -> Matrix {
    columns.qr().q()
}

#[cfg(test)]
mod tests {
    use super::super::{from_rows, to_rows};
    use super::*;

    struct InMemory {
        rows: usize,
        values: Vec<f32>,
    }

    impl RowSource for InMemory {
        fn rows(&self) -> usize {
            self.rows
        }

        fn cols(&self) -> usize {
            self.values.len() / self.rows
        }

        fn read(&self, rows: Range<usize>) -> Result<Vec<f32>> {
            Ok(self.values[rows.start * self.cols()..rows.end * self.cols()].to_vec())
        }
    }

    /// A matrix with `count` singular values from 1 on, each `decay` times the one before, and these values.
    fn with_decay(rows: usize, cols: usize, count: usize, decay: f64) -> (Matrix, Vec<f64>) {
        let mut random = Random::new(11);
        let mut basis = |n| orthonormal(Matrix::from_fn(n, count, |_, _| f64::from(random.normal())));
        let (mut u, v) = (basis(rows), basis(cols));
        let s: Vec<f64> = (0..count).map(|i| decay.powi(i as i32)).collect();
        s.iter().enumerate().for_each(|(i, s)| u.column_mut(i).scale_mut(*s));
        (u * v.transpose(), s)
    }

    fn sketched(m: &Matrix, rank: usize) -> (Svd, f64, InMemory) {
        let source = InMemory { rows: m.nrows(), values: to_rows(m) };
        let (svd, norm_sqr) = truncated_svd(&source, rank, Sketch::default()).unwrap();
        (svd, norm_sqr, source)
    }

    #[test]
    fn a_matrix_of_low_rank_is_found_exactly() {
        for (rows, cols) in [(300, 1200), (1200, 300), (40, 40)] {
            let (m, s) = with_decay(rows, cols, 8, 0.7);
            let (svd, norm_sqr, source) = sketched(&m, 8);
            assert!(svd.s.iter().zip(&s).all(|(a, b)| (a - b).abs() < 1e-6), "{:?}", svd.s);
            assert!((svd.product() - &m).norm() < 2e-6 * m.norm());
            assert!((norm_sqr - m.norm_squared()).abs() < 1e-5);
            let (b, a) = svd.balanced();
            assert!((residual_norm_sqr(&source, &b, &a).unwrap() / norm_sqr).sqrt() < 2e-6);
            let half = from_rows(rows, 8, &b).columns(0, 4) * from_rows(8, cols, &a).rows(0, 4);
            let tail: f64 = s[4..].iter().map(|s| s * s).sum::<f64>().sqrt();
            assert!(((half - &m).norm() - tail).abs() < 1e-5);
        }
    }

    #[test]
    fn the_best_part_of_a_slowly_decaying_matrix_is_nearly_found() {
        let (m, s) = with_decay(500, 400, 400, 0.98);
        let (svd, norm_sqr, source) = sketched(&m, 32);
        let best: f64 = s[32..].iter().map(|s| s * s).sum();
        let (b, a) = svd.balanced();
        let found = residual_norm_sqr(&source, &b, &a).unwrap();
        assert!(found < best * 1.02, "{found} is far above {best}");
        assert!((found - (norm_sqr - svd.norm_sqr())).abs() < 1e-3 * found, "what is left out is the residual");
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (m, _) = with_decay(700, 9000, 30, 0.9);
        let source = InMemory { rows: m.nrows(), values: to_rows(&m) };
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| truncated_svd(&source, 12, Sketch::default()).unwrap())
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn nothing_has_no_rank() {
        let (svd, norm_sqr, source) = sketched(&Matrix::zeros(6, 5), 3);
        assert_eq!((svd.rank(), norm_sqr), (0, 0.0));
        let (b, a) = svd.balanced();
        assert_eq!(residual_norm_sqr(&source, &b, &a).unwrap(), 0.0);
    }
}
