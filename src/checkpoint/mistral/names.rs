//! Translates tensor names of Mistral's own format to those of transformers.
//!
//! Reference: llama.cpp `gguf-py/gguf/tensor_mapping.py` ("llama-pth", "mixtral").

/// Modules that occur once in a model.
const ENDS: [(&str, &str); 3] =
    [("tok_embeddings", "model.embed_tokens"), ("norm", "model.norm"), ("output", "lm_head")];

/// Modules that occur in each layer.
const LAYER: [(&str, &str); 10] = [
    ("attention.wq", "self_attn.q_proj"),
    ("attention.wk", "self_attn.k_proj"),
    ("attention.wv", "self_attn.v_proj"),
    ("attention.wo", "self_attn.o_proj"),
    ("attention_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("feed_forward.w1", "mlp.gate_proj"),
    ("feed_forward.w2", "mlp.down_proj"),
    ("feed_forward.w3", "mlp.up_proj"),
    ("feed_forward.gate", "block_sparse_moe.gate"),
];

/// Modules for images and sound.
const OTHERS: [&str; 7] = [
    "vision_encoder",
    "vision_language_adapter",
    "pre_mm_projector_norm",
    "patch_merger",
    "whisper_encoder",
    "audio_language_projection",
    "audio_language_adapter",
];

/// The prefix of the embeddings' names in Voxtral, for text and for sound.
const BEFORE: &str = "mm_whisper_embeddings.";

/// Returns the name in transformers of the tensor `name`; `None` if no class is known to have it.
pub(super) fn of_transformers(name: &str) -> Option<String> {
    let name = name.strip_prefix(BEFORE).unwrap_or(name);
    let (module, suffix) = name.rsplit_once('.')?;
    let of = |names: &[(&'static str, &'static str)], module: &str| {
        names.iter().find(|(own, _)| *own == module).map(|(_, theirs)| *theirs)
    };
    if let Some(theirs) = of(&ENDS, module) {
        return Some(format!("{theirs}.{suffix}"));
    }
    let (layer, module) = module.strip_prefix("layers.")?.split_once('.')?;
    if let Some(theirs) = of(&LAYER, module) {
        return Some(format!("model.layers.{layer}.{theirs}.{suffix}"));
    }
    let expert = module.strip_prefix("feed_forward.experts.")?;
    Some(format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.{suffix}"))
}

/// Returns the name in Mistral's own format of the tensor that transformers calls `name`.
pub(super) fn of_mistral(name: &str) -> Option<String> {
    let (module, suffix) = name.rsplit_once('.')?;
    let of = |names: &[(&'static str, &'static str)], module: &str| {
        names.iter().find(|(_, theirs)| *theirs == module).map(|(own, _)| *own)
    };
    if let Some(own) = of(&ENDS, module) {
        return Some(format!("{own}.{suffix}"));
    }
    let (layer, module) = module.strip_prefix("model.layers.")?.split_once('.')?;
    if let Some(own) = of(&LAYER, module) {
        return Some(format!("layers.{layer}.{own}.{suffix}"));
    }
    let expert = module.strip_prefix("block_sparse_moe.experts.")?;
    Some(format!("layers.{layer}.feed_forward.experts.{expert}.{suffix}"))
}

/// Fields of config.json with their names in params.json, where these differ.
pub(super) const FIELDS: [(&str, &str); 10] = [
    ("hidden_size", "dim"),
    ("intermediate_size", "hidden_dim"),
    ("num_hidden_layers", "n_layers"),
    ("num_attention_heads", "n_heads"),
    ("num_key_value_heads", "n_kv_heads"),
    ("rms_norm_eps", "norm_eps"),
    ("hidden_act", "activation"),
    ("tie_word_embeddings", "tied_embeddings"),
    ("num_local_experts", "moe.num_experts"),
    ("num_experts_per_tok", "moe.num_experts_per_tok"),
];

/// Returns the module for images or sound that contains the tensor `name`.
pub(super) fn other_part(name: &str) -> Option<&str> {
    let module = name.strip_prefix(BEFORE).unwrap_or(name).split('.').next()?;
    OTHERS.contains(&module).then_some(module)
}
