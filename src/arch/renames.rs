//! Tensor names of classes whose checkpoints have other names than the class: those that combine a text model with models
//! for images or sound, and those that transformers has rewritten. It renames the tensors when it loads them. PEFT uses
//! the class's names.
//!
//! Reference: transformers 5.23 `conversion_mapping.py`.

use super::Config;

/// Pairs of prefixes: the one in the checkpoint, and the one in the class. The first pair that matches a name is used.
type Prefixes = &'static [(&'static str, &'static str)];

/// Pairs of consecutive parts of a name: those in the checkpoint, and those in the class. `#` stands for a number. Each
/// pair is applied to the first place where it matches, one pair after the other.
type Parts = &'static [(&'static str, &'static str)];

/// What is renamed for a class.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Renames {
    prefixes: Prefixes,
    parts: Parts,
}

/// Qwen2-VL and Qwen2.5-VL.
const QWEN_VL: Prefixes = &[
    ("model.language_model.", "model.language_model."),
    ("model.visual.", "model.visual."),
    ("visual.", "model.visual."),
    ("model.", "model.language_model."),
];

/// PaddleOCR-VL.
const PADDLE: Prefixes = &[
    ("mlp_AR.", "model.projector."),
    ("visual.", "model.visual."),
    ("model.visual.", "model.visual."),
    ("model.projector.", "model.projector."),
    ("model.language_model.", "model.language_model."),
    ("model.", "model.language_model."),
];

