//! Tokenizers: the tokenizer files of a Hugging Face folder become the vocabulary of a GGUF, and back.
//!
//! `to_gguf` and `to_hf` are the two directions. Each has a folder with a file of the same name
//! for the same concept (`bpe`, `sentencepiece`, `special` ...). They share what a token is for
//! (`token`), llama.cpp's pre-tokenizers (`pre`), SentencePiece's files (`sentencepiece`), the names
//! of special tokens (`special`), the keys of GGUF (`keys`) and the record of a conversion
//! (`record`). `edited` is a folder's tokenizer with tokens added or left out.

mod comparable;
mod edited;
mod from_hf;
mod keys;
#[cfg(feature = "convert")]
pub(crate) mod library;
#[cfg(feature = "train")]
mod llama_class;
mod pre;
mod python;
mod record;
mod sentencepiece;
mod special;
pub(crate) mod templates;
mod to_hf;
mod token;

pub(crate) use comparable::{ComparableToken, comparable};
pub(crate) use edited::{EditedTokenizer, ids_differ};
#[cfg(feature = "train")]
pub(crate) use from_hf::templates_by_name;
pub(crate) use from_hf::{DEFAULT_TEMPLATE, chat_templates};
pub(crate) use from_hf::{ListedToken, Tokens};
pub(crate) use from_hf::{Vocab, VocabOptions, gemma3_rows, rows_needed, to_gguf};
#[cfg(feature = "train")]
pub(crate) use llama_class::as_in_transformers;
pub use sentencepiece::{OtherFields, Piece, SentencePieceModel};
pub(crate) use to_hf::to_hf;
pub use token::TokenKind;
