//! The signs that LAPACK gives singular vectors.
//!
//! A singular vector and its negative are equally good, but what was trained along one isn't along the other. LAPACK
//! (`gesdd`) makes the matrix bidiagonal by Householder reflections and decomposes that by dividing it at a row in the middle.
//! Vectors that reach across that row are negative there (`lasd3`); others are those of one of the halves, where the same
//! holds. Below 26 rows it iterates, and the signs depend on the number of steps.
//!
//! Reference: LAPACK `gebrd`, `bdsdc`, `lasd0`, `lasd3`, `lasdt`. Measured on MKL by way of torch 2.15: for matrices of up to
//! 256 x 512 random numbers all signs were these; MKL transforms wide matrices as they are, whatever their width.

use super::Matrix;

/// The largest bidiagonal matrix that LAPACK doesn't divide.
const LEAF: usize = 25;
/// Components below this are rounding noise in f32: LAPACK takes such a vector for one of a half (deflation).
const NOISE: f64 = 1e-6;

/// For each column of `u`, a left singular vector of `matrix`, whether LAPACK has its negative; `None` where that can't be
/// told.
pub(crate) fn has_negative(matrix: &Matrix, u: &Matrix) -> Vec<Option<bool>> {
    let turned = in_bidiagonal(matrix, u);
    let rows = turned.nrows();
    let levels = if rows <= LEAF { 0 } else { (rows as f64 / (LEAF + 1) as f64).log2() as usize + 1 };
    let of_column = |column: nalgebra::DVectorView<f64>| {
        let values: Vec<f64> = column.iter().copied().collect();
        is_positive_at_middle(&values, levels)
    };
    turned.column_iter().map(of_column).collect()
}

/// Whether a vector is positive at the row in the middle, or at that of the half that it belongs to.
fn is_positive_at_middle(values: &[f64], levels: usize) -> Option<bool> {
    let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let level = levels.checked_sub(1)?;
    let middle = values.len() / 2;
    let at_middle = *values.get(middle)?;
    if at_middle.abs() > NOISE * norm(values) {
        return Some(at_middle > 0.0);
    }
    let (before, after) = (&values[..middle], &values[middle + 1..]);
    is_positive_at_middle(if norm(before) > norm(after) { before } else { after }, level)
}

/// A Householder reflection `1 - factor d d^T`.
struct Reflection {
    direction: Vec<f64>,
    factor: f64,
}

impl Reflection {
    /// The reflection that leaves only the first of `values`, whose sign changes.
    fn of(mut values: Vec<f64>) -> Self {
        let below: f64 = values.iter().skip(1).map(|v| v * v).sum();
        let Some(first) = values.first_mut().filter(|_| below > 0.0) else {
            return Self { direction: values, factor: 0.0 };
        };
        *first += (*first * *first + below).sqrt().copysign(*first);
        let factor = 2.0 / (*first * *first + below);
        Self { direction: values, factor }
    }

    /// Reflects the columns of `matrix` from `column` on, in its rows from `row` on.
    fn columns(&self, matrix: &mut Matrix, row: usize, column: usize) {
        for mut values in matrix.column_iter_mut().skip(column) {
            let values = &mut values.as_mut_slice()[row..];
            let along: f64 = values.iter().zip(&self.direction).map(|(v, d)| v * d).sum::<f64>() * self.factor;
            values.iter_mut().zip(&self.direction).for_each(|(v, d)| *v -= along * d);
        }
    }

    /// Reflects the rows of `matrix` from `row` on, in its columns from `column` on.
    fn rows(&self, matrix: &mut Matrix, row: usize, column: usize) {
        let height = matrix.nrows() - row;
        let mut along = vec![0.0; height];
        for (values, d) in matrix.column_iter().skip(column).zip(&self.direction) {
            along.iter_mut().zip(&values.as_slice()[row..]).for_each(|(sum, v)| *sum += v * d);
        }
        for (mut values, d) in matrix.column_iter_mut().skip(column).zip(&self.direction) {
            let factor = self.factor * d;
            let values = &mut values.as_mut_slice()[row..];
            values.iter_mut().zip(&along).for_each(|(v, sum)| *v -= factor * sum);
        }
    }
}

