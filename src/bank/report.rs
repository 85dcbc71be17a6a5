//! A report on an atom bank: its atoms one by one, how similar they are, and where the bank acts.

use nalgebra::DMatrix;
use serde::Serialize;

use super::{AtomBank, BankConfig};
use crate::adapter::modules_and_layers;

/// The report on one atom.
#[derive(Debug, Clone, Serialize)]
pub struct AtomReport {
    /// Its Frobenius norm.
    pub norm: f32,
    /// exp of the entropy of its normalised singular values: from 1 to r (Roy and Vetterli, 2007).
    pub effective_rank: f32,
    /// Its distance in Frobenius norm from the identity.
    pub from_identity: f32,
}

/// The report on an atom bank.
#[derive(Debug, Clone, Serialize)]
pub struct BankReport {
    /// Its settings.
    pub config: BankConfig,
    /// The factor of its updates: see [`AtomBank::scale`].
    pub scale: f32,
    /// The number of blocks; the layers of a block share a routing.
    pub blocks: usize,
    /// The instructions that it was trained with, if it keeps them.
    pub instructions: Vec<String>,
    /// Names of the linear layers that it changes.
    pub modules: Vec<String>,
    /// Numbers of the decoder layers that it changes.
    pub layers: Vec<usize>,
    /// The number of trained values.
    pub parameters: usize,
    /// The number of trained values of a plain LoRA with the same rank on the same layers.
    pub lora_parameters: usize,
    /// The atoms, in order.
    pub atoms: Vec<AtomReport>,
    /// Cosines between atoms, as vectors: `[K, K]`.
    pub similarity: Vec<Vec<f32>>,
    /// Atoms for which a number above is a NaN or an infinity in f32, which JSON shows as null.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub non_finite: Vec<usize>,
}

impl BankReport {
    /// The report of `bank`.
    pub fn of(bank: &AtomBank) -> Self {
        let config = &bank.config;
        let r = config.r;
        let all = &bank.atoms().values;
        let atoms: Vec<DMatrix<f32>> = all.chunks_exact(r * r).map(|c| DMatrix::from_row_slice(r, r, c)).collect();
        let cosine = |a: &DMatrix<f32>, b: &DMatrix<f32>| a.dot(b) / (a.norm() * b.norm()).max(f32::MIN_POSITIVE);
        let (modules, layers) = modules_and_layers(&bank.layers());
        let factors = bank.tensors.iter().filter(|(name, _)| name.contains(".lora_"));
        let similarity: Vec<Vec<f32>> = atoms.iter().map(|a| atoms.iter().map(|b| cosine(a, b)).collect()).collect();
        let reports: Vec<AtomReport> = atoms.iter().map(|a| atom(a, r)).collect();
        let is_finite = |(atom, cosines): (&AtomReport, &Vec<f32>)| {
            let numbers = [atom.norm, atom.effective_rank, atom.from_identity];
            numbers.iter().chain(cosines).all(|number| number.is_finite())
        };
        let non_finite = reports.iter().zip(&similarity).map(is_finite).enumerate();
        let non_finite = non_finite.filter(|(_, finite)| !finite).map(|(i, _)| i).collect();
        Self {
            config: config.clone(),
            scale: bank.scale(),
            blocks: bank.tensors["atom_bank.router.block_bias"].shape[0],
            instructions: bank.instructions.clone(),
            modules,
            layers,
            parameters: bank.parameters(),
            lora_parameters: factors.map(|(_, t)| t.values.len()).sum(),
            similarity,
            atoms: reports,
            non_finite,
        }
    }
}

fn atom(atom: &DMatrix<f32>, r: usize) -> AtomReport {
    let singular = atom.clone().singular_values();
    let sum = singular.sum().max(f32::MIN_POSITIVE);
    let entropy: f32 = singular.iter().map(|s| s / sum).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
    AtomReport {
        norm: atom.norm(),
        effective_rank: entropy.exp(),
        from_identity: (atom - DMatrix::identity(r, r)).norm(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_has_full_effective_rank_and_a_dyad_has_one() {
        let identity = atom(&DMatrix::identity(4, 4), 4);
        assert!((identity.effective_rank - 4.0).abs() < 1e-4 && identity.from_identity == 0.0);
        let dyad = DMatrix::from_fn(4, 4, |i, j| (i + 1) as f32 * (j + 1) as f32);
        assert!((atom(&dyad, 4).effective_rank - 1.0).abs() < 1e-3);
    }
}
