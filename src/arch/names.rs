//! What a tensor's name says about the tensor, in any checkpoint: by the family of its class or, without a family, by the
//! names that most classes of transformers use.

use std::collections::{HashMap, HashSet};

use super::lookup::{self, Match};
use super::params::class;
use super::renames::{Regrouped, Renames};
use super::{Config, Family, Role, wrapper};
use crate::plan::Plan;

/// The output head of classes that can tie it to the embeddings.
pub(crate) const HEAD: &str = "lm_head.weight";

/// The names of one model's tensors.
#[derive(Clone, Copy)]
pub(crate) struct Naming {
    family: Option<&'static Family>,
    /// The number of the model's own layers.
    main: Option<usize>,
    /// The module of the text model, if the class wraps one. The table's tensors are inside it.
    module: Option<&'static str>,
    /// What transformers renames when it loads a checkpoint of the class.
    renames: Renames,
    /// Ends of the paths of the class's Conv1D modules; `None` where the class isn't part of transformers.
    conv1d: Option<&'static [&'static str]>,
}

/// The classes of transformers with Conv1D layers: their `model_type`, and the ends of the paths of these layers.
const CONV1D: &[(&str, &[&str])] = &[
    ("clvp", &["c_fc", "c_proj"]),
    ("decision_transformer", &["c_attn", "q_attn", "c_fc", "c_proj"]),
    ("gpt2", &["c_attn", "q_attn", "c_fc", "c_proj"]),
    ("imagegpt", &["c_attn", "q_attn", "c_fc", "c_proj"]),
    ("openai-gpt", &["c_attn", "c_fc", "c_proj"]),
];

/// Ends of the paths of the class's Conv1D modules; `None` for a class with code of its own (`auto_map`), about which
/// nothing is known.
fn conv1d(config: &Config) -> Option<&'static [&'static str]> {
    let kind = config.get("model_type")?.as_str()?;
    match config.get("auto_map").is_some_and(|map| !map.is_null()) {
        true => None,
        false => {
            let modules = CONV1D.iter().find(|(known, _)| *known == kind).map(|(_, modules)| *modules);
            Some(modules.unwrap_or_default())
        }
    }
}