/// The columns of `u` where the matrix is upper bidiagonal.
fn in_bidiagonal(matrix: &Matrix, u: &Matrix) -> Matrix {
    let (rows, cols) = matrix.shape();
    let (mut of, mut u) = (matrix.clone(), u.clone());
    if rows < cols {
        lower_bidiagonal(&mut of, &mut u);
        return u;
    }
    // A tall matrix is made triangular first.
    if rows > cols && rows >= cols * 11 / 6 {
        for i in 0..cols {
            let reflection = Reflection::of(of.column(i).as_slice()[i..].to_vec());
            reflection.columns(&mut of, i, i);
            reflection.columns(&mut u, i, 0);
        }
        (of, u) = (of.rows(0, cols).upper_triangle(), u.rows(0, cols).into_owned());
    }
    for i in 0..cols {
        let reflection = Reflection::of(of.column(i).as_slice()[i..].to_vec());
        reflection.columns(&mut of, i, i);
        reflection.columns(&mut u, i, 0);
        if i + 1 < cols {
            let reflection = Reflection::of(of.row(i).columns_range(i + 1..).iter().copied().collect());
            reflection.rows(&mut of, i, i + 1);
        }
    }
    u.rows(0, cols).into_owned()
}

/// Makes a wide matrix lower bidiagonal, and that upper bidiagonal by rotations.
fn lower_bidiagonal(of: &mut Matrix, u: &mut Matrix) {
    let rows = of.nrows();
    for i in 0..rows {
        let reflection = Reflection::of(of.row(i).columns_range(i..).iter().copied().collect());
        reflection.rows(of, i, i);
        if i + 1 < rows {
            let reflection = Reflection::of(of.column(i).as_slice()[i + 1..].to_vec());
            reflection.columns(of, i + 1, i);
            reflection.columns(u, i + 1, 0);
        }
    }
    let mut diagonal: Vec<f64> = (0..rows).map(|i| of[(i, i)]).collect();
    for i in 0..rows.saturating_sub(1) {
        let (first, second) = (diagonal[i], of[(i + 1, i)]);
        let length = first.hypot(second).copysign(first);
        if length == 0.0 {
            continue;
        }
        let (cos, sin) = (first / length, second / length);
        diagonal[i + 1] *= cos;
        for mut values in u.column_iter_mut() {
            let (above, below) = (values[i], values[i + 1]);
            values[i] = cos * above + sin * below;
            values[i + 1] = cos * below - sin * above;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Random, svd};
    use super::*;

    /// The left singular vectors with LAPACK's signs have a negative component where the matrix is divided.
    #[test]
    fn reflections_make_the_matrix_bidiagonal() {
        for (rows, cols) in [(30, 30), (70, 30), (40, 30), (30, 50)] {
            let mut random = Random::new(3);
            let matrix = Matrix::from_fn(rows, cols, |_, _| f64::from(random.normal()));
            // The columns of the matrix, turned as its left singular vectors are, times their transpose: B B^T.
            let turned = in_bidiagonal(&matrix, &matrix);
            let square = &turned * turned.transpose();
            for ((i, j), value) in (0..30).flat_map(|i| (0..30).map(move |j| (i, j))).map(|at| (at, square[at])) {
                assert!(
                    i32::abs_diff(i as i32, j as i32) <= 1 || value.abs() < 1e-9,
                    "{rows} x {cols}: {i}, {j}: {value}"
                );
            }
            let signs = has_negative(&matrix, &svd(matrix.clone()).u);
            assert!(signs.iter().filter(|sign| sign.is_some()).count() > 25, "{signs:?}");
        }
    }
}
