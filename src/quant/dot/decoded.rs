//! Products with types that have no loop of their own, and with rows of odd lengths: pieces of rows are decoded to a
//! small array, which is multiplied with all activations.

use super::activations::Activations;
use super::lanes::Lanes;
use crate::dtype::DType;
use crate::quant::decode;

/// The weights that are decoded at a time: whole blocks of any type.
const PIECE: usize = 256;

/// A product with rows of any type that can be decoded.
pub(super) struct Decoded<'a, L> {
    pub(super) lanes: L,
    pub(super) dtype: DType,
    pub(super) bytes: &'a [u8],
    pub(super) x: &'a Activations<'a>,
    /// For each row of the matrix, a value for each row of activations.
    pub(super) out: &'a mut [f32],
}

impl<L: Lanes> pulp::NullaryFnOnce for Decoded<'_, L> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { lanes, dtype, bytes, x, out } = self;
        let (row_len, piece_bytes) = (x.row_len(), PIECE / dtype.block_elems() * dtype.block_bytes());
        let row_bytes = row_len / dtype.block_elems() * dtype.block_bytes();
        out.fill(0.0);
        // What the last piece of a row leaves of them stays zero in the activations, and is finite in the weights.
        let (mut weights, mut padded) = ([0.0; PIECE], [0.0; PIECE]);
        for (bytes, out) in bytes.chunks_exact(row_bytes).zip(out.chunks_exact_mut(x.rows())) {
            for (i, bytes) in bytes.chunks(piece_bytes).enumerate() {
                let start = i * PIECE;
                let len = PIECE.min(row_len - start);
                decode(dtype, bytes, &mut weights[..len]);
                weights[len..].fill(0.0);
                for (x, out) in x.in_order().chunks_exact(row_len).zip(&mut *out) {
                    let x = match x[start..].first_chunk::<PIECE>() {
                        Some(x) => x,
                        None => {
                            padded[..len].copy_from_slice(&x[start..]);
                            padded[len..].fill(0.0);
                            &padded
                        }
                    };
                    *out += dot(lanes, &weights, x);
                }
            }
        }
    }
}

#[inline(always)]
fn dot<L: Lanes>(lanes: L, weights: &[f32; PIECE], x: &[f32; PIECE]) -> f32 {
    let mut totals = [lanes.splat(0.0); 2];
    for (weights, x) in weights.as_chunks::<32>().0.iter().zip(x.as_chunks::<32>().0) {
        let (weights, x) = (weights.as_chunks::<16>().0, x.as_chunks::<16>().0);
        totals[0] = lanes.mul_add(lanes.load(&weights[0]), lanes.load(&x[0]), totals[0]);
        totals[1] = lanes.mul_add(lanes.load(&weights[1]), lanes.load(&x[1]), totals[1]);
    }
    lanes.sum(lanes.add(totals[0], totals[1]))
}
