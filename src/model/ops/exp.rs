//! The exponential function of many values at once.

use pulp::{Arch, WithSimd};

/// `e^x`, with an error of at most 2 units in the last place; 0 below -87.3.
///
/// The argument is split as `n ln 2 + r`, and `e^r` is a polynomial (the coefficients of Cephes' `expf`), which compilers
/// turn into vector instructions, unlike a call of the C library.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Not `min`, which takes 88 for a NaN.
    let x = if x > 88.0 { 88.0 } else { x };
    let n = (x * std::f32::consts::LOG2_E + 0.5).floor();
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4f32;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.000_000_1e-1] {
        p = p * r + c;
    }
    let y = p * r * r + r + 1.0;
    let scaled = y * f32::from_bits((((n.max(-126.0)) as i32 + 127) << 23) as u32);
    if x < -87.3 { 0.0 } else { scaled }
}

/// Runs `f` with the widest instructions that the processor has.
pub(super) fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    struct Run<F>(F);
    impl<R, F: FnOnce() -> R> WithSimd for Run<F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> R {
            (self.0)()
        }
    }
    Arch::new().dispatch(Run(f))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_library_to_two_units() {
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0 + 1e-4;
            let (found, expected) = (vectorized(|| exp(x)), x.exp());
            let units = (f64::from(found) - f64::from(expected)).abs() / f64::from(expected * f32::EPSILON);
            assert!(units <= 2.0, "{x}: {found} {expected}");
        }
        assert_eq!((exp(0.0), exp(-100.0), exp(f32::NEG_INFINITY), exp(-1e30)), (1.0, 0.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan() && exp(1e9) > 1e38);
    }
}
