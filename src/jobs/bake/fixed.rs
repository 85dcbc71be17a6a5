//! What fixes a routing: one instruction, a mixture of several, or weights of atoms by hand.

use serde::{Deserialize, Serialize};

use super::super::settings::setting;
use super::{BakeSettings, BakedPart};
use crate::bank::{AtomBank, BlockAlphas, mixed};
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
        BlockAlphas::check(&self.alphas, || setting("alphas"), Finding::setting)
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
            let finding = || Finding::new(&bank.path, "alphas");
            return BlockAlphas::by_block(&self.alphas, bank.config.num_atoms, 0..blocks, finding);
        }
        if let [part] = parts {
            return Ok(part.routes.mean());
        }
        let routings: Vec<_> = parts.iter().map(|part| part.routes.mean()).collect();
        let shares: Vec<f64> = parts.iter().map(|part| part.share.weight).collect();
        Ok(mixed(&routings, &shares))
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
