//! Weights of atoms that are given, in place of those by which a bank routes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Finding, Result};

/// The weights of atoms in one block or in all, given by hand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockAlphas {
    /// The block; `None` stands for every block that has no weights of its own.
    #[serde(default)]
    pub block: Option<usize>,
    /// The weight of each atom by its number. They are from 0 to 1 and add up to 1; atoms without a weight have 0.
    pub weights: BTreeMap<usize, f64>,
}

/// How far a sum of weights may be from 1: as far as weights with three decimals are.
const SUM: f64 = 2e-3;

impl BlockAlphas {
    /// Checks weights alone: each block once, and weights that are shares of 1.
    ///
    /// # Errors
    /// That of `fault` for a [`Finding`] that `finding` has made.
    pub fn check(all: &[Self], finding: impl Fn() -> Finding, fault: impl Fn(Finding) -> crate::Error) -> Result<()> {
        for (place, alphas) in all.iter().enumerate() {
            if all[..place].iter().any(|earlier| earlier.block == alphas.block) {
                let of = alphas.block.map_or("all blocks".to_owned(), |block| format!("block {block}"));
                return Err(fault(finding().expected(format_args!("weights for {of} once")).found("twice")));
            }
            let is_share = |weight: &f64| (0.0..=1.0).contains(weight);
            if let Some((atom, weight)) = alphas.weights.iter().find(|(_, weight)| !is_share(weight)) {
                let finding = finding().expected(format_args!("a weight from 0 to 1 for atom {atom}"));
                return Err(fault(finding.found(weight)));
            }
            let sum: f64 = alphas.weights.values().sum();
            if (sum - 1.0).abs() > SUM {
                let finding = finding().expected("weights that add up to 1");
                return Err(fault(finding.found(format_args!("{sum:.3}"))));
            }
        }
        Ok(())
    }

    /// The weights of `atoms` atoms in each of these blocks, on the simplex. Blocks are in ascending order.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for a block or an atom that isn't there, and for a block without weights.
    pub fn by_block(
        all: &[Self],
        atoms: usize,
        blocks: impl IntoIterator<Item = usize>,
        finding: impl Fn() -> Finding,
    ) -> Result<Vec<Vec<f32>>> {
        if let Some(atom) = all.iter().flat_map(|given| given.weights.keys()).find(|atom| **atom >= atoms) {
            let finding = finding().expected(format_args!("atoms 0 to {}", atoms.saturating_sub(1)));
            return Err(finding.found(format_args!("atom {atom}")).mismatch());
        }
        let blocks: Vec<usize> = blocks.into_iter().collect();
        let last = blocks.last().copied().unwrap_or_default();
        if let Some(block) = all.iter().filter_map(|given| given.block).find(|block| *block > last) {
            let finding = finding().expected(format_args!("blocks 0 to {last}"));
            return Err(finding.found(format_args!("block {block}")).mismatch());
        }
        let of_block = |block: Option<usize>| all.iter().find(|alphas| alphas.block == block);
        let mut made: Vec<Vec<f32>> = Vec::with_capacity(blocks.len());
        for block in blocks {
            let Some(given) = of_block(Some(block)).or_else(|| of_block(None)) else {
                let finding = finding().expected("weights for every block");
                return Err(finding.found(format_args!("none for block {block}")).mismatch());
            };
            let sum: f64 = given.weights.values().sum();
            let mut alphas = vec![0.0; atoms];
            given.weights.iter().for_each(|(atom, weight)| alphas[*atom] = (weight / sum) as f32);
            made.push(alphas);
        }
        Ok(made)
    }
}
