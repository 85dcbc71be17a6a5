//! Tensors of classes whose checkpoints have other names or parts than the class: those that combine a text model with
//! models for images or sound, and those that transformers has rewritten. It renames the tensors when it loads them, and
//! splits or joins some. PEFT uses the class's names.
//!
//! The lists are in the files beside this one: a line `[NAMES]` with the `model_type` or the class of models, and then
//! their rules ([`rule`]), which are applied one after the other. `like NAME` stands for the rules of another list.
//! `[NAMES: whole]` leaves out text-only classes of the same `model_type`, `[NAMES: alone]` holds instead of the list of
//! the `model_type`. What is a part of a model has its own list, for names in its module.
//!
//! Reference: transformers 5.23 `conversion_mapping.py`.

mod regroup;
mod rule;

use std::sync::LazyLock;

pub(crate) use regroup::Regrouped;
use rule::{Rows, Rule};

use super::Config;
use crate::plan::Plan;

/// The files with the lists.
const FILES: [&str; 4] = [
    include_str!("wrappers.renames"),
    include_str!("vision.renames"),
    include_str!("text.renames"),
    include_str!("sound.renames"),
];

static LISTS: LazyLock<Vec<List>> = LazyLock::new(|| {
    let mut lists: Vec<List> = Vec::new();
    for line in FILES.iter().flat_map(|file| file.lines()).map(str::trim) {
        if let Some(head) = line.strip_prefix('[').and_then(|head| head.strip_suffix(']')) {
            let (names, of) = head.split_once(':').unwrap_or((head, ""));
            let names = names.split_whitespace().collect();
            lists.push(List { names, whole: of.trim() == "whole", alone: of.trim() == "alone", rules: Vec::new() });
        } else if let Some(name) = line.strip_prefix("like ") {
            let others: Vec<Rule> =
                lists.iter().filter(|list| list.has(name)).flat_map(|list| list.rules.clone()).collect();
            lists.last_mut().into_iter().for_each(|list| list.rules.extend(others.iter().cloned()));
        } else if let (Some(list), Some(rule)) = (lists.last_mut(), Rule::parse(line)) {
            list.rules.push(rule);
        }
    }
    lists
});

/// The rules of some classes.
#[derive(Debug)]
struct List {
    names: Vec<&'static str>,
    whole: bool,
    alone: bool,
    rules: Vec<Rule>,
}

impl List {
    fn has(&self, name: &str) -> bool {
        self.names.contains(&name)
    }
}

/// The parts of a model: the field of the config that describes one, and the modules that it can be.
const PARTS: &[(&str, &[&str])] = &[
    (
        "vision_config",
        &["vision_tower", "vision_model", "visual", "vision_encoder", "image_tower", "video_tower", "vit"],
    ),
    ("text_config", &["language_model", "text_model", "text_encoder"]),
    ("audio_config", &["audio_tower", "audio_encoder"]),
    ("backbone_config", &["backbone.conv_encoder.model", "backbone.model", "backbone", "pixel_level_module.encoder"]),
    ("image_model_config", &["image_encoder.model"]),
    ("patch_model_config", &["patch_encoder.model"]),
    ("fov_model_config", &["fov_encoder.model"]),
    ("qformer_config", &["qformer"]),
    ("encoder_config", &["encoder"]),
    ("decoder_config", &["decoder"]),
    ("vlm_config", &["vlm"]),
    ("codec_config", &["codec_model"]),
    ("detector_config", &["detector_model"]),
    ("tracker_config", &["tracker_model"]),
    ("encoder", &["encoder"]),
    ("decoder", &["decoder"]),
];

/// The most parts of a model that have lists.
const MOST_PARTS: usize = 8;

/// A list of a part of a model, and the modules that the part can be.
type OfPart = (&'static [&'static str], &'static List);

/// What is renamed for a class.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Renames {
    /// The lists of the class and of its `model_type`.
    own: [Option<&'static List>; 2],
    parts: [Option<OfPart>; MOST_PARTS],
}

/// The `model_type` of a config.
fn kind(config: &Config) -> Option<&str> {
    config.get("model_type")?.as_str()
}

