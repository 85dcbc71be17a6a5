//! Tucker decompositions of convolution kernels, which LoHa and LoKr have: a core with the taps, and a factor for each
//! side.
//!
//! Reference: huggingface/peft `src/peft/tuners/loha/layer.py` (`HadaWeightCP`), `lokr/layer.py` (`make_weight_cp`): one
//! einsum, which torch contracts from left to right.

use crate::plan::{Expr, Sums};

/// A core `[rank, rank, taps]` and its factors for outputs and inputs, `[rank, d_out]` and `[rank, inputs]`. The core's
/// first dimension belongs to outputs.
pub(in crate::adapter) struct Tucker {
    pub(in crate::adapter) core: Expr,
    pub(in crate::adapter) outputs: Expr,
    pub(in crate::adapter) inputs: Expr,
}

/// The factor that is contracted first, which decides about the last bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::adapter) enum First {
    Outputs,
    Inputs,
}

impl Tucker {
    /// The kernel as a matrix, `[d_out, inputs * taps]`.
    pub(in crate::adapter) fn matrix(self, first: First) -> Expr {
        let Self { core, outputs, inputs } = self;
        let taps: usize = core.shape()[2..].iter().product();
        let [rank, other] = [core.shape()[0], core.shape()[1]];
        let core = shaped(core, vec![rank, other, taps]);
        let made = match first {
            First::Outputs => {
                let of_outputs = contracted(core, outputs, Sums::EinsumTurned);
                swapped(contracted(swapped(of_outputs), inputs, Sums::Einsum))
            }
            First::Inputs => {
                let of_inputs = contracted(swapped(core), inputs, Sums::Einsum);
                contracted(swapped(of_inputs), outputs, Sums::Einsum)
            }
        };
        let shape = made.shape();
        shaped(made, vec![shape[0], shape[1] * taps])
    }
}

/// `of` `[n, m, taps]` summed over its first dimension with the weights `by` `[n, count]`: `[count, m, taps]`.
fn contracted(of: Expr, by: Expr, sums: Sums) -> Expr {
    let (shape, count) = (of.shape(), by.shape()[1]);
    let right = Box::new(shaped(of, vec![shape[0], shape[1] * shape[2]]));
    let product = Expr::Product { scale: 1.0, left: Box::new(Expr::Transpose(Box::new(by))), right, sums };
    shaped(product, vec![count, shape[1], shape[2]])
}

/// `of` `[n, m, taps]` as `[m, n, taps]`.
fn swapped(of: Expr) -> Expr {
    let shape = of.shape();
    let (n, m, taps) = (shape[0], shape[1], shape[2]);
    let rows = shaped(of, vec![n * m, taps]);
    shaped(Expr::reordered(rows, |row| row % n * m + row / n), vec![m, n, taps])
}

fn shaped(of: Expr, shape: Vec<usize>) -> Expr {
    Expr::Reshape { of: Box::new(of), shape }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::plan::PlannedTensor;

    #[test]
    fn both_orders_give_the_sum_over_both_ranks() {
        let (rank, d_out, d_in, taps) = (3, 4, 5, 6);
        let whole = |count: usize, step: usize| (0..count).map(|i| (i * step % 7) as f32 - 3.0).collect::<Vec<_>>();
        let (core, a, b) = (whole(rank * rank * taps, 5), whole(rank * d_out, 3), whole(rank * d_in, 2));
        let values = |shape: &[usize], values: &[f32]| Expr::Values { shape: shape.to_vec(), values: values.into() };
        let mut expected = Vec::new();
        for place in 0..d_out * d_in * taps {
            let (out, input, tap) = (place / (d_in * taps), place / taps % d_in, place % taps);
            let term =
                |i: usize, j: usize| core[(i * rank + j) * taps + tap] * a[i * d_out + out] * b[j * d_in + input];
            expected.push((0..rank * rank).map(|ij| term(ij / rank, ij % rank)).sum::<f32>());
        }
        for first in [First::Outputs, First::Inputs] {
            let tucker = Tucker {
                core: values(&[rank, rank, 2, 3], &core),
                outputs: values(&[rank, d_out], &a),
                inputs: values(&[rank, d_in], &b),
            };
            let shape = vec![d_out, d_in * taps];
            let tensor = PlannedTensor { name: "w".into(), dtype: DType::F32, shape, expr: tucker.matrix(first) };
            assert_eq!(tensor.read().unwrap(), expected, "{first:?}");
        }
    }
}
