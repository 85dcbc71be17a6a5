//! A training run.

use std::sync::atomic::AtomicBool;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::train::{self, Event, Outcome, TrainConfig};

/// Settings of [`train()`]: the training file, and whether the run goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSettings {
    /// What the training file says.
    pub config: TrainConfig,
    /// Whether to go on from the run's last checkpoint.
    #[serde(default)]
    pub resume: bool,
}

/// Trains as `settings` say, into the folder that they name; `stop` ends the run after the step in progress.
///
/// # Errors
/// As [`crate::train::train`].
pub fn train(
    settings: &TrainSettings,
    device: &Device,
    stop: &AtomicBool,
    events: &mut dyn FnMut(Event),
) -> Result<Outcome> {
    train::train(&settings.config, settings.resume, device, stop, events)
}
