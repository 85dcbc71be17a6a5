//! The operations of rows that use other tensors of the checkpoint, too. They have no reverse.

use std::ops::Range;
use std::sync::Arc;

use super::shaping::reshaped;
use super::steps::{Misfit, rounded};
use crate::dtype::DType;
use crate::plan::{Expr, Pick, RowMap};
use crate::source::{row_len, rows, show_shape};

/// A linear layer of torch: the products of the rows of `of` with those of `weight`, plus `bias`. `dtype` is the type in
/// which torch computes.
///
/// # Errors
/// Shapes that don't fit.
pub(crate) fn linear(of: Expr, weight: Expr, bias: Option<Expr>, dtype: DType) -> Result<Expr, Misfit> {
    let (shape, weights) = (of.shape(), weight.shape());
    let fits = shape.len() == 2 && weights.len() == 2 && shape[1] == weights[1];
    if !fits {
        return Err((format!("a matrix of rows as long as those of {}", show_shape(&weights)), show_shape(&shape)));
    }
    let product = Expr::product(of, Expr::Transpose(Box::new(weight)));
    let sum = match bias {
        None => product,
        Some(bias) if bias.shape() == [weights[0]] => {
            let row = Pick { of: 0, start: 0, len: 1 };
            let every_row = Expr::Rows {
                shape: vec![shape[0], weights[0]],
                of: vec![reshaped(bias, vec![1, weights[0]])],
                picks: vec![row; shape[0]].into(),
            };
            Expr::Add { of: Box::new(every_row), delta: Box::new(product) }
        }
        Some(bias) => return Err((format!("a bias [{}]", weights[0]), show_shape(&bias.shape()))),
    };
    Ok(rounded(sum, dtype))
}

/// Every row of `of` divided by its value in `by`, which has the same dimensions but for the last.
///
/// # Errors
/// Shapes that don't fit.
pub(crate) fn divided(of: Expr, by: Expr, dtype: DType) -> Result<Expr, Misfit> {
    let shape = of.shape();
    let outer = &shape[..shape.len().saturating_sub(1)];
    if outer.is_empty() || by.shape() != outer {
        return Err((format!("a divisor {} for {}", show_shape(outer), show_shape(&shape)), show_shape(&by.shape())));
    }
    let single = reshaped(by, vec![rows(&shape), 1]);
    let divisors = Expr::Columns { of: Box::new(single), index: vec![0; row_len(&shape)].into() };
    let of = vec![of, reshaped(divisors, shape)];
    Ok(rounded(Expr::Map { of, map: Arc::new(Quotient) }, dtype))
}

/// Divides the first operand by the second.
#[derive(Debug)]
struct Quotient;

impl RowMap for Quotient {
    fn apply(&self, _: Range<usize>, _: usize, others: &[Vec<f32>], out: &mut [f32]) {
        out.iter_mut().zip(&others[0]).for_each(|(value, divisor)| *value /= divisor);
    }

    fn not_finite(&self) -> Option<&str> {
        Some("a division by zero")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::PlannedTensor;

    fn values(shape: &[usize], values: &[f32]) -> Expr {
        Expr::Values { shape: shape.to_vec(), values: values.into() }
    }

    fn read(expr: Expr) -> Vec<f32> {
        PlannedTensor { name: String::new(), dtype: DType::F32, shape: expr.shape(), expr }.read().unwrap()
    }

    #[test]
    fn a_linear_layer_has_a_value_for_each_row_of_its_weight() {
        let (of, weight) = (values(&[2, 2], &[1., 2., 3., 4.]), values(&[3, 2], &[1., 0., 0., 1., 1., 1.]));
        let bias = values(&[3], &[10., 20., 30.]);
        let made = linear(of.clone(), weight.clone(), Some(bias.clone()), DType::F32).unwrap();
        assert_eq!((made.shape(), read(made)), (vec![2, 3], vec![11., 22., 33., 13., 24., 37.]));
        assert_eq!(read(linear(of.clone(), weight.clone(), None, DType::F32).unwrap()), [1., 2., 3., 3., 4., 7.]);
        let misfit = linear(bias, weight.clone(), None, DType::F32).unwrap_err();
        assert_eq!(misfit, ("a matrix of rows as long as those of [3, 2]".to_owned(), "[3]".to_owned()));
        assert!(linear(of.clone(), weight, Some(of), DType::F32).is_err());
    }

    #[test]
    fn rows_are_divided_by_their_values() {
        let of = values(&[2, 2, 2], &[1., 2., 3., 4., 5., 6., 7., 8.]);
        let made = divided(of.clone(), values(&[2, 2], &[1., 2., 4., 8.]), DType::F32).unwrap();
        assert_eq!((made.shape(), read(made)), (vec![2, 2, 2], vec![1., 2., 1.5, 2., 1.25, 1.5, 0.875, 1.]));
        assert!(divided(of, values(&[2], &[1., 2.]), DType::F32).is_err());
    }
}
