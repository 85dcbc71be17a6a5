//! Levels as bits, the way blocks keep them: the reverse of decoding.

/// Packs levels of `BITS` bits into runs of `RUN` bytes: the first `RUN` levels in the lowest bits of
/// all bytes of a run, the next in the bits above them. Bits of a level above `BITS` are cut off.
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

/// Bits `from..` of each level.
#[inline(always)]
pub(super) fn above<const LEVELS: usize>(levels: &[u8; LEVELS], from: usize) -> [u8; LEVELS] {
    let mut out = *levels;
    for level in &mut out {
        *level >>= from;
    }
    out
}
