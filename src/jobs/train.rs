//! Trains an adapter.

use std::sync::atomic::AtomicBool;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::train::{self, Event, Outcome, TrainConfig};

/// Settings of [`train()`]: the training file, and whether a run is resumed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSettings {
    /// The content of the training file.
    pub config: TrainConfig,
    /// Whether to resume from the run's last checkpoint.
    #[serde(default)]
    pub resume: bool,
}

/// Trains according to `settings`, into the folder named there. Setting `stop` ends the run after
/// the current step.
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
