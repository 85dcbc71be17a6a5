//! Truncating updates to a rank.
//!
//! PEFT decomposes the whole `[d_out, d_in]` update. An update that is given by its factors needs less: the singular
//! values of `B A` are those of the small product of the triangular parts of B and of A's transpose. A pruned update
//! has no small factors. It is decomposed as in PEFT if it is small, and otherwise by a randomized range finder that
//! never holds it in memory whole. Signs of singular vectors are arbitrary: the factors differ from PEFT's, their
//! product doesn't.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::lazy::{Measure, Pending};
use super::statistics::{elems, planned};
use crate::adapter::peft::LowRank;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::linalg::{
    Matrix, Sketch, Svd, Term, from_rows, residual_norm_sqr, svd, svd_of_products, to_rows, truncated_svd,
};
use crate::merge::Truncation;
use crate::plan::{Expr, Pick, RowMap, TensorRef};
use crate::quant;

/// The largest pruned update, in values, that is decomposed completely. That takes about a second; the work is cubic
/// in the smaller dimension.
const WHOLE: u64 = 1 << 19;

/// An update to be truncated, and the result once it is computed.
#[derive(Debug)]
pub(super) struct Cut {
    of: CutOf,
    rank: usize,
    /// The shape of the weight in the base.
    shape: [usize; 2],
    made: OnceLock<Option<CutFactors>>,
}

#[derive(Debug)]
enum CutOf {
    Product(LowRank),
    /// The values, and whether the base keeps the weight transposed.
    Whole(Expr, bool),
}

#[derive(Debug)]
struct CutFactors {
    /// A, and B times the singular values, as in PEFT.
    factors: [TensorRef; 2],
    norm_sqr: f64,
    lost_sqr: f64,
}

impl Cut {
    /// The error of the update of the weight called `name`.
    pub(super) fn truncation(&self, name: &str) -> Result<Truncation> {
        let &CutFactors { norm_sqr, lost_sqr, .. } = self.get()?;
        let lost = if norm_sqr > 0.0 { lost_sqr / norm_sqr } else { 0.0 };
        Ok(Truncation {
            module: name.strip_suffix(".weight").unwrap_or(name).to_owned(),
            shape: self.shape.to_vec(),
            rank: self.rank,
            energy: 1.0 - lost,
            relative_error: lost.sqrt(),
            norm_sqr,
        })
    }

    fn get(&self) -> Result<&CutFactors> {
        let mut error = None;
        let made = self.made.get_or_init(|| match self.make() {
            Ok(made) => Some(made),
            Err(e) => {
                error = Some(e);
                None
            }
        });
        // Only the first caller gets the whole error.
        let other = || Finding::new("", "an update").expected("finite numbers").found("others").not_finite();
        made.as_ref().ok_or_else(|| error.unwrap_or_else(other))
    }

    fn make(&self) -> Result<CutFactors> {
        let (svd, norm_sqr, lost_sqr) = match &self.of {
            CutOf::Product(update) => {
                let (left, right) = (matrix(&update.b)?, matrix(&update.a)?);
                self.first(svd_of_products(&[Term { scale: update.scale, left: &left, right: &right }]))
            }
            CutOf::Whole(delta, transposed) => {
                let (svd, norm_sqr, lost_sqr) = match elems(delta) {
                    0..=WHOLE => self.first(svd(matrix(delta)?)),
                    _ => alone(|| self.sketched(delta))?,
                };
                let turned = |svd: Svd| Svd { u: svd.vt.transpose(), s: svd.s, vt: svd.u.transpose() };
                (if *transposed { turned(svd) } else { svd }, norm_sqr, lost_sqr)
            }
        };
        let mut b = svd.u;
        svd.s.iter().enumerate().for_each(|(i, s)| b.column_mut(i).scale_mut(*s));
        // With fewer singular values than the rank the rest stays zero.
        let (a, b) = (svd.vt.resize_vertically(self.rank, 0.0), b.resize_horizontally(self.rank, 0.0));
        let aside = |m: &Matrix| TensorRef::spill(vec![m.nrows(), m.ncols()], &to_rows(m));
        Ok(CutFactors { factors: [aside(&a)?, aside(&b)?], norm_sqr, lost_sqr })
    }

    /// The first singular values, the squared norm of the update, and that of the part that is dropped.
    fn first(&self, mut svd: Svd) -> (Svd, f64, f64) {
        let norm_sqr = svd.norm_sqr();
        let lost_sqr = svd.s.iter().skip(self.rank).map(|s| s * s).sum();
        svd.truncate(self.rank);
        (svd, norm_sqr, lost_sqr)
    }

    /// The same for a large update; the error is measured.
    fn sketched(&self, delta: &Expr) -> Result<(Svd, f64, f64)> {
        let delta = planned(delta);
        // Pruned updates are mostly noise, so their singular values fall slowly.
        let sketch = Sketch { oversampling: self.rank.max(10), power_iterations: 4, seed: 0 };
        let (svd, norm_sqr) = truncated_svd(&delta, self.rank, sketch)?;
        let (b, a) = svd.balanced();
        let lost_sqr = residual_norm_sqr(&delta, &b, &a)?;
        Ok((svd, norm_sqr, lost_sqr))
    }
}

/// Runs `work`, which uses rayon, in a thread and a pool of its own. On a shared pool rayon could pick up work that
/// waits for this very result.
fn alone<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let work = || {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
            pool.expect("this thread is in no pool").install(work)
        };
        scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
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
        Ok(Arc::new(KnownRows(self.cut.get()?.factors[self.which].clone())))
    }
}

