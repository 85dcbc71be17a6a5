//! Products with frozen weights, which have no gradient of their own.

use std::ops::Range;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Device, Layout, Result, Shape, Storage, Tensor};
use rayon::prelude::*;

use super::product::{Matrix, multiply};
use super::slices::{slice, values};
use crate::plan::{PlannedTensor, Run, StoredRows};
use crate::quant::dot::{Activations, can_multiply, multiply_rows};

/// A matrix of the base, `[d_out, d_in]`.
#[derive(Clone)]
pub(crate) struct FrozenMatrix {
    values: Stored,
    /// Whether the file has it as `[d_in, d_out]`.
    is_turned: bool,
}

#[derive(Clone)]
enum Stored {
    /// Its values in f32, on the device, `[d_out, d_in]`.
    Held(Tensor),
    /// In its file, some rows of a tensor: they are decoded when they are used, some at a time. On the CPU.
    Mapped(Arc<MappedRows>),
}

/// Rows of a tensor in its file.
struct MappedRows {
    tensor: Arc<PlannedTensor>,
    rows: Range<usize>,
    /// Where they are stored without a change of values.
    stored: Option<StoredRows>,
}

/// The most rows of activations for which weights are expanded in registers and not decoded first.
const FEW: usize = 4;

/// The values of a mapped matrix that are decoded at a time: 8 MiB.
const DECODED: usize = 1 << 21;

impl FrozenMatrix {
    /// A matrix in memory.
    pub(crate) fn held(values: Tensor) -> Self {
        Self { values: Stored::Held(values), is_turned: false }
    }

    /// A matrix in its file, which has it as `[d_in, d_out]` if `is_turned`.
    pub(crate) fn mapped(tensor: Arc<PlannedTensor>, is_turned: bool) -> Self {
        let rows = 0..tensor.rows();
        Self::part(&tensor, rows, is_turned)
    }

    /// Some rows of a tensor as a matrix in its file.
    pub(crate) fn part(tensor: &Arc<PlannedTensor>, rows: Range<usize>, is_turned: bool) -> Self {
        let stored = if is_turned { None } else { StoredRows::of(tensor, rows.clone()) };
        let stored = stored.filter(|stored| can_multiply(stored.dtype, stored.row_len));
        Self { values: Stored::Mapped(Arc::new(MappedRows { tensor: tensor.clone(), rows, stored })), is_turned }
    }

    /// Whether [`FrozenMatrix::parts`] gives columns of the matrix, because the file has it as `[d_in, d_out]`.
    pub(super) fn is_turned(&self) -> bool {
        self.is_turned
    }

    /// The matrix on a device that isn't the CPU, `[d_out, d_in]`.
    pub(super) fn on_device(&self) -> Option<&Tensor> {
        match &self.values {
            Stored::Held(tensor) if !tensor.device().is_cpu() => Some(tensor),
            _ => None,
        }
    }

    /// `d_out` and `d_in`.
    pub(crate) fn size(&self) -> Result<(usize, usize)> {
        let (rows, width) = self.stored_size()?;
        Ok(if self.is_turned { (width, rows) } else { (rows, width) })
    }

    fn stored_size(&self) -> Result<(usize, usize)> {
        match &self.values {
            Stored::Held(tensor) => tensor.dims2(),
            Stored::Mapped(mapped) => Ok((mapped.rows.len(), mapped.tensor.row_len())),
        }
    }

    /// Calls `use_rows` with the first of some stored rows and their values, until all had their turn.
    pub(super) fn parts(&self, mut use_rows: impl FnMut(usize, &[f32])) -> Result<()> {
        match &self.values {
            Stored::Held(tensor) => use_rows(0, &values(tensor)?),
            Stored::Mapped(mapped) => {
                let MappedRows { tensor, rows, .. } = &**mapped;
                let width = tensor.row_len().max(1);
                let count = (DECODED / width).clamp(1, rows.len().max(1));
                let mut decoded = vec![0f32; count * width];
                for start in (0..rows.len()).step_by(count) {
                    let decoded = &mut decoded[..count.min(rows.len() - start) * width];
                    let first = rows.start + start;
                    let filled = tensor.fill(first..first + decoded.len() / width, decoded);
                    filled.map_err(|error| candle_core::Error::Msg(error.to_string()))?;
                    use_rows(start, decoded);
                }
            }
        }
        Ok(())
    }

    /// The stored rows, if they are multiplied without decoding them for `m` rows of activations.
    fn stored_for(&self, m: usize) -> Option<&StoredRows> {
        match (&self.values, m) {
            (Stored::Mapped(mapped), 1..=FEW) => mapped.stored.as_ref(),
            _ => None,
        }
    }

