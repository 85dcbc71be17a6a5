//! Products of matrices, summed in the order of torch on the CPU.
//!
//! Reference: `torch.matmul` of float32, which MKL computes. For every element it goes through the inner dimension in
//! order with fused multiply-adds, in blocks that are summed separately: measured on torch 2.11 and 2.15 with AVX2 and
//! AVX-512, for results of at least 4 rows and 12 columns. In smaller results, products are rounded before they are
//! added. At a few widths (1, 6, 9 to 11) the last bit can still differ.
//!
//! `torch.matmul` of float64 goes through the whole inner dimension in one go. MKL makes such results of tiles of 4 rows by 12
//! columns with fused multiply-adds; what is left of both at the end isn't fused. Measured on torch 2.15 with one and two
//! threads, for up to 1024 inner values and 4096 rows. Where an odd number of columns above 1 is left, their first one
//! has an order of its own, and so has a matrix of one column: there the last bit can differ.
//!
//! A convolution with one tap of float64 is a product for each input, of outputs by taps, which are few: nothing is fused.
//! It can differ for kernels of twelve taps or more.
//!
//! A convolution with one tap of float32, which oneDNN computes, goes through the inner dimension in order with fused multiply-adds,
//! whatever the result's size: measured on torch 2.15 with two threads, for up to 192 inputs.

use super::Sums;
use super::number::Number;
use crate::kernel::{Kernel, Routine};

/// The longest run of the inner dimension that is summed in one go.
const BLOCK: usize = 192;

/// The least number of multiplications in an einsum that torch gives to MKL; it rounds every product of a smaller one
/// (`at::bmm`).
const EINSUM: usize = 400;

/// Whether torch sums a product of this shape with fused multiply-adds.
pub(crate) fn is_fused(rows: usize, cols: usize) -> bool {
    rows >= 4 && cols >= 12
}

/// Whether torch sums an einsum of this shape, `[rows, k]` by `[k, cols]`, with fused multiply-adds.
pub(crate) fn fuses_einsum(rows: usize, k: usize, cols: usize) -> bool {
    k * rows * cols >= EINSUM && is_fused(rows, cols)
}

impl Sums {
    /// How many leading rows and columns of `[rows, k]` by `[k, cols]` are summed with fused multiply-adds.
    pub(super) fn fused<T: Number>(self, rows: usize, k: usize, cols: usize) -> (usize, usize) {
        let turned = |(cols, rows): (usize, usize)| (rows, cols);
        match self {
            Sums::Einsum | Sums::EinsumTurned if k * rows * cols < EINSUM => (0, 0),
            Sums::Product | Sums::EinsumTurned => T::fused(rows, cols),
            Sums::ProductTurned | Sums::Einsum => turned(T::fused(cols, rows)),
            Sums::Convolution => T::fused_convolution(rows, cols),
        }
    }
}

/// What happens to a finished sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sink {
    /// It becomes the result.
    Set,
    /// It is added to the value that is already there.
    Add,
}

/// Adds `left @ right` to `out`: `left` has rows of `k` values, of which at most [`run_len`] are summed in one go.
pub(crate) fn add_product(left: &[f32], right: &[f32], k: usize, fused: bool, out: &mut [f32]) {
    let fused = if fused { right.len() / k.max(1) } else { 0 };
    product_rows(left, right, k, fused, 1.0, Sink::Add, out);
}

/// Computes `scale * (left @ right)` for all rows of `left`, which have `k` values each. The first `fused` columns are
/// summed with fused multiply-adds.
pub(super) fn product_rows<T: Number>(
    left: &[T],
    right: &[T],
    k: usize,
    fused: usize,
    scale: T,
    sink: Sink,
    out: &mut [T],
) {
    if k == 0 || right.is_empty() {
        if sink == Sink::Set {
            out.fill(T::default());
        }
        return;
    }
    if fused < right.len() / k {
        plain_rows(left, right, k, fused, scale, sink, out);
    }
    if fused > 0 {
        Kernel::in_use().run_wide(Rows { left, right, k, fused, scale, sink, out });
    }
}

/// Like [`product_rows`], for the columns from `first` on, which torch computes without fused multiply-adds.
fn plain_rows<T: Number>(left: &[T], right: &[T], k: usize, first: usize, scale: T, sink: Sink, out: &mut [T]) {
    let cols = right.len() / k;
    for (left, out) in left.chunks_exact(k).zip(out.chunks_exact_mut(cols)) {
        for (col, out) in out.iter_mut().enumerate().skip(first) {
            let products = left.iter().zip(right[col..].iter().step_by(cols)).map(|(l, r)| *l * *r);
            let value = products.fold(T::default(), |sum, product| sum + product) * scale;
            *out = if sink == Sink::Add { *out + value } else { value };
        }
    }
}

/// The longest run of an inner dimension of `k` that is summed in one go: MKL cuts it this way.
pub(crate) fn run_len(k: usize) -> usize {
    match k {
        0..=BLOCK => k,
        _ if k < 2 * BLOCK => k / 2,
        _ => BLOCK,
    }
}

struct Rows<'a, T> {
    left: &'a [T],
    right: &'a [T],
    k: usize,
    /// The number of columns that are computed, from the first on.
    fused: usize,
    scale: T,
    sink: Sink,
    out: &'a mut [T],
}

/// Rows made at a time: each value of `right` is loaded once for all of them.
const ROWS: usize = 4;

impl<T: Number> Routine for Rows<'_, T> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(mut self) {
        let cols = self.fused;
        let mut col = 0;
        // Strip by strip, so that the strip's part of `right` stays in the cache for all rows.
        while col + PAIR <= cols {
            self.strip::<PAIR>(col);
            col += PAIR;
        }
        while col < cols {
            self.strip::<1>(col);
            col += 1;
        }
    }
}

