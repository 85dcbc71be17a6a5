//! Exponentials of many values at once, with vector instructions.

/// `e^x`, with an error of at most 2 units in the last place; 0 below -87.3.
///
/// The argument is split as `n ln 2 + r`, and `e^r` is a polynomial (the coefficients of Cephes' `expf`), which compilers
/// turn into vector instructions, unlike a call of the C library.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Not `min`, which takes 88 for a NaN.
    let x = if x > 88.0 { 88.0 } else { x };
    // Adding and taking away 1.5 * 2^23 rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4f32;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let y = p * r * r + r + 1.0;
    let scaled = y * f32::from_bits((((n.max(-126.0)) as i32 + 127) << 23) as u32);
    if x < -87.3 { 0.0 } else { scaled }
}

/// Defines a function that runs with the widest vector instructions of the processor. Its lifetime is that of all its
/// arguments.
macro_rules! vectorized {
    ($(#[$about:meta])* $seen:vis fn $name:ident<$life:lifetime>($($argument:ident: $of:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$about])*
        $seen fn $name<$life>($($argument: $of),*) $(-> $result)? {
            struct Kernel<$life> {
                $($argument: $of),*
            }

            impl<$life> pulp::WithSimd for Kernel<$life> {
                type Output = vectorized!(@ $($result)?);

                // For a closure, nothing would make sure that its code is compiled for these instructions.
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) -> Self::Output {
                    let Kernel { $($argument),* } = self;
                    $body
                }
            }

            pulp::Arch::new().dispatch(Kernel { $($argument),* })
        }
    };
    (@) => { () };
    (@ $result:ty) => { $result };
}

pub(super) use vectorized;

vectorized! {
    /// Makes a row of scores weights whose sum is 1, and returns the logarithm of the sum of their exponentials. Where all
    /// scores are minus infinity, all weights are 0.
    pub(super) fn softmax<'a>(row: &'a mut [f32]) -> f32 {
        let most = row.iter().fold(f32::NEG_INFINITY, |most, score| if *score > most { *score } else { most });
        if most == f32::NEG_INFINITY {
            row.fill(0.0);
            return f32::INFINITY;
        }
        let mut sums = [0f32; 16];
        let (chunks, rest) = row.as_chunks_mut::<16>();
        for chunk in chunks {
            for (sum, score) in sums.iter_mut().zip(chunk) {
                *score = exp(*score - most);
                *sum += *score;
            }
        }
        for score in rest {
            *score = exp(*score - most);
            sums[0] += *score;
        }
        let sum: f32 = sums.iter().sum();
        let factor = 1.0 / sum;
        row.iter_mut().for_each(|weight| *weight *= factor);
        most + sum.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    vectorized! {
        fn exps<'a>(values: &'a mut [f32]) {
            values.iter_mut().for_each(|value| *value = exp(*value));
        }
    }

    #[test]
    fn values_are_those_of_the_library_to_two_units() {
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0 + 1e-4;
            let (mut all, expected) = ([x; 16], x.exp());
            exps(&mut all);
            let found = all[3];
            assert!((found - exp(x)).abs() <= 2.0 * f32::EPSILON * expected);
            let units = (f64::from(found) - f64::from(expected)).abs() / f64::from(expected * f32::EPSILON);
            assert!(units <= 2.0, "{x}: {found} {expected}");
        }
        assert_eq!((exp(0.0), exp(-100.0), exp(f32::NEG_INFINITY), exp(-1e30)), (1.0, 0.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan() && exp(1e9) > 1e38);
    }
}
