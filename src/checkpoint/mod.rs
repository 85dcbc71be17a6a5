//! The Hugging Face folder: config.json, weights in safetensors or PyTorch files, tokenizer files.

#[cfg(feature = "hub")]
pub mod hub;
mod weights;
mod write;

use std::fs;
use std::path::{Path, PathBuf};

pub(crate) use weights::open_weights;
#[cfg(feature = "hub")]
pub(crate) use weights::read_index;

use crate::error::{Finding, IoContext, Result};
use crate::json::read_json_object;
use crate::output::WEIGHT_EXTENSIONS;
use crate::plan::Plan;

/// An open Hugging Face model folder of any architecture. Weights stay in their files.
pub struct Checkpoint {
    path: PathBuf,
    /// config.json as it stands in the file.
    pub config_json: serde_json::Map<String, serde_json::Value>,
    weights: Plan,
    others: Vec<(String, String)>,
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
        let (weights, others) = open_weights(path)?;
        Ok(Self { path: path.to_owned(), config_json, weights, others })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The plan that takes every tensor as it is, in the files' order: what other plans start from.
    pub fn weights(&self) -> &Plan {
        &self.weights
    }

    /// What the weight files hold beside tensors, as path and description: no output takes it along.
    /// Empty for safetensors.
    pub fn others(&self) -> &[(String, String)] {
        &self.others
    }

    /// Everything in the folder that isn't weights: what a converted folder takes along. Weight
    /// files of other frameworks, hidden files and subfolders stay behind.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn companion_files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path).at(&self.path, "read")? {
            let path = entry.at(&self.path, "read")?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            let skipped =
                name.starts_with('.') || name.ends_with(".index.json") || WEIGHT_EXTENSIONS.contains(&&*extension);
            if path.is_file() && !skipped {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }
}