impl<T: Number> Rows<'_, T> {
    /// Computes `C` columns from `col` on, for all rows.
    #[inline(always)]
    fn strip<const C: usize>(&mut self, col: usize) {
        let (k, cols) = (self.k, self.right.len() / self.k);
        for (left, out) in self.left.chunks(ROWS * k).zip(self.out.chunks_mut(ROWS * cols)) {
            match left.len() / k {
                ROWS => tile::<T, C, ROWS>(left, self.right, k, self.scale, self.sink, out, col),
                _ => {
                    for (left, out) in left.chunks(k).zip(out.chunks_mut(cols)) {
                        tile::<T, C, 1>(left, self.right, k, self.scale, self.sink, out, col);
                    }
                }
            }
        }
    }
}

/// Computes `R` rows of `C` columns from `col` on. Their sums fit into registers.
#[inline(always)]
fn tile<T: Number, const C: usize, const R: usize>(
    left: &[T],
    right: &[T],
    k: usize,
    scale: T,
    sink: Sink,
    out: &mut [T],
    col: usize,
) {
    let cols = right.len() / k;
    let step = T::run_len(k);
    let mut sums = [[T::default(); C]; R];
    let mut start = 0;
    while start < k {
        let end = (start + step).min(k);
        let mut run = [[T::default(); C]; R];
        for i in start..end {
            let right = &right[i * cols + col..][..C];
            for r in 0..R {
                let left = left[r * k + i];
                for c in 0..C {
                    run[r][c] = left.mul_add(right[c], run[r][c]);
                }
            }
        }
        if start == 0 {
            sums = run;
        } else {
            for r in 0..R {
                for c in 0..C {
                    sums[r][c] += run[r][c];
                }
            }
        }
        start = end;
    }
    for r in 0..R {
        let out = &mut out[r * cols + col..][..C];
        for c in 0..C {
            let value = sums[r][c] * scale;
            out[c] = if sink == Sink::Add { out[c] + value } else { value };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: u32) -> Vec<f32> {
        let next = |i: usize| (i as u32).wrapping_mul(2654435761).wrapping_add(seed).wrapping_mul(1013904223);
        (0..count).map(|i| (next(i) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// The product element by element, in the order that the module's head describes.
    fn plainly<T: Number>(left: &[T], right: &[T], k: usize, scale: T) -> Vec<T> {
        let cols = right.len() / k;
        let element = |row: usize, col: usize| {
            let run = |i: usize| {
                let range = i..(i + T::run_len(k)).min(k);
                range.fold(T::default(), |sum, i| left[row * k + i].mul_add(right[i * cols + col], sum))
            };
            (0..k).step_by(T::run_len(k)).map(run).reduce(|sum, run| sum + run).unwrap_or_default() * scale
        };
        (0..left.len() / k * cols).map(|i| element(i / cols, i % cols)).collect()
    }

    /// Computes a product with a kernel.
    type Run<T> = fn(Rows<T>);

    fn every_kernel_agrees<T: Number + std::fmt::Debug>() {
        let values = |count, seed| values(count, seed).into_iter().map(T::from).collect::<Vec<T>>();
        for (rows, k, cols) in [(1, 1, 1), (4, 3, 16), (7, 16, 49), (5, 192, 33), (9, 193, 40), (4, 500, 17)] {
            let (left, right, scale) = (values(rows * k, 1), values(k * cols, 2), T::from(0.7));
            let expected = plainly(&left, &right, k, scale);
            let base = values(rows * cols, 3);
            let added: Vec<T> = base.iter().zip(&expected).map(|(b, e)| *b + *e).collect();
            let run = |sink, out: &mut [T], run: Run<T>| {
                run(Rows { left: &left, right: &right, k, fused: cols, scale, sink, out })
            };
            let kernels: [Run<T>; 3] = [
                |rows| Kernel::SCALAR.run_wide(rows),
                |rows| Kernel::best().run(rows),
                |rows| Kernel::best().run_wide(rows),
            ];
            for kernel in kernels {
                let mut out = vec![T::of(f64::NAN); rows * cols];
                run(Sink::Set, &mut out, kernel);
                assert_eq!(out, expected, "{rows} x {k} x {cols}");
                out.copy_from_slice(&base);
                run(Sink::Add, &mut out, kernel);
                assert_eq!(out, added, "{rows} x {k} x {cols}");
            }
        }
    }

    #[test]
    fn every_kernel_sums_in_the_same_order() {
        every_kernel_agrees::<f32>();
        every_kernel_agrees::<f64>();
    }

    #[test]
    fn products_of_f64_are_fused_in_tiles_of_four_by_twelve() {
        assert_eq!(Sums::Product.fused::<f64>(11, 3, 31), (8, 24));
        assert_eq!(Sums::ProductTurned.fused::<f64>(31, 3, 11), (24, 8));
        assert_eq!(Sums::Product.fused::<f32>(11, 3, 31), (11, 31));
        assert_eq!(Sums::Product.fused::<f32>(11, 3, 11), (0, 0));
        // With one rounding, the sum is what the first product lost.
        let third = 1.0 / 3.0;
        let (left, right) = ([-third, third], [third; 26]);
        let mut out = [0.0; 13];
        product_rows(&left, &right, 2, 12, 1.0, Sink::Set, &mut out);
        assert!(out[..12].iter().all(|sum| *sum != 0.0) && out[12] == 0.0, "{out:?}");
    }
}
