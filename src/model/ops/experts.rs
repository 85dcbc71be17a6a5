//! Products of rows with the matrices of their experts, and the low-rank updates of these matrices.
//!
//! Rows are sorted by expert, so that each expert multiplies rows that follow each other.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor};

use super::frozen::{FrozenMatrix, frozen_linear};
use super::low_rank::Update;
use super::product::Matrix;
use super::slices::{on_cpu, slice, values};

/// Which rows belong to which expert.
#[derive(Clone)]
pub(crate) struct RowsOfExperts {
    /// The first of the experts, and the rows of each from it on.
    first: usize,
    rows: Arc<[Range<usize>]>,
}

impl RowsOfExperts {
    /// The experts from `first` on have so many rows each.
    pub(crate) fn new(first: usize, counts: &[usize]) -> Self {
        let mut end = 0;
        let rows = counts.iter().map(|count| {
            end += count;
            end - count..end
        });
        Self { first, rows: rows.collect() }
    }

    /// The experts that have rows, with their rows.
    pub(crate) fn used(&self) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let numbered = self.rows.iter().enumerate().map(|(place, rows)| (self.first + place, rows.clone()));
        numbered.filter(|(_, rows)| !rows.is_empty())
    }

    /// The expert of each row.
    fn experts(&self) -> Vec<u32> {
        self.used().flat_map(|(expert, rows)| rows.map(move |_| expert as u32)).collect()
    }

    /// What `part` makes of each expert's rows of `x`, joined.
    fn joined(&self, x: &Tensor, d_out: usize, part: impl Fn(usize, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let of_expert = |(expert, rows): (usize, Range<usize>)| part(expert, &x.narrow(0, rows.start, rows.len())?);
        let parts: Vec<Tensor> = self.used().map(of_expert).collect::<Result<_>>()?;
        match parts.is_empty() {
            true => Tensor::zeros((0, d_out), x.dtype(), x.device()),
            false => Tensor::cat(&parts, 0),
        }
    }
}

/// `x W^T` with each row's own frozen matrix.
struct ExpertProduct {
    weights: Vec<FrozenMatrix>,
    rows: RowsOfExperts,
    d_out: usize,
}

impl CustomOp1 for ExpertProduct {
    fn name(&self) -> &'static str {
        "expert-product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, d_in) = layout.shape().dims2()?;
        let x = slice(x, layout)?;
        let mut out = vec![0f32; n * self.d_out];
        for (expert, rows) in self.rows.used() {
            let y = self.weights[expert].applied(&x[rows.start * d_in..rows.end * d_in])?;
            out[rows.start * self.d_out..rows.end * self.d_out].copy_from_slice(&y);
        }
        Ok((CpuStorage::F32(out), Shape::from((n, self.d_out))))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let d_in = x.dim(1)?;
        let gradient = gradient.contiguous()?;
        let g = values(&gradient)?;
        let mut of_x = vec![0f32; x.elem_count()];
        for (expert, rows) in self.rows.used() {
            let g = &g[rows.start * self.d_out..rows.end * self.d_out];
            self.weights[expert].add_turned(g, &mut of_x[rows.start * d_in..rows.end * d_in])?;
        }
        on_cpu(of_x, x.shape())
    }
}

/// `x W_e^T + bias_e` for each row of `x`, `[n, d_in]`, with the matrix of its expert `e`: `[n, d_out]`. Matrices and
/// biases, `[experts, d_out]`, are frozen.
pub(crate) fn expert_linear(
    x: &Tensor,
    weights: &[FrozenMatrix],
    bias: Option<&Tensor>,
    rows: &RowsOfExperts,
) -> Result<Tensor> {
    let d_out = weights.first().map_or(Ok(0), |weight| Ok::<_, candle_core::Error>(weight.size()?.0))?;
    let y = match x.device().is_cpu() {
        true => x.contiguous()?.apply_op1(ExpertProduct { weights: weights.to_vec(), rows: rows.clone(), d_out })?,
        false => rows.joined(x, d_out, |expert, x| frozen_linear(x, &weights[expert], None))?,
    };
    match bias {
        Some(bias) => y + bias.index_select(&Tensor::new(rows.experts(), x.device())?, 0)?,
        None => Ok(y),
    }
}

/// The factors of low-rank updates of one matrix of every expert, in PEFT's layout of a parameter of three dimensions.
#[derive(Debug, Clone)]
pub struct ExpertFactors {
    /// `[experts * r, d_in]`: the rows of an expert follow each other.
    pub a: Tensor,
    /// `[d_out, r * experts]`: the columns of all experts take turns.
    pub b: Tensor,
    /// The number of experts.
    pub experts: usize,
    /// The factor of every update.
    pub scale: f64,
}

/// `scale * x A_e^T B_e^T`.
struct ExpertUpdate {
    experts: usize,
    scale: f32,
    rows: RowsOfExperts,
}

impl ExpertUpdate {
    /// The places of the factor `B_e` of one expert among those of all, for its values `[d_out, r]` in their order.
    fn places_in_b(&self, expert: usize, d_out: usize, rank: usize) -> impl Iterator<Item = usize> + use<> {
        let experts = self.experts;
        (0..d_out * rank).map(move |value| value * experts + expert)
    }
}

