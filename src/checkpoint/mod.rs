//! The Hugging Face folder: config.json, weights in safetensors, tokenizer files.

mod config;
mod fields;
#[cfg(feature = "hub")]
pub mod hub;
mod layout;
mod site;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[cfg(feature = "train")]
pub(crate) use config::INERT;
pub use config::{Architecture, ModelConfig, Rope, RopeScaling};
pub(crate) use fields::{Fields, read_json_object};
pub use layout::{check_tensors, expected_tensors, is_buffer};
pub use site::{Module, Site};

use crate::error::{Finding, IoContext, Result};
use crate::formats::Source;
use crate::formats::safetensors::{SHARD_INDEX, SafetensorsFile};
use crate::plan::{Expr, Plan, PlannedTensor, TensorRef};

/// An open Hugging Face model folder of any architecture. Weights stay in their files.
pub struct Checkpoint {
    path: PathBuf,
    /// config.json as it stands in the file.
    pub config_json: serde_json::Map<String, serde_json::Value>,
    weights: Plan,
}

impl Checkpoint {
    /// Opens the folder: reads config.json, maps every weight file and checks its header.
    ///
    /// # Errors
    /// Missing or malformed files, an index that does not fit its shards.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Err(Finding::new(path, "")
                .expected("a Hugging Face model folder")
                .found(if path.exists() { "a file" } else { "nothing" })
                .mismatch());
        }
        let config_json = read_json_object(&path.join("config.json"))?;
        let weights = open_weights(path)?;
        Ok(Self { path: path.to_owned(), config_json, weights })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The plan that takes every tensor as it is, in the files' order: what other plans start from.
    pub fn weights(&self) -> &Plan {
        &self.weights
    }

    /// Everything in the folder that isn't weights: what a converted folder takes along. Weight
    /// files of other frameworks, hidden files and subfolders stay behind.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn companion_files(&self) -> Result<Vec<PathBuf>> {
        let weights = ["safetensors", "bin", "pt", "pth", "ckpt", "gguf", "h5", "msgpack", "onnx", "ot"];
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path).at(&self.path, "read")? {
            let path = entry.at(&self.path, "read")?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            let skipped = name.starts_with('.') || name.ends_with(".index.json") || weights.contains(&&*extension);
            if path.is_file() && !skipped {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }
}

/// An open folder of a decoder that this crate can run: its config is checked and typed.
pub struct HfFolder {
    checkpoint: Checkpoint,
    /// config.json, checked and typed.
    pub config: ModelConfig,
}

impl HfFolder {
    /// Opens the folder as [`Checkpoint::open`] does.
    ///
    /// # Errors
    /// As there; also for an unknown architecture or config field.
    pub fn open(path: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let config = ModelConfig::from_json(&path.join("config.json"), &checkpoint.config_json)?;
        Ok(Self { checkpoint, config })
    }
}

impl std::ops::Deref for HfFolder {
    type Target = Checkpoint;

    fn deref(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

/// The identity plan over the folder's weight files.
pub(crate) fn open_weights(folder: &Path) -> Result<Plan> {
    let index = folder.join(SHARD_INDEX);
    let single = folder.join("model.safetensors");
    let (files, weight_map) = if index.is_file() {
        let map = read_index(&index)?;
        let mut names: Vec<String> = map.values().cloned().collect();
        names.sort();
        names.dedup();
        (names, Some(map))
    } else if single.is_file() {
        (vec!["model.safetensors".to_owned()], None)
    } else {
        let hint = match has_extension(folder, "bin") {
            true => "PyTorch .bin weights are not read yet: save the model with safetensors",
            false => "is the download complete?",
        };
        return Err(Finding::new(folder, "weights")
            .expected(format_args!("model.safetensors or {SHARD_INDEX}"))
            .found("neither")
            .hint(hint)
            .mismatch());
    };
    let mut plan = Plan::default();
    let mut found: HashMap<String, String> = HashMap::new();
    for name in files {
        let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(&folder.join(&name))?);
        for tensor in TensorRef::all(&source) {
            let info = tensor.info().clone();
            if let Some(other) = found.insert(info.name.clone(), name.clone()) {
                return Err(Finding::new(folder, format!("tensor {:?}", info.name))
                    .expected("each name in one shard")
                    .found(format_args!("it in {other} and {name}"))
                    .format());
            }
            plan.tensors.push(PlannedTensor {
                name: info.name,
                dtype: info.dtype,
                shape: info.shape,
                expr: Expr::Take(tensor),
            });
        }
    }
    if let Some(map) = weight_map {
        for (tensor, shard) in &map {
            if found.get(tensor) != Some(shard) {
                return Err(Finding::new(&index, format!("tensor {tensor:?}"))
                    .expected(format_args!("it in {shard}"))
                    .found(found.get(tensor).map_or("it nowhere", String::as_str))
                    .hint("a shard is missing or from another model")
                    .format());
            }
        }
        if let Some((tensor, shard)) = found.iter().find(|(tensor, _)| !map.contains_key(*tensor)) {
            return Err(Finding::new(&index, format!("tensor {tensor:?}"))
                .expected(format_args!("every tensor of {shard} in the index"))
                .found("this one missing")
                .format());
        }
    }
    Ok(plan)
}

/// The index's tensor -> shard map; shard names must be plain file names.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let json = read_json_object(path)?;
    let map = json.get("weight_map").cloned().unwrap_or_default();
    let map: BTreeMap<String, String> = serde_json::from_value(map)
        .map_err(|e| Finding::new(path, "weight_map").expected("file names by tensor name").found(e).format())?;
    for shard in map.values() {
        if Path::new(shard).file_name().is_none_or(|name| name.to_str() != Some(shard)) {
            return Err(Finding::new(path, "weight_map")
                .expected("names of files in this folder")
                .found(format_args!("{shard:?}"))
                .format());
        }
    }
    Ok(map)
}

fn has_extension(folder: &Path, extension: &str) -> bool {
    fs::read_dir(folder)
        .is_ok_and(|entries| entries.flatten().any(|e| e.path().extension() == Some(extension.as_ref())))
}
