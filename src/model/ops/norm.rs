//! Norms over the last dimension, with frozen weights. Each has the plain composition of candle's operations beside it,
//! which serves on other devices and which the tests compare with.

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::exp::vectorized;
use super::rows::{dot, rows_at_once};
use super::slices::{on_cpu, slice, values};
use crate::arch::computation::NormKind;

/// A norm of rows on the CPU: `x / sqrt(mean(x^2) + eps) * weight`, or with the mean taken off first and a bias added.
#[derive(Clone)]
pub(crate) struct RowNorm {
    kind: NormKind,
    /// `[n]`
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f32,
}

/// The root of the mean square, inverted.
#[inline(always)]
fn inverse_root(row: &[f32], eps: f32) -> f32 {
    1.0 / (dot(row, row) / row.len() as f32 + eps).sqrt()
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

/// The mean of a row, and the inverse of its standard deviation.
#[inline(always)]
fn mean_and_inverse(row: &[f32], eps: f32) -> (f32, f32) {
    let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / row.len() as f64;
    let square = |x: &f32| (f64::from(*x) - mean) * (f64::from(*x) - mean);
    let variance = row.iter().map(square).sum::<f64>() / row.len() as f64;
    (mean as f32, 1.0 / (variance as f32 + eps).sqrt())
}

/// The gradient of a row: with `h = g * weight` and the normed `n`, it is `inverse * (h - mean(h) - n * mean(h n))`.
fn of_layer_norm(out: &mut [f32], x: &[f32], g: &[f32], weight: &[f32], eps: f32) {
    let (mean, inverse) = mean_and_inverse(x, eps);
    let (mut sum, mut product) = (0f64, 0f64);
    for ((out, x), (g, weight)) in out.iter_mut().zip(x).zip(g.iter().zip(weight)) {
        *out = g * weight;
        sum += f64::from(*out);
        product += f64::from(*out) * f64::from((x - mean) * inverse);
    }
    let (sum, product) = ((sum / x.len() as f64) as f32, (product / x.len() as f64) as f32);
    for (out, x) in out.iter_mut().zip(x) {
        *out = inverse * (*out - sum - (x - mean) * inverse * product);
    }
}

impl RowNorm {
    /// A norm of rows of `width` values; without weights, they are 1.
    pub(crate) fn new(
        kind: NormKind,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        (width, eps): (usize, f64),
    ) -> Result<Self> {
        let weight = match weight {
            Some(weight) => weight.contiguous()?,
            None => Tensor::ones(width, DType::F32, &candle_core::Device::Cpu)?,
        };
        Ok(Self { kind, weight, bias: bias.cloned(), eps: eps as f32 })
    }

    pub(super) fn applied(&self, x: &[f32]) -> Result<Vec<f32>> {
        let weight = values(&self.weight)?;
        let bias = self.bias.as_ref().map(|bias| bias.to_vec1::<f32>()).transpose()?;
        let (width, weight) = (weight.len(), &*weight);
        let mut out = vec![0f32; x.len()];
        let part = rows_at_once(width) * width;
        out.par_chunks_mut(part).zip(x.par_chunks(part)).for_each(|(out, x)| {
            match self.kind {
                NormKind::Rms => norm(out, x, weight, self.eps),
                NormKind::Layer => {
                    for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                        let (mean, inverse) = mean_and_inverse(x, self.eps);
                        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                            *out = (x - mean) * inverse * weight;
                        }
                    }
                }
            }
            if let Some(bias) = &bias {
                for out in out.chunks_exact_mut(width) {
                    out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
                }
            }
        });
        Ok(out)
    }

    /// The gradient of `x`, by that of the result.
    pub(super) fn gradient(&self, x: &[f32], g: &[f32]) -> Result<Vec<f32>> {
        let weight = values(&self.weight)?;
        let (width, weight) = (weight.len(), &*weight);
        let mut out = vec![0f32; x.len()];
        let part = rows_at_once(width) * width;
        let parts = out.par_chunks_mut(part).zip(x.par_chunks(part)).zip(g.par_chunks(part));
        parts.for_each(|((out, x), g)| match self.kind {
            NormKind::Rms => of_norm(out, x, g, weight, self.eps),
            NormKind::Layer => {
                let rows = out.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(g.chunks_exact(width));
                rows.for_each(|((out, x), g)| of_layer_norm(out, x, g, weight, self.eps));
            }
        });
        Ok(out)
    }
}

impl CustomOp1 for RowNorm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.applied(slice(storage, layout)?)?), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (shape, gradient) = (x.shape(), gradient.contiguous()?);
        let out = self.gradient(&values(x)?, &values(&gradient)?)?;
        on_cpu(out, shape)
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension, for a frozen `weight`.
pub(crate) fn rms_norm_times(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        let norm = RowNorm::new(NormKind::Rms, Some(weight), None, (weight.elem_count(), eps))?;
        return x.contiguous()?.apply_op1(norm);
    }
    rms_norm(x, eps)?.broadcast_mul(weight)
}

/// `x / sqrt(mean(x^2) + eps)` over the last dimension.
pub(crate) fn rms_norm(x: &Tensor, eps: f64) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + eps)?.sqrt()?)
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension, with frozen `weight` and `bias`.
pub(crate) fn layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        let norm = RowNorm::new(NormKind::Layer, weight, bias, (x.dim(D::Minus1)?, eps))?;
        return x.contiguous()?.apply_op1(norm);
    }
    plain_layer_norm(x, weight, bias, eps)
}

fn plain_layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let mut y = rms_norm(&centred, eps)?;
    if let Some(weight) = weight {
        y = y.broadcast_mul(weight)?;
    }
    bias.map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{agree, random};
    use super::*;

    #[test]
    fn norms_are_their_compositions_with_their_gradients() {
        let (weight, bias) = (random(&[48], 1), random(&[48], 5));
        agree(
            &[random(&[2, 5, 48], 2)],
            |x| rms_norm_times(&x[0], &weight, 1e-5),
            |x| rms_norm(&x[0], 1e-5)?.broadcast_mul(&weight),
        );
        for (weight, bias) in [(Some(&weight), Some(&bias)), (Some(&weight), None), (None, None)] {
            agree(
                &[random(&[2, 5, 48], 2)],
                |x| layer_norm(&x[0], weight, bias, 1e-3),
                |x| plain_layer_norm(&x[0], weight, bias, 1e-3),
            );
        }
    }
}