impl CustomOp3 for ExpertUpdate {
    fn name(&self) -> &'static str {
        "expert-update"
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
        let ((n, d_in), d_out) = (x_layout.shape().dims2()?, b_layout.shape().dims2()?.0);
        let rank = a_layout.shape().dims2()?.0 / self.experts;
        let (x, a, b) = (slice(x, x_layout)?, slice(a, a_layout)?, slice(b, b_layout)?);
        let mut out = vec![0f32; n * d_out];
        for (expert, rows) in self.rows.used() {
            let b: Vec<f32> = self.places_in_b(expert, d_out, rank).map(|place| b[place]).collect();
            let a = Matrix::new(&a[expert * rank * d_in..], rank, d_in);
            let update = Update { a, b: Matrix::new(&b, d_out, rank), scale: self.scale };
            let x = Matrix::new(&x[rows.start * d_in..], rows.len(), d_in);
            update.apply(x, &mut out[rows.start * d_out..], false);
        }
        Ok((CpuStorage::F32(out), Shape::from((n, d_out))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (d_in, d_out, rank) = (x.dim(1)?, b.dim(0)?, a.dim(0)? / self.experts);
        let (shapes, gradient) = ([x.shape(), a.shape(), b.shape()], gradient.contiguous()?);
        let (x, a, b, g) = (values(x)?, values(a)?, values(b)?, values(&gradient)?);
        let (mut of_x, mut of_a, mut of_b) = (vec![0f32; x.len()], vec![0f32; a.len()], vec![0f32; b.len()]);
        for (expert, rows) in self.rows.used() {
            let own_b: Vec<f32> = self.places_in_b(expert, d_out, rank).map(|place| b[place]).collect();
            let a = Matrix::new(&a[expert * rank * d_in..], rank, d_in);
            let update = Update { a, b: Matrix::new(&own_b, d_out, rank), scale: self.scale };
            let x = Matrix::new(&x[rows.start * d_in..], rows.len(), d_in);
            let g = Matrix::new(&g[rows.start * d_out..], rows.len(), d_out);
            let mut of_own_b = vec![0f32; own_b.len()];
            let (of_x, of_a) = (&mut of_x[rows.start * d_in..], &mut of_a[expert * rank * d_in..]);
            update.gradients(x, g, [of_x, of_a, &mut of_own_b]);
            self.places_in_b(expert, d_out, rank).zip(of_own_b).for_each(|(place, value)| of_b[place] = value);
        }
        Ok((on_cpu(of_x, shapes[0])?, on_cpu(of_a, shapes[1])?, on_cpu(of_b, shapes[2])?))
    }
}

/// What low-rank updates of the experts' matrices add for each row of `x`, `[n, d_in]` -> `[n, d_out]`, with gradients
/// of `x` and of both factors.
pub(crate) fn expert_update(x: &Tensor, factors: &ExpertFactors, rows: &RowsOfExperts) -> Result<Tensor> {
    let ExpertFactors { a, b, experts, scale } = factors;
    if x.device().is_cpu() {
        let update = ExpertUpdate { experts: *experts, scale: *scale as f32, rows: rows.clone() };
        return x.contiguous()?.apply_op3(&a.contiguous()?, &b.contiguous()?, update);
    }
    let (rank, d_out) = (a.dim(0)? / experts, b.dim(0)?);
    let b = b.reshape((d_out, rank, *experts))?;
    rows.joined(x, d_out, |expert, x| {
        let (a, b) = (a.narrow(0, expert * rank, rank)?, b.narrow(2, expert, 1)?.squeeze(2)?.contiguous()?);
        super::linear(&super::linear(x, &a)?, &b)? * *scale
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{agree, random};
    use super::*;

    #[test]
    fn experts_multiply_their_own_rows_and_give_their_gradients() {
        let held: Vec<Tensor> = (0..4).map(|seed| random(&[6, 5], seed)).collect();
        let weights: Vec<FrozenMatrix> = held.iter().cloned().map(FrozenMatrix::held).collect();
        let bias = random(&[4, 6], 9);
        // The first and the third expert have no rows.
        let rows = RowsOfExperts::new(0, &[0, 3, 0, 2]);
        let by_expert = |x: &Tensor, part: &dyn Fn(usize, &Tensor) -> Result<Tensor>| {
            let part = |expert: usize, start, count| part(expert, &x.narrow(0, start, count)?);
            Tensor::cat(&[part(1, 0, 3)?, part(3, 3, 2)?], 0)
        };
        agree(
            &[random(&[5, 5], 11)],
            |x| expert_linear(&x[0], &weights, Some(&bias), &rows),
            |x| {
                by_expert(&x[0], &|expert, x| super::super::linear(x, &held[expert])?.broadcast_add(&bias.get(expert)?))
            },
        );
        let (experts, rank) = (4, 2);
        agree(
            &[random(&[5, 5], 11), random(&[experts * rank, 5], 12), random(&[6, rank * experts], 13)],
            |x| {
                let factors = ExpertFactors { a: x[1].clone(), b: x[2].clone(), experts, scale: 0.5 };
                expert_update(&x[0], &factors, &rows)
            },
            |x| {
                let b = x[2].reshape((6, rank, experts))?;
                by_expert(&x[0], &|expert, rows| {
                    let a = x[1].narrow(0, expert * rank, rank)?;
                    let b = b.narrow(2, expert, 1)?.squeeze(2)?;
                    super::super::linear(&super::super::linear(rows, &a)?, &b)? * 0.5
                })
            },
        );
    }
}
