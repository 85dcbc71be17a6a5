//! LoRAs in GGUF, as llama.cpp loads them: read and written.
//!
//! Reference: llama.cpp `convert_lora_to_gguf.py` and `src/llama-adapter.cpp`. Where the reference writes alpha
//! alone and leaves use_rslora, rank_pattern and alpha_pattern out, the true scale of each update is put into the
//! file: see [`write`].

mod names;
mod read;
mod write;

pub use names::RowOrder;
pub(crate) use names::{GgufNames, GgufWeight, with_expected};
pub use read::{Unpacked, from_gguf};
pub(crate) use write::{GgufLora, to_gguf};

/// The key of the one alpha that a file has: llama.cpp multiplies every update by alpha over its rank.
pub(crate) const ALPHA_KEY: &str = "adapter.lora.alpha";
/// The key of the tokens behind which an activated LoRA is on.
pub(crate) const ALORA_KEY: &str = "adapter.alora.invocation_tokens";

/// GGUF's name of the embeddings, whose factors llama.cpp takes the other way round.
const EMBEDDINGS: &str = "token_embd.weight";
