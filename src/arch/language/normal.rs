//! The standard normal distribution, as Gemma 3n's sparsity needs it.

use crate::plan::erf;

/// The quantile of a part, in f32 as torch's `Normal(0, 1).icdf` computes it: `sqrt(2) * erfinv(2 p - 1)`.
pub(super) fn quantile(part: f64) -> f64 {
    let part = part as f32;
    f64::from(std::f32::consts::SQRT_2 * erfinv(2.0 * part - 1.0))
}

/// The part below a value, to six digits: the reverse of [`quantile`].
pub(super) fn part(value: f64) -> f64 {
    // Bisection: the quantile grows with the part.
    let (mut low, mut high) = (0.0f64, 1.0f64);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if quantile(middle) < value { low = middle } else { high = middle }
    }
    (high * 1e6).round() / 1e6
}

/// The inverse of the error function, rounded once.
fn erfinv(y: f32) -> f32 {
    if y.abs() >= 1.0 {
        return if y.abs() == 1.0 { f32::INFINITY.copysign(y) } else { f32::NAN };
    }
    let y = f64::from(y);
    // The first terms of its series near 0 and its growth near 1, then Newton's method.
    let tail = (-(1.0 - y.abs()).ln()).max(0.0).sqrt();
    let mut x = if y.abs() < 0.5 { y * 0.886_226_925_452_758 } else { tail.min(5.5).copysign(y) * 0.8 };
    for _ in 0..100 {
        let step = (erf(x) - y) / (std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp());
        x -= step.clamp(-0.5, 0.5);
        if step.abs() < 1e-15 {
            break;
        }
    }
    x as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_normal_distribution() {
        for (part, value) in [(0.5, 0.0), (0.95, 1.644_853_6), (0.1, -1.281_551_6), (0.99, 2.326_347_9)] {
            assert!((quantile(part) - value).abs() < 2e-6, "{part}: {}", quantile(part));
            assert!((super::part(quantile(part)) - part).abs() < 1e-6);
        }
        assert_eq!(quantile(1.0), f64::INFINITY);
    }
}
