//! Products with frozen weights, which have no gradient of their own, and with the low-rank updates of adapters.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Storage, Tensor};

use super::product::{Matrix, multiply};
use super::slices::{slice, values};
use crate::plan::PlannedTensor;

/// A matrix of the base, `[d_out, d_in]`.
#[derive(Clone)]
pub(crate) enum FrozenMatrix {
    /// Its values in f32, on the device.
    Held(Tensor),
    /// In its file: rows are decoded when they are used, some at a time. On the CPU.
    Mapped(Arc<PlannedTensor>),
}

/// The values of a mapped matrix that are decoded at a time: 8 MiB.
const DECODED: usize = 1 << 21;

impl FrozenMatrix {
    /// Rows and columns.
    pub(crate) fn size(&self) -> Result<(usize, usize)> {
        match self {
            FrozenMatrix::Held(tensor) => tensor.dims2(),
            FrozenMatrix::Mapped(tensor) => Ok((tensor.rows(), tensor.row_len())),
        }
    }

    /// Calls `use_rows` with the first of some rows and their values, until all had their turn.
    fn parts(&self, mut use_rows: impl FnMut(usize, &[f32])) -> Result<()> {
        match self {
            FrozenMatrix::Held(tensor) => use_rows(0, &values(tensor)?),
            FrozenMatrix::Mapped(tensor) => {
                let (rows, width) = (tensor.rows(), tensor.row_len().max(1));
                let count = (DECODED / width).clamp(1, rows.max(1));
                let mut decoded = vec![0f32; count * width];
                for start in (0..rows).step_by(count) {
                    let decoded = &mut decoded[..count.min(rows - start) * width];
                    let filled = tensor.fill(start..start + decoded.len() / width, decoded);
                    filled.map_err(|error| candle_core::Error::Msg(error.to_string()))?;
                    use_rows(start, decoded);
                }
            }
        }
        Ok(())
    }

    /// `x W^T`, `[m, d_in]` -> `[m, d_out]`, on the CPU.
    pub(super) fn applied(&self, x: &[f32]) -> Result<Vec<f32>> {
        let (rows, width) = self.size()?;
        let m = x.len() / width.max(1);
        let mut out = vec![0f32; m * rows];
        self.parts(|start, part| {
            let part = Matrix::new(part, part.len() / width, width);
            multiply(&mut out[start..], rows, Matrix::new(x, m, width), part.transposed(), 1.0, false);
        })?;
        Ok(out)
    }

    /// Adds `g W` to `out`: `[m, d_out]` -> `[m, d_in]`, on the CPU.
    pub(super) fn add_turned(&self, g: &[f32], out: &mut [f32]) -> Result<()> {
        let (rows, width) = self.size()?;
        let m = g.len() / rows.max(1);
        self.parts(|start, part| {
            let count = part.len() / width;
            let g = Matrix::strided(&g[start..], m, count, rows);
            multiply(out, width, g, Matrix::new(part, count, width), 1.0, true);
        })
    }
}

/// `x @ weight^T` for a frozen weight.
///
/// candle's own product computes and keeps the gradients of both the weight and the input. For a frozen weight, that
/// would be most of a training step's memory. The backward pass of this operation computes the input's gradient only.
struct FrozenProduct(FrozenMatrix);

impl CustomOp1 for FrozenProduct {
    fn name(&self) -> &'static str {
        "frozen-product"
    }

    fn cpu_fwd(&self, input: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = self.0.applied(slice(input, layout)?)?;
        Ok((CpuStorage::F32(out), Shape::from((layout.shape().dims2()?.0, self.0.size()?.0))))
    }

    fn cuda_fwd(&self, input: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (m, k) = layout.shape().dims2()?;
        let FrozenMatrix::Held(weight) = &self.0 else { candle_core::bail!("a mapped weight on a GPU") };
        let (storage, weight_layout) = weight.storage_and_layout();
        let Storage::Cuda(on_device) = &*storage else { candle_core::bail!("a weight on another device") };
        let n = weight.dim(0)?;
        Ok((input.matmul(on_device, (1, m, n, k), layout, &weight_layout.transpose(0, 1)?)?, Shape::from((m, n))))
    }

    fn bwd(&self, input: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        if let (FrozenMatrix::Held(weight), false) = (&self.0, input.device().is_cpu()) {
            return Ok(Some(gradient.matmul(weight)?));
        }
        let mut out = vec![0f32; input.elem_count()];
        self.0.add_turned(&values(&gradient)?, &mut out)?;
        Ok(Some(Tensor::from_vec(out, input.shape(), input.device())?))
    }
}

