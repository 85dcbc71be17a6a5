//! The settings that LoHa and LoKr share.
//!
//! Reference: huggingface/peft `src/peft/tuners/lycoris_utils.py`.

use serde_json::Value;

use super::patterns::{self, Patterns};
use crate::error::Result;
use crate::json::Fields;

/// Rank and alpha, by module.
pub(super) struct Settings {
    r: usize,
    alpha: f64,
    rank_pattern: Patterns<usize>,
    alpha_pattern: Patterns<f64>,
}

impl Settings {
    pub(super) fn read(fields: &mut Fields) -> Result<Self> {
        // The tensors show it.
        fields.ignore(&["use_effective_conv2d"]);
        fields.ignore(&["init_weights", "module_dropout", "rank_dropout", "rank_dropout_scale"]);
        Ok(Self {
            r: fields.count_or("r", 8)?,
            alpha: fields.get("alpha")?.unwrap_or(8.0),
            rank_pattern: Patterns::read(fields, "rank_pattern", patterns::rank)?,
            alpha_pattern: Patterns::read(fields, "alpha_pattern", Value::as_f64)?,
        })
    }

    pub(super) fn rank(&self, module: &str) -> usize {
        self.rank_pattern.first_match(module).unwrap_or(self.r)
    }

    /// The factor of the update of `module`, of rank `rank`. Dimensionless.
    pub(super) fn scale(&self, module: &str, rank: usize) -> f64 {
        self.alpha_pattern.first_match(module).unwrap_or(self.alpha) / rank as f64
    }
}