/// Adds the lists of the parts that `config` contains.
fn push_parts(config: &Config, depth: usize, found: &mut Vec<OfPart>) {
    for (field, part) in config.iter().filter_map(|(field, part)| Some((field, part.as_object()?))) {
        let modules = PARTS.iter().find(|(own, _)| own == field).map(|(_, modules)| *modules);
        if let (Some(modules), Some(kind)) = (modules, kind(part)) {
            // The part may be another class of the kind than a whole model: `swin.backbone`, `paligemma.vlm`.
            let of_field = format!("{kind}.{}", field.trim_end_matches("_config"));
            for name in [of_field.as_str(), kind] {
                let lists = LISTS.iter().filter(|list| list.has(name) && !list.whole);
                found.extend(lists.map(|list| (modules, list)));
            }
        }
        if depth > 0 {
            push_parts(part, depth - 1, found);
        }
    }
}

impl Renames {
    /// What is renamed for the class of `config`; nothing for classes whose checkpoints have the class's own names.
    pub(super) fn of(config: &Config, class: Option<&str>) -> Self {
        let class = class.unwrap_or_default();
        let is_whole = class.contains("For") && !class.ends_with("ForCausalLM");
        let list = |name: &str| LISTS.iter().find(|list| list.has(name) && (is_whole || !list.whole));
        let of_class = Some(class).filter(|class| !class.is_empty()).and_then(list);
        let of_kind = kind(config).and_then(list).filter(|_| of_class.is_none_or(|list| !list.alone));
        let own = [of_class, of_kind];
        let is_own = |list: &List| own.iter().flatten().any(|own| std::ptr::eq(*own, list));
        let mut found = Vec::new();
        push_parts(config, 2, &mut found);
        found.retain(|(_, list)| !is_own(list));
        let mut parts = [None; MOST_PARTS];
        parts.iter_mut().zip(found).for_each(|(place, part)| *place = Some(part));
        Self { own, parts }
    }

    /// Whether nothing is renamed.
    pub(super) fn is_empty(self) -> bool {
        self.own.iter().all(Option::is_none) && self.parts.iter().all(Option::is_none)
    }

    /// The class's name of the tensor that the checkpoint calls `name`; `None` if nothing matches.
    pub(super) fn renamed(self, name: &str) -> Option<String> {
        let mut renamed: Option<String> = None;
        for rule in self.own.iter().flatten().flat_map(|list| &list.rules) {
            renamed = rule.name(renamed.as_deref().unwrap_or(name)).or(renamed);
        }
        for (modules, list) in self.parts.iter().flatten() {
            let now = renamed.as_deref().unwrap_or(name);
            let Some((module, inside)) = module_of(now, modules) else { continue };
            let mut inner: Option<String> = None;
            for rule in &list.rules {
                inner = rule.name(inner.as_deref().unwrap_or(inside)).or(inner);
            }
            renamed = inner.map(|inner| [module, &inner].concat()).or(renamed);
        }
        renamed
    }

    /// Whether `name` begins as names that the rules of the class make: it is the class's own.
    pub(super) fn makes(self, name: &str) -> bool {
        self.own.iter().flatten().flat_map(|list| &list.rules).any(|rule| rule.makes(name))
    }

    /// What `rule` makes of the tensor that has the name `name` in the class but for its parts. The first rule that makes
    /// anything of it is used.
    fn found<T>(self, name: &str, of_rule: impl Fn(&Rule, &str, &str) -> Option<T>) -> Option<T> {
        let own = self.own.iter().flatten().flat_map(|list| &list.rules);
        own.into_iter().find_map(|rule| of_rule(rule, "", name)).or_else(|| {
            self.parts.iter().flatten().find_map(|(modules, list)| {
                let (module, inside) = module_of(name, modules)?;
                list.rules.iter().find_map(|rule| of_rule(rule, module, inside))
            })
        })
    }

    /// The tensors of `weights` that the class splits or joins. `config` gives the numbers of heads.
    pub(super) fn regrouped(self, config: &Config, weights: &Plan) -> Vec<Regrouped> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut all = Vec::new();
        let mut joined: Vec<(String, Rows, Vec<Option<usize>>)> = Vec::new();
        for (place, tensor) in weights.tensors.iter().enumerate() {
            let name = self.renamed(&tensor.name).unwrap_or_else(|| tensor.name.clone());
            let split = |rule: &Rule, module: &str, inside: &str| {
                let (names, rows) = rule.split(inside)?;
                Some((names.iter().map(|name| [module, name].concat()).collect::<Vec<_>>(), rows))
            };
            if let Some((names, rows)) = self.found(&name, split) {
                all.extend(Regrouped::split(config, weights, place, names, rows));
                continue;
            }
            let join = |rule: &Rule, module: &str, inside: &str| {
                let (name, part, count, rows) = rule.joined(inside)?;
                Some(([module, &name].concat(), part, count, rows))
            };
            if let Some((name, part, count, rows)) = self.found(&name, join) {
                let known = joined.iter().position(|(own, ..)| *own == name).unwrap_or_else(|| {
                    joined.push((name, rows, vec![None; count]));
                    joined.len() - 1
                });
                joined[known].2[part] = Some(place);
            }
        }
        for (name, rows, places) in joined {
            let places: Option<Vec<usize>> = places.into_iter().collect();
            all.extend(places.and_then(|places| Regrouped::joined(weights, places, name, rows)));
        }
        all
    }
}