    /// Checks stored rows once, see [`StoredRows::check`].
    fn check(&self) -> crate::Result<()> {
        match &self.values {
            Stored::Mapped(mapped) => mapped.stored.as_ref().map_or(Ok(()), |stored| stored.check(&mapped.tensor)),
            Stored::Held(_) => Ok(()),
        }
    }

    /// `x W^T`, `[m, d_in]` -> `[m, d_out]`, on the CPU.
    pub(super) fn applied(&self, x: &[f32]) -> Result<Vec<f32>> {
        let (d_out, d_in) = self.size()?;
        let m = x.len() / d_in.max(1);
        if let Some(stored) = self.stored_for(m) {
            self.check().map_err(|error| candle_core::Error::Msg(error.to_string()))?;
            return Ok(applied_to_few(&[stored], x, m).remove(0));
        }
        let mut out = vec![0f32; m * d_out];
        self.parts(|start, part| match self.is_turned {
            false => {
                let part = Matrix::new(part, part.len() / d_in, d_in);
                multiply(&mut out[start..], d_out, Matrix::new(x, m, d_in), part.transposed(), 1.0, false);
            }
            true => {
                let count = part.len() / d_out;
                let x = Matrix::strided(&x[start..], m, count, d_in);
                multiply(&mut out, d_out, x, Matrix::new(part, count, d_out), 1.0, start > 0);
            }
        })?;
        Ok(out)
    }

    /// Adds `g W` to `out`: `[m, d_out]` -> `[m, d_in]`, on the CPU.
    pub(super) fn add_turned(&self, g: &[f32], out: &mut [f32]) -> Result<()> {
        let (d_out, d_in) = self.size()?;
        let m = g.len() / d_out.max(1);
        self.parts(|start, part| match self.is_turned {
            false => {
                let count = part.len() / d_in;
                let g = Matrix::strided(&g[start..], m, count, d_out);
                multiply(out, d_in, g, Matrix::new(part, count, d_in), 1.0, true);
            }
            true => {
                let part = Matrix::new(part, part.len() / d_out, d_out);
                multiply(&mut out[start..], d_in, Matrix::new(g, m, d_out), part.transposed(), 1.0, true);
            }
        })
    }

    /// Rows of a matrix that isn't transposed, `[rows.len(), d_in]`.
    pub(crate) fn rows_at(&self, rows: &[u32], device: &Device) -> crate::Result<Tensor> {
        match &self.values {
            Stored::Held(tensor) => Ok(tensor.index_select(&Tensor::new(rows, device)?, 0)?),
            Stored::Mapped(mapped) => {
                let MappedRows { tensor, rows: all, .. } = &**mapped;
                let mut values = Vec::with_capacity(rows.len() * tensor.row_len());
                for row in rows {
                    let row = all.start + *row as usize;
                    values.extend(tensor.read_rows(row..row + 1)?);
                }
                Ok(Tensor::from_vec(values, (rows.len(), tensor.row_len()), device)?)
            }
        }
    }
}

/// `x W^T` of several weights for few rows of `x`, without decoded weights: `[m, d_out]` each. All in one round of the
/// threads.
fn applied_to_few(all: &[&StoredRows], x: &[f32], m: usize) -> Vec<Vec<f32>> {
    let x = Activations::new(x, x.len() / m);
    // By rows of the weight: a thread's part is contiguous.
    let rows = |stored: &StoredRows| stored.parts.iter().map(|(count, _)| count).sum::<usize>();
    let mut outs: Vec<Vec<f32>> = all.iter().map(|stored| vec![0f32; rows(stored) * m]).collect();
    let mut tasks = Vec::new();
    for (stored, out) in all.iter().zip(&mut outs) {
        let mut rest = out.as_mut_slice();
        for (count, runs) in &stored.parts {
            let (part, others) = rest.split_at_mut(count * m);
            tasks.push((stored.dtype, runs, part));
            rest = others;
        }
    }
    tasks.into_par_iter().for_each(|(dtype, runs, mut part)| {
        for Run { tensor, rows } in runs {
            let (of_run, others) = part.split_at_mut(rows.len() * m);
            multiply_rows(dtype, &tensor.rows(rows.clone()), &x, of_run);
            part = others;
        }
    });
    let by_rows = |out: Vec<f32>| match m {
        1 => out,
        _ => (0..m).flat_map(|row| out[row..].iter().step_by(m).copied().collect::<Vec<_>>()).collect(),
    };
    outs.into_iter().map(by_rows).collect()
}

