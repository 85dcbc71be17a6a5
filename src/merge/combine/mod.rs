//! Several models as one, in mergekit's ways, and several LoRAs as one, in PEFT's.
//!
//! Either way no tensor is in memory whole. What a method has to know of a whole tensor, how large the kept
//! values are or what angle two models have, is learned by going through its rows and is a handful of
//! numbers; what is made of the values then is a function of rows.

mod arithmetic;
mod election;
mod lazy;
mod loras;
mod models;
mod modules;
mod mt19937;
mod options;
mod ranks;
mod sparsity;
mod spherical;
mod statistics;
mod svd;
mod topk;

pub use lazy::Combined;
pub use loras::{LoraMethod, Pruning, combine_loras};
pub use models::{ModelMethod, combine_models};
pub(super) use modules::in_order;
pub use mt19937::Mt19937;
pub use options::{CombineOptions, MajoritySign, Weights};
