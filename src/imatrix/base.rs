//! Opening a model to measure: a Hugging Face folder, or a GGUF whose table reads back.

use std::path::Path;

use candle_core::Device;

use crate::arch::{HfFolder, ModelConfig};
use crate::convert::{Restored, from_gguf};
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::formats::gguf::GgufModel;
use crate::model::{Decoder, ModelWeights, Residence, TextEncoder};

/// A decoder and its tokenizer.
pub struct Base {
    /// The decoder; its weights stay in their files.
    pub decoder: Decoder,
    /// Its tokenizer. Special tokens that are spelled out in a text are text to it.
    pub encoder: TextEncoder,
}

impl Base {
    /// Opens the folder or GGUF file at `path`, to be computed on `device`.
    ///
    /// # Errors
    /// As [`HfFolder::open`], [`GgufModel::open`] and [`from_gguf`]; [`crate::Error::Unsupported`] naming
    /// the architecture where [`crate::model`] can't run it.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let (decoder, encoder) = match path.is_file() {
            true => of_gguf(path, device)?,
            false => {
                let folder = HfFolder::open(path)?;
                (Decoder::open(&folder, Residence::Streamed, device)?, TextEncoder::open(path)?)
            }
        };
        Ok(Self { decoder, encoder: encoder.with_special_as_text() })
    }
}

fn of_gguf(path: &Path, device: &Device) -> Result<(Decoder, TextEncoder)> {
    let model = GgufModel::open(path)?;
    // In F32 nothing is rounded: quantized weights give the activations of the quantized model.
    let Some(Restored { config, plan, files, .. }) = from_gguf(&model, Some(DType::F32))? else {
        let architecture = model.metadata().text("general.architecture")?;
        let finding = model.metadata().finding("general.architecture").expected("a decoder that this version runs");
        return Err(finding.found(format_args!("{architecture:?}")).unsupported());
    };
    let config = ModelConfig::from_json(path, &config)?;
    let weights = ModelWeights::open(path, &config, &plan, Residence::Streamed, device)?;
    let Some((_, tokenizer)) = files.iter().find(|(name, _)| name == "tokenizer.json") else {
        let finding = Finding::new(path, "tokenizer").expected("one that goes back to a tokenizer.json");
        return Err(finding.found("none").hint("use the model's Hugging Face folder").unsupported());
    };
    Ok((Decoder::new(weights), TextEncoder::from_json(path, tokenizer)?))
}
