//! Merging, as plans: merges adapters into their base, and combines several adapters or models into
//! one; gives models of several vocabularies one.

mod adapters;
mod base_quant;
mod card;
pub mod combine;
pub mod extract;
mod rounding;
mod truncation;
pub mod vocabulary;

pub use adapters::{Merged, with_adapters};
pub use base_quant::{BaseQuant, BaseQuantOptions, with_quantized_base};
pub use card::card;
pub use rounding::{Rounding, rounding};
pub use truncation::Truncation;
