//! Hugging Face checkpoints to GGUF, as llama.cpp's `convert_hf_to_gguf.py` writes them.
//!
//! A conversion is a plan: [`to_gguf`] reads headers, config and tokenizer files, and says what the
//! output holds; [`crate::formats::gguf::layout`] and [`crate::plan::execute`] write it.
//!
//! Reference: llama.cpp `conversion/base.py`, `conversion/llama.py`, `conversion/qwen.py`.

mod keys;
mod model_id;
mod names;
mod tensors;
mod tokenizer;
mod vocab;

use std::fmt;
use std::str::FromStr;

pub use names::{gguf_name, hf_name};
pub use vocab::{Piece, PieceKind, SentencePieceModel};
use vocab::{Vocab, VocabOptions};

use crate::checkpoint::{Architecture, HfFolder};
use crate::dtype::DType;
use crate::error::{Error, Finding, Result};
use crate::formats::gguf::Metadata;
use crate::plan::Plan;

/// The type that a conversion's matrices get; vectors and norms are always F32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // The names are the types' own.
pub enum OutType {
    F32,
    #[default]
    F16,
    BF16,
    Q8_0,
}

impl OutType {
    /// Every type, in the order of their names in messages.
    pub const ALL: [OutType; 4] = [OutType::F32, OutType::F16, OutType::BF16, OutType::Q8_0];

    /// The element type of matrices.
    pub fn dtype(self) -> DType {
        match self {
            OutType::F32 => DType::F32,
            OutType::F16 => DType::F16,
            OutType::BF16 => DType::BF16,
            OutType::Q8_0 => DType::Q8_0,
        }
    }

    /// The number in `general.file_type` (llama.cpp `include/llama.h`, `enum llama_ftype`).
    fn file_type(self) -> u32 {
        match self {
            OutType::F32 => 0,
            OutType::F16 => 1,
            OutType::Q8_0 => 7,
            OutType::BF16 => 32,
        }
    }
}

/// As on the command line: `f32`, `f16`, `bf16`, `q8_0`.
impl fmt::Display for OutType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.dtype().name().to_ascii_lowercase())
    }
}

impl FromStr for OutType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|outtype| outtype.to_string() == text.to_ascii_lowercase()).ok_or_else(|| {
            let known = Self::ALL.map(|outtype| outtype.to_string()).join(", ");
            Finding::new("", "outtype").expected(known).found(text).mismatch()
        })
    }
}

/// What can be chosen about a conversion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvertOptions {
    /// The type of matrices.
    pub outtype: OutType,
    /// llama.cpp's name of the pre-tokenizer, instead of the one that `tokenizer.json` asks for.
    pub pre: Option<String>,
    /// Whether the file gets a vocabulary; without one it can't turn text into tokens.
    pub vocab: bool,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self { outtype: OutType::default(), pre: None, vocab: true }
    }
}

/// The metadata and the tensors of the GGUF file that holds `weights` with the config and the
/// tokenizer of `folder`.
///
/// `weights` has the names of Hugging Face: [`HfFolder::weights`] itself, or the same tensors made
/// in another way. Each is used once; the result keeps their values and changes names, types and,
/// for Llama and Mistral, the order of rows of q and k.
///
/// Keys, their types and order, and the order of tensors are those of the reference.
///
/// # Errors
/// [`Error::Mismatch`] where weights and config don't belong together, naming file and tensor;
/// [`Error::Unsupported`] for a tokenizer that this version can't describe; [`Error::Format`] for
/// malformed tokenizer files.
pub fn to_gguf(folder: &HfFolder, weights: &Plan, options: &ConvertOptions) -> Result<(Metadata, Plan)> {
    let plan = tensors::plan(folder, weights, options.outtype)?;
    let total_elems = plan.tensors.iter().map(|tensor| tensor.elems() as u64).sum();
    let mut metadata = Metadata::new(folder.path());
    keys::general(&mut metadata, folder, total_elems)?;
    keys::model(&mut metadata, folder, options.outtype)?;
    let vocab = match (options.vocab, folder.config.architecture) {
        (false, _) => Vocab::None,
        (true, Architecture::Llama | Architecture::Mistral) => Vocab::Llama,
        (true, _) => Vocab::SpmOrBpe,
    };
    let vocab_options = VocabOptions { pre: options.pre.clone() };
    vocab::write(&mut metadata, folder, vocab, &vocab_options, &mut Vec::new())?;
    Ok((metadata, plan))
}

/// The tokenizer of a GGUF file with this `metadata` as the files of a Hugging Face folder: names
/// and contents, `tokenizer.json` first. None, and a note, for a file without a vocabulary.
///
/// The tokenizer gives the tokens that llama.cpp gives, and converted back it gives the keys that
/// the file has.
///
/// # Errors
/// [`Error::Format`] for keys that break the rules of a vocabulary, naming file and key;
/// [`Error::Unsupported`] for a tokenizer that Hugging Face's files can't describe.
pub fn tokenizer_files(metadata: &Metadata, notes: &mut Vec<String>) -> Result<Vec<(String, Vec<u8>)>> {
    tokenizer::rebuild(metadata, notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outtypes_are_read_as_they_are_shown() {
        for outtype in OutType::ALL {
            assert_eq!(outtype.to_string().parse::<OutType>().unwrap(), outtype);
        }
        assert_eq!("Q8_0".parse::<OutType>().unwrap(), OutType::Q8_0);
        let error = "q4_k".parse::<OutType>().unwrap_err().to_string();
        assert!(error.contains("outtype: expected f32, f16, bf16, q8_0, found q4_k"), "{error}");
    }
}
