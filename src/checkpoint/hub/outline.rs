//! A model before its weights: all that stands beside them, and of the weights their headers alone, by ranges. It is
//! enough to say what a model is and to plan what becomes of it, and so to refuse what can't be done before gigabytes
//! are fetched.
//!
//! The folder is a temporary one. The cache gets nothing but whole files.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::address::shown;
use super::cache::{Snapshot, Store, make_parent};
use super::client::{Client, Question, Tries, broken_io};
use super::fault::{Again, Fault};
use super::fetch::{Chosen, Failed, Fetch};
use super::files::Need;
use super::metadata::{self, FileInfo, ModelInfo, agrees};
use super::name::Name;
use super::{Event, HubModel, HubSettings, Looked};
use crate::error::{Error, IoContext, Result};
use crate::formats::gguf::{self, GgufFile};
use crate::formats::safetensors::{MAX_HEADER_BYTES, SafetensorsFile};
use crate::plan::Unfinished;
use crate::source::ValuesRead;

/// The most that is asked for before the length of a header is known, and the share of a file that may be. Most headers are
/// shorter.
const FIRST: u64 = 1 << 17;
const FIRST_SHARE: u64 = 64;
/// The least that is asked for of a GGUF, nothing at whose beginning says how long its header is.
const LEAST_OF_GGUF: u64 = 1 << 12;
/// The longest header of a GGUF that is fetched by itself. A vocabulary of a million words needs less.
const MAX_GGUF_HEADER: u64 = 1 << 28;

/// How much of a file's beginning is kept in memory until the file is fetched.
const MAX_KEPT: usize = 1 << 20;

/// A model whose weights are headers alone, until it is dropped.
pub struct Outline {
    /// The folder, or the GGUF, to look at.
    pub model: HubModel,
    name: Name,
    need: Need,
    info: ModelInfo,
    /// The temporary folder, and the one of the cache that it stands for.
    places: (PathBuf, PathBuf),
    read: ValuesRead,
    folder: Option<Folder>,
}

/// A temporary folder: deleted with this, and when a signal ends the program.
struct Folder {
    folder: tempfile::TempDir,
    _listed: Unfinished,
}

