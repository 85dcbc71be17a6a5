//! What a run reports while it goes on, and its results.

use std::path::PathBuf;

use super::progress::Evaluation;

/// An event in a run, reported as it happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// What a user should know.
    Note(String),
    /// The run is about to take its first step.
    Started {
        /// The number of trained values.
        parameters: usize,
        /// The number of rows for training, and of rows held out.
        rows: (usize, usize),
        /// The number of steps that were done before the run was resumed.
        resumed_at: usize,
        /// The number of all steps.
        steps: usize,
    },
    /// An optimizer step.
    Step {
        /// The step's number, from 1.
        step: usize,
        /// The number of all steps.
        steps: usize,
        /// The objective's value before the step.
        loss: f64,
        /// Completion and prompt tokens per second, in this step.
        tokens_per_second: f64,
        /// The memory of the process, in bytes, if the system tells.
        memory_bytes: Option<u64>,
    },
    /// An evaluation.
    Evaluated {
        /// The step after which it was done.
        step: usize,
        /// The mean of -log p over completion tokens.
        loss: f64,
        /// The share of rows that were answered exactly, if any were asked.
        exact_match: Option<f64>,
    },
    /// A bank that has grown was compared with the bank before, and does what that did for every earlier instruction.
    Kept {
        /// The number of sequences on which they were compared.
        sequences: usize,
        /// The largest difference of any logit.
        max_logit_difference: f32,
    },
    /// A checkpoint was written.
    Saved {
        /// Its folder.
        folder: PathBuf,
    },
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All steps are done.
    Steps,
    /// Evaluations made no more progress.
    Patience,
}

impl End {
    /// Its name in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Steps => "steps",
            Self::Patience => "patience",
        }
    }
}

/// The results of a finished run.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The objective of the last step; `None` if a resumed run had no steps left.
    pub loss: Option<f64>,
    /// The result of the last evaluation, if there are rows for it.
    pub eval_loss: Option<f64>,
    /// The share of rows that the last evaluation answered exactly.
    pub exact_match: Option<f64>,
    /// The number of trained values.
    pub parameters: usize,
    /// The number of steps that were done, in this run and before it was resumed.
    pub steps: usize,
    /// Why the run ended.
    pub end: End,
    /// The best evaluation.
    pub best: Option<Evaluation>,
    /// The step of the adapter in the output folder.
    pub adapter_step: usize,
}
