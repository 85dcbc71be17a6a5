//! Rows drawn at random: standard normal ones, or ones with the mean and the covariance of the model's rows. The numbers are
//! torch's after `torch.manual_seed`.
//!
//! Reference: mergekit 0.1.5 `mergekit/scripts/tokensurgeon.py` (`john_hewitt_init`); torch
//! `torch/distributions/multivariate_normal.py`. Tokens get their rows in the order of their ids; mergekit's order is that
//! of a hash table, which changes from run to run.

use std::ops::Range;
use std::sync::Arc;

use super::in_f32;
use super::points::dot;
use crate::error::{Finding, Result};
use crate::linalg::{Matrix, Normals, Stream};
use crate::plan::{Expr, PlannedTensor, RowMap};

/// The rows that mergekit draws together.
const BATCH: usize = 512;

/// Values that are read at a time.
const READ_ELEMS: usize = 1 << 20;

/// Rows of a tensor, drawn when they are read.
#[derive(Debug)]
struct Drawn {
    batches: Vec<Normals>,
    spread: Option<Spread>,
}

/// The distribution of the model's rows.
#[derive(Debug)]
pub(super) struct Spread {
    mean: Vec<f32>,
    /// The lower triangle whose product with its transpose is the covariance, row by row.
    root: Vec<f32>,
}

/// `rows` rows of `width` numbers, of which the first comes after `drawn` words. Returns the words that have been drawn then.
pub(super) fn rows(seed: u64, drawn: &mut u64, rows: usize, width: usize, spread: Option<Spread>) -> Expr {
    let starts: Vec<usize> = (0..rows).step_by(BATCH).collect();
    let counts = starts.iter().map(|start| ((rows - start).min(BATCH) * width) as u64);
    let total = *drawn + counts.clone().map(Normals::words).sum::<u64>();
    let stream = Arc::new(Stream::new(seed, total));
    let batch = |count: u64| {
        let normals = Normals::new(&stream, *drawn, count);
        *drawn += Normals::words(count);
        normals
    };
    let batches = counts.map(batch).collect();
    let zeros = Expr::Values { shape: vec![1, width], values: vec![0.0; width].into() };
    let zeros = Expr::picked_of(vec![zeros], (0..rows).map(|_| (0, 0, 1)), vec![rows, width]);
    Expr::Map { of: vec![zeros], map: Arc::new(Drawn { batches, spread }) }
}

impl RowMap for Drawn {
    fn apply(&self, rows: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        for (row, out) in rows.zip(out.chunks_exact_mut(row_len)) {
            self.batches[row / BATCH].fill((row % BATCH * row_len) as u64, out);
            if let Some(spread) = &self.spread {
                let drawn = out.to_vec();
                for (at, out) in out.iter_mut().enumerate() {
                    *out = spread.mean[at] + dot(&spread.root[at * row_len..][..=at], &drawn[..=at]);
                }
            }
        }
    }
}

impl Spread {
    /// That of the rows of `of`. The covariance is summed in f64.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for rows that don't span their space; [`crate::Error::Setting`] where the covariance
    /// takes more than `max_memory_bytes`.
    pub(super) fn of(of: &PlannedTensor, max_memory_bytes: u64) -> Result<Self> {
        let (rows, width) = (of.rows(), of.row_len());
        let needed = (width as u64).saturating_mul(width as u64).saturating_mul(20);
        if needed > max_memory_bytes {
            let expected = format!("at least {} MiB, for the covariance of rows of {width}", needed.div_ceil(1 << 20));
            return Err(Finding::new("", "max_memory").expected(expected).found(max_memory_bytes >> 20).setting());
        }
        let (tensor, step) = (in_f32(of), (READ_ELEMS / width).max(1));
        let each = |see: &mut dyn FnMut(Matrix)| -> Result<()> {
            for start in (0..rows).step_by(step) {
                let values = tensor.read_rows(start..(start + step).min(rows))?;
                // Rows as columns.
                see(Matrix::from_iterator(width, values.len() / width, values.iter().map(|value| f64::from(*value))));
            }
            Ok(())
        };
        let mut mean = nalgebra::DVector::<f64>::zeros(width);
        each(&mut |rows| mean += rows.column_sum())?;
        mean /= rows as f64;
        let mut covariance = Matrix::zeros(width, width);
        each(&mut |mut rows| {
            rows.column_iter_mut().for_each(|mut row| row -= &mean);
            covariance.gemm(1.0, &rows, &rows.transpose(), 1.0);
        })?;
        covariance /= rows as f64;
        // What is smaller is a rounding error of f32, in which mergekit looks.
        let least = covariance.diagonal().max() * f64::from(f32::EPSILON);
        let root = covariance.cholesky().map(nalgebra::Cholesky::unpack);
        let Some(root) = root.filter(|root| root.diagonal().iter().all(|v| v * v > least)) else {
            let finding = Finding::new(of.expr.source_path(), format!("tensor {:?}", of.name));
            let expected = format!("rows that span their {width} dimensions, for john_hewitt");
            return Err(finding.expected(expected).found(format_args!("{rows} rows that don't")).mismatch());
        };
        let root = (0..width).flat_map(|at| root.row(at).iter().map(|v| *v as f32).collect::<Vec<_>>()).collect();
        Ok(Self { mean: mean.iter().map(|v| *v as f32).collect(), root })
    }
}
