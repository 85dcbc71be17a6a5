//! Products of f32 matrices on the CPU, shared among rayon's threads.
//!
//! A product is cut into parts, each computed by one thread without waiting for others: where another program uses a
//! core, the other threads take more parts.

use gemm::{Parallelism, gemm};
use rayon::prelude::*;

/// A matrix in a slice.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix whose rows follow each other in `values`.
    pub(crate) fn new(values: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(values, rows, cols, cols)
    }

    /// A matrix whose rows begin `stride` values after each other.
    pub(crate) fn strided(values: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(
            stride >= cols && (rows == 0 || values.len() >= (rows - 1) * stride + cols),
            "a matrix outside its slice"
        );
        Self { values, rows, cols, row_stride: stride, col_stride: 1 }
    }

    pub(super) fn rows(self) -> usize {
        self.rows
    }

    pub(super) fn cols(self) -> usize {
        self.cols
    }

    /// The same values with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        let Self { values, rows, cols, row_stride, col_stride } = self;
        Self { values, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    /// `count` rows from `start` on.
    fn part(self, start: usize, count: usize) -> Self {
        debug_assert!(start + count <= self.rows);
        Self { values: &self.values[(start * self.row_stride).min(self.values.len())..], rows: count, ..self }
    }
}

/// The fewest rows or columns of a part: for fewer, reading the other matrix again takes longer than the product.
const PART: usize = 64;

/// The fewest multiplications that are worth a second thread.
const WORTH: usize = 1 << 18;

/// Where a product is written: rows that begin `stride` values after each other.
struct Target {
    values: *mut f32,
    stride: usize,
}

// SAFETY: each thread writes to other rows or columns, see `multiply`.
#[allow(unsafe_code)]
unsafe impl Sync for Target {}

/// Writes `scale * a b` to `out`, or adds it there. Row `i` of the product is at `out[i * stride..]`.
pub(crate) fn multiply(out: &mut [f32], stride: usize, a: Matrix, b: Matrix, scale: f32, adds: bool) {
    let threads = if a.rows * b.cols * a.cols < WORTH { 1 } else { rayon::current_num_threads() };
    multiply_on(threads, out, stride, a, b, scale, adds);
}

/// As [`multiply`], on the calling thread alone.
pub(super) fn multiply_alone(out: &mut [f32], stride: usize, a: Matrix, b: Matrix, scale: f32, adds: bool) {
    multiply_on(1, out, stride, a, b, scale, adds);
}

fn multiply_on(threads: usize, out: &mut [f32], stride: usize, a: Matrix, b: Matrix, scale: f32, adds: bool) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert!(k == b.rows && n <= stride, "matrices that don't fit each other");
    if m == 0 || n == 0 {
        return;
    }
    assert!(out.len() >= (m - 1) * stride + n, "a product outside its slice");
    let target = Target { values: out.as_mut_ptr(), stride };
    if threads == 1 {
        return block(&target, 0, 0, a, b, scale, adds);
    }
    // Some more parts than threads, for threads that are slower than others. Parts of columns are faster, where there are
    // enough: the kernels read the rows of `a` in order.
    let by_rows = n < threads * 2 * PART && m > n;
    let (side, b_turned) = if by_rows { (m, b) } else { (n, b.transposed()) };
    let part = side.div_ceil(threads * 3).max(PART).next_multiple_of(16);
    (0..side.div_ceil(part)).into_par_iter().for_each(|number| {
        let start = number * part;
        let count = part.min(side - start);
        match by_rows {
            true => block(&target, start, 0, a.part(start, count), b, scale, adds),
            false => block(&target, 0, start, a, b_turned.part(start, count).transposed(), scale, adds),
        }
    });
}

/// Computes the part of a product that begins at a row and a column.
#[allow(unsafe_code)]
fn block(out: &Target, row: usize, col: usize, a: Matrix, b: Matrix, scale: f32, adds: bool) {
    let whole = |stride: usize| stride as isize;
    // SAFETY: both matrices lie within their slices: `Matrix` is made with that check, and `part` takes less. The
    // product lies within `out`, whose length `multiply` checks, and parts of one product share no elements, since they
    // begin at other rows or columns.
    unsafe {
        gemm(
            a.rows,
            b.cols,
            a.cols,
            out.values.add(row * out.stride + col),
            1,
            whole(out.stride),
            adds,
            a.values.as_ptr(),
            whole(a.col_stride),
            whole(a.row_stride),
            b.values.as_ptr(),
            whole(b.col_stride),
            whole(b.row_stride),
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| (((i + seed) * 2654435761 % 1009) as f32 - 504.0) / 504.0).collect()
    }

    /// The product by its definition, in f64.
    fn plain(a: Matrix, b: Matrix) -> Vec<f64> {
        let at = |m: Matrix, r: usize, c: usize| f64::from(m.values[r * m.row_stride + c * m.col_stride]);
        let cell = |(r, c): (usize, usize)| (0..a.cols).map(|i| at(a, r, i) * at(b, i, c)).sum();
        (0..a.rows).flat_map(|r| (0..b.cols).map(move |c| (r, c))).map(cell).collect()
    }

    #[test]
    fn products_are_those_of_the_definition() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (1, 300, 64), (130, 70, 33), (70, 500, 40), (400, 9, 100), (0, 4, 4)] {
            let (a, b) = (values(m * k, 1), values(k * n, 5));
            let turned = values(n * k, 9);
            for (b, name) in [(Matrix::new(&b, k, n), "plain"), (Matrix::new(&turned, n, k).transposed(), "transposed")]
            {
                let a = Matrix::new(&a, m, k);
                let stride = n + 3;
                let mut out = vec![7.0; m * stride];
                multiply(&mut out, stride, a, b, 0.5, false);
                multiply(&mut out, stride, a, b, 2.0, true);
                let expected = plain(a, b);
                for row in 0..m {
                    assert_eq!(out[row * stride + n..(row + 1) * stride], [7.0; 3], "nothing is written beside");
                    for col in 0..n {
                        let (found, expected) = (f64::from(out[row * stride + col]), 2.5 * expected[row * n + col]);
                        assert!(
                            (found - expected).abs() < 1e-4 * (1.0 + k as f64),
                            "{m} {n} {k} {name}: {found} {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "outside its slice")]
    fn a_matrix_lies_in_its_slice() {
        let _ = Matrix::new(&[0.0; 5], 2, 3);
    }
}
