//! What a product needs to know about a stored type.

use super::lanes::Lanes;

/// A type whose blocks of `BYTES` bytes hold `ELEMS` weights, which are expanded in groups of `16 * VECTORS`.
///
/// A weight is `scale * number + shift`. Products sum `number * x` over a group before they multiply by the scales, one
/// in each lane. Shifts are multiplied by the sums of the activations.
pub(super) trait Weights<const BYTES: usize, const ELEMS: usize, const VECTORS: usize> {
    /// Whether groups have scales.
    const SCALED: bool = true;
    /// The activations whose sums the shifts are for.
    const SUMS: Sums = Sums::None;

    /// What is computed once for each block: scales for [`Weights::group`], and a shift for each sum. Plain numbers have 1
    /// and 0.
    #[inline(always)]
    fn scales<L: Lanes>(lanes: L, _: &[u8; BYTES]) -> (L::Floats, L::Floats) {
        (lanes.splat(1.0), lanes.splat(0.0))
    }

    /// The numbers of a group, in the order of the activations, and their scales.
    fn group<L: Lanes>(
        lanes: L,
        block: &[u8; BYTES],
        scales: L::Floats,
        group: usize,
    ) -> ([L::Floats; VECTORS], L::Floats);
}

/// Sums of activations, sixteen for each block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sums {
    /// There are no shifts.
    None,
    /// The sums of all runs of 16.
    Of16,
    /// Eight zeros, then the sums of all runs of 32.
    Of32,
}
