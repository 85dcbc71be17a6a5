//! Functions of every value, with the bits that torch computes.

use std::ops::Range;
use std::sync::Arc;

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
    /// `x / divisor`
    Divide {
        /// What every value is divided by.
        divisor: f32,
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
            ValueMap::Divide { divisor } => out.iter_mut().for_each(|v| *v /= divisor),
            ValueMap::Reciprocal => out.iter_mut().for_each(|v| *v = 1.0 / *v),
            ValueMap::Logarithm { sign } => {
                out.iter_mut().for_each(|v| *v = f64::from(sign * *v).ln() as f32);
            }
            ValueMap::InverseSoftplus => each(out, |v| if v > 20.0 { v } else { f64::from(v).exp_m1().ln() as f32 }),
            ValueMap::Ternary { inverse } => {
                out.iter_mut().for_each(|v| *v = (*v * inverse).round_ties_even().clamp(-1.0, 1.0) / inverse);
            }
        }
    }
}

/// `exp(x)` as torch computes it on a CPU: the algorithm of SLEEF's `expf` with an error of at most one unit in the last
/// place, whose bits differ from those of other libraries (sleef.org, `sleefsimdsp.c`, `xexpf`).
fn exp(value: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that a multiple of it can be subtracted without a loss.
    const LN2_HIGH: f32 = 0.693_145_751_953_125;
    const LN2_LOW: f32 = 1.428_606_765_330_187e-6;
    let power = (value * LOG2_E).round_ties_even();
    let rest = power.mul_add(-LN2_LOW, power.mul_add(-LN2_HIGH, value));
    let mut sum = 0.000_198_527_62_f32;
    for coefficient in [0.001_393_043_6, 0.008_333_361, 0.041_666_485, 0.166_666_67, 0.5] {
        sum = sum.mul_add(rest, coefficient);
    }
    let result = 1.0 + (rest * rest).mul_add(sum, rest);
    match value {
        _ if value < -104.0 => 0.0,
        _ if value > 100.0 => f32::INFINITY,
        // 2^power in two factors, because it can exceed the largest number by itself.
        _ => {
            let half = (power as i32) >> 1;
            let two = |power: i32| f32::from_bits(((power + 127) as u32) << 23);
            result * two(half) * two(power as i32 - half)
        }
    }
}

/// `of` with every value rounded to -1, 0 or 1 times the mean of the absolute values, as BitNet computes its weights
/// (llama.cpp `conversion/bitnet.py`).
///
/// # Errors
/// Errors of reading the values.
pub(crate) fn ternary(of: Expr) -> Result<Expr> {
    let shape = of.shape();
    let tensor = PlannedTensor { name: String::new(), dtype: DType::F32, shape, expr: of };
    let values = tensor.read()?;
    let sum: f64 = values.iter().map(|v| f64::from(v.abs())).sum();
    let mean = ((sum / values.len().max(1) as f64) as f32).max(1e-5);
    Ok(Expr::Map { of: vec![tensor.expr], map: Arc::new(ValueMap::Ternary { inverse: 1.0 / mean }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_one_unit_of_the_exact_value() {
        for i in -1000..=1000 {
            let value = i as f32 / 17.0;
            let exact = f64::from(value).exp();
            let error = (f64::from(exp(value)) - exact).abs();
            assert!(error <= exact * f64::from(f32::EPSILON), "{value}");
        }
        assert_eq!((exp(0.0), exp(-200.0), exp(200.0)), (1.0, 0.0, f32::INFINITY));
    }
}
