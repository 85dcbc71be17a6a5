//! The standard normal distribution, as Gemma 3n's sparsity needs it.

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

/// The inverse of the error function, with Giles' approximation refined by two steps of Newton's method, as torch does
/// (`calc_erfinv` in `aten/src/ATen/native/Math.h`).
fn erfinv(y: f32) -> f32 {
    if y.abs() >= 1.0 {
        return if y.abs() == 1.0 { f32::INFINITY.copysign(y) } else { f32::NAN };
    }
    const A: [f32; 4] = [0.886_226_9, -1.645_349_6, 0.914_624_9, -0.140_543_33];
    const B: [f32; 4] = [-2.118_377_7, 1.442_710_5, -0.329_097_5, 0.012_229_801];
    const C: [f32; 4] = [-1.970_840_5, -1.624_906_5, 3.429_567_8, 1.641_345_3];
    const D: [f32; 2] = [3.543_889_2, 1.637_067_8];
    let mut x = if y.abs() <= 0.7 {
        let z = y * y;
        let above = ((A[3] * z + A[2]) * z + A[1]) * z + A[0];
        let below = (((B[3] * z + B[2]) * z + B[1]) * z + B[0]) * z + 1.0;
        y * above / below
    } else {
        let z = (-((1.0 - y.abs()) / 2.0).ln()).sqrt();
        let above = ((C[3] * z + C[2]) * z + C[1]) * z + C[0];
        let below = (D[1] * z + D[0]) * z + 1.0;
        (above / below).copysign(y)
    };
    for _ in 0..2 {
        x -= (erf(x) - y) / ((2.0 / std::f32::consts::PI.sqrt()) * (-x * x).exp());
    }
    x
}

/// The error function: in double precision by its series, and rounded once.
fn erf(x: f32) -> f32 {
    let x = f64::from(x);
    if x.abs() > 6.0 {
        return 1f32.copysign(x as f32);
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        let n = f64::from(n);
        term *= -x * x / n;
        let next = term / (2.0 * n + 1.0);
        sum += next;
        if next.abs() < 1e-18 {
            break;
        }
    }
    (sum * 2.0 / std::f64::consts::PI.sqrt()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_normal_distribution() {
        for (part, value) in [(0.5, 0.0), (0.95, 1.644_853_6), (0.1, -1.281_551_6), (0.999, 3.090_232_3)] {
            assert!((quantile(part) - value).abs() < 2e-6, "{part}: {}", quantile(part));
            assert!((super::part(quantile(part)) - part).abs() < 1e-6);
        }
        assert_eq!(quantile(1.0), f64::INFINITY);
    }
}
