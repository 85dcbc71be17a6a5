//! Reads opcodes, operands and plain values from the pickle's bytes, and makes findings about them.

use std::fmt::Display;

use super::machine::Machine;
use super::{MAX_LINE_BYTES, MAX_PICKLE_BYTES, Value};
use crate::error::{Error, Finding, Result};

impl<'a> Machine<'_, 'a> {
    /// The next `length` bytes, if there are as many.
    pub(super) fn take(&mut self, length: u64) -> Result<&'a [u8]> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let here = end.and_then(|end| self.bytes.get(self.at..end));
        let Some(here) = here else {
            let left = self.bytes.len() - self.at;
            let finding = self.finding().expected(format_args!("{length} bytes more")).found(format_args!("{left}"));
            return Err(match self.bytes.len() >= MAX_PICKLE_BYTES {
                true => {
                    finding.hint(format_args!("pickles of more than {MAX_PICKLE_BYTES} bytes are not read")).format()
                }
                false => finding.hint("the file is cut short or damaged; fetch it again").format(),
            });
        };
        self.at += here.len();
        Ok(here)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.take(N as u64)?;
        bytes.try_into().map_err(|_| self.breach(format_args!("{N} bytes"), bytes.len()))
    }

    pub(super) fn byte(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// The text up to the next line end.
    pub(super) fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let window = rest.get(..MAX_LINE_BYTES).unwrap_or(rest);
        let Some(length) = window.iter().position(|b| *b == b'\n') else {
            return Err(self.breach(format_args!("a line of at most {MAX_LINE_BYTES} bytes"), "no line end"));
        };
        let line = self.take(length as u64)?;
        self.at += 1;
        std::str::from_utf8(line).map_err(|_| self.breach("a line of UTF-8", "other bytes"))
    }

    pub(super) fn memo_number(&mut self) -> Result<u32> {
        let line = self.line()?;
        line.parse().map_err(|_| self.breach("a number", format_args!("{line:?}")))
    }

    pub(super) fn finding(&self) -> Finding {
        Finding::new(self.path, format!("pickle, byte {}", self.at.saturating_sub(1)))
    }

    pub(super) fn breach(&self, expected: impl Display, found: impl Display) -> Error {
        self.finding().expected(expected).found(found).format()
    }

    pub(super) fn too_many(&self, what: &str, limit: usize) -> Error {
        self.breach(format_args!("at most {limit} {what}"), "more")
    }

    pub(super) fn long(&mut self, length: u64) -> Result<()> {
        let bytes = self.take(length)?;
        // Numbers below 2^63 may have more bytes than necessary.
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let filler = if negative { 0xff } else { 0 };
        let (low, high) = bytes.split_at(bytes.len().min(8));
        let mut wide = [filler; 8];
        for (to, from) in wide.iter_mut().zip(low) {
            *to = *from;
        }
        let number = i64::from_le_bytes(wide);
        let fits = high.iter().all(|b| *b == filler) && (number < 0) == negative;
        let value = if fits { Value::Int(number) } else { Value::Long(bytes) };
        self.push(value)
    }

    pub(super) fn digits(&self, digits: &'a str) -> Result<Value<'a>> {
        if let Ok(number) = digits.parse() {
            return Ok(Value::Int(number));
        }
        match digits.strip_prefix('-').unwrap_or(digits) {
            "" => Err(self.breach("a number", "nothing")),
            plain if plain.bytes().all(|b| b.is_ascii_digit()) => Ok(Value::Long(digits.as_bytes())),
            _ => Err(self.breach("a number", format_args!("{digits:?}"))),
        }
    }

    pub(super) fn text(&mut self, length: u64) -> Result<()> {
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.breach("a text in UTF-8", "other bytes"))?;
        self.push(Value::Str(text))
    }

    /// A text of Python 2, which didn't distinguish texts from bytes.
    pub(super) fn old_text(&mut self, length: u64) -> Result<()> {
        let bytes = self.take(length)?;
        self.push(std::str::from_utf8(bytes).map_or(Value::Bytes(bytes), Value::Str))
    }

    pub(super) fn raw(&mut self, length: u64) -> Result<()> {
        let bytes = self.take(length)?;
        self.push(Value::Bytes(bytes))
    }
}

impl<'a> Value<'a> {
    /// A text of protocol 0. Escapes aren't decoded, so a text with escapes can't be a name.
    pub(super) fn plain_text(text: &'a str) -> Self {
        if text.contains('\\') { Value::Bytes(text.as_bytes()) } else { Value::Str(text) }
    }
}
