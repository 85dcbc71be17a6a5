//! The folder of a model that this crate can run.

use std::path::Path;

use super::{ModelConfig, check_tensors};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::output::Output;
use crate::plan::Plan;

/// An open folder of a decoder that this crate can run: its config is checked and typed.
pub struct HfFolder {
    checkpoint: Checkpoint,
    /// config.json, checked and typed.
    pub config: ModelConfig,
}

impl HfFolder {
    /// Opens the folder as [`Checkpoint::open`] does.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; also for an unknown architecture or config field.
    pub fn open(path: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let config = ModelConfig::from_json(&path.join("config.json"), &checkpoint.config_json);
        let config = checkpoint.in_own_words(config)?;
        Ok(Self { checkpoint, config })
    }
}

impl HfFolder {
    /// As [`Checkpoint::output`], for a plan that has to hold the whole model.
    ///
    /// # Errors
    /// As [`Checkpoint::output`]; [`crate::Error::Mismatch`] where tensors are missing, surplus or
    /// of the wrong shape.
    pub fn output(&self, plan: Plan) -> Result<Output> {
        check_tensors(self.path(), &self.config, &plan)?;
        self.checkpoint.output(plan)
    }
}

impl std::ops::Deref for HfFolder {
    type Target = Checkpoint;

    fn deref(&self) -> &Checkpoint {
        &self.checkpoint
    }
}
