//! Where the alternating least squares start: from random factors they stall.
//!
//! Two starts, each exact where its assumption holds. [`shared`]: the LoRAs were made with one basis a
//! site, so that the updates seen in it, `M_{l,i} = X_l C_i Y_l`, differ from site to site by changes of
//! basis alone. [`separate`]: they have nothing in common, and each gets rows and columns of its own.

use rayon::prelude::*;

use super::als::{Model, roots};
use super::site::SiteCore;
use crate::linalg::{Matrix, Random, Term, svd_of_products};

/// Steps of the search for a change of basis.
const STEPS: usize = 400;
/// Where the search ends: the residual relative to the value.
const SETTLED: f64 = 1e-13;

/// Factors from the spaces that all updates of a site share, and atoms as the best conditioned site sees
/// them. `X_l C_i Y_l = M_{l,i}` is bilinear, but `X_l^-1 M_{l,i} = C_i Y_l` is linear and homogeneous in
/// (X_l^-1, Y_l): the changes of basis are its nearest to a null vector.
pub(super) fn shared(cores: &[SiteCore], rank: usize) -> Model {
    let seen: Vec<Seen> = cores.par_iter().map(|core| Seen::new(core, rank)).collect();
    let best = (0..seen.len()).max_by(|i, j| seen[*i].condition.total_cmp(&seen[*j].condition)).unwrap_or(0);
    let atoms = seen[best].m.clone();
    // Both sides whitened: the least of |Z M_l - M_best Y| is then the largest of <Z, T(Y)>.
    let columns = atoms.iter().fold(Matrix::zeros(rank, rank), |sum, m| sum + m.tr_mul(m));
    let (_, whiten_columns) = roots(columns);
    let reference: Vec<Matrix> = atoms.iter().map(|m| m * &whiten_columns).collect();
    let a = seen.par_iter().enumerate().map(|(l, site)| {
        if l == best || cores[l].is_empty() {
            return site.right.clone();
        }
        let rows = site.m.iter().fold(Matrix::zeros(rank, rank), |sum, m| sum + m * m.transpose());
        let (_, whiten_rows) = roots(rows);
        let whitened: Vec<Matrix> = site.m.iter().map(|m| &whiten_rows * m).collect();
        let y = &whiten_columns * change_of_basis(&reference, &whitened);
        // Its scale is free; at this one every site's A is as large.
        let norm = y.norm();
        y * ((rank as f64).sqrt() / norm) * &site.right
    });
    let a: Vec<Matrix> = a.collect();
    let b = seen.into_iter().map(|site| site.left).collect();
    Model { b, a, c: atoms }
}

/// A site's updates in the `rank` directions in which they are largest together.
struct Seen {
    /// `[p, rank]`; columns beyond what there is are zero.
    left: Matrix,
    /// `[rank, q]`.
    right: Matrix,
    /// By LoRA, `[rank, rank]`.
    m: Vec<Matrix>,
    /// The smallest of the directions' energies by the largest, on the worse side.
    condition: f64,
}

impl Seen {
    fn new(core: &SiteCore, rank: usize) -> Self {
        let pairs = || core.left.iter().zip(&core.right);
        let (p, q) = (core.left[0].nrows(), core.right[0].ncols());
        let columns = pairs().fold(Matrix::zeros(p, p), |sum, (l, r)| sum + l * (r * r.transpose()) * l.transpose());
        let rows = pairs().fold(Matrix::zeros(q, q), |sum, (l, r)| sum + r.tr_mul(&(l.tr_mul(l) * r)));
        let ((left, left_condition), (right, right_condition)) = (leading(columns, rank), leading(rows, rank));
        let right = right.transpose();
        let m = (0..core.left.len()).map(|i| core.seen_by(i, &left, &right)).collect();
        Self { left, right, m, condition: left_condition.min(right_condition) }
    }
}

/// The `count` eigenvectors of the largest eigenvalues, zeros where there are fewer; the last of those
/// eigenvalues by the first.
fn leading(m: Matrix, count: usize) -> (Matrix, f64) {
    let n = m.nrows();
    let mut vectors = Matrix::zeros(n, count);
    if n == 0 {
        return (vectors, 0.0);
    }
    let eigen = m.symmetric_eigen();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|i, j| eigen.eigenvalues[*j].total_cmp(&eigen.eigenvalues[*i]));
    for (to, from) in order.iter().take(count).enumerate() {
        vectors.set_column(to, &eigen.eigenvectors.column(*from));
    }
    let largest = eigen.eigenvalues[order[0]];
    let last = order.get(count - 1).map_or(0.0, |i| eigen.eigenvalues[*i]);
    (vectors, if largest > 0.0 { (last / largest).max(0.0) } else { 0.0 })
}

