//! DoRA: the rows of a weight with its low-rank update, scaled to magnitudes that are trained.
//!
//! Reference: huggingface/peft `src/peft/tuners/lora/dora.py` (`DoraLinearLayer`). As there, the lengths of rows are
//! constants in the backward pass: `y = m / ||W + s B A|| * (x W^T + s x A^T B^T) + bias`.

use candle_core::{Result, Tensor};

use super::frozen::FrozenMatrix;
use super::low_rank::low_rank_linear;
use super::product::{Matrix, multiply};
use super::rows::dot;
use super::slices::values;

/// The most values of `W + s B A` that exist at a time: 8 MiB.
const SUMS: usize = 1 << 21;

/// The lengths of the rows of `W + scale * B A`, `[d_out]`, without a record of their computation: `a` `[rank, d_in]`, `b`
/// `[d_out, rank]`.
pub(crate) fn row_lengths(weight: &FrozenMatrix, (a, b, scale): (&Tensor, &Tensor, f64)) -> Result<Tensor> {
    let (a, b) = (a.detach().contiguous()?, b.detach().contiguous()?);
    if let Some(weight) = weight.on_device() {
        return (weight + (b.matmul(&a)? * scale)?)?.sqr()?.sum(1)?.sqrt();
    }
    let ((d_out, d_in), rank) = (weight.size()?, a.dim(0)?);
    let (a_values, b_values) = (values(&a)?, values(&b)?);
    let mut squares = vec![0f32; d_out];
    let mut sums = Vec::new();
    let width = if weight.is_turned() { d_out } else { d_in };
    let at_once = (SUMS / width.max(1)).max(1) * width.max(1);
    weight.parts(|start, part| {
        for (number, part) in part.chunks(at_once).enumerate() {
            let (start, count) = (start + number * at_once / width, part.len() / width);
            sums.clear();
            sums.extend_from_slice(part);
            if weight.is_turned() {
                let a = Matrix::strided(&a_values[start..], rank, count, d_in).transposed();
                let b = Matrix::new(&b_values, d_out, rank).transposed();
                multiply(&mut sums, width, a, b, scale as f32, true);
                for inputs in sums.chunks_exact(width) {
                    squares.iter_mut().zip(inputs).for_each(|(square, value)| *square += value * value);
                }
            } else {
                let b = Matrix::new(&b_values[start * rank..], count, rank);
                multiply(&mut sums, width, b, Matrix::new(&a_values, rank, d_in), scale as f32, true);
                let rows = squares[start..start + count].iter_mut().zip(sums.chunks_exact(width));
                rows.for_each(|(square, row)| *square = dot(row, row));
            }
        }
    })?;
    squares.iter_mut().for_each(|square| *square = square.sqrt());
    Tensor::from_vec(squares, d_out, a.device())
}

/// As [`low_rank_linear`] with every output scaled so that its row of `W + scale * B A` has the length that `magnitude`,
/// `[d_out]`, gives it; with gradients of `x`, `a`, `b` and `magnitude`.
pub(crate) fn dora_linear(
    x: &Tensor,
    weight: &FrozenMatrix,
    bias: Option<&Tensor>,
    update: (&Tensor, &Tensor, f64),
    magnitude: &Tensor,
) -> Result<Tensor> {
    let factor = (magnitude / row_lengths(weight, update)?)?;
    let y = low_rank_linear(x, weight, None, update)?.broadcast_mul(&factor)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

#[cfg(test)]
mod tests {
    use super::super::frozen::tests::all;
    use super::super::tests::{agree, random};
    use super::*;

    #[test]
    fn rows_have_their_magnitudes_wherever_the_weight_is() {
        for (rows, width) in [(12, 20), (700, 3000)] {
            let (_dir, held, matrices) = all(rows, width);
            let bias = random(&[rows], 5);
            let magnitude = (random(&[rows], 6).abs().unwrap() + 0.5).unwrap();
            for matrix in &matrices {
                agree(
                    &[random(&[2, 3, width], 1), random(&[4, width], 2), random(&[rows, 4], 3), magnitude.clone()],
                    |x| dora_linear(&x[0], matrix, Some(&bias), (&x[1], &x[2], 0.5), &x[3]),
                    |x| {
                        let update = (x[2].matmul(&x[1])? * 0.5)?;
                        let lengths = (&held + &update)?.sqr()?.sum(1)?.sqrt()?.detach();
                        // The weight of each output before it is scaled has a gradient, its length hasn't.
                        let y = super::super::linear(&x[0], &(&held + &update)?)?;
                        y.broadcast_mul(&(&x[3] / lengths)?)?.broadcast_add(&bias)
                    },
                );
            }
        }
    }
}
