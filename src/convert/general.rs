//! Metadata about the model: `general.*`.
//!
//! Reference: llama.cpp `conversion/base.py` (`prepare_metadata`), `gguf-py/gguf/metadata.py`.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::model_id;
use crate::checkpoint::Checkpoint;
use crate::error::{Finding, IoContext, Result};
use crate::formats::gguf::Metadata;

/// What `general.sampling.*` takes from generation_config.json: its names there, in the order in
/// which they are looked up, the key, and whether it is a whole number.
pub(super) const SAMPLING: &[(&[&str], &str, bool)] = &[
    (&["top_k"], "top_k", true),
    (&["top_p"], "top_p", false),
    (&["min_p"], "min_p", false),
    (&["xtc_probability"], "xtc_probability", false),
    (&["xtc_threshold"], "xtc_threshold", false),
    (&["temperature"], "temp", false),
    (&["penalty_last_n"], "penalty_last_n", true),
    (&["penalty_repeat", "repetition_penalty"], "penalty_repeat", false),
    (&["mirostat"], "mirostat", true),
    (&["mirostat_tau"], "mirostat_tau", false),
    (&["mirostat_eta"], "mirostat_eta", false),
];

/// Writes `general.*`: architecture, name and sampling defaults. `total_elems` is the number of
/// elements of all tensors.
pub(super) fn general(
    metadata: &mut Metadata,
    folder: &Checkpoint,
    architecture: &str,
    total_elems: u64,
) -> Result<()> {
    metadata.insert("general.architecture", architecture);
    metadata.insert("general.type", "model");
    sampling(metadata, &folder.path().join("generation_config.json"))?;

    // The hub's name of the model, where the config has kept one, goes before the folder's.
    let hub_name = folder.config_json.get("_name_or_path").and_then(Json::as_str);
    let hub_name = hub_name.filter(|name| name.matches('/').count() <= 1);
    let hub = hub_name.map(|name| model_id::parse(name, total_elems)).unwrap_or_default();
    let local = model_id::parse(&folder_name(folder.path()), total_elems);
    let size = || (total_elems > 0).then(|| model_id::size_label(total_elems));
    let parts = [
        ("name", hub.name.or(local.name).map(|name| model_id::title(&name))),
        ("version", hub.version.or(local.version)),
        ("organization", hub.organization.or(local.organization).map(|name| model_id::title(&name))),
        ("finetune", hub.finetune.or(local.finetune)),
        ("basename", hub.basename.or(local.basename)),
        ("size_label", hub.size_label.or(local.size_label).or_else(size)),
    ];
    for (key, text) in parts {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            metadata.insert(format!("general.{key}"), text);
        }
    }
    Ok(())
}

/// The last part of the folder's path, also where it is given as `.`.
fn folder_name(path: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    name(path).or_else(|| name(&path.canonicalize().ok()?)).unwrap_or_default()
}

/// A file that isn't there, or isn't JSON, recommends nothing.
fn sampling(metadata: &mut Metadata, path: &Path) -> Result<()> {
    if !path.is_file() {
        return Ok(());
    }
    let text = std::fs::read(path).at(path, "read")?;
    let Ok(json) = serde_json::from_slice::<Map<String, Json>>(&text) else { return Ok(()) };
    if let Some(sequence) = json.get("sequence").and_then(Json::as_str).filter(|text| !text.is_empty()) {
        metadata.insert("general.sampling.sequence", sequence);
    }
    for (names, key, whole) in SAMPLING {
        let Some((name, value)) = names.iter().find_map(|name| Some((name, json.get(*name)?))) else { continue };
        let wrong = |expected: &str| {
            let found = format!("{value}");
            Finding::new(path, *name).expected(expected).found(found).format()
        };
        let key = format!("general.sampling.{key}");
        match whole {
            _ if value.is_null() => {}
            true => {
                let number = value.as_i64().and_then(|v| i32::try_from(v).ok());
                metadata.insert(key, number.ok_or_else(|| wrong("a whole number of 32 bits"))?);
            }
            false => {
                metadata.insert(key, value.as_f64().ok_or_else(|| wrong("a number"))? as f32);
            }
        }
    }
    Ok(())
}
