//! The updates of several LoRAs at one linear layer, in as few numbers as represent them exactly.

use crate::adapter::LinearUpdates;
use crate::arch::{LinearLayer, ModelConfig};
use crate::linalg::{Matrix, from_rows, thin_qr};

/// The updates `D_i = s_i B_i A_i` at one site, in orthonormal bases of all their columns and all their rows: `D_i =
/// Q_left left_i right_i Q_right^T`. Distances between updates equal the distances between these cores.
pub(super) struct SiteCore {
    /// By LoRA, `[p, r_i]`, including the scale; `p` is at most the sum of the ranks. `[p, 0]` where a LoRA doesn't
    /// adapt the site.
    pub(super) left: Vec<Matrix>,
    /// By LoRA, `[r_i, q]`.
    pub(super) right: Vec<Matrix>,
}

impl SiteCore {
    /// Whether no LoRA adapts the site.
    pub(super) fn is_empty(&self) -> bool {
        self.left.iter().all(|left| left.ncols() == 0)
    }

    /// `b^T D_i a^T`, `[r, r]`.
    pub(super) fn seen_by(&self, i: usize, b: &Matrix, a: &Matrix) -> Matrix {
        b.tr_mul(&self.left[i]) * (&self.right[i] * a.transpose())
    }

    /// The squared Frobenius norm of `D_i`.
    pub(super) fn norm_sqr(&self, i: usize) -> f64 {
        let (left, right) = (&self.left[i], &self.right[i]);
        left.tr_mul(left).dot(&(right * right.transpose())).max(0.0)
    }
}

/// The bases of a site: `Q_left`, `[d_out, p]`, and `Q_right`, `[d_in, q]`.
pub(super) struct Bases {
    pub(super) left: Matrix,
    pub(super) right: Matrix,
}

/// The core of `site` and its bases. The bases are as large as the adapters themselves, so they are computed again when
/// needed and not kept for all sites.
pub(super) fn reduce(loras: &[LinearUpdates], site: LinearLayer, base: &ModelConfig) -> (SiteCore, Bases) {
    let (d_out, d_in) = base.linear(site).map_or((0, 0), |linear| (linear.d_out, linear.d_in));
    let (mut lefts, mut rights) = (Vec::new(), Vec::new());
    for lora in loras {
        let Some(update) = lora.get(site) else {
            lefts.push(Matrix::zeros(d_out, 0));
            rights.push(Matrix::zeros(d_in, 0));
            continue;
        };
        let r = update.rank();
        lefts.push(from_rows(d_out, r, &update.b.values) * f64::from(update.scale));
        rights.push(from_rows(r, d_in, &update.a.values).transpose());
    }
    let (left_basis, left) = orthogonalized(&lefts, d_out);
    let (right_basis, right) = orthogonalized(&rights, d_in);
    let right = right.into_iter().map(|block| block.transpose()).collect();
    (SiteCore { left, right }, Bases { left: left_basis, right: right_basis })
}

/// An orthonormal basis of the columns of all `blocks`, and each block's coordinates in it.
fn orthogonalized(blocks: &[Matrix], rows: usize) -> (Matrix, Vec<Matrix>) {
    let cols = blocks.iter().map(Matrix::ncols).sum();
    let mut stacked = Matrix::zeros(rows, cols);
    let mut start = 0;
    for block in blocks {
        stacked.columns_mut(start, block.ncols()).copy_from(block);
        start += block.ncols();
    }
    if cols == 0 {
        return (stacked, blocks.iter().map(|_| Matrix::zeros(0, 0)).collect());
    }
    let (basis, triangle) = thin_qr(stacked);
    let mut start = 0;
    let block = |block: &Matrix| {
        let columns = triangle.columns(start, block.ncols()).into_owned();
        start += block.ncols();
        columns
    };
    (basis, blocks.iter().map(block).collect())
}
