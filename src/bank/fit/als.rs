//! Alternating least squares for the factors of every site and the atoms that all sites share.
//!
//! A site is a linear layer that the bank adapts. The problem is a Tucker decomposition in which many tensors share one
//! core: `B_l C_i A_l` approximates the update of LoRA i at site l. Each of the three is a linear least-squares problem
//! while the other two are fixed.
//!
//! Reference: Kolda and Bader, "Tensor Decompositions and Applications" (SIAM Review 2009), section 4.2.

use rayon::prelude::*;

use super::site::SiteCore;
use crate::linalg::Matrix;

/// Share of a Gram matrix's mean diagonal that is added to the diagonal, so that values which no data determines don't
/// move.
const RIDGE: f64 = 1e-13;
/// Steps of conjugate gradients for the atoms in one round. Few are needed: they start from the last round's answer,
/// and the gauge keeps the system close to the identity.
const ATOM_STEPS: usize = 30;

/// Factors and atoms, in the coordinates of the sites' cores.
#[derive(Clone)]
pub(super) struct Model {
    /// B by site, `[p_l, r]`.
    pub(super) b: Vec<Matrix>,
    /// A by site, `[r, q_l]`.
    pub(super) a: Vec<Matrix>,
    /// Atoms by LoRA, `[r, r]`.
    pub(super) c: Vec<Matrix>,
}

/// When the rounds end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stop {
    /// The largest number of rounds.
    pub(super) rounds: usize,
    /// The relative decrease of the squared error in a round below which rounds end.
    pub(super) fall: f64,
}

/// The squared error, relative to the squared norm, that rounding leaves in an exact fit.
pub(super) const EXACT: f64 = 1e-15;

impl Model {
    /// Improves the model round by round. Returns the squared error of each LoRA and the rounds taken.
    pub(super) fn refine(&mut self, cores: &[SiteCore], norms_sqr: &[f64], stop: Stop) -> (Vec<f64>, usize) {
        let norm_sqr: f64 = norms_sqr.iter().sum();
        let mut errors = norms_sqr.to_vec();
        for round in 1..=stop.rounds {
            self.update_factors(cores);
            self.fix_gauge();
            let before: f64 = errors.iter().sum();
            errors = self.update_atoms(cores, norms_sqr);
            let after: f64 = errors.iter().sum();
            // The first round may hardly lower the error: it rearranges a start that fits nothing yet.
            if after <= EXACT * norm_sqr || round > 1 && before - after <= stop.fall * before {
                return (errors, round);
            }
        }
        (errors, stop.rounds)
    }

    /// Computes the best B, then the best A, of every site for the current atoms.
    pub(super) fn update_factors(&mut self, cores: &[SiteCore]) {
        let atoms = &self.c;
        let sites = self.b.par_iter_mut().zip(&mut self.a).zip(cores);
        sites.for_each(|((b, a), core)| {
            let r = a.nrows();
            let q = &*a * a.transpose();
            let (mut gram, mut seen) = (Matrix::zeros(r, r), Matrix::zeros(r, b.nrows()));
            for (i, c) in atoms.iter().enumerate() {
                gram += c * &q * c.transpose();
                seen += c * (&core.right[i] * a.transpose()).transpose() * core.left[i].transpose();
            }
            *b = solved(gram, seen).transpose();
            let p = b.tr_mul(b);
            let (mut gram, mut seen) = (Matrix::zeros(r, r), Matrix::zeros(r, a.ncols()));
            for (i, c) in atoms.iter().enumerate() {
                gram += c.tr_mul(&p) * c;
                seen += c.tr_mul(&b.tr_mul(&core.left[i])) * &core.right[i];
            }
            *a = solved(gram, seen);
        });
    }

    /// Computes the best atoms for the current factors, by conjugate gradients on the normal equations `sum_l P_l C_i
    /// Q_l = sum_l B_l^T D_{l,i} A_l^T`. Returns the squared error of each LoRA.
    fn update_atoms(&mut self, cores: &[SiteCore], norms_sqr: &[f64]) -> Vec<f64> {
        let grams: Vec<(Matrix, Matrix)> =
            self.b.par_iter().zip(&self.a).map(|(b, a)| (b.tr_mul(b), a * a.transpose())).collect();
        let apply = |c: &Matrix| grams.iter().fold(Matrix::zeros(c.nrows(), c.ncols()), |sum, (p, q)| sum + p * c * q);
        let (b, a) = (&self.b, &self.a);
        let errors = self.c.par_iter_mut().enumerate().map(|(i, c)| {
            let (r, _) = c.shape();
            let seen = cores.iter().enumerate().fold(Matrix::zeros(r, r), |sum, (l, core)| {
                if core.is_empty() { sum } else { sum + core.seen_by(i, &b[l], &a[l]) }
            });
            conjugate_gradients(c, &seen, apply);
            (norms_sqr[i] - 2.0 * seen.dot(c) + apply(c).dot(c)).max(0.0)
        });
        errors.collect()
    }

