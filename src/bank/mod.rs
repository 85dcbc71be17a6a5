//! Atom banks: Queryable LoRA (arXiv:2605.08423), from settings to baked weights.

mod atom_bank;
mod bake;
mod config;
pub mod fit;
pub mod gguf;
mod init;
#[cfg(feature = "train")]
mod instruction;
#[cfg(feature = "train")]
mod loaded;
mod report;
#[cfg(feature = "train")]
mod route;
#[cfg(feature = "train")]
mod routing;

pub use atom_bank::AtomBank;
#[cfg(feature = "train")]
pub(crate) use config::check_rank;
pub use config::{BASE_EMBEDDINGS, BankConfig, DEFAULT_PROMPT_TEMPLATE, Routing, fill_template};
#[cfg(feature = "train")]
pub use instruction::InstructionEncoder;
#[cfg(feature = "train")]
pub use loaded::LoadedBank;
pub use report::{AtomReport, BankReport};
#[cfg(feature = "train")]
pub use route::{Agreement, Request, RoutedBy, Routes, compare, route};
#[cfg(feature = "train")]
pub use routing::{BankHook, Regularizer, RoutingTrace};
