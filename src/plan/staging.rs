//! Outputs appear whole or not at all: everything is written beside the target and renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Finding, IoContext, Result};

/// An output being written. Dropped before [`Staging::commit`], it leaves nothing behind.
pub struct Staging {
    kind: Kind,
    /// In the order of names that were asked for; one where it isn't several files.
    outputs: Vec<Output>,
    sync: bool,
    committed: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    File,
    Folder,
    Files,
}

/// A name and what stands in for it until it is complete.
struct Output {
    target: PathBuf,
    temp: PathBuf,
    /// Whether something stands under the name already.
    replaces: bool,
}

impl Staging {
    /// Prepares to write the file `target`.
    ///
    /// # Errors
    /// [`Error::Exists`] where something is there and `overwrite` is false.
    pub fn file(target: &Path, overwrite: bool) -> Result<Self> {
        Ok(Self::new(Kind::File, vec![Output::new(target, overwrite, false)?]))
    }

    /// Prepares to write several files side by side into `folder`, which stays as it is otherwise:
    /// the shards of a model. All are written before the first gets its name.
    ///
    /// # Errors
    /// [`Error::Exists`] where one of them is there and `overwrite` is false; [`Error::Mismatch`] for
    /// a name that isn't a plain one.
    pub fn files<'a>(folder: &Path, names: impl IntoIterator<Item = &'a Path>, overwrite: bool) -> Result<Self> {
        let mut outputs: Vec<Output> = Vec::new();
        for name in names {
            let target = folder.join(name);
            if name.file_name() != Some(name.as_os_str()) || outputs.iter().any(|o| o.target == target) {
                let finding = Finding::new(folder, "output").expected("names of files in it, each once");
                return Err(finding.found(format_args!("{:?}", name)).mismatch());
            }
            outputs.push(Output::new(&target, overwrite, false)?);
        }
        Ok(Self::new(Kind::Files, outputs))
    }

    /// Prepares to write the folder `target`. With `overwrite`, an existing folder is replaced as
    /// a whole, but only one that holds a checkpoint or an adapter and nothing below it.
    ///
    /// # Errors
    /// [`Error::Exists`], or [`Error::Mismatch`] for a folder that should not be deleted.
    pub fn folder(target: &Path, overwrite: bool) -> Result<Self> {
        let output = Output::new(target, overwrite, true)?;
        let temp = output.temp.clone();
        let staging = Self::new(Kind::Folder, vec![output]);
        fs::create_dir(&temp).at(&temp, "create")?;
        Ok(staging)
    }

    fn new(kind: Kind, outputs: Vec<Output>) -> Self {
        Self { kind, outputs, sync: true, committed: false }
    }

    /// Whether to wait for the disk. Unless told otherwise, everything is on it before it gets its
    /// name. Without that the output is complete for every reader, but a power cut soon after can
    /// take part of it, as after `cp`: fit where it can be made again. Where an output is replaced
    /// the wait stays, so that the old one goes only when the new one is safe.
    #[must_use]
    pub fn sync(mut self, sync: bool) -> Self {
        self.sync = sync || self.outputs.iter().any(|output| output.replaces);
        self
    }

    /// Whether what is written here has to be on the disk before it gets its name.
    pub(super) fn syncs(&self) -> bool {
        self.sync
    }

    /// The file or folder to write to until it is committed; the first one's where there are several.
    pub fn path(&self) -> &Path {
        self.outputs.first().map_or(Path::new(""), |output| &output.temp)
    }

    /// Where `name` of a [`super::FileLayout`] is to be written.
    pub(super) fn path_of(&self, name: &Path) -> PathBuf {
        match self.kind {
            Kind::File => self.path().to_owned(),
            Kind::Folder => self.path().join(name),
            Kind::Files => {
                let named = self.outputs.iter().find(|output| output.target.file_name() == Some(name.as_os_str()));
                named.map_or_else(|| self.path().join(name), |output| output.temp.clone())
            }
        }
    }

    /// Writes a small file into the folder being staged; `name` may have folders before it, made as
    /// needed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.path().join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).at(parent, "create")?;
        }
        let mut file = File::create_new(&path).at(&path, "create")?;
        file.write_all(content).at(&path, "write")?;
        if self.sync { file.sync_all().at(&path, "sync") } else { Ok(()) }
    }

    /// Makes the output appear under its name: in one step, or several files one after another, the
    /// first one last, so that a reader who finds it finds them all.
    ///
    /// # Errors
    /// [`Error::Io`]; the old output, if any, is still there then. Of several files those whose
    /// turn had come have their names.
    pub fn commit(mut self) -> Result<()> {
        if self.sync && self.kind == Kind::Folder {
            File::open(self.path()).and_then(|folder| folder.sync_all()).at(self.path(), "sync")?;
        }
        for Output { target, temp, .. } in self.outputs.iter().rev() {
            if self.kind == Kind::Folder && target.exists() {
                // A folder can't be renamed over a full one: the old one steps aside first.
                let old = temp.with_extension("replaced");
                fs::rename(target, &old).at(target, "move aside")?;
                if let Err(error) = fs::rename(temp, target) {
                    let _ = fs::rename(&old, target);
                    return Err(error).at(target, "write");
                }
                fs::remove_dir_all(&old).at(&old, "delete")?;
            } else {
                fs::rename(temp, target).at(target, "write")?;
            }
        }
        self.committed = true;
        if !self.sync {
            return Ok(());
        }
        // The rename itself reaches the disk with the folder that holds the name.
        let Some(Output { target, .. }) = self.outputs.first() else { return Ok(()) };
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|folder| folder.sync_all()).at(parent, "sync")
    }
}

impl Output {
    fn new(target: &Path, overwrite: bool, folder: bool) -> Result<Self> {
        let found = fs::symlink_metadata(target);
        let replaces = found.is_ok();
        match found {
            Ok(_) if !overwrite => return Err(Error::Exists(target.to_owned())),
            Ok(found) if found.is_dir() != folder => {
                let name = |folder| if folder { "a folder" } else { "a file" };
                return Err(Finding::new(target, "output").expected(name(folder)).found(name(!folder)).mismatch());
            }
            Ok(_) if folder => safe_to_replace(target)?,
            _ => {}
        }
        let name = target.file_name().ok_or_else(|| Finding::new(target, "output").expected("a name").mismatch())?;
        let temp = target.with_file_name(format!(".{}.{}.partial", name.to_string_lossy(), std::process::id()));
        Ok(Self { target: target.to_owned(), temp, replaces })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        for Output { temp, .. } in &self.outputs {
            // What has its name already is not under this one any more.
            let _ = if self.kind == Kind::Folder { fs::remove_dir_all(temp) } else { fs::remove_file(temp) };
        }
    }
}

/// Replacing a folder deletes it: only one that plainly is an output of this kind.
fn safe_to_replace(folder: &Path) -> Result<()> {
    let known = ["config.json", "adapter_config.json"].iter().any(|name| folder.join(name).is_file());
    let mut nested = false;
    for entry in fs::read_dir(folder).at(folder, "read")? {
        nested |= entry.and_then(|e| e.file_type()).at(folder, "read")?.is_dir();
    }
    if known && !nested {
        return Ok(());
    }
    Err(Finding::new(folder, "output")
        .expected("a checkpoint or adapter folder without subfolders, to be replaced")
        .found("something else")
        .hint("delete it yourself or choose another name")
        .mismatch())
}

#[cfg(test)]
mod tests;