/// [`frozen_linear`] of several weights with the same input, without gradients: faster for few rows.
pub(crate) fn frozen_linears(x: &Tensor, all: &[(&FrozenMatrix, Option<&Tensor>)]) -> crate::Result<Vec<Tensor>> {
    let d_in = x.dims().last().copied().unwrap_or(1).max(1);
    let m = x.elem_count() / d_in;
    let stored: Option<Vec<&StoredRows>> = all.iter().map(|(weight, _)| weight.stored_for(m)).collect();
    let Some(stored) = stored.filter(|_| x.device().is_cpu()) else {
        return all.iter().map(|(weight, bias)| Ok(frozen_linear(x, weight, *bias)?)).collect();
    };
    for (weight, _) in all {
        weight.check()?;
    }
    let x_values = x.contiguous()?;
    let outs = applied_to_few(&stored, &values(&x_values)?, m);
    let made = outs.into_iter().zip(all).map(|(out, (_, bias))| {
        let width = out.len() / m.max(1);
        Ok(shaped(&Tensor::from_vec(out, (m, width), x.device())?, x, width, *bias)?)
    });
    made.collect()
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
        let Stored::Held(weight) = &self.0.values else { candle_core::bail!("a mapped weight on a GPU") };
        let (storage, weight_layout) = weight.storage_and_layout();
        let Storage::Cuda(on_device) = &*storage else { candle_core::bail!("a weight on another device") };
        let n = weight.dim(0)?;
        Ok((input.matmul(on_device, (1, m, n, k), layout, &weight_layout.transpose(0, 1)?)?, Shape::from((m, n))))
    }

    fn bwd(&self, input: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        if let (Stored::Held(weight), false) = (&self.0.values, input.device().is_cpu()) {
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
pub(super) fn shaped(y: &Tensor, x: &Tensor, d_out: usize, bias: Option<&Tensor>) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    dims.pop();
    dims.push(d_out);
    let y = y.reshape(dims)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use candle_core::{Device, Var};

    use super::super::low_rank::low_rank_linear;
    use super::super::tests::{agree, random};
    use super::*;
    use crate::dtype::DType;
    use crate::plan::Plan;
    use crate::source::Source;

    /// A matrix of `rows` rows in memory, in a file, and there as `[d_in, d_out]`.
    pub(in super::super) fn all(rows: usize, width: usize) -> (tempfile::TempDir, Tensor, [FrozenMatrix; 3]) {
        let weight = random(&[rows, width], 7);
        let bytes = |weight: &Tensor| -> Vec<u8> {
            let values = weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.iter().flat_map(|v| v.to_le_bytes()).collect()
        };
        let (plain, turned) = (bytes(&weight), bytes(&weight.t().unwrap()));
        let view = |shape: [usize; 2], bytes| {
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes).unwrap()
        };
        let tensors = [("a", view([rows, width], &plain)), ("b", view([width, rows], &turned))];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
        let source: Arc<dyn Source> = Arc::new(crate::formats::safetensors::SafetensorsFile::open(&path).unwrap());
        let plan = Plan::taking(&source);
        let mapped = |name: &str, is_turned: bool| {
            let planned = plan.get(name).unwrap();
            assert_eq!(planned.dtype, DType::F32);
            FrozenMatrix::mapped(Arc::new(planned.clone()), is_turned)
        };
        let matrices = [FrozenMatrix::held(weight.clone()), mapped("a", false), mapped("b", true)];
        (dir, weight, matrices)
    }

    #[test]
    fn products_and_their_gradients_are_those_of_the_composition() {
        // 2.1 million values, so that the mapped ones are decoded in two parts.
        for (rows, width) in [(12, 20), (700, 3000)] {
            let (_dir, held, matrices) = all(rows, width);
            for matrix in &matrices {
                agree(
                    &[random(&[2, 3, width], 1)],
                    |x| frozen_linear(&x[0], matrix, None),
                    |x| super::super::linear(&x[0], &held),
                );
                let bias = random(&[rows], 5);
                agree(
                    &[random(&[2, 3, width], 1), random(&[4, width], 2), random(&[rows, 4], 3)],
                    |x| low_rank_linear(&x[0], matrix, Some(&bias), (&x[1], &x[2], 0.5)),
                    |x| {
                        let update = super::super::linear(&super::super::linear(&x[0], &x[1])?, &x[2])?;
                        (super::super::linear(&x[0], &held)? + (update * 0.5)?)?.broadcast_add(&bias)
                    },
                );
            }
        }
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient_of_its_own() {
        let x = Var::ones((2, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let weight = Var::ones((3, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let y = frozen_linear(x.as_tensor(), &FrozenMatrix::held(weight.as_tensor().clone()), None).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&weight).is_none());
        assert_eq!(grads.get(&x).unwrap().to_vec2::<f32>().unwrap(), [[3.0; 4]; 2]);
    }
}
