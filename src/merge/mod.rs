//! Merging, as plans: merges adapters into their base, and combines several adapters or models into
//! one; gives models of several vocabularies one, or a model that of another.

mod adapters;
mod card;
pub mod combine;
pub mod extract;
mod rounding;
pub mod surgeon;
mod truncation;
pub mod vocabulary;

pub use adapters::{Merged, with_adapters};
pub use card::card;
pub use rounding::{Rounding, rounding};
pub use truncation::Truncation;
