//! Low-rank linear algebra: approximates the change of a weight by a product of small factors.
//!
//! Small dense parts are f64 in nalgebra's matrices. A large matrix is only read in runs of rows
//! ([`RowSource`]), so a 4096 x 11008 matrix takes no more memory than its sketch.
//!
//! - [`truncated_svd`]: the first singular triplets of a large matrix (randomized).
//! - [`svd_of_products`]: the exact decomposition of a sum of low-rank products.
//! - [`svd`], [`thin_qr`]: decompositions of matrices in memory.
//! - [`Mt19937`]: random numbers as torch draws them; those of numpy and Fourier transforms are for adapters that depend
//!   on them.
//! - [`Svd::truncate`], [`Svd::rank_for_energy`], [`Svd::balanced`]: from a decomposition to the
//!   factors of a LoRA.

mod dense;
mod fourier;
mod mt19937;
mod normal;
mod pcg64;
mod products;
mod random;
mod sketch;

pub(crate) use dense::random_orthogonal;
pub use dense::{Svd, svd, thin_qr};
pub(crate) use fourier::Fourier;
pub use mt19937::Mt19937;
pub(crate) use mt19937::Stream;
pub(crate) use normal::Normals;
pub(crate) use pcg64::Pcg64;
pub use products::{Term, svd_of_products};
pub(crate) use random::Random;
pub use sketch::{Difference, RowSource, Sketch, residual_norm_sqr, truncated_svd, truncated_svd_bytes};

/// A matrix of f64, column by column.
pub type Matrix = nalgebra::DMatrix<f64>;

/// A matrix from `values`, `[rows, cols]` row by row.
pub fn from_rows(rows: usize, cols: usize, values: &[f32]) -> Matrix {
    Matrix::from_row_iterator(rows, cols, values.iter().map(|v| f64::from(*v)))
}

/// The values of `matrix` row by row, rounded to f32.
pub fn to_rows(matrix: &Matrix) -> Vec<f32> {
    // The columns of the transpose are the rows.
    matrix.transpose().iter().map(|v| *v as f32).collect()
}
