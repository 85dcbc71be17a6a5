//! Products with frozen weights and the low-rank updates of adapters.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use super::frozen::{FrozenMatrix, frozen_linear, shaped};
use super::product::{Matrix, multiply};
use super::slices::{on_cpu, slice, values};

/// `x A^T` for a narrow `A`, with gradients of both.
struct NarrowProduct;

impl CustomOp2 for NarrowProduct {
    fn name(&self) -> &'static str {
        "narrow-product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((m, d_in), rank) = (x_layout.shape().dims2()?, a_layout.shape().dims2()?.0);
        let (x, a) = (slice(x, x_layout)?, slice(a, a_layout)?);
        let mut z = vec![0f32; m * rank];
        multiply(&mut z, rank, Matrix::new(x, m, d_in), Matrix::new(a, rank, d_in).transposed(), 1.0, false);
        Ok((CpuStorage::F32(z), Shape::from((m, rank))))
    }

    fn bwd(&self, x: &Tensor, a: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((m, d_in), rank) = (x.dims2()?, a.dims2()?.0);
        let (shapes, gradient) = ([x.shape(), a.shape()], gradient.contiguous()?);
        let (x, a, g) = (values(x)?, values(a)?, values(&gradient)?);
        let (x, a, g) = (Matrix::new(&x, m, d_in), Matrix::new(&a, rank, d_in), Matrix::new(&g, m, rank));
        let (mut of_x, mut of_a) = (vec![0f32; m * d_in], vec![0f32; rank * d_in]);
        multiply(&mut of_x, d_in, g, a, 1.0, false);
        multiply(&mut of_a, d_in, g.transposed(), x, 1.0, false);
        Ok((on_cpu(of_x, shapes[0])?, on_cpu(of_a, shapes[1])?))
    }
}

/// `x A^T` over the last dimension, for an `A` `[rank, d_in]` of few rows, with gradients of both.
pub(crate) fn narrow_linear(x: &Tensor, a: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return super::linear(x, a);
    }
    let (rank, d_in) = a.dims2()?;
    let z = x.reshape(((), d_in))?.contiguous()?.apply_op2(&a.contiguous()?, NarrowProduct)?;
    shaped(&z, x, rank, None)
}

/// `x W^T + scale * state B^T`, with a frozen `W` and gradients of `x`, `state` and `B`.
struct BottleneckProduct {
    weight: FrozenMatrix,
    scale: f32,
}

impl CustomOp3 for BottleneckProduct {
    fn name(&self) -> &'static str {
        "bottleneck-product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        state: &CpuStorage,
        state_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((m, rank), d_out) = (state_layout.shape().dims2()?, b_layout.shape().dims2()?.0);
        let (state, b) = (slice(state, state_layout)?, slice(b, b_layout)?);
        let mut out = self.weight.applied(slice(x, x_layout)?)?;
        let b = Matrix::new(b, d_out, rank).transposed();
        multiply(&mut out, d_out, Matrix::new(state, m, rank), b, self.scale, true);
        Ok((CpuStorage::F32(out), Shape::from((m, d_out))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        state: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((m, rank), d_out) = (state.dims2()?, b.dims2()?.0);
        let (shapes, gradient) = ([x.shape(), state.shape(), b.shape()], gradient.contiguous()?);
        let (state, b, g) = (values(state)?, values(b)?, values(&gradient)?);
        let (state, b, g_rows) =
            (Matrix::new(&state, m, rank), Matrix::new(&b, d_out, rank), Matrix::new(&g, m, d_out));
        let (mut of_state, mut of_b) = (vec![0f32; m * rank], vec![0f32; d_out * rank]);
        multiply(&mut of_state, rank, g_rows, b, self.scale, false);
        multiply(&mut of_b, rank, g_rows.transposed(), state, self.scale, false);
        let mut of_x = vec![0f32; x.elem_count()];
        self.weight.add_turned(&g, &mut of_x)?;
        Ok((on_cpu(of_x, shapes[0])?, on_cpu(of_state, shapes[1])?, on_cpu(of_b, shapes[2])?))
    }
}

/// As [`frozen_linear`], plus `scale * state b^T`: `state` `[.., rank]`, `b` `[d_out, rank]`, both with gradients.
pub(crate) fn bottleneck_linear(
    x: &Tensor,
    weight: &FrozenMatrix,
    bias: Option<&Tensor>,
    (state, b, scale): (&Tensor, &Tensor, f64),
) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return frozen_linear(x, weight, bias)? + (super::linear(state, b)? * scale)?;
    }
    let ((d_out, d_in), rank) = (weight.size()?, b.dim(1)?);
    let product = BottleneckProduct { weight: weight.clone(), scale: scale as f32 };
    let (rows, state) = (x.reshape(((), d_in))?.contiguous()?, state.reshape(((), rank))?.contiguous()?);
    shaped(&rows.apply_op3(&state, &b.contiguous()?, product)?, x, d_out, bias)
}

/// A low-rank update `scale * B A`, on the CPU: `A` `[rank, d_in]`, `B` `[d_out, rank]`.
#[derive(Clone, Copy)]
pub(super) struct Update<'a> {
    pub(super) a: Matrix<'a>,
    pub(super) b: Matrix<'a>,
    pub(super) scale: f32,
}