    /// Transforms the factors so that `sum_l B_l^T B_l` and `sum_l A_l A_l^T` are the identity, after giving B and A of
    /// each site the same norm. The atoms get the inverse transform, so the products stay the same.
    fn fix_gauge(&mut self) {
        for (b, a) in self.b.iter_mut().zip(&mut self.a) {
            let ratio = (a.norm() / b.norm()).sqrt();
            if ratio.is_normal() {
                b.scale_mut(ratio);
                a.unscale_mut(ratio);
            }
        }
        let r = self.a[0].nrows();
        let p = self.b.iter().fold(Matrix::zeros(r, r), |sum, b| sum + b.tr_mul(b));
        let q = self.a.iter().fold(Matrix::zeros(r, r), |sum, a| sum + a * a.transpose());
        let ((p, p_inverse), (q, q_inverse)) = (roots(p), roots(q));
        self.b.iter_mut().for_each(|b| *b *= &p_inverse);
        self.a.iter_mut().for_each(|a| *a = &q_inverse * &*a);
        self.c.iter_mut().for_each(|c| *c = &p * &*c * &q);
    }

    /// The squared error of each LoRA, computed from the products themselves. The errors during the rounds are small
    /// differences of large numbers, which are too imprecise to report if the fit is exact.
    pub(super) fn errors(&self, cores: &[SiteCore]) -> Vec<f64> {
        let error = |(i, c): (usize, &Matrix)| {
            let sites = self.b.iter().zip(&self.a).zip(cores);
            sites.map(|((b, a), core)| (b * c * a - &core.left[i] * &core.right[i]).norm_squared()).sum()
        };
        self.c.par_iter().enumerate().map(error).collect()
    }

    /// Gives B and A of each site the same norm, and the atoms on average the norm of the identity: the scale at which
    /// training starts.
    pub(super) fn balance(&mut self) {
        let r = self.a[0].nrows() as f64;
        let mean = self.c.iter().map(|c| c.norm_squared()).sum::<f64>() / self.c.len() as f64;
        let by = if mean > 0.0 { (r / mean).sqrt() } else { 1.0 };
        self.c.iter_mut().for_each(|c| c.scale_mut(by));
        for (b, a) in self.b.iter_mut().zip(&mut self.a) {
            let (left, right) = (b.norm(), a.norm());
            if left > 0.0 && right > 0.0 {
                b.scale_mut((right / (left * by)).sqrt());
                a.scale_mut((left / (right * by)).sqrt());
            }
        }
    }
}

/// Computes `gram^-1 right`; zeros where `gram` is zero.
fn solved(mut gram: Matrix, right: Matrix) -> Matrix {
    let n = gram.nrows();
    let ridge = RIDGE * gram.trace() / n as f64;
    for i in 0..n {
        gram[(i, i)] += ridge;
    }
    match gram.cholesky() {
        Some(factor) => factor.solve(&right),
        None => Matrix::zeros(right.nrows(), right.ncols()),
    }
}

/// Solves `apply(x) = right`, starting from the given `x`.
fn conjugate_gradients(x: &mut Matrix, right: &Matrix, apply: impl Fn(&Matrix) -> Matrix) {
    let mut residual = right - apply(x);
    let mut direction = residual.clone();
    let enough = 1e-24 * right.norm_squared();
    let mut left = residual.norm_squared();
    for _ in 0..ATOM_STEPS {
        if left <= enough {
            return;
        }
        let image = apply(&direction);
        let curvature = direction.dot(&image);
        if curvature <= 0.0 {
            return;
        }
        let step = left / curvature;
        *x += &direction * step;
        residual -= image * step;
        let now = residual.norm_squared();
        direction = &residual + direction * (now / left);
        left = now;
    }
}

/// The root of a positive semidefinite matrix, and the root's inverse. Eigenvalues that are noise compared with the
/// largest are raised to a floor, so that both roots are finite and inverse to each other.
pub(super) fn roots(m: Matrix) -> (Matrix, Matrix) {
    let n = m.nrows();
    let eigen = m.symmetric_eigen();
    let floor = 1e-12 * eigen.eigenvalues.max();
    if floor <= 0.0 {
        return (Matrix::identity(n, n), Matrix::identity(n, n));
    }
    let with = |f: &dyn Fn(f64) -> f64| {
        let mut scaled = eigen.eigenvectors.clone();
        for (mut column, value) in scaled.column_iter_mut().zip(&eigen.eigenvalues) {
            column.scale_mut(f(value.max(floor).sqrt()));
        }
        scaled * eigen.eigenvectors.transpose()
    };
    (with(&|root| root), with(&|root| 1.0 / root))
}
