//! Operations on rows: norms, rotary positions, gates. Each has the plain composition of candle's operations beside it,
//! which serves on other devices and which the tests compare with.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::exp::{exp, vectorized};
use super::slices::{slice, values};

/// The values that a thread takes at a time.
const CHUNK: usize = 1 << 15;

/// The number of rows of `width` values that a thread takes at a time.
fn rows_at_once(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension, for a frozen weight.
struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

/// The root of the mean square, inverted.
#[inline(always)]
fn inverse_root(row: &[f32], eps: f32) -> f32 {
    1.0 / (dot(row, row) / row.len() as f32 + eps).sqrt()
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

vectorized! {
    fn norm<'a>(out: &'a mut [f32], x: &'a [f32], weight: &'a [f32], eps: f32) {
        let width = weight.len();
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let factor = inverse_root(x, eps);
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = x * factor * weight;
            }
        }
    }
}

vectorized! {
    /// With `h = g * weight`, the gradient is `factor * (h - x * factor^2 * mean(h x))`.
    fn of_norm<'a>(out: &'a mut [f32], x: &'a [f32], g: &'a [f32], weight: &'a [f32], eps: f32) {
        let width = weight.len();
        for ((out, x), g) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(g.chunks_exact(width)) {
            let factor = inverse_root(x, eps);
            for ((out, g), weight) in out.iter_mut().zip(g).zip(weight) {
                *out = g * weight;
            }
            let mean = dot(out, x) / width as f32 * factor * factor;
            for (out, x) in out.iter_mut().zip(x) {
                *out = factor * (*out - x * mean);
            }
        }
    }
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (slice(storage, layout)?, values(&self.weight)?);
        let (width, weight) = (weight.len(), &*weight);
        let mut out = vec![0f32; x.len()];
        let part = rows_at_once(width) * width;
        out.par_chunks_mut(part).zip(x.par_chunks(part)).for_each(|(out, x)| norm(out, x, weight, self.eps));
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (shape, gradient) = (x.shape(), gradient.contiguous()?);
        let (x, weight, gradient) = (values(x)?, values(&self.weight)?, values(&gradient)?);
        let (width, weight) = (weight.len(), &*weight);
        let mut out = vec![0f32; x.len()];
        let part = rows_at_once(width) * width;
        let parts = out.par_chunks_mut(part).zip(x.par_chunks(part)).zip(gradient.par_chunks(part));
        parts.for_each(|((out, x), g)| of_norm(out, x, g, weight, self.eps));
        Ok(Some(Tensor::from_vec(out, shape, &candle_core::Device::Cpu)?))
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension, for a frozen `weight`.
pub(crate) fn rms_norm_times(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op1(RmsNorm { weight: weight.contiguous()?, eps: eps as f32 });
    }
    rms_norm(x, eps)?.broadcast_mul(weight)
}

/// `x / sqrt(mean(x^2) + eps)` over the last dimension.
pub(crate) fn rms_norm(x: &Tensor, eps: f64) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + eps)?.sqrt()?)
}

/// Rotates the two halves of each head by the angles of its position.
struct Rope {
    cos: Tensor,
    sin: Tensor,
    /// 1, or -1 to turn back.
    direction: f32,
}

vectorized! {
    fn turn<'a>(out: &'a mut [f32], x: &'a [f32], cos: &'a [f32], sin: &'a [f32], sizes: (usize, usize), direction: f32) {
        let (heads, half) = sizes;
        let rows = out.chunks_exact_mut(heads * 2 * half).zip(x.chunks_exact(heads * 2 * half));
        for ((out, x), (cos, sin)) in rows.zip(cos.chunks_exact(half).zip(sin.chunks_exact(half))) {
            for (out, x) in out.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
                let ((low, high), (a, b)) = (out.split_at_mut(half), x.split_at(half));
                for i in 0..half {
                    let sin = sin[i] * direction;
                    low[i] = a[i] * cos[i] - b[i] * sin;
                    high[i] = b[i] * cos[i] + a[i] * sin;
                }
            }
        }
    }
}

