//! Inputs as users name them: a path, or a model on the hub.
//!
//! A job first runs on an outline of a model on the hub, which has everything except the values of the weights. Errors
//! are thus found early, and a job that needs no values is finished. Only for other jobs, the weights are downloaded.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use atombank::checkpoint::hub::{self, Event, HubSettings, Looked, Need, Outline};
use atombank::convert::Content;
use atombank::output::Destination;

use super::{Common, progress, signals};

/// An input of a job.
pub(crate) struct Input<'a> {
    /// A path, or a name on the hub.
    name: &'a OsStr,
    need: Need,
    /// Whether the job needs its values at some point.
    values: bool,
}

impl<'a> Input<'a> {
    /// Creates an input whose values are used.
    pub(crate) fn new(name: &'a (impl AsRef<OsStr> + ?Sized), need: Need) -> Self {
        Self { name: name.as_ref(), need, values: true }
    }

    /// Sets `values`. If false, the names and shapes of the tensors are enough, unless the job still reads values.
    pub(crate) fn values(self, values: bool) -> Self {
        Self { values, ..self }
    }

    /// Returns the input's name on the hub, if it has one.
    fn hub_name(&self) -> Option<String> {
        let name = self.name.to_str()?;
        match hub::is_hub_name(name) {
            true => Some(name.to_owned()),
            false => can_only_be_a_hub_name(name).then(|| format!("hf:{name}")),
        }
    }

    /// Returns everything but the weights if those can be fetched later; otherwise the whole input.
    fn look(&self, common: &Common) -> Result<Given> {
        let Some(name) = self.hub_name() else { return Ok(Given::Whole(Found { path: self.name.into(), id: None })) };
        Ok(match watched(common, |settings, tell| hub::look(&name, settings, self.need, tell))? {
            Looked::Whole(model) => Given::Whole(Found { path: model.path, id: Some(model.id) }),
            Looked::Outline(outline) => Given::Outline(outline),
        })
    }
}

/// Parses a value of `--as`.
pub(crate) fn parse_content(text: &str) -> Result<Content, String> {
    match text {
        "model" => Ok(Content::Model),
        "adapter" => Ok(Content::Adapter),
        _ => Err("expected model or adapter".to_owned()),
    }
}

/// An input as a job receives it.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    /// Its name on the hub, if it comes from there.
    pub(crate) id: Option<String>,
}

/// The result of a job, and the outlines that it still refers to.
pub(crate) struct Made<T> {
    pub(crate) made: T,
    pub(crate) outlines: Outlines,
}

/// Inputs whose headers were enough. They have to outlive the results made from them.
pub(crate) struct Outlines(Vec<Outline>);

impl Outlines {
    /// Replaces paths of an outline in the texts by the paths of the files in the cache.
    pub(crate) fn put_real_paths<'t>(&self, texts: impl IntoIterator<Item = &'t mut String>) {
        for text in texts {
            self.0.iter().for_each(|outline| *text = outline.with_real_paths(text));
        }
    }
}

/// The part of an input that has been fetched so far.
enum Given {
    Whole(Found),
    Outline(Box<Outline>),
}

impl Given {
    fn found(&self) -> Found {
        match self {
            Given::Whole(found) => found.clone(),
            Given::Outline(outline) => Found { path: outline.model.path.clone(), id: Some(outline.model.id.clone()) },
        }
    }

    /// Fetches the values, too.
    fn whole(self, common: &Common) -> Result<Self> {
        let Given::Outline(outline) = self else { return Ok(self) };
        let model = watched(common, |settings, tell| outline.fetch(settings, tell))?;
        Ok(Given::Whole(Found { path: model.path, id: Some(model.id) }))
    }

    fn outline(&self) -> Option<&Outline> {
        match self {
            Given::Whole(_) => None,
            Given::Outline(outline) => Some(outline),
        }
    }
}

