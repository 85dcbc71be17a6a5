//! Rows as the model will see them, before any training.

use candle_core::Device;
use serde::Serialize;

use super::Loader;
use crate::bank::InstructionEncoder;
use crate::error::Result;
use crate::model::{LanguageModel, Residence};
use crate::train::TrainConfig;

/// The first rows of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Preview {
    /// The rows, in the order of the files.
    pub rows: Vec<PreviewRow>,
    /// The number of all rows that are trained on.
    pub total: usize,
    /// What a user should know about the rows, a line each.
    pub notes: Vec<String>,
}

/// A row as tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PreviewRow {
    /// The row's file and number: `rows.jsonl: line 3`.
    pub row: String,
    /// The text that became tokens.
    pub text: String,
    /// The tokens.
    pub ids: Vec<u32>,
    /// Their texts, one by one.
    pub tokens: Vec<String>,
    /// 1 for each token that carries loss.
    pub mask: Vec<u8>,
    /// The number of leading tokens that route in a bank.
    pub routed: usize,
    /// The tokens of the instruction that a bank routes by.
    pub instruction: Vec<u32>,
}

/// Reads the rows of a run, and shows the first `count` of them. All are checked.
///
/// # Errors
/// As [`crate::train::train`], of what concerns rows.
pub fn preview(config: &TrainConfig, count: usize) -> Result<Preview> {
    config.check()?;
    let base = config.base_folder();
    let LanguageModel { decoder, encoder } = LanguageModel::open(base, Residence::Mapped, &Device::Cpu)?;
    let instructions = InstructionEncoder::open(&config.adapter.instruction_encoder, &config.output, &Device::Cpu)?;
    let loader = Loader {
        settings: &config.data,
        base,
        decoder: &decoder,
        encoder: &encoder,
        instructions: &instructions,
        prompt_template: &config.adapter.prompt_template,
    };
    let all = loader.sequences(&config.data.train)?;
    let mut rows = Vec::new();
    for row in all.rows.iter().take(count) {
        let sequence = &row.sequence;
        let tokens: Result<Vec<String>> = sequence.ids.iter().map(|id| encoder.token_text(*id)).collect();
        rows.push(PreviewRow {
            row: row.place.to_string(),
            text: row.text.clone(),
            ids: sequence.ids.clone(),
            tokens: tokens?,
            mask: sequence.targets.iter().map(|is_target| u8::from(*is_target)).collect(),
            routed: sequence.routed,
            instruction: sequence.instruction.clone(),
        });
    }
    Ok(Preview { rows, total: all.rows.len(), notes: all.notes })
}
