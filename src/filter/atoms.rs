//! Atoms of taps: the best ones for a second moment, by a Tucker decomposition of its two modes.
//!
//! # Reference
//! De Lathauwer, De Moor, Vandewalle, "On the best rank-1 and rank-(R1, R2, ..., RN) approximation of higher-order
//! tensors" (SIAM J. Matrix Anal. Appl. 2000): HOSVD as the start, then higher-order orthogonal iteration.

use nalgebra::SymmetricEigen;

use super::moment::Moment;
use super::size::KernelSize;
use crate::linalg::{Matrix, svd};

/// The most rounds of orthogonal iteration.
const ROUNDS: usize = 200;
/// The share of the energy that a round has to add for another to follow.
const GAIN: f64 = 1e-12;
/// By how much the energy of a complete set can miss 1 because of rounding.
const ROUNDING: f64 = 1e-14;

/// A set of temporal and one of spatial atoms. A kernel is a combination of their products.
#[derive(Debug, Clone, PartialEq)]
pub struct Atoms {
    /// The kernel size.
    pub size: KernelSize,
    /// One temporal atom in each row, `[n, T]`. For kernels of two dimensions the constant `[[1]]`.
    pub temporal: Matrix,
    /// One spatial atom in each row, `[m, H W]`. For kernels of one dimension the constant `[[1]]`.
    pub spatial: Matrix,
}

impl Atoms {
    /// The number of temporal and of spatial atoms.
    pub fn counts(&self) -> (usize, usize) {
        (self.temporal.nrows(), self.spatial.nrows())
    }

    /// The products of all pairs of atoms, `[n m, T H W]` row by row: the kernel is its product with the coefficients.
    pub fn products(&self) -> Vec<f64> {
        let (n, m) = self.counts();
        let (time, area) = (self.temporal.ncols(), self.spatial.ncols());
        let mut products = Vec::with_capacity(n * m * time * area);
        for k in 0..n {
            for j in 0..m {
                for t in 0..time {
                    let factor = self.temporal[(k, t)];
                    products.extend((0..area).map(|a| factor * self.spatial[(j, a)]));
                }
            }
        }
        products
    }

    /// The map of taps that puts `new` atoms in the place of these, `[T H W, T H W]` row by row: a row of taps times it
    /// is what has to be added. It is exactly 0 where `new` equals these. Coefficients are those of least squares, so
    /// that the atoms may be any rows.
    pub fn change_to(&self, new: &Atoms) -> Vec<f64> {
        let through = |new: &Matrix, old: &Matrix| pseudoinverse(old) * new;
        let (after_time, after_space) = (through(&new.temporal, &self.temporal), through(&new.spatial, &self.spatial));
        let (before_time, before_space) =
            (through(&self.temporal, &self.temporal), through(&self.spatial, &self.spatial));
        let (time, area) = (self.temporal.ncols(), self.spatial.ncols());
        let mut map = Vec::with_capacity((time * area).pow(2));
        for row in 0..time * area {
            let (t, a) = (row / area, row % area);
            for col in 0..time * area {
                let (u, b) = (col / area, col % area);
                map.push(after_time[(t, u)] * after_space[(a, b)] - before_time[(t, u)] * before_space[(a, b)]);
            }
        }
        map
    }
}

/// The pseudoinverse of a matrix, without the singular values that are rounding noise.
pub(super) fn pseudoinverse(of: &Matrix) -> Matrix {
    let found = svd(of.clone());
    let mut v = found.vt.transpose();
    for (mut column, s) in v.column_iter_mut().zip(&found.s) {
        column.unscale_mut(*s);
    }
    v * found.u.transpose()
}

