//! Jobs: what the program's commands do, as calls. Settings in, an [`Output`](crate::output::Output) or a result out.
//!
//! Settings are plain data (serde reads and writes them), and a wrong one is an [`crate::Error::Setting`] that names
//! its field. A job opens its inputs and plans; an output is written by [`Output::write`](crate::output::Output::write).

#[cfg(feature = "train")]
mod bake;
mod convert;
mod extract;
mod merge;
mod method;
mod quantize;
mod recipe;
mod settings;
mod tokenizer;
#[cfg(feature = "train")]
mod train;

#[cfg(feature = "train")]
pub use bake::{BakeSettings, Baked, bake};
pub use convert::{ConvertSettings, convert};
pub use extract::{ExtractSettings, Extracted, extract};
pub use merge::{Adapted, MergeInput, MergeSettings, merge};
pub use method::CombineSettings;
pub use quantize::{QuantizeSettings, quantize, quantize_outcomes};
pub use recipe::RecipeSettings;
pub use settings::{OutputKind, OutputSettings, nearly_known_ending};
pub use tokenizer::TokenizerChoice;
#[cfg(feature = "train")]
pub use train::{TrainSettings, train};

/// How far a job is with what it computes before anything is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What it does: "combining", "extracting".
    pub what: &'static str,
    /// Parts that are done.
    pub done: u64,
    /// Parts in all.
    pub total: u64,
}

/// What is told of every [`Step`]; `&|_| ()` where nobody listens.
pub type Watch<'a> = &'a (dyn Fn(Step) + Sync);
