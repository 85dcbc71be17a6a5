//! Named text tasks on the demo's base: many in one adapter, added one after the other, and baked.

mod adapted;
mod baking;
mod comparison;
mod growth;
mod lab;
mod methods;
mod runs;

pub use self::baking::baking;
pub use self::comparison::{Selection, Topic, instructions};
pub use self::growth::growth;
pub use self::lab::Lab;
pub use self::methods::Part;

/// Rows of a step.
const BATCH: usize = 32;

/// Test rows of each task.
const TESTS: usize = 20;

/// What is learned in one run.
#[derive(Debug, Clone, Copy)]
struct Setting {
    tasks: usize,
    /// Training rows of each task.
    rows: usize,
    steps: usize,
}

/// The setting of the comparison, which the others vary.
const MAIN: Setting = Setting { tasks: 24, rows: 40, steps: 250 };