impl Folder {
    fn new() -> Result<Self> {
        let place = std::env::temp_dir();
        // As others may name it, too.
        let place = fs::canonicalize(&place).unwrap_or(place);
        let folder = tempfile::Builder::new().prefix("atombank-").tempdir_in(&place).at(&place, "make a folder in")?;
        let (listed, ()) = Unfinished::make(folder.path(), |_| Ok(())).at(folder.path(), "open")?;
        Ok(Self { folder, _listed: listed })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Outline {
    /// Whether somebody wanted values, which aren't there. What was made of them is wrong.
    pub fn values_were_wanted(&self) -> bool {
        self.read.get()
    }

    /// Fetches what is missing of the model, at the commit of the outline, whose files are deleted.
    ///
    /// # Errors
    /// As [`super::resolve`].
    pub fn fetch(mut self, settings: &HubSettings, tell: &dyn Fn(Event<'_>)) -> Result<HubModel> {
        // Before a download that may be ended from outside.
        self.close();
        let client = Client::new(settings, tell)?;
        let store = Store::new(&settings.cache, &self.name);
        let fetch = Fetch { name: &self.name, settings, client: &client, store: &store, need: self.need };
        let path = fetch.whole(&self.info).map_err(|failed| failed.into_error(&self.name, settings))?;
        Ok(HubModel { path, id: self.name.id.clone() })
    }

    /// `text` with the model's place in the cache where it names the temporary folder.
    pub fn with_real_paths(&self, text: &str) -> String {
        let (temporary, real) = &self.places;
        text.replace(&*temporary.to_string_lossy(), &real.to_string_lossy())
    }

    /// The same of an error.
    pub fn error_with_real_paths(&self, error: Error) -> Error {
        error.map_texts(&|text| self.with_real_paths(text))
    }
}

impl Outline {
    fn close(&mut self) {
        self.read.forget();
        self.folder = None;
    }
}

impl Drop for Outline {
    fn drop(&mut self) {
        self.close();
    }
}

impl Fetch<'_> {
    /// The outline of `revision`. What has no headers that could be fetched by themselves is fetched whole, as far as
    /// `need` asks for it. `tries` is as in [`Fetch::run`].
    pub(super) fn look(&self, revision: &str, tries: bool, need: Need) -> Result<Looked, Failed> {
        let info = metadata::model(self.client, self.settings, self.name, revision, tries)?;
        let snapshot = self.store.snapshot(&info.commit);
        let chosen = self.chosen(&info, &snapshot)?;
        let has_header = |name: &String| name.ends_with(".safetensors") || name.ends_with(".gguf");
        let is_missing = |name: &String| !snapshot.has(name) || self.settings.refresh;
        if chosen.weights.iter().any(is_missing) && chosen.weights.iter().all(has_header) {
            match self.headers(&info, &snapshot, &chosen) {
                Ok((folder, read)) => {
                    self.remember(&info, &snapshot)?;
                    let temporary = folder.path().join(&info.commit);
                    return Ok(Looked::Outline(Outline {
                        model: HubModel { path: chosen.path_in(&temporary), id: self.name.id.clone() },
                        name: self.name.clone(),
                        need,
                        places: (temporary, snapshot.path()),
                        info,
                        read,
                        folder: Some(folder),
                    }));
                }
                Err(failed) if failed.fault.tries() > 0 => return Err(failed),
                // Only what is whole is held against a hash: that says whether the file or its way is at fault.
                Err(_) => {}
            }
        }
        let path = Fetch { need, ..*self }.whole(&info)?;
        Ok(Looked::Whole(HubModel { path, id: self.name.id.clone() }))
    }

    /// A temporary folder with a snapshot's files, and headers for the weights that it lacks.
    fn headers(&self, info: &ModelInfo, snapshot: &Snapshot, chosen: &Chosen) -> Result<(Folder, ValuesRead), Failed> {
        let folder = Folder::new()?;
        // Named as in the cache: a model may be called by its folder's name.
        let path = folder.path().join(&info.commit);
        let is_outlined =
            |name: &String| chosen.weights.contains(name) && (self.settings.refresh || !snapshot.has(name));
        let mut linked = snapshot.names();
        linked.retain(|name| info.names.contains(name) && !is_outlined(name));
        for name in &linked {
            link(&snapshot.file(name), &path.join(name))?;
        }
        let read = ValuesRead::default();
        for name in chosen.weights.iter().filter(|name| is_outlined(name)) {
            let failed = |fault| Failed { fault, file: name.clone() };
            self.header(info, name, &path.join(name), &read).map_err(failed)?;
        }
        Ok((folder, read))
    }

    /// Writes the outline of one file, or a link to the file where the cache has it.
    fn header(&self, info: &ModelInfo, name: &str, path: &Path, read: &ValuesRead) -> Result<(), Fault> {
        let known = self.known(info, name)?;
        let Some(size) = known.size else {
            return Err(Fault::odd(&known.address, "the file's length", "none"));
        };
        let blob = self.store.blob(&known.etag);
        if fs::metadata(&blob).is_ok_and(|found| found.len() == size) {
            return link(&blob, path).map_err(Fault::Own);
        }
        let is_gguf = name.ends_with(".gguf");
        let title = format!("{}: {name}", self.name.text);
        let (mut head, mut tries) = (Vec::new(), Tries::default());
        loop {
            let wanted = match is_gguf {
                true => gguf_head(&known, size, &head)?,
                false => safetensors_head(&known, size, &head)?,
            };
            if wanted <= head.len() as u64 {
                // What came with the header isn't asked for again.
                if head.len() <= MAX_KEPT {
                    info.starts.borrow_mut().insert(name.to_owned(), head.clone());
                }
                head.truncate(wanted as usize);
                break;
            }
            if let Err(fault) = self.more(&known, &info.commit, wanted, &mut head) {
                self.client.pause(&title, fault, &mut tries)?;
            }
        }
        let written = || -> Result<()> {
            make_parent(path)?;
            let mut file = OpenOptions::new().write(true).create_new(true).open(path).at(path, "create")?;
            file.write_all(&head).and_then(|()| file.set_len(size)).at(path, "write")?;
            read.watch(&file, path)?;
            // Whether it is a header at all.
            match is_gguf {
                true => GgufFile::open(path).map(|_| ()),
                false => SafetensorsFile::open(path).map(|_| ()),
            }
        };
        written().map_err(Fault::Own)
    }

    /// Appends to the beginning of a file what is missing of its first `end` bytes.
    fn more(&self, known: &FileInfo, commit: &str, end: u64, head: &mut Vec<u8>) -> Result<(), Fault> {
        let start = head.len() as u64;
        let range = format!("bytes={start}-{}", end - 1);
        let answer = self.client.ask(Question::Content, &known.address, Some(&range))?;
        agrees(&answer, known, commit)?;
        // A server without ranges begins at the beginning.
        let first = match answer.status() {
            206 => answer.range().map(|(first, _)| first),
            _ => Some(0),
        };
        let Some(skipped) = first.and_then(|first| start.checked_sub(first)) else {
            return Err(Fault::odd(&known.address, format_args!("the file from byte {start}"), "another part of it"));
        };
        let (address, mut body) = answer.into_body();
        let came = io::copy(&mut body.by_ref().take(skipped), &mut io::sink())
            .and_then(|_| body.take(end - start).read_to_end(head));
        came.map_err(|error| broken_io(&address, &error, self.settings.download_timeout))?;
        match head.len() as u64 == end {
            true => Ok(()),
            false => Err(Fault::transfer(&address, format_args!("it ended after {} bytes", head.len()), Again::Often)),
        }
    }
}

/// How much of a safetensors file is its header, or has to be known to say that.
fn safetensors_head(known: &FileInfo, size: u64, head: &[u8]) -> Result<u64, Fault> {
    let Some(length) = head.first_chunk().map(|length| u64::from_le_bytes(*length)) else {
        return Ok((size / FIRST_SHARE).clamp(8, FIRST));
    };
    let most = MAX_HEADER_BYTES.min(size.saturating_sub(8));
    if length > most {
        let expected = format!("a header of at most {most} bytes");
        return Err(Fault::odd(shown(&known.address), expected, format_args!("one of {length}")));
    }
    Ok(length + 8)
}

/// The same of a GGUF.
fn gguf_head(known: &FileInfo, size: u64, head: &[u8]) -> Result<u64, Fault> {
    let most = size.min(MAX_GGUF_HEADER);
    let have = head.len() as u64;
    if have == 0 {
        return Ok(most.min((size / FIRST_SHARE).clamp(LEAST_OF_GGUF, FIRST)));
    }
    match gguf::header_end(Path::new(&known.address), head).map_err(Fault::Own)? {
        Some(end) => Ok(end),
        // Four times as much, but little of the values behind it.
        None if have < most => {
            let more = (have * 3).min((most - have) / 4).max(LEAST_OF_GGUF);
            Ok(most.min(have + more))
        }
        None => Err(Fault::odd(&known.address, format_args!("a header of at most {most} bytes"), "a longer one")),
    }
}

/// A link to the file at `from`, wherever that is.
fn link(from: &Path, to: &Path) -> Result<()> {
    make_parent(to)?;
    let from = fs::canonicalize(from).at(from, "open")?;
    symlink(from, to).at(to, "make the link")
}