impl Naming {
    /// The names of a model with this config.json.
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            family: wrapper::family(config),
            main: layers_read(config).and_then(|layers| usize::try_from(layers).ok()),
            module: wrapper::module(config),
            renames: Renames::of(config, class(config)),
            conv1d: conv1d(config),
        }
    }

    /// The table's row for `name`, if there is one.
    fn row(self, name: &str) -> Option<Match> {
        lookup::matches(self.family?, name, self.main).into_iter().next()
    }

    /// The name in GGUF of the tensor called `name`. `None` if the class's table doesn't have the tensor, or if it
    /// becomes a part of another.
    pub(crate) fn gguf_name(self, name: &str) -> Option<String> {
        let row = self.row(name)?;
        if row.is_whole() { row.gguf_name() } else { None }
    }

    /// The name in the model's class of the tensor called `name` in a checkpoint, which may lack the prefix or have
    /// another. `None` if neither a family nor a list of renames has the tensor.
    pub(crate) fn class_name(self, name: &str) -> Option<String> {
        if let Some(renamed) = self.renames.renamed(name) {
            return Some(renamed);
        }
        if self.renames.makes(name) {
            return Some(name.to_owned());
        }
        let row = self.row(name)?;
        let name = lookup::own_spelling(self.family?, &row.name, self.main);
        Some(self.module.map_or_else(|| name.clone(), |module| wrapper::wrapped_name(module, &name)))
    }

    /// The tensors of `weights` that the class of `config` splits or joins when it loads them.
    pub(crate) fn regrouped(self, config: &Config, weights: &Plan) -> Vec<Regrouped> {
        self.renames.regrouped(config, weights)
    }

    /// A name for the tensor called `name` that is the same for all its spellings: with a family, the name in the text
    /// model.
    fn common_name(self, name: &str) -> Option<String> {
        self.row(name).map(|row| row.name).or_else(|| self.renames.renamed(name))
    }

    /// Renames the tensors of `plan` to the names that they have in `other`. That model may spell names differently, or
    /// be the text model of this one.
    pub(crate) fn spelled_as(self, plan: &mut Plan, other: &Plan, naming: Self) {
        let names: HashSet<&str> = other.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        let mut renamed = plan.tensors.iter_mut().filter(|tensor| !names.contains(tensor.name.as_str())).peekable();
        if renamed.peek().is_none() {
            return;
        }
        let common = |naming: Self, name: &str| naming.common_name(name).unwrap_or_else(|| name.to_owned());
        let theirs: HashMap<String, &str> =
            other.tensors.iter().map(|tensor| (common(naming, &tensor.name), tensor.name.as_str())).collect();
        for tensor in renamed {
            if let Some(name) = theirs.get(&common(self, &tensor.name)) {
                tensor.name = (*name).to_owned();
            }
        }
    }

    /// Whether a family or a list of renames gives the class's own names of the tensors.
    pub(crate) fn knows_names(self) -> bool {
        self.family.is_some() || !self.renames.is_empty()
    }

    /// Whether the model's class keeps the weight called `name` as `[d_in, d_out]`, as Conv1D does; `None` where the
    /// class has no family and isn't part of transformers.
    pub(crate) fn keeps_transposed(self, name: &str) -> Option<bool> {
        if let Some(row) = self.row(name) {
            return Some(row.row.is_transposed());
        }
        let module = name.strip_suffix(".weight").unwrap_or(name);
        Some(self.conv1d?.iter().any(|end| ends_path(module, end)))
    }

    /// The role of the tensor called `name`, by the table or else by its name.
    pub(crate) fn role(self, name: &str) -> Option<Role> {
        self.row(name).map(|row| row.row.role).or_else(|| role_by_name(name))
    }

    /// Whether the class keeps the experts of the tensor called `name` in one parameter.
    pub(crate) fn fuses_experts(self, name: &str) -> bool {
        self.row(name).is_some_and(|found| super::experts::fused(found.row).is_some())
    }

    /// Whether the weight called `name` is that of a linear layer, on which a low-rank adapter can act. A tensor of
    /// unknown role counts as one.
    pub(crate) fn is_linear(self, name: &str) -> bool {
        self.role(name).is_none_or(Role::is_linear)
    }
}

/// Roles of modules that are not plain linear layers, by the ends of their paths.
const ROLES: &[(&str, Role)] = &[
    ("embed_tokens", Role::Embedding),
    ("embed_in", Role::Embedding),
    ("wte", Role::Embedding),
    ("word_embeddings", Role::Embedding),
    ("shared", Role::Embedding),
    ("wpe", Role::PositionEmbedding),
    ("position_embeddings", Role::PositionEmbedding),
    ("embed_positions", Role::PositionEmbedding),
    // T5 has one row per bucket of distances between tokens.
    ("relative_attention_bias", Role::PositionEmbedding),
    ("token_type_embeddings", Role::TypeEmbedding),
    ("lm_head", Role::OutputHead),
    ("embed_out", Role::OutputHead),
    // Recent versions of transformers store routers as bare parameters.
    ("mlp.gate", Role::Router),
    ("block_sparse_moe.gate", Role::Router),
    ("router", Role::Router),
];

/// Whether `path` is `end` or ends with it after a dot.
pub(crate) fn ends_path(path: &str, end: &str) -> bool {
    path.strip_suffix(end).is_some_and(|start| start.is_empty() || start.ends_with('.'))
}

/// The role of a weight with this name in classes without a family, where the name tells it.
pub(crate) fn role_by_name(name: &str) -> Option<Role> {
    let module = name.strip_suffix(".weight")?;
    ROLES.iter().find(|(end, _)| ends_path(module, end)).map(|(_, role)| *role)
}

/// Whether `module` is a router that PEFT adapts as a parameter of its block rather than as a linear layer.
pub(crate) fn is_parameter_router(module: &str) -> bool {
    ["mlp.gate", "block_sparse_moe.gate"].iter().any(|end| ends_path(module, end))
}

