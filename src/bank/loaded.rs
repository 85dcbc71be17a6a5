//! A bank's tensors on a device, ready for routing.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};

use super::config::INSTRUCTION_CENTER;
use super::{AtomBank, BankConfig, BankHook, InstructionEncoder};
use crate::adapter::Tensors;
use crate::error::{Finding, Result};
use crate::model::{Batch, LoadedAdapter, ModelWeights, Sequence};

/// A bank on a device, with the encoder of its instructions.
pub struct LoadedBank {
    adapter: LoadedAdapter,
    config: BankConfig,
    encoder: InstructionEncoder,
}

impl LoadedBank {
    /// Copies the tensors of `bank` to `device`, without gradients.
    ///
    /// # Errors
    /// [`crate::Error::Compute`] where the device has no room; those of [`InstructionEncoder::open`];
    /// [`crate::Error::Mismatch`] for an encoder whose width isn't the bank's `instruction_dim`.
    pub fn frozen(bank: &AtomBank, device: &Device) -> Result<Self> {
        Self::new(bank, LoadedAdapter::frozen(&bank.tensors, bank.scale(), device)?, device)
    }

    /// Like [`LoadedBank::frozen`], but as variables for which a backward pass computes gradients.
    ///
    /// # Errors
    /// As [`LoadedBank::frozen`].
    pub fn trainable(bank: &AtomBank, device: &Device) -> Result<Self> {
        let fixed = bank.config.optional_tensors().map(|(name, _)| name);
        Self::new(bank, LoadedAdapter::trainable(&bank.tensors, &fixed, bank.scale(), device)?, device)
    }

    fn new(bank: &AtomBank, adapter: LoadedAdapter, device: &Device) -> Result<Self> {
        let config = bank.config.clone();
        let encoder = InstructionEncoder::open(&config.instruction_encoder, &bank.path, device)?;
        match encoder.dim() {
            Some(dim) if dim != config.instruction_dim => Err(Finding::new(&bank.path, "instruction_dim")
                .expected(format_args!("{dim}, the width of {}", config.instruction_encoder))
                .found(config.instruction_dim)
                .mismatch()),
            _ => Ok(Self { adapter, config, encoder }),
        }
    }

    /// Its settings.
    pub fn config(&self) -> &BankConfig {
        &self.config
    }

    /// The encoder of its instructions.
    pub fn encoder(&self) -> &InstructionEncoder {
        &self.encoder
    }

    /// Makes the hook for one pass over `sequences`; `base` has the embeddings that an instruction encoder may need.
    ///
    /// # Errors
    /// As [`InstructionEncoder::embed`]; [`crate::Error::Compute`].
    pub fn hook(&self, base: &ModelWeights, sequences: &[Sequence]) -> Result<BankHook<'_>> {
        BankHook::new(self, &Batch::new(sequences), self.embed(base, sequences)?)
    }

    /// The instruction embeddings of `sequences`, `[B, d_e]`: unit vectors, zeros without an instruction.
    ///
    /// # Errors
    /// As [`InstructionEncoder::embed`].
    pub fn embed(&self, base: &ModelWeights, sequences: &[Sequence]) -> Result<Tensor> {
        self.centered(self.encoder.embed(base, sequences)?)
    }

    /// Instruction embeddings, `[B, d_e]`, without the mean of those that the bank was trained with: unit vectors again.
    fn centered(&self, e: Tensor) -> Result<Tensor> {
        let Some(center) = self.adapter.find(INSTRUCTION_CENTER) else { return Ok(e) };
        let moved = e.broadcast_sub(center)?;
        let length = moved.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(1e-12)?;
        // A sequence without an instruction stays zero.
        let is_there = e.abs()?.sum_keepdim(1)?.gt(0.0)?.to_dtype(e.dtype())?;
        Ok(moved.broadcast_div(&length)?.broadcast_mul(&is_there)?)
    }

    pub(super) fn find(&self, name: &str) -> Option<&Tensor> {
        self.adapter.find(name)
    }

    /// Every variable by its tensor's name, sorted; empty if the bank is frozen.
    pub fn vars(&self) -> &BTreeMap<String, Var> {
        self.adapter.vars()
    }

    /// Copies the current values to the host.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub fn to_host(&self) -> Result<Tensors> {
        self.adapter.to_host()
    }

    /// Chooses whether passes record their computation for the backward pass, as they do at first.
    pub(crate) fn track(&self, is_tracked: bool) {
        self.adapter.track(is_tracked);
    }

    pub(super) fn adapter(&self) -> &LoadedAdapter {
        &self.adapter
    }

    pub(super) fn get(&self, name: &str) -> &Tensor {
        self.adapter.get(name)
    }
}
