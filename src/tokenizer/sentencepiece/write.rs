//! Writes a SentencePiece model.

use super::SentencePieceModel;
use super::field::{self, normalizer, trainer};
use super::wire::MessageWriter;
use crate::tokenizer::token::TokenKind;

impl SentencePieceModel {
    /// The bytes of the file. [`SentencePieceModel::parse`] makes the same model of them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut model = MessageWriter::default();
        for piece in &self.pieces {
            let mut message = MessageWriter::default();
            message.bytes(field::piece::TEXT, piece.text.as_bytes());
            message.float(field::piece::SCORE, piece.score);
            // The format has no number for an undefined kind, and "normal" is what it takes for granted.
            if !matches!(piece.kind, TokenKind::Normal | TokenKind::Undefined) {
                message.number(field::piece::KIND, piece.kind.number().into());
            }
            message.raw(&piece.other_fields);
            model.message(field::PIECES, &message);
        }
        model.message(field::TRAINER_SPEC, &self.trainer_spec());
        model.message(field::NORMALIZER_SPEC, &self.normalizer_spec());
        model.raw(&self.other_fields.model);
        model.into_bytes()
    }

    fn trainer_spec(&self) -> MessageWriter {
        let mut spec = MessageWriter::default();
        spec.number(trainer::MODEL_TYPE, self.model_type.cast_signed());
        spec.number(trainer::VOCAB_SIZE, i64::try_from(self.pieces.len()).unwrap_or(i64::MAX));
        spec.flag(trainer::BYTE_FALLBACK, self.byte_fallback);
        let special = [
            (trainer::UNK_ID, trainer::UNK_PIECE, self.unk_id),
            (trainer::BOS_ID, trainer::BOS_PIECE, self.bos_id),
            (trainer::EOS_ID, trainer::EOS_PIECE, self.eos_id),
            (trainer::PAD_ID, trainer::PAD_PIECE, self.pad_id),
        ];
        for (id_field, _, id) in special {
            spec.number(id_field, id.map_or(-1, i64::from));
        }
        for (_, piece_field, id) in special {
            let piece = id.and_then(|id| usize::try_from(id).ok()).and_then(|id| self.pieces.get(id));
            if let Some(piece) = piece {
                spec.bytes(piece_field, piece.text.as_bytes());
            }
        }
        spec.raw(&self.other_fields.trainer_spec);
        spec
    }

    fn normalizer_spec(&self) -> MessageWriter {
        let mut spec = MessageWriter::default();
        spec.bytes(normalizer::NAME, self.normalizer.as_bytes());
        spec.bytes(normalizer::PRECOMPILED_CHARSMAP, &self.precompiled_charsmap);
        spec.flag(normalizer::ADD_DUMMY_PREFIX, self.add_dummy_prefix);
        spec.flag(normalizer::REMOVE_EXTRA_WHITESPACES, self.remove_extra_whitespaces);
        spec.flag(normalizer::ESCAPE_WHITESPACES, self.escape_whitespaces);
        spec.raw(&self.other_fields.normalizer_spec);
        spec
    }
}
