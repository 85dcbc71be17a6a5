//! Convert model checkpoints between Hugging Face folders, PyTorch files and GGUF, merge adapters,
//! quantize, and train and bake atom banks (Queryable LoRA, arXiv:2605.08423).
//!
//! [`jobs`] has the program's commands as functions: each takes settings and returns an [`output::Output`] or a result.
//! To convert a folder to a quantized GGUF:
//!
//! ```no_run
//! use atombank::jobs::{ConvertSettings, convert};
//!
//! # fn main() -> atombank::Result<()> {
//! let mut settings = ConvertSettings::new("Llama-3.2-1B", "llama-Q4_K_M.gguf");
//! settings.output.r#type = Some("Q4_K_M".to_owned());
//! convert(&settings)?.write(&settings.output.destination, &|_| ())?;
//! # Ok(())
//! # }
//! ```
//!
//! To merge a LoRA into its base, straight into a quantized GGUF:
//!
//! ```no_run
//! use atombank::jobs::{MergeSettings, merge};
//!
//! # fn main() -> atombank::Result<()> {
//! let mut settings = MergeSettings::new("Llama-3.2-1B", ["my-lora"], "merged-Q4_K_M.gguf");
//! settings.output.r#type = Some("Q4_K_M".to_owned());
//! merge(&settings, &|_| ())?.output.write(&settings.output.destination, &|_| ())?;
//! # Ok(())
//! # }
//! ```
//!
//! To bake an atom bank for one instruction, which gives plain weights:
//!
#![cfg_attr(feature = "train", doc = "```no_run")]
#![cfg_attr(not(feature = "train"), doc = "```ignore")]
//! use atombank::jobs::{BakeSettings, bake};
//!
//! # fn main() -> atombank::Result<()> {
//! let settings = BakeSettings::new("Llama-3.2-1B", "my-bank", "Answer in French.", "french.gguf");
//! bake(&settings)?.output.write(&settings.output.destination, &|_| ())?;
//! # Ok(())
//! # }
//! ```
//!
//! Everything that turns checkpoints into checkpoints is one plan and one pass: a [`source::Source`] opens a file
//! lazily, a [`plan::Plan`] describes the output, and [`plan::execute`] writes it in parallel, in bounded memory.
//! `docs/architecture.md` describes the rooms (the modules) and which may use which.

pub mod adapter;
pub mod arch;
pub mod bank;
#[cfg(feature = "train")]
pub mod chat;
pub mod checkpoint;
pub mod convert;
pub mod dtype;
pub mod error;
#[cfg(feature = "train")]
pub mod experiment;
pub mod filter;
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
pub(crate) mod yaml;

pub use dtype::DType;
pub use error::{Error, Result};
