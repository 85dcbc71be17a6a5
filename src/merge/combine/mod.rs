//! Combining several models into one with mergekit's methods, and several LoRAs into one with PEFT's.
//!
//! No tensor is held in memory whole. A method that needs a number from a whole tensor, such as a threshold of
//! magnitudes or an angle between models, computes it by reading the tensor's rows; after that the method is a
//! function of rows.

mod arithmetic;
mod election;
mod lazy;
mod loras;
mod models;
mod modules;
mod options;
mod ranks;
mod sparsity;
mod spherical;
mod statistics;
mod svd;
mod topk;

pub use crate::linalg::Mt19937;
pub use lazy::Combined;
pub use loras::{LoraMethod, Pruning, combine_loras};
pub use models::{ModelMethod, combine_models};
pub use options::{CombineOptions, MajoritySign, Weights};