/// `x @ weight^T + bias` over the last dimension, with weight and bias frozen: `x` `[.., d_in]`, `bias` `[d_out]` ->
/// `[.., d_out]`.
pub(crate) fn frozen_linear(x: &Tensor, weight: &FrozenMatrix, bias: Option<&Tensor>) -> Result<Tensor> {
    let (d_out, d_in) = weight.size()?;
    let y = x.reshape(((), d_in))?.contiguous()?.apply_op1(FrozenProduct(weight.clone()))?;
    shaped(&y, x, d_out, bias)
}

/// The rows of `y` in the shape of `x`, with a bias.
fn shaped(y: &Tensor, x: &Tensor, d_out: usize, bias: Option<&Tensor>) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    dims.pop();
    dims.push(d_out);
    let y = y.reshape(dims)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
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
        let mut z = vec![0f32; m * rank];
        multiply(&mut z, rank, Matrix::new(x, m, d_in), Matrix::new(a, rank, d_in).transposed(), 1.0, false);
        let b = Matrix::new(b, d_out, rank).transposed();
        multiply(&mut out, d_out, Matrix::new(&z, m, rank), b, self.scale, true);
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
        let (x, g) = (Matrix::new(&x, m, d_in), &*g);
        let (a, b) = (Matrix::new(&a, rank, d_in), Matrix::new(&b, d_out, rank));
        let g_rows = Matrix::new(g, m, d_out);
        let (mut z, mut of_z) = (vec![0f32; m * rank], vec![0f32; m * rank]);
        multiply(&mut z, rank, x, a.transposed(), 1.0, false);
        multiply(&mut of_z, rank, g_rows, b, self.scale, false);
        let (z, of_z) = (Matrix::new(&z, m, rank), Matrix::new(&of_z, m, rank));
        let mut of_a = vec![0f32; rank * d_in];
        multiply(&mut of_a, d_in, of_z.transposed(), x, 1.0, false);
        let mut of_b = vec![0f32; d_out * rank];
        multiply(&mut of_b, rank, g_rows.transposed(), z, self.scale, false);
        let mut of_x = vec![0f32; m * d_in];
        multiply(&mut of_x, d_in, of_z, a, 1.0, false);
        self.weight.add_turned(g, &mut of_x)?;
        let on_cpu = |values, shape: &Shape| Tensor::from_vec(values, shape, &candle_core::Device::Cpu);
        Ok((Some(on_cpu(of_x, shapes[0])?), Some(on_cpu(of_a, shapes[1])?), Some(on_cpu(of_b, shapes[2])?)))
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
    use candle_core::{Device, Var};

    use super::super::tests::{agree, random};
    use super::*;
    use crate::dtype::DType;
    use crate::plan::Plan;
    use crate::source::Source;

    /// A matrix in memory, and the same one in a file.
    fn both(rows: usize, width: usize) -> (tempfile::TempDir, [FrozenMatrix; 2]) {
        let weight = random(&[rows, width], 7);
        let bytes: Vec<u8> =
            weight.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![rows, width], &bytes).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        std::fs::write(&path, safetensors::serialize([("w", view)], None).unwrap()).unwrap();
        let source: Arc<dyn Source> = Arc::new(crate::formats::safetensors::SafetensorsFile::open(&path).unwrap());
        let planned = Plan::taking(&source).tensors.remove(0);
        assert_eq!(planned.dtype, DType::F32);
        (dir, [FrozenMatrix::Held(weight), FrozenMatrix::Mapped(Arc::new(planned))])
    }

    #[test]
    fn products_and_their_gradients_are_those_of_the_composition() {
        // 2.1 million values, so that the mapped one is decoded in two parts.
        for (rows, width) in [(12, 20), (700, 3000)] {
            let (_dir, matrices) = both(rows, width);
            let FrozenMatrix::Held(held) = &matrices[0] else { panic!() };
            for matrix in &matrices {
                agree(
                    &[random(&[2, 3, width], 1)],
                    |x| frozen_linear(&x[0], matrix, None),
                    |x| super::super::linear(&x[0], held),
                );
                let bias = random(&[rows], 5);
                agree(
                    &[random(&[2, 3, width], 1), random(&[4, width], 2), random(&[rows, 4], 3)],
                    |x| low_rank_linear(&x[0], matrix, Some(&bias), (&x[1], &x[2], 0.5)),
                    |x| {
                        let update = super::super::linear(&super::super::linear(&x[0], &x[1])?, &x[2])?;
                        (super::super::linear(&x[0], held)? + (update * 0.5)?)?.broadcast_add(&bias)
                    },
                );
            }
        }
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient_of_its_own() {
        let x = Var::ones((2, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let weight = Var::ones((3, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let y = frozen_linear(x.as_tensor(), &FrozenMatrix::Held(weight.as_tensor().clone()), None).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&weight).is_none());
        assert_eq!(grads.get(&x).unwrap().to_vec2::<f32>().unwrap(), [[3.0; 4]; 2]);
    }
}
