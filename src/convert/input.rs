//! Opens what a path names: a model folder, bare tensors, a GGUF, or an adapter.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::averages;
use crate::arch::registry;
use crate::checkpoint::ADAPTER_CONFIG;
use crate::checkpoint::{Checkpoint, FolderWeights, has_weights, is_model, open_weights};
use crate::error::{Finding, Result};
use crate::formats::FileKind;
use crate::formats::gguf::GgufModel;
use crate::formats::pytorch::PytorchFile;
use crate::formats::safetensors::SafetensorsFile;
use crate::plan::Plan;
use crate::source::Source;

/// An open input for a conversion.
pub enum Input {
    /// A folder with config.json, with params.json of Mistral's own format, or with tensors by which a family knows it.
    Model(Checkpoint),
    /// Tensors without a config: one file, or a folder of shards.
    Weights {
        /// All tensors, unchanged.
        plan: Plan,
        /// Paths and descriptions of values that aren't tensors.
        others: Vec<(String, String)>,
        /// Notes on files that were skipped.
        notes: Vec<String>,
    },
    /// A GGUF file, including its other shards.
    Gguf(GgufModel),
    /// A folder with adapter_config.json: a LoRA or an atom bank.
    Adapter,
}

/// How to read a folder that has both a model and adapter_config.json.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// As a model. This is the default, because a merged model's folder often still has the
    /// adapter's settings.
    Model,
    /// As an adapter or an atom bank.
    Adapter,
}

/// Options for opening an input.
#[derive(Debug, Clone, Copy, Default)]
pub struct Opening<'a> {
    /// The part of a PyTorch file, such as `state_dict`.
    pub key: Option<&'a str>,
    /// How to read a folder that has both a model and adapter_config.json; `None` is as
    /// [`Content::Model`].
    pub content: Option<Content>,
    /// What is taken off the names of tensors alone that begin with it, such as `module.`.
    pub strip_prefix: Option<&'a str>,
    /// What names the tensors get, which are a list under `key`: those of a part of the file, of another file, or of a part
    /// of it (`FILE:KEY`). For averages of weights.
    pub names_from: Option<&'a str>,
    /// Whether a PyTorch file may have tensors that can't be read, which notes name: to list it, or to keep them in it.
    pub unread: bool,
}

/// Whether the folder `path` holds both a model and the settings of an adapter.
pub(crate) fn can_be_either(path: &Path) -> bool {
    path.join(ADAPTER_CONFIG).is_file() && is_model(path) && has_weights(path)
}

/// Whether to read the folder `path` as an adapter. A folder with both a model and
/// adapter_config.json is read as a model, unless `content` says otherwise: the settings are often
/// left over from an adapter that was merged.
pub(crate) fn is_adapter(path: &Path, content: Option<Content>) -> bool {
    match content {
        Some(Content::Model) => false,
        Some(Content::Adapter) => path.join(ADAPTER_CONFIG).is_file(),
        None => path.join(ADAPTER_CONFIG).is_file() && !can_be_either(path),
    }
}

impl Input {
    /// Opens what is at `path`.
    ///
    /// # Errors
    /// Errors of opening it; [`crate::Error::Unsupported`] if it is none of the forms of [`Input`].
    pub fn open(path: &Path, opening: Opening) -> Result<Self> {
        match Self::open_stored(path, opening)? {
            Input::Model(folder) => Ok(Input::Model(folder.unpacked()?)),
            other => Ok(other),
        }
    }

