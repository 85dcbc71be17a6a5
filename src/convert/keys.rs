//! The architecture's own keys.
//!
//! Reference: llama.cpp `conversion/base.py` (`set_gguf_parameters`), `conversion/llama.py`,
//! `gguf-py/gguf/constants.py`.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::OutType;
use crate::checkpoint::{Architecture, HfFolder, RopeScaling, read_json_object};
use crate::error::{Finding, IoContext, Result};
use crate::formats::gguf::Metadata;

/// `GGML_QUANT_VERSION`: the layout of quantized blocks.
const QUANTIZATION_VERSION: u32 = 2;

/// The architecture's name in GGUF.
pub(super) fn architecture(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Llama | Architecture::Mistral => "llama",
        Architecture::Qwen2 => "qwen2",
        Architecture::Qwen3 => "qwen3",
    }
}

/// Writes the architecture's keys, the file type and the version of quantization.
pub(super) fn model(metadata: &mut Metadata, folder: &HfFolder, outtype: OutType) -> Result<()> {
    let config = &folder.config;
    let prefix = architecture(config.architecture);
    let counts = [
        ("block_count", config.num_hidden_layers),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
    ];
    for (key, value) in counts {
        metadata.insert(format!("{prefix}.{key}"), count(metadata, key, value)?);
    }
    match config.rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            metadata.insert(format!("{prefix}.rope.scaling.type"), "linear");
            metadata.insert(format!("{prefix}.rope.scaling.factor"), factor as f32);
        }
        // In a tensor, which llama.cpp's graph of Qwen doesn't read: the reference drops the
        // scaling there without a word, and the model computes something else.
        RopeScaling::Llama3 { .. } if prefix == "llama" => {}
        RopeScaling::Llama3 { .. } => {
            return Err(Finding::new(folder.path().join("config.json"), "rope_type")
                .expected(format_args!("default or linear, which GGUF can say of {prefix}"))
                .found("llama3")
                .unsupported());
        }
    }
    metadata.insert(format!("{prefix}.rope.freq_base"), config.rope.theta as f32);
    metadata.insert(format!("{prefix}.attention.layer_norm_rms_epsilon"), config.rms_norm_eps as f32);
    let head_dim = count(metadata, "head_dim", config.head_dim)?;
    // transformers fills in head_dim for all of these but Qwen2, whose config has no such field.
    let named = folder.config_json.get("head_dim").is_some_and(|value| !value.is_null());
    if named || config.architecture != Architecture::Qwen2 {
        metadata.insert(format!("{prefix}.attention.key_length"), head_dim);
        metadata.insert(format!("{prefix}.attention.value_length"), head_dim);
    }
    metadata.insert("general.file_type", outtype.file_type());
    match config.architecture {
        Architecture::Llama | Architecture::Mistral => {
            metadata.insert(format!("{prefix}.vocab_size"), count(metadata, "vocab_size", config.vocab_size)?);
            metadata.insert(format!("{prefix}.rope.dimension_count"), head_dim);
        }
        Architecture::Qwen2 | Architecture::Qwen3 => pooling(metadata, folder.path(), prefix)?,
    }
    metadata.insert("general.quantization_version", QUANTIZATION_VERSION);
    Ok(())
}

/// Counts of configs are at most 2^31; their products need not be.
fn count(metadata: &Metadata, key: &str, value: usize) -> Result<u32> {
    u32::try_from(value)
        .map_err(|_| Finding::new(metadata.file(), key).expected("a count below 2^32").found(value).mismatch())
}

/// How a sentence-transformers folder makes one vector of all positions
/// (conversion/base.py, `_try_set_pooling_type`).
fn pooling(metadata: &mut Metadata, folder: &Path, prefix: &str) -> Result<()> {
    let path = folder.join("modules.json");
    if !path.is_file() {
        return Ok(());
    }
    let text = std::fs::read(&path).at(&path, "read")?;
    let modules: Vec<Map<String, Json>> = serde_json::from_slice(&text)
        .map_err(|e| Finding::new(&path, "").expected("a JSON array of modules").found(e).format())?;
    let text = |module: &Map<String, Json>, name: &str| module.get(name).and_then(Json::as_str).map(str::to_owned);
    let module = modules.iter().find(|module| text(module, "type").is_some_and(|kind| kind.ends_with("Pooling")));
    let Some(module) = module else { return Ok(()) };
    let inner = text(module, "path").unwrap_or_default();
    if Path::new(&inner).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
        return Err(Finding::new(&path, "path").expected("a folder inside this one").found(inner).format());
    }
    let path = folder.join(inner).join("config.json");
    let config = read_json_object(&path)?;
    let on = |name: &str| config.get(name).and_then(Json::as_bool).unwrap_or(false);
    // The numbers of llama.cpp's `enum llama_pooling_type`.
    let kind: u32 = match config.get("pooling_mode").and_then(Json::as_str) {
        _ if on("pooling_mode_mean_tokens") => 1,
        _ if on("pooling_mode_cls_token") => 2,
        _ if on("pooling_mode_lasttoken") => 3,
        Some("mean") => 1,
        Some("cls") => 2,
        Some("lasttoken") => 3,
        _ => {
            let finding = Finding::new(&path, "pooling mode");
            return Err(finding.expected("mean, cls or lasttoken").found("another").unsupported());
        }
    };
    metadata.insert(format!("{prefix}.pooling_type"), kind);
    Ok(())
}
