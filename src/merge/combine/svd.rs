//! Updates cut to a rank.
//!
//! PEFT takes the singular values of the whole `[d_out, d_in]` update. Here an update that is given by its
//! factors is cut by these: the singular values of `B A` are those of the small product of the triangular
//! parts of B and of A's transpose. Signs of singular vectors are arbitrary, so factors are not PEFT's,
//! their product is.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use nalgebra::DMatrix;

use super::lazy::{Measure, Pending};
use super::statistics::planned;
use crate::adapter::peft::LowRank;
use crate::error::{Finding, Result};
use crate::plan::{Expr, Pick, RowMap};

/// Elements of a whole update at most, in f64 while its singular values are taken.
const WHOLE: usize = 16 << 20;

/// `U` scaled by the singular values, and `V` transposed, of `rank` or fewer.
struct Cut {
    b: DMatrix<f64>,
    a: DMatrix<f64>,
}

/// The singular values of a matrix, falling: `U`, values, `V` transposed.
fn singular(of: DMatrix<f64>) -> (DMatrix<f64>, Vec<f64>, DMatrix<f64>) {
    let svd = of.svd(true, true);
    let values = svd.singular_values.iter().copied().collect();
    (svd.u.unwrap_or_default(), values, svd.v_t.unwrap_or_default())
}

fn cut_matrix(of: DMatrix<f64>, rank: usize) -> Cut {
    let (u, values, v_t) = singular(of);
    let rank = rank.min(values.len());
    let b = DMatrix::from_fn(u.nrows(), rank, |i, j| u[(i, j)] * values[j]);
    Cut { b, a: v_t.rows(0, rank).into_owned() }
}

/// `b a` cut to a rank by its factors.
fn cut_factors(b: DMatrix<f64>, a: DMatrix<f64>, rank: usize) -> Cut {
    let (left, right) = (b.qr(), a.transpose().qr());
    let small = cut_matrix(left.r() * right.r().transpose(), rank);
    Cut { b: left.q() * small.b, a: small.a * right.q().transpose() }
}

/// What both factors are made of, once.
#[derive(Debug)]
struct Factors {
    of: Of,
    rank: usize,
    made: OnceLock<Option<[Arc<[f32]>; 2]>>,
}

#[derive(Debug)]
enum Of {
    Product(LowRank),
    /// The values, and whether they are kept transposed.
    Whole(Expr, bool),
}

impl Factors {
    /// A and B.
    fn get(&self) -> (Option<&[Arc<[f32]>; 2]>, Option<crate::Error>) {
        let error = Mutex::new(None);
        let made = self.made.get_or_init(|| match self.make() {
            Ok(factors) => Some(factors),
            Err(e) => {
                *error.lock().unwrap_or_else(|e| e.into_inner()) = Some(e);
                None
            }
        });
        (made.as_ref(), error.into_inner().unwrap_or_else(|e| e.into_inner()))
    }

    fn make(&self) -> Result<[Arc<[f32]>; 2]> {
        let cut = match &self.of {
            Of::Product(update) => {
                let scale = update.scale as f64;
                cut_factors(matrix(&update.b)? * scale, matrix(&update.a)?, self.rank)
            }
            Of::Whole(delta, transposed) => {
                let delta = matrix(delta)?;
                cut_matrix(if *transposed { delta.transpose() } else { delta }, self.rank)
            }
        };
        let (d_out, d_in) = (cut.b.nrows(), cut.a.ncols());
        let mut a = vec![0.0; self.rank * d_in];
        let mut b = vec![0.0; d_out * self.rank];
        for k in 0..cut.a.nrows() {
            (0..d_in).for_each(|j| a[k * d_in + j] = cut.a[(k, j)] as f32);
            (0..d_out).for_each(|i| b[i * self.rank + k] = cut.b[(i, k)] as f32);
        }
        Ok([a.into(), b.into()])
    }
}

