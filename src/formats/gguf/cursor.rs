//! Reads numbers, strings and counts of a header, in the file's byte order.
//!
//! Every count is checked against the remaining bytes before anything is allocated for it.
//!
//! Reference: llama.cpp `ggml/src/gguf.cpp` (`gguf_reader`).

use std::cell::Cell;
use std::fmt;
use std::path::Path;

use crate::error::{Finding, Result};

/// The longest string and the most elements of an array (`GGUF_MAX_STRING_LENGTH`,
/// `GGUF_MAX_ARRAY_ELEMENTS`). Even a file of terabytes can't make the reader allocate more.
pub(super) const MAX_LENGTH: u64 = 1 << 30;

/// A header that is being read.
pub(super) struct Cursor<'a> {
    pub(super) path: &'a Path,
    /// Whether numbers have their most significant byte first.
    pub(super) big_endian: bool,
    rest: &'a [u8],
    at: u64,
    /// Whether more bytes were asked for than there are.
    ran_out: Cell<bool>,
}

impl<'a> Cursor<'a> {
    /// A cursor at the start of `bytes`, little-endian until the version shows otherwise.
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, big_endian: false, rest: bytes, at: 0, ran_out: Cell::new(false) }
    }

    /// The number of bytes read so far.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Whether reading ended because there are no more bytes.
    pub(super) fn has_run_out(&self) -> bool {
        self.ran_out.get()
    }

    fn left(&self) -> u64 {
        self.rest.len() as u64
    }

    fn cut_short(&self, needed: impl fmt::Display, subject: &str) -> crate::Error {
        self.ran_out.set(true);
        Finding::new(self.path, subject)
            .expected(format_args!("{needed} bytes at offset {}", self.at))
            .found(format_args!("{} until the file's end", self.left()))
            .hint("the file is cut short or damaged; fetch it again")
            .format()
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: u64, subject: &str) -> Result<&'a [u8]> {
        let split = usize::try_from(len).ok().and_then(|len| self.rest.split_at_checked(len));
        let (taken, rest) = split.ok_or_else(|| self.cut_short(len, subject))?;
        self.rest = rest;
        self.at += len;
        Ok(taken)
    }

    /// The next `N` bytes, least significant first whatever the file's byte order.
    pub(super) fn array<const N: usize>(&mut self, subject: &str) -> Result<[u8; N]> {
        let (array, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.cut_short(N, subject))?;
        self.rest = rest;
        self.at += N as u64;
        Ok(self.in_order(*array))
    }

    fn in_order<const N: usize>(&self, mut array: [u8; N]) -> [u8; N] {
        if self.big_endian {
            array.reverse();
        }
        array
    }

    pub(super) fn u32(&mut self, subject: &str) -> Result<u32> {
        self.array(subject).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, subject: &str) -> Result<u64> {
        self.array(subject).map(u64::from_le_bytes)
    }

    pub(super) fn bool(&mut self, subject: &str) -> Result<bool> {
        let [byte] = self.array(subject)?;
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Finding::new(self.path, subject).expected("a bool of 0 or 1").found(other).format()),
        }
    }

    /// Reads a length and as many bytes.
    pub(super) fn string(&mut self, subject: &str) -> Result<&'a [u8]> {
        let len = self.u64(subject)?;
        self.at_most(len, "a string of at most", subject)?;
        self.take(len, subject)
    }

    /// Reads a count of items that take at least `min_bytes` each.
    pub(super) fn count(&mut self, subject: &str, min_bytes: u64) -> Result<usize> {
        let count = self.u64(subject)?;
        let limit = self.left() / min_bytes.max(1);
        if count > limit {
            self.ran_out.set(true);
            return Err(Finding::new(self.path, subject)
                .expected(format_args!("a count of at most {limit}, as many as fit into the file"))
                .found(count)
                .hint("the file is cut short or damaged; fetch it again")
                .format());
        }
        self.at_most(count, "a count of at most", subject)?;
        Ok(count as usize)
    }

    /// Refuses a length above ggml's limit, even if it fits into the file.
    fn at_most(&self, len: u64, expected: &str, subject: &str) -> Result<()> {
        if len > MAX_LENGTH && len <= self.left() {
            let finding = Finding::new(self.path, subject).expected(format_args!("{expected} {MAX_LENGTH}"));
            return Err(finding.found(len).format());
        }
        Ok(())
    }

    /// Reads a count and as many numbers of `N` bytes each.
    pub(super) fn numbers<T, const N: usize>(&mut self, subject: &str, read: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let count = self.count(subject, N as u64)?;
        let bytes = self.take((count * N) as u64, subject)?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|b| read(self.in_order(*b))).collect())
    }
}
