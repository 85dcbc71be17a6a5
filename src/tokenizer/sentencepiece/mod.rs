//! SentencePiece models: `tokenizer.model`, `spiece.model` and `sentencepiece.bpe.model`, read and
//! written.
//!
//! The file is one protobuf message, `ModelProto`. A [`SentencePieceModel`] holds the pieces and the
//! settings that conversions use. Fields that it has no name for are kept as bytes, so a model that
//! is read and written again loses nothing.
//!
//! Reference: google/sentencepiece `src/sentencepiece_model.proto`.

mod read;
mod wire;
mod write;

use super::token::TokenKind;

/// `model_type` of a model that looks for the pieces with the best sum of scores.
pub(super) const UNIGRAM: u64 = 1;
/// `model_type` of a model that merges the pair with the best score.
pub(super) const BPE: u64 = 2;

/// A token of the model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Piece {
    /// Its text, with U+2581 for spaces.
    pub text: String,
    /// The log probability, or minus the rank of the merge that makes it.
    pub score: f32,
    /// What it is for.
    pub kind: TokenKind,
    /// Fields of the piece that have no name here, as they are in the file.
    pub other_fields: Vec<u8>,
}

/// A SentencePiece model. The id of a piece is its place in `pieces`.
#[derive(Debug, Clone, PartialEq)]
pub struct SentencePieceModel {
    /// The tokens by id.
    pub pieces: Vec<Piece>,
    /// How text is split: 1 is Unigram, 2 BPE, 3 words, 4 characters.
    pub model_type: u64,
    /// Whether characters without a piece are split into bytes.
    pub byte_fallback: bool,
    /// The id of the unknown piece; `None` where the model has none.
    pub unk_id: Option<u32>,
    /// The id of the piece at the beginning of a text.
    pub bos_id: Option<u32>,
    /// The id of the piece at the end of a text.
    pub eos_id: Option<u32>,
    /// The id of the piece that fills a batch up.
    pub pad_id: Option<u32>,
    /// The name of the normalizer.
    pub normalizer: String,
    /// Whether a space is put before every text.
    pub add_dummy_prefix: bool,
    /// Whether runs of spaces become one space, and spaces at both ends are removed.
    pub remove_extra_whitespaces: bool,
    /// Whether spaces become U+2581.
    pub escape_whitespaces: bool,
    /// Replacements of characters, made before anything else: a compiled trie, then the replacements.
    pub precompiled_charsmap: Vec<u8>,
    /// Fields of the file that have no name here.
    pub other_fields: OtherFields,
}

/// Fields that have no name in [`SentencePieceModel`], as they are in the file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OtherFields {
    /// Of the model itself.
    pub model: Vec<u8>,
    /// Of `trainer_spec`.
    pub trainer_spec: Vec<u8>,
    /// Of `normalizer_spec`.
    pub normalizer_spec: Vec<u8>,
}

/// A model without pieces, with the format's defaults.
impl Default for SentencePieceModel {
    fn default() -> Self {
        Self {
            pieces: Vec::new(),
            model_type: UNIGRAM,
            byte_fallback: false,
            unk_id: Some(0),
            bos_id: Some(1),
            eos_id: Some(2),
            pad_id: None,
            normalizer: String::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
            precompiled_charsmap: Vec::new(),
            other_fields: OtherFields::default(),
        }
    }
}

/// Numbers of the fields, in `ModelProto` and the messages inside it.
mod field {
    pub(super) const PIECES: u64 = 1;
    pub(super) const TRAINER_SPEC: u64 = 2;
    pub(super) const NORMALIZER_SPEC: u64 = 3;

    pub(super) mod piece {
        pub(in super::super) const TEXT: u64 = 1;
        pub(in super::super) const SCORE: u64 = 2;
        pub(in super::super) const KIND: u64 = 3;
    }

    pub(super) mod trainer {
        pub(in super::super) const MODEL_TYPE: u64 = 3;
        pub(in super::super) const VOCAB_SIZE: u64 = 4;
        pub(in super::super) const BYTE_FALLBACK: u64 = 35;
        pub(in super::super) const UNK_ID: u64 = 40;
        pub(in super::super) const BOS_ID: u64 = 41;
        pub(in super::super) const EOS_ID: u64 = 42;
        pub(in super::super) const PAD_ID: u64 = 43;
        pub(in super::super) const UNK_PIECE: u64 = 45;
        pub(in super::super) const BOS_PIECE: u64 = 46;
        pub(in super::super) const EOS_PIECE: u64 = 47;
        pub(in super::super) const PAD_PIECE: u64 = 48;
    }

    pub(super) mod normalizer {
        pub(in super::super) const NAME: u64 = 1;
        pub(in super::super) const PRECOMPILED_CHARSMAP: u64 = 2;
        pub(in super::super) const ADD_DUMMY_PREFIX: u64 = 3;
        pub(in super::super) const REMOVE_EXTRA_WHITESPACES: u64 = 4;
        pub(in super::super) const ESCAPE_WHITESPACES: u64 = 5;
    }
}

#[cfg(test)]
mod tests;