    /// Like [`Input::open`], but packed weights of a model folder stay packed.
    ///
    /// # Errors
    /// As [`Input::open`].
    pub fn open_stored(path: &Path, opening: Opening) -> Result<Self> {
        let Opening { key, content, strip_prefix, names_from, unread } = opening;
        let kind = FileKind::of(path)?.or(FileKind::by_name(path));
        if key.is_some() && kind != Some(FileKind::Pytorch) && !path.is_dir() {
            return Err(Finding::new("", "key")
                .expected("a PyTorch file to choose from")
                .found(format_args!("{:?}", path))
                .setting());
        }
        if names_from.is_some() && (kind != Some(FileKind::Pytorch) || key.is_none() || path.is_dir()) {
            let finding = Finding::new("", "names_from").expected("a list in a PyTorch file, chosen by `key`");
            return Err(finding.found(format_args!("{path:?}")).setting());
        }
        if content.is_some() && path.is_file() {
            let finding = Finding::new("", "as").expected("a folder, which can hold a model and an adapter");
            return Err(finding.found(format_args!("the file {}", path.display())).setting());
        }
        if path.is_dir() {
            if content == Some(Content::Model) && path.join(ADAPTER_CONFIG).is_file() && !is_model(path) {
                let finding = Finding::new(path, "").expected("a model: a folder with config.json");
                return Err(finding.found("an adapter alone").mismatch());
            }
            if is_adapter(path, content) {
                tensors_alone(path, strip_prefix, "an adapter")?;
                return Ok(Input::Adapter);
            }
            if content == Some(Content::Adapter) {
                let finding =
                    Finding::new(path, "").expected(format_args!("an adapter: a folder with {ADAPTER_CONFIG}"));
                return Err(finding.found("none").mismatch());
            }
            if is_model(path) {
                tensors_alone(path, strip_prefix, "a model's folder")?;
                let mut folder = Checkpoint::open_stored(path, key)?;
                if path.join(ADAPTER_CONFIG).is_file() && content.is_none() {
                    folder.note(format!(
                        "the folder holds a model and {ADAPTER_CONFIG}: the model is taken (`as` chooses)"
                    ));
                }
                return Ok(Input::Model(folder));
            }
            let mut weights = open_weights(path, key)?;
            strip(path, strip_prefix, &mut weights.plan)?;
            if let Some(config) = registry::config_by_tensors(&weights.plan) {
                return Ok(Input::Model(Checkpoint::described(path, config, weights)));
            }
            let FolderWeights { plan, others, notes } = weights;
            return Ok(Input::Weights { plan, others, notes });
        }
        let (mut others, mut notes) = (Vec::new(), Vec::from_iter(FileKind::note_of_name(path)?));
        let source: Arc<dyn Source> = match kind {
            Some(FileKind::Gguf) => {
                tensors_alone(path, strip_prefix, "a GGUF")?;
                return Ok(Input::Gguf(GgufModel::open(path)?));
            }
            Some(FileKind::Safetensors) => Arc::new(SafetensorsFile::open(path)?),
            Some(FileKind::Pytorch) => {
                let file = if unread { PytorchFile::open_whole(path, key)? } else { PytorchFile::open(path, key)? };
                file.check_has_tensors()?;
                others.extend_from_slice(file.others());
                notes.extend_from_slice(file.notes());
                notes.extend(file.unread().iter().map(|(name, what)| format!("tensor {name:?} is not read: {what}")));
                Arc::new(file)
            }
            None => {
                return Err(Finding::new(path, "")
                    .expected("a model or adapter folder, or a .gguf, .safetensors, .bin, .pt, .pth or .ckpt file")
                    .found(if path.exists() { "something else" } else { "nothing" })
                    .unsupported());
            }
        };
        let mut plan = Plan::taking(&source);
        if let Some(part) = names_from {
            let (named, note) = averages::named(path, &plan, part)?;
            plan = named;
            notes.extend(note);
        }
        strip(path, strip_prefix, &mut plan)?;
        Ok(Input::Weights { plan, others, notes })
    }
}

/// Refuses `strip_prefix` for what has names that are known.
fn tensors_alone(path: &Path, strip_prefix: Option<&str>, found: &str) -> Result<()> {
    match strip_prefix {
        None => Ok(()),
        Some(_) => Err(Finding::new("", "strip_prefix")
            .expected("tensors alone, whose names begin with it")
            .found(format_args!("{}: {found}", path.display()))
            .setting()),
    }
}

/// Takes `prefix` off the names that begin with it.
fn strip(path: &Path, prefix: Option<&str>, plan: &mut Plan) -> Result<()> {
    let Some(prefix) = prefix else { return Ok(()) };
    let mut stripped = false;
    for tensor in &mut plan.tensors {
        if let Some(rest) = tensor.name.strip_prefix(prefix).filter(|rest| !rest.is_empty()) {
            (tensor.name, stripped) = (rest.to_owned(), true);
        }
    }
    if !stripped {
        let finding = Finding::new(path, "strip_prefix").expected(format_args!("names that begin with {prefix:?}"));
        let first = plan.tensors.first().map(|tensor| format!("{:?} and others", tensor.name));
        return Err(finding.found(first.unwrap_or_default()).mismatch());
    }
    let mut seen = HashSet::new();
    match plan.tensors.iter().find(|tensor| !seen.insert(tensor.name.as_str())) {
        None => Ok(()),
        Some(twice) => Err(Finding::new(path, format!("tensor {:?}", twice.name))
            .expected(format_args!("one of this name, without {prefix}"))
            .found("two")
            .mismatch()),
    }
}
