//! Helpers for all block types: fields at fixed offsets, packed levels, runs of levels with one scale.
//!
//! A block is decoded in two steps: its integer levels are unpacked into a small array, then multiplied by the scales
//! of their runs. The steps are plain loops over arrays, which compilers vectorize. Code that needs the integers can
//! use the first step alone.

use half::f16;

use crate::dtype::DType;

/// A block type of `BYTES` bytes for `ELEMS` values.
pub(super) trait Block<const BYTES: usize, const ELEMS: usize> {
    /// Its type; [`Coder::of`] compares the sizes at compile time.
    const DTYPE: DType;

    /// Decodes one block.
    fn decode(block: &[u8; BYTES], out: &mut [f32; ELEMS]);

    /// Whether every value of the block is finite; a NaN or an infinity can only come from scales.
    fn is_finite(block: &[u8; BYTES]) -> bool;
}

/// The code for one block type, over any number of blocks.
#[derive(Clone, Copy)]
pub(super) struct Coder {
    pub(super) decode: fn(&[u8], &mut [f32]),
    pub(super) has_non_finite: fn(&[u8]) -> bool,
}

impl Coder {
    pub(super) const fn of<B: Block<BYTES, ELEMS>, const BYTES: usize, const ELEMS: usize>() -> Self {
        const {
            assert!(B::DTYPE.block_bytes() == BYTES, "the block's bytes are not its type's");
            assert!(B::DTYPE.block_elems() == ELEMS, "the block's elements are not its type's");
        }
        Self { decode: decode::<B, BYTES, ELEMS>, has_non_finite: has_non_finite::<B, BYTES, ELEMS> }
    }
}

fn decode<B: Block<BYTES, ELEMS>, const BYTES: usize, const ELEMS: usize>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        B::decode(block, out);
    }
}

fn has_non_finite<B: Block<BYTES, ELEMS>, const BYTES: usize, const ELEMS: usize>(bytes: &[u8]) -> bool {
    bytes.as_chunks().0.iter().any(|block| !B::is_finite(block))
}

/// The `LEN` bytes of a block from `AT` on, checked at compile time, because offsets are fixed by the format.
pub(super) fn field<const AT: usize, const LEN: usize, const BYTES: usize>(block: &[u8; BYTES]) -> &[u8; LEN] {
    const { assert!(AT + LEN <= BYTES, "the field is outside the block") }
    match block[AT..].first_chunk() {
        Some(field) => field,
        None => unreachable!("checked when compiled"),
    }
}

/// The f16 at offset `AT`.
pub(super) fn half<const AT: usize, const BYTES: usize>(block: &[u8; BYTES]) -> f32 {
    f16::from_le_bytes(*field::<AT, 2, BYTES>(block)).to_f32()
}

/// Whether the f16 at offset `AT` is neither NaN nor infinite.
pub(super) fn half_is_finite<const AT: usize, const BYTES: usize>(block: &[u8; BYTES]) -> bool {
    f16::from_le_bytes(*field::<AT, 2, BYTES>(block)).is_finite()
}

/// Unpacks levels of `BITS` bits from runs of `RUN` bytes. Each run of bytes holds `8 / BITS` runs of levels: the first
/// in the lowest bits of all its bytes, the next in the bits above them.
pub(super) fn unpack<const BITS: usize, const RUN: usize, const PACKED: usize, const LEVELS: usize>(
    packed: &[u8; PACKED],
) -> [u8; LEVELS] {
    const { assert!(8 % BITS == 0 && PACKED.is_multiple_of(RUN) && PACKED * (8 / BITS) == LEVELS, "levels and bytes differ") }
    let mask = u8::MAX >> (8 - BITS);
    let mut levels = [0; LEVELS];
    for (packed, levels) in packed.as_chunks::<RUN>().0.iter().zip(levels.chunks_exact_mut(RUN * (8 / BITS))) {
        for (k, levels) in levels.as_chunks_mut::<RUN>().0.iter_mut().enumerate() {
            for (level, byte) in levels.iter_mut().zip(packed) {
                *level = byte >> (k * BITS) & mask;
            }
        }
    }
    levels
}

/// `low | high << BITS`, level by level.
pub(super) fn join<const BITS: usize, const N: usize>(mut low: [u8; N], high: &[u8; N]) -> [u8; N] {
    for (low, high) in low.iter_mut().zip(high) {
        *low |= high << BITS;
    }
    low
}

/// Levels around zero: each level minus `zero`.
pub(super) fn centred<const N: usize>(levels: &[u8; N], zero: i8) -> [i8; N] {
    let mut out = [0; N];
    for (out, level) in out.iter_mut().zip(levels) {
        *out = (*level as i8).wrapping_sub(zero);
    }
    out
}

/// `values[level]` for levels of four bits.
pub(super) fn looked_up<const N: usize>(levels: &[u8; N], values: &[i8; 16]) -> [i8; N] {
    let mut out = [0; N];
    for (out, level) in out.iter_mut().zip(levels) {
        *out = values[usize::from(level & 15)];
    }
    out
}

/// `out = scale * level`, each scale for the next `RUN` levels.
pub(super) fn scale<const RUN: usize, const RUNS: usize, const N: usize>(
    scales: &[f32; RUNS],
    levels: &[i8; N],
    out: &mut [f32; N],
) {
    const { assert!(RUN * RUNS == N, "scales and levels differ") }
    let runs = levels.as_chunks::<RUN>().0.iter().zip(out.as_chunks_mut::<RUN>().0);
    for (scale, (levels, out)) in scales.iter().zip(runs) {
        for (out, level) in out.iter_mut().zip(levels) {
            *out = scale * f32::from(*level);
        }
    }
}

/// `out = scale * level + shift`, each pair for the next `RUN` levels. The product is rounded before the sum, as in
/// numpy: no fused multiply-add.
pub(super) fn scale_and_shift<const RUN: usize, const RUNS: usize, const N: usize>(
    scales: &[(f32, f32); RUNS],
    levels: &[u8; N],
    out: &mut [f32; N],
) {
    const { assert!(RUN * RUNS == N, "scales and levels differ") }
    let runs = levels.as_chunks::<RUN>().0.iter().zip(out.as_chunks_mut::<RUN>().0);
    for ((scale, shift), (levels, out)) in scales.iter().zip(runs) {
        for (out, level) in out.iter_mut().zip(levels) {
            *out = scale * f32::from(*level) + shift;
        }
    }
}