/// LLaVA and classes with the same structure, whatever the other parts are. Earlier versions of transformers had a
/// module `vision_model` in the towers of CLIP and SigLIP.
const LLAVA: Prefixes = &[
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("model.vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."),
    ("image_tower.", "model.image_tower."),
    ("video_tower.", "model.video_tower."),
    ("vision_model.", "model.vision_model."),
    ("vision_embed_tokens.", "model.vision_embed_tokens."),
    ("audio_tower.", "model.audio_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("image_newline", "model.image_newline"),
];

/// Granite's speech models.
const GRANITE_SPEECH: Prefixes = &[
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("encoder.", "model.encoder."),
    ("projector.", "model.projector."),
];

/// VibeVoice's speech recognition.
const VIBE_VOICE: Prefixes = &[
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("acoustic_tokenizer_encoder.", "model.acoustic_tokenizer_encoder."),
    ("semantic_tokenizer_encoder.", "model.semantic_tokenizer_encoder."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
];

/// Emu 3.
const EMU3: Prefixes =
    &[("text_model.lm_head.", "lm_head."), ("text_model.model.", "model.text_model."), ("vqmodel.", "model.vqmodel.")];

/// Step 3.7.
const STEP: Prefixes = &[
    ("vision_model.", "model.vision_model."),
    ("vit_large_projector.", "model.multi_modal_projector."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.layers.", "model.language_model.layers."),
    ("model.norm.", "model.language_model.norm."),
];

/// HyperCLOVA X with images.
const HYPERCLOVAX: Prefixes = &[
    ("model.language_model.lm_head.", "lm_head."),
    ("model.language_model.model.", "model.language_model."),
    ("model.vision_projector.", "model.projector."),
];

/// The part of Qwen's omni models that reads and writes text.
const THINKER: Prefixes = &[
    ("thinker.lm_head.", "lm_head."),
    ("thinker.audio_tower.", "model.audio_tower."),
    ("thinker.visual.", "model.visual."),
    ("thinker.model.", "model.language_model."),
];

/// Nemotron-H.
const NEMOTRON_H: Prefixes = &[("backbone.", "model.")];

/// Kimi K2.5.
const KIMI: Prefixes = &[
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("vision_tower.encoder.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."),
    ("mm_projector.proj.0.", "model.mm_projector.in_proj."),
    ("mm_projector.proj.2.", "model.mm_projector.out_proj."),
];

/// ViT and classes with the same structure.
const VIT: Parts = &[
    ("encoder.layer", "layers"),
    ("attention.query", "q_proj"),
    ("attention.key", "k_proj"),
    ("attention.value", "v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
];

/// DINOv2.
const DINO: Parts = &[
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("mlp.weights_out", "mlp.down_proj"),
];

/// Swin.
const SWIN: Parts = &[
    ("attention.self.query", "attention.q_proj"),
    ("attention.self.key", "attention.k_proj"),
    ("attention.self.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
];

/// SegFormer.
const SEGFORMER: Parts = &[
    ("encoder.patch_embeddings.#", "stages.#.patch_embeddings"),
    ("encoder.block.#", "stages.#.blocks"),
    ("encoder.layer_norm.#", "stages.#.layer_norm"),
    ("attention.self.query", "attention.q_proj"),
    ("attention.self.key", "attention.k_proj"),
    ("attention.self.value", "attention.v_proj"),
    ("attention.self.sr", "attention.sequence_reduction.sequence_reduction"),
    ("attention.self.layer_norm", "attention.sequence_reduction.layer_norm"),
    ("attention.output.dense", "attention.o_proj"),
    ("mlp.dense1", "mlp.fc1"),
    ("mlp.dense2", "mlp.fc2"),
    ("layer_norm_1", "layernorm_before"),
    ("layer_norm_2", "layernorm_after"),
    ("decode_head.linear_c", "decode_head.linear_projections"),
];

/// DETR and classes with the same structure.
const DETR: Parts = &[
    ("backbone.conv_encoder", "backbone"),
    ("out_proj", "o_proj"),
    ("layers.#.fc1", "layers.#.mlp.fc1"),
    ("layers.#.fc2", "layers.#.mlp.fc2"),
    ("encoder.encoder.#.layers", "encoder.aifi.#.layers"),
];

/// PhiMoE.
const PHIMOE: Parts = &[("block_sparse_moe", "mlp"), ("gate.weight", "router.weight")];

/// GraniteMoE and its hybrids.
const GRANITE_MOE: Parts = &[
    ("block_sparse_moe.input_linear.weight", "block_sparse_moe.experts.gate_up_proj"),
    ("block_sparse_moe.output_linear.weight", "block_sparse_moe.experts.down_proj"),
    ("block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight"),
];

/// Aria's text model.
const ARIA: Parts =
    &[("mlp.experts.fc1.weight", "mlp.experts.gate_up_proj"), ("mlp.experts.fc2.weight", "mlp.experts.down_proj")];

/// Hunyuan 3.
const HY3: Parts = &[("mlp.router.gate.weight", "mlp.gate.weight"), ("mlp.shared_mlp", "mlp.shared_experts")];

/// Laguna.
const LAGUNA: Parts = &[("mlp.shared_expert", "mlp.shared_experts")];

/// Linear attention with a gate that forgets.
const FORGETTING: Parts = &[
    ("self_attn.f_a_proj", "self_attn.forget_gate.f_a_proj"),
    ("self_attn.f_b_proj", "self_attn.forget_gate.f_b_proj"),
    ("self_attn.dt_bias", "self_attn.forget_gate.dt_bias"),
    ("self_attn.A_log", "self_attn.forget_gate.A_log"),
    ("block_sparse_moe", "mlp"),
];

/// Ling's hybrids.
const BAILING: Parts = &[
    ("word_embeddings", "embed_tokens"),
    ("attention", "self_attn"),
    ("self_attn.f_proj", "self_attn.forget_gate.f_proj"),
    ("self_attn.dt_bias", "self_attn.forget_gate.dt_bias"),
    ("self_attn.A_log", "self_attn.forget_gate.A_log"),
    ("self_attn.dense", "self_attn.o_proj"),
];

/// A.X K2.
const AXK2: Parts = &[("W_down", "mlp.fc1"), ("W_up", "mlp.fc2"), ("self_attn.q_b_proj", "self_attn.q_gate_proj")];

/// LFM 3.
const LFM3: Parts = &[("self_attn.gate_proj", "self_attn.g_proj")];

/// TimesFM 2.5.
const TIMESFM: Parts = &[("ff0", "fc1"), ("ff1", "fc2")];

/// Ernie 4.5 with images.
const ERNIE_VL: Parts = &[
    ("vision_model", "vision_tower"),
    ("spatial_linear.0", "spatial_linear.fc1"),
    ("spatial_linear.2", "spatial_linear.fc2"),
    ("spatial_linear.3", "spatial_linear.ln"),
    ("temporal_linear.0", "temporal_linear.fc1"),
    ("temporal_linear.2", "temporal_linear.fc2"),
    ("temporal_linear.3", "temporal_linear.ln"),
    ("model.embed_tokens", "model.language_model.embed_tokens"),
    ("model.layers", "model.language_model.layers"),
    ("model.norm", "model.language_model.norm"),
];

/// Which classes of a kind have other names than their checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Classes {
    /// All.
    All,
    /// Those that also write text. Text-only classes with the same `model_type` have other names.
    Whole,
}

/// The classes whose tensors are renamed, by `model_type`. What has nothing but experts in one parameter, or parts that
/// become one tensor or several, is not here.
const KINDS: &[(&[&str], Classes, Prefixes, Parts)] = &[
    (&["qwen2_vl", "qwen2_5_vl"], Classes::Whole, QWEN_VL, &[]),
    (&["paddleocr_vl"], Classes::Whole, PADDLE, &[]),
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
            "mllama",
            "musicflamingo",
            "paligemma",
            "pp_chart2table",
            "qwen2_audio",
            "video_llava",
            "vipllava",
            "voxtral",
            "voxtral_realtime",
        ],
        Classes::Whole,
        LLAVA,
        &[],
    ),
    (&["fuyu"], Classes::All, LLAVA, &[]),
    (&["aria"], Classes::Whole, LLAVA, ARIA),
    (&["aria_text"], Classes::All, &[], ARIA),
    (&["granite_speech", "granite_speech_plus"], Classes::Whole, GRANITE_SPEECH, &[]),
    (&["vibevoice_asr"], Classes::Whole, VIBE_VOICE, &[]),
    (&["emu3"], Classes::Whole, EMU3, &[]),
    (&["step3p7"], Classes::Whole, STEP, &[]),
    (&["hyperclovax_vision_v2"], Classes::Whole, HYPERCLOVAX, &[]),
    (
        &["qwen2_5_omni", "qwen2_5_omni_thinker", "qwen3_omni_moe", "qwen3_omni_moe_thinker"],
        Classes::Whole,
        THINKER,
        &[],
    ),
    (&["kimi_k25"], Classes::All, KIMI, &[("blocks", "layers")]),
    (&["nemotron_h"], Classes::All, NEMOTRON_H, &[]),
    (
        &["vit", "audio-spectrogram-transformer", "beit", "deit", "ijepa", "vit_mae", "vit_msn", "vivit", "pixio"],
        Classes::All,
        &[],
        VIT,
    ),
    (&["dinov2", "dinov2_with_registers"], Classes::All, &[], DINO),
    (&["swin"], Classes::All, &[], SWIN),
    (&["segformer"], Classes::All, &[], SEGFORMER),
    (
        &["detr", "conditional_detr", "deformable_detr", "rt_detr", "rt_detr_v2", "pp_doclayout_v2", "pp_doclayout_v3"],
        Classes::All,
        &[],
        DETR,
    ),
    (&["phimoe"], Classes::All, &[], PHIMOE),
    (&["granitemoe", "granitemoeshared", "granitemoehybrid"], Classes::All, &[], GRANITE_MOE),
    (&["hy_v3"], Classes::All, &[], HY3),
    (&["laguna"], Classes::All, &[], LAGUNA),
    (&["kimi_linear", "glm5_next", "glm5_next_text"], Classes::All, &[], FORGETTING),
    (&["bailing_hybrid"], Classes::All, &[], BAILING),
    (&["axk2"], Classes::All, &[], AXK2),
    (&["lfm3"], Classes::All, &[], LFM3),
    (&["timesfm2_5"], Classes::All, &[], TIMESFM),
    (&["ernie4_5_vl_moe"], Classes::All, &[], ERNIE_VL),
];

impl Renames {
    /// What is renamed for the class of `config`; nothing for classes whose checkpoints have the class's own names.
    pub(super) fn of(config: &Config, class: Option<&str>) -> Self {
        let kind = config.get("model_type").and_then(|kind| kind.as_str()).unwrap_or_default();
        let is_whole = class.is_some_and(|class| class.ends_with("ForConditionalGeneration"));
        let has = |classes: Classes| classes == Classes::All || is_whole;
        let found = KINDS.iter().find(|(kinds, classes, ..)| has(*classes) && kinds.contains(&kind));
        found.map(|(_, _, prefixes, parts)| Self { prefixes, parts }).unwrap_or_default()
    }

    /// Whether nothing is renamed.
    pub(super) fn is_empty(self) -> bool {
        self.prefixes.is_empty() && self.parts.is_empty()
    }

    /// The class's name of the tensor that the checkpoint calls `name`; `None` if nothing matches.
    pub(super) fn renamed(self, name: &str) -> Option<String> {
        let prefixed = self.prefixes.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)));
        let mut renamed = prefixed;
        for (from, to) in self.parts {
            if let Some(next) = with_parts(renamed.as_deref().unwrap_or(name), from, to) {
                renamed = Some(next);
            }
        }
        renamed
    }
}

/// `name` with the parts `to` in the first place of the parts `from`; `None` if there is no such place.
fn with_parts(name: &str, from: &str, to: &str) -> Option<String> {
    let (parts, pattern): (Vec<&str>, Vec<&str>) = (name.split('.').collect(), from.split('.').collect());
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let matches =
        |found: &[&str]| found.iter().zip(&pattern).all(|(part, own)| part == own || *own == "#" && is_number(part));
    let place = parts.windows(pattern.len()).position(matches)?;
    let (before, rest) = parts.split_at(place);
    let (found, after) = rest.split_at(pattern.len());
    let mut numbers = found.iter().zip(&pattern).filter(|(_, own)| **own == "#").map(|(part, _)| *part);
    let replaced = to.split('.').map(|own| if own == "#" { numbers.next().unwrap_or(own) } else { own });
    Some(before.iter().copied().chain(replaced).chain(after.iter().copied()).collect::<Vec<_>>().join("."))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_those_that_transformers_makes_of_them() {
        let of = |kind: &str, class: &str, name: &str| {
            let config = json!({"model_type": kind});
            Renames::of(config.as_object().unwrap(), Some(class)).renamed(name)
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
