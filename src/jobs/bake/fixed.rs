//! What fixes a routing: one instruction, a mixture of several, or weights of atoms by hand.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::settings::setting;
use super::{BakeSettings, BakedPart};
use crate::bank::{AtomBank, mixed};
use crate::error::{Finding, Result};

/// An instruction and its weight among several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The instruction.
    pub instruction: String,
    /// A positive number. Weights are divided by their sum.
    pub weight: f64,
}

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

impl BakeSettings {
    /// Checks that one thing fixes the routing.
    pub(super) fn check_fixed(&self) -> Result<()> {
        if self.instruction.is_some() && !self.mixture.is_empty() {
            let finding = setting("instruction").expected("one instruction, or a `mixture` of several");
            return Err(finding.found("both").setting());
        }
        let nothing = self.instruction.is_none() && self.mixture.is_empty() && self.alphas.is_empty();
        if nothing && self.prompts.is_empty() {
            let finding = setting("instruction").expected("an instruction, or `prompts`").found("neither");
            return Err(finding.hint("an empty `instruction` bakes what the bank does without one").setting());
        }
        let is_weight = |share: &&Share| !(share.weight > 0.0 && share.weight.is_finite());
        if let Some(share) = self.mixture.iter().find(is_weight) {
            let finding = setting("mixture").expected(format_args!("a weight above 0 for {:?}", share.instruction));
            return Err(finding.found(share.weight).setting());
        }
        for (place, alphas) in self.alphas.iter().enumerate() {
            if self.alphas[..place].iter().any(|earlier| earlier.block == alphas.block) {
                let of = alphas.block.map_or("all blocks".to_owned(), |block| format!("block {block}"));
                return Err(setting("alphas").expected(format_args!("weights for {of} once")).found("twice").setting());
            }
            let is_share = |weight: &f64| (0.0..=1.0).contains(weight);
            if let Some((atom, weight)) = alphas.weights.iter().find(|(_, weight)| !is_share(weight)) {
                let finding = setting("alphas").expected(format_args!("a weight from 0 to 1 for atom {atom}"));
                return Err(finding.found(weight).setting());
            }
            let sum: f64 = alphas.weights.values().sum();
            if (sum - 1.0).abs() > SUM {
                let finding = setting("alphas").expected("weights that add up to 1");
                return Err(finding.found(format_args!("{sum:.3}")).setting());
            }
        }
        Ok(())
    }

    /// The instructions whose routing is computed, with shares that add up to 1. None where weights by hand are all that
    /// is given.
    pub(super) fn shares(&self) -> Vec<Share> {
        if self.mixture.is_empty() {
            if self.instruction.is_none() && self.prompts.is_empty() {
                return Vec::new();
            }
            return vec![Share { instruction: self.instruction.clone().unwrap_or_default(), weight: 1.0 }];
        }
        let sum: f64 = self.mixture.iter().map(|share| share.weight).sum();
        self.mixture.iter().map(|share| Share { weight: share.weight / sum, ..share.clone() }).collect()
    }

    /// The weights that are baked, by block, each `[K]`, on the simplex.
    pub(super) fn fixed_alphas(&self, bank: &AtomBank, blocks: usize, parts: &[BakedPart]) -> Result<Vec<Vec<f32>>> {
        if !self.alphas.is_empty() {
            return self.by_hand(bank, blocks);
        }
        if let [part] = parts {
            return Ok(part.routes.mean());
        }
        let routings: Vec<_> = parts.iter().map(|part| part.routes.mean()).collect();
        let shares: Vec<f64> = parts.iter().map(|part| part.share.weight).collect();
        Ok(mixed(&routings, &shares))
    }

    fn by_hand(&self, bank: &AtomBank, blocks: usize) -> Result<Vec<Vec<f32>>> {
        let atoms = bank.config.num_atoms;
        let finding = || Finding::new(&bank.path, "alphas");
        for alphas in &self.alphas {
            if let Some(block) = alphas.block.filter(|block| *block >= blocks) {
                let finding = finding().expected(format_args!("blocks 0 to {}", blocks.saturating_sub(1)));
                return Err(finding.found(format_args!("block {block}")).mismatch());
            }
            if let Some(atom) = alphas.weights.keys().find(|atom| **atom >= atoms) {
                let finding = finding().expected(format_args!("atoms 0 to {}", atoms.saturating_sub(1)));
                return Err(finding.found(format_args!("atom {atom}")).mismatch());
            }
        }
        let of_block = |block: Option<usize>| self.alphas.iter().find(|alphas| alphas.block == block);
        let mut all = Vec::with_capacity(blocks);
        for block in 0..blocks {
            let Some(given) = of_block(Some(block)).or_else(|| of_block(None)) else {
                let finding = finding().expected("weights for every block");
                return Err(finding.found(format_args!("none for block {block}")).mismatch());
            };
            let sum: f64 = given.weights.values().sum();
            let mut alphas = vec![0.0; atoms];
            given.weights.iter().for_each(|(atom, weight)| alphas[*atom] = (weight / sum) as f32);
            all.push(alphas);
        }
        Ok(all)
    }

    /// A note on what isn't one routing of the bank.
    pub(super) fn approximation(&self) -> Option<String> {
        match (self.mixture.len(), self.alphas.is_empty()) {
            (_, false) => Some("the weights of atoms are given by hand: no instruction routes like this".to_owned()),
            (2.., true) => Some(
                "a mixture of routings is an approximation: the model does something between what it does for each \
                 instruction, and no instruction routes like this"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(change: impl Fn(&mut BakeSettings)) -> BakeSettings {
        let mut settings = BakeSettings::new("base", "bank", "x", "out.gguf");
        settings.instruction = None;
        change(&mut settings);
        settings
    }

    fn by_hand(block: Option<usize>, weights: &[(usize, f64)]) -> BlockAlphas {
        BlockAlphas { block, weights: weights.iter().copied().collect() }
    }

    #[test]
    fn what_fixes_no_routing_is_refused() {
        let share = |weight| Share { instruction: "a".into(), weight };
        let cases = [
            (settings(|_| {}), "instruction: expected an instruction, or `prompts`, found neither"),
            (
                settings(|s| (s.instruction, s.mixture) = (Some("x".into()), vec![share(1.0)])),
                "expected one instruction, or a `mixture` of several, found both",
            ),
            (settings(|s| s.mixture = vec![share(1.0), share(0.0)]), "a weight above 0 for \"a\", found 0"),
            (settings(|s| s.mixture = vec![share(f64::NAN)]), "a weight above 0 for \"a\", found NaN"),
            (settings(|s| s.alphas = vec![by_hand(None, &[(0, 0.5)])]), "weights that add up to 1, found 0.500"),
            (settings(|s| s.alphas = vec![by_hand(None, &[(0, 2.0), (1, -1.0)])]), "from 0 to 1 for atom 0, found 2"),
            (
                settings(|s| s.alphas = vec![by_hand(Some(1), &[(0, 1.0)]), by_hand(Some(1), &[(1, 1.0)])]),
                "weights for block 1 once, found twice",
            ),
        ];
        for (settings, expected) in cases {
            let error = settings.check_fixed().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let shares = settings(|s| s.mixture = vec![share(3.0), share(1.0)]).shares();
        assert_eq!((shares[0].weight, shares[1].weight), (0.75, 0.25));
    }
}