/// Whether the tensor called `name` belongs to the experts of a layer. In transformers 5, experts are not separate
/// modules, and Mixtral's block has another name.
pub(crate) fn is_of_experts(name: &str) -> bool {
    name.contains(".experts.") || name.contains(".block_sparse_moe.")
}

/// A parameter of transformers that holds all experts of a layer, and the names of its parts in checkpoints, after the
/// expert's number.
///
/// Reference: transformers `conversion_mapping.py`.
pub(crate) struct FusedExperts {
    pub(crate) parameter: &'static str,
    /// The parts follow each other as rows, each with the same number of rows. A part can have several names.
    parts: &'static [&'static [&'static str]],
}

/// In the order of the module's parameters. Checkpoints of Mixtral have other names for the parts and for the module.
pub(crate) const FUSED_EXPERTS: [FusedExperts; 2] = [
    FusedExperts { parameter: "gate_up_proj", parts: &[&["gate_proj", "w1"], &["up_proj", "w3"]] },
    FusedExperts { parameter: "down_proj", parts: &[&["down_proj", "w2"]] },
];

/// The first projection of experts without a gate, as in Nemotron-H.
pub(crate) const UNGATED_EXPERTS: FusedExperts = FusedExperts { parameter: "up_proj", parts: &[&["up_proj"]] };

impl FusedExperts {
    /// The names that the weights of one expert can have in checkpoints: for each part, in the order of the rows.
    pub(crate) fn weights<'a>(&'a self, module: &'a str, expert: usize) -> impl Iterator<Item = Vec<String>> + use<'a> {
        let named = move |name: &&str| format!("{module}.{expert}.{name}.weight");
        self.parts.iter().map(move |names| names.iter().map(named).collect())
    }
}

/// Whether PEFT reads the experts of this class as `[experts, d_in, d_out]`. It does so for classes with the attribute
/// `is_transposed`. Llama 4 also stores experts that way but lacks the attribute, so PEFT reads them as `[experts,
/// d_out, d_in]`.
pub(crate) fn keeps_experts_transposed(config: &Config) -> bool {
    let kind = config.get("model_type").and_then(|kind| kind.as_str()).unwrap_or_default();
    matches!(kind, "gpt_oss" | "openai_privacy_filter" | "aria" | "aria_text")
}

/// How many layers of the model transformers reads.
pub(crate) fn layers_read(config: &Config) -> Option<u64> {
    wrapper::text_config(config).get("num_hidden_layers")?.as_u64()
}

/// Whether the model's class has an output head. The config can't tell: an encoder's may still say that the head is
/// tied.
pub(crate) fn has_head(config: &Config) -> bool {
    class(&wrapper::text_config(config))
        .is_none_or(|class| ["CausalLM", "LMHead", "ConditionalGeneration"].iter().any(|k| class.contains(k)))
}

/// Names that checkpoints of Mixtral and GPT-NeoX may have for a tensor that transformers calls `name`.
pub(crate) fn other_spellings(name: &str) -> [String; 2] {
    [name.replace(".mlp.", ".block_sparse_moe."), name.replace("lm_head.", "embed_out.")]
}

/// Suffixes of tensors in older checkpoints that no program reads: buffers computed from the config, not weights
/// (llama.cpp `conversion/base.py`, `prepare_tensors`).
const BUFFERS: &[&str] = &[".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq"];

/// Whether `name` is a buffer that nothing needs.
pub fn is_buffer(name: &str) -> bool {
    BUFFERS.iter().any(|end| name.ends_with(end))
}

/// Suffixes of tensors that classes compute themselves: GPT-2's masks, which only old checkpoints have, and BERT's
/// positions. A tensor without a place in GGUF isn't always one of these: a pooler is trained.
const MADE_BY_CLASS: &[&str] = &[".attn.bias", ".attn.masked_bias", "embeddings.position_ids"];

/// Whether a model's class computes the tensor called `name` itself, so that it says nothing about the model.
pub(crate) fn is_made_by_class(name: &str) -> bool {
    is_buffer(name) || MADE_BY_CLASS.iter().any(|end| name.ends_with(end))
}

/// Sorts modules into the order in which transformers' classes create them, and removes repeated names. Numbers are
/// compared as numbers; names of unknown modules keep their order. The tensors of a file are in no such order.
pub(crate) fn in_order<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found: Vec<&str> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    found.extend(names.into_iter().filter(|name| seen.insert(*name)));
    found.sort_by_cached_key(|name| name.split('.').map(place).collect::<Vec<_>>());
    found
}

