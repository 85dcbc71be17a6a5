//! Updates cut to a rank.
//!
//! PEFT takes the singular values of the whole `[d_out, d_in]` update. Here an update that is given by its
//! factors is cut by these: the singular values of `B A` are those of the small product of the triangular
//! parts of B and of A's transpose. Signs of singular vectors are arbitrary, so factors are not PEFT's,
//! their product is.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::lazy::{Measure, Pending};
use super::statistics::planned;
use crate::adapter::peft::LowRank;
use crate::error::{Finding, Result};
use crate::linalg::{Matrix, Term, from_rows, svd, svd_of_products, to_rows};
use crate::plan::{Expr, Pick, RowMap};

/// Elements of a whole update at most, in f64 while its singular values are taken.
const WHOLE: usize = 16 << 20;

/// What is cut, and what it is cut to, once that is known.
#[derive(Debug)]
pub(super) struct Cut {
    of: Of,
    rank: usize,
    made: OnceLock<Option<Made>>,
}

#[derive(Debug)]
enum Of {
    Product(LowRank),
    /// The values, and whether they are kept transposed.
    Whole(Expr, bool),
}

#[derive(Debug)]
struct Made {
    /// A, and B scaled by the singular values, as PEFT has them.
    factors: [Arc<[f32]>; 2],
    error: f64,
}

impl Cut {
    /// How far the cut update is from the whole one, for the length of the whole one (Frobenius norms).
    pub(super) fn error(&self) -> Result<f64> {
        Ok(self.get()?.error)
    }

    fn get(&self) -> Result<&Made> {
        let mut error = None;
        let made = self.made.get_or_init(|| match self.make() {
            Ok(made) => Some(made),
            Err(e) => {
                error = Some(e);
                None
            }
        });
        // Who asks after the first is told less.
        let other = || Finding::new("", "an update").expected("finite numbers").found("others").not_finite();
        made.as_ref().ok_or_else(|| error.unwrap_or_else(other))
    }

    fn make(&self) -> Result<Made> {
        let mut svd = match &self.of {
            Of::Product(update) => {
                let (left, right) = (matrix(&update.b)?, matrix(&update.a)?);
                svd_of_products(&[Term { scale: f64::from(update.scale), left: &left, right: &right }])
            }
            Of::Whole(delta, transposed) => {
                let delta = matrix(delta)?;
                svd(if *transposed { delta.transpose() } else { delta })
            }
        };
        let whole = svd.norm_sqr();
        let lost: f64 = svd.s.iter().skip(self.rank).map(|s| s * s).sum();
        svd.truncate(self.rank);
        let mut b = svd.u;
        svd.s.iter().enumerate().for_each(|(i, s)| b.column_mut(i).scale_mut(*s));
        // Where there are fewer singular values than the rank, zeros are left.
        let (a, b) = (svd.vt.resize_vertically(self.rank, 0.0), b.resize_horizontally(self.rank, 0.0));
        let error = if whole > 0.0 { (lost / whole).sqrt() } else { 0.0 };
        Ok(Made { factors: [to_rows(&a).into(), to_rows(&b).into()], error })
    }
}

/// All values of a matrix.
fn matrix(of: &Expr) -> Result<Matrix> {
    let shape = of.shape();
    Ok(from_rows(shape[0], shape[1], &planned(of).read()?))
}

/// One of the factors.
#[derive(Debug)]
struct Factor {
    cut: Arc<Cut>,
    which: usize,
}

impl Measure for Factor {
    fn measure(&self, _: &[Expr]) -> Result<Arc<dyn RowMap>> {
        Ok(Arc::new(Known(self.cut.get()?.factors[self.which].clone())))
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
pub(super) fn cut(update: &LowRank, rank: usize, pending: &mut Pending) -> (LowRank, Arc<Cut>) {
    made(Of::Product(update.clone()), update, rank, pending)
}

/// The update of rank `rank` that is closest to the whole update `delta`; `like` says for which module.
pub(super) fn cut_whole(
    delta: Expr,
    like: &LowRank,
    rank: usize,
    pending: &mut Pending,
) -> Result<(LowRank, Arc<Cut>)> {
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

fn made(of: Of, like: &LowRank, rank: usize, pending: &mut Pending) -> (LowRank, Arc<Cut>) {
    let (d_in, d_out) = (like.a.shape()[1], like.b.shape()[0]);
    let cut = Arc::new(Cut { of, rank, made: OnceLock::new() });
    let mut factor =
        |which: usize, shape: [usize; 2]| pending.map(vec![blank(shape)], Factor { cut: cut.clone(), which });
    let update = LowRank { scale: 1.0, a: factor(0, [rank, d_in]), b: factor(1, [d_out, rank]), ..like.clone() };
    (update, cut)
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
        let values = |seed: usize, shape: [usize; 2]| {
            let value = |i: usize| ((i * i * 7 + i * 13 + seed * 11) % 23) as f32 - 9.0;
            Expr::Values { shape: shape.to_vec(), values: (0..shape[0] * shape[1]).map(value).collect() }
        };
        for transposed in [false, true] {
            let (a, b) = (values(2, [4, 5]), values(1, [7, 4]));
            let update = LowRank { scale: 0.5, a, b, transposed, rounded: None };
            let exact = planned(&update.delta()).read().unwrap();
            let length = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            for rank in [1, 2, 4, 6] {
                let mut pending = Pending::default();
                let by_factors = cut(&update, rank, &mut pending);
                let whole = cut_whole(update.delta(), &update, rank, &mut pending).unwrap();
                for (made, cut) in [by_factors, whole] {
                    let found = planned(&made.delta()).read().unwrap();
                    let lost: Vec<f32> = found.iter().zip(&exact).map(|(found, exact)| found - exact).collect();
                    let error = length(&lost) / length(&exact);
                    assert!((cut.error().unwrap() - error).abs() < 1e-6, "rank {rank}: {error}");
                    assert_eq!(error < 1e-6, rank >= 4, "rank {rank}: {error}");
                }
            }
        }
    }
}