/// The Y of the largest `<Z, T(Y)>` with `T(Y) = sum_i reference_i Y site_i^T`, Z and Y of norm 1: the
/// first right singular vector of T. Where several are as good (LoRAs in separate subspaces, or two
/// alone) it is a random mixture of them, which is invertible where any is.
///
/// Reference: Knyazev, "Toward the Optimal Preconditioned Eigensolver" (SIAM J. Sci. Comput. 2001): the
/// best in the span of the vector, its residual and its last step, without a preconditioner.
fn change_of_basis(reference: &[Matrix], site: &[Matrix]) -> Matrix {
    let r = reference[0].nrows();
    let apply = |y: &Matrix| {
        let pairs = || reference.iter().zip(site);
        let z = pairs().fold(Matrix::zeros(r, r), |sum, (m, s)| sum + m * y * s.transpose());
        pairs().fold(Matrix::zeros(r, r), |sum, (m, s)| sum + m.tr_mul(&z) * s)
    };
    let mut random = Random::new(0);
    let mut y = Matrix::from_fn(r, r, |_, _| f64::from(random.normal())).normalize();
    let mut image = apply(&y);
    let mut step: Option<Matrix> = None;
    for _ in 0..STEPS {
        let value = y.dot(&image);
        let residual = &image - &y * value;
        if residual.norm() <= SETTLED * value.abs() {
            break;
        }
        let mut basis = vec![y];
        let mut images = vec![image];
        for mut new in [Some(residual), step].into_iter().flatten() {
            let norm = new.norm();
            // Twice is enough (Kahan): once leaves what cancelled.
            for _ in 0..2 {
                basis.iter().for_each(|b| new -= b * b.dot(&new));
            }
            if new.norm() > 1e-10 * norm {
                let new = new.normalize();
                images.push(apply(&new));
                basis.push(new);
            }
        }
        let n = basis.len();
        let small = Matrix::from_fn(n, n, |i, j| basis[i.min(j)].dot(&images[i.max(j)]));
        let eigen = small.symmetric_eigen();
        let weights = eigen.eigenvectors.column(eigen.eigenvalues.imax());
        let mix = |of: &[Matrix], from: usize| (from..n).fold(Matrix::zeros(r, r), |sum, k| sum + &of[k] * weights[k]);
        y = mix(&basis, 0);
        image = mix(&images, 0);
        let norm = y.norm();
        y.unscale_mut(norm);
        image.unscale_mut(norm);
        step = Some(mix(&basis, 1));
    }
    y
}

/// Rows and columns of its own for each LoRA, as many as its updates call for: the `rank` largest singular
/// values, those of one place in a LoRA's order taken together over all sites. Exact where `rank` is the
/// sum of all ranks.
pub(super) fn separate(cores: &[SiteCore], rank: usize) -> Model {
    let count = cores[0].left.len();
    let parts = cores.par_iter().map(|core| (0..count).map(|i| split(core, i)).collect::<Vec<_>>());
    let parts: Vec<Vec<(Matrix, Matrix)>> = parts.collect();
    let mut energies: Vec<(f64, usize)> = Vec::new();
    for i in 0..count {
        let places = parts.iter().map(|site| site[i].0.ncols()).max().unwrap_or(0);
        let at = |site: &Vec<(Matrix, Matrix)>, k: usize| {
            let (left, right) = &site[i];
            if k < left.ncols() { left.column(k).norm_squared() * right.row(k).norm_squared() } else { 0.0 }
        };
        energies.extend((0..places).map(|k| (parts.iter().map(|site| at(site, k)).sum(), i)));
    }
    energies.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut widths = vec![0; count];
    energies.iter().take(rank).for_each(|(_, i)| widths[*i] += 1);

    let starts: Vec<usize> = widths.iter().scan(0, |sum, w| Some(std::mem::replace(sum, *sum + w))).collect();
    let atom = |i: usize| {
        let own = starts[i]..starts[i] + widths[i];
        Matrix::from_fn(rank, rank, |row, column| if row == column && own.contains(&row) { 1.0 } else { 0.0 })
    };
    let c = (0..count).map(atom).collect();
    let (mut b, mut a) = (Vec::new(), Vec::new());
    for (core, site) in cores.iter().zip(&parts) {
        let (mut left, mut right) =
            (Matrix::zeros(core.left[0].nrows(), rank), Matrix::zeros(rank, core.right[0].ncols()));
        for (i, (l, r)) in site.iter().enumerate() {
            let width = widths[i].min(l.ncols());
            left.columns_mut(starts[i], width).copy_from(&l.columns(0, width));
            right.rows_mut(starts[i], width).copy_from(&r.rows(0, width));
        }
        b.push(left);
        a.push(right);
    }
    Model { b, a, c }
}

/// `D_i` of a site as the product of two factors whose columns and rows are its singular vectors, the
/// largest first.
fn split(core: &SiteCore, i: usize) -> (Matrix, Matrix) {
    let (left, right) = (&core.left[i], &core.right[i]);
    if left.is_empty() || right.is_empty() {
        return (Matrix::zeros(left.nrows(), 0), Matrix::zeros(0, right.ncols()));
    }
    let svd = svd_of_products(&[Term { scale: 1.0, left, right }]);
    let (mut left, mut right) = (svd.u, svd.vt);
    for (k, s) in svd.s.iter().enumerate() {
        left.column_mut(k).scale_mut(s.sqrt());
        right.row_mut(k).scale_mut(s.sqrt());
    }
    (left, right)
}
