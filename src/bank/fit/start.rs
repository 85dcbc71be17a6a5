//! Starting points of the alternating least squares, which stall from random factors.
//!
//! There are two starts, each exact if its assumption holds. [`shared`]: the LoRAs were made with one basis per site,
//! so that the updates in that basis, `M_{l,i} = X_l C_i Y_l`, differ between sites only by changes of basis.
//! [`separate`]: the LoRAs have nothing in common, and each gets its own rows and columns.

use rayon::prelude::*;

use super::als::{Model, roots};
use super::site::SiteCore;
use crate::linalg::{Matrix, Random, Term, svd_of_products};

/// The most steps of the search for a change of basis.
const STEPS: usize = 400;
/// The search ends when the residual, relative to the value, falls below this.
const SETTLED: f64 = 1e-13;

/// Factors from the spaces that all updates of a site share, and atoms from the best conditioned site. `X_l C_i Y_l =
/// M_{l,i}` is bilinear, but `X_l^-1 M_{l,i} = C_i Y_l` is linear and homogeneous in (X_l^-1, Y_l): the changes of
/// basis are the vector closest to its null space.
pub(super) fn shared(cores: &[SiteCore], rank: usize) -> Model {
    let seen: Vec<Seen> = cores.par_iter().map(|core| Seen::new(core, rank)).collect();
    let best = (0..seen.len()).max_by(|i, j| seen[*i].condition.total_cmp(&seen[*j].condition)).unwrap_or(0);
    let atoms = seen[best].m.clone();
    // With both sides whitened, minimizing |Z M_l - M_best Y| means maximizing <Z, T(Y)>.
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
        // The scale of y is free; this one makes A equally large at every site.
        let norm = y.norm();
        y * ((rank as f64).sqrt() / norm) * &site.right
    });
    let a: Vec<Matrix> = a.collect();
    let b = seen.into_iter().map(|site| site.left).collect();
    Model { b, a, c: atoms }
}

/// A site's updates, projected on the `rank` directions in which they are largest together.
struct Seen {
    /// `[p, rank]`; surplus columns are zero.
    left: Matrix,
    /// `[rank, q]`.
    right: Matrix,
    /// By LoRA, `[rank, rank]`.
    m: Vec<Matrix>,
    /// The smallest energy of a direction divided by the largest, for the worse of the two sides.
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

/// The `count` eigenvectors with the largest eigenvalues, padded with zeros if there are fewer, and the last of these
/// eigenvalues divided by the first.
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

/// The Y that maximizes `<Z, T(Y)>`, where `T(Y) = sum_i reference_i Y site_i^T` and Z and Y have norm 1: the first
/// right singular vector of T. Where several are equally good (LoRAs in separate subspaces, or only two LoRAs), it is a
/// random mixture of them, which is invertible if any of them is.
///
/// Reference: Knyazev, "Toward the Optimal Preconditioned Eigensolver" (SIAM J. Sci. Comput. 2001), without a
/// preconditioner: each step takes the best vector in the span of the current vector, its residual and its last step.
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
            // Orthogonalizing twice is enough (Kahan); once leaves an error where most of the vector cancels.
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

/// Gives each LoRA its own rows and columns, `rank` in total. They are divided by singular values: the k-th largest of
/// a LoRA is summed over all sites, and the largest sums get a direction. Exact if `rank` is the sum of all ranks.
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

/// `D_i` of a site as the product of two factors. Their columns and rows are scaled singular vectors, the largest
/// first.
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
