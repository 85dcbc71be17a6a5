//! The classes of tokenizers in transformers: which one loads a folder, and the special tokens that it has by default.
//!
//! Reference: transformers 5.23 `models/auto/tokenization_auto.py` (`AutoTokenizer.from_pretrained`),
//! `models/*/tokenization_*.py`.

use serde_json::Value as Json;

use super::files::{Files, Object};

/// Returns the class that loads the tokenizer, without "Fast"; empty for the plain one, which takes tokenizer.json as
/// it is.
///
/// tokenizer_config.json names it, except for types of models whose files are known to name a wrong one. Without a
/// name, it follows from the type of model.
pub(super) fn class(files: &Files) -> String {
    // Of a larger model, the whole model's type counts, not that of its text model.
    let config = files.tokenizer_model();
    let model_type = config.get("model_type").and_then(Json::as_str);
    let model_type = model_type.unwrap_or_else(|| files.model_type());
    let registered = registered(model_type);
    let named = files.setting("tokenizer_class").or_else(|| config.get("tokenizer_class"));
    let Some(named) = named.and_then(Json::as_str) else { return registered.unwrap_or_default().to_owned() };
    let named = named.strip_suffix("Fast").unwrap_or(named);
    let is_wrong = is_wrongly_named(model_type);
    if named == "LlamaTokenizer" && !is_wrong && files.tokenizer.as_ref().is_some_and(is_byte_level) {
        return String::new();
    }
    match registered {
        // Without tokenizer.json, the older files are read as the named class reads them.
        Some("") if files.tokenizer.is_some() => String::new(),
        Some(registered) if is_wrong => registered.to_owned(),
        _ => named.to_owned(),
    }
}

/// Returns whether a tokenizer works on bytes, so that Llama's class doesn't fit it.
fn is_byte_level(tokenizer: &Object) -> bool {
    let is = |part: &Json| part.get("type").and_then(Json::as_str) == Some("ByteLevel");
    let has = |name: &str, steps: &str| {
        let part = tokenizer.get(name);
        let steps = part.and_then(|part| part.get(steps)).and_then(Json::as_array);
        part.is_some_and(is) || steps.into_iter().flatten().any(is)
    };
    has("decoder", "decoders") || has("pre_tokenizer", "pretokenizers")
}

/// Returns the class for a type of model; empty for the plain one, `None` for types without an entry.
fn registered(model_type: &str) -> Option<&'static str> {
    Some(match model_type {
        "gpt2"
        | "starcoder2"
        | "phi"
        | "dbrx"
        | "jais2"
        | "codegen"
        | "gpt_neo"
        | "gptj"
        | "opt"
        | "hyperclovax_vision_v2" => "GPT2Tokenizer",
        "gpt_neox" | "olmo" | "olmoe" | "mamba" | "mamba2" | "falcon_mamba" | "mpt" | "rwkv" => "GPTNeoXTokenizer",
        "qwen2" | "qwen2_5_omni" | "qwen2_5_vl" | "qwen2_audio" | "qwen2_moe" | "qwen2_vl" | "qwen3" | "qwen3_asr"
        | "qwen3_moe" | "qwen3_next" | "qwen3_omni_moe" | "qwen3_vl" | "qwen3_vl_moe" | "audioflamingo3"
        | "dots3_note" | "hunyuan_vl" | "internvl" | "lighton_ocr" | "vibevoice" => "Qwen2Tokenizer",
        "qwen3_5" | "qwen3_5_moe" | "qwen3_5_text" | "qwen3_5_moe_text" | "qwen4_exp" => "Qwen3_5Tokenizer",
        "bert" | "distilbert" | "nomic_bert" => "BertTokenizer",
        "camembert" => "CamembertTokenizer",
        "roberta" => "RobertaTokenizer",
        "xlm-roberta" | "jina_embeddings_v3" => "XLMRobertaTokenizer",
        "code_llama" => "CodeLlamaTokenizer",
        "cohere" | "cohere2" | "aya_vision" => "CohereTokenizer",
        "gemma" | "gemma2" | "gemma3" | "gemma3_text" | "gemma3n" | "gemma3n_text" => "GemmaTokenizer",
        "idefics" | "idefics2" => "LlamaTokenizer",
        "siglip2" => "Siglip2Tokenizer",
        "t5" | "mt5" => "T5Tokenizer",
        "glm" | "glm4" | "glm4_moe" | "glm4_moe_lite" | "glm4v" | "glm4v_moe" | "glmasr" | "gpt_bigcode"
        | "granite" | "granitemoe" | "granitemoehybrid" | "granitemoeshared" | "kimi_k25" | "kimi_linear"
        | "mimo_v2_flash" | "minicpmv4_6" | "ministral" | "ministral3" | "mistral" | "mistral3" | "mixtral"
        | "olmo2" | "olmo3" | "pixtral" | "pocket_tts" | "stablelm" | "umt5" | "voxtral" => "",
        other if is_wrongly_named(other) => "",
        _ => return None,
    })
}

