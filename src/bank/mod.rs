//! Atom banks: Queryable LoRA (arXiv:2605.08423), from settings to baked weights.

mod bake;
mod config;
pub mod fit;
pub mod gguf;
mod init;
mod report;
#[cfg(feature = "train")]
mod route;
#[cfg(feature = "train")]
mod routing;

pub use config::{AtomBank, BASE_EMBEDDINGS, BankConfig, DEFAULT_PROMPT_TEMPLATE, Routing, fill_template};
pub use init::new_bank;
pub use report::{AtomReport, BankReport};
#[cfg(feature = "train")]
pub use route::{Agreement, Request, RoutedBy, Routes, compare, route};
#[cfg(feature = "train")]
pub use routing::{BankHook, Regularizer, RoutingTrace};
