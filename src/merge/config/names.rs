//! The modules of a class, and the layers to which tensors belong, by their names.
//!
//! Classes of one module have it under the name `default`. Classes of several are listed; a class that isn't is divided
//! by what stands before the numbers of its layers.
//!
//! Reference: mergekit `architecture/auto.py`, and the modules of `_data/architectures`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::arch::wrapper::text_config;
use crate::plan::Plan;

/// The config.json of a model.
pub(super) type Config = Map<String, Value>;

/// A module: its name, beginnings of its tensors' names, and the fields of config.json that may count its layers.
type Part = (&'static str, &'static [&'static str], &'static [&'static str]);

const VISION: &[&str] = &["vision_config.num_hidden_layers", "vision_config.depth"];
const NONE: &[&str] = &[];

/// Fields that count the layers of a text model, inside the text model's config.
const TEXT: &[&str] = &["num_hidden_layers", "n_layer", "n_layers", "num_layers"];

/// Classes of several modules. A tensor belongs to the first module that one of its beginnings fits; the last is that of
/// the rest.
const CLASSES: &[(&[&str], &[Part])] = &[
    (
        &["Gemma3ForConditionalGeneration", "Mistral3ForConditionalGeneration"],
        &[
            ("multi_modal_projector", &["multi_modal_projector."], NONE),
            ("vision_tower", &["vision_tower."], VISION),
            ("text_decoder", NONE, TEXT),
        ],
    ),
    (
        &["Llama4ForConditionalGeneration"],
        &[
            ("multi_modal_projector", &["multi_modal_projector."], NONE),
            ("vision_model", &["vision_model."], VISION),
            ("text_decoder", NONE, TEXT),
        ],
    ),
    (
        &[
            "Qwen2VLForConditionalGeneration",
            "Qwen2_5_VLForConditionalGeneration",
            "Qwen3VLForConditionalGeneration",
            "Qwen3VLMoeForConditionalGeneration",
        ],
        &[
            ("multi_modal_projector", &["visual.merger.", "visual.deepstack_merger_list."], NONE),
            ("vision_tower", &["visual."], VISION),
            ("text_decoder", NONE, TEXT),
        ],
    ),
    (
        &["T5ForConditionalGeneration"],
        &[
            ("decoder", &["decoder."], &["num_decoder_layers", "num_layers"]),
            ("encoder", &["encoder."], &["num_layers", "num_hidden_layers"]),
            ("shared", NONE, NONE),
        ],
    ),
    (
        &["WhisperForConditionalGeneration"],
        &[("encoder", &["encoder."], &["encoder_layers"]), ("decoder", NONE, &["decoder_layers"])],
    ),
];

/// Classes of one module whose tensors mergekit lists. Their embeddings come from the first slice and what follows the
/// layers from the last; in other classes, everything outside of layers comes from the first.
const LISTED: &[&str] = &[
    "AfmoeForCausalLM",
    "ApertusForCausalLM",
    "ArceeForCausalLM",
    "BaichuanForCausalLM",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "ChatGLMModel",
    "Cohere2ForCausalLM",
    "CohereForCausalLM",
    "DistilBertForMaskedLM",
    "DistilBertForSequenceClassification",
    "DistilBertForTokenClassification",
    "DistilBertModel",
    "ExaoneForCausalLM",
    "FalconForCausalLM",
    "GPT2ForSequenceClassification",
    "GPT2LMHeadModel",
    "GPTBigCodeForCausalLM",
    "GPTNeoXForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GemmaForCausalLM",
    "Glm4ForCausalLM",
    "Glm4MoeForCausalLM",
    "GraniteForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "InternLM2ForCausalLM",
    "JAISLMHeadModel",
    "LLaMaForCausalLM",
    "Lfm2ForCausalLM",
    "LlamaForCausalLM",
    "LlamaForSequenceClassification",
    "MambaForCausalLM",
    "MistralForCausalLM",
    "MixFormerSequentialForCausalLM",
    "MixtralForCausalLM",
    "Olmo2ForCausalLM",
    "Phi3ForCausalLM",
    "Phi3SmallForCausalLM",
    "PhiForCausalLM",
    "QWenLMHeadModel",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "RobertaForMaskedLM",
    "RobertaForSequenceClassification",
    "RobertaForTokenClassification",
    "RobertaModel",
    "SolarForCausalLM",
    "StableLMEpochForCausalLM",
    "StableLmForCausalLM",
    "Starcoder2ForCausalLM",
];

/// The class in a config.json.
pub(super) fn class(config: &Config) -> Option<&str> {
    config.get("architectures")?.get(0)?.as_str()
}

/// Whether mergekit lists the tensors of the class.
pub(super) fn is_listed(class: &str) -> bool {
    LISTED.contains(&class) || CLASSES.iter().any(|(classes, _)| classes.contains(&class))
}

/// Whether a tensor outside of layers belongs in front of them: embeddings, and what they are made of.
pub(super) fn is_before_layers(name: &str) -> bool {
    const PARTS: [&str; 6] = ["embed", "embd", "wte", "wpe", "relative_pe", "rotary_pos_emb"];
    PARTS.iter().any(|part| name.contains(part)) && !name.contains("embed_out")
}

/// A module of a model.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    /// What stands before the number of a layer, with the dot: `model.layers.`. `None` without layers.
    pub(super) prefix: Option<String>,
    /// Fields of config.json that may count its layers: paths from the top, or names in the text model's config.
    pub(super) counts: &'static [&'static str],
}

/// The modules of a class, as the names of a model have them.
#[derive(Debug)]
pub(super) struct Modules {
    parts: Option<&'static [Part]>,
    pub(super) all: Vec<Module>,
}

/// The place of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place<'a> {
    /// Its module.
    pub(super) module: usize,
    /// The number of its layer, and what follows the number in its name.
    pub(super) layer: Option<(usize, &'a str)>,
}

/// A name around the first number that is a part by itself: `model.layers.`, 3, `.mlp.up_proj.weight`.
fn numbered(name: &str) -> Option<(&str, usize, &str)> {
    let mut start = 0;
    for part in name.split('.') {
        let end = start + part.len();
        let is_inner = start > 0 && end < name.len();
        if is_inner && part.bytes().all(|b| b.is_ascii_digit()) {
            return Some((&name[..start], part.parse().ok()?, &name[end..]));
        }
        start = end + 1;
    }
    None
}

impl Modules {
    /// The modules of the model with this config and these tensors.
    pub(super) fn of(config: &Config, weights: &Plan) -> Self {
        let class = class(config).unwrap_or_default();
        let parts = CLASSES.iter().find(|(classes, _)| classes.contains(&class)).map(|(_, parts)| *parts);
        let mut prefixes: BTreeMap<&str, usize> = BTreeMap::new();
        for tensor in &weights.tensors {
            // Layers for multi-token prediction are no module of the class.
            if let Some((prefix, ..)) = numbered(&tensor.name).filter(|(prefix, ..)| !prefix.starts_with("mtp.")) {
                *prefixes.entry(prefix).or_default() += 1;
            }
        }
        let most = |of: &dyn Fn(&str) -> bool| {
            let found = prefixes.iter().filter(|(prefix, _)| of(prefix)).max_by_key(|(_, count)| **count);
            found.map(|(prefix, _)| (*prefix).to_owned())
        };
        let all = match parts {
            Some(parts) => parts
                .iter()
                .enumerate()
                .map(|(at, (name, _, counts))| Module {
                    name: (*name).to_owned(),
                    prefix: most(&|prefix| part_of(parts, prefix) == at).filter(|_| !counts.is_empty()),
                    counts,
                })
                .collect(),
            None if prefixes.len() < 2 || is_listed(class) => {
                vec![Module { name: "default".to_owned(), prefix: most(&|_| true), counts: TEXT }]
            }
            None => {
                let main = most(&|_| true);
                let module = |prefix: &&str| Module {
                    name: (*prefix).to_owned(),
                    prefix: Some((*prefix).to_owned()),
                    counts: if main.as_deref() == Some(*prefix) { TEXT } else { NONE },
                };
                let rest = Module { name: "default".to_owned(), prefix: None, counts: NONE };
                prefixes.keys().map(module).chain([rest]).collect()
            }
        };
        Self { parts, all }
    }

    /// The place of the tensor called `name`.
    pub(super) fn place<'a>(&self, name: &'a str) -> Place<'a> {
        let found = numbered(name);
        let module = match self.parts {
            Some(parts) => part_of(parts, name),
            None => {
                let is_of =
                    |module: &Module| found.is_some_and(|(prefix, ..)| module.prefix.as_deref() == Some(prefix));
                self.all.iter().position(is_of).unwrap_or(self.all.len() - 1)
            }
        };
        let own = self.all[module].prefix.as_deref();
        let layer = found.filter(|(prefix, ..)| Some(*prefix) == own).map(|(_, layer, after)| (layer, after));
        Place { module, layer }
    }

    /// How many layers of a module a model has: those that it has tensors for, but not more than its config says.
    pub(super) fn layers(&self, module: usize, config: &Config, weights: &Plan) -> usize {
        let of = |name: &str| {
            let place = self.place(name);
            place.layer.filter(|_| place.module == module).map(|(layer, _)| layer.saturating_add(1))
        };
        let there = weights.tensors.iter().filter_map(|tensor| of(&tensor.name)).max().unwrap_or_default();
        let there = there.min(weights.tensors.len());
        let counted = self.all[module].counts.iter().find_map(|path| count_at(config, path));
        counted.map_or(there, |counted| there.min(counted))
    }
}

