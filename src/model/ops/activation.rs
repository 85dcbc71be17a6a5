//! The functions between the projections of a feed-forward block, with and without a gate.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::exp::{exp, vectorized};
use super::rows::CHUNK;
use super::slices::{on_cpu, slice, values};
use crate::arch::computation::Activation;

/// The square root of 2 / pi.
const ROOT: f32 = 0.797_884_6;

/// The factor of the cube in the approximation of GELU.
const CUBE: f32 = 0.044_715;

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `silu(x)` and its slope.
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let share = sigmoid(x);
    (x * share, share + x * share * (1.0 - share))
}

/// The approximation of GELU by a hyperbolic tangent, and its slope.
#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    // 0.5 * (1 + tanh(u)) is the sigmoid of 2 u.
    let share = sigmoid(2.0 * ROOT * x * (1.0 + CUBE * x * x));
    (x * share, share + x * share * (1.0 - share) * 2.0 * ROOT * (1.0 + 3.0 * CUBE * x * x))
}

/// GELU and its slope.
fn gelu(x: f32) -> (f32, f32) {
    let share = 0.5 * (1.0 + candle_core::cpu::erf::erf_f32(x * std::f32::consts::FRAC_1_SQRT_2));
    (x * share, share + x * (-0.5 * x * x).exp() * 0.398_942_3)
}

/// The value and the slope of a function without a gate.
fn value_and_slope(activation: Activation, x: f32) -> (f32, f32) {
    let positive = if x > 0.0 { 1.0 } else { 0.0 };
    match activation {
        Activation::Silu | Activation::Clamped { .. } => silu(x),
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => gelu_tanh(x),
        Activation::Relu => (x * positive, positive),
        Activation::Relu2 => (x * x * positive, 2.0 * x * positive),
        Activation::Xielu { positive, linear, .. } if x > 0.0 => {
            (positive * x * x + linear * x, 2.0 * positive * x + linear)
        }
        Activation::Xielu { negative, linear, edge, .. } => {
            let inside = if x < edge { x.exp() } else { 0.0 };
            (negative * (x.min(edge).exp_m1() - x) + linear * x, negative * (inside - 1.0) + linear)
        }
    }
}

/// gpt-oss: `gate * sigmoid(steepness * gate) * (up + 1)`, with the slopes of both. The gate has a limit above, the other one
/// on both sides.
fn clamped(gate: f32, up: f32, limit: f32, steepness: f32) -> (f32, f32, f32) {
    let (gate_slope, up_slope) = (if gate < limit { 1.0 } else { 0.0 }, if up.abs() < limit { 1.0 } else { 0.0 });
    let (gate, up) = (gate.min(limit), up.clamp(-limit, limit));
    let share = sigmoid(steepness * gate);
    let slope = share + steepness * gate * share * (1.0 - share);
    (gate * share * (up + 1.0), slope * (up + 1.0) * gate_slope, gate * share * up_slope)
}

vectorized! {
    fn silu_gated<'a>(out: &'a mut [f32], gate: &'a [f32], up: &'a [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = silu(*gate).0 * up;
        }
    }
}

vectorized! {
    fn of_silu_gated<'a>(of_gate: &'a mut [f32], of_up: &'a mut [f32], gate: &'a [f32], up: &'a [f32], g: &'a [f32]) {
        let given = gate.iter().zip(up).zip(g);
        for ((of_gate, of_up), ((gate, up), g)) in of_gate.iter_mut().zip(of_up).zip(given) {
            let (value, slope) = silu(*gate);
            *of_up = g * value;
            *of_gate = g * up * slope;
        }
    }
}

vectorized! {
    fn gelu_tanh_gated<'a>(out: &'a mut [f32], gate: &'a [f32], up: &'a [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gelu_tanh(*gate).0 * up;
        }
    }
}

vectorized! {
    fn of_gelu_tanh_gated<'a>(
        of_gate: &'a mut [f32],
        of_up: &'a mut [f32],
        gate: &'a [f32],
        up: &'a [f32],
        g: &'a [f32],
    ) {
        let given = gate.iter().zip(up).zip(g);
        for ((of_gate, of_up), ((gate, up), g)) in of_gate.iter_mut().zip(of_up).zip(given) {
            let (value, slope) = gelu_tanh(*gate);
            *of_up = g * value;
            *of_gate = g * up * slope;
        }
    }
}

/// `act(gate) * up` for some values.
fn apply(activation: Activation, out: &mut [f32], gate: &[f32], up: &[f32]) {
    match activation {
        Activation::Silu => silu_gated(out, gate, up),
        Activation::GeluTanh => gelu_tanh_gated(out, gate, up),
        Activation::Clamped { limit, steepness } => {
            let given = gate.iter().zip(up);
            out.iter_mut().zip(given).for_each(|(out, (gate, up))| *out = clamped(*gate, *up, limit, steepness).0);
        }
        other => {
            let given = gate.iter().zip(up);
            out.iter_mut().zip(given).for_each(|(out, (gate, up))| *out = value_and_slope(other, *gate).0 * up);
        }
    }
}

/// The gradients of [`apply`], by that of its result.
fn gradients(activation: Activation, of: (&mut [f32], &mut [f32]), gate: &[f32], up: &[f32], g: &[f32]) {
    let (of_gate, of_up) = of;
    match activation {
        Activation::Silu => of_silu_gated(of_gate, of_up, gate, up, g),
        Activation::GeluTanh => of_gelu_tanh_gated(of_gate, of_up, gate, up, g),
        other => {
            let given = gate.iter().zip(up).zip(g);
            for ((of_gate, of_up), ((gate, up), g)) in of_gate.iter_mut().zip(of_up).zip(given) {
                (*of_gate, *of_up) = match other {
                    Activation::Clamped { limit, steepness } => {
                        let (_, by_gate, by_up) = clamped(*gate, *up, limit, steepness);
                        (g * by_gate, g * by_up)
                    }
                    other => {
                        let (value, slope) = value_and_slope(other, *gate);
                        (g * up * slope, g * value)
                    }
                };
            }
        }
    }
}

