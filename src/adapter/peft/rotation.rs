//! Rotations of rows, block by block, for OFT and BOFT.
//!
//! The order of operations is torch's: products of small matrices are sums of rounded products, larger ones are chains
//! of fused multiply-adds, as MKL computes them (measured on torch 2.15). For blocks of 9, 10 and 11, MKL computes the
//! first columns in another way, and the last bit can differ.

use std::ops::Range;
use std::sync::Arc;

use nalgebra::DMatrix;

use crate::kernel::{Kernel, Routine};
use crate::plan::{RowMap, run_len};

/// The smallest size for which MKL multiplies square matrices with fused multiply-adds.
const FUSED: usize = 12;

/// Multiplies every row of a weight by a block-diagonal matrix.
#[derive(Debug)]
pub(super) struct Rotate {
    /// The blocks: one for all of the row, or one for each part of it. They are stored so that each step reads
    /// contiguous factors for all sums.
    blocks: Arc<[f32]>,
    size: usize,
    /// The longest run that is summed in one go.
    run: usize,
}

impl Rotate {
    /// The matrix with the blocks `rotations`, each row by row, for rows of `width`. A row `w` becomes `R w`, or `w R`
    /// if `backwards`.
    pub(super) fn new(mut rotations: Vec<f32>, size: usize, width: usize, backwards: bool) -> Self {
        if !backwards {
            for block in rotations.chunks_exact_mut(size * size) {
                for row in 0..size {
                    for col in row + 1..size {
                        block.swap(row * size + col, col * size + row);
                    }
                }
            }
        }
        Self { blocks: rotations.into(), size, run: run_len(width) }
    }
}

impl RowMap for Rotate {
    fn apply(&self, _: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        Kernel::in_use().run_wide(Rows { rotate: self, row_len, out });
    }
}

struct Rows<'a> {
    rotate: &'a Rotate,
    row_len: usize,
    out: &'a mut [f32],
}

impl Routine for Rows<'_> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        let Rotate { blocks, size, run } = self.rotate;
        let (mut sums, mut part) = (vec![0.0f32; *size], vec![0.0f32; *size]);
        for row in self.out.chunks_exact_mut(self.row_len) {
            // One block for all, or one for each part of the row.
            let blocks = blocks.chunks_exact(size * size).cycle();
            for ((number, values), block) in row.chunks_exact_mut(*size).enumerate().zip(blocks) {
                sums.fill(0.0);
                part.fill(0.0);
                for (i, (value, factors)) in values.iter().zip(block.chunks_exact(*size)).enumerate() {
                    // A block that crosses the end of a run is summed in two parts.
                    if i > 0 && (number * size + i).is_multiple_of(*run) {
                        sums.iter_mut().zip(&mut part).for_each(|(sum, part)| *sum += std::mem::take(part));
                    }
                    for (part, factor) in part.iter_mut().zip(factors) {
                        *part = factor.mul_add(*value, *part);
                    }
                }
                values.iter_mut().zip(sums.iter().zip(&part)).for_each(|(value, (sum, part))| *value = sum + part);
            }
        }
    }
}

/// The Cayley transform of a skew-symmetric matrix, by the first `terms` terms of its series.
pub(super) fn series(skew: &[f32], size: usize, terms: usize) -> Vec<f32> {
    let mut rotation = vec![0.0; size * size];
    rotation.iter_mut().step_by(size + 1).for_each(|v| *v = 1.0);
    let mut add = |power: &[f32], times: f32| rotation.iter_mut().zip(power).for_each(|(r, p)| *r += times * p);
    if terms > 1 {
        add(skew, 2.0);
    }
    if terms > 2 {
        let mut power = multiply(skew, skew, size);
        add(&power, 2.0);
        for _ in 3..terms - 1 {
            power = multiply(&power, skew, size);
            add(&power, 2.0);
        }
        add(&multiply(&power, skew, size), 1.0);
    }
    rotation
}

/// The exact Cayley transform, `(I - Q) (I + Q)^-1`, computed in f64.
pub(super) fn solved(skew: &[f32], size: usize) -> Vec<f32> {
    let skew = DMatrix::from_row_iterator(size, size, skew.iter().map(|v| f64::from(*v)));
    let identity = DMatrix::identity(size, size);
    // X (I + Q) = I - Q is equivalent to (I + Q)' X' = (I - Q)', and transposing a skew matrix changes its sign. I + Q
    // is always invertible.
    let turned = (&identity - &skew).lu().solve(&(identity + skew));
    turned.map(|x| x.iter().map(|v| *v as f32).collect()).unwrap_or_else(|| vec![f32::NAN; size * size])
}

/// The product of two square matrices.
fn multiply(left: &[f32], right: &[f32], size: usize) -> Vec<f32> {
    let mut out = vec![0.0; size * size];
    Kernel::in_use().run_wide(Square { left, right, size, out: &mut out });
    out
}

struct Square<'a> {
    left: &'a [f32],
    right: &'a [f32],
    size: usize,
    out: &'a mut [f32],
}

impl Routine for Square<'_> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        let run = run_len(self.size);
        let mut part = vec![0.0f32; self.size];
        for (left, out) in self.left.chunks_exact(self.size).zip(self.out.chunks_exact_mut(self.size)) {
            part.fill(0.0);
            for (i, (left, right)) in left.iter().zip(self.right.chunks_exact(self.size)).enumerate() {
                if i > 0 && i.is_multiple_of(run) {
                    out.iter_mut().zip(&mut part).for_each(|(sum, part)| *sum += std::mem::take(part));
                }
                for (part, right) in part.iter_mut().zip(right) {
                    *part = if self.size < FUSED { *part + left * right } else { left.mul_add(*right, *part) };
                }
            }
            out.iter_mut().zip(&part).for_each(|(sum, part)| *sum += part);
        }
    }
}
