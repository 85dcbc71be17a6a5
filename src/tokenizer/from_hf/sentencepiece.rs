//! Reads SentencePiece models: `tokenizer.model` and `sentencepiece.bpe.model`.
//!
//! The file is one protobuf message, `ModelProto`. What is read of it are the pieces and the few
//! settings that conversions ask for; other fields are skipped. Every length is checked against
//! the message that holds it, so no byte is read twice or past the end.
//!
//! Reference: google/sentencepiece `src/sentencepiece_model.proto`; what makes a model unusable is
//! what `src/model_interface.cc` (`InitializePieces`) refuses.

use std::collections::HashSet;
use std::path::Path;

use crate::error::{Finding, Result};
use crate::tokenizer::token::TokenKind;

/// A token of the model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Piece {
    /// Its text, with U+2581 for spaces.
    pub text: String,
    /// The log probability, or minus the rank of the merge that makes it.
    pub score: f32,
    /// What it is for.
    pub kind: TokenKind,
}

/// A SentencePiece model. Ids are places in `pieces`.
#[derive(Debug, Clone, PartialEq)]
pub struct SentencePieceModel {
    /// The tokens by id.
    pub pieces: Vec<Piece>,
    /// How text is taken apart: 1 is Unigram, 2 BPE, 3 words, 4 characters.
    pub model_type: u64,
    /// Whether a space is put before every text.
    pub add_dummy_prefix: bool,
    /// Whether runs of spaces become one, and spaces at both ends none.
    pub remove_extra_whitespaces: bool,
    /// How characters are replaced before anything else: a compiled trie, then the replacements.
    pub precompiled_charsmap: Vec<u8>,
}

impl SentencePieceModel {
    /// Reads the bytes of `file`, which is named in errors.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for bytes that aren't such a message, and for models that
    /// SentencePiece itself refuses: without exactly one unknown piece (or, with all 256 bytes, none), with empty
    /// pieces, with two of one text; also for pieces that aren't UTF-8 and scores that aren't finite.
    pub fn parse(file: &Path, bytes: &[u8]) -> Result<Self> {
        let mut model = Self {
            pieces: Vec::new(),
            model_type: 1,
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            precompiled_charsmap: Vec::new(),
        };
        let mut message = Message { file, bytes, start: 0, at: 0 };
        while let Some(field) = message.next()? {
            match (field.number, field.value) {
                (1, Wire::Bytes(part)) => {
                    let id = model.pieces.len();
                    model.pieces.push(piece(message.inner(part), id)?);
                }
                (2, Wire::Bytes(part)) => model.trainer_spec(message.inner(part))?,
                (3, Wire::Bytes(part)) => model.normalizer_spec(message.inner(part))?,
                _ => {}
            }
        }
        model.check(file)?;
        Ok(model)
    }

    fn trainer_spec(&mut self, mut message: Message) -> Result<()> {
        while let Some(field) = message.next()? {
            if let (3, Wire::Varint(value)) = (field.number, field.value) {
                self.model_type = value;
            }
        }
        Ok(())
    }

    fn normalizer_spec(&mut self, mut message: Message) -> Result<()> {
        while let Some(field) = message.next()? {
            match (field.number, field.value) {
                (2, Wire::Bytes(part)) => self.precompiled_charsmap = part.bytes.to_vec(),
                (3, Wire::Varint(value)) => self.add_dummy_prefix = value != 0,
                (4, Wire::Varint(value)) => self.remove_extra_whitespaces = value != 0,
                _ => {}
            }
        }
        Ok(())
    }

    /// What SentencePiece asks of a model before it uses it.
    fn check(&self, file: &Path) -> Result<()> {
        let mut texts = HashSet::with_capacity(self.pieces.len());
        for (id, piece) in self.pieces.iter().enumerate() {
            let finding = || Finding::new(file, format!("piece {id}"));
            if piece.text.is_empty() {
                return Err(finding().expected("a text").found("an empty one").format());
            }
            if !texts.insert(piece.text.as_str()) {
                let found = format!("{:?}, which another piece has too", piece.text);
                return Err(finding().expected("a text of its own").found(found).format());
            }
        }
        let count = |kind| self.pieces.iter().filter(|piece| piece.kind == kind).count();
        match count(TokenKind::Unknown) {
            1 => Ok(()),
            // Nothing is unknown where every byte has a piece.
            0 if count(TokenKind::Byte) == 256 => Ok(()),
            count => Err(Finding::new(file, "pieces").expected("one of type unknown").found(count).format()),
        }
    }
}

/// Reads piece `id`.
fn piece(mut message: Message, id: usize) -> Result<Piece> {
    let mut piece = Piece::default();
    while let Some(field) = message.next()? {
        let finding = || Finding::new(message.file, format!("piece {id}"));
        match (field.number, field.value) {
            (1, Wire::Bytes(part)) => {
                let text = std::str::from_utf8(part.bytes);
                piece.text = text.map_err(|e| finding().expected("UTF-8 text").found(e).format())?.to_owned();
            }
            (2, Wire::Fixed32(bits)) => {
                piece.score = f32::from_bits(bits);
                if !piece.score.is_finite() {
                    return Err(finding().expected("a finite score").found(piece.score).format());
                }
            }
            (3, Wire::Varint(kind)) => {
                // A number that this format's enum doesn't have counts as a field unknown.
                piece.kind = match kind {
                    2 => TokenKind::Unknown,
                    3 => TokenKind::Control,
                    4 => TokenKind::UserDefined,
                    5 => TokenKind::Unused,
                    6 => TokenKind::Byte,
                    _ => TokenKind::Normal,
                }
            }
            _ => {}
        }
    }
    Ok(piece)
}

/// A message being read. `start` is its place in the file.
#[derive(Clone, Copy)]
struct Message<'a> {
    file: &'a Path,
    bytes: &'a [u8],
    start: usize,
    at: usize,
}

struct Field<'a> {
    number: u64,
    value: Wire<'a>,
}

/// A field's value as it lies in the file.
enum Wire<'a> {
    Varint(u64),
    Fixed64,
    Bytes(Part<'a>),
    Fixed32(u32),
}

/// Bytes of a message, and their place in the file.
struct Part<'a> {
    bytes: &'a [u8],
    start: usize,
}

impl<'a> Message<'a> {
    /// The message that a field of this one holds.
    fn inner(&self, part: Part<'a>) -> Message<'a> {
        Message { file: self.file, bytes: part.bytes, start: part.start, at: 0 }
    }

    /// The next field; `None` at the end.
    fn next(&mut self) -> Result<Option<Field<'a>>> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let place = self.place();
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
        Ok(Some(Field { number: tag >> 3, value }))
    }

    /// Where in the file reading is now.
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

#[cfg(test)]
mod tests;