/// The module of a part that `name` is in, with its dot, and the name in it.
fn module_of<'a>(name: &'a str, modules: &[&str]) -> Option<(&'a str, &'a str)> {
    let end = |module: &&str| {
        let start = name.find(&format!("{module}."))?;
        let is_near = (start == 0 || name[..start].ends_with('.')) && name[..start].matches('.').count() <= 3;
        is_near.then_some(start + module.len() + 1)
    };
    modules.iter().find_map(end).map(|end| name.split_at(end))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_line_of_the_lists_is_read() {
        for line in FILES.iter().flat_map(|file| file.lines()).map(str::trim) {
            let is_head = line.starts_with('[') && line.ends_with(']');
            let known = |name: &str| LISTS.iter().any(|list| list.has(name));
            let is_like = line.strip_prefix("like ").is_some_and(known);
            assert!(
                line.is_empty() || line.starts_with('#') || is_head || is_like || Rule::parse(line).is_some(),
                "{line}"
            );
        }
    }

    #[test]
    fn names_are_those_that_transformers_makes_of_them() {
        let of = |kind: &str, class: &str, name: &str| {
            let config = json!({"model_type": kind});
            Renames::of(config.as_object().unwrap(), Some(class)).renamed(name)
        };
        let qwen = |name: &str| of("qwen2_vl", "Qwen2VLForConditionalGeneration", name);
        let q_proj = "model.language_model.layers.0.self_attn.q_proj.weight";
        assert_eq!(qwen("model.layers.0.self_attn.q_proj.weight").unwrap(), q_proj);
        assert_eq!(qwen(q_proj), None, "the class's own name");
        assert_eq!(qwen("visual.blocks.0.attn.qkv.weight").unwrap(), "model.visual.blocks.0.attn.qkv.weight");
        assert_eq!(qwen("lm_head.weight"), None);
        let gemma = |name: &str| of("gemma3", "Gemma3ForConditionalGeneration", name);
        assert_eq!(gemma("language_model.model.layers.0.self_attn.q_proj.weight").unwrap(), q_proj);
        assert_eq!(gemma("language_model.lm_head.weight").unwrap(), "lm_head.weight");
        let norm = "model.vision_tower.post_layernorm.bias";
        assert_eq!(gemma("vision_tower.post_layernorm.bias").unwrap(), norm);
        assert_eq!(gemma("vision_tower.vision_model.post_layernorm.bias").unwrap(), norm);
        assert_eq!(gemma("model.vision_tower.vision_model.post_layernorm.bias").unwrap(), norm);
        let audio = of("qwen2_audio", "Qwen2AudioForConditionalGeneration", "audio_tower.conv1.bias");
        assert_eq!(audio.unwrap(), "model.audio_tower.conv1.bias");
        assert_eq!(of("gemma3", "Gemma3ForCausalLM", "model.norm.weight"), None);
        let nemotron = of("nemotron_h", "NemotronHForCausalLM", "backbone.layers.0.mixer.in_proj.weight");
        assert_eq!(nemotron.unwrap(), "model.layers.0.mixer.in_proj.weight");
        let vit = |name: &str| of("vit", "ViTForImageClassification", name).unwrap();
        assert_eq!(vit("vit.encoder.layer.3.attention.attention.query.bias"), "vit.layers.3.attention.q_proj.bias");
        assert_eq!(vit("vit.encoder.layer.3.attention.output.dense.bias"), "vit.layers.3.attention.o_proj.bias");
        assert_eq!(vit("vit.encoder.layer.3.output.dense.bias"), "vit.layers.3.mlp.fc2.bias");
        let segformer = "segformer.encoder.block.1.0.attention.self.query.bias";
        let renamed = "segformer.stages.1.blocks.0.attention.q_proj.bias";
        assert_eq!(of("segformer", "SegformerForImageClassification", segformer).unwrap(), renamed);
    }
}
