//! Outputs appear whole or not at all: everything is written beside the target and renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Finding, IoContext, Result};

/// An output being written. Dropped before [`Staging::commit`], it leaves nothing behind.
pub struct Staging {
    target: PathBuf,
    temp: PathBuf,
    folder: bool,
    committed: bool,
}

impl Staging {
    /// Prepares to write the file `target`.
    ///
    /// # Errors
    /// [`Error::Exists`] where something is there and `overwrite` is false.
    pub fn file(target: &Path, overwrite: bool) -> Result<Self> {
        Self::new(target, overwrite, false)
    }

    /// Prepares to write the folder `target`. With `overwrite`, an existing folder is replaced as
    /// a whole, but only one that holds a checkpoint or an adapter and nothing below it.
    ///
    /// # Errors
    /// [`Error::Exists`], or [`Error::Mismatch`] for a folder that should not be deleted.
    pub fn folder(target: &Path, overwrite: bool) -> Result<Self> {
        let staging = Self::new(target, overwrite, true)?;
        fs::create_dir(&staging.temp).at(&staging.temp, "create")?;
        Ok(staging)
    }

    fn new(target: &Path, overwrite: bool, folder: bool) -> Result<Self> {
        match fs::symlink_metadata(target) {
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
        Ok(Self { target: target.to_owned(), temp, folder, committed: false })
    }

    /// The file or folder to write to until it is committed.
    pub fn path(&self) -> &Path {
        &self.temp
    }

    /// Where `name` of a [`super::FileLayout`] is to be written.
    pub(super) fn path_of(&self, name: &Path) -> PathBuf {
        if self.folder { self.temp.join(name) } else { self.temp.clone() }
    }

    /// Writes a small file into the folder being staged, and sees it to the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.temp.join(name);
        let mut file = File::create_new(&path).at(&path, "create")?;
        file.write_all(content).and_then(|()| file.sync_all()).at(&path, "write")
    }

    /// Makes the output appear under its name, in one step.
    ///
    /// # Errors
    /// [`Error::Io`]; the old output, if any, is still there then.
    pub fn commit(mut self) -> Result<()> {
        if self.folder {
            File::open(&self.temp).and_then(|folder| folder.sync_all()).at(&self.temp, "sync")?;
        }
        if self.folder && self.target.exists() {
            // A folder can't be renamed over a full one: the old one steps aside first.
            let old = self.temp.with_extension("replaced");
            fs::rename(&self.target, &old).at(&self.target, "move aside")?;
            if let Err(error) = fs::rename(&self.temp, &self.target) {
                let _ = fs::rename(&old, &self.target);
                return Err(error).at(&self.target, "write");
            }
            fs::remove_dir_all(&old).at(&old, "delete")?;
        } else {
            fs::rename(&self.temp, &self.target).at(&self.target, "write")?;
        }
        self.committed = true;
        // The rename itself reaches the disk with the folder that holds the name.
        let parent = self.target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|folder| folder.sync_all()).at(parent, "sync")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.committed {
            let _ = if self.folder { fs::remove_dir_all(&self.temp) } else { fs::remove_file(&self.temp) };
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
mod tests {
    use super::*;

    #[test]
    fn dropped_outputs_leave_nothing_and_committed_ones_appear() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.gguf");
        let staging = Staging::file(&target, false).unwrap();
        fs::write(staging.path(), b"half").unwrap();
        drop(staging);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        let staging = Staging::file(&target, false).unwrap();
        fs::write(staging.path(), b"whole").unwrap();
        staging.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"whole");
        assert!(matches!(Staging::file(&target, false), Err(Error::Exists(_))));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn replaces_a_checkpoint_folder_but_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("model");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("thesis.txt"), b"all my work").unwrap();
        assert!(matches!(Staging::folder(&target, true), Err(Error::Mismatch(_))));
        fs::write(target.join("config.json"), b"{}").unwrap();
        let staging = Staging::folder(&target, true).unwrap();
        fs::write(staging.path().join("config.json"), b"[]").unwrap();
        staging.commit().unwrap();
        assert_eq!(fs::read(target.join("config.json")).unwrap(), b"[]");
        assert!(!target.join("thesis.txt").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
