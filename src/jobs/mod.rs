//! Jobs: the program's commands as functions. Each takes settings and returns an [`Output`](crate::output::Output) or a
//! result.
//!
//! Settings are plain data (serde reads and writes them). An invalid setting is an [`crate::Error::Setting`] that names
//! its field. A job opens its inputs and plans; [`Output::write`](crate::output::Output::write) writes an output.

#[cfg(feature = "train")]
mod bake;
mod chat_template;
mod convert;
mod extract;
mod filter;
mod into;
mod made;
mod merge;
mod method;
mod mix;
#[cfg(feature = "train")]
mod moe;
mod quantize;
mod recipe;
#[cfg(feature = "train")]
mod search;
mod settings;
mod tokenizer;
mod tokensurgeon;
#[cfg(feature = "train")]
mod train;

pub use crate::bank::BlockAlphas;
#[cfg(feature = "train")]
pub use bake::{
    BakeSettings, Baked, BakedPart, Named, Share, bake, bake_all, bake_on, named_instructions, named_output,
};
pub use convert::{ConvertSettings, convert};
pub use extract::{ExtractSettings, Extracted, extract};
pub use filter::{
    BakeKernelsSettings, DecomposeSettings, Decomposed, LayerRow, SwapSettings, SwappedBank, bake_kernels, decompose,
    swap,
};
pub use merge::{Adapted, MergeConfigSettings, MergeInput, MergeSettings, VocabularyChoice, merge, merge_config};
pub use method::CombineSettings;
pub use mix::{BakeMixSettings, BakedMix, bake_mix, needs_no_model};
#[cfg(feature = "train")]
pub use moe::{MoeSettings, moe};
pub use quantize::{QuantizeSettings, quantize, quantize_outcomes};
pub use recipe::RecipeSettings;
#[cfg(feature = "train")]
pub use search::{SearchSettings, Searched, Trial, search};
pub use settings::{OutputKind, OutputSettings, nearly_known_ending};
pub use tokenizer::TokenizerChoice;
pub use tokensurgeon::{TokensurgeonSettings, tokensurgeon};
#[cfg(feature = "train")]
pub use train::{TrainSettings, train};

/// The progress of a job's computations before anything is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The current computation: "combining", "extracting".
    pub what: &'static str,
    /// The number of finished parts.
    pub done: u64,
    /// The number of all parts.
    pub total: u64,
}

/// A function that is called with every [`Step`]; `&|_| ()` ignores them.
pub type Watch<'a> = &'a (dyn Fn(Step) + Sync);
