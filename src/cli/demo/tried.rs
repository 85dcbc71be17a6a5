//! How often a model gives exactly the answer of a row.

use anyhow::Result;
use atombank::adapter::Lora;
use atombank::bank::{AtomBank, DEFAULT_PROMPT_TEMPLATE, InstructionEncoder, LoadedBank};
use atombank::model::{
    Decoder, Hook, LanguageModel, LoadedAdapter, LoraHook, NoAdapter, Sequence, TextEncoder, greedy,
};
use atombank::train::TrainingRow;
use candle_core::Device;

/// The adapter with which a model's answers are tried.
pub(super) enum Tried {
    Nothing,
    Lora(LoadedAdapter),
    Bank(Box<LoadedBank>),
}

impl Tried {
    pub(super) fn lora(lora: &Lora, device: &Device) -> Result<Self> {
        Ok(Self::Lora(LoadedAdapter::frozen(&lora.tensors, lora.config.scale(), device)?))
    }

    pub(super) fn bank(bank: &AtomBank, device: &Device) -> Result<Self> {
        Ok(Self::Bank(Box::new(LoadedBank::frozen(bank, device)?)))
    }

    /// The share of `rows` that the model answers exactly, in percent.
    pub(super) fn exact(&self, model: &LanguageModel, rows: &[&TrainingRow]) -> Result<f64> {
        let LanguageModel { decoder, encoder } = model;
        let sequences = self.sequences(encoder, rows)?;
        let longest = rows.iter().map(|row| row.completion.len()).max().unwrap_or(0);
        let answers = greedy(decoder, &mut *self.hook(decoder, &sequences)?, &sequences, longest + 2, false)?;
        let mut right = 0;
        for (row, answer) in rows.iter().zip(&answers) {
            right += usize::from(answer.ended && encoder.decode(&answer.ids)? == row.completion);
        }
        Ok(100.0 * right as f64 / rows.len().max(1) as f64)
    }

    fn sequences(&self, encoder: &TextEncoder, rows: &[&TrainingRow]) -> Result<Vec<Sequence>> {
        let (template, instructions) = match self {
            Tried::Bank(bank) => (bank.config().prompt_template.as_str(), bank.encoder()),
            _ => (DEFAULT_PROMPT_TEMPLATE, &InstructionEncoder::BaseEmbeddings),
        };
        let sequence = |row: &&TrainingRow| instructions.routed(encoder, template, &row.instruction, &row.prompt);
        Ok(rows.iter().map(sequence).collect::<atombank::Result<_>>()?)
    }

    fn hook(&self, decoder: &Decoder, sequences: &[Sequence]) -> Result<Box<dyn Hook + '_>> {
        Ok(match self {
            Tried::Nothing => Box::new(NoAdapter),
            Tried::Lora(lora) => Box::new(LoraHook(lora)),
            Tried::Bank(bank) => Box::new(bank.hook(decoder.weights(), sequences)?),
        })
    }
}
