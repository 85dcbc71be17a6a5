//! Combining several models into one with mergekit's methods, and several LoRAs into one with PEFT's.
//!
//! No tensor is held in memory whole. A method that needs a number from a whole tensor, such as a threshold of
//! magnitudes or an angle between models, computes it by reading the tensor's rows; after that the method is a
//! function of rows.

mod arithmetic;
mod divergence;
mod election;
mod fusion;
mod groups;
mod lazy;
mod loras;
mod mean;
mod method;
mod models;
mod modules;
mod multislerp;
mod near_swap;
mod options;
mod ranks;
mod reinforced;
mod rounded;
mod sparsity;
mod spherical;
mod statistics;
mod svd;
mod topk;
mod working;

pub use crate::linalg::Mt19937;
pub use groups::{Group, combine_groups};
pub use lazy::Combined;
pub use loras::{LoraMethod, Pruning, combine_loras};
pub use method::ModelMethod;
pub use models::combine_models;
pub use options::{CombineOptions, Each, MajoritySign, Weights};
pub use working::Working;