impl Rope {
    /// `x` is `[.., heads, d]`, the angles `[.., d / 2]`.
    fn turned(&self, x: &[f32], heads: usize, d: usize) -> Result<Vec<f32>> {
        let (cos, sin) = (values(&self.cos)?, values(&self.sin)?);
        let (cos, sin, half, width) = (&*cos, &*sin, d / 2, heads * d);
        let mut out = vec![0f32; x.len()];
        let rows = rows_at_once(width);
        let parts = out.par_chunks_mut(rows * width).zip(x.par_chunks(rows * width));
        let angles = cos.par_chunks((rows * half).max(1)).zip(sin.par_chunks((rows * half).max(1)));
        parts.zip(angles).for_each(|((out, x), (cos, sin))| turn(out, x, cos, sin, (heads, half), self.direction));
        Ok(out)
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, _, heads, d) = layout.shape().dims4()?;
        Ok((CpuStorage::F32(self.turned(slice(storage, layout)?, heads, d)?), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, heads, d) = x.dims4()?;
        let back = Rope { cos: self.cos.clone(), sin: self.sin.clone(), direction: -self.direction };
        let gradient = gradient.contiguous()?;
        let turned = back.turned(&values(&gradient)?, heads, d)?;
        Ok(Some(Tensor::from_vec(turned, x.shape(), x.device())?))
    }
}

/// Rotates the two halves of each head: `x` `[B, T, heads, d]`, `cos` and `sin` `[B, T, d / 2]`.
pub(crate) fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        let (cos, sin) = (cos.contiguous()?, sin.contiguous()?);
        return x.contiguous()?.apply_op1(Rope { cos, sin, direction: 1.0 });
    }
    plain_rope(x, cos, sin)
}

fn plain_rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (cos, sin) = (cos.unsqueeze(2)?, sin.unsqueeze(2)?);
    let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], D::Minus1)
}

/// `silu(gate) * up`.
struct SwiGlu;

vectorized! {
    fn gated<'a>(out: &'a mut [f32], gate: &'a [f32], up: &'a [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

vectorized! {
    fn of_gated<'a>(of_gate: &'a mut [f32], of_up: &'a mut [f32], gate: &'a [f32], up: &'a [f32], g: &'a [f32]) {
        let given = gate.iter().zip(up).zip(g);
        for ((of_gate, of_up), ((gate, up), g)) in of_gate.iter_mut().zip(of_up).zip(given) {
            let share = 1.0 / (1.0 + exp(-gate));
            let silu = gate * share;
            *of_up = g * silu;
            *of_gate = g * up * (share + silu * (1.0 - share));
        }
    }
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (slice(gate, gate_layout)?, slice(up, up_layout)?);
        let mut out = vec![0f32; gate.len()];
        let parts = out.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
        parts.for_each(|((out, gate), up)| gated(out, gate, up));
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
        let (gate, up, gradient) = (values(gate)?, values(up)?, values(&gradient)?);
        let (mut of_gate, mut of_up) = (vec![0f32; gate.len()], vec![0f32; gate.len()]);
        let parts = of_gate.par_chunks_mut(CHUNK).zip(of_up.par_chunks_mut(CHUNK));
        let given = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(gradient.par_chunks(CHUNK));
        parts.zip(given).for_each(|((of_gate, of_up), ((gate, up), g))| of_gated(of_gate, of_up, gate, up, g));
        let on_cpu = |values| Tensor::from_vec(values, shape, &candle_core::Device::Cpu);
        Ok((Some(on_cpu(of_gate)?), Some(on_cpu(of_up)?)))
    }
}

/// `silu(gate) * up`, of tensors of one shape.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.device().is_cpu() {
        return gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu);
    }
    gate.silu()? * up
}

#[cfg(test)]
mod tests {
    use super::super::tests::{agree, random};
    use super::*;

    #[test]
    fn operations_on_rows_are_their_compositions_with_their_gradients() {
        let weight = random(&[48], 1);
        agree(
            &[random(&[2, 5, 48], 2)],
            |x| rms_norm_times(&x[0], &weight, 1e-5),
            |x| rms_norm(&x[0], 1e-5)?.broadcast_mul(&weight),
        );
        let angles = random(&[2, 5, 8], 3);
        let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
        agree(&[random(&[2, 5, 3, 16], 4)], |x| rope(&x[0], &cos, &sin), |x| plain_rope(&x[0], &cos, &sin));
        let both = [(random(&[2, 70], 5) * 9.0).unwrap(), random(&[2, 70], 6)];
        agree(&both, |x| swiglu(&x[0], &x[1]), |x| x[0].silu()? * &x[1]);
    }
}
