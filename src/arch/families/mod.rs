//! The tables, family by family.

pub(super) mod bert;
pub(super) mod gemma;
pub(super) mod gpt;
pub(super) mod llama;
pub(super) mod qwen;
