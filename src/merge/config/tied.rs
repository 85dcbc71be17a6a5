//! Tensors that a model may lack: output heads that are tied to the embeddings, and what a class has or has not.

use super::names::{Config, class, is_listed};
use crate::adapter::peft::Base;
use crate::arch::names::is_made_by_class;
use crate::plan::Plan;

/// Whether a model's own config says that its head is the embeddings.
pub(super) fn is_tied(config: &Config, weights: &Plan) -> bool {
    Base::new(std::path::Path::new(""), config, weights).tied_head().is_some()
}

/// Ends of names that models of one class may or may not have, as mergekit lists them.
const OPTIONAL: &[&str] = &[
    "_proj.bias",
    ".q_norm.weight",
    ".k_norm.weight",
    ".query_key_value.bias",
    ".dense.bias",
    ".pooler.dense.weight",
    "score.bias",
    ".relative_attention_bias.weight",
];

/// Whether some models of a class may lack the tensor called `name`. In classes that mergekit doesn't list, any tensor
/// may be missing.
pub(super) fn is_optional(config: &Config, name: &str) -> bool {
    !class(config).is_some_and(is_listed) || OPTIONAL.iter().any(|end| name.ends_with(end))
}

/// Whether a tensor is left out where not every model has it: the class makes it by itself.
pub(super) fn is_made_anyway(name: &str) -> bool {
    is_made_by_class(name)
}
