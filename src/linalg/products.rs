//! Sums of low-rank products, such as several LoRAs together.

use super::{Matrix, Svd, svd, thin_qr};

/// The product `scale * left @ right`.
#[derive(Debug, Clone, Copy)]
pub struct Term<'a> {
    /// Dimensionless.
    pub scale: f64,
    /// `B`, `[rows, r]`.
    pub left: &'a Matrix,
    /// `A`, `[r, cols]`.
    pub right: &'a Matrix,
}

/// The singular value decomposition of the sum of `terms`, exact up to rounding. The left factors,
/// side by side, and the right factors, stacked, are orthogonalized; only the small matrix between
/// them is decomposed. The rank is at most the sum of the terms' ranks; [`Svd::truncate`] reduces
/// it.
///
/// # Panics
/// If there are no terms, or their shapes differ.
pub fn svd_of_products(terms: &[Term]) -> Svd {
    let (rows, cols) = (terms[0].left.nrows(), terms[0].right.ncols());
    let inner = terms.iter().map(|term| term.left.ncols()).sum();
    let mut left = Matrix::zeros(rows, inner);
    let mut right = Matrix::zeros(cols, inner);
    let mut start = 0;
    for term in terms {
        let r = term.left.ncols();
        left.columns_mut(start, r).copy_from(&(term.left * term.scale));
        right.columns_mut(start, r).copy_from(&term.right.transpose());
        start += r;
    }
    let ((q_left, r_left), (q_right, r_right)) = (thin_qr(left), thin_qr(right));
    let small = svd(r_left * r_right.transpose());
    Svd { u: q_left * small.u, s: small.s, vt: small.vt * q_right.transpose() }
}

#[cfg(test)]
mod tests {
    use super::super::Random;
    use super::*;

    #[test]
    fn a_sum_of_products_is_decomposed_without_being_formed() {
        let mut random = Random::new(5);
        let mut matrix = |rows, cols| Matrix::from_fn(rows, cols, |_, _| f64::from(random.normal()));
        let factors = [(matrix(30, 4), matrix(4, 20)), (matrix(30, 3), matrix(3, 20)), (matrix(30, 9), matrix(9, 20))];
        for count in 1..=3 {
            let scales = [2.0, -0.5, 1.0];
            let terms: Vec<Term> =
                factors[..count].iter().zip(scales).map(|((left, right), scale)| Term { scale, left, right }).collect();
            let sum = terms.iter().map(|t| t.left * t.right * t.scale).reduce(|a, b| a + b).unwrap();
            let mut svd = svd_of_products(&terms);
            assert_eq!(svd.rank(), [4, 7, 16][count - 1]);
            assert!((svd.product() - &sum).norm() < 1e-12 * sum.norm());
            let tail: f64 = svd.s[2..].iter().map(|s| s * s).sum::<f64>().sqrt();
            svd.truncate(2);
            assert!(((svd.product() - &sum).norm() - tail).abs() < 1e-9, "the best of rank 2");
        }
    }
}
