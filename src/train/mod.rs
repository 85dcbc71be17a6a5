//! Training adapters: data to batches, batches to gradients, gradients to a saved adapter.

mod adapter;
mod batches;
mod checkpoint;
mod config;
mod data;
mod dropout;
mod evaluation;
mod event;
mod exchange;
mod inputs;
mod lora;
mod measure;
mod memory;
mod metrics;
mod optimizer;
mod packing;
mod progress;
mod ranks;
mod recompute;
mod start;
mod step;
mod tensorboard;
#[cfg(test)]
mod tests;
mod trainer;

pub use adapter::Trainable;
pub use config::{
    AdapterKind, AdapterSettings, DataSettings, DataSource, DataSources, FromAxolotl, Group, HubBase, Loss,
    MetricsForm, Rates, RowFormat, Schedule, TEMPLATE, TrainConfig, TrainingSettings, Truncate, from_axolotl,
};
pub use data::{Dataset, Place, Preview, PreviewRow, RoutedRow, TrainingRow, Unit, preview, routed_rows, sequences_of};
pub use event::{End, Event, Outcome};
pub use measure::{Measured, measure};
pub use optimizer::{AdamW, clip_factor, global_norm};
pub use progress::Evaluation;
pub use ranks::Ranks;
pub use step::{Gradients, Objective};
pub use trainer::{train, train_on};
