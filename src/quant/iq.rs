//! IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ1_S, IQ1_M: 256 values as places in a grid of likely patterns of eight or
//! four values, with scales for runs of 16 or 32 values.
//!
//! IQ2 and IQ3 store signs separately from the grid's values. IQ1 has grids of -1, 0, 1, shifted by an eighth up or
//! down.
//!
//! Reference: ggml `ggml-common.h` (the structs), `ggml-quants.c` (`dequantize_row_iq2_xxs` and so
//! on); gguf-py `quants.py`, the classes of these names.
#![allow(non_camel_case_types)] // The names are ggml's.

use half::f16;

use super::block::{Block, field, half, half_is_finite, unpack};
use super::grids;
use crate::dtype::DType;

/// Writes `scale * value`, negated where the value's bit is set in `signs`.
fn signed<const N: usize>(scale: f32, values: &[i8; N], signs: u8, out: &mut [f32; N]) {
    for (j, (out, value)) in out.iter_mut().zip(values).enumerate() {
        // Flipping the highest bit negates without a branch.
        let flip = u32::from(signs >> j & 1) << 31;
        *out = f32::from_bits((scale * f32::from(*value)).to_bits() ^ flip);
    }
}

/// Writes two consecutive patterns of four values.
fn signed_pair(scale: f32, values: [&[i8; 4]; 2], signs: u8, out: &mut [f32; 8]) {
    for (k, (values, out)) in values.iter().zip(out.as_chunks_mut::<4>().0).enumerate() {
        signed(scale, values, signs >> (4 * k), out);
    }
}

/// The eight signs for the seven stored bits: the eighth makes the number of minus signs even.
fn even_signs(bits: u32) -> u8 {
    let bits = bits as u8 & 127;
    bits | (bits.count_ones() as u8 & 1) << 7
}

/// `d * (0.5 + s) * by`, rounded after each product as in the references.
fn half_step(d: f32, s: u8, by: f32) -> f32 {
    d * (0.5 + f32::from(s)) * by
}

/// `d: f16`; then for each 32 values four bytes of grid places, and 32 bits with four times seven signs and a four-bit
/// scale.
pub(super) struct IQ2_XXS;

impl Block<66, 256> for IQ2_XXS {
    const DTYPE: DType = DType::IQ2_XXS;

    fn decode(block: &[u8; 66], out: &mut [f32; 256]) {
        let d = half::<0, _>(block);
        let runs = field::<2, 64, _>(block).as_chunks::<8>().0;
        for (run, out) in runs.iter().zip(out.as_chunks_mut::<32>().0) {
            let word = u32::from_le_bytes(*field::<4, 4, _>(run));
            let scale = half_step(d, (word >> 28) as u8, 0.25);
            let places = field::<0, 4, _>(run).iter();
            for (l, (place, out)) in places.zip(out.as_chunks_mut::<8>().0).enumerate() {
                signed(scale, &grids::IQ2_XXS[usize::from(*place)], even_signs(word >> (7 * l)), out);
            }
        }
    }

    fn is_finite(block: &[u8; 66]) -> bool {
        half_is_finite::<0, _>(block)
    }
}

/// `d: f16`, 32 places of nine bits with seven sign bits above them, 16 scales of four bits.
pub(super) struct IQ2_XS;

impl Block<74, 256> for IQ2_XS {
    const DTYPE: DType = DType::IQ2_XS;

    fn decode(block: &[u8; 74], out: &mut [f32; 256]) {
        let d = half::<0, _>(block);
        let scales = unpack::<4, 1, _, 16>(field::<66, 8, _>(block));
        let runs = field::<2, 64, _>(block).as_chunks::<4>().0;
        for ((s, run), out) in scales.iter().zip(runs).zip(out.as_chunks_mut::<16>().0) {
            let scale = half_step(d, *s, 0.25);
            for (place, out) in run.as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<8>().0) {
                let place = u16::from_le_bytes(*place);
                signed(scale, &grids::IQ2_XS[usize::from(place & 511)], even_signs(u32::from(place >> 9)), out);
            }
        }
    }

    fn is_finite(block: &[u8; 74]) -> bool {
        half_is_finite::<0, _>(block)
    }
}

/// `d: f16`, 32 bytes with the low bits of places, 32 bytes of signs, 8 bytes with two high bits of each place, 16
/// scales of four bits.
pub(super) struct IQ2_S;

impl Block<82, 256> for IQ2_S {
    const DTYPE: DType = DType::IQ2_S;

    fn decode(block: &[u8; 82], out: &mut [f32; 256]) {
        let d = half::<0, _>(block);
        let (low, signs) = (field::<2, 32, _>(block), field::<34, 32, _>(block));
        let high = unpack::<2, 1, _, 32>(field::<66, 8, _>(block));
        let scales = unpack::<4, 1, _, 16>(field::<74, 8, _>(block)).map(|s| half_step(d, s, 0.25));
        let places = low.iter().zip(&high).map(|(low, high)| usize::from(*high) << 8 | usize::from(*low));
        for (i, ((place, signs), out)) in places.zip(signs).zip(out.as_chunks_mut::<8>().0).enumerate() {
            signed(scales[i / 2], &grids::IQ2_S[place & 1023], *signs, out);
        }
    }

    fn is_finite(block: &[u8; 82]) -> bool {
        half_is_finite::<0, _>(block)
    }
}

/// `d: f16`, 64 bytes of places, then for each 32 values 32 bits with four times seven signs and a four-bit scale.
pub(super) struct IQ3_XXS;

