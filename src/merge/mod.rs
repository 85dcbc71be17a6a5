//! Merging, as plans: merges adapters into their base, and combines several adapters or models into
//! one; gives models of several vocabularies one.

mod adapters;
mod card;
pub mod combine;
pub mod config;
pub mod extract;
#[cfg(feature = "train")]
pub mod moe;
mod rounding;
#[cfg(feature = "train")]
pub mod search;
mod truncation;
pub mod vocabulary;

pub use adapters::{Merged, with_adapters};
pub use card::{card, config_card};
pub use rounding::{Rounding, rounding};
pub use truncation::Truncation;