/// All values of a matrix, in f64.
fn matrix(of: &Expr) -> Result<DMatrix<f64>> {
    let shape = of.shape();
    let (rows, cols) = (shape[0], shape[1]);
    let mut values = DMatrix::zeros(rows, cols);
    let of = planned(of);
    let step = ((1 << 16) / cols.max(1)).max(1);
    for start in (0..rows).step_by(step) {
        let range = start..(start + step).min(rows);
        for (i, row) in range.clone().zip(of.read_rows(range)?.chunks(cols)) {
            row.iter().enumerate().for_each(|(j, v)| values[(i, j)] = *v as f64);
        }
    }
    Ok(values)
}

/// One of the factors.
#[derive(Debug)]
struct Factor {
    factors: Arc<Factors>,
    which: usize,
}

impl Measure for Factor {
    fn measure(&self, _: &[Expr]) -> Result<Arc<dyn RowMap>> {
        match self.factors.get() {
            (Some(made), _) => Ok(Arc::new(Known(made[self.which].clone()))),
            (None, Some(error)) => Err(error),
            // The other factor has said it.
            (None, None) => Err(Finding::new("", "an update").expected("finite numbers").found("others").not_finite()),
        }
    }
}

/// Values that are known.
#[derive(Debug)]
struct Known(Arc<[f32]>);

impl RowMap for Known {
    fn apply(&self, rows: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        out.copy_from_slice(&self.0[rows.start * row_len..rows.end * row_len]);
    }
}

/// The update of rank `rank` that is closest to `update`.
pub(super) fn cut(update: &LowRank, rank: usize, pending: &mut Pending) -> Result<LowRank> {
    Ok(made(Of::Product(update.clone()), update, rank, pending))
}

/// The update of rank `rank` that is closest to the whole update `delta`; `like` says for which module.
pub(super) fn cut_whole(delta: Expr, like: &LowRank, rank: usize, pending: &mut Pending) -> Result<LowRank> {
    let elems: usize = delta.shape().iter().product();
    if elems > WHOLE {
        return Err(Finding::new(like.a.source_path(), "--method")
            .expected(format_args!("updates of at most {WHOLE} values where they are pruned whole"))
            .found(format_args!("one of {elems}"))
            .hint("the same method without _svd prunes the factors")
            .unsupported());
    }
    Ok(made(Of::Whole(delta, like.transposed), like, rank, pending))
}

fn made(of: Of, like: &LowRank, rank: usize, pending: &mut Pending) -> LowRank {
    let (d_in, d_out) = (like.a.shape()[1], like.b.shape()[0]);
    let factors = Arc::new(Factors { of, rank, made: OnceLock::new() });
    let mut factor =
        |which: usize, shape: [usize; 2]| pending.map(vec![blank(shape)], Factor { factors: factors.clone(), which });
    LowRank { scale: 1.0, a: factor(0, [rank, d_in]), b: factor(1, [d_out, rank]), ..like.clone() }
}

/// Zeros of a shape, of which one row is kept.
fn blank(shape: [usize; 2]) -> Expr {
    let row = Expr::Values { shape: vec![1, shape[1]], values: vec![0.0; shape[1]].into() };
    let picks = (0..shape[0]).map(|_| Pick { of: 0, start: 0, len: 1 }).collect();
    Expr::Rows { shape: shape.to_vec(), of: vec![row], picks }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_cut_to_what_their_product_is_cut_to() {
        let value = |seed: usize, i: usize| ((i * 37 + seed * 11) % 19) as f64 - 9.0;
        let b = DMatrix::from_fn(7, 4, |i, j| value(1, i * 4 + j));
        let a = DMatrix::from_fn(4, 5, |i, j| value(2, i * 5 + j));
        for rank in [1, 2, 4, 6] {
            let whole = cut_matrix(&b * &a, rank);
            let cut = cut_factors(b.clone(), a.clone(), rank);
            let difference = (whole.b * whole.a - cut.b * cut.a).abs().max();
            assert!(difference < 1e-10, "rank {rank}: {difference}");
        }
        let whole = cut_factors(b.clone(), a.clone(), 4);
        assert!((whole.b * whole.a - b * a).abs().max() < 1e-10);
    }
}
