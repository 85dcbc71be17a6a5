//! Outputs appear whole or not at all: until it is complete, an output has no name or a temporary one.
//!
//! Where the file system can make files without a name (`O_TMPFILE`), an unfinished file disappears with its process,
//! even after kill -9. Elsewhere, and for folders, everything is written beside the target under the name
//! `.NAME.PID.partial` and renamed. Such a temporary is locked while its process lives. [`remove_unfinished`] deletes
//! the temporaries of this process, and the next run with the same target deletes those of dead processes.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::unfinished::{self, Unfinished};
use crate::error::{Error, Finding, IoContext, Result};

pub use super::unfinished::remove_unfinished;

/// An output being written. Dropped before [`Staging::commit`], it leaves nothing behind.
pub struct Staging {
    form: Form,
    /// In the order in which names were given; always one, except for [`Form::Files`].
    outputs: Vec<Output>,
    sync: bool,
    /// Whether files are made without a name where that is possible.
    unnamed: bool,
    committed: bool,
}

/// The kind of output.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    File,
    Folder,
    Files,
}

/// A target, and the temporary that holds its content until it is complete.
struct Output {
    /// The last part of the requested name. Where that is a link, the target's name differs.
    name: PathBuf,
    target: PathBuf,
    temp: PathBuf,
    /// Whether something exists under the target's name already.
    replaces: bool,
    /// The file that [`Staging::create`] made.
    made: OnceLock<Made>,
}

/// A file that is being written.
enum Made {
    /// It has no name yet.
    Unnamed(File),
    /// It has the temporary name.
    Named { _unfinished: Unfinished },
}

impl Staging {
    /// Prepares to write the file `target`. A link is followed: the file it points to is written.
    ///
    /// # Errors
    /// [`Error::Exists`] where something is there and `overwrite` is false; [`Error::Mismatch`] for a
    /// folder, a device, a pipe or a socket, and where the folder to write into doesn't exist.
    pub fn file(target: &Path, overwrite: bool) -> Result<Self> {
        Ok(Self::new(Form::File, vec![Output::new(target, overwrite, false)?]))
    }

