//! Train atom banks (Queryable LoRA), bake them for a fixed instruction, and convert checkpoints
//! between Hugging Face safetensors and GGUF.
//!
//! Everything that turns checkpoints into checkpoints is one plan and one pass: a
//! [`source::Source`] opens lazily, a [`plan::Plan`] says what the output holds, and
//! [`plan::execute`] writes it in parallel, in flat memory.

pub mod adapter;
pub mod arch;
pub mod bank;
pub mod checkpoint;
pub mod convert;
pub mod dtype;
pub mod error;
pub mod formats;
pub mod imatrix;
pub mod jobs;
pub(crate) mod json;
pub mod kernel;
pub mod linalg;
pub mod merge;
#[cfg(feature = "train")]
pub mod model;
pub mod output;
pub mod plan;
pub mod quant;
pub mod quantize;
pub mod report;
pub mod source;
pub mod tokenizer;
#[cfg(feature = "train")]
pub mod train;

pub use dtype::DType;
pub use error::{Error, Result};
