//! Quantization of GGUF models: the types and tensors that llama-quantize would make.
//!
//! A [`FileType`] such as Q4_K_M is a mixture: most tensors get its base type, sensitive ones more bits. A [`Recipe`]
//! is a file type with the options of llama-quantize, and determines the type of every tensor of a model. Values are
//! encoded in the room `quant`.
//!
//! Reference: llama.cpp `src/llama-quant.cpp` and `tools/quantize/quantize.cpp`.

mod facts;
mod file_type;
mod mixture;
mod names;
mod overrides;
mod plan;
mod prune;
mod recipe;
mod tensor_type;
#[cfg(test)]
mod tests;

pub use file_type::FileType;
pub use names::file_order;
pub use overrides::TensorTypeRule;
pub use plan::{Led, TensorOutcome, outcomes, quantize};
pub use prune::parse_layers;
pub use recipe::{Chosen, Recipe};
pub use tensor_type::parse_tensor_type;
