//! What a run reads before its first step: the base, its tokenizer, what embeds instructions, and the rows.

use candle_core::Device;

use super::adapter::TrainedAdapter;
use super::data::{Loaded, Loader};
use super::start::Start;
use super::{AdapterKind, Dataset, TrainConfig, memory};
use crate::bank::{AtomBank, DEFAULT_PROMPT_TEMPLATE, InstructionEncoder};
use crate::error::Result;
use crate::model::{Decoder, LanguageModel, Residence, TextEncoder};

/// The inputs of a run.
pub(super) struct Inputs {
    pub(super) decoder: Decoder,
    pub(super) encoder: TextEncoder,
    pub(super) instructions: InstructionEncoder,
    pub(super) data: Dataset,
    pub(super) eval: Option<Dataset>,
    /// The prompt template of a fresh bank that learns from chats.
    pub(super) prompt_template: Option<String>,
    /// What a user should know about the rows, a line each.
    pub(super) notes: Vec<String>,
    /// The bank that grows.
    pub(super) from: Option<AtomBank>,
}

impl Inputs {
    /// Opens what `config` names, and checks that its settings fit. Settings and the bank that grows are those of
    /// [`super::start::settings`].
    ///
    /// # Errors
    /// Errors in config, base or data.
    pub(super) fn open(config: &TrainConfig, from: Option<AtomBank>, device: &Device) -> Result<Self> {
        config.check()?;
        let residence = if config.training.resident { Residence::Memory } else { Residence::Mapped };
        let LanguageModel { decoder, encoder } = LanguageModel::open(config.base_folder(), residence, device)?;
        // The encoder of a bank that grows may be in the bank's own folder.
        let beside = from.as_ref().map_or(&config.output, |from| &from.path);
        let instructions = InstructionEncoder::open(&config.adapter.instruction_encoder, beside, device)?;
        let (settings, base) = (&config.data, config.base_folder());
        let prompt_template = &config.adapter.prompt_template;
        let loader = Loader {
            settings,
            base,
            decoder: &decoder,
            encoder: &encoder,
            instructions: &instructions,
            prompt_template,
        };
        let Loaded { train: data, eval, prompt_template, mut notes } = loader.load(config.seed)?;
        let is_default = config.kind == AdapterKind::Bank && config.adapter.prompt_template == DEFAULT_PROMPT_TEMPLATE;
        let prompt_template = prompt_template.filter(|_| is_default);
        notes.extend(
            prompt_template.iter().map(|text| {
                format!("the bank keeps the chats' text before an answer as its prompt_template: {text:?}")
            }),
        );
        config.check_size(decoder.config(), instructions.dim(), data.sequences().len())?;
        if let Some(key) = config.needs_evaluation().filter(|_| eval.is_none()) {
            return Err(config.without_evaluation(key));
        }
        Ok(Self { decoder, encoder, instructions, data, eval, prompt_template, notes, from })
    }

    /// The number of rows and tokens for training.
    pub(super) fn size(&self) -> (usize, usize) {
        let sequences = self.data.sequences();
        (sequences.len(), sequences.iter().map(|sequence| sequence.ids.len()).sum())
    }

    /// The number of rows for training, and of rows held out.
    pub(super) fn rows(&self) -> (usize, usize) {
        (self.data.sequences().len(), self.eval.as_ref().map_or(0, |eval| eval.sequences().len()))
    }

    /// The adapter that a run begins with.
    pub(super) fn fresh(&self, config: &TrainConfig) -> Result<TrainedAdapter> {
        Start { config, inputs: self }.adapter()?.started(config, self.decoder.weights())
    }

    /// Whether activations are computed again, as in [`memory::computes_again`].
    pub(super) fn computes_again(&self, config: &TrainConfig, adapter: &TrainedAdapter) -> Result<bool> {
        let longest = self.data.sequences().iter().map(|sequence| sequence.ids.len()).max().unwrap_or(0);
        let tokens = match config.training.batch_tokens {
            0 if config.training.packing => config.data.max_length.min(self.size().1) * config.training.batch_size,
            0 => longest * config.training.batch_size,
            tokens => tokens,
        };
        memory::computes_again(config, self.decoder.config(), adapter.parameters(), tokens)
    }
}
