//! Computations with whole weights of the base, before the pass: only strips of the weight are in memory.

use super::module_weight::Weight;
use crate::dtype::DType;
use crate::error::Result;
use crate::linalg::{Matrix, from_rows};
use crate::plan::{Expr, PlannedTensor, TensorRef, add_product, run_len};

/// The most values of a weight that are read at a time.
const STRIP_ELEMS: usize = 1 << 20;

/// The rows of a weight that are read at a time.
const STRIP_ROWS: usize = 64;

/// `left @ W`, `[rows, d_in]`, for a matrix of this many rows and a column for each output. The sums have torch's order;
/// `fused` says whether they are made of fused multiply-adds.
///
/// # Errors
/// Those of reading the weight.
pub(super) fn times_weight(left: &[f32], rows: usize, weight: &Weight, fused: bool) -> Result<Vec<f32>> {
    let (d_out, d_in) = (weight.d_out, weight.d_in);
    let mut product = vec![0.0; rows * d_in];
    if weight.transposed {
        // A row of the tensor has all that one input is multiplied with.
        let turned: Vec<f32> = (0..d_out * rows).map(|i| left[i % rows * d_out + i / rows]).collect();
        let step = (STRIP_ELEMS / d_out).max(1);
        for start in (0..d_in).step_by(step) {
            let inputs = start..(start + step).min(d_in);
            let values = weight.tensor.read_rows(inputs.clone())?;
            let mut strip = vec![0.0; inputs.len() * rows];
            add_product(&values, &turned, d_out, fused, &mut strip);
            for (input, sums) in inputs.zip(strip.chunks_exact(rows)) {
                sums.iter().enumerate().for_each(|(row, sum)| product[row * d_in + input] = *sum);
            }
        }
        return Ok(product);
    }
    if !fused {
        // Rounded products are added one after the other, without runs.
        for start in (0..d_out).step_by(STRIP_ROWS) {
            let outputs = start..(start + STRIP_ROWS).min(d_out);
            let values = weight.tensor.read_rows(outputs.clone())?;
            for (output, values) in outputs.zip(values.chunks_exact(d_in)) {
                for (sums, left) in product.chunks_exact_mut(d_in).zip(left.chunks_exact(d_out)) {
                    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += left[output] * value);
                }
            }
        }
        return Ok(product);
    }
    let run = run_len(d_out).max(1);
    for start in (0..d_out).step_by(run) {
        let outputs = start..(start + run).min(d_out);
        let values = weight.tensor.read_rows(outputs.clone())?;
        let part: Vec<f32> = left.chunks_exact(d_out).flat_map(|row| &row[outputs.clone()]).copied().collect();
        add_product(&part, &values, outputs.len(), fused, &mut product);
    }
    Ok(product)
}

/// The weight as a matrix of outputs by inputs, in f64.
///
/// # Errors
/// Those of reading the weight.
pub(super) fn whole(weight: &Weight) -> Result<Matrix> {
    let values = weight.tensor.read()?;
    Ok(match weight.transposed {
        false => from_rows(weight.d_out, weight.d_in, &values),
        true => from_rows(weight.d_in, weight.d_out, &values).transpose(),
    })
}

/// `values`, `[rows, cols]` row by row, kept in a temporary file until the pass.
///
/// # Errors
/// Those of writing the file.
pub(super) fn aside(shape: [usize; 2], values: &[f32]) -> Result<Expr> {
    TensorRef::spill(shape.to_vec(), values).map(Expr::Take)
}

/// All values of an expression.
///
/// # Errors
/// Those of reading its sources.
pub(super) fn values_of(expr: Expr) -> Result<Vec<f32>> {
    PlannedTensor { name: String::new(), dtype: DType::F32, shape: expr.shape(), expr }.read()
}
