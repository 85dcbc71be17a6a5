//! Checkpoints: everything that a run needs to continue as if it hadn't stopped.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::adapter::TrainedAdapter;
use super::progress::Progress;
use super::{AdamW, MetricsForm, TrainConfig};
use crate::adapter::tensors_output;
use crate::dtype::DType;
use crate::error::{Finding, IoContext, Result, counted};
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
    /// The best evaluation so far.
    #[serde(default)]
    pub(super) progress: Progress,
    /// The number of processes that the run began with, on which the size of a step depends.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub(super) ranks: usize,
}

fn one() -> usize {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature.
fn is_one(ranks: &usize) -> bool {
    *ranks == 1
}

/// The start of the names of checkpoints.
const NAME: &str = "checkpoint-";

/// The start of the names of checkpoints that are being deleted. A run that is killed meanwhile leaves one, and the next
/// run deletes it.
const DELETED: &str = ".deleted-checkpoint-";

/// The commit of a run's base: the name of its folder in the hub's cache.
pub(super) fn base_commit(config: &TrainConfig) -> Option<String> {
    Some(config.hub_base.as_ref()?.folder.file_name()?.to_string_lossy().into_owned())
}

impl State {
    /// Refuses to resume with other settings or data. The number of steps may change if the
    /// schedule doesn't depend on it. The output folder, and what doesn't touch the weights, may change.
    pub(super) fn check(&self, folder: &Path, config: &TrainConfig, data: (usize, usize)) -> Result<()> {
        let comparable = |config: &TrainConfig| {
            let mut config = config.clone();
            config.output = PathBuf::new();
            let (t, default) = (&mut config.training, super::TrainingSettings::default());
            t.eval_every = default.eval_every;
            t.eval_exact_match = default.eval_exact_match;
            t.eval_samples = default.eval_samples;
            t.eval_max_tokens = default.eval_max_tokens;
            t.checkpoint_every = default.checkpoint_every;
            t.keep_checkpoints = default.keep_checkpoints;
            t.load_best_at_end = default.load_best_at_end;
            t.patience = default.patience;
            t.min_delta = default.min_delta;
            t.metrics = vec![MetricsForm::Jsonl];
            // Sizes that the settings leave to the data are those of the adapter in the checkpoint.
            let (unset, begun) = (&mut config.adapter, &self.config.adapter);
            unset.num_atoms = unset.num_atoms.or(begun.num_atoms);
            unset.top_k = unset.top_k.or(begun.top_k);
            unset.key_dim = unset.key_dim.or(begun.key_dim);
            unset.descriptor_dim = unset.descriptor_dim.or(begun.descriptor_dim);
            // Sums in another order, within the rounding of f32.
            t.max_memory = None;
            // A number of epochs can't change: their last step may have fewer rows.
            if t.epochs > 0 || t.schedule == super::Schedule::Constant && t.warmup_ratio == 0.0 {
                t.steps = default.steps;
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
            let of =
                |(rows, tokens): (usize, usize)| format!("{} of {}", counted(rows, "row"), counted(tokens, "token"));
            return Err(Finding::new(folder.join(STATE), "training data")
                .expected(of(self.data))
                .found(of(data))
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
        (serde_json::Value::Object(a), serde_json::Value::Object(b)) => {
            let of = |map: &serde_json::Map<String, serde_json::Value>, key| map.get(key).cloned().unwrap_or_default();
            a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))).find_map(|key| {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                first_difference(&of(a, key), &of(b, key), &at)
            })
        }
        (a, b) if a == b => None,
        (a, b) => Some((at.to_owned(), a.clone(), b.clone())),
    }
}

/// The folder of the checkpoint of a step.
pub(super) fn folder(output: &Path, step: usize) -> PathBuf {
    output.join(format!("{NAME}{step:06}"))
}

/// Writes `output/checkpoint-NNNNNN`, and deletes checkpoints if there are more than `keep_checkpoints`: the oldest ones,
/// but not the best one if it is to be the run's result.
pub(super) fn save(output: &Path, adapter: &TrainedAdapter, optimizer: &AdamW, state: &State) -> Result<PathBuf> {
    let folder = folder(output, state.step);
    let staging = Staging::folder(&folder, true)?;
    adapter.output()?.write_into(&staging, plan::Options::default())?;
    let mut moments = BTreeMap::new();
    for (name, (m, v)) in &optimizer.moments {
        moments.insert(format!("first.{name}"), to_host(m)?);
        moments.insert(format!("second.{name}"), to_host(v)?);
    }
    let mut rest = tensors_output(&moments, "optimizer");
    rest.put_json(STATE, &State { config: adapter.sizes_in(&state.config), ..state.clone() });
    rest.write_into(&staging, plan::Options::default())?;
    staging.commit()?;
    let settings = &state.config.training;
    let best = state.progress.best.filter(|_| settings.load_best_at_end).map(|best| best.step);
    let all = list(output)?;
    let steps: Vec<usize> = all.iter().map(|(step, _)| *step).collect();
    let kept = kept(&steps, best, settings.keep_checkpoints);
    for (_, old) in all.iter().filter(|(step, _)| !kept.contains(step)) {
        delete(output, old)?;
    }
    Ok(folder)
}

/// Which checkpoints are kept, of those after `steps` in ascending order: the newest and the best one, and the newest of
/// the others as long as there are fewer than `count`.
fn kept(steps: &[usize], best: Option<usize>, count: usize) -> Vec<usize> {
    let newest = steps.last().copied();
    let best = steps.iter().copied().find(|step| best == Some(*step) && newest != Some(*step));
    let mut kept: Vec<usize> = newest.into_iter().chain(best).collect();
    for step in steps.iter().rev() {
        if kept.len() < count && !kept.contains(step) {
            kept.push(*step);
        }
    }
    kept
}

/// Deletes a checkpoint. Its name goes first, so that a killed run leaves no part of one under a checkpoint's name.
fn delete(output: &Path, checkpoint: &Path) -> Result<()> {
    let name = checkpoint.file_name().unwrap_or_default().to_string_lossy().replacen(NAME, DELETED, 1);
    let aside = output.join(name);
    if aside.exists() {
        fs::remove_dir_all(&aside).at(&aside, "delete")?;
    }
    fs::rename(checkpoint, &aside).at(checkpoint, "delete")?;
    fs::remove_dir_all(&aside).at(&aside, "delete")
}

/// Deletes what a killed run has left of checkpoints that it was deleting.
pub(super) fn delete_rest(output: &Path) -> Result<()> {
    for entry in fs::read_dir(output).at(output, "read")? {
        let path = entry.at(output, "read")?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(DELETED)) && path.is_dir() {
            fs::remove_dir_all(&path).at(&path, "delete")?;
        }
    }
    Ok(())
}

