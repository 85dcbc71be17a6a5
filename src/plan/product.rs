//! Products of matrices, in the order in which torch's own sum on the CPU.
//!
//! Reference: `torch.matmul` of float32, which MKL computes. For every element it goes through the
//! inner dimension in order with fused multiply-adds, in blocks that are summed apart: measured on
//! torch 2.11 and 2.15 with AVX2 and AVX-512, for results of at least 4 rows and 12 columns. In smaller
//! ones products are rounded before they are added; of a few widths (1, 6, 9 to 11) the last bit can
//! differ still.

use crate::quant::{Kernel, Routine};

/// The longest run of the inner dimension that is summed in one go.
const BLOCK: usize = 192;

/// Whether torch sums a product of this shape with fused multiply-adds.
pub(super) fn is_fused(rows: usize, cols: usize) -> bool {
    rows >= 4 && cols >= 12
}

/// What becomes of a finished sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sink {
    /// It is the result.
    Set,
    /// It is added to what stands there.
    Add,
}

/// `scale * (left @ right)` for as many rows as `left` has, of `k` values each.
pub(super) fn product_rows(
    left: &[f32],
    right: &[f32],
    k: usize,
    fused: bool,
    scale: f32,
    sink: Sink,
    out: &mut [f32],
) {
    if k == 0 || right.is_empty() {
        if sink == Sink::Set {
            out.fill(0.0);
        }
        return;
    }
    if !fused {
        return plain_rows(left, right, k, scale, sink, out);
    }
    Kernel::in_use().run(Rows { left, right, k, scale, sink, out });
}

/// As [`product_rows`], for the small results that no kernel is made for.
fn plain_rows(left: &[f32], right: &[f32], k: usize, scale: f32, sink: Sink, out: &mut [f32]) {
    let cols = right.len() / k;
    for (left, out) in left.chunks_exact(k).zip(out.chunks_exact_mut(cols)) {
        for (col, out) in out.iter_mut().enumerate() {
            let products = left.iter().zip(right[col..].iter().step_by(cols)).map(|(l, r)| l * r);
            let value = products.fold(0.0f32, |sum, product| sum + product) * scale;
            *out = if sink == Sink::Add { *out + value } else { value };
        }
    }
}

/// The longest run of an inner dimension of `k` that is summed in one go, as MKL cuts it.
pub(crate) fn run_len(k: usize) -> usize {
    match k {
        0..=BLOCK => k,
        _ if k < 2 * BLOCK => k / 2,
        _ => BLOCK,
    }
}

struct Rows<'a> {
    left: &'a [f32],
    right: &'a [f32],
    k: usize,
    scale: f32,
    sink: Sink,
    out: &'a mut [f32],
}

impl Routine for Rows<'_> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        let cols = self.right.len() / self.k;
        for (left, out) in self.left.chunks(ROWS * self.k).zip(self.out.chunks_mut(ROWS * cols)) {
            match left.len() / self.k {
                ROWS => strips::<L, PAIR, ROWS>(left, self.right, self.k, self.scale, self.sink, out),
                _ => {
                    for (left, out) in left.chunks(self.k).zip(out.chunks_mut(cols)) {
                        strips::<L, PAIR, 1>(left, self.right, self.k, self.scale, self.sink, out);
                    }
                }
            }
        }
    }
}

/// Rows made at a time: each value of `right` is loaded once for all of them.
const ROWS: usize = 4;

/// `R` rows, some columns at a time.
#[inline(always)]
fn strips<const L: usize, const PAIR: usize, const R: usize>(
    left: &[f32],
    right: &[f32],
    k: usize,
    scale: f32,
    sink: Sink,
    out: &mut [f32],
) {
    let cols = right.len() / k;
    let mut col = 0;
    while col + PAIR <= cols {
        strip::<PAIR, R>(left, right, k, scale, sink, out, col);
        col += PAIR;
    }
    while col < cols {
        strip::<1, R>(left, right, k, scale, sink, out, col);
        col += 1;
    }
}

/// `R` rows of `C` columns from `col` on, whose sums fit the registers.
#[inline(always)]
fn strip<const C: usize, const R: usize>(
    left: &[f32],
    right: &[f32],
    k: usize,
    scale: f32,
    sink: Sink,
    out: &mut [f32],
    col: usize,
) {
    let cols = right.len() / k;
    let step = run_len(k);
    let mut sums = [[0.0f32; C]; R];
    let mut start = 0;
    while start < k {
        let end = (start + step).min(k);
        let mut run = [[0.0f32; C]; R];
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
