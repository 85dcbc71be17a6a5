//! Fetches the headers of weights by ranges. The result is a file of the same length, with its header, and zeros
//! instead of values.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::cache::make_parent;
use super::client::{Question, Tries, broken_io};
use super::fault::{Again, Fault};
use super::fetch::Fetch;
use super::metadata::{FileInfo, ModelInfo, agrees};
use super::outline::link;
use crate::error::{IoContext, Result};
use crate::formats::gguf::{self, GgufFile};
use crate::formats::pytorch::{self, PytorchFile};
use crate::formats::safetensors::{MAX_HEADER_BYTES, SafetensorsFile};
use crate::source::Watched;

/// The first request, while the length of a header isn't known: this share of the file, but at most `FIRST` bytes. Most
/// headers are shorter.
const FIRST: u64 = 1 << 17;
const FIRST_SHARE: u64 = 64;
/// The smallest request for a GGUF. The beginning of a GGUF doesn't say how long its header is.
const LEAST_OF_GGUF: u64 = 1 << 12;
/// The longest header of a GGUF that is fetched on its own. A vocabulary of a million words needs less.
const MAX_GGUF_HEADER: u64 = 1 << 28;
/// The limits for the first request at the end of a PyTorch file. The zip directory there has about 120 bytes per
/// tensor.
const LEAST_OF_PYTORCH: u64 = 1 << 14;
const MAX_OF_PYTORCH: u64 = 1 << 18;
/// How much of a file's beginning is kept in memory until the file itself is fetched.
const MAX_KEPT: usize = 1 << 20;

/// The formats of weights whose headers can be fetched on their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Safetensors,
    Gguf,
    /// A zip file of PyTorch. Older PyTorch files have the same name, and are recognized by the missing directory at
    /// the end.
    Pytorch,
}

impl Form {
    pub(super) fn of(name: &str) -> Option<Self> {
        let endings = [(".safetensors", Form::Safetensors), (".gguf", Form::Gguf), (".bin", Form::Pytorch)];
        endings.into_iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, form)| form)
    }
}

/// A file on the hub, and the local file that gets its header.
struct Outlined<'a> {
    fetch: &'a Fetch<'a>,
    info: &'a ModelInfo,
    name: &'a str,
    known: FileInfo,
    size: u64,
    path: &'a Path,
    file: File,
}

impl Fetch<'_> {
    /// Writes the outline of one file, or a link to the file if the cache has it.
    pub(super) fn header(
        &self,
        info: &ModelInfo,
        (name, form): (&str, Form),
        path: &Path,
        watched: &Watched,
    ) -> Result<(), Fault> {
        let known = self.known(info, name)?;
        let Some(size) = known.size else {
            return Err(Fault::odd(&known.address, "the file's length", "none"));
        };
        let blob = self.store.blob(&known.etag);
        if fs::metadata(&blob).is_ok_and(|found| found.len() == size) {
            return link(&blob, path).map_err(Fault::Own);
        }
        let file = empty(path, size, watched).map_err(Fault::Own)?;
        let outlined = Outlined { fetch: self, info, name, known, size, path, file };
        match form {
            Form::Safetensors => outlined.beginning(safetensors_head)?,
            Form::Gguf => outlined.beginning(gguf_head)?,
            Form::Pytorch => outlined.records()?,
        }
        // Check that the header can be read.
        let opened = match form {
            Form::Safetensors => SafetensorsFile::open(path).map(|_| ()),
            Form::Gguf => GgufFile::open(path).map(|_| ()),
            Form::Pytorch => PytorchFile::open_whole(path, None).map(|_| ()),
        };
        opened.map_err(Fault::Own)
    }
}

/// Creates a file of `size` zeros, which take no space on most disks.
fn empty(path: &Path, size: u64, watched: &Watched) -> Result<File> {
    make_parent(path)?;
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).at(path, "create")?;
    file.set_len(size).at(path, "write")?;
    watched.add(&file, path)?;
    Ok(file)
}