/// The checkpoints of a run, oldest first, each with its step.
pub(super) fn list(output: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(output).at(output, "read")? {
        let path = entry.at(output, "read")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let step = name.strip_prefix(NAME).and_then(|number| number.parse::<usize>().ok());
        found.extend(step.filter(|_| path.join(STATE).is_file()).map(|step| (step, path)));
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
    let adapter = TrainedAdapter::open(folder, &state.config)?.trained_as(state.config.kind);
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
    for name in adapter.trained_names() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::progress::Evaluation;

    /// The tables of fixtures/train/best-checkpoint.json: after each step, the folders that are there.
    #[test]
    fn the_newest_and_the_best_checkpoint_are_kept() {
        let text = include_str!("../../fixtures/train/best-checkpoint.json");
        let cases: serde_json::Value = serde_json::from_str(text).unwrap();
        for (name, table) in cases.as_object().unwrap() {
            let count: usize = name.strip_prefix("keep_").unwrap().parse().unwrap();
            let (mut progress, mut on_disk) = (Progress::default(), Vec::new());
            for row in table.as_array().unwrap() {
                let step = row["step"].as_u64().unwrap() as usize;
                progress.record(Evaluation { step, loss: row["eval_loss"].as_f64().unwrap() }, 0.0);
                let best = progress.best.unwrap().step;
                assert_eq!(best as u64, row["best"].as_u64().unwrap(), "{name}: {row}");
                on_disk.push(step);
                let kept = kept(&on_disk, Some(best), count);
                on_disk.retain(|step| kept.contains(step));
                assert_eq!(serde_json::json!(on_disk), row["on_disk"], "{name}: {row}");
            }
        }
        assert_eq!(kept(&[10, 20, 30], None, 2), [30, 20], "without a best one, the newest");
        assert_eq!(kept(&[20, 30], Some(10), 1), [30], "a best one that somebody has deleted");
    }
}
