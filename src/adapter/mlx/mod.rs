//! Adapters of mlx-lm, which trains on Apple's processors: `adapters.safetensors` beside adapter_config.json.
//!
//! A LoRA's factors are `lora_a`, `[d_in, r]`, and `lora_b`, `[r, d_out]`: PEFT's, transposed. One rank and one scale
//! are for all modules. DoRA adds the magnitudes `m`; experts have factors with three dimensions; and a model that was
//! trained without factors (`full`) has whole tensors.
//!
//! Reference: ml-explore/mlx-lm `mlx_lm/tuner/lora.py`, `dora.py` and `utils.py` (`load_adapters`).

mod read;
mod write;

pub(super) use read::{Mlx, has_factors, read};
pub(crate) use write::output;

/// The file with an adapter's tensors.
pub(super) const WEIGHTS: &str = "adapters.safetensors";

/// The suffixes of a module's factors.
const FACTORS: [&str; 2] = [".lora_a", ".lora_b"];
/// The suffix of a module's magnitudes.
const MAGNITUDE: &str = ".m";
