//! Decoders in candle, with hooks for adapters, and a correct backward pass for every operation.

mod attention;
pub(crate) mod batch;
mod cache;
pub(crate) mod decoder;
mod feed_forward;
mod fusing;
mod generate;
pub(crate) mod hooks;
mod layer;
mod loss;
mod open;
pub(crate) mod ops;
mod sentence;
mod tokenize;
mod weights;

pub use batch::{Batch, Sequence};
pub use cache::KvCache;
pub use decoder::Decoder;
pub use feed_forward::ExpertMatrix;
pub use generate::{Generation, greedy, prompt_logits};
pub use hooks::{Factors, Hook, Input, LoadedAdapter, LoadedUpdates, LoraHook, Mixing, NoAdapter};
pub use loss::{Reference, mean_loss};
pub use open::LanguageModel;
pub use ops::{ExpertFactors, log_softmax_last, softmax_last};
pub use sentence::SentenceEncoder;
pub use tokenize::TextEncoder;
pub use weights::{ModelWeights, Residence};
