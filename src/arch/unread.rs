//! Tensors of a checkpoint that transformers' class doesn't load, so that no adapter has anything for them.
//!
//! Reference: transformers 5.23, `_keys_to_ignore_on_load_unexpected` of all classes.

use super::{Config, wrapper};
use crate::arch::names::layers_read;

/// Modules in front of the list of layers.
const STEMS: [&str; 3] = ["model", "backbone", "transformer"];

/// Projections that layers which share another layer's keys and values don't have.
const OF_KEYS_AND_VALUES: [&str; 4] = ["k_proj", "v_proj", "k_norm", "v_norm"];

/// What a class leaves unread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unread {
    /// The number of layers that it reads.
    layers: Option<u64>,
    /// The first layer that shares the keys and values of another.
    shares_from: Option<u64>,
}

impl Unread {
    /// What the class of this config leaves unread.
    pub(crate) fn of(config: &Config) -> Self {
        let layers = layers_read(config);
        let text = wrapper::text_config(config);
        let shared = text.get("num_kv_shared_layers").and_then(|count| count.as_u64()).filter(|count| *count > 0);
        let shares_from = layers.zip(shared).map(|(layers, shared)| layers.saturating_sub(shared));
        Self { layers, shares_from }
    }

    /// Whether the class ignores the tensor called `name`: layers for multi-token prediction, which come after the
    /// model's own layers or are in a module whose name begins with `mtp`; keys and values of layers that use another
    /// layer's.
    pub(crate) fn has(self, name: &str) -> bool {
        let name = wrapper::text_name(name);
        let parts: Vec<&str> = name.split('.').collect();
        if parts.iter().take(2).any(|part| part.starts_with("mtp")) {
            return true;
        }
        let rest = match parts.as_slice() {
            ["layers", rest @ ..] => rest,
            [stem, "layers", rest @ ..] if STEMS.contains(stem) => rest,
            _ => return false,
        };
        let Some(layer) = rest.first().and_then(|layer| layer.parse::<u64>().ok()) else { return false };
        let is_shared = || matches!(rest, [_, "self_attn", module, ..] if OF_KEYS_AND_VALUES.contains(module));
        self.layers.is_some_and(|layers| layer >= layers)
            || self.shares_from.is_some_and(|first| layer >= first) && is_shared()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_behind_the_last_one_and_what_is_shared_are_not_read() {
        let json = serde_json::json!({"num_hidden_layers": 2, "num_kv_shared_layers": 1});
        let unread = |name: &str| Unread::of(json.as_object().unwrap()).has(name);
        for module in ["model.", "model.language_model.", "language_model.model.", ""] {
            let named = |layer: &str| format!("{module}{layer}.self_attn.q_proj.weight");
            assert!(!unread(&named("layers.1")) && unread(&named("layers.2")), "{module}");
        }
        assert!(unread("mtp.fc.weight") && unread("model.mtp_block.0.mlp.up_proj.weight") && !unread("lm_head.weight"));
        assert!(unread("model.layers.1.self_attn.k_proj.weight") && !unread("model.layers.0.self_attn.k_proj.weight"));
        assert!(!unread("encoder.layers.2.self_attn.k_proj.weight"), "other stacks have their own numbers");
    }
}
