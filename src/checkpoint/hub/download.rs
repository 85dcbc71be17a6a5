//! Downloads one content into the cache.
//!
//! The bytes are collected in a partial file in the folder of the contents. A later try continues where an earlier one
//! ended. The file gets its final name only when its hash is right, so every program can rely on the contents in the
//! cache.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cache::{Store, make_parent};
use super::client::{Client, Question, Tries, broken_io};
use super::digest::{Digest, Verdict};
use super::fault::{Again, Fault};
use super::lock::Lock;
use super::metadata::{FileInfo, agrees};
use super::{Download, Event};
use crate::error::{Error, IoContext};

/// How many bytes a broken-off try must bring to count as progress.
const GETS_ON: u64 = 1 << 18;

/// A content to download.
pub(super) struct Wanted<'a> {
    pub(super) store: &'a Store,
    pub(super) info: &'a FileInfo,
    /// The commit that contains it.
    pub(super) commit: &'a str,
    /// The file's name in the repository.
    pub(super) file: &'a str,
    /// The names of the model and the file, for notes.
    pub(super) title: String,
    /// How long a download may wait without receiving anything.
    pub(super) timeout: Duration,
    /// The first bytes, if they have already been fetched. They are used if the cache has no part of the content.
    pub(super) start: Cell<Vec<u8>>,
}

/// The file that collects a content, and its state so far.
struct Part {
    path: PathBuf,
    file: File,
    len: u64,
    digest: Digest,
    /// Whether the server ignored a range. If so, the content is requested from its beginning.
    from_start: bool,
    /// Whether some of its bytes came from an earlier request.
    resumed: bool,
}

