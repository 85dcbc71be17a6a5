//! Tokenizers: the files of a Hugging Face folder to the vocabulary of a GGUF, and back.

mod from_hf;
mod sentencepiece;
mod to_hf;
mod token;

pub(crate) use from_hf::{Vocab, VocabOptions, gemma3_rows, write};
pub use sentencepiece::{OtherFields, Piece, SentencePieceModel};
pub(crate) use to_hf::rebuild;
pub use token::TokenKind;
