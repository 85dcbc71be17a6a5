//! Training adapters: data to batches, batches to gradients, gradients to a saved adapter.

mod adapter;
mod checkpoint;
mod config;
mod data;
mod memory;
mod optimizer;
mod recompute;
mod step;
#[cfg(test)]
mod tests;
mod trainer;

pub use adapter::Trainable;
pub use config::{AdapterKind, AdapterSettings, DataSettings, HubBase, Schedule, TrainConfig, TrainingSettings};
pub use data::{Dataset, TrainingRow};
pub use optimizer::{AdamW, clip_factor, global_norm};
pub use step::{Gradients, Objective};
pub use trainer::{Event, Outcome, train};