impl Wanted<'_> {
    /// Downloads the content into the cache unless it is there, and returns its path.
    pub(super) fn fetch(&self, client: &Client<'_>) -> Result<PathBuf, Fault> {
        let etag = &self.info.etag;
        let blob = self.store.blob(etag);
        if self.is_there(&blob) {
            return Ok(blob);
        }
        let shared = self.store.part(etag);
        make_parent(&shared).map_err(Fault::Own)?;
        // Downloads end by themselves when nothing arrives; their pauses are shorter than this.
        let patience = self.timeout * 60;
        let note = |text: &str| client.note(&format!("{}: {text}", self.title));
        let lock = Lock::wait(&self.store.lock(etag), &shared, patience, &note).map_err(Fault::Own)?;
        if self.is_there(&blob) {
            return Ok(blob);
        }
        if fs::symlink_metadata(&blob).is_ok() {
            note("the cache has another content under its ETag: fetched again");
        }
        // Without a lock, another process may write to the same partial file.
        let part = match lock.holds() {
            true => shared,
            false => shared.with_file_name(format!("{etag}.{:08x}.incomplete", std::process::id())),
        };
        let done = self.collect(client, &part);
        let is_empty = fs::metadata(&part).is_ok_and(|data| data.len() == 0);
        if done.is_err() && (is_empty || !lock.holds()) {
            let _ = fs::remove_file(&part);
        }
        done?;
        fs::rename(&part, &blob).at(&blob, "put in place").map_err(Fault::Own)?;
        Ok(blob)
    }

    /// Returns whether the cache has the content, judged by its length.
    fn is_there(&self, blob: &Path) -> bool {
        fs::metadata(blob).is_ok_and(|found| found.is_file() && self.info.size.is_none_or(|size| found.len() == size))
    }

    /// Fills the partial file at `path` until its hash is right.
    fn collect(&self, client: &Client<'_>, path: &Path) -> Result<(), Fault> {
        loop {
            let mut part = self.open(client, path)?;
            self.fill(client, &mut part)?;
            part.file.sync_data().at(path, "write").map_err(Fault::Own)?;
            let resumed = part.resumed;
            let len = part.len;
            let verdict = part.digest.verdict(path).at(path, "read").map_err(Fault::Own)?;
            let (kind, found) = match verdict {
                Verdict::Right => return Ok(()),
                Verdict::Unknown => {
                    let etag = &self.info.etag;
                    client.note(&format!(
                        "{}: its ETag {etag:?} is no hash: only the length of the content was compared",
                        self.title
                    ));
                    return Ok(());
                }
                Verdict::Wrong { kind, found } => (kind, found),
            };
            fs::remove_file(path).at(path, "delete").map_err(Fault::Own)?;
            if !resumed {
                let expected = format!("content with the {kind} {}", self.info.etag);
                return Err(Fault::odd(&self.info.address, expected, format_args!("{len} bytes with {found}")));
            }
            client.note(&format!(
                "{}: with the part that was there already its {kind} is wrong: fetched again",
                self.title
            ));
        }
    }

    /// Opens the partial file, and keeps what an earlier run left in it if that can be part of the content.
    fn open(&self, client: &Client<'_>, path: &Path) -> Result<Part, Fault> {
        let own = |error| Fault::Own(Error::Io { path: path.to_owned(), action: "open", error });
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .map_err(own)?;
        let len = file.metadata().map_err(own)?.len();
        let digest = Digest::new(&self.info.etag, self.info.size);
        let mut part = Part { path: path.to_owned(), file, len, digest, from_start: false, resumed: len > 0 };
        if let Some(size) = self.info.size.filter(|size| len > *size) {
            client.note(&format!(
                "{}: the part of an earlier download has {len} bytes, the file {size}: fetched again",
                self.title
            ));
            part.restart(&self.info.etag, self.info.size)?;
        } else if len > 0 {
            part.digest.read(&mut part.file).map_err(own)?;
        }
        // These bytes are taken out, so that they are not used again if the hash turns out wrong.
        let start = self.start.take();
        if part.len == 0 && !start.is_empty() && self.info.size.is_some_and(|size| size >= start.len() as u64) {
            part.write(&start)?;
            part.resumed = true;
        }
        Ok(part)
    }

    /// Requests the missing bytes until the content is complete.
    fn fill(&self, client: &Client<'_>, part: &mut Part) -> Result<(), Fault> {
        let mut tries = Tries::default();
        let mut most = part.len;
        while self.info.size != Some(part.len) {
            self.tell(client, part.len);
            match self.transfer(client, part) {
                // If the length isn't known, the end of the answer is the end of the file.
                Ok(()) if self.info.size.is_none() || self.info.size == Some(part.len) => break,
                Ok(()) => {
                    let what = format!("it ended after {} of {} bytes", part.len, self.info.size.unwrap_or_default());
                    let fault = Fault::transfer(&self.info.address, what, Again::Often);
                    self.pause(client, part, &mut most, fault, &mut tries)?;
                }
                Err(fault) => self.pause(client, part, &mut most, fault, &mut tries)?,
            }
        }
        self.tell(client, part.len);
        Ok(())
    }

    fn pause(
        &self,
        client: &Client<'_>,
        part: &mut Part,
        most: &mut u64,
        fault: Fault,
        tries: &mut Tries,
    ) -> Result<(), Fault> {
        // A try that brought enough bytes resets the count, so a connection that breaks off now and then still
        // finishes. A few bytes are not enough: otherwise a server that stalls after each handful would be asked
        // forever. Bytes that had come before and were thrown away don't count either.
        if part.len >= *most + GETS_ON {
            tries.done = 0;
        }
        *most = part.len.max(*most);
        if self.info.size.is_none() && part.len > 0 {
            // Without a length, there is no way to resume.
            part.restart(&self.info.etag, None)?;
        }
        client.pause(&self.title, fault, tries)
    }

    fn tell(&self, client: &Client<'_>, done: u64) {
        client.tell(Event::Download(Download { file: self.file, done, total: self.info.size.unwrap_or(done) }));
    }

    /// Requests the rest of the content once, and stores what arrives.
    fn transfer(&self, client: &Client<'_>, part: &mut Part) -> Result<(), Fault> {
        if part.from_start && part.len > 0 {
            part.restart(&self.info.etag, self.info.size)?;
        }
        let range = (part.len > 0).then(|| format!("bytes={}-", part.len));
        let address = &self.info.address;
        let mut answer = match client.ask(Question::Content, address, range.as_deref()) {
            // The range doesn't exist, so the partial file isn't from this file.
            Err(Fault::Status { status: 416, .. }) if part.len > 0 => {
                part.restart(&self.info.etag, self.info.size)?;
                client.ask(Question::Content, address, None)?
            }
            answer => answer?,
        };
        agrees(&answer, self.info, self.commit)?;
        // Only a plain answer with exactly the rest can be appended. After any other answer, the download starts again.
        let starts = |answer: &super::client::Answer| match (answer.status(), answer.range()) {
            (206, Some((start, _))) => Some(start).filter(|start| *start == 0 || answer.is_plain()),
            (206, None) => None,
            _ => Some(0),
        };
        if part.len > 0 && starts(&answer) != Some(part.len) {
            part.from_start = true;
            part.restart(&self.info.etag, self.info.size)?;
            if starts(&answer) != Some(0) {
                answer = client.ask(Question::Content, address, None)?;
                agrees(&answer, self.info, self.commit)?;
            }
        }
        if part.len == 0 && starts(&answer) != Some(0) {
            return Err(Fault::odd(&answer.address, "the file from its first byte", "another part of it"));
        }
        let (address, mut body) = answer.into_body();
        let mut buffer = vec![0; 1 << 18];
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken_io(&address, &error, self.timeout)),
            };
            let room = self.info.size.map_or(u64::MAX, |size| size - part.len);
            if n as u64 > room {
                part.restart(&self.info.etag, self.info.size)?;
                let what = format!("more than the file's {} bytes came", self.info.size.unwrap_or_default());
                return Err(Fault::transfer(&address, what, Again::Often));
            }
            part.write(&buffer[..n])?;
            self.tell(client, part.len);
        }
    }
}

impl Part {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.file.write_all(bytes).at(&self.path, "write").map_err(Fault::Own)?;
        self.digest.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Throws away the bytes collected so far.
    fn restart(&mut self, etag: &str, size: Option<u64>) -> Result<(), Fault> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.at(&self.path, "write").map_err(Fault::Own)?;
        self.digest = Digest::new(etag, size);
        self.len = 0;
        self.resumed = false;
        Ok(())
    }
}