impl Update<'_> {
    /// Writes `scale * x A^T B^T` to `out`, or adds it there: `x` `[m, d_in]`, `out` `[m, d_out]`.
    pub(super) fn apply(self, x: Matrix, out: &mut [f32], adds: bool) {
        let (m, rank, d_out) = (x.rows(), self.a.rows(), self.b.rows());
        let z = self.state(x);
        multiply(out, d_out, Matrix::new(&z, m, rank), self.b.transposed(), self.scale, adds);
    }

    /// Writes the gradients of `x`, `A` and `B` for the gradient `g` of the update's outputs, `[m, d_out]`.
    pub(super) fn gradients(self, x: Matrix, g: Matrix, [of_x, of_a, of_b]: [&mut [f32]; 3]) {
        let (m, d_in, rank) = (x.rows(), x.cols(), self.a.rows());
        let (z, mut of_z) = (self.state(x), vec![0f32; m * rank]);
        multiply(&mut of_z, rank, g, self.b, self.scale, false);
        let (z, of_z) = (Matrix::new(&z, m, rank), Matrix::new(&of_z, m, rank));
        multiply(of_a, d_in, of_z.transposed(), x, 1.0, false);
        multiply(of_b, rank, g.transposed(), z, self.scale, false);
        multiply(of_x, d_in, of_z, self.a, 1.0, false);
    }

    /// `x A^T`, `[m, rank]`.
    fn state(self, x: Matrix) -> Vec<f32> {
        let mut z = vec![0f32; x.rows() * self.a.rows()];
        multiply(&mut z, self.a.rows(), x, self.a.transposed(), 1.0, false);
        z
    }
}

/// `x W^T + scale * x A^T B^T`, with a frozen `W` and gradients of `x`, `A` and `B`.
struct LowRankProduct {
    weight: FrozenMatrix,
    scale: f32,
}

impl CustomOp3 for LowRankProduct {
    fn name(&self) -> &'static str {
        "low-rank-product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((m, d_in), (d_out, rank)) = (x_layout.shape().dims2()?, b_layout.shape().dims2()?);
        let (x, a, b) = (slice(x, x_layout)?, slice(a, a_layout)?, slice(b, b_layout)?);
        let mut out = self.weight.applied(x)?;
        let (a, b) = (Matrix::new(a, rank, d_in), Matrix::new(b, d_out, rank));
        Update { a, b, scale: self.scale }.apply(Matrix::new(x, m, d_in), &mut out, true);
        Ok((CpuStorage::F32(out), Shape::from((m, d_out))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((m, d_in), (d_out, rank)) = (x.dims2()?, b.dims2()?);
        let (shapes, gradient) = ([x.shape(), a.shape(), b.shape()], gradient.contiguous()?);
        let (x, a, b, g) = (values(x)?, values(a)?, values(b)?, values(&gradient)?);
        let (a, b) = (Matrix::new(&a, rank, d_in), Matrix::new(&b, d_out, rank));
        let (mut of_x, mut of_a, mut of_b) = (vec![0f32; m * d_in], vec![0f32; rank * d_in], vec![0f32; d_out * rank]);
        let update = Update { a, b, scale: self.scale };
        let gradients = [&mut of_x[..], &mut of_a, &mut of_b];
        update.gradients(Matrix::new(&x, m, d_in), Matrix::new(&g, m, d_out), gradients);
        self.weight.add_turned(&g, &mut of_x)?;
        Ok((on_cpu(of_x, shapes[0])?, on_cpu(of_a, shapes[1])?, on_cpu(of_b, shapes[2])?))
    }
}

/// As [`frozen_linear`], plus the low-rank update `scale * x A^T B^T`: `a` `[rank, d_in]`, `b` `[d_out, rank]`, both
/// with gradients.
pub(crate) fn low_rank_linear(
    x: &Tensor,
    weight: &FrozenMatrix,
    bias: Option<&Tensor>,
    (a, b, scale): (&Tensor, &Tensor, f64),
) -> Result<Tensor> {
    if !x.device().is_cpu() {
        let update = super::linear(&super::linear(x, a)?, b)?;
        return frozen_linear(x, weight, bias)? + (update * scale)?;
    }
    let (d_out, d_in) = weight.size()?;
    let product = LowRankProduct { weight: weight.clone(), scale: scale as f32 };
    let y = x.reshape(((), d_in))?.contiguous()?.apply_op3(&a.contiguous()?, &b.contiguous()?, product)?;
    shaped(&y, x, d_out, bias)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{agree, random};
    use super::*;

    #[test]
    fn products_through_a_bottleneck_are_their_compositions_with_their_gradients() {
        let (held, bias) = (random(&[12, 20], 7), random(&[12], 5));
        let weight = FrozenMatrix::held(held.clone());
        agree(
            &[random(&[2, 3, 20], 1), random(&[2, 3, 4], 2), random(&[12, 4], 3)],
            |x| bottleneck_linear(&x[0], &weight, Some(&bias), (&x[1], &x[2], 0.5)),
            |x| {
                let update = super::super::linear(&x[1], &x[2])?;
                (super::super::linear(&x[0], &held)? + (update * 0.5)?)?.broadcast_add(&bias)
            },
        );
        let narrow = [random(&[2, 3, 20], 1), random(&[4, 20], 2)];
        agree(&narrow, |x| narrow_linear(&x[0], &x[1]), |x| super::super::linear(&x[0], &x[1]));
    }
}
