//! The config.json of a merged model: that of the first model, with the layers that the result has.
//!
//! mergekit sets the number of layers alone. Fields that say something about each layer follow here, because the model
//! loads with the wrong kinds of layers otherwise, or not at all.

use serde_json::{Map, Value, json};

use super::names::{Config, Modules};
use super::slices::ModuleSlices;
use crate::checkpoint::TEXT_CONFIGS;

/// Lists with an entry for each layer.
const BY_LAYER: &[&str] =
    &["layer_types", "mlp_layer_types", "layers_block_type", "block_types", "no_rope_layers", "attn_layers_type"];

/// Lists of the numbers of some layers.
const NUMBERS: &[&str] = &["mlp_only_layers", "moe_layers", "full_attn_idxs", "attn_layer_indices"];

/// Fields that tell kinds of layers by their number in other ways.
const PATTERNS: &[&str] = &[
    "attn_layer_period",
    "decoder_sparse_step",
    "first_k_dense_replace",
    "full_attention_interval",
    "interleave_moe_layer_step",
    "moe_layer_freq",
    "no_rope_layer_interval",
    "sliding_window_pattern",
];

/// A layer of the result: the model that it comes from, and its number there.
type Origin = (usize, usize);

/// The layers of a module of the result, each from the first source of its slice.
fn origins(module: &ModuleSlices) -> Vec<Origin> {
    let first = module.slices.iter().filter_map(|slice| slice.sources.first());
    first.flat_map(|source| source.layers.clone().map(|layer| (source.model, layer))).collect()
}

/// Sets the fields of `config`, which is that of the first model, for the layers of a module. `configs` are those of all
/// models. Adds to `notes` what the config can't say.
pub(super) fn set_layers(
    config: &mut Config,
    configs: &[&Config],
    modules: &Modules,
    module: &ModuleSlices,
    notes: &mut Vec<String>,
) {
    let layers = origins(module);
    let counts = modules.all[module.module].counts;
    let unchanged = layers.iter().enumerate().all(|(at, (_, layer))| at == *layer);
    let mut is_set = false;
    for path in counts {
        is_set |= set_count(config, path, layers.len());
    }
    if !is_set && let Some(path) = counts.first() {
        section_mut(config, path).insert(field(path).to_owned(), json!(layers.len()));
    }
    let Some(path) = counts.first() else { return };
    let of = |model: usize| section(configs[model], path);
    let lists: Vec<(&str, Value)> =
        BY_LAYER.iter().filter_map(|name| Some((*name, by_layer(name, &layers, &of)?))).collect();
    let numbers: Vec<(&str, Value)> =
        NUMBERS.iter().filter_map(|name| Some((*name, numbers(name, &layers, &of)?))).collect();
    let section = section_mut(config, path);
    for (name, value) in lists.into_iter().chain(numbers) {
        section.insert(name.to_owned(), value);
    }
    let has_types = section.contains_key("layer_types");
    let is_pattern = |name: &&&str| {
        let value = section.get(**name).and_then(Value::as_u64);
        value.is_some_and(|value| value > 0) && !(has_types && **name == "sliding_window_pattern")
    };
    if let Some(name) = PATTERNS.iter().find(is_pattern).filter(|_| !unchanged) {
        notes.push(format!("config.json: {name} tells kinds of layers by their number, and stays as it is"));
    }
}

/// The name of the field at the end of a path.
fn field(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// The part of a config.json that has the field at `path`: that of the text model for a field without a path.
fn section<'a>(config: &'a Config, path: &str) -> &'a Config {
    let object = |name: &str| config.get(name).and_then(Value::as_object);
    let found = match path.split_once('.') {
        Some((name, _)) => object(name),
        None => TEXT_CONFIGS.iter().find_map(|name| object(name)),
    };
    found.unwrap_or(config)
}

fn section_mut<'a>(config: &'a mut Config, path: &str) -> &'a mut Config {
    let name = match path.split_once('.') {
        Some((name, _)) => Some(name),
        None => TEXT_CONFIGS.into_iter().find(|name| config.get(*name).is_some_and(Value::is_object)),
    };
    match name.filter(|name| config.get(*name).is_some_and(Value::is_object)) {
        Some(name) => config.get_mut(name).and_then(Value::as_object_mut).expect("an object, as was just seen"),
        None => config,
    }
}

/// Sets the count at `path` where there is one.
fn set_count(config: &mut Config, path: &str, count: usize) -> bool {
    match section_mut(config, path).get_mut(field(path)) {
        Some(value) if value.is_number() => {
            *value = json!(count);
            true
        }
        _ => false,
    }
}