    /// Prepares to write several files side by side into `folder`, such as the shards of a model. Other files in the
    /// folder stay. All are written before the first gets its name.
    ///
    /// # Errors
    /// As [`Staging::file`] for any of them; [`Error::Mismatch`] for a name that isn't a plain one.
    pub fn files<'a>(folder: &Path, names: impl IntoIterator<Item = &'a Path>, overwrite: bool) -> Result<Self> {
        let mut outputs: Vec<Output> = Vec::new();
        for name in names {
            if name.file_name() != Some(name.as_os_str()) || outputs.iter().any(|output| output.name == name) {
                let finding = Finding::new(folder, "output").expected("names of files in it, each once");
                return Err(finding.found(format_args!("{:?}", name)).mismatch());
            }
            outputs.push(Output::new(&folder.join(name), overwrite, false)?);
        }
        Ok(Self::new(Form::Files, outputs))
    }

    /// Prepares to write the folder `target`. With `overwrite`, an existing folder is replaced as a whole, but only if
    /// it holds a checkpoint or an adapter and no folders.
    ///
    /// # Errors
    /// [`Error::Exists`], or [`Error::Mismatch`] for a folder that should not be deleted.
    pub fn folder(target: &Path, overwrite: bool) -> Result<Self> {
        let staging = Self::new(Form::Folder, vec![Output::new(target, overwrite, true)?]);
        staging.outputs[0].make_named(|temp| fs::create_dir(temp))?;
        Ok(staging)
    }

    /// Fails where writing `target` would fail at once. Call it before a long computation, not after it.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::Mismatch`] where the folder to write into doesn't exist.
    pub fn check(target: &Path, overwrite: bool) -> Result<()> {
        free_target(target, overwrite).map(|_| ())
    }

    fn new(form: Form, outputs: Vec<Output>) -> Self {
        Self { form, outputs, sync: true, unnamed: true, committed: false }
    }

    /// Behaves as on a file system that can't make files without a name.
    #[cfg(test)]
    fn named(mut self) -> Self {
        self.unnamed = false;
        self
    }

    /// Whether to wait until everything is on the disk before it gets its name. The default is to wait. Without that,
    /// the output is complete for every reader, but a power cut soon after can lose part of it, as after `cp`. That is
    /// acceptable for output that can be made again. An output that replaces another is always waited for, so that the
    /// old one goes only when the new one is safe.
    #[must_use]
    pub fn sync(mut self, sync: bool) -> Self {
        self.sync = sync || self.outputs.iter().any(|output| output.replaces);
        self
    }

    /// Whether what is written here has to be on the disk before it gets its name.
    pub(super) fn syncs(&self) -> bool {
        self.sync
    }

    /// The temporary folder, or the temporary name of the (first) file.
    pub fn path(&self) -> &Path {
        self.outputs.first().map_or(Path::new(""), |output| &output.temp)
    }

    /// Creates the file `name` of a [`super::FileLayout`], open for reading and writing. Also returns the path under
    /// which messages name it.
    pub(super) fn create(&self, name: &Path) -> Result<(File, PathBuf)> {
        let output = match self.form {
            Form::Folder => {
                let shown = self.outputs[0].target.join(name);
                let path = self.path().join(name);
                return Ok((new_file(&path).at(&shown, "create")?, shown));
            }
            Form::File => self.outputs.first(),
            Form::Files => self.outputs.iter().find(|output| output.name == name),
        };
        let missing = || Finding::new(name, "output").expected("one of the files that were announced").mismatch();
        let output = output.ok_or_else(missing)?;
        Ok((output.create(self.unnamed)?, output.target.clone()))
    }

    /// Writes a small file into the folder being staged. `name` may have parent folders, which are made as needed.
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

    /// Gives the output its name: in one step, or several files one after another. The first file comes last, so that a
    /// reader who finds it finds them all.
    ///
    /// # Errors
    /// [`Error::Io`]; the old output, if any, is still there then. [`Error::Exists`] where something has appeared under
    /// the name of a new file since [`Staging`] was made. If that happens to one of several files, those before it have
    /// been named already.
    pub fn commit(mut self) -> Result<()> {
        if self.sync && self.form == Form::Folder {
            File::open(self.path()).and_then(|folder| folder.sync_all()).at(self.path(), "sync")?;
        }
        // While this lock is held, a signal that would end the process waits until all names are in place.
        let _names = unfinished::lock();
        for output in self.outputs.iter().rev() {
            match self.form {
                Form::Folder => output.rename_folder()?,
                Form::File | Form::Files => output.name()?,
            }
        }
        self.committed = true;
        if !self.sync {
            return Ok(());
        }
        // A rename reaches the disk when the folder that holds the name is synced.
        let Some(Output { target, .. }) = self.outputs.first() else { return Ok(()) };
        let parent = parent(target);
        File::open(parent).and_then(|folder| folder.sync_all()).at(parent, "sync")
    }
}

impl Output {
    fn new(asked: &Path, overwrite: bool, folder: bool) -> Result<Self> {
        let (target, found) = free_target(asked, overwrite)?;
        if let Some(found) = &found {
            check_replaceable(&target, found, folder)?;
        }
        let name = |path: &Path| path.file_name().map(PathBuf::from);
        let no_name = || Finding::new(asked, "output").expected("a name").mismatch();
        let temp = unfinished::temporary(&target).ok_or_else(no_name)?;
        unfinished::remove_abandoned(&target);
        let name = name(asked).ok_or_else(no_name)?;
        Ok(Self { name, target, temp, replaces: found.is_some(), made: OnceLock::new() })
    }

    /// Makes the temporary file or folder and registers it, so that a signal deletes it.
    fn make_named<T>(&self, make: impl FnOnce(&Path) -> std::io::Result<T>) -> Result<T> {
        let (unfinished, made) = Unfinished::make(&self.temp, make).at(&self.temp, "create")?;
        let _ = self.made.set(Made::Named { _unfinished: unfinished });
        Ok(made)
    }

    fn create(&self, unnamed: bool) -> Result<File> {
        if unnamed && let Some(file) = unnamed_file(parent(&self.target)) {
            let kept = file.try_clone().at(&self.target, "create")?;
            let _ = self.made.set(Made::Unnamed(kept));
            return Ok(file);
        }
        self.make_named(new_file)
    }

