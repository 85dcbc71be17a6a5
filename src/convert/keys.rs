//! Writes an architecture's keys from the config, by the table of [`crate::arch`].
//!
//! Reference: llama.cpp `conversion/base.py` (`set_gguf_parameters`, `_try_set_pooling_type`) and the
//! same method of each model.

use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::arch::params::Params;
use crate::arch::{Dim, Key, rope, windows};
use crate::error::{Finding, IoContext, Result};
use crate::formats::gguf::{Array, Metadata, QUANTIZATION_VERSION, QUANTIZATION_VERSION_KEY, Value};
use crate::json::read_json_object;

/// Writes the architecture's keys, the file type and the quantization version.
pub(super) fn model(metadata: &mut Metadata, folder: &Path, params: &Params, file_type: u32) -> Result<()> {
    for key in params.family.keys {
        write(metadata, folder, params, file_type, key)?;
    }
    metadata.insert(QUANTIZATION_VERSION_KEY, QUANTIZATION_VERSION);
    Ok(())
}

fn write(metadata: &mut Metadata, folder: &Path, params: &Params, file_type: u32, key: &Key) -> Result<()> {
    let prefix = params.family.gguf;
    let mut put = |name: &str, value: Value| {
        metadata.insert(format!("{prefix}.{name}"), value);
    };
    match *key {
        Key::Group(keys) => {
            for key in keys {
                write(metadata, folder, params, file_type, key)?;
            }
        }
        Key::U32(name, fields) => {
            if let Some(value) = params.whole(fields)? {
                put(name, u32(params, fields[0], value)?.into());
            }
        }
        Key::F32(name, fields) => {
            if let Some(value) = params.number(fields)? {
                put(name, (value as f32).into());
            }
        }
        Key::Scale(name, field) => {
            if let Some(value) = params.number(&[field])?.filter(|value| *value != 0.0) {
                put(name, (value as f32).into());
            }
        }
        Key::Bool(name, field, default) => put(name, params.flag(field, default).into()),
        Key::Text(name, text) => put(name, text.into()),
        Key::Const(name, value) => put(name, value.into()),
        Key::Flag(name, value) => put(name, value.into()),
        Key::Epsilon(value) => put("attention.layer_norm_epsilon", value.into()),
        Key::FeedForward(field) => {
            put("feed_forward_length", u32(params, field, params.count(Dim::FeedForward)?)?.into());
        }
        Key::HeadDim => {
            if let Some(width) = params.whole(&["head_dim"])? {
                put("attention.key_length", u32(params, "head_dim", width)?.into());
                put("attention.value_length", u32(params, "head_dim", width)?.into());
            }
        }
        Key::RopeWholeHead => {
            put("rope.dimension_count", u32(params, "head_dim", params.count(Dim::Head)?)?.into());
        }
        Key::RopePart => put("rope.dimension_count", u32(params, "head_dim", rope::rotated(params)?)?.into()),
        Key::RopeScaling => rope::write_scaling(metadata, params)?,
        Key::Rope(name, field) => {
            if let Some(value) = rope::number(params, &[field])? {
                put(name, (value as f32).into());
            }
        }
        Key::RopeBase => rope::write_base(metadata, params)?,
        Key::RopeBaseLocal => {
            if let Some(theta) = params.rope_local {
                put("rope.freq_base_swa", (theta as f32).into());
            }
        }
        Key::OriginalContext => rope::write_original(metadata, params)?,
        Key::WindowOrZero => {
            let window = params.whole(&["sliding_window"])?.unwrap_or(0);
            put("attention.sliding_window", u32(params, "sliding_window", window)?.into());
        }
        Key::LocalWindow { .. } => {
            if let (Some(window), true) = (params.whole(&["sliding_window"])?, windows::has_window(params)?) {
                put("attention.sliding_window", u32(params, "sliding_window", window)?.into());
            }
        }
        Key::ContextAfterPadding => {
            let (context, start) = (params.count(Dim::Context)?, params.padding_positions()?);
            put("context_length", u32(params, "max_position_embeddings", context.saturating_sub(start))?.into());
        }
        Key::FileType => {
            metadata.insert("general.file_type", file_type);
        }
        Key::NotCausal => {
            if params.get(&["is_causal"]).and_then(Json::as_bool) == Some(false) {
                put("attention.causal", false.into());
            }
        }
        Key::Pooling => pooling(metadata, folder, prefix)?,
        Key::Labels => {
            if let Some(labels) = labels(params) {
                put("classifier.output_labels", Array::texts(labels).into());
            }
        }
    }
    Ok(())
}

/// Counts in configs are at most 2^31, but products of them can be larger.
fn u32(params: &Params, field: &str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| params.finding(field).expected("a count below 2^32").found(value).mismatch())
}

/// The labels of a classifier, in order of their numbers; `None` if they are transformers' two
/// default labels.
fn labels(params: &Params) -> Option<Vec<String>> {
    let mut labels: Vec<(u64, &str)> = params
        .get(&["id2label"])?
        .as_object()?
        .iter()
        .map(|(number, label)| Some((number.parse().ok()?, label.as_str()?)))
        .collect::<Option<_>>()?;
    labels.sort_unstable();
    let default = labels.len() == 2 && labels[0] == (0, "LABEL_0");
    (!default && !labels.is_empty()).then(|| labels.into_iter().map(|(_, label)| label.to_owned()).collect())
}

/// Writes how a sentence-transformers folder pools all positions into one vector
/// (conversion/base.py, `_try_set_pooling_type`).
fn pooling(metadata: &mut Metadata, folder: &Path, prefix: &str) -> Result<()> {
    let path = folder.join("modules.json");
    if !path.is_file() {
        return Ok(());
    }
    let text = std::fs::read(&path).at(&path, "read")?;
    let modules: Vec<Map<String, Json>> = serde_json::from_slice(&text).map_err(|e| {
        Finding::new(&path, "").expected("a JSON array of modules").found(crate::json::plain(&e)).format()
    })?;
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
