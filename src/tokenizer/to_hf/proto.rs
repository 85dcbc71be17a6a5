//! `tokenizer.model`: a SentencePiece model, written as the protocol buffer that the library reads.
//!
//! Reference: sentencepiece `src/sentencepiece_model.proto`.

/// How the model segments text (`TrainerSpec.ModelType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Segmentation {
    Unigram = 1,
    Bpe = 2,
}

use crate::tokenizer::token::TokenKind;

/// A piece; its place in the list is its id.
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: TokenKind,
}

/// A model.
pub(super) struct Model<'a> {
    pub(super) segmentation: Segmentation,
    pub(super) pieces: Vec<Piece>,
    pub(super) byte_fallback: bool,
    /// The ids of the special pieces; `None` where the model has no such piece.
    pub(super) unk: Option<u32>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) pad: Option<u32>,
    pub(super) add_dummy_prefix: bool,
    pub(super) remove_extra_whitespaces: bool,
    pub(super) precompiled_charsmap: &'a [u8],
}

impl Model<'_> {
    /// The file's bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut model = Message::default();
        for piece in &self.pieces {
            let mut message = Message::default();
            message.bytes(1, piece.text.as_bytes());
            message.float(2, piece.score);
            if piece.kind != TokenKind::Normal {
                message.number(3, piece.kind as i64);
            }
            model.bytes(1, &message.0);
        }
        model.bytes(2, &self.trainer().0);
        let mut normalizer = Message::default();
        normalizer.bytes(1, if self.precompiled_charsmap.is_empty() { b"identity" } else { b"custom" });
        normalizer.bytes(2, self.precompiled_charsmap);
        normalizer.flag(3, self.add_dummy_prefix);
        normalizer.flag(4, self.remove_extra_whitespaces);
        normalizer.flag(5, true);
        model.bytes(3, &normalizer.0);
        model.0
    }

    fn trainer(&self) -> Message {
        let mut trainer = Message::default();
        trainer.number(3, self.segmentation as i64);
        trainer.number(4, i64::try_from(self.pieces.len()).unwrap_or(i64::MAX));
        trainer.flag(35, self.byte_fallback);
        let special = [(40, 45, self.unk), (41, 46, self.bos), (42, 47, self.eos), (43, 48, self.pad)];
        for (id_field, _, id) in special {
            trainer.number(id_field, id.map_or(-1, i64::from));
        }
        for (_, piece_field, id) in special {
            let piece = id.and_then(|id| usize::try_from(id).ok()).and_then(|id| self.pieces.get(id));
            if let Some(piece) = piece {
                trainer.bytes(piece_field, piece.text.as_bytes());
            }
        }
        trainer
    }
}

/// The bytes of a message as fields are added.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
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

    /// Negative numbers as the 64 bits of their two's complement.
    fn number(&mut self, field: u64, value: i64) {
        self.tag(field, Self::VARINT);
        self.varint(value as u64);
    }

    fn flag(&mut self, field: u64, value: bool) {
        self.number(field, i64::from(value));
    }

    fn float(&mut self, field: u64, value: f32) {
        self.tag(field, Self::FIXED_32);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.tag(field, Self::LENGTH_DELIMITED);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_as_the_wire_format_has_them() {
        let piece = |text: &str, score: f32, kind: TokenKind| Piece { text: text.to_owned(), score, kind };
        let model = Model {
            segmentation: Segmentation::Bpe,
            pieces: vec![piece("<unk>", 0.0, TokenKind::Unknown), piece("a", -1.5, TokenKind::Normal)],
            byte_fallback: true,
            unk: Some(0),
            bos: None,
            eos: None,
            pad: None,
            add_dummy_prefix: true,
            remove_extra_whitespaces: false,
            precompiled_charsmap: &[],
        };
        let mut expected = vec![0x0a, 14, 0x0a, 5];
        expected.extend(b"<unk>");
        expected.extend([0x15, 0, 0, 0, 0, 0x18, 2]);
        expected.extend([0x0a, 8, 0x0a, 1, b'a', 0x15, 0, 0, 0xc0, 0xbf]);
        let minus_one = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        expected.extend([0x12, 54, 0x18, 2, 0x20, 2, 0x98, 0x02, 1, 0xc0, 0x02, 0]);
        for field in [0xc8, 0xd0, 0xd8] {
            expected.extend([field, 0x02]);
            expected.extend(minus_one);
        }
        expected.extend([0xea, 0x02, 5]);
        expected.extend(b"<unk>");
        expected.extend([0x1a, 18, 0x0a, 8]);
        expected.extend(b"identity");
        expected.extend([0x12, 0, 0x18, 1, 0x20, 0, 0x28, 1]);
        assert_eq!(model.encode(), expected);
    }
}
