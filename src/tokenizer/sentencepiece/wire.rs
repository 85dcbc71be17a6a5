//! Protobuf messages: fields with a number, a type and a value, one after the other.
//!
//! Every length is checked against the message that holds it, so nothing is read past its end.

use std::path::Path;

use crate::error::{Finding, Result};

/// A message being read. `start` is where it begins in the file.
#[derive(Clone, Copy)]
pub(super) struct MessageReader<'a> {
    pub(super) file: &'a Path,
    bytes: &'a [u8],
    start: usize,
    at: usize,
}

/// A field of a message.
pub(super) struct Field<'a> {
    pub(super) number: u64,
    pub(super) value: Wire<'a>,
    /// The whole field, with number and length.
    pub(super) raw: &'a [u8],
}

/// The value of a field, by the type that the file gives it.
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64,
    Bytes(Part<'a>),
    Fixed32(u32),
}

/// Bytes inside a message, and where they begin in the file.
pub(super) struct Part<'a> {
    pub(super) bytes: &'a [u8],
    start: usize,
}

impl<'a> MessageReader<'a> {
    /// The message that is the whole of `file`.
    pub(super) fn new(file: &'a Path, bytes: &'a [u8]) -> Self {
        Self { file, bytes, start: 0, at: 0 }
    }

    /// The message that a field of this one holds.
    pub(super) fn inner(&self, part: Part<'a>) -> Self {
        Self { file: self.file, bytes: part.bytes, start: part.start, at: 0 }
    }

    /// The next field; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Field<'a>>> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let (begin, place) = (self.at, self.place());
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Wire::Fixed64
            }
            2 => {
                let len = self.varint()?;
                let start = self.place();
                let bytes = self.take(len)?;
                Wire::Bytes(Part { bytes, start })
            }
            5 => {
                let bytes = self.take(4)?;
                Wire::Fixed32(bytes.try_into().map(u32::from_le_bytes).unwrap_or_default())
            }
            other => {
                return Err(Finding::new(self.file, format!("byte {place}"))
                    .expected("a protobuf field of wire type 0, 1, 2 or 5")
                    .found(other)
                    .hint("is this a SentencePiece model?")
                    .format());
            }
        };
        let raw = self.bytes.get(begin..self.at).unwrap_or_default();
        Ok(Some(Field { number: tag >> 3, value, raw }))
    }

    /// The place in the file that is read next.
    fn place(&self) -> usize {
        self.start.saturating_add(self.at)
    }

    fn varint(&mut self) -> Result<u64> {
        let place = self.place();
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?.first().copied().unwrap_or_default();
            // The tenth byte has room for one bit.
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Finding::new(self.file, format!("byte {place}"))
            .expected("a number of at most 64 bits")
            .found("a longer one")
            .format())
    }

    /// The next `len` bytes.
    fn take(&mut self, len: u64) -> Result<&'a [u8]> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        match end.and_then(|end| Some((end, self.bytes.get(self.at..end)?))) {
            Some((end, bytes)) => {
                self.at = end;
                Ok(bytes)
            }
            None => {
                let left = self.bytes.len().saturating_sub(self.at);
                Err(Finding::new(self.file, format!("byte {}", self.place()))
                    .expected(format_args!("{len} bytes"))
                    .found(format_args!("{left} left in the message"))
                    .hint("the file is cut off, or no SentencePiece model")
                    .format())
            }
        }
    }
}

/// A message being written.
#[derive(Default)]
pub(super) struct MessageWriter(Vec<u8>);

impl MessageWriter {
    const VARINT: u64 = 0;
    const LENGTH_DELIMITED: u64 = 2;
    const FIXED_32: u64 = 5;

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn tag(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    /// Adds a whole number; a negative one as the 64 bits of their two's complement.
    pub(super) fn number(&mut self, field: u64, value: i64) {
        self.tag(field, Self::VARINT);
        self.varint(value as u64);
    }

    pub(super) fn flag(&mut self, field: u64, value: bool) {
        self.number(field, i64::from(value));
    }

    pub(super) fn float(&mut self, field: u64, value: f32) {
        self.tag(field, Self::FIXED_32);
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, field: u64, value: &[u8]) {
        self.tag(field, Self::LENGTH_DELIMITED);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    /// Adds whole fields as they are.
    pub(super) fn raw(&mut self, fields: &[u8]) {
        self.0.extend_from_slice(fields);
    }

    /// Adds a message as a field.
    pub(super) fn message(&mut self, field: u64, message: &MessageWriter) {
        self.bytes(field, &message.0);
    }

    /// The bytes of the message.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}
