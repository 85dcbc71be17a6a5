//! Packs levels into the bits of blocks: the reverse of decoding.

/// Packs levels of `BITS` bits into runs of `RUN` bytes: the first `RUN` levels into the lowest
/// bits of a run's bytes, the next into the bits above them. Higher bits of a level are cut off.
#[inline(always)]
pub(super) fn pack<const BITS: usize, const RUN: usize, const LEVELS: usize>(levels: &[u8; LEVELS], out: &mut [u8]) {
    let mask = u8::MAX >> (8 - BITS);
    let per_run = RUN * (8 / BITS);
    for (levels, out) in levels.chunks_exact(per_run).zip(out.as_chunks_mut::<RUN>().0) {
        *out = [0; RUN];
        for (k, levels) in levels.as_chunks::<RUN>().0.iter().enumerate() {
            for (out, level) in out.iter_mut().zip(levels) {
                *out |= (level & mask) << (k * BITS);
            }
        }
    }
}

/// The bits of each level from bit `from` on.
#[inline(always)]
pub(super) fn above<const LEVELS: usize>(levels: &[u8; LEVELS], from: usize) -> [u8; LEVELS] {
    let mut out = *levels;
    for level in &mut out {
        *level >>= from;
    }
    out
}
