//! Operations with a correct backward pass. candle's fused `softmax_last_dim`, `rms_norm` and
//! `rope` have none, and don't report it. The ones here are composed from operations that do, or
//! implement their own.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, D, Layout, Result, Shape, Storage, Tensor};

/// `x @ weight^T` for a frozen weight.
///
/// candle's own matmul computes and keeps the gradients of both the weight and the input. For a
/// frozen weight, that would be most of a training step's memory. The backward pass of this
/// operation computes only the input's gradient.
struct FrozenMatmul {
    /// The weight, `[d_out, d_in]`.
    weight: Tensor,
}

impl FrozenMatmul {
    /// `(batch, m, n, k)` for an input `[m, k]`, and the transposed weight's layout.
    fn dims(&self, input: &Layout) -> Result<((usize, usize, usize, usize), Layout)> {
        let (m, k) = input.shape().dims2()?;
        let n = self.weight.dim(0)?;
        Ok(((1, m, n, k), self.weight.layout().transpose(0, 1)?))
    }
}

impl CustomOp1 for FrozenMatmul {
    fn name(&self) -> &'static str {
        "frozen-matmul"
    }

    fn cpu_fwd(&self, input: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (dims, transposed) = self.dims(layout)?;
        let (storage, _) = self.weight.storage_and_layout();
        let Storage::Cpu(weight) = &*storage else {
            candle_core::bail!("frozen-matmul: the weight is on another device")
        };
        Ok((input.matmul(weight, dims, layout, &transposed)?, Shape::from((dims.1, dims.2))))
    }

    fn cuda_fwd(&self, input: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (dims, transposed) = self.dims(layout)?;
        let (storage, _) = self.weight.storage_and_layout();
        let Storage::Cuda(weight) = &*storage else {
            candle_core::bail!("frozen-matmul: the weight is on another device")
        };
        Ok((input.matmul(weight, dims, layout, &transposed)?, Shape::from((dims.1, dims.2))))
    }

    fn bwd(&self, _input: &Tensor, _output: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(gradient.contiguous()?.matmul(&self.weight)?))
    }
}

/// `x @ weight^T + bias` over the last dimension, with weight and bias frozen: `x` `[.., d_in]`,
/// `weight` `[d_out, d_in]`, `bias` `[d_out]` -> `[.., d_out]`.
pub(crate) fn frozen_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let d_in = dims.pop().unwrap_or(1);
    let rows = dims.iter().product::<usize>();
    let y = x.reshape((rows, d_in))?.contiguous()?.apply_op1(FrozenMatmul { weight: weight.clone() })?;
    dims.push(weight.dim(0)?);
    let y = y.reshape(dims)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// `x @ weight^T` over the last dimension, with gradients for both. Shapes as in [`frozen_linear`].
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let d_in = dims.pop().unwrap_or(1);
    let rows = dims.iter().product::<usize>();
    let y = x.reshape((rows, d_in))?.matmul(&weight.t()?)?;
    dims.push(weight.dim(0)?);
    y.reshape(dims)
}

/// `x / sqrt(mean(x^2) + eps)` over the last dimension.
pub(crate) fn rms_norm(x: &Tensor, eps: f64) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + eps)?.sqrt()?)
}

/// Softmax over the last dimension.
pub fn softmax_last(x: &Tensor) -> Result<Tensor> {
    // The maximum only prevents overflow; detached, it costs nothing in the backward pass.
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    let exp = shifted.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

/// Log-softmax over the last dimension.
pub fn log_softmax_last(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// Rotates the two halves of each head: `x` `[B, heads, T, d]`, `cos` and `sin` `[B, 1, T, d / 2]`.
pub(crate) fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
    Tensor::cat(&[first, second], D::Minus1)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// Compares the gradient of a weighted sum of `f`'s outputs with central differences.
    fn check_gradient(shape: &[usize], f: impl Fn(&Tensor) -> Result<Tensor>) {
        let n: usize = shape.iter().product();
        let x: Vec<f32> = (0..n).map(|i| ((i * 37 % 19) as f32 - 9.0) / 7.0).collect();
        let loss = |x: &Tensor| -> Result<Tensor> {
            let y = f(x)?;
            let weights: Vec<f32> = (0..y.elem_count()).map(|i| ((i * 23 % 11) as f32 - 5.0) / 5.0).collect();
            (&y * Tensor::from_vec(weights, y.shape(), &Device::Cpu)?)?.sum_all()
        };
        let var = Var::from_vec(x.clone(), shape, &Device::Cpu).unwrap();
        let grads = loss(var.as_tensor()).unwrap().backward().unwrap();
        let found = grads.get(&var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for i in 0..n {
            let at = |delta: f32| {
                let mut x = x.clone();
                x[i] += delta;
                loss(&Tensor::from_vec(x, shape, &Device::Cpu).unwrap()).unwrap().to_scalar::<f32>().unwrap()
            };
            let expected = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((found[i] - expected).abs() < 2e-2 * (1.0 + expected.abs()), "{i}: {} {expected}", found[i]);
        }
    }

    #[test]
    fn every_operation_has_a_right_backward() {
        let weight =
            Tensor::arange(0f32, 12., &Device::Cpu).unwrap().affine(0.1, -0.5).unwrap().reshape((3, 4)).unwrap();
        check_gradient(&[2, 3, 4], |x| frozen_linear(x, &weight, None));
        check_gradient(&[2, 3, 4], |x| linear(x, &weight));
        check_gradient(&[3, 4], |w| linear(&weight, w));
        check_gradient(&[2, 5], |x| rms_norm(x, 1e-6));
        check_gradient(&[2, 5], softmax_last);
        check_gradient(&[2, 5], log_softmax_last);
        let angle = Tensor::arange(0f32, 6., &Device::Cpu).unwrap().reshape((1, 1, 3, 2)).unwrap();
        check_gradient(&[1, 2, 3, 4], |x| rope(x, &angle.cos()?, &angle.sin()?));
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient_of_its_own() {
        let x = Var::ones((2, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let weight = Var::ones((3, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let y = frozen_linear(x.as_tensor(), weight.as_tensor(), None).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&weight).is_none());
        assert_eq!(grads.get(&x).unwrap().to_vec2::<f32>().unwrap(), [[3.0; 4]; 2]);
    }
}