/// Values that are computed already.
#[derive(Debug)]
struct KnownRows(TensorRef);

impl RowMap for KnownRows {
    fn apply(&self, rows: Range<usize>, _: usize, _: &[Vec<f32>], out: &mut [f32]) {
        quant::decode(DType::F32, &self.0.rows(rows), out);
    }
}

/// The closest update of rank `rank`.
pub(super) fn cut(update: &LowRank, rank: usize, pending: &mut Pending) -> (LowRank, Arc<Cut>) {
    made(CutOf::Product(update.clone()), update, rank, pending)
}

/// The closest update of rank `rank` to the whole update `delta`, which has the weight's shape in the base; `like` is
/// an update of the same module.
pub(super) fn cut_whole(delta: Expr, like: &LowRank, rank: usize, pending: &mut Pending) -> (LowRank, Arc<Cut>) {
    made(CutOf::Whole(delta, like.layout.is_transposed()), like, rank, pending)
}

fn made(of: CutOf, like: &LowRank, rank: usize, pending: &mut Pending) -> (LowRank, Arc<Cut>) {
    let (d_in, d_out) = (like.a.shape()[1], like.b.shape()[0]);
    let shape = if like.layout.is_transposed() { [d_in, d_out] } else { [d_out, d_in] };
    let cut = Arc::new(Cut { of, rank, shape, made: OnceLock::new() });
    let mut factor =
        |which: usize, shape: [usize; 2]| pending.map(vec![blank(shape)], Factor { cut: cut.clone(), which });
    let update =
        LowRank { scale: 1.0, alpha: None, a: factor(0, [rank, d_in]), b: factor(1, [d_out, rank]), ..like.clone() };
    (update, cut)
}

/// Zeros of a shape; one row is kept in memory.
fn blank(shape: [usize; 2]) -> Expr {
    let row = Expr::Values { shape: vec![1, shape[1]], values: vec![0.0; shape[1]].into() };
    let picks = (0..shape[0]).map(|_| Pick { of: 0, start: 0, len: 1 }).collect();
    Expr::Rows { shape: shape.to_vec(), of: vec![row], picks }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::peft::WeightLayout;

    #[test]
    fn factors_are_cut_to_what_their_product_is_cut_to() {
        let values = |seed: usize, shape: [usize; 2]| {
            let value = |i: usize| ((i * i * 7 + i * 13 + seed * 11) % 23) as f32 - 9.0;
            Expr::Values { shape: shape.to_vec(), values: (0..shape[0] * shape[1]).map(value).collect() }
        };
        for transposed in [false, true] {
            let (a, b) = (values(2, [4, 5]), values(1, [7, 4]));
            let update =
                LowRank { scale: 0.5, alpha: None, a, b, layout: WeightLayout::of_linear(transposed), rounded: None };
            let exact = planned(&update.delta()).read().unwrap();
            let length = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            for rank in [1, 2, 4, 6] {
                let mut pending = Pending::default();
                let by_factors = cut(&update, rank, &mut pending);
                let whole = cut_whole(update.delta(), &update, rank, &mut pending);
                for (made, cut) in [by_factors, whole] {
                    let found = planned(&made.delta()).read().unwrap();
                    let lost: Vec<f32> = found.iter().zip(&exact).map(|(found, exact)| found - exact).collect();
                    let error = length(&lost) / length(&exact);
                    let lost = cut.truncation("w.weight").unwrap().relative_error;
                    assert!((lost - error).abs() < 1e-6, "rank {rank}: {error}");
                    assert_eq!(error < 1e-6, rank >= 4, "rank {rank}: {error}");
                }
            }
        }
    }

    #[test]
    fn large_updates_are_cut_without_being_whole_and_their_loss_is_measured() {
        let (rows, cols, rank) = (900usize, 640usize, 3usize);
        assert!((rows * cols) as u64 > WHOLE);
        // Rank 3 plus small noise.
        let value = |i: usize| {
            let (row, col) = (i / cols, i % cols);
            let waves =
                (1..=rank).map(|k| ((row * k) as f32 * 0.37).sin() * ((col * k) as f32 * 0.23).cos() / k as f32);
            waves.sum::<f32>() + 0.02 * ((i * 7919 % 101) as f32 / 50.0 - 1.0)
        };
        let values: Arc<[f32]> = (0..rows * cols).map(value).collect();
        let delta = Expr::Values { shape: vec![rows, cols], values: values.clone() };
        for transposed in [false, true] {
            let (d_out, d_in) = if transposed { (cols, rows) } else { (rows, cols) };
            let (a, b) = (blank([1, d_in]), blank([d_out, 1]));
            let like =
                LowRank { scale: 1.0, alpha: None, a, b, layout: WeightLayout::of_linear(transposed), rounded: None };
            let mut pending = Pending::default();
            let (made, cut) = cut_whole(delta.clone(), &like, rank, &mut pending);
            // Several threads ask for the factors at once, and none waits for itself.
            let found = planned(&made.delta()).read().unwrap();
            let square = |v: f32| f64::from(v).powi(2);
            let lost: f64 = found.iter().zip(&*values).map(|(found, exact)| square(found - exact)).sum();
            let relative = (lost / values.iter().map(|v| square(*v)).sum::<f64>()).sqrt();
            let truncation = cut.truncation("w.weight").unwrap();
            assert_eq!((truncation.shape, truncation.rank), (vec![rows, cols], rank));
            assert!((truncation.relative_error / relative - 1.0).abs() < 1e-3, "{relative}");
            assert!((0.01..0.05).contains(&relative), "the waves are kept: {relative}");
        }
    }
}