/// Runs `job` on `inputs`. The job is run again if weights had to be fetched for it, so it must not write anything
/// before it has read values of all its inputs.
pub(crate) fn with_inputs<T>(
    inputs: &[Input<'_>],
    common: &Common,
    job: impl Fn(&[Found]) -> Result<T>,
) -> Result<Made<T>> {
    let mut given = inputs.iter().map(|input| input.look(common)).collect::<Result<Vec<_>>>()?;
    loop {
        let made = job(&given.iter().map(Given::found).collect::<Vec<_>>());
        // A job that read missing values has failed, or its result is wrong.
        let wanted = |given: &Given| given.outline().is_some_and(Outline::values_were_wanted);
        let mut missing: Vec<usize> = (0..given.len()).filter(|at| wanted(&given[*at])).collect();
        if missing.is_empty() {
            let made = made.map_err(|error| with_real_paths(error, &given))?;
            missing = (0..given.len()).filter(|at| inputs[*at].values && given[*at].outline().is_some()).collect();
            if missing.is_empty() {
                let outlines = given.into_iter().filter_map(|given| match given {
                    Given::Whole(_) => None,
                    Given::Outline(outline) => Some(*outline),
                });
                return Ok(Made { made, outlines: Outlines(outlines.collect()) });
            }
        }
        for at in missing {
            let whole = given.remove(at).whole(common)?;
            given.insert(at, whole);
        }
    }
}

/// Like [`with_inputs`], for a job whose result is written to `to`: it must not replace an input after the first.
pub(crate) fn with_inputs_to<T>(
    to: &Destination,
    inputs: &[Input<'_>],
    common: &Common,
    job: impl Fn(&[Found]) -> Result<T>,
) -> Result<Made<T>> {
    with_inputs(inputs, common, |found| {
        to.check_inputs(found.iter().skip(1).map(|found| found.path.as_path()))?;
        job(found)
    })
}

/// Returns the error with the paths of an outline replaced by those in the cache.
fn with_real_paths(error: anyhow::Error, given: &[Given]) -> anyhow::Error {
    match error.downcast::<atombank::Error>() {
        Ok(error) => {
            let outlines = given.iter().filter_map(Given::outline);
            outlines.fold(error, |error, outline| outline.error_with_real_paths(error)).into()
        }
        Err(other) => other,
    }
}

/// Runs `work` with the environment's hub settings. Shows downloads as a progress bar, and notes on stderr.
fn watched<T>(
    common: &Common,
    work: impl FnOnce(&HubSettings, &dyn Fn(Event<'_>)) -> atombank::Result<T>,
) -> Result<T> {
    let bar = progress::bar(0, "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}", common.quiet);
    let settings = HubSettings { refresh: common.refresh, ..HubSettings::from_env()? };
    let done = signals::ending_at_once(|| {
        work(&settings, &|event| match event {
            Event::Download(download) => {
                bar.set_message(download.file.to_owned());
                bar.set_length(download.total);
                bar.set_position(download.done);
            }
            Event::Note(note) if !common.quiet => bar.suspend(|| eprintln!("note: {note}")),
            Event::Note(_) => {}
        })
    });
    bar.finish_and_clear();
    Ok(done?)
}

/// Returns whether `input` has the form `org/name` and can't be a path: neither it nor a folder `org` exists.
fn can_only_be_a_hub_name(input: &str) -> bool {
    let Some((org, name)) = input.split_once('/') else { return false };
    let plain = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let file =
        [".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".tar", ".pkl"].iter().any(|end| name.ends_with(end));
    plain(org) && plain(name) && !file && !Path::new(input).exists() && !Path::new(org).exists()
}

#[cfg(test)]
mod tests {
    use super::can_only_be_a_hub_name;

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        assert!(can_only_be_a_hub_name("meta-llama/Llama-3.2-1B"));
        for path in ["src/no-such-model", "/tmp/x", "./x", "../x", "a/b/c", "folder", "org/model.gguf", "no such/model"]
        {
            assert!(!can_only_be_a_hub_name(path), "{path}");
        }
    }
}
