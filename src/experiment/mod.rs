//! Experiments: what atom banks are good for, measured beside LoRAs, mixtures of LoRAs and one LoRA a task.
//!
//! Every method has about as many trained values and is tuned over its learning rate and alpha, on seeds of their own,
//! before it is compared on others.

mod baselines;
mod instructions;
mod names;
mod plot;
mod regression;
mod report;
mod tuning;

pub use instructions::{Lab, Part, Selection, Topic, baking, growth, instructions};
pub use names::{Behaviour, Choices, FUNCTIONS, Function, MOST_NAMES};
pub use plot::{Curve, Plot};
pub use regression::regression;
pub use report::{Report, Row, Sample, Table};
pub use tuning::Choice;

/// How large an experiment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// The number of seeds that a mean is taken over.
    pub seeds: usize,
    /// The number of seeds, others than those, on which settings are chosen.
    pub tuning_seeds: usize,
    /// A divisor of the numbers of steps: 1 for results, more for a try.
    pub hurry: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self { seeds: 10, tuning_seeds: 3, hurry: 1 }
    }
}

impl Size {
    /// A number of steps, in a hurry fewer, and at least 1.
    fn hurried(self, steps: usize) -> usize {
        (steps / self.hurry.max(1)).max(1)
    }
}

/// Called with a line of progress.
pub type Say<'a> = &'a (dyn Fn(&str) + Sync);
