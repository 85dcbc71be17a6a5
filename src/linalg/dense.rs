//! Factorizations of matrices in memory, and truncation.

use super::{Matrix, Random, to_rows};

/// The most sweeps of Jacobi rotations. Convergence is quadratic, so ten are rarely needed.
const SWEEPS: usize = 40;

/// A singular value decomposition `u diag(s) vt`, possibly truncated.
#[derive(Debug, Clone, PartialEq)]
pub struct Svd {
    /// Orthonormal columns, `[rows, k]`.
    pub u: Matrix,
    /// Singular values, largest first, all above rounding noise. There are `k`: the numerical rank or fewer.
    pub s: Vec<f64>,
    /// Orthonormal rows, `[k, cols]`.
    pub vt: Matrix,
}

impl Svd {
    /// The number of singular values.
    pub fn rank(&self) -> usize {
        self.s.len()
    }

    /// Keeps only the `rank` largest singular values.
    pub fn truncate(&mut self, rank: usize) {
        if rank < self.rank() {
            self.s.truncate(rank);
            self.u = self.u.columns(0, rank).into_owned();
            self.vt = self.vt.rows(0, rank).into_owned();
        }
    }

    /// The squared Frobenius norm: the sum of squared singular values.
    pub fn norm_sqr(&self) -> f64 {
        self.s.iter().map(|s| s * s).sum()
    }

    /// The smallest rank whose singular values hold the share `energy` (0 to 1) of `norm_sqr`, which can be the squared
    /// norm before a truncation. If no rank suffices, it is the number of singular values.
    pub fn rank_for_energy(&self, energy: f64, norm_sqr: f64) -> usize {
        let mut kept = 0.0;
        let enough = self.s.iter().position(|s| {
            kept += s * s;
            kept >= energy * norm_sqr
        });
        enough.map_or(self.rank(), |last| last + 1)
    }

    /// The factors of a LoRA of scale 1: `B = u sqrt(s)`, `[rows, k]`, and `A = sqrt(s) vt`, `[k, cols]`, both row by
    /// row. The even split means that neither overflows a narrow type before the other.
    pub fn balanced(&self) -> (Vec<f32>, Vec<f32>) {
        let (mut b, mut a) = (self.u.clone(), self.vt.clone());
        for (i, s) in self.s.iter().enumerate() {
            b.column_mut(i).scale_mut(s.sqrt());
            a.row_mut(i).scale_mut(s.sqrt());
        }
        (to_rows(&b), to_rows(&a))
    }

    /// The product `u diag(s) vt`: the decomposed matrix, or its approximation after truncation.
    pub fn product(&self) -> Matrix {
        let mut u = self.u.clone();
        for (i, s) in self.s.iter().enumerate() {
            u.column_mut(i).scale_mut(*s);
        }
        u * &self.vt
    }
}

/// The decomposition `m = q r`: `q` has orthonormal columns, `[rows, k]`, `r` is upper triangular, `[k, cols]`; `k` is
/// the smaller dimension. It uses Householder reflections, so `q` is orthonormal even for a singular `m`.
pub fn thin_qr(m: Matrix) -> (Matrix, Matrix) {
    m.qr().unpack()
}

/// A random orthogonal matrix, `[n, n]`: Q of the QR decomposition of a matrix of independent normal numbers. The signs of
/// its columns are those that make every orthogonal matrix equally likely.
pub(crate) fn random_orthogonal(n: usize, random: &mut Random) -> Matrix {
    let (mut q, r) = thin_qr(Matrix::from_fn(n, n, |_, _| f64::from(random.normal())));
    for (mut column, diagonal) in q.column_iter_mut().zip(r.diagonal().iter()) {
        if *diagonal < 0.0 {
            column.neg_mut();
        }
    }
    q
}

/// The full singular value decomposition of `m`. The time is cubic in the smaller dimension.
///
/// It uses one-sided Jacobi rotations on the triangular factor. They are slower than bidiagonalization, but simple, and
/// small singular values come out as precise as large ones.
///
/// # Reference
/// Demmel and Veselic, "Jacobi's method is more accurate than QR" (SIAM J. Matrix Anal. Appl. 1992).
pub fn svd(m: Matrix) -> Svd {
    let (rows, cols) = m.shape();
    if rows == 0 || cols == 0 {
        return Svd { u: Matrix::zeros(rows, 0), s: Vec::new(), vt: Matrix::zeros(0, cols) };
    }
    if rows < cols {
        let Svd { u, s, vt } = svd(m.transpose());
        return Svd { u: vt.transpose(), s, vt: u.transpose() };
    }
    // Decompose the triangle's transpose: its columns are close to orthogonal already.
    let (q, r) = thin_qr(m);
    let (v, s, w) = jacobi(r.transpose());
    Svd { u: q * w, s, vt: v.transpose() }
}

