//! Reads a SentencePiece model.
//!
//! What makes a model unusable is what SentencePiece refuses (`src/model_interface.cc`,
//! `InitializePieces`). A field of another type than the format has, or a kind of piece with an
//! unknown number, counts as a field without a name, as in protobuf.

use std::collections::HashSet;
use std::path::Path;

use super::field::{self, normalizer, trainer};
use super::wire::{MessageReader, Wire};
use super::{Piece, SentencePieceModel};
use crate::error::{Finding, Result};
use crate::tokenizer::token::TokenKind;

impl SentencePieceModel {
    /// Reads the bytes of `file`, which is named in errors.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for bytes that aren't such a message, and for models that
    /// SentencePiece itself refuses: without exactly one unknown piece (or, with all 256 bytes, none), with empty
    /// pieces, with two of one text; also for pieces that aren't UTF-8 and scores that aren't finite.
    pub fn parse(file: &Path, bytes: &[u8]) -> Result<Self> {
        let mut model = Self::default();
        let mut message = MessageReader::new(file, bytes);
        while let Some(read) = message.next()? {
            match (read.number, read.value) {
                (field::PIECES, Wire::Bytes(part)) => {
                    let id = model.pieces.len();
                    model.pieces.push(piece(message.inner(part), id)?);
                }
                (field::TRAINER_SPEC, Wire::Bytes(part)) => model.read_trainer_spec(message.inner(part))?,
                (field::NORMALIZER_SPEC, Wire::Bytes(part)) => model.read_normalizer_spec(message.inner(part))?,
                _ => model.other_fields.model.extend_from_slice(read.raw),
            }
        }
        model.check(file)?;
        Ok(model)
    }

    fn read_trainer_spec(&mut self, mut message: MessageReader) -> Result<()> {
        // A number below zero says that there is no such piece.
        let id = |number: u64| u32::try_from(number.cast_signed()).ok();
        while let Some(read) = message.next()? {
            match (read.number, read.value) {
                (trainer::MODEL_TYPE, Wire::Varint(number)) => self.model_type = number,
                (trainer::BYTE_FALLBACK, Wire::Varint(number)) => self.byte_fallback = number != 0,
                (trainer::UNK_ID, Wire::Varint(number)) => self.unk_id = id(number),
                (trainer::BOS_ID, Wire::Varint(number)) => self.bos_id = id(number),
                (trainer::EOS_ID, Wire::Varint(number)) => self.eos_id = id(number),
                (trainer::PAD_ID, Wire::Varint(number)) => self.pad_id = id(number),
                // These follow from the pieces and the ids.
                (trainer::VOCAB_SIZE, Wire::Varint(_)) => {}
                (trainer::UNK_PIECE | trainer::BOS_PIECE | trainer::EOS_PIECE | trainer::PAD_PIECE, Wire::Bytes(_)) => {
                }
                _ => self.other_fields.trainer_spec.extend_from_slice(read.raw),
            }
        }
        Ok(())
    }

    fn read_normalizer_spec(&mut self, mut message: MessageReader) -> Result<()> {
        while let Some(read) = message.next()? {
            match (read.number, read.value) {
                (normalizer::NAME, Wire::Bytes(part)) => match std::str::from_utf8(part.bytes) {
                    Ok(name) => self.normalizer = name.to_owned(),
                    Err(_) => self.other_fields.normalizer_spec.extend_from_slice(read.raw),
                },
                (normalizer::PRECOMPILED_CHARSMAP, Wire::Bytes(part)) => {
                    self.precompiled_charsmap = part.bytes.to_vec();
                }
                (normalizer::ADD_DUMMY_PREFIX, Wire::Varint(number)) => self.add_dummy_prefix = number != 0,
                (normalizer::REMOVE_EXTRA_WHITESPACES, Wire::Varint(number)) => {
                    self.remove_extra_whitespaces = number != 0;
                }
                (normalizer::ESCAPE_WHITESPACES, Wire::Varint(number)) => self.escape_whitespaces = number != 0,
                _ => self.other_fields.normalizer_spec.extend_from_slice(read.raw),
            }
        }
        Ok(())
    }

    /// Checks what SentencePiece checks before it uses a model.
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
fn piece(mut message: MessageReader, id: usize) -> Result<Piece> {
    let mut piece = Piece { kind: TokenKind::Normal, ..Piece::default() };
    while let Some(read) = message.next()? {
        let finding = || Finding::new(message.file, format!("piece {id}"));
        match (read.number, read.value) {
            (field::piece::TEXT, Wire::Bytes(part)) => {
                let text = std::str::from_utf8(part.bytes);
                piece.text = text.map_err(|e| finding().expected("UTF-8 text").found(e).format())?.to_owned();
            }
            (field::piece::SCORE, Wire::Fixed32(bits)) => {
                piece.score = f32::from_bits(bits);
                if !piece.score.is_finite() {
                    return Err(finding().expected("a finite score").found(piece.score).format());
                }
            }
            (field::piece::KIND, Wire::Varint(number)) => match kind_of(number) {
                Some(kind) => piece.kind = kind,
                // A kind that was given before stays, as in protobuf.
                None => piece.other_fields.extend_from_slice(read.raw),
            },
            _ => piece.other_fields.extend_from_slice(read.raw),
        }
    }
    Ok(piece)
}

/// The kind of piece with this number. The format has no number for [`TokenKind::Undefined`].
fn kind_of(number: u64) -> Option<TokenKind> {
    let kind = i64::try_from(number).ok().and_then(TokenKind::from_number);
    kind.filter(|kind| *kind != TokenKind::Undefined)
}
