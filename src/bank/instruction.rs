//! Instruction embeddings, by which a bank routes: from the base model's own embeddings, or from a sentence encoder.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::{BASE_EMBEDDINGS, fill_template};
use crate::adapter::HostTensor;
use crate::error::{Finding, Result};
use crate::model::{ModelWeights, SentenceEncoder, Sequence, TextEncoder};

/// Computes instruction embeddings.
pub enum InstructionEncoder {
    /// The mean of the base model's input embeddings of the instruction's tokens, L2-normalised.
    BaseEmbeddings,
    /// A sentence encoder with its own tokenizer.
    Sentence(Box<SentenceEncoder>),
}

impl InstructionEncoder {
    /// Opens the encoder that a bank's settings call `name`: "base-embeddings", or a folder. The path is tried as it
    /// is, then as [`InstructionEncoder::folder_beside`] says.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] where there is no such folder; errors of opening it.
    pub fn open(name: &str, beside: &Path, device: &Device) -> Result<Self> {
        if name == BASE_EMBEDDINGS {
            return Ok(Self::BaseEmbeddings);
        }
        let as_it_is = Some(PathBuf::from(name)).filter(|folder| folder.is_dir());
        let folder = as_it_is.or_else(|| Self::folder_beside(name, beside)).ok_or_else(|| {
            Finding::new(beside, "instruction_encoder")
                .expected(format_args!("{BASE_EMBEDDINGS} or the folder of a sentence encoder"))
                .found(name)
                .hint("names on the Hugging Face hub are not fetched: download the encoder first")
                .mismatch()
        })?;
        Ok(Self::Sentence(Box::new(SentenceEncoder::open(&folder, device)?)))
    }

    /// The folder of an encoder that lies beside a bank: in the bank's folder `beside`, or in the folder that this one is
    /// in, as for a checkpoint of a run and for a bank's file. `None` where there is no such folder.
    pub fn folder_beside(name: &str, beside: &Path) -> Option<PathBuf> {
        let folders = [Some(beside), beside.parent()];
        folders.into_iter().flatten().map(|folder| folder.join(name)).find(|folder| folder.is_dir())
    }

    /// The length of its embeddings; `None` stands for the base model's hidden size.
    pub fn dim(&self) -> Option<usize> {
        match self {
            Self::BaseEmbeddings => None,
            Self::Sentence(encoder) => Some(encoder.dim()),
        }
    }

    /// The instruction's tokens: those of the base's tokenizer without special tokens, or those of the sentence
    /// encoder's tokenizer with them.
    ///
    /// # Errors
    /// [`crate::Error::Format`]; [`crate::Error::Mismatch`] for a text longer than the encoder reads.
    pub fn tokens(&self, base: &TextEncoder, instruction: &str) -> Result<Vec<u32>> {
        match self {
            _ if instruction.is_empty() => Ok(Vec::new()),
            Self::BaseEmbeddings => base.encode(instruction, false),
            Self::Sentence(encoder) => encoder.tokens(instruction),
        }
    }

    /// The sequence that is routed for an instruction and a prompt: `template`, filled in and encoded by `base` with
    /// special tokens, and the instruction's own tokens.
    ///
    /// # Errors
    /// As [`TextEncoder::sequence`] and [`InstructionEncoder::tokens`].
    pub fn routed(&self, base: &TextEncoder, template: &str, instruction: &str, prompt: &str) -> Result<Sequence> {
        let sequence = base.sequence(&fill_template(template, instruction, prompt))?;
        Ok(Sequence { instruction: self.tokens(base, instruction)?, ..sequence })
    }

    /// Embeddings of a batch's instructions, `[B, d_e]`, with unit L2 norm; zero where there is no instruction.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for an id outside the vocabulary.
    pub fn embed(&self, weights: &ModelWeights, sequences: &[Sequence]) -> Result<Tensor> {
        let dim = self.dim().unwrap_or(weights.config().hidden_size);
        let mut rows = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            if sequence.instruction.is_empty() {
                rows.push(Tensor::zeros(dim, DType::F32, weights.device())?);
                continue;
            }
            let tokens = match self {
                Self::BaseEmbeddings => weights.embed(&sequence.instruction)?,
                Self::Sentence(encoder) => encoder.hidden(&sequence.instruction)?,
            };
            let mean = tokens.mean(0)?;
            let norm = mean.sqr()?.sum_keepdim(0)?.sqrt()?.maximum(1e-12)?;
            rows.push(mean.broadcast_div(&norm)?);
        }
        Ok(Tensor::stack(&rows, 0)?)
    }

    /// The mean of the embeddings of distinct instructions, given by their tokens: `[d_e]`. `None` for fewer than two,
    /// where the embedding itself would be left with nothing.
    ///
    /// # Errors
    /// As [`InstructionEncoder::embed`].
    pub fn mean(&self, weights: &ModelWeights, distinct: &[&[u32]]) -> Result<Option<HostTensor>> {
        if distinct.len() < 2 {
            return Ok(None);
        }
        let mut sum: Vec<f64> = Vec::new();
        for tokens in distinct {
            let sequence = Sequence { instruction: tokens.to_vec(), ..Sequence::default() };
            let e = self.embed(weights, &[sequence])?.flatten_all()?.to_vec1::<f32>()?;
            sum.resize(e.len(), 0.0);
            sum.iter_mut().zip(e).for_each(|(sum, e)| *sum += f64::from(e));
        }
        let values: Vec<f32> = sum.iter().map(|sum| (sum / distinct.len() as f64) as f32).collect();
        Ok(Some(HostTensor { shape: vec![values.len()], values: values.into() }))
    }
}
