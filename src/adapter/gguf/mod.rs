//! LoRAs in GGUF, in the form that llama.cpp loads: reading and writing.
//!
//! Reference: llama.cpp `convert_lora_to_gguf.py` and `src/llama-adapter.cpp`. The reference writes only alpha and
//! ignores use_rslora, rank_pattern and alpha_pattern; this crate stores the true scale of each update: see [`write`].

mod factors;
mod names;
mod read;
mod updates;
mod write;

pub use names::RowOrder;
pub(crate) use names::{GgufNames, GgufWeight, with_expected};
pub use read::{PeftFolder, from_gguf};
pub(crate) use write::{GgufLora, to_gguf};

/// The key of the file's single alpha: llama.cpp multiplies every update by alpha over its rank.
pub(crate) const ALPHA_KEY: &str = "adapter.lora.alpha";
/// The key of an activated LoRA's invocation tokens: the LoRA acts on the tokens after these.
pub(crate) const ALORA_KEY: &str = "adapter.alora.invocation_tokens";

/// GGUF's name of the embeddings. llama.cpp expects their two factors exchanged.
const EMBEDDINGS: &str = "token_embd.weight";
