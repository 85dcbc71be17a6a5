//! Opens a model that this crate can run: a Hugging Face folder, or a GGUF that can be converted back to one.

use std::path::Path;

use candle_core::Device;

use super::{Decoder, ModelWeights, Residence, TextEncoder};
use crate::arch::{HfFolder, ModelConfig};
use crate::convert::from_gguf;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::formats::gguf::GgufModel;

/// A decoder and its tokenizer.
pub struct LanguageModel {
    /// The decoder.
    pub decoder: Decoder,
    /// Its tokenizer.
    pub encoder: TextEncoder,
}

impl LanguageModel {
    /// Opens the folder or GGUF file at `path`, for computing on `device`.
    ///
    /// # Errors
    /// As [`HfFolder::open`], [`GgufModel::open`] and [`from_gguf`]; [`crate::Error::Unsupported`], naming the
    /// architecture, if no decoder can run it.
    pub fn open(path: &Path, residence: Residence, device: &Device) -> Result<Self> {
        if path.is_file() {
            return Self::of_gguf(path, residence, device);
        }
        let folder = HfFolder::open(path)?;
        // What reads little comes first: a tokenizer that can't be used is known before any weights are read.
        let encoder = TextEncoder::open(path)?;
        Ok(Self { decoder: Decoder::open(&folder, residence, device)?, encoder })
    }

    /// Treats special tokens that are spelled out in a text as text.
    #[must_use]
    pub fn with_special_as_text(self) -> Self {
        Self { encoder: self.encoder.with_special_as_text(), ..self }
    }

    fn of_gguf(path: &Path, residence: Residence, device: &Device) -> Result<Self> {
        let model = GgufModel::open(path)?;
        // F32 rounds nothing: quantized weights give the activations of the quantized model.
        let Some((config, output)) = from_gguf(&model, Some(DType::F32))? else {
            let architecture = model.metadata().text("general.architecture")?;
            let finding = model.metadata().finding("general.architecture").expected("a decoder that this version runs");
            return Err(finding.found(format_args!("{architecture:?}")).unsupported());
        };
        let config = ModelConfig::from_json(path, &config)?;
        let weights = ModelWeights::open(path, &config, &output.plan, residence, device)?;
        let Some(tokenizer) = output.sidecars.files.get("tokenizer.json") else {
            let finding = Finding::new(path, "tokenizer").expected("one that goes back to a tokenizer.json");
            return Err(finding.found("none").hint("use the model's Hugging Face folder").unsupported());
        };
        Ok(Self { decoder: Decoder::new(weights), encoder: TextEncoder::from_json(path, tokenizer)? })
    }
}
