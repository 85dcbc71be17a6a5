//! Classes that wrap a text model together with parts for images or sound: where the text model's config is, and what
//! its tensors are called.
//!
//! Reference: llama.cpp `conversion/base.py` (`load_hparams`, `TextModel`, `get_model_architecture`); transformers
//! `conversion_mapping.py` (`llava`) for the names.

use std::borrow::Cow;

use serde_json::Value;

use super::params::class;
use super::{Config, Family, INERT, of_class, of_model_type};
use crate::checkpoint::TEXT_CONFIGS;

/// Wrappers whose GGUF is that of their text model: class, `model_type`, and the text model's `model_type` for when
/// config.json leaves it out.
const WRAPPERS: &[(&str, &str, &str)] = &[
    ("Gemma3ForConditionalGeneration", "gemma3", "gemma3_text"),
    ("LlavaForConditionalGeneration", "llava", "llama"),
    ("VoxtralForConditionalGeneration", "voxtral", "llama"),
    ("Qwen2AudioForConditionalGeneration", "qwen2_audio", "qwen2"),
    ("AudioFlamingo3ForConditionalGeneration", "audioflamingo3", "qwen2"),
];

const TIED: &str = "tie_word_embeddings";

/// Names of the text model's module in classes of transformers.
const MODULES: [&str; 2] = ["language_model.", "text_model."];

/// Names, or prefixes of names, of modules that belong to other parts.
const OTHERS: [&str; 15] = [
    "vision",
    "visual",
    "audio",
    "talker",
    "multi_modal_projector",
    "mm_projector",
    "projector",
    "connector",
    "image_newline",
    "view_seperator",
    "resampler",
    "siglip",
    "sound_",
    "speech_",
    "mlp1",
];

/// The table of the text model that `config` describes or contains.
pub(crate) fn family(config: &Config) -> Option<&'static Family> {
    let config = text_config(config);
    of_class(class(&config)?, &config)
}

/// The module of the text model, if the class wraps one.
pub(super) fn module(config: &Config) -> Option<&'static str> {
    let wrapped = matches!(text_config(config), Cow::Owned(_))
        && class(config).is_none_or(|class| of_class(class, config).is_none());
    let has_text_model = matches!(kind(config), Some("smolvlm" | "idefics2" | "idefics3"));
    wrapped.then_some(MODULES[usize::from(has_text_model)])
}

fn kind(config: &Config) -> Option<&str> {
    config.get("model_type")?.as_str()
}

/// The config of the text model: `config` itself if nothing is wrapped or the text model's class has no table.
///
/// The text model's fields take precedence over the wrapper's. Of the wrapper's fields, only those are kept that the
/// text model's class has too; the others concern the other parts.
pub(crate) fn text_config(config: &Config) -> Cow<'_, Config> {
    let Some(text) = TEXT_CONFIGS.iter().find_map(|name| config.get(*name)?.as_object()) else {
        return Cow::Borrowed(config);
    };
    let Some(family) = text_family(config, text) else { return Cow::Borrowed(config) };
    let own = |(name, _): &(&String, &Value)| family.has_field(name) || INERT.contains(&name.as_str());
    let mut whole: Config = config.iter().filter(own).map(|(name, value)| (name.clone(), value.clone())).collect();
    whole.extend(text.iter().map(|(name, value)| (name.clone(), value.clone())));
    // The output head belongs to the wrapper, so the wrapper's config says whether it is tied to the embeddings.
    if let Some(tied) = config.get(TIED).filter(|value| !value.is_null()) {
        whole.insert(TIED.to_owned(), tied.clone());
    }
    whole.insert("architectures".to_owned(), serde_json::json!([family.class()]));
    whole.insert("model_type".to_owned(), family.model_type().into());
    Cow::Owned(whole)
}

fn text_family(config: &Config, text: &Config) -> Option<&'static Family> {
    if let Some(class) = class(text) {
        return of_class(class, text);
    }
    let outer = class(config);
    if let Some(family) = outer.and_then(|class| of_class(class, text)) {
        return Some(family);
    }
    let (_, _, default) = WRAPPERS.iter().find(|(class, model_type, _)| match outer {
        Some(outer) => outer == *class,
        None => kind(config) == Some(*model_type),
    })?;
    // If the text config named a `model_type` with a table, `class` above would have found it.
    of_model_type(default, text).filter(|_| kind(text).is_none())
}