    /// Gives the complete output its name.
    fn name(&self) -> Result<()> {
        let Some(Made::Unnamed(file)) = self.made.get() else {
            return fs::rename(&self.temp, &self.target).at(&self.target, "write");
        };
        if !self.replaces {
            return match link(file, &self.target) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    Err(Error::Exists(self.target.clone()))
                }
                done => done.at(&self.target, "write"),
            };
        }
        // A link can't replace an existing name, but a rename can.
        link(file, &self.temp).at(&self.temp, "write")?;
        fs::rename(&self.temp, &self.target).at(&self.target, "write")
    }

    fn rename_folder(&self) -> Result<()> {
        let Output { target, temp, .. } = self;
        if !target.exists() {
            return fs::rename(temp, target).at(target, "write");
        }
        // A folder can't be renamed over a non-empty one, so the old one is moved aside first.
        let old = temp.with_extension("replaced");
        fs::rename(target, &old).at(target, "move aside")?;
        if let Err(error) = fs::rename(temp, target) {
            let _ = fs::rename(&old, target);
            return Err(error).at(target, "write");
        }
        fs::remove_dir_all(&old).at(&old, "delete")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        for Output { temp, .. } in &self.outputs {
            // An output that has its final name already no longer exists under this one.
            let _ = if self.form == Form::Folder { fs::remove_dir_all(temp) } else { fs::remove_file(temp) };
        }
    }
}

/// The folder that holds `path`.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a new file. It is readable too, because checksums are computed from what was written.
fn new_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

/// Makes a file without a name in `folder`; `None` where the system can't make one, or couldn't name it later.
fn unnamed_file(folder: &Path) -> Option<File> {
    let flags = rustix::fs::OFlags::TMPFILE.bits().cast_signed();
    let file = OpenOptions::new().read(true).write(true).mode(0o666).custom_flags(flags).open(folder).ok()?;
    open_file_path(&file).exists().then_some(file)
}

/// Gives a file without a name the name `path`, which must be free.
fn link(file: &File, path: &Path) -> std::io::Result<()> {
    use rustix::fs::{AtFlags, CWD, linkat};
    Ok(linkat(CWD, open_file_path(file), CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

/// The path under which Linux shows an open file.
fn open_file_path(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// The target of a symbolic link. It need not exist.
fn followed(link: &Path) -> Result<PathBuf> {
    let mut path = link.to_owned();
    // Linux follows at most 40 links, too.
    for _ in 0..40 {
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_symlink() => {
                path = parent(&path).join(fs::read_link(&path).at(&path, "read")?);
            }
            _ => return Ok(path),
        }
    }
    Err(Finding::new(link, "output")
        .expected("a link to a file or a folder")
        .found("links that lead back to themselves")
        .mismatch())
}

/// The path to which an output called `asked` is written, and what exists there now. Links are followed. The folder for
/// a new output must exist.
fn free_target(asked: &Path, overwrite: bool) -> Result<(PathBuf, Option<Metadata>)> {
    let found = fs::symlink_metadata(asked).ok();
    if found.is_some() && !overwrite {
        return Err(Error::Exists(asked.to_owned()));
    }
    let target = match &found {
        Some(found) if found.is_symlink() => followed(asked)?,
        _ => asked.to_owned(),
    };
    let found = fs::symlink_metadata(&target).ok();
    if found.is_none() {
        check_parent(&target)?;
    }
    Ok((target, found))
}

/// Only files and folders can be replaced, each by its own kind.
fn check_replaceable(target: &Path, found: &Metadata, folder: bool) -> Result<()> {
    let kind = found.file_type();
    let is = match () {
        () if kind.is_file() => "a file",
        () if kind.is_dir() => "a folder",
        () if kind.is_block_device() || kind.is_char_device() => "a device",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "something else",
    };
    let expected = if folder { "a folder" } else { "a file" };
    if is != expected {
        return Err(Finding::new(target, "output").expected(expected).found(is).mismatch());
    }
    if folder { safe_to_replace(target) } else { Ok(()) }
}

/// The folder for a new output must exist.
fn check_parent(target: &Path) -> Result<()> {
    let folder = parent(target);
    if folder.is_dir() {
        return Ok(());
    }
    let found = if folder.exists() { "a file" } else { "nothing" };
    Err(Finding::new(folder, "folder of the output").expected("a folder").found(found).hint("make it first").mismatch())
}

/// Replacing a folder deletes it, so it must clearly be an output of this kind.
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
