//! `[data]`: the rows of a training run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The data of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// The training rows: lines of JSON with `instruction`, `prompt` and `completion`.
    pub train: PathBuf,
    /// The rows for evaluation, in the same form.
    pub eval: Option<PathBuf>,
    /// Without `eval`, the share of training rows that is held out for evaluation.
    #[serde(default)]
    pub eval_fraction: f64,
    /// The longest row, in tokens; longer ones are an error.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
}

fn default_max_length() -> usize {
    2048
}
