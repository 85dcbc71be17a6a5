//! DoRA: `m (W + delta) / ||W + delta||`, with a magnitude and a norm for each output.
//!
//! Reference: peft `src/peft/tuners/lora/variants.py` (`merge_unsafe`) and `dora.py`
//! (`get_weight_norm`): everything in f32 (or f64, for a base of F64), the quotient `m / norm` before the product with the weight.
//! KohakuBlueleaf/LyCORIS `lycoris/functional/general.py` (`_weight_decompose`) supports magnitudes per input too, and
//! adds the type's epsilon to norms.

use std::ops::Range;
use std::sync::Arc;

use super::change::Change;
use super::rows::{Factors, ScaleColumns};
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::plan::{Number, PlannedTensor, RowMap};

/// The most values of a transposed weight that are read at a time.
const STRIP_ELEMS: usize = 1 << 20;

/// The change that rescales each row, or each column, of `tensor` after `update` to its magnitude. `eps` is added to
/// the norms.
///
/// For norms of columns, the weight is read by this call.
pub(in crate::adapter) fn rescale(
    tensor: &PlannedTensor,
    update: &Change,
    magnitude: &Factors,
    by_column: bool,
    eps: f32,
) -> Result<Change> {
    let map: Arc<dyn RowMap> = match by_column {
        false => Arc::new(ByRow { magnitude: magnitude.clone(), eps }),
        true => Arc::new(ScaleColumns(match tensor.dtype {
            DType::F64 => column_factors::<f64>(tensor, update, magnitude, eps)?.into(),
            _ => column_factors::<f32>(tensor, update, magnitude, eps)?.into(),
        })),
    };
    Ok(Change::Map { others: Vec::new(), map, transposed: false })
}

/// Magnitudes of rows.
#[derive(Debug)]
struct ByRow {
    magnitude: Factors,
    eps: f32,
}

impl<T: Number> RowMap<T> for ByRow {
    fn apply(&self, rows: Range<usize>, row_len: usize, _: &[Vec<T>], out: &mut [T]) {
        for (magnitude, row) in self.magnitude.of::<T>()[rows].iter().zip(out.chunks_exact_mut(row_len)) {
            let factor = *magnitude / (norm(row) + T::from(self.eps));
            row.iter_mut().for_each(|w| *w *= factor);
        }
    }

    fn in_f64(&self) -> Option<&dyn RowMap<f64>> {
        self.magnitude.in_f64(self)
    }

    fn not_finite(&self) -> Option<&str> {
        Some("an output whose weights are all zero, which DoRA can't give a magnitude")
    }
}

/// The Euclidean norm of contiguous values as torch computes it on the CPU (`ReduceOpsKernel.cpp`,
/// `norm_kernel_tensor_iterator_impl`): lane by lane, then over the lanes in order. Of the values that don't fill all lanes,
/// the last ones, fewer than four, are added with fused multiply-adds, as compilers make of that loop (measured on torch
/// 2.15).
pub(super) fn norm<T: Number>(row: &[T]) -> T {
    let mut lanes = [T::default(); f32::LANES];
    let lanes = &mut lanes[..T::LANES];
    let whole = row.chunks_exact(T::LANES);
    let rest = whole.remainder();
    for values in whole {
        for (sum, v) in lanes.iter_mut().zip(values) {
            *sum += *v * *v;
        }
    }
    let sum = lanes[1..].iter().fold(lanes[0], |sum, lane| sum + *lane);
    let (fours, last) = rest.as_chunks::<4>();
    let sum = fours.as_flattened().iter().fold(sum, |sum, v| sum + *v * *v);
    last.iter().fold(sum, |sum, v| v.mul_add(*v, sum)).sqrt()
}

/// The norm of every column of a matrix with this many. torch sums values that aren't contiguous in order.
pub(super) fn column_norms(values: &[f32], cols: usize) -> Vec<f32> {
    if cols == 1 {
        return vec![norm(values)];
    }
    let mut squares = vec![0.0f32; cols];
    for row in values.chunks_exact(cols) {
        squares.iter_mut().zip(row).for_each(|(sum, v)| *sum += v * v);
    }
    squares.into_iter().map(f32::sqrt).collect()
}

/// `m / norm` of every column of `W + delta`. torch sums values that aren't contiguous in order.
fn column_factors<T: Number>(tensor: &PlannedTensor, update: &Change, magnitude: &Factors, eps: f32) -> Result<Vec<T>> {
    let dtype = if tensor.dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let updated = PlannedTensor { dtype, expr: update.apply(tensor.expr.clone()), ..tensor.clone() };
    let mut squares = vec![T::default(); tensor.row_len()];
    let step = (STRIP_ELEMS / tensor.row_len().max(1)).max(1);
    for start in (0..tensor.rows()).step_by(step) {
        let values = updated.values::<T>(start..(start + step).min(tensor.rows()))?;
        for row in values.chunks_exact(tensor.row_len()) {
            squares.iter_mut().zip(row).for_each(|(sum, v)| *sum += *v * *v);
        }
    }
    let factor = |(square, magnitude): (&T, &T)| *magnitude / (square.sqrt() + T::from(eps));
    let factors: Vec<T> = squares.iter().zip(magnitude.of::<T>()).map(factor).collect();
    match factors.iter().position(|factor| !factor.is_finite()) {
        None => Ok(factors),
        Some(output) => Err(Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name))
            .expected("outputs with a direction, for DoRA to give a magnitude")
            .found(format_args!("output {output}, whose weights are all zero"))
            .not_finite()),
    }
}