/// Decomposes a square matrix: `m = left diag(s) right^T`.
fn jacobi(mut m: Matrix) -> (Matrix, Vec<f64>, Matrix) {
    let n = m.ncols();
    let mut right = Matrix::identity(n, n);
    let tiny = f64::EPSILON * m.norm() * f64::EPSILON;
    for _ in 0..SWEEPS {
        let mut rotated = false;
        for p in 0..n {
            for q in p + 1..n {
                let (alpha, beta) = (m.column(p).norm_squared(), m.column(q).norm_squared());
                let gamma = m.column(p).dot(&m.column(q));
                if gamma.abs() <= f64::EPSILON * (alpha * beta).sqrt() || gamma.abs() <= tiny * tiny {
                    continue;
                }
                rotated = true;
                let zeta = (beta - alpha) / (2.0 * gamma);
                let t = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                rotate(&mut m, p, q, c, c * t);
                rotate(&mut right, p, q, c, c * t);
            }
        }
        if !rotated {
            break;
        }
    }
    let norms: Vec<f64> = m.column_iter().map(|column| column.norm()).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| norms[*b].total_cmp(&norms[*a]));
    let noise = norms[order[0]] * f64::EPSILON * n as f64;
    order.retain(|i| norms[*i] > noise);
    let mut left = m.select_columns(&order);
    for (mut column, i) in left.column_iter_mut().zip(&order) {
        column.unscale_mut(norms[*i]);
    }
    let s = order.iter().map(|i| norms[*i]).collect();
    (left, s, right.select_columns(&order))
}

/// Rotates columns `p` and `q`, `p < q`, by the angle with cosine `c` and sine `s`.
fn rotate(m: &mut Matrix, p: usize, q: usize, c: f64, s: f64) {
    let rows = m.nrows();
    let (before, after) = m.as_mut_slice().split_at_mut(q * rows);
    for (a, b) in before[p * rows..][..rows].iter_mut().zip(&mut after[..rows]) {
        (*a, *b) = (c * *a - s * *b, s * *a + c * *b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(rows: usize, cols: usize, seed: u64) -> Matrix {
        let mut random = Random::new(seed);
        Matrix::from_fn(rows, cols, |_, _| f64::from(random.normal()))
    }

    fn assert_orthonormal(columns: &Matrix) {
        let gram = columns.tr_mul(columns);
        assert!((gram - Matrix::identity(columns.ncols(), columns.ncols())).norm() < 1e-12);
    }

    #[test]
    fn a_decomposition_multiplies_back_and_its_vectors_are_orthonormal() {
        for (rows, cols) in [(7, 7), (20, 5), (5, 20), (1, 4), (4, 1)] {
            let m = random(rows, cols, 3);
            let svd = svd(m.clone());
            assert_eq!(svd.rank(), rows.min(cols));
            assert!((svd.product() - &m).norm() < 1e-13 * m.norm(), "{rows} x {cols}");
            assert_orthonormal(&svd.u);
            assert_orthonormal(&svd.vt.transpose());
            assert!(svd.s.is_sorted_by(|a, b| a >= b));
        }
    }

    #[test]
    fn random_orthogonal_matrices_are_orthogonal_and_differ() {
        let mut random = Random::new(2);
        let all: Vec<Matrix> = (0..20).map(|_| random_orthogonal(5, &mut random)).collect();
        all.iter().for_each(assert_orthonormal);
        assert!(all.iter().skip(1).all(|other| (other - &all[0]).norm() > 0.5));
        let signs: Vec<f64> = (0..20).map(|_| random_orthogonal(1, &mut random)[(0, 0)]).collect();
        assert!(signs.contains(&1.0) && signs.contains(&-1.0), "both signs are as likely: {signs:?}");
    }

    #[test]
    fn the_rank_of_singular_matrices_is_seen() {
        let m = random(12, 3, 1) * random(3, 9, 2);
        let svd = svd(m.clone());
        assert_eq!(svd.rank(), 3);
        assert!((svd.product() - &m).norm() < 1e-13 * m.norm());
        assert_orthonormal(&svd.u);
        assert_eq!(super::svd(Matrix::zeros(4, 3)).rank(), 0);
        assert_eq!(super::svd(Matrix::zeros(0, 3)).vt.shape(), (0, 3));
    }

    #[test]
    fn ranks_follow_energy() {
        let s = vec![3.0, 2.0, 1.0];
        let svd = Svd { u: Matrix::identity(3, 3), s, vt: Matrix::identity(3, 3) };
        let rank = |energy| svd.rank_for_energy(energy, svd.norm_sqr());
        assert_eq!((rank(0.5), rank(9.0 / 14.0), rank(0.7), rank(1.0)), (1, 1, 2, 3));
        assert_eq!(svd.rank_for_energy(0.9, 100.0), 3, "what was cut off before can't be had back");
        let (b, a) = svd.balanced();
        assert_eq!((b[0], a[0]), (3f32.sqrt(), 3f32.sqrt()));
    }
}
