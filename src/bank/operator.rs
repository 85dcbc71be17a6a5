//! The operator of a block, and the left factor of a linear layer's update with it.

use crate::adapter::HostTensor;

/// `M = sum_i alpha_i C_i` for atoms `[K, r, r]`: `[r, r]`, summed in f32 in the order of the atoms.
pub(super) fn mixed_atoms(atoms: &HostTensor, alpha: &[f32]) -> Vec<f32> {
    let size = atoms.shape[1..].iter().product();
    let mut m = vec![0.0; size];
    for (weight, atom) in alpha.iter().zip(atoms.values.chunks_exact(size)) {
        for (m, c) in m.iter_mut().zip(atom) {
            *m += weight * c;
        }
    }
    m
}

/// `B M` for `B` `[d_out, r]` and `M` `[r, r]`.
pub(super) fn left_factor(b: &[f32], operator: &[f32], r: usize) -> Vec<f32> {
    let mut left = vec![0.0; b.len()];
    for (out, b) in left.chunks_exact_mut(r).zip(b.chunks_exact(r)) {
        for (weight, m) in b.iter().zip(operator.chunks_exact(r)) {
            for (out, m) in out.iter_mut().zip(m) {
                *out += weight * m;
            }
        }
    }
    left
}
