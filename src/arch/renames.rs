//! Tensor names of classes that combine a text model with models for images or sound. Their checkpoints have other
//! names than the class, and transformers renames the tensors when it loads them. PEFT uses the class's names.
//!
//! Reference: transformers 5.23 `conversion_mapping.py`.

use super::Config;

/// Pairs of prefixes: the one in the checkpoint, and the one in the class. The first pair that matches a name is used.
pub(super) type Prefixes = &'static [(&'static str, &'static str)];

/// Qwen2-VL and Qwen2.5-VL.
const QWEN_VL: Prefixes = &[
    ("model.language_model.", "model.language_model."),
    ("model.visual.", "model.visual."),
    ("visual.", "model.visual."),
    ("model.", "model.language_model."),
];

/// LLaVA and classes with the same structure. Earlier versions of transformers had a module `vision_model` in the
/// towers of CLIP and SigLIP.
const LLAVA: Prefixes = &[
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("model.vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."),
    ("audio_tower.", "model.audio_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("image_newline", "model.image_newline"),
];

/// The classes whose tensors are renamed, by `model_type`.
const KINDS: &[(&[&str], Prefixes)] = &[
    (&["qwen2_vl", "qwen2_5_vl"], QWEN_VL),
    (
        &[
            "audioflamingo3",
            "aya_vision",
            "gemma3",
            "glmasr",
            "got_ocr2",
            "internvl",
            "llava",
            "llava_next",
            "llava_next_video",
            "llava_onevision",
            "mistral3",
            "musicflamingo",
            "paligemma",
            "qwen2_audio",
            "vipllava",
            "voxtral",
            "voxtral_realtime",
        ],
        LLAVA,
    ),
];

/// The prefixes to rename for the class of `config`; none for classes whose checkpoints have the class's own names.
pub(super) fn prefixes(config: &Config, class: Option<&str>) -> Prefixes {
    let kind = config.get("model_type").and_then(|kind| kind.as_str()).unwrap_or_default();
    // Text-only classes with the same `model_type` have other names.
    let is_whole = class.is_some_and(|class| class.ends_with("ForConditionalGeneration"));
    let found = KINDS.iter().find(|(kinds, _)| is_whole && kinds.contains(&kind));
    found.map(|(_, prefixes)| *prefixes).unwrap_or_default()
}

/// The class's name of the tensor that the checkpoint calls `name`; `None` if no prefix matches.
pub(super) fn renamed(prefixes: Prefixes, name: &str) -> Option<String> {
    prefixes.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_those_that_transformers_makes_of_them() {
        let of = |kind: &str, class: &str, name: &str| {
            let config = json!({"model_type": kind});
            renamed(prefixes(config.as_object().unwrap(), Some(class)), name)
        };
        let qwen = |name: &str| of("qwen2_vl", "Qwen2VLForConditionalGeneration", name);
        let q_proj = "model.language_model.layers.0.self_attn.q_proj.weight";
        assert_eq!(qwen("model.layers.0.self_attn.q_proj.weight").unwrap(), q_proj);
        assert_eq!(qwen(q_proj).unwrap(), q_proj);
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
    }
}
