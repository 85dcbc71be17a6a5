//! Functions of every value, with the bits that torch computes.

use std::f32::consts::FRAC_1_SQRT_2;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use super::torch_sum::torch_sum;
use super::{Expr, PlannedTensor, RowMap};
use crate::dtype::DType;
use crate::error::Result;

/// A function of every value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum ValueMap {
    /// `exp(x)`
    Exp,
    /// `-exp(x)`
    NegativeExp,
    /// `ln(1 + exp(x))`, or `x` above 20, as torch has it.
    Softplus,
    /// The value that gives `x` when it is multiplied with `factor`.
    Unscale {
        /// The factor.
        factor: f32,
    },
    /// The value that gives `x` when `summand` is added.
    Subtract {
        /// The summand.
        summand: f32,
    },
    /// `1 / x`
    Reciprocal,
    /// `ln(sign * x)`: the reverse of `Exp` and `NegativeExp`.
    Logarithm {
        /// 1 or -1.
        sign: f32,
    },
    /// `ln(exp(x) - 1)`: the reverse of `Softplus`.
    InverseSoftplus,
    /// Smaller values replaced by this one.
    AtLeast {
        /// The smallest value.
        least: f32,
    },
    /// `x / (1 + exp(-x))`
    Silu,
    /// `x / 2 * (1 + erf(x / sqrt(2)))`
    Gelu,
    /// `-1`, `0` or `1` times `scale`, whichever is nearest; `inverse` is `1 / scale`.
    Ternary {
        /// The reciprocal of the mean of all absolute values.
        inverse: f32,
    },
}

impl RowMap for ValueMap {
    fn apply(&self, _: Range<usize>, _: usize, _: &[Vec<f32>], out: &mut [f32]) {
        let each = |out: &mut [f32], map: fn(f32) -> f32| out.iter_mut().for_each(|v| *v = map(*v));
        match *self {
            ValueMap::Exp => each(out, exp),
            ValueMap::NegativeExp => each(out, |v| -exp(v)),
            ValueMap::Softplus => each(out, |v| if v > 20.0 { v } else { f64::from(v).exp().ln_1p() as f32 }),
            ValueMap::Unscale { factor } => {
                out.iter_mut().for_each(|v| *v = preimage(*v, *v / factor, |value| value * factor));
            }
            ValueMap::Subtract { summand } => {
                out.iter_mut().for_each(|v| *v = preimage(*v, *v - summand, |value| value + summand));
            }
            ValueMap::Reciprocal => out.iter_mut().for_each(|v| *v = 1.0 / *v),
            ValueMap::Logarithm { sign } => {
                out.iter_mut().for_each(|v| *v = logarithm(sign * *v));
            }
            ValueMap::InverseSoftplus => each(out, |v| if v > 20.0 { v } else { f64::from(v).exp_m1().ln() as f32 }),
            ValueMap::AtLeast { least } => out.iter_mut().for_each(|v| *v = v.max(least)),
            ValueMap::Silu => each(out, |v| v / (1.0 + sleef_exp(-v))),
            ValueMap::Gelu => each(out, |v| v * 0.5 * (1.0 + erf(f64::from(v * FRAC_1_SQRT_2)) as f32)),
            ValueMap::Ternary { inverse } => {
                out.iter_mut().for_each(|v| *v = (*v * inverse).round_ties_even().clamp(-1.0, 1.0) / inverse);
            }
        }
    }
}

/// Powers of two of the 128th parts of 1, each as a float32 and what that lacks.
static POWERS: LazyLock<[(f32, f32); 128]> = LazyLock::new(|| {
    std::array::from_fn(|part| {
        let power = (part as f64 / 128.0).exp2();
        (power as f32, (power - f64::from(power as f32)) as f32)
    })
});

/// `exp(x)` with the bits that torch has by way of Intel's MKL with `MKL_CBWR=COMPATIBLE`, in which the reference files
/// are made: `2^k * 2^(j/128) * (1 + r + r^2 / 2)` in float32, with the summands from small to large. The rest `r` is
/// at most `ln 2 / 256`. Its bits differ from those of other libraries in one of a hundred values.
fn exp(value: f32) -> f32 {
    // ln 2 / 128 in two parts, of which multiples of the first are exact.
    const HIGH: f32 = 0.005_416_87;
    const LOW: f32 = (std::f64::consts::LN_2 / 128.0 - HIGH as f64) as f32;
    // Adding this rounds to a whole number.
    const ROUNDING: f32 = 12_582_912.0;
    match value {
        _ if value > 89.0 => return f32::INFINITY,
        _ if value < -104.0 => return 0.0,
        _ => {}
    }
    let steps = (value * (128.0 / std::f64::consts::LN_2) as f32 + ROUNDING) - ROUNDING;
    let rest = (value - steps * HIGH) - steps * LOW;
    let sum = rest + rest * rest * 0.5;
    let steps = steps as i32;
    let (high, low) = POWERS[steps.rem_euclid(128) as usize];
    let result = high + (low + high * sum);
    let power = steps.div_euclid(128);
    // 2^power in two factors, because it can exceed the range by itself.
    let two = |power: i32| f32::from_bits(((power + 127) as u32) << 23);
    result * two(power >> 1) * two(power - (power >> 1))
}