/// The module to which a name belongs.
fn part_of(parts: &[Part], name: &str) -> usize {
    let name = name.strip_prefix("model.").unwrap_or(name);
    let fits = |(_, starts, _): &Part| starts.iter().any(|start| name.starts_with(start));
    parts.iter().position(fits).unwrap_or(parts.len() - 1)
}

/// The count in the field at `path` of a config.json.
fn count_at(config: &Config, path: &str) -> Option<usize> {
    let value = match path.split_once('.') {
        Some((object, field)) => config.get(object)?.get(field)?.as_u64(),
        None => text_config(config).get(path).or_else(|| config.get(path))?.as_u64(),
    };
    usize::try_from(value?).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::dtype::DType;
    use crate::plan::{Expr, PlannedTensor};

    fn plan(names: &[&str]) -> Plan {
        let tensor = |name: &&str| PlannedTensor {
            name: (*name).to_owned(),
            dtype: DType::F32,
            shape: vec![1],
            expr: Expr::Values { shape: vec![1], values: Arc::from([0.0]) },
        };
        Plan { tensors: names.iter().map(tensor).collect() }
    }

    fn config(json: Value) -> Config {
        json.as_object().unwrap().clone()
    }

    #[test]
    fn tensors_are_in_the_layers_of_their_module() {
        let names = ["model.embed_tokens.weight", "model.layers.0.mlp.experts.7.w1.weight", "model.layers.11.a.weight"];
        let modules = Modules::of(&config(json!({"architectures": ["MixtralForCausalLM"]})), &plan(&names));
        assert_eq!(modules.all.len(), 1);
        assert_eq!(modules.place(names[1]).layer, Some((0, ".mlp.experts.7.w1.weight")));
        assert_eq!(modules.place(names[2]).layer, Some((11, ".a.weight")));
        assert_eq!(modules.place(names[0]), Place { module: 0, layer: None });
        assert_eq!(modules.layers(0, &config(json!({"num_hidden_layers": 2})), &plan(&names)), 2);
        let names = ["model.language_model.layers.0.q.weight", "visual.blocks.1.q.weight", "visual.merger.mlp.0.bias"];
        let vision = json!({"architectures": ["Qwen2VLForConditionalGeneration"], "vision_config": {"depth": 2}});
        let modules = Modules::of(&config(vision.clone()), &plan(&names));
        let found: Vec<(&str, bool)> = names
            .iter()
            .map(|name| modules.place(name))
            .map(|place| (modules.all[place.module].name.as_str(), place.layer.is_some()))
            .collect();
        assert_eq!(found, [("text_decoder", true), ("vision_tower", true), ("multi_modal_projector", false)]);
        assert_eq!(modules.layers(1, &config(vision), &plan(&names)), 2);
        let names = ["a.layers.0.x", "b.layers.3.x", "c.x"];
        let modules = Modules::of(&config(json!({"architectures": ["Unlisted"]})), &plan(&names));
        let found: Vec<&str> = names.iter().map(|name| modules.all[modules.place(name).module].name.as_str()).collect();
        assert_eq!(found, ["a.layers.", "b.layers.", "default"]);
    }
}