/// `m / norm` of every column of the kernel of a convolution, `[d_out, inputs * taps]`: those of an input have one
/// magnitude, and the norm of all of its taps.
///
/// The weight is read by this call.
pub(in crate::adapter) fn input_factors(
    matrix: &PlannedTensor,
    update: &Change,
    magnitude: &[f32],
    eps: f32,
) -> Result<Factors> {
    let updated = PlannedTensor { dtype: DType::F32, expr: update.apply(matrix.expr.clone()), ..matrix.clone() };
    let (values, row_len) = (updated.read()?, matrix.row_len());
    let taps = (row_len / magnitude.len().max(1)).max(1);
    let mut factors = Vec::with_capacity(row_len);
    for (input, magnitude) in magnitude.iter().enumerate() {
        let of_input = values.chunks_exact(row_len).flat_map(|row| &row[input * taps..(input + 1) * taps]);
        let of_input: Vec<f32> = of_input.copied().collect();
        factors.resize(factors.len() + taps, magnitude / (norm(&of_input) + eps));
    }
    Ok(factors.into())
}

#[cfg(test)]
mod tests {
    use super::super::change::{LowRank, WeightLayout};
    use super::*;
    use crate::plan::Expr;

    fn values(shape: &[usize], values: &[f32]) -> Expr {
        Expr::Values { shape: shape.to_vec(), values: values.into() }
    }

    #[test]
    fn outputs_get_their_magnitude_whichever_way_round_the_weight_is_kept() {
        // W + B A = [[3, 4], [0, 2]], with outputs as rows.
        let update = |transposed| LowRank {
            scale: 1.0,
            alpha: None,
            a: values(&[1, 2], &[1., 0.]),
            b: values(&[2, 1], &[1., 0.]),
            layout: WeightLayout::of_linear(transposed),
            rounded: None,
        };
        let expected = [6., 8., 0., 10.];
        for (transposed, weight, expected) in
            [(false, [2., 4., 0., 2.], expected), (true, [2., 0., 4., 2.], [6., 0., 8., 10.])]
        {
            let expr = values(&[2, 2], &weight);
            let tensor = PlannedTensor { name: "w".into(), dtype: DType::F32, shape: vec![2, 2], expr };
            let update = Change::LowRank(update(transposed));
            let change = rescale(&tensor, &update, &vec![10.0f32; 2].into(), transposed, 0.0).unwrap();
            let expr = change.apply(update.apply(tensor.expr.clone()));
            assert_eq!(PlannedTensor { expr, ..tensor }.read().unwrap(), expected);
        }
    }

    #[test]
    fn norms_have_the_bits_of_torch() {
        for (count, bits) in TORCH {
            let values: Vec<f32> = (1..=count).map(|i| 1.0 / (i as f32).sqrt()).collect();
            assert_eq!(norm(&values).to_bits(), bits, "{count}");
        }
    }

    /// Counts, and the norms of `1 / sqrt(i)` in float32 by torch 2.15.0.
    const TORCH: [(u32, u32); 7] = [
        (2, 0x3f9cc471),
        (3, 0x3fad5015),
        (5, 0x3fc16ac0),
        (7, 0x3fce1c2f),
        (11, 0x3fde6f8e),
        (14, 0x3fe6cf8c),
        (23, 0x3ff759ea),
    ];

    #[test]
    fn outputs_of_zeros_are_refused() {
        for transposed in [false, true] {
            let tensor = PlannedTensor {
                name: "w".into(),
                dtype: DType::F32,
                shape: vec![2, 2],
                expr: values(&[2, 2], &[0.; 4]),
            };
            let zeros = |shape: &[usize]| values(shape, &[0., 0.]);
            let update = LowRank {
                scale: 1.0,
                alpha: None,
                a: zeros(&[1, 2]),
                b: zeros(&[2, 1]),
                layout: WeightLayout::of_linear(transposed),
                rounded: None,
            };
            let change = rescale(&tensor, &Change::LowRank(update), &vec![1.0f32; 2].into(), transposed, 0.0);
            let read =
                |change: Change| PlannedTensor { expr: change.apply(tensor.expr.clone()), ..tensor.clone() }.read();
            let error = change.and_then(read).unwrap_err().to_string();
            assert!(error.contains("whose weights are all zero"), "{error}");
        }
    }
}