/// Names of modules in the order in which their parents create them.
const ORDER: &[&str] = &[
    "embed_tokens",
    "wte",
    "embed_in",
    "word_embeddings",
    "wpe",
    "model",
    "transformer",
    "gpt_neox",
    "layers",
    "h",
    "ln_1",
    "input_layernorm",
    "self_attn",
    "attn",
    "self_attention",
    "attention",
    "c_attn",
    "query_key_value",
    "q_proj",
    "q_a_proj",
    "q_b_proj",
    "kv_a_proj_with_mqa",
    "kv_b_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "qkv_proj",
    "query",
    "key",
    "value",
    "dense",
    "out_proj",
    "mlp",
    "block_sparse_moe",
    "gate",
    "experts",
    "w1",
    "w2",
    "w3",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "down_proj",
    "c_fc",
    "c_proj",
    "dense_h_to_4h",
    "dense_4h_to_h",
    "fc1",
    "fc2",
    "shared_expert",
    "norm",
    "embed_out",
    "lm_head",
];

/// The sort key of one part of a path.
fn place(part: &str) -> usize {
    match part.parse::<usize>() {
        Ok(number) => number,
        // Unknown names keep their order, after the known ones.
        Err(_) => ORDER.iter().position(|known| *known == part).unwrap_or(ORDER.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conv1d_is_what_the_class_has_for_it() {
        let keeps =
            |config: serde_json::Value, name: &str| Naming::of(config.as_object().unwrap()).keeps_transposed(name);
        let plain = serde_json::json!({"model_type": "olmo", "architectures": ["OlmoForCausalLM"]});
        assert_eq!(keeps(plain, "model.layers.0.self_attn.q_proj.weight"), Some(false));
        let conv = serde_json::json!({"model_type": "openai-gpt", "architectures": ["OpenAIGPTLMHeadModel"]});
        assert_eq!(keeps(conv.clone(), "transformer.h.0.attn.c_attn.weight"), Some(true));
        assert_eq!(keeps(conv, "lm_head.weight"), Some(false));
        let own = serde_json::json!({"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}});
        assert_eq!(keeps(own, "transformer.h.0.attn.c_attn.weight"), None);
    }

    #[test]
    fn the_parts_of_a_fused_parameter_are_found_under_every_name() {
        let weights = |fused: &FusedExperts| fused.weights("m.experts", 3).collect::<Vec<_>>();
        let expected = [
            ["m.experts.3.gate_proj.weight", "m.experts.3.w1.weight"],
            ["m.experts.3.up_proj.weight", "m.experts.3.w3.weight"],
        ];
        assert_eq!(weights(&FUSED_EXPERTS[0]), expected);
        assert_eq!(weights(&FUSED_EXPERTS[1]), [["m.experts.3.down_proj.weight", "m.experts.3.w2.weight"]]);
    }

    #[test]
    fn modules_come_as_their_classes_make_them() {
        let names = [
            "lm_head.weight",
            "model.layers.10.self_attn.q_proj.weight",
            "model.layers.2.mlp.down_proj.weight",
            "model.layers.2.mlp.gate_proj.weight",
            "model.layers.2.self_attn.o_proj.weight",
            "model.layers.2.self_attn.v_proj.weight",
            "model.embed_tokens.weight",
        ];
        let expected = [6, 5, 4, 3, 2, 1, 0].map(|i| names[i]);
        assert_eq!(in_order(names), expected);
    }
}
