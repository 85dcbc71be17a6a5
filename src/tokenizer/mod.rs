//! Tokenizers: the files of a Hugging Face folder to the vocabulary of a GGUF, and back.

mod from_hf;
mod to_hf;
mod token;

pub use from_hf::{Piece, SentencePieceModel};
pub(crate) use from_hf::{Vocab, VocabOptions, gemma3_rows, write};
pub(crate) use to_hf::rebuild;
pub use token::TokenKind;