/// `act(gate) * up`, shared among threads.
pub(super) fn gated_values(activation: Activation, gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut out = vec![0f32; gate.len()];
    let parts = out.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
    parts.for_each(|((out, gate), up)| apply(activation, out, gate, up));
    out
}

/// The gradients of gate and up.
pub(super) fn of_gated(activation: Activation, gate: &[f32], up: &[f32], g: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut of_gate, mut of_up) = (vec![0f32; gate.len()], vec![0f32; gate.len()]);
    let parts = of_gate.par_chunks_mut(CHUNK).zip(of_up.par_chunks_mut(CHUNK));
    let given = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(g.par_chunks(CHUNK));
    parts.zip(given).for_each(|(of, ((gate, up), g))| gradients(activation, of, gate, up, g));
    (of_gate, of_up)
}

/// `act(x)`, shared among threads.
pub(super) fn activated_values(activation: Activation, x: &[f32]) -> Vec<f32> {
    x.par_iter().with_min_len(CHUNK).map(|x| value_and_slope(activation, *x).0).collect()
}

/// The gradient of `x`.
pub(super) fn of_activated(activation: Activation, x: &[f32], g: &[f32]) -> Vec<f32> {
    let both = x.par_iter().zip(g.par_iter()).with_min_len(CHUNK);
    both.map(|(x, g)| g * value_and_slope(activation, *x).1).collect()
}

/// `act(gate) * up`.
struct Gated(Activation);

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = gated_values(self.0, slice(gate, gate_layout)?, slice(up, up_layout)?);
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (shape, gradient) = (gate.shape(), gradient.contiguous()?);
        let (of_gate, of_up) = of_gated(self.0, &values(gate)?, &values(up)?, &values(&gradient)?);
        Ok((on_cpu(of_gate, shape)?, on_cpu(of_up, shape)?))
    }
}

/// `act(gate) * up`, of tensors of one shape.
pub(crate) fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    if gate.device().is_cpu() {
        return gate.contiguous()?.apply_op2(&up.contiguous()?, Gated(activation));
    }
    plain_gated(gate, up, activation)
}

fn plain_gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Clamped { limit, steepness } => {
            let limit = f64::from(limit);
            let (gate, up) = (gate.clamp(f64::NEG_INFINITY, limit)?, up.clamp(-limit, limit)?);
            // Of an exponential that overflows, candle's gradient would be NaN.
            let steepness = f64::from(steepness);
            ((gate * steepness)?.silu()? / steepness)? * (up + 1.0)?
        }
        other => plain_activated(gate, other)? * up,
    }
}

/// `act(x)`.
struct Activated(Activation);

impl CustomOp1 for Activated {
    fn name(&self) -> &'static str {
        "activated"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(activated_values(self.0, slice(storage, layout)?)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (shape, gradient) = (x.shape(), gradient.contiguous()?);
        let out = of_activated(self.0, &values(x)?, &values(&gradient)?);
        on_cpu(out, shape)
    }
}

/// `act(x)` of every value.
pub(crate) fn activated(x: &Tensor, activation: Activation) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op1(Activated(activation));
    }
    plain_activated(x, activation)
}

fn plain_activated(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Silu | Activation::Clamped { .. } => x.silu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Relu => x.relu(),
        Activation::Relu2 => x.relu()?.sqr(),
        Activation::Xielu { positive, negative, linear, edge } => {
            let [positive, negative, linear, edge] = [positive, negative, linear, edge].map(f64::from);
            let above = (x.relu()?.sqr()? * positive)?;
            let low = x.minimum(0.0)?;
            let below = (((low.minimum(edge)?.exp()? - 1.0)? - &low)? * negative)?;
            // Above 0, `low` is 0, and its part is a constant that doesn't belong to the function.
            let rest = negative * edge.min(0.0).exp_m1();
            let is_low = x.le(0.0)?.to_dtype(candle_core::DType::F32)?;
            ((above + below)? - ((1.0 - is_low)? * rest)?)? + (x * linear)?
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{agree, random};
    use super::*;

    #[test]
    fn functions_are_their_compositions_with_their_gradients() {
        let both = [(random(&[2, 70], 5) * 9.0).unwrap(), (random(&[2, 70], 6) * 3.0).unwrap()];
        let named = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Relu2];
        let xielu = Activation::Xielu { positive: 0.8, negative: 1.3, linear: 0.5, edge: -1e-6 };
        for activation in named.into_iter().chain([xielu]) {
            agree(&both[..1], |x| activated(&x[0], activation), |x| plain_activated(&x[0], activation));
        }
        for activation in named.into_iter().chain([Activation::Clamped { limit: 2.0, steepness: 1.7 }]) {
            agree(&both, |x| gated(&x[0], &x[1], activation), |x| plain_gated(&x[0], &x[1], activation));
        }
        // Gates far below zero, whose exponentials overflow.
        let (far, activation) = ((&both[0] * 20.0).unwrap(), Activation::Clamped { limit: 2.0, steepness: 1.7 });
        let far = [far, both[1].clone()];
        agree(&far, |x| gated(&x[0], &x[1], activation), |x| plain_gated(&x[0], &x[1], activation));
    }
}
