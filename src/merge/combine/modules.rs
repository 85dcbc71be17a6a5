//! The random numbers that PEFT draws before it combines adapters.

use crate::adapter::peft::WeightLayout;

/// The number of random words that PEFT draws before it combines adapters: it makes and initialises the new adapter's
/// factors like those of any new adapter. Skipping as many words gives the same result as `torch.manual_seed` before
/// `add_weighted_adapter` with the same seed.
///
/// Reference: huggingface/peft `src/peft/tuners/lora/layer.py` (`update_layer`, `reset_lora_parameters`),
/// 0.21.2, with `init_lora_weights=True`.
#[derive(Debug, Default)]
pub(super) struct Prelude(u64);

impl Prelude {
    /// Adds the draws of one module.
    pub(super) fn add(&mut self, d_in: u64, d_out: u64, rank: u64, layout: WeightLayout) {
        self.0 += if layout == WeightLayout::Embedding {
            // A and B are drawn by randn, then B is drawn again.
            normal(rank * d_in) + 2 * normal(d_out * rank)
        } else {
            // nn.Linear initialises both, then A is initialised again.
            2 * rank * d_in + d_out * rank
        };
    }

    pub(super) fn words(&self) -> u64 {
        self.0
    }
}

/// The number of words for `count` normally distributed numbers. They are drawn 16 at a time, and the last 16 again if
/// they aren't full; fewer than 16 are drawn as pairs of doubles.
fn normal(count: u64) -> u64 {
    match count {
        0..16 => count.div_ceil(2) * 4,
        _ if count.is_multiple_of(16) => count,
        _ => count + 16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_take_the_words_that_torch_takes() {
        assert_eq!([5, 16, 17, 100, 999, 10000].map(normal), [12, 16, 33, 116, 1015, 10000]);
    }
}
