//! The keys `general.*`: what a GGUF says about the model as a whole, its authors and its sources.
//!
//! They come from the model card, the model's name in config.json, the folder's name,
//! generation_config.json, and a metadata file that overrides all others.
//!
//! Reference: llama.cpp `conversion/base.py` (`prepare_metadata`) and `gguf-py/gguf/metadata.py`
//! (`Metadata.load`, `apply_metadata_heuristic`).

mod authorship;
mod card;
mod model_id;
mod sampling;
mod summary;
#[cfg(test)]
mod tests;
mod totals;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

pub(crate) use sampling::fields as sampling_fields;
pub use summary::summary;
pub(crate) use totals::TensorTotals;

use self::authorship::Authorship;
use crate::error::Result;
use crate::formats::gguf::Metadata;
use crate::json::read_json_object;
use crate::yaml::Node;

/// What the user says about a model. It takes precedence over what the folder says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GeneralOptions {
    /// A JSON file of keys and values: `general.name`, `general.author`, ...; `general.base_models`
    /// and `general.datasets` are lists of objects.
    pub metadata_file: Option<PathBuf>,
    /// The model's name; it takes precedence over that in the metadata file.
    pub model_name: Option<String>,
    /// The model's name on the Hugging Face hub, `org/name`, if it was downloaded from there: then
    /// the folder's own name is a commit.
    pub model_id: Option<String>,
}

/// Writes the keys `general.*`, except for the file type and the quantization version, which follow
/// the architecture's keys. `architecture` is its name in GGUF.
///
/// # Errors
/// [`crate::Error::Io`] for files that can't be read; [`crate::Error::Format`] for a malformed
/// metadata file and for sampling settings of the wrong kind. An unreadable model card, and values
/// without a form in the file, are added to `notes`.
pub(super) fn write(
    metadata: &mut Metadata,
    folder: &Path,
    config_json: &Map<String, Json>,
    architecture: &str,
    totals: TensorTotals,
    options: &GeneralOptions,
    notes: &mut Vec<String>,
) -> Result<()> {
    let file = options.metadata_file.as_deref();
    let file = file.map(|path| Ok::<_, crate::Error>((path, read_json_object(path)?))).transpose()?;
    let file = file.as_ref().map(|(path, json)| (*path, json));

    metadata.insert("general.architecture", architecture);
    metadata.insert("general.type", if architecture == "clip" { "mmproj" } else { "model" });
    sampling::write(metadata, folder, file, notes)?;

    let mut authorship = Authorship::default();
    card::apply(&card::load(folder, notes)?, totals.total, &mut authorship);
    let kept_name = config_json.get("_name_or_path").and_then(Json::as_str);
    // A name with more slashes is a local path.
    if let Some(name) = kept_name.filter(|name| name.matches('/').count() <= 1) {
        apply_name(name, totals.total, &mut authorship);
    }
    let folder_name = folder_name(folder);
    apply_name(options.model_id.as_deref().unwrap_or(&folder_name), totals.total, &mut authorship);
    if let Some(id) = &options.model_id {
        authorship.set_text("name", Node::Text(id.clone()));
    }
    if let Some((path, json)) = file {
        authorship.override_with(path, json, notes)?;
    }
    if let Some(name) = &options.model_name {
        authorship.set_text("name", Node::Text(name.clone()));
    }
    authorship.default_text("name", Node::Text(folder_name));
    if let Some(label) = totals.label() {
        authorship.default_text("size_label", Node::Text(label));
    }
    authorship.write(metadata, &folder.join("README.md"), notes);
    Ok(())
}

/// Fills in facts from a model's name, where they aren't known yet.
fn apply_name(name: &str, total: i128, authorship: &mut Authorship) {
    let id = model_id::parse(name, total);
    let parts = [
        ("name", id.name.as_deref().map(model_id::title)),
        ("organization", id.organization.as_deref().map(model_id::title)),
        ("basename", id.basename),
        ("finetune", id.finetune),
        ("version", id.version),
        ("size_label", id.size_label),
    ];
    for (key, text) in parts {
        if let Some(text) = text {
            authorship.default_text(key, Node::Text(text));
        }
    }
}

/// The last part of the folder's path, even if it is given as `.`.
fn folder_name(path: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    name(path).or_else(|| name(&path.canonicalize().ok()?)).unwrap_or_default()
}
