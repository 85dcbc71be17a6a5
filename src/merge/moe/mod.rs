//! A mixture of experts made of dense models of one class, as mergekit-moe makes it.
//!
//! The feed-forward blocks of several models become the experts of every layer; everything else comes from a base model.
//! A router chooses experts by the scalar product of a token's state with one vector for each expert. These vectors, the
//! gates, are what the layer's input is for prompts of the expert's kind, or random numbers.
//!
//! Reference: mergekit 0.1.5 `mergekit/moe/`, `mergekit/scripts/moe.py`.

mod class;
mod config;
mod gates;
mod model_config;
mod noise;
mod plan;

pub use class::MoeClass;
pub use config::{Expert, GateMode, MoeConfig};
pub use gates::{Gates, Group, difference, normalized, random_words};
pub use model_config::model_config;
pub use plan::{Mixture, mixture};