impl Block<98, 256> for IQ3_XXS {
    const DTYPE: DType = DType::IQ3_XXS;

    fn decode(block: &[u8; 98], out: &mut [f32; 256]) {
        let d = half::<0, _>(block);
        let places = field::<2, 64, _>(block).as_chunks::<8>().0;
        let words = field::<66, 32, _>(block).as_chunks::<4>().0;
        for ((places, word), out) in places.iter().zip(words).zip(out.as_chunks_mut::<32>().0) {
            let word = u32::from_le_bytes(*word);
            let scale = half_step(d, (word >> 28) as u8, 0.5);
            let pairs = places.as_chunks::<2>().0.iter();
            for (l, (pair, out)) in pairs.zip(out.as_chunks_mut::<8>().0).enumerate() {
                let values = pair.map(|place| &grids::IQ3_XXS[usize::from(place)]);
                signed_pair(scale, values, even_signs(word >> (7 * l)), out);
            }
        }
    }

    fn is_finite(block: &[u8; 98]) -> bool {
        half_is_finite::<0, _>(block)
    }
}

/// `d: f16`, 64 bytes with the low bits of places, 8 bytes with their ninth bits, 32 bytes of signs, eight scales of
/// four bits.
pub(super) struct IQ3_S;

impl Block<110, 256> for IQ3_S {
    const DTYPE: DType = DType::IQ3_S;

    fn decode(block: &[u8; 110], out: &mut [f32; 256]) {
        let d = half::<0, _>(block);
        let low = field::<2, 64, _>(block).as_chunks::<2>().0;
        let high = unpack::<1, 1, _, 64>(field::<66, 8, _>(block));
        let signs = field::<74, 32, _>(block);
        let scales = unpack::<4, 1, _, 8>(field::<106, 4, _>(block)).map(|s| d * f32::from(1 + 2 * s));
        let pairs = low.iter().zip(high.as_chunks::<2>().0).zip(signs).zip(out.as_chunks_mut::<8>().0);
        for (i, (((low, high), signs), out)) in pairs.enumerate() {
            let [first, second] = [0, 1].map(|k| usize::from(high[k] & 1) << 8 | usize::from(low[k]));
            signed_pair(scales[i / 4], [&grids::IQ3_S[first], &grids::IQ3_S[second]], *signs, out);
        }
    }

    fn is_finite(block: &[u8; 110]) -> bool {
        half_is_finite::<0, _>(block)
    }
}

/// Writes `scale * (value + delta)` for the pattern at `place`; delta is an eighth, negative if `down`.
fn moved(scale: f32, place: usize, down: bool, out: &mut [f32; 8]) {
    let delta = if down { -0.125 } else { 0.125 };
    for (out, value) in out.iter_mut().zip(&grids::IQ1[place & 2047]) {
        *out = scale * (f32::from(*value) + delta);
    }
}

/// `d: f16`, 32 bytes with the low bits of places; then for each 32 values 16 bits: four times three high bits, a
/// three-bit scale, the direction.
pub(super) struct IQ1_S;

impl Block<50, 256> for IQ1_S {
    const DTYPE: DType = DType::IQ1_S;

    fn decode(block: &[u8; 50], out: &mut [f32; 256]) {
        let d = half::<0, _>(block);
        let low = field::<2, 32, _>(block).as_chunks::<4>().0;
        let high = field::<34, 16, _>(block).as_chunks::<2>().0;
        for ((low, high), out) in low.iter().zip(high).zip(out.as_chunks_mut::<32>().0) {
            let high = u16::from_le_bytes(*high);
            let scale = d * f32::from(2 * (high >> 12 & 7) + 1);
            for (l, (low, out)) in low.iter().zip(out.as_chunks_mut::<8>().0).enumerate() {
                let place = usize::from(high >> (3 * l) & 7) << 8 | usize::from(*low);
                moved(scale, place, high & 0x8000 != 0, out);
            }
        }
    }

    fn is_finite(block: &[u8; 50]) -> bool {
        half_is_finite::<0, _>(block)
    }
}

/// 32 bytes with the low bits of places; 32 nibbles with three high bits and the direction; four times 16 bits: four
/// three-bit scales for 16 values each, and above them a nibble of the block's f16 scale.
pub(super) struct IQ1_M;

impl IQ1_M {
    /// The four words of scales, and the f16 from their highest nibbles.
    fn scales(block: &[u8; 56]) -> ([u16; 4], f16) {
        let packed = field::<48, 8, _>(block);
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(packed.as_chunks::<2>().0) {
            *word = u16::from_le_bytes(*bytes);
        }
        let [a, b, c, d] = words.map(|word| word >> 12);
        (words, f16::from_bits(a | b << 4 | c << 8 | d << 12))
    }
}

impl Block<56, 256> for IQ1_M {
    const DTYPE: DType = DType::IQ1_M;

    fn decode(block: &[u8; 56], out: &mut [f32; 256]) {
        let (words, d) = Self::scales(block);
        let d = d.to_f32();
        let low = field::<0, 32, _>(block);
        let high = unpack::<4, 1, _, 32>(field::<32, 16, _>(block));
        for (i, ((low, high), out)) in low.iter().zip(&high).zip(out.as_chunks_mut::<8>().0).enumerate() {
            let scale = d * f32::from(2 * (words[i / 8] >> (i / 2 % 4 * 3) & 7) + 1);
            moved(scale, usize::from(high & 7) << 8 | usize::from(*low), high & 8 != 0, out);
        }
    }

    fn is_finite(block: &[u8; 56]) -> bool {
        Self::scales(block).1.is_finite()
    }
}