/// The largest eigenvalues of a symmetric matrix, and their eigenvectors in the rows, largest first. The entry of
/// largest magnitude of each row is positive.
fn leading(gram: Matrix, count: usize) -> (Vec<f64>, Matrix) {
    let size = gram.nrows();
    let eigen = SymmetricEigen::new(gram);
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    order.truncate(count);
    let mut rows = Matrix::zeros(order.len(), size);
    for (row, from) in order.iter().enumerate() {
        let vector = eigen.eigenvectors.column(*from);
        let largest = vector.iter().fold(0.0f64, |largest, v| if v.abs() > largest.abs() { *v } else { largest });
        let sign = if largest < 0.0 { -1.0 } else { 1.0 };
        rows.row_mut(row).copy_from(&(vector.transpose() * sign));
    }
    (order.iter().map(|i| eigen.eigenvalues[*i].max(0.0)).collect(), rows)
}

/// The projection on the rows of `atoms`, which are orthonormal.
fn projection(atoms: &Matrix) -> Matrix {
    atoms.tr_mul(atoms)
}

/// Finds atoms for one second moment. The starts of all numbers of atoms are computed once.
pub struct Search<'a> {
    moment: &'a Moment,
    total: f64,
    /// Eigenvalues and eigenvectors of the temporal and of the spatial mode.
    temporal: (Vec<f64>, Matrix),
    spatial: (Vec<f64>, Matrix),
}

impl<'a> Search<'a> {
    /// Prepares for `moment`.
    pub fn new(moment: &'a Moment) -> Self {
        let size = moment.size();
        let temporal = leading(moment.temporal(&Matrix::identity(size.area(), size.area())), size.time);
        let spatial = leading(moment.spatial(&Matrix::identity(size.time, size.time)), size.area());
        Self { moment, total: moment.total(), temporal, spatial }
    }

    /// The best `n` temporal and `m` spatial atoms, which have orthonormal rows, and the energy that they keep: a share
    /// of all.
    pub fn atoms(&self, n: usize, m: usize) -> (Atoms, f64) {
        let size = self.moment.size();
        let (n, m) = (n.min(size.time), m.min(size.area()));
        let mut temporal = self.temporal.1.rows(0, n).into_owned();
        let mut spatial = self.spatial.1.rows(0, m).into_owned();
        let made = |temporal: Matrix, spatial: Matrix, kept: f64| {
            let energy = if self.total > 0.0 { kept / self.total } else { 1.0 };
            (Atoms { size, temporal, spatial }, energy)
        };
        // With a single mode, its singular vectors are the optimum.
        if size.time == 1 {
            return made(Matrix::identity(1, 1), spatial, self.spatial.0[..m].iter().sum());
        }
        if size.area() == 1 {
            return made(temporal, Matrix::identity(1, 1), self.temporal.0[..n].iter().sum());
        }
        let mut kept = (self.moment.temporal(&projection(&spatial)) * projection(&temporal)).trace();
        for _ in 0..ROUNDS {
            spatial = leading(self.moment.spatial(&projection(&temporal)), m).1;
            let (values, rows) = leading(self.moment.temporal(&projection(&spatial)), n);
            temporal = rows;
            let before = std::mem::replace(&mut kept, values.iter().sum());
            if kept - before <= GAIN * self.total {
                break;
            }
        }
        made(temporal, spatial, kept)
    }

    /// The smallest set of atoms that keeps the share `energy`: with the fewest coefficients, then with the fewest
    /// spatial atoms.
    pub fn reaching(&self, energy: f64) -> (Atoms, f64) {
        let size = self.moment.size();
        let enough = energy - ROUNDING;
        // A set keeps no more than each of its halves would alone.
        let bound = |values: &[f64], count: usize| match self.total > 0.0 {
            true => values[..count].iter().sum::<f64>() / self.total + ROUNDING,
            false => 1.0,
        };
        let mut pairs: Vec<(usize, usize)> =
            (1..=size.time).flat_map(|n| (1..=size.area()).map(move |m| (n, m))).collect();
        pairs.sort_by_key(|(n, m)| (n * m, *m));
        for (n, m) in pairs {
            if bound(&self.temporal.0, n) < enough || bound(&self.spatial.0, m) < enough {
                continue;
            }
            let (atoms, found) = self.atoms(n, m);
            if found >= enough {
                return (atoms, found);
            }
        }
        self.atoms(size.time, size.area())
    }
}
