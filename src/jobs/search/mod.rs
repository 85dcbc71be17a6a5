//! Searches the numbers of a merge: the weights, densities and the like for which the merged model has the least loss.
//!
//! A trial is a merge whose plan is run by a decoder and never written. Trials are recorded in a file; a search that was
//! ended goes on behind the last of them, and takes the same way.

mod measure;
mod record;
mod space;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::Device;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::method::Combined as Kinds;
use super::settings::setting;
use super::{MergeSettings, OutputSettings, Step, Watch, merge};
use crate::checkpoint::is_model;
use crate::convert::is_adapter;
use crate::error::Result;
use crate::merge::search::minimize;
use crate::output::{Destination, Form, Output, Sidecars, json_text};
use crate::plan::Plan;
use measure::Measure;
use record::Record;
pub use record::Trial;
use space::{Parameter, by_name, parameters, with_values};

/// The random points for each number, before the search goes step by step.
const PROBES: usize = 2;

/// Settings of [`search`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchSettings {
    /// The merge. The weights of its inputs are where the search begins; options that are given aren't searched. Its
    /// output is where the best one may be written.
    pub merge: MergeSettings,
    /// The folder for the trials and the best settings. What is there already is continued.
    pub folder: PathBuf,
    /// Rows on which the loss is measured, in any form that training takes.
    #[serde(default)]
    pub data: Option<PathBuf>,
    /// A text on which the loss is measured.
    #[serde(default)]
    pub text: Option<PathBuf>,
    /// A model from which the divergence is measured, in place of the loss.
    #[serde(default)]
    pub kl: Option<PathBuf>,
    /// The largest number of tokens in a row or a piece of the text.
    #[serde(default = "ctx")]
    pub ctx: usize,
    /// The largest number of rows and pieces.
    #[serde(default)]
    pub chunks: Option<usize>,
    /// The largest number of trials.
    #[serde(default = "trials")]
    pub trials: usize,
    /// The seed of the search, and of methods that draw random numbers.
    #[serde(default)]
    pub seed: u64,
    /// What is searched; what the method uses of weight, density and t if this is empty.
    #[serde(default)]
    pub search: Vec<String>,
    /// Ranges in place of the usual ones.
    #[serde(default)]
    pub range: BTreeMap<String, (f64, f64)>,
}

fn ctx() -> usize {
    512
}

fn trials() -> usize {
    40
}

impl SearchSettings {
    /// Settings of a search on a text, with the program's defaults.
    pub fn new(merge: MergeSettings, text: impl Into<PathBuf>, folder: impl Into<PathBuf>) -> Self {
        Self {
            merge,
            folder: folder.into(),
            data: None,
            text: Some(text.into()),
            kl: None,
            ctx: ctx(),
            chunks: None,
            trials: trials(),
            seed: 0,
            search: Vec::new(),
            range: BTreeMap::new(),
        }
    }

    fn check(&self) -> Result<()> {
        if self.data.is_none() && self.text.is_none() {
            let finding = setting("text").expected("a text or rows (`data`) to measure on").found("none");
            return Err(finding.setting());
        }
        for (field, number, least) in
            [("trials", self.trials, 1), ("ctx", self.ctx, 2), ("chunks", self.chunks.unwrap_or(1), 1)]
        {
            if number < least {
                return Err(setting(field).expected(format_args!("at least {least}")).found(number).setting());
            }
        }
        Ok(())
    }

    /// What is merged: whole models or adapters.
    fn kind(&self) -> Kinds {
        let is_whole = |path: &Path| is_model(path) && !is_adapter(path, self.merge.others_as);
        match self.merge.others.iter().any(|other| is_whole(&other.path)) {
            true => Kinds::Models,
            false => Kinds::Loras,
        }
    }

    /// What decides about the trials, for the record. The number of trials doesn't: a search may go on for more.
    fn described(&self, parameters: &[Parameter]) -> Value {
        let merge = &self.merge;
        let inputs: Vec<&PathBuf> = merge.others.iter().map(|other| &other.path).collect();
        json!({
            "base": merge.base, "inputs": inputs, "combine": merge.combine, "data": self.data, "text": self.text,
            "kl": self.kl, "ctx": self.ctx, "chunks": self.chunks, "seed": self.seed,
            "parameters": parameters.iter().map(Parameter::describe).collect::<Vec<_>>(),
        })
    }
}

/// The result of a search.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Searched {
    /// All trials, in their order.
    pub trials: Vec<Trial>,
    /// The number of the best trial.
    pub best: usize,
    /// The settings of the best merge.
    pub merge: MergeSettings,
    /// The tokens over which the loss is the mean.
    pub tokens: usize,
    /// The trials that were recorded before.
    pub recorded: usize,
    /// What a user should know, a line each.
    pub notes: Vec<String>,
}