/// `name` without the module of the text model.
pub(super) fn text_name(name: &str) -> Cow<'_, str> {
    let inside = |module: &&str| name.find(*module).filter(|&at| at == 0 || name[..at].ends_with('.'));
    match MODULES.iter().find_map(|module| Some((inside(module)?, module.len()))) {
        Some((at, len)) => Cow::Owned([&name[..at], &name[at + len..]].concat()),
        None => Cow::Borrowed(name),
    }
}

/// The name that a class whose text model is `module` has for the tensor `name` of the text model.
pub(super) fn wrapped_name(module: &str, name: &str) -> String {
    match name.strip_prefix("model.") {
        Some(rest) => format!("model.{module}{rest}"),
        None => name.to_owned(),
    }
}

/// The module of another part to which the tensor called `name` belongs.
pub(crate) fn other_part(name: &str) -> Option<&str> {
    let is_other = |part: &&str| OTHERS.iter().any(|other| part.starts_with(other));
    name.split('.').take(2).find(is_other)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::arch::params::Params;

    fn config(json: Value) -> Config {
        json.as_object().unwrap().clone()
    }

    fn table(json: Value) -> Option<&'static str> {
        family(&config(json)).map(|family| family.class())
    }

    #[test]
    fn the_text_model_is_found_in_its_wrapper() {
        let gemma3 = |text: Value| json!({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text});
        assert_eq!(table(gemma3(json!({"model_type": "gemma3_text"}))), Some("Gemma3ForCausalLM"));
        assert_eq!(table(gemma3(json!({}))), Some("Gemma3ForCausalLM"));
        assert_eq!(table(json!({"model_type": "gemma3", "text_config": {}})), Some("Gemma3ForCausalLM"));
        let llava = |text: Value| json!({"architectures": ["LlavaForConditionalGeneration"], "text_config": text});
        assert_eq!(table(llava(json!({"model_type": "mistral"}))), Some("MistralForCausalLM"));
        assert_eq!(table(llava(json!({"model_type": "qwen2"}))), Some("Qwen2ForCausalLM"));
        assert_eq!(table(llava(json!({"model_type": "unknown"}))), None);
        assert_eq!(table(llava(json!({"architectures": ["Qwen2ForCausalLM"]}))), Some("Qwen2ForCausalLM"));
        assert_eq!(table(json!({"architectures": ["Qwen2_5_VLForConditionalGeneration"], "text_config": {}})), None);
        let intern =
            json!({"architectures": ["InternVLChatModel"], "llm_config": {"architectures": ["Qwen3ForCausalLM"]}});
        assert_eq!(table(intern), Some("Qwen3ForCausalLM"));
        let smol = json!({"architectures": ["SmolVLMForConditionalGeneration"], "model_type": "smolvlm",
            "text_config": {"architectures": ["VLlama3ForCausalLM"]}});
        assert_eq!((table(smol.clone()), module(&config(smol))), (Some("LlamaForCausalLM"), Some("text_model.")));
        let text = json!({"architectures": ["Gemma3ForCausalLM"], "text_config": {}});
        assert_eq!((table(text.clone()), module(&config(text))), (Some("Gemma3ForCausalLM"), None));
    }

    #[test]
    fn the_text_models_fields_go_before_the_wrappers() {
        let json = json!({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "hidden_size": 7,
            "eos_token_id": [1, 106], "mm_tokens_per_image": 256, "vision_config": {"hidden_size": 8},
            "text_config": {"model_type": "gemma3_text", "hidden_size": 16, "num_hidden_layers": 3}});
        let mut notes = Vec::new();
        let params = Params::read(Path::new("m"), &config(json), &mut notes).unwrap().unwrap();
        assert_eq!((params.whole(&["hidden_size"]).unwrap(), params.layers().unwrap()), (Some(16), 3));
        assert_eq!(params.get(&["eos_token_id"]), Some(&json!([1, 106])));
        assert!(notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn names_lose_the_module_of_the_text_model() {
        for name in ["model.language_model.norm.weight", "language_model.model.norm.weight", "model.norm.weight"] {
            assert_eq!(text_name(name), "model.norm.weight");
        }
        assert_eq!(text_name("language_model.lm_head.weight"), "lm_head.weight");
        assert_eq!(wrapped_name("language_model.", "model.norm.weight"), "model.language_model.norm.weight");
        assert_eq!(other_part("model.vision_tower.x.weight"), Some("vision_tower"));
        assert_eq!(other_part("multi_modal_projector.linear_1.bias"), Some("multi_modal_projector"));
        assert_eq!(other_part("model.layers.0.mlp.gate_proj.weight"), None);
    }
}
