//! The loop of a product: each block is expanded once for up to four rows of activations.
//!
//! All of it has to be inlined into the one function that is compiled for the instruction set. Closures, and functions
//! of the standard library that take one, are not sure to be.

use std::marker::PhantomData;

use super::activations::Activations;
use super::lanes::Lanes;
use super::weights::{Sums, Weights};

/// A product with some rows of a matrix.
pub(super) struct Product<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) x: &'a Activations<'a>,
    /// For each row of the matrix, a value for each row of activations.
    pub(super) out: &'a mut [f32],
}

impl Product<'_> {
    /// Computes the product for a type of weights.
    pub(super) fn of<L, W, const BYTES: usize, const ELEMS: usize, const VECTORS: usize>(mut self, lanes: L)
    where
        L: Lanes,
        W: Weights<BYTES, ELEMS, VECTORS>,
    {
        let rows = self.x.rows();
        let mut first = 0;
        while first < rows {
            let product = &mut self;
            first += match rows - first {
                1 => lanes.run(Part::<L, W, BYTES, ELEMS, VECTORS, 1, 2> { lanes, product, first, of: PhantomData }),
                2 | 3 => {
                    lanes.run(Part::<L, W, BYTES, ELEMS, VECTORS, 2, 1> { lanes, product, first, of: PhantomData })
                }
                _ => lanes.run(Part::<L, W, BYTES, ELEMS, VECTORS, 4, 1> { lanes, product, first, of: PhantomData }),
            };
        }
    }
}

/// A product with the `ROWS` rows of activations from `first` on, with `CHAINS` sums for each, because a processor can
/// start an addition before another one is done.
struct Part<
    'a,
    'b,
    L,
    W,
    const BYTES: usize,
    const ELEMS: usize,
    const VECTORS: usize,
    const ROWS: usize,
    const CHAINS: usize,
> {
    lanes: L,
    product: &'b mut Product<'a>,
    first: usize,
    of: PhantomData<W>,
}

impl<L, W, const BYTES: usize, const ELEMS: usize, const VECTORS: usize, const ROWS: usize, const CHAINS: usize>
    pulp::NullaryFnOnce for Part<'_, '_, L, W, BYTES, ELEMS, VECTORS, ROWS, CHAINS>
where
    L: Lanes,
    W: Weights<BYTES, ELEMS, VECTORS>,
{
    /// The number of rows.
    type Output = usize;

    #[inline(always)]
    fn call(self) -> usize {
        let Self { lanes, product, first, .. } = self;
        let x = product.x;
        // Groups of four vectors are in the order of bytes.
        let values = if VECTORS == 4 { x.by_bytes() } else { x.in_order() };
        let (values, sums) = (values.as_chunks::<ELEMS>().0, x.sums(W::SUMS).as_chunks::<16>().0);
        let blocks = x.row_len() / ELEMS;
        let row = Row::<ROWS, ELEMS> { values, sums, at: first * blocks, blocks };
        let weights = product.bytes.as_chunks::<BYTES>().0.chunks_exact(blocks.max(1));
        for (weights, out) in weights.zip(product.out.chunks_exact_mut(x.rows())) {
            let mut totals = [[lanes.splat(0.0); CHAINS]; ROWS];
            // The groups of a large block alternate between the chains already.
            let (pairs, rest) = weights.split_at(if VECTORS == 4 || CHAINS == 1 { 0 } else { blocks / 2 * 2 });
            let pairs = pairs.as_chunks::<2>().0;
            for (i, [one, other]) in pairs.iter().enumerate() {
                row.add::<L, W, _, _, _>(lanes, one, 2 * i, 0, &mut totals);
                row.add::<L, W, _, _, _>(lanes, other, 2 * i + 1, 1, &mut totals);
            }
            for (i, block) in rest.iter().enumerate() {
                row.add::<L, W, _, _, _>(lanes, block, 2 * pairs.len() + i, 0, &mut totals);
            }
            for (out, totals) in out[first..].iter_mut().zip(totals) {
                let mut total = totals[0];
                for other in &totals[1..] {
                    total = lanes.add(total, *other);
                }
                *out = lanes.sum(total);
            }
        }
        ROWS
    }
}

/// The activations of a part.
struct Row<'a, const ROWS: usize, const ELEMS: usize> {
    values: &'a [[f32; ELEMS]],
    sums: &'a [[f32; 16]],
    /// The first block, and the number of blocks of a row.
    at: usize,
    blocks: usize,
}

impl<const ROWS: usize, const ELEMS: usize> Row<'_, ROWS, ELEMS> {
    /// Adds the products with block `i` of a row.
    #[inline(always)]
    fn add<L, W, const BYTES: usize, const VECTORS: usize, const CHAINS: usize>(
        &self,
        lanes: L,
        block: &[u8; BYTES],
        i: usize,
        chain: usize,
        totals: &mut [[L::Floats; CHAINS]; ROWS],
    ) where
        L: Lanes,
        W: Weights<BYTES, ELEMS, VECTORS>,
    {
        let (scales, shifts) = W::scales(lanes, block);
        if W::SUMS != Sums::None {
            for (row, totals) in totals.iter_mut().enumerate() {
                let sums = lanes.load(&self.sums[self.at + row * self.blocks + i]);
                totals[0] = lanes.mul_add(shifts, sums, totals[0]);
            }
        }
        for group in 0..const { ELEMS / (16 * VECTORS) } {
            let (numbers, scale) = W::group(lanes, block, scales, group);
            for (row, totals) in totals.iter_mut().enumerate() {
                let x = &self.values[self.at + row * self.blocks + i].as_chunks::<16>().0[group * VECTORS..][..VECTORS];
                if W::SCALED {
                    let mut sum = lanes.mul(numbers[0], lanes.load(&x[0]));
                    for k in 1..VECTORS {
                        sum = lanes.mul_add(numbers[k], lanes.load(&x[k]), sum);
                    }
                    let total = &mut totals[(chain + group) % CHAINS];
                    *total = lanes.mul_add(scale, sum, *total);
                } else {
                    for k in 0..VECTORS {
                        let total = &mut totals[k % CHAINS];
                        *total = lanes.mul_add(numbers[k], lanes.load(&x[k]), *total);
                    }
                }
            }
        }
    }
}