impl Outlined<'_> {
    fn put(&self, bytes: &[u8], at: u64) -> Result<(), Fault> {
        self.file.write_all_at(bytes, at).at(self.path, "write").map_err(Fault::Own)
    }

    /// Fetches a header at the beginning of the file. Given the bytes fetched so far, `wanted` returns the length of
    /// the header, or how many bytes it needs to find out.
    fn beginning(&self, wanted: impl Fn(&FileInfo, u64, &[u8]) -> Result<u64, Fault>) -> Result<(), Fault> {
        let mut head = Vec::new();
        loop {
            let wanted = wanted(&self.known, self.size, &head)?;
            if wanted <= head.len() as u64 {
                // Bytes that came with the header aren't requested again.
                if head.len() <= MAX_KEPT {
                    self.info.starts.borrow_mut().insert(self.name.to_owned(), head.clone());
                }
                return self.put(&head[..wanted as usize], 0);
            }
            self.append(wanted, 0, &mut head)?;
        }
    }

    /// Fetches a zip's directory, which is at its end, and the records that describe its storages. The local headers in
    /// front of the storages themselves are built from the directory.
    fn records(&self) -> Result<(), Fault> {
        let share = (self.size / FIRST_SHARE).clamp(LEAST_OF_PYTORCH, MAX_OF_PYTORCH);
        let end = self.size.saturating_sub(share)..self.size;
        self.put(&self.piece(end.clone())?, end.start)?;
        for record in pytorch::records(self.path).map_err(Fault::Own)? {
            match record.header {
                Some(header) => self.put(&header, record.place.start)?,
                None => self.put(&self.piece(record.place.clone())?, record.place.start)?,
            }
        }
        Ok(())
    }

    /// Returns the bytes of the file in `place`.
    fn piece(&self, place: Range<u64>) -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::new();
        self.append(place.end, place.start, &mut bytes)?;
        Ok(bytes)
    }

    /// Appends the file's bytes up to `end` to `bytes`, which begin at `start` of the file.
    fn append(&self, end: u64, start: u64, bytes: &mut Vec<u8>) -> Result<(), Fault> {
        let title = format!("{}: {}", self.fetch.name.text, self.name);
        let mut tries = Tries::default();
        while start + (bytes.len() as u64) < end {
            if let Err(fault) = self.transfer(start + bytes.len() as u64..end, bytes) {
                self.fetch.client.pause(&title, fault, &mut tries)?;
            }
        }
        Ok(())
    }

    /// Requests the bytes in `place` once, and appends those that arrive.
    fn transfer(&self, place: Range<u64>, bytes: &mut Vec<u8>) -> Result<(), Fault> {
        let Fetch { client, settings, .. } = self.fetch;
        let range = format!("bytes={}-{}", place.start, place.end - 1);
        let answer = client.ask(Question::Content, &self.known.address, Some(&range))?;
        agrees(&answer, &self.known, &self.info.commit)?;
        // A server that doesn't support ranges sends the file from its beginning.
        let first = match answer.status() {
            206 => answer.range().map(|(first, _)| first),
            _ => Some(0),
        };
        let Some(skipped) = first.and_then(|first| place.start.checked_sub(first)) else {
            let expected = format!("the file from byte {}", place.start);
            return Err(Fault::odd(&self.known.address, expected, "another part of it"));
        };
        let (address, mut body) = answer.into_body();
        let came = io::copy(&mut body.by_ref().take(skipped), &mut io::sink())
            .and_then(|_| body.take(place.end - place.start).read_to_end(bytes));
        let came = came.map_err(|error| broken_io(&address, &error, settings.download_timeout))? as u64;
        match came == place.end - place.start {
            true => Ok(()),
            false => Err(Fault::transfer(&address, format_args!("it ended after {came} bytes"), Again::Often)),
        }
    }
}

/// Returns the length of a safetensors file's header, or how many bytes are needed to find out.
fn safetensors_head(known: &FileInfo, size: u64, head: &[u8]) -> Result<u64, Fault> {
    let most = MAX_HEADER_BYTES.min(size.saturating_sub(8));
    let length = match head.first_chunk() {
        Some(length) => u64::from_le_bytes(*length),
        None if size >= 8 => return Ok((size / FIRST_SHARE).clamp(8, FIRST)),
        None => size,
    };
    if length > most {
        let expected = format!("a header of at most {most} bytes");
        return Err(Fault::odd(&known.address, expected, format_args!("one of {length}")));
    }
    Ok(length + 8)
}

/// Does the same for a GGUF.
fn gguf_head(known: &FileInfo, size: u64, head: &[u8]) -> Result<u64, Fault> {
    let most = size.min(MAX_GGUF_HEADER);
    let have = head.len() as u64;
    if have == 0 {
        return Ok(most.min((size / FIRST_SHARE).clamp(LEAST_OF_GGUF, FIRST)));
    }
    match gguf::header_end(Path::new(&known.address), head).map_err(Fault::Own)? {
        Some(end) => Ok(end),
        // Ask for four times as much, but for only a small part of the values after the header.
        None if have < most => {
            let more = (have * 3).min((most - have) / 4).max(LEAST_OF_GGUF);
            Ok(most.min(have + more))
        }
        None => Err(Fault::odd(&known.address, format_args!("a header of at most {most} bytes"), "a longer one")),
    }
}
