//! What operations on rows share.

/// The values that a thread takes at a time.
pub(super) const CHUNK: usize = 1 << 15;

/// The number of rows of `width` values that a thread takes at a time.
pub(super) fn rows_at_once(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

/// The sum of products, in 16 sums side by side.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}
