//! Checkpoints: everything that a run needs to continue as if it hadn't stopped.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::adapter::TrainedAdapter;
use super::{AdamW, TrainConfig};
use crate::adapter::tensors_output;
use crate::dtype::DType;
use crate::error::{Finding, IoContext, Result};
use crate::formats::safetensors::SafetensorsFile;
use crate::json::{read_json_object, read_value};
use crate::model::hooks::to_host;
use crate::plan::{self, Staging};
use crate::source::Source;

/// The file that makes a checkpoint complete. It is written last, before the folder gets its name.
const STATE: &str = "trainer_state.json";

/// A run's state, without its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    /// The number of finished optimizer steps. The position in the data follows from it.
    pub(super) step: usize,
    /// The settings of the run.
    pub(super) config: TrainConfig,
    /// The number of rows and tokens in the training data: with other data, resuming wouldn't
    /// continue the same run.
    pub(super) data: (usize, usize),
    /// The commit of a base that is named on the hub, where the same name can later mean other
    /// weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) base_commit: Option<String>,
}

/// The commit of a run's base: the name of its folder in the hub's cache.
pub(super) fn base_commit(config: &TrainConfig) -> Option<String> {
    Some(config.hub_base.as_ref()?.folder.file_name()?.to_string_lossy().into_owned())
}

impl State {
    /// Refuses to resume with other settings or data. The number of steps may change if the
    /// schedule doesn't depend on it. The output folder and the intervals of evaluations and
    /// checkpoints may change.
    pub(super) fn check(&self, folder: &Path, config: &TrainConfig, data: (usize, usize)) -> Result<()> {
        let comparable = |config: &TrainConfig| {
            let mut config = config.clone();
            config.output = PathBuf::new();
            config.training.eval_every = 0;
            config.training.checkpoint_every = 0;
            config.training.keep_checkpoints = 0;
            // Sums in another order, within the rounding of f32.
            config.training.max_memory = None;
            if config.training.schedule == super::Schedule::Constant {
                config.training.steps = 0;
            }
            serde_json::to_value(config).expect("plain values serialize")
        };
        let (old, new) = (comparable(&self.config), comparable(config));
        if let Some((key, old, new)) = first_difference(&old, &new, "") {
            return Err(Finding::new(folder.join(STATE), key)
                .expected(format_args!("{old}, as the run began with"))
                .found(new)
                .hint("resume with the run's own settings, or start a new run")
                .mismatch());
        }
        let commit = base_commit(config);
        if self.base_commit != commit {
            let name = |commit: &Option<String>| commit.clone().unwrap_or_else(|| "none".to_owned());
            return Err(Finding::new(folder.join(STATE), "the commit of the base")
                .expected(format_args!("{}, as the run began with", name(&self.base_commit)))
                .found(name(&commit))
                .hint("name the commit: hf:org/name@COMMIT, or start a new run")
                .mismatch());
        }
        if self.data != data {
            return Err(Finding::new(folder.join(STATE), "training data")
                .expected(format_args!("{} rows of {} tokens", self.data.0, self.data.1))
                .found(format_args!("{} rows of {} tokens", data.0, data.1))
                .mismatch());
        }
        Ok(())
    }
}

fn first_difference(
    old: &serde_json::Value,
    new: &serde_json::Value,
    at: &str,
) -> Option<(String, serde_json::Value, serde_json::Value)> {
    match (old, new) {
        (serde_json::Value::Object(a), serde_json::Value::Object(b)) => a.iter().find_map(|(key, value)| {
            let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
            first_difference(value, b.get(key).unwrap_or(&serde_json::Value::Null), &at)
        }),
        (a, b) if a == b => None,
        (a, b) => Some((at.to_owned(), a.clone(), b.clone())),
    }
}

/// Writes `output/checkpoint-NNNNNN`, and deletes the oldest checkpoints if there are more than
/// `keep_checkpoints`.
pub(super) fn save(output: &Path, adapter: &TrainedAdapter, optimizer: &AdamW, state: &State) -> Result<PathBuf> {
    let folder = output.join(format!("checkpoint-{:06}", state.step));
    let staging = Staging::folder(&folder, true)?;
    adapter.output()?.write_into(&staging, plan::Options::default())?;
    let mut moments = BTreeMap::new();
    for (name, (m, v)) in &optimizer.moments {
        moments.insert(format!("first.{name}"), to_host(m)?);
        moments.insert(format!("second.{name}"), to_host(v)?);
    }
    let mut rest = tensors_output(&moments, "optimizer");
    rest.put_json(STATE, state);
    rest.write_into(&staging, plan::Options::default())?;
    staging.commit()?;
    let all = list(output)?;
    for old in all.iter().rev().skip(state.config.training.keep_checkpoints) {
        fs::remove_dir_all(old).at(old, "delete")?;
    }
    Ok(folder)
}

/// The checkpoints of a run, oldest first.
pub(super) fn list(output: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(output).at(output, "read")? {
        let path = entry.at(output, "read")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.strip_prefix("checkpoint-").is_some_and(|n| n.parse::<usize>().is_ok()) && path.join(STATE).is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Reads a checkpoint: the adapter, the optimizer's moments, the state.
pub(super) fn load(folder: &Path, device: &Device) -> Result<(TrainedAdapter, AdamW, State)> {
    let path = folder.join(STATE);
    let state: State = read_value(serde_json::Value::Object(read_json_object(&path)?), || {
        Finding::new(&path, "").expected("a trainer's state")
    })?;
    let adapter = TrainedAdapter::open(folder)?;
    let path = folder.join("optimizer.safetensors");
    let file = SafetensorsFile::open(&path)?;
    let mut found = BTreeMap::new();
    for (i, info) in file.tensors().iter().enumerate() {
        if info.dtype != DType::F32 {
            let finding = Finding::new(&path, format!("tensor {:?}", info.name));
            return Err(finding.expected(DType::F32).found(info.dtype).format());
        }
        let mut values = vec![0f32; info.elems()];
        crate::quant::decode(info.dtype, &file.bytes(i), &mut values);
        found.insert(info.name.clone(), Tensor::from_vec(values, info.shape.as_slice(), device)?);
    }
    let mut moments = BTreeMap::new();
    for name in adapter.tensors().keys() {
        let mut take = |which: &str| {
            let key = format!("{which}.{name}");
            found.remove(&key).ok_or_else(|| {
                Finding::new(&path, format!("tensor {key:?}")).expected("a tensor of this name").found("none").format()
            })
        };
        moments.insert(name.clone(), (take("first")?, take("second")?));
    }
    Ok((adapter, AdamW { steps: state.step, moments }, state))
}