/// The list with an entry for each layer, of the entries that the layers have in their own models; `None` if a model has
/// no such list.
fn by_layer<'a>(name: &str, layers: &[Origin], of: &dyn Fn(usize) -> &'a Map<String, Value>) -> Option<Value> {
    let entry = |(model, layer): &Origin| match of(*model).get(name) {
        Some(Value::Array(list)) => list.get(*layer).cloned(),
        _ if name == "layer_types" => default_type(of(*model), *layer),
        _ => None,
    };
    layers.iter().map(entry).collect::<Option<Vec<_>>>().filter(|list| !list.is_empty()).map(Value::Array)
}

/// The kind of attention of a layer in classes that alternate it, where config.json has no list.
///
/// Reference: transformers `configuration_gemma2.py`, `configuration_gemma3.py`, `configuration_cohere2.py`.
fn default_type(config: &Config, layer: usize) -> Option<Value> {
    let every = |default: u64| {
        let pattern = config.get("sliding_window_pattern").and_then(Value::as_u64).unwrap_or(default);
        usize::try_from(pattern).ok().filter(|pattern| *pattern > 0)
    };
    let pattern = match config.get("model_type")?.as_str()? {
        "gemma2" => 2,
        "gemma3_text" => every(6)?,
        "cohere2" => every(4)?,
        _ => return None,
    };
    let is_whole = (layer + 1).is_multiple_of(pattern);
    Some(json!(if is_whole { "full_attention" } else { "sliding_attention" }))
}

/// The numbers of the layers that a list of their own models has; `None` if no model has such a list.
fn numbers<'a>(name: &str, layers: &[Origin], of: &dyn Fn(usize) -> &'a Map<String, Value>) -> Option<Value> {
    let list = |model: usize| of(model).get(name).and_then(Value::as_array);
    layers.iter().find_map(|(model, _)| list(*model))?;
    let has = |(model, layer): &Origin| {
        list(*model).is_some_and(|list| list.iter().any(|n| n.as_u64() == Some(*layer as u64)))
    };
    let found = layers.iter().enumerate().filter(|(_, origin)| has(origin)).map(|(at, _)| json!(at));
    Some(Value::Array(found.collect()))
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::super::parameters::Parameters;
    use super::super::slices::{Slice, Source};
    use super::*;
    use crate::plan::Plan;

    static NO_PARAMETERS: Parameters = Parameters::NONE;

    fn sliced(config: &Config, ranges: &[std::ops::Range<usize>]) -> (Config, Vec<String>) {
        let slice = |layers: &std::ops::Range<usize>| Slice {
            sources: vec![Source { model: 0, layers: layers.clone(), parameters: &NO_PARAMETERS }],
            base: None,
            parameters: &NO_PARAMETERS,
        };
        let slices = ranges.iter().map(slice).collect();
        let module = ModuleSlices { module: 0, slices, parameters: &NO_PARAMETERS, is_sliced: true };
        let (mut made, mut notes) = (config.clone(), Vec::new());
        set_layers(&mut made, &[config], &Modules::of(config, &Plan::default()), &module, &mut notes);
        (made, notes)
    }

    fn config(json: Value) -> Config {
        json.as_object().unwrap().clone()
    }

    #[test]
    fn what_is_said_of_each_layer_goes_with_it() {
        let qwen = config(json!({"num_hidden_layers": 3, "mlp_only_layers": [2], "layer_types": ["a", "b", "c"],
            "decoder_sparse_step": 1}));
        let (made, notes) = sliced(&qwen, &[1..3, 0..1]);
        let expected = json!({"num_hidden_layers": 3, "mlp_only_layers": [1], "layer_types": ["b", "c", "a"],
            "decoder_sparse_step": 1});
        assert_eq!(Value::Object(made), expected);
        assert_eq!(
            notes,
            ["config.json: decoder_sparse_step tells kinds of layers by their number, and stays as it is"]
        );
        assert!(sliced(&qwen, slice::from_ref(&(0..2))).1.is_empty());
        let gpt2 = config(json!({"n_layer": 4}));
        assert_eq!(Value::Object(sliced(&gpt2, &[0..4, 2..4]).0), json!({"n_layer": 6}));
        let gemma = config(json!({"model_type": "gemma2", "num_hidden_layers": 4}));
        let (made, _) = sliced(&gemma, &[0..1, 2..3]);
        assert_eq!(made["layer_types"], json!(["sliding_attention", "sliding_attention"]));
        let wrapped = config(json!({"text_config": {"num_hidden_layers": 2}, "num_hidden_layers": 9}));
        assert_eq!(
            Value::Object(sliced(&wrapped, slice::from_ref(&(0..1))).0),
            json!({"text_config": {"num_hidden_layers": 1}, "num_hidden_layers": 9})
        );
    }
}
