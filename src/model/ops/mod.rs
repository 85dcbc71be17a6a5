//! Operations with a correct backward pass.
//!
//! candle's fused `softmax_last_dim`, `rms_norm` and `rope` have none, and don't report it. Compositions of candle's
//! other operations have one, and keep every step between. On the CPU, the operations here are our own: each computes in
//! one pass, and keeps what its backward pass needs and no more. On other devices the compositions serve; on the CPU they
//! are what the tests compare with.

mod activation;
mod attention;
mod attention_kernel;
mod dora;
mod exp;
mod experts;
mod frozen;
pub(crate) mod fused;
mod loss;
mod low_rank;
mod norm;
mod product;
mod rope;
mod rows;
mod slices;

use candle_core::{D, Result, Tensor};

pub(crate) use activation::{activated, gated};
pub(crate) use attention::attention;
pub(crate) use attention_kernel::{Heads, Scores, Sight};
pub(crate) use dora::{dora_linear, row_lengths};
pub use experts::ExpertFactors;
pub(crate) use experts::{RowsOfExperts, expert_linear, expert_update};
pub(crate) use frozen::{FrozenMatrix, frozen_linear, frozen_linears};
pub(crate) use loss::{LogitForm, cross_entropy};
pub(crate) use low_rank::{bottleneck_linear, low_rank_linear, narrow_linear};
pub(crate) use norm::{RowNorm, layer_norm, rms_norm, rms_norm_times};
pub(crate) use rope::{Rope, rope};

/// `x @ weight^T` over the last dimension, with gradients for both: `x` `[.., d_in]`, `weight` `[d_out, d_in]` ->
/// `[.., d_out]`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let d_in = dims.pop().unwrap_or(1);
    let rows = dims.iter().product::<usize>();
    let y = x.reshape((rows, d_in))?.matmul(&weight.t()?)?;
    dims.push(weight.dim(0)?);
    y.reshape(dims)
}

/// Softmax over the last dimension.
pub fn softmax_last(x: &Tensor) -> Result<Tensor> {
    // A constant shift changes neither the value nor the gradient.
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    let exp = shifted.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

/// The logarithm of [`softmax_last`].
pub fn log_softmax_last(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// Values from -1 to 1 that look random.
    pub(super) fn random(shape: &[usize], seed: u64) -> Tensor {
        let count = shape.iter().product::<usize>() as u64;
        let value = |i: u64| {
            let mixed =
                (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed.wrapping_mul(0xbf58_476d_1ce4_e5b9));
            ((mixed ^ (mixed >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        Tensor::from_vec((0..count).map(value).collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
    }

    /// Checks that `f` gives the values of `plain`, and the gradients of all its arguments, to 2e-5 of the largest and 1e-6.
    pub(super) fn agree(
        arguments: &[Tensor],
        f: impl Fn(&[Tensor]) -> Result<Tensor>,
        plain: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) {
        let run = |f: &dyn Fn(&[Tensor]) -> Result<Tensor>| {
            let vars: Vec<Var> = arguments.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
            let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
            let y = f(&tensors).unwrap();
            let weights = random(y.dims(), 99);
            let grads = (&y * weights).unwrap().sum_all().unwrap().backward().unwrap();
            let mut all = vec![y.detach()];
            all.extend(vars.iter().map(|var| grads.get(var).unwrap().clone()));
            all
        };
        for (number, (found, expected)) in run(&f).iter().zip(run(&plain)).enumerate() {
            assert_eq!(found.dims(), expected.dims(), "{number}");
            let largest =
                |x: &Tensor| x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
            let (off, size) = (largest(&(found - &expected).unwrap()), largest(&expected));
            assert!(off <= 2e-5 * size + 1e-6, "{number}: off by {off} of {size}");
        }
    }

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
    fn compositions_and_operations_have_a_right_backward() {
        let weight =
            Tensor::arange(0f32, 12., &Device::Cpu).unwrap().affine(0.1, -0.5).unwrap().reshape((3, 4)).unwrap();
        let scale = Tensor::new(&[0.5f32, 1.0, -2.0, 1.5, 0.1], &Device::Cpu).unwrap();
        check_gradient(&[2, 3, 4], |x| frozen_linear(x, &FrozenMatrix::held(weight.clone()), None));
        check_gradient(&[2, 3, 4], |x| linear(x, &weight));
        check_gradient(&[3, 4], |w| linear(&weight, w));
        check_gradient(&[2, 5], |x| rms_norm(x, 1e-6));
        check_gradient(&[2, 5], |x| rms_norm_times(x, &scale, 1e-6));
        check_gradient(&[2, 5], softmax_last);
        check_gradient(&[2, 5], log_softmax_last);
        let angle = Tensor::arange(0f32, 6., &Device::Cpu).unwrap().reshape((1, 3, 2)).unwrap();
        check_gradient(&[1, 3, 2, 4], |x| rope(x, &angle.cos()?, &angle.sin()?, false));
    }
}
