//! Adapters: those of PEFT, kohya and mlx-lm as changes to the tensors of their base, and plain LoRAs in
//! memory.

mod beside;
mod config;
mod experts;
pub(crate) mod gguf;
pub(crate) mod kohya;
mod lora;
pub(crate) mod mlx;
mod open;
pub mod peft;
mod tensors;
mod updates;

pub use config::LoraConfig;
pub(crate) use config::scale;
pub(crate) use experts::WRAPPER;
#[cfg(feature = "train")]
pub(crate) use experts::{ExpertFactorNames, selected_parameters};
pub use lora::Lora;
pub use open::{AdapterFiles, open};
pub use peft::patterns::Patterns;
#[cfg(feature = "train")]
pub(crate) use tensors::tensors_output;
pub use tensors::{HostTensor, Tensors, save_tensors};
pub(crate) use tensors::{
    WEIGHTS_FILE, adapted_layers, adapter_output, add_fresh_factors, check_factor_names, check_factor_shapes,
    modules_and_layers, read_tensors, replace_adapter,
};
pub use updates::{LinearUpdate, LinearUpdates};

pub(crate) use crate::checkpoint::ADAPTER_CONFIG;
