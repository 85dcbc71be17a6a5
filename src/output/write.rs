//! Writes an output, with the same sequence of steps for every form.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Form, Output};
use crate::error::{Finding, Result};
use crate::plan::{self, Layout, Progress, Staging};

/// Where and how an output is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    /// The file or the folder.
    pub path: PathBuf,
    /// Whether to replace an existing file or folder.
    #[serde(default)]
    pub overwrite: bool,
    /// Whether to return only when everything is on the disk. This is always done if something is replaced. Without it,
    /// a power cut soon after can lose part of the output, as after `cp`.
    #[serde(default = "sync")]
    pub sync: bool,
    /// Memory for values in flight, in bytes.
    #[serde(default = "max_memory")]
    pub max_memory: u64,
}

fn sync() -> bool {
    true
}

fn max_memory() -> u64 {
    plan::Options::default().max_memory_bytes
}

impl Destination {
    /// A destination for a new file or folder, which is on the disk before it gets its name.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), overwrite: false, sync: true, max_memory: max_memory() }
    }

    /// Fails where writing would fail at once. Call it before a long computation, not after it.
    ///
    /// # Errors
    /// [`crate::Error::Exists`]; [`crate::Error::Mismatch`] if the parent folder doesn't exist.
    pub fn check(&self) -> Result<()> {
        Staging::check(&self.path, self.overwrite)
    }

    /// Refuses to replace what a job reads beside its first input, which may be replaced by what is made of it: an output
    /// that is one of `others`, holds one, or is a file of one. `others` are the inputs after the first.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`], naming both.
    pub fn check_inputs<'p>(&self, others: impl IntoIterator<Item = &'p Path>) -> Result<()> {
        if !self.overwrite {
            return Ok(());
        }
        // Nothing is replaced where nothing is there.
        let Ok(target) = fs::canonicalize(&self.path) else { return Ok(()) };
        let is_lost = |input: &&Path| {
            let found = fs::canonicalize(input);
            found.is_ok_and(|found| found.starts_with(&target) || target.is_file() && target.starts_with(&found))
        };
        match others.into_iter().find(is_lost) {
            None => Ok(()),
            Some(input) => Err(Finding::new(&self.path, "output")
                .expected(format_args!("a place apart from {}", input.display()))
                .found("its own, or one that holds it or is in it")
                .hint("`overwrite` would delete what was read: choose another name")
                .mismatch()),
        }
    }

    /// The executor's options.
    pub fn options(&self) -> plan::Options {
        plan::Options { max_memory_bytes: self.max_memory }
    }
}

/// A summary of what was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Written {
    /// The file or folder, or the first of several files.
    pub path: PathBuf,
    /// The number of tensors.
    pub tensors: usize,
    /// The number of files, including those without tensors.
    pub files: usize,
    /// The size of all files in bytes.
    pub bytes: u64,
    /// How long writing took, in seconds.
    pub seconds: f64,
}

impl Output {
    /// Writes the output: whole, or not at all.
    ///
    /// # Errors
    /// [`crate::Error::Exists`], errors for what the format can't hold, and those of [`plan::execute`]. Nothing is left
    /// behind then.
    pub fn write(&self, to: &Destination, progress: &(dyn Fn(Progress) + Sync)) -> Result<Written> {
        Ok(Self::write_all(&[(self, to)], progress)?.remove(0))
    }

    /// Writes several outputs in one pass over their sources. Each appears whole, or not at all: none before the values of
    /// all are made. The memory for values in flight is that of the first.
    ///
    /// # Errors
    /// As [`Output::write`].
    pub fn write_all(outputs: &[(&Self, &Destination)], progress: &(dyn Fn(Progress) + Sync)) -> Result<Vec<Written>> {
        let started = Instant::now();
        let mut staged = Vec::with_capacity(outputs.len());
        for (output, to) in outputs {
            let layout = output.layout(&to.path)?;
            let staging = output.staging(&layout, to)?.sync(to.sync);
            staged.push((layout, staging));
        }
        let runs: Vec<plan::Work> = outputs
            .iter()
            .zip(&staged)
            .map(|((output, _), (layout, staging))| plan::Work { plan: &output.plan, layout, staging })
            .collect();
        let options = outputs.first().map_or_else(plan::Options::default, |(_, to)| to.options());
        plan::execute_all(&runs, options, progress)?;
        drop(runs);
        let mut written = Vec::with_capacity(outputs.len());
        for ((output, _), (_, staging)) in outputs.iter().zip(&staged) {
            output.write_beside(staging)?;
        }
        for ((output, to), (layout, staging)) in outputs.iter().zip(staged) {
            staging.commit()?;
            written.push(output.written(to, &layout, started));
        }
        Ok(written)
    }

    /// Writes the files beside the tensors.
    fn write_beside(&self, staging: &Staging) -> Result<()> {
        match self.is_folder() {
            true => self.sidecars.files.iter().try_for_each(|(name, content)| staging.write(name, content)),
            false => Ok(()),
        }
    }

    fn written(&self, to: &Destination, layout: &Layout, started: Instant) -> Written {
        let beside = self.sidecars.files.values().filter(|_| self.is_folder());
        let sizes = layout.files.iter().map(|file| file.byte_len).chain(beside.map(|content| content.len() as u64));
        let (files, bytes) = sizes.fold((0, 0), |(files, bytes), size| (files + 1, bytes + size));
        let path = match (self.is_folder(), layout.files.as_slice()) {
            (false, [first, _, ..]) => to.path.with_file_name(&first.name),
            _ => to.path.clone(),
        };
        let seconds = started.elapsed().as_secs_f64();
        Written { path, tensors: self.plan.tensors.len(), files, bytes, seconds }
    }

    /// Writes its files into a folder that is being staged, to which other files may be written as well.
    ///
    /// # Errors
    /// As [`Output::write`].
    pub fn write_into(&self, staging: &Staging, options: plan::Options) -> Result<()> {
        plan::execute(&self.plan, &self.layout(staging.path())?, staging, options, &|_| ())?;
        self.write_beside(staging)
    }

    fn staging(&self, layout: &Layout, to: &Destination) -> Result<Staging> {
        match (&self.form, layout.files.as_slice()) {
            (Form::Folder { .. }, _) => Staging::folder(&to.path, to.overwrite),
            (_, [_]) => Staging::file(&to.path, to.overwrite),
            (_, files) => {
                let folder = to.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                Staging::files(folder, files.iter().map(|file| file.name.as_path()), to.overwrite)
            }
        }
    }
}
