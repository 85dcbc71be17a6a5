//! A model to be looked at: all that stands beside its weights, and of the weights their headers alone, by ranges.
//!
//! The folder is a temporary one. The cache gets nothing but whole files.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::Path;

use super::HubModel;
use super::address::quoted;
use super::cache::make_parent;
use super::client::{Question, broken_io};
use super::fault::{Again, Fault};
use super::fetch::{Failed, Fetch};
use super::files::{self, Weights};
use super::metadata::{self, FileInfo, ModelInfo, agrees};
use crate::error::IoContext;
use crate::formats::safetensors::MAX_HEADER_BYTES;
use crate::source::ValuesRead;

/// How much of a large file is asked for before the length of its header is known. Most headers are shorter.
const FIRST: u64 = 1 << 17;
/// From how many bytes on a file is large.
const LARGE: u64 = 1 << 20;

/// A model whose weights are headers alone, until it is dropped.
#[derive(Debug)]
pub struct Outline {
    /// The folder to look at.
    pub model: HubModel,
    read: ValuesRead,
    /// Deleted with the outline.
    _folder: tempfile::TempDir,
}

impl Outline {
    /// Whether somebody wanted values, which aren't there. What was made of them is wrong.
    pub fn values_were_read(&self) -> bool {
        self.read.get()
    }
}

impl Drop for Outline {
    fn drop(&mut self) {
        self.read.forget();
    }
}

impl Fetch<'_> {
    /// The outline of `revision`; `None` for models that have to be read whole, because they aren't in safetensors or are
    /// adapters, which are small.
    pub(super) fn outline(&self, revision: &str) -> Result<Option<Outline>, Failed> {
        let info = metadata::model(self.client, self.settings, self.name, revision, true)?;
        let snapshot = self.store.snapshot(&info.commit);
        let has = |name: &str| info.names.iter().any(|other| other == name);
        let in_safetensors = |form: &Weights| match form {
            Weights::Files(names) => names.iter().all(|name| name.ends_with(".safetensors")),
            Weights::Indexed(index) => index.ends_with(".safetensors.index.json"),
            Weights::Gguf(_) => false,
        };
        let forms = files::weights(&info.names, self.need);
        if !has("config.json") || has(files::ADAPTER_CONFIG) || forms.is_empty() || !forms.iter().all(in_safetensors) {
            return Ok(None);
        }
        self.files(&info, &snapshot, files::companions(&info.names))?;
        let weights = self.weights(&info, &snapshot, forms)?;
        self.store.keep_commit(&self.name.revision, &info.commit)?;
        snapshot.keep_absences(&info.names);

        let temporary = tempfile::Builder::new().prefix("atombank-").tempdir();
        let folder = temporary.at(std::env::temp_dir(), "make a folder in")?;
        // Named as in the cache, so that messages name the model.
        let path = folder.path().join(self.store.folder.file_name().unwrap_or_default());
        let (read, mut linked) = (ValuesRead::default(), snapshot.names());
        linked.retain(|name| info.names.contains(name));
        for name in &linked {
            let to = path.join(name);
            make_parent(&to)?;
            let from = snapshot.file(name);
            let from = fs::canonicalize(&from).at(&from, "open")?;
            symlink(from, &to).at(&to, "make the link")?;
        }
        for name in weights.iter().filter(|name| !linked.contains(name)) {
            let failed = |fault| Failed { fault, file: name.clone() };
            self.header(&info, name, &path.join(name), &read).map_err(failed)?;
        }
        let model = HubModel { path, id: self.name.id.clone() };
        Ok(Some(Outline { model, read, _folder: folder }))
    }

    /// Writes the outline of one file.
    fn header(&self, info: &ModelInfo, name: &str, path: &Path, read: &ValuesRead) -> Result<(), Fault> {
        let address =
            format!("{}/{}/resolve/{}/{}", self.settings.endpoint, self.name.id, info.commit, quoted(name, b"/"));
        let known = metadata::file(self.client, self.name, &address, &info.commit, name)?;
        let Some(size) = known.size else {
            return Err(Fault::odd(&address, "the file's length", "none"));
        };
        let blob = self.store.blob(&known.etag);
        if fs::metadata(&blob).is_ok_and(|found| found.len() == size) {
            return symlink(fs::canonicalize(&blob).unwrap_or(blob), path)
                .at(path, "make the link")
                .map_err(Fault::Own);
        }
        let title = format!("{}: {name}", self.name.text);
        let first = if size >= LARGE { FIRST } else { size.min(8) };
        let mut head = self.client.with_tries(&title, || self.start(&known, &info.commit, first))?;
        let length = head.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
        if length > MAX_HEADER_BYTES || length.saturating_add(8) > size {
            let expected = format!("a header of at most {} bytes", MAX_HEADER_BYTES.min(size.saturating_sub(8)));
            return Err(Fault::odd(&address, expected, format_args!("one of {length}")));
        }
        if length + 8 > head.len() as u64 {
            head = self.client.with_tries(&title, || self.start(&known, &info.commit, length + 8))?;
        }
        head.truncate(length as usize + 8);
        let mut file =
            OpenOptions::new().write(true).create_new(true).open(path).at(path, "create").map_err(Fault::Own)?;
        let written = file.write_all(&head).and_then(|()| file.set_len(size));
        written.at(path, "write").map_err(Fault::Own)?;
        read.watch(&file, path).map_err(Fault::Own)
    }

    /// The first `length` bytes of a file.
    fn start(&self, known: &FileInfo, commit: &str, length: u64) -> Result<Vec<u8>, Fault> {
        let range = format!("bytes=0-{}", length.max(1) - 1);
        let answer = self.client.ask(Question::Content, &known.address, Some(&range))?;
        agrees(&answer, known, commit)?;
        if answer.status() == 206 && !matches!(answer.range(), Some((0, _))) {
            return Err(Fault::odd(&known.address, "the file from its first byte", "another part of it"));
        }
        let (address, body) = answer.into_body();
        let mut bytes = Vec::new();
        let came = body.take(length).read_to_end(&mut bytes);
        came.map_err(|error| broken_io(&address, &error, self.settings.download_timeout))?;
        match bytes.len() as u64 == length {
            true => Ok(bytes),
            false => Err(Fault::transfer(&address, format_args!("it ended after {} bytes", bytes.len()), Again::Often)),
        }
    }
}