/// `exp(x)` with the bits that torch's activation functions and softmax have by way of Sleef: a polynomial in float32
/// with fused multiply-adds. Without branches, so that it can be compiled for vectors.
#[inline(always)]
pub(crate) fn sleef_exp(value: f32) -> f32 {
    // ln 2 in two parts.
    const HIGH: f32 = 0.693_145_75;
    const LOW: f32 = 1.428_606_8e-6;
    const FACTORS: [f32; 6] = [0.000_198_527_62, 0.001_393_043_6, 0.008_333_361, 0.041_666_485, 0.166_666_67, 0.5];
    // Adding this puts a whole number into the lowest bits.
    const WHOLE: f32 = 12_582_912.0;
    let steps = (value * std::f32::consts::LOG2_E).round_ties_even();
    let rest = steps.mul_add(-LOW, steps.mul_add(-HIGH, value));
    let sum = FACTORS[1..].iter().fold(FACTORS[0], |sum, factor| sum.mul_add(rest, *factor));
    let result = 1.0 + (rest * rest).mul_add(sum, rest);
    let steps = ((steps + WHOLE).to_bits() as i32).wrapping_sub(WHOLE.to_bits() as i32);
    let two = |power: i32| f32::from_bits((power.wrapping_add(127) as u32) << 23);
    let result = result * two(steps >> 1) * two(steps.wrapping_sub(steps >> 1));
    let result = if value < -104.0 { 0.0 } else { result };
    if value > 100.0 { f32::INFINITY } else { result }
}

/// The error function: its series, which is exact to a float32's bits.
pub(crate) fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return 1f64.copysign(x);
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..300 {
        let n = f64::from(n);
        term *= -x * x / n;
        let next = term / (2.0 * n + 1.0);
        sum += next;
        if next.abs() < 1e-18 {
            break;
        }
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

/// The value whose [`exp`] is `power`.
fn logarithm(power: f32) -> f32 {
    preimage(power, f64::from(power).ln() as f32, exp)
}

/// The value near `value` whose `function` is `result`. A checkpoint's values have few bits as a rule: those with fewer
/// go first.
fn preimage(result: f32, value: f32, function: impl Fn(f32) -> f32) -> f32 {
    let short = [half::bf16::from_f32(value).to_f32(), half::f16::from_f32(value).to_f32(), value];
    let near = |steps: i32| f32::from_bits((value.to_bits() as i32).wrapping_add(steps) as u32);
    let mut candidates = short.into_iter().chain([1, -1, 2, -2, 3, -3].map(near));
    candidates.find(|candidate| function(*candidate) == result).unwrap_or(value)
}

/// `of` with every value rounded to -1, 0 or 1 times the mean of the absolute values, as BitNet computes its weights
/// (llama.cpp `conversion/bitnet.py`).
///
/// Plain weights that have three values already stay as they are.
///
/// # Errors
/// Errors of reading the values.
pub(crate) fn ternary(of: Expr) -> Result<Expr> {
    let is_packed = of.packed_in().is_some();
    let shape = of.shape();
    let tensor = PlannedTensor { name: String::new(), dtype: DType::F32, shape, expr: of };
    let mut values = tensor.read()?;
    values.iter_mut().for_each(|value| *value = value.abs());
    let largest = values.iter().copied().fold(0.0, f32::max);
    if !is_packed && values.iter().all(|value| *value == 0.0 || *value == largest) {
        return Ok(tensor.expr);
    }
    let mean = (torch_sum(&values) / values.len().max(1) as f32).max(1e-5);
    Ok(Expr::Map { of: vec![tensor.expr], map: Arc::new(ValueMap::Ternary { inverse: 1.0 / mean }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_come_back() {
        for i in 1..2000 {
            let value = half::bf16::from_f32(i as f32 / 300.0 - 3.0).to_f32();
            assert_eq!(logarithm(exp(value)), value);
        }
    }

    #[test]
    fn silu_has_the_bits_of_torch() {
        let mut values = [-100.0, -9.3, -3.0, -0.7, -0.1, 0.1, 0.37, 2.7, 11.0, 20.0];
        ValueMap::Silu.apply(0..1, values.len(), &[], &mut values);
        let expected = [
            0x8000_0000,
            0xba5e_ddc6,
            0xbe11_b139,
            0xbe6d_d7cf,
            0xbd42_918b,
            0x3d57_080f,
            0x3e60_178c,
            0x4021_eb0f,
            0x412f_ff40,
            0x41a0_0000,
        ];
        assert_eq!(values.map(f32::to_bits), expected);
    }

    #[test]
    fn gelu_is_near_torchs() {
        let mut values = [-9.3, -3.0, -0.7, 0.37, 11.0];
        ValueMap::Gelu.apply(0..1, values.len(), &[], &mut values);
        let expected = [0.0, -0.004_050_225, -0.169_374_55, 0.238_394_25, 11.0];
        // torch adds 1 and the error function in f32 before it multiplies, which is 5e-7 off at -3.
        assert!(values.iter().zip(expected).all(|(value, expected)| (value - expected).abs() <= 1e-6), "{values:?}");
    }

    #[test]
    fn exp_is_within_one_unit_of_the_exact_value() {
        for i in -1000..=1000 {
            let value = i as f32 / 17.0;
            let exact = f64::from(value).exp();
            let error = (f64::from(exp(value)) - exact).abs();
            assert!(error <= exact * f64::from(f32::EPSILON), "{value}");
        }
        assert_eq!((exp(0.0), exp(-200.0), exp(200.0)), (1.0, 0.0, f32::INFINITY));
        // Values of which MKL's bits are not the nearest ones.
        for (value, expected) in [(0.263_650_45f32, 1.301_673_2f32), (-0.515_724_6, 0.597_067_83), (2.0, 7.389_056)] {
            assert_eq!(exp(value), expected);
        }
    }
}
