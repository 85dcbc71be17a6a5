//! Tokenizers: the files of a Hugging Face folder to the vocabulary of a GGUF, and back.

mod from_hf;
mod keys;
mod pre;
mod record;
mod sentencepiece;
mod special;
mod to_hf;
mod token;

pub(crate) use from_hf::{Vocab, VocabOptions, gemma3_rows, to_gguf};
pub use sentencepiece::{OtherFields, Piece, SentencePieceModel};
pub(crate) use to_hf::to_hf;
pub use token::TokenKind;