/// Searches as `settings` say. Writes the trials, the best settings (best.json) and, for whole models where mergekit can say
/// the same, its configuration (best.yml) to the folder.
///
/// # Errors
/// [`crate::Error::Setting`]; errors of merging, of running models and of reading what they are measured on;
/// [`crate::Error::Mismatch`] where the folder has the trials of another search, and where no trial has a finite loss.
pub fn search(settings: &SearchSettings, device: &Device, watch: Watch) -> Result<Searched> {
    settings.check()?;
    let kind = settings.kind();
    let parameters = parameters(&settings.merge, kind, &settings.search, &settings.range)?;
    let mut wanted = settings.merge.clone();
    if wanted.combine.method.as_deref().is_some_and(|method| kind.reads(method, "seed")) {
        wanted.combine.seed = Some(settings.seed);
    }
    let mut tried = wanted.clone();
    // The form that a decoder reads. Nothing is written there.
    tried.output = OutputSettings::new(settings.folder.join("merged"));
    let mut known: Vec<(Vec<f64>, Option<f64>)> = Vec::new();
    let start: Vec<f64> = parameters.iter().map(Parameter::start).collect();
    let values = |point: &[f64]| -> Vec<f64> {
        parameters.iter().zip(point).map(|(parameter, place)| parameter.value(*place)).collect()
    };
    let measure = Measure::open(settings, &with_values(&tried, &parameters, &values(&start)), device)?;
    let mut record = Record::open(&settings.folder, &settings.described(&parameters))?;
    let recorded = record.trials.len().min(settings.trials);
    let mut evaluate = |point: &[f64]| -> Result<Option<f64>> {
        let values = values(point);
        let loss = match known.iter().find(|(tried, _)| *tried == values) {
            Some((_, loss)) => *loss,
            None if known.len() == settings.trials => return Ok(None),
            None => {
                let (number, named) = (known.len(), by_name(&parameters, &values));
                if let Some(trial) = record.trials.get(number).filter(|trial| trial.parameters != named) {
                    let finding = setting("output").expected("a folder whose trials are those of this search");
                    return Err(finding.found(format_args!("another trial {}", trial.trial)).setting());
                }
                if record.trials.len() == number {
                    let began = Instant::now();
                    let loss = measure.of(&with_values(&tried, &parameters, &values))?;
                    let seconds = (began.elapsed().as_secs_f64() * 1e3).round() / 1e3;
                    record.add(Trial { trial: number + 1, parameters: named, loss, seconds })?;
                }
                let loss = record.trials[number].loss;
                known.push((values, loss));
                watch(Step { what: "trials", done: known.len() as u64, total: settings.trials as u64 });
                loss
            }
        };
        Ok(Some(loss.unwrap_or(f64::INFINITY)))
    };
    minimize(&start, PROBES * start.len(), settings.seed, &mut evaluate)?;
    let trials: Vec<Trial> = record.trials.iter().take(known.len()).cloned().collect();
    let least = trials
        .iter()
        .filter(|trial| trial.loss.is_some())
        .min_by(|a, b| a.loss.unwrap_or(f64::INFINITY).total_cmp(&b.loss.unwrap_or(f64::INFINITY)));
    let Some(best) = least.map(|trial| trial.trial) else {
        let finding = setting("range").expected("a merge with finite numbers");
        return Err(finding.found(format_args!("none in {} trials", trials.len())).setting());
    };
    let chosen = with_values(&wanted, &parameters, &known[best - 1].0);
    let (tokens, notes) = (measure.tokens(), measure.notes.clone());
    let searched = Searched { best, merge: chosen, tokens, recorded, notes, trials };
    write(settings, &searched, kind)?;
    Ok(searched)
}

/// Writes the best settings beside the trials.
fn write(settings: &SearchSettings, searched: &Searched, kind: Kinds) -> Result<()> {
    let put = |name: &str, text: String| {
        let output = Output {
            form: Form::Bytes(text.into_bytes()),
            plan: Plan::default(),
            sidecars: Sidecars::default(),
            notes: Vec::new(),
        };
        let to = Destination { overwrite: true, ..Destination::new(settings.folder.join(name)) };
        output.write(&to, &|_| ()).map(drop)
    };
    let best = &searched.trials[searched.best - 1];
    put("best.json", json_text(&json!({ "trial": best, "merge": searched.merge })) + "\n")?;
    if kind == Kinds::Loras {
        return Ok(());
    }
    // A merged folder holds it.
    let mut planned = searched.merge.clone();
    planned.output = OutputSettings { dry_run: true, ..OutputSettings::new(settings.folder.join("merged")) };
    let files = merge(&planned, &|_| ())?.output.sidecars.files;
    match files.get("mergekit_config.yml") {
        Some(text) => put("best.yml", String::from_utf8_lossy(text).into_owned()),
        None => Ok(()),
    }
}
