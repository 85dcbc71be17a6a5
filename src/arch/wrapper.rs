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

/// The usual name of the text model's module in classes of transformers.
pub(crate) const LANGUAGE_MODEL: &str = "language_model.";

/// Names of the text model's module in classes of transformers.
const MODULES: [&str; 2] = [LANGUAGE_MODEL, "text_model."];

/// Names, or prefixes of names, of modules that belong to other parts.
const OTHERS: [&str; 29] = [
    "generation_",
    "vqmodel",
    "vit",
    "vpm",
    "siglip2",
    "conformer",
    "merger",
    "pre_mm_projector_norm",
    "patch_merge",
    "code2wav",
    "token2wav",
    "aligner",
    "layerwise_projectors",
    "spatial_projectors",
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

/// The family of the text model that `config` describes or contains.
pub(crate) fn family(config: &Config) -> Option<&'static Family> {
    let config = text_config(config);
    of_class(class(&config)?, &config)
}

/// The module of the text model, if the class wraps one.
pub(super) fn module(config: &Config) -> Option<&'static str> {
    let Cow::Owned(text) = text_config(config) else { return None };
    // A class of text models may have a `text_config`, too.
    let wrapped = class(config).is_none_or(|own| family(config).is_none_or(|family| family.class() != own))
        || class(&text) != class(config);
    let has_text_model = matches!(kind(config), Some("smolvlm" | "idefics2" | "idefics3"));
    wrapped.then_some(MODULES[usize::from(has_text_model)])
}

fn kind(config: &Config) -> Option<&str> {
    config.get("model_type")?.as_str()
}

/// The config of the text model: `config` itself if nothing is wrapped or the text model's class has no family.
///
/// The text model's fields take precedence over the wrapper's. Of the wrapper's fields, only those are kept that the
/// text model's class has too; the others concern the other parts.
pub(crate) fn text_config(config: &Config) -> Cow<'_, Config> {
    let inner = |name: &str| config.get(name)?.as_object();
    let text = TEXT_CONFIGS.iter().find_map(|name| inner(name));
    let text = text
        .or_else(|| inner("thinker_config")?.get("text_config")?.as_object())
        .or_else(|| inner("lfm"))
        .or_else(|| inner("talker_config"))
        .or_else(|| inner("transformer_layer_config"));
    let Some(text) = text else {
        return Cow::Borrowed(config);
    };
    let merged = |fields: &dyn Fn(&str) -> bool| {
        let own = config.iter().filter(|(name, _)| fields(name));
        let mut whole: Config = own.map(|(name, value)| (name.clone(), value.clone())).collect();
        whole.extend(text.iter().map(|(name, value)| (name.clone(), value.clone())));
        whole
    };
    let mut asked = merged(&|_| true);
    asked.insert("\0root".to_owned(), Value::Object(config.clone()));
    let Some((chosen, family)) = text_family(config, text, &asked) else { return Cow::Borrowed(config) };
    let mut whole = merged(&|name| family.has_field(name) || family.reads().contains(name) || INERT.contains(&name));
    // The output head belongs to the wrapper, so the wrapper's config says whether it is tied to the embeddings.
    if let Some(tied) = config.get(TIED).filter(|value| !value.is_null()) {
        whole.insert(TIED.to_owned(), tied.clone());
    }
    whole.insert("architectures".to_owned(), serde_json::json!([chosen]));
    if !family.model_types.iter().any(|known| kind(text) == Some(known)) {
        whole.insert("model_type".to_owned(), family.model_type().into());
    }
    Cow::Owned(whole)
}

/// Wrappers whose own class says what the text model is, whatever class the text model's config names (conversion/base.py,
/// `get_model_architecture`).
const OWN_CLASS: [&str; 5] = [
    "StepVLForConditionalGeneration",
    "Sarashina2VisionForCausalLM",
    "Exaone4_5_ForConditionalGeneration",
    "Step3p7ForConditionalGeneration",
    "KimiK3ForConditionalGeneration",
];

/// The text model's family, and the class by which it is found. `merged` is the text model's config over the wrapper's.
fn text_family(config: &Config, text: &Config, merged: &Config) -> Option<(String, &'static Family)> {
    let named = |config: &Config| Some(config.get("architectures")?.get(0)?.as_str()?.to_owned());
    let outer = named(config);
    let of = |class: &str, config: &Config| {
        let mut config = config.clone();
        config.insert("architectures".to_owned(), serde_json::json!([class]));
        of_class(class, &config)
    };
    let is_own = outer.as_deref().is_some_and(|outer| OWN_CLASS.contains(&outer));
    if let Some(class) = named(text).filter(|_| !is_own) {
        return of(&class, merged).map(|family| (class, family));
    }
    // A family that lists the wrapper is taken. The wrappers of Llama may have another text model inside.
    let by_outer = outer.as_deref().and_then(|outer| of(outer, merged));
    let by_kind = kind(text).and_then(|kind| of_model_type(kind, merged));
    match (by_outer, by_kind, outer) {
        (Some(family), Some(inner), _) if family.gguf == "llama" && inner.gguf != family.gguf => {
            return Some((inner.class().to_owned(), inner));
        }
        (Some(family), _, Some(outer)) => return Some((outer, family)),
        (_, Some(family), _) => return Some((family.class().to_owned(), family)),
        _ => {}
    }
    let (_, _, default) = WRAPPERS.iter().find(|(class, model_type, _)| match named(config) {
        Some(outer) => outer == *class,
        None => kind(config) == Some(*model_type),
    })?;
    // If the text config named a `model_type` with a family, it would have been found above.
    let family = of_model_type(default, text).filter(|_| kind(text).is_none())?;
    Some((family.class().to_owned(), family))
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
pub(crate) fn wrapped_name(module: &str, name: &str) -> String {
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
        assert_eq!(table(llava(json!({"model_type": "mistral"}))), Some("LlavaForConditionalGeneration"));
        assert_eq!(table(llava(json!({"model_type": "qwen2"}))), Some("Qwen2ForCausalLM"));
        assert_eq!(table(llava(json!({"model_type": "unknown"}))), None);
        assert_eq!(table(llava(json!({"architectures": ["Qwen2ForCausalLM"]}))), Some("Qwen2ForCausalLM"));
        let qwen = json!({"architectures": ["Qwen2_5_VLForConditionalGeneration"], "text_config": {}});
        assert_eq!(table(qwen), Some("Qwen2VLForConditionalGeneration"));
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
        assert_eq!((params.count("hidden").unwrap(), params.layers().unwrap()), (16, 3));
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