/// Whether the files of this type of model are known to name a wrong class, so that the type decides.
pub(crate) fn is_wrongly_named(model_type: &str) -> bool {
    WRONGLY_NAMED.contains(&model_type)
}

/// transformers' `MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS`.
const WRONGLY_NAMED: [&str; 41] = [
    "arctic",
    "chatlm",
    "ernie4_5",
    "ernie4_5_moe",
    "fuyu",
    "h2ovl_chat",
    "hyperclovax",
    "hyperclovax_vlm",
    "hyperclovax_vision_v2",
    "internlm2",
    "internlm3",
    "iquestcoder",
    "jamba",
    "llava",
    "llava_next",
    "minicpm3",
    "minicpmv",
    "minimax_m2",
    "modernbert",
    "modernbert-decoder",
    "molmo",
    "molmo2",
    "nemotron",
    "nvfp4",
    "opencua",
    "openvla",
    "paddleocr_vl",
    "phi3",
    "phi3_v",
    "phimoe",
    "qwen2",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "qwen4_exp",
    "step3_vl",
    "vipllava",
    "cohere_asr",
    "camembertv2-base",
    "siglip2",
    "smolvlm",
];

/// Returns the named tokens that a class has by default: bos, eos, unk, sep, pad, cls, mask; empty for none.
pub(super) fn class_tokens(class: &str) -> [&'static str; 7] {
    match class {
        "GPT2Tokenizer" | "CodeGenTokenizer" => ["<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "", "", "", ""],
        "GPTNeoXTokenizer" => ["<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "", "<|padding|>", "", ""],
        "Qwen2Tokenizer" | "Qwen3_5Tokenizer" => ["", "<|endoftext|>", "<|endoftext|>", "", "<|endoftext|>", "", ""],
        "BertTokenizer" | "DistilBertTokenizer" => ["", "", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"],
        "RobertaTokenizer" | "XLMRobertaTokenizer" | "CamembertTokenizer" | "BartTokenizer" | "MPNetTokenizer" => {
            let unknown = if class == "MPNetTokenizer" { "[UNK]" } else { "<unk>" };
            ["<s>", "</s>", unknown, "</s>", "<pad>", "<s>", "<mask>"]
        }
        "LlamaTokenizer" | "CodeLlamaTokenizer" => ["<s>", "</s>", "<unk>", "", "", "", ""],
        "GemmaTokenizer" => ["<bos>", "<eos>", "<unk>", "", "<pad>", "", "<mask>"],
        "CohereTokenizer" => {
            ["<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<UNK>", "<SEP>", "<PAD>", "<CLS>", "<MASK_TOKEN>"]
        }
        "T5Tokenizer" => ["", "</s>", "<unk>", "", "<pad>", "", ""],
        "DebertaTokenizer" | "DebertaV2Tokenizer" => ["[CLS]", "[SEP]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"],
        _ => [""; 7],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_whose_files_name_a_wrong_class_have_the_class_of_the_type() {
        let of = |model_type| is_wrongly_named(model_type).then(|| registered(model_type)).flatten();
        for (model_type, class) in [
            ("qwen2", Some("Qwen2Tokenizer")),
            ("qwen3_5_moe", Some("Qwen3_5Tokenizer")),
            ("hyperclovax_vision_v2", Some("GPT2Tokenizer")),
            ("siglip2", Some("Siglip2Tokenizer")),
            ("cohere_asr", Some("")),
            ("nvfp4", Some("")),
            ("llama", None),
            ("qwen3", None),
        ] {
            assert_eq!(of(model_type), class, "{model_type}");
        }
    }
}
