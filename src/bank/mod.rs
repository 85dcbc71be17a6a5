//! Atom banks: Queryable LoRA (arXiv:2605.08423), from settings to baked weights.

mod alphas;
mod atom_bank;
mod bake;
mod config;
pub mod fit;
mod fixed;
pub mod gguf;
#[cfg(feature = "train")]
mod grow;
mod init;
#[cfg(feature = "train")]
mod instruction;
#[cfg(feature = "train")]
mod lines;
#[cfg(feature = "train")]
mod loaded;
mod operator;
mod report;
#[cfg(feature = "train")]
mod route;
#[cfg(feature = "train")]
mod routing;
mod stage;
#[cfg(feature = "train")]
mod usage;

pub use alphas::BlockAlphas;
pub use atom_bank::AtomBank;
#[cfg(feature = "train")]
pub(crate) use config::check_rank;
pub use config::{BASE_EMBEDDINGS, BankConfig, DEFAULT_PROMPT_TEMPLATE, Routing, fill_template};
pub use fixed::{AtMix, FixedBank};
#[cfg(feature = "train")]
pub use grow::{Addition, GrowthCheck, check_growth, read_instructions};
#[cfg(feature = "train")]
pub use instruction::InstructionEncoder;
#[cfg(feature = "train")]
pub use lines::lines_of;
#[cfg(feature = "train")]
pub use loaded::LoadedBank;
#[cfg(feature = "train")]
pub(crate) use loaded::centered;
pub use report::{AtomReport, BankReport};
#[cfg(feature = "train")]
pub use route::{Agreement, Request, Routed, RoutedBy, Routes, compare, mixed, route, route_sequences};
#[cfg(feature = "train")]
pub use routing::{BankHook, Regularizer, RoutingTrace};
pub use stage::BankStage;
#[cfg(feature = "train")]
pub use usage::{BlockUsage, InstructionUsage, LEAST_SHOWN, RowRouting, Usage};
