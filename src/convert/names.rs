//! Tensor names: transformers on the left, GGUF on the right.
//!
//! Reference: llama.cpp `gguf-py/gguf/tensor_mapping.py` and `constants.py` (`TENSOR_NAMES`).

use crate::checkpoint::Architecture;

/// Modules outside the layers.
const MODEL: &[(&str, &str)] =
    &[("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// Modules of every layer: `model.layers.N.` and `blk.N.` go before them.
const LAYER: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The name in GGUF of the tensor that transformers calls `name`; `None` for one that
/// `architecture` doesn't have.
pub fn gguf_name(architecture: Architecture, name: &str) -> Option<String> {
    translate(architecture, name, ("model.layers.", "blk."), |(hf, gguf)| (hf, gguf))
}

/// The name in transformers of the tensor that GGUF calls `name`: [`gguf_name`] backwards.
pub fn hf_name(architecture: Architecture, name: &str) -> Option<String> {
    translate(architecture, name, ("blk.", "model.layers."), |(hf, gguf)| (gguf, hf))
}

type Names = (&'static str, &'static str);

fn translate(
    architecture: Architecture,
    name: &str,
    (from_layers, to_layers): (&str, &str),
    direction: impl Fn(Names) -> Names,
) -> Option<String> {
    let (module, suffix) = name.rsplit_once('.').filter(|(_, suffix)| matches!(*suffix, "weight" | "bias"))?;
    let find = |table: &[Names], module: &str| {
        table.iter().map(|names| direction(*names)).find(|(from, _)| *from == module).map(|(_, to)| to)
    };
    let Some(rest) = module.strip_prefix(from_layers) else {
        return Some(format!("{}.{suffix}", find(MODEL, module)?));
    };
    let (layer, module) = rest.split_once('.')?;
    // One spelling a layer: no sign, no leading zero.
    let layer: u32 = layer.parse().ok().filter(|number: &u32| number.to_string() == layer)?;
    let has_head_norms = architecture == Architecture::Qwen3;
    let to =
        find(LAYER, module).filter(|_| has_head_norms || !module.ends_with("q_norm") && !module.ends_with("k_norm"))?;
    Some(format!("{to_layers}{layer}.{to}.{suffix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_translate_both_ways() {
        let cases = [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.norm.weight", "output_norm.weight"),
            ("lm_head.weight", "output.weight"),
            ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
            ("model.layers.31.self_attn.k_proj.bias", "blk.31.attn_k.bias"),
            ("model.layers.7.self_attn.q_norm.weight", "blk.7.attn_q_norm.weight"),
            ("model.layers.7.mlp.down_proj.weight", "blk.7.ffn_down.weight"),
            ("model.layers.7.post_attention_layernorm.weight", "blk.7.ffn_norm.weight"),
        ];
        for (hf, gguf) in cases {
            assert_eq!(gguf_name(Architecture::Qwen3, hf).as_deref(), Some(gguf));
            assert_eq!(hf_name(Architecture::Qwen3, gguf).as_deref(), Some(hf));
        }
    }

    #[test]
    fn other_names_have_no_translation() {
        for name in [
            "model.layers.0.self_attn.q_norm.weight",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "model.layers.00.mlp.up_proj.weight",
            "model.layers.-1.mlp.up_proj.weight",
            "model.layers.x.mlp.up_proj.weight",
            "model.layers.0.mlp.up_proj",
            "model.layers.0",
            "lm_head",
            "",
        ] {
            assert_eq!(gguf_name(Architecture::Llama, name), None, "{name}");
        }
    }
}
