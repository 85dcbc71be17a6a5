//! A bank's tensors on a device, ready for routing.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};

use super::config::{INSTRUCTION_CENTER, PRIOR_BIAS};
use super::stage::padded;
use super::{AtomBank, BankConfig, BankHook, InstructionEncoder};
use crate::adapter::{HostTensor, Tensors};
use crate::error::{Finding, Result};
use crate::model::{Batch, LoadedAdapter, ModelWeights, Sequence, log_softmax_last, ops};

/// The logarithm of a prior's share below which an atom's weight is exactly 0 in f32, whatever the state adds to its
/// logit: the smallest number above 0 is about exp(-103).
const NO_PART: f32 = -200.0;

/// A bank on a device, with the encoder of its instructions.
pub struct LoadedBank {
    current: LoadedStage,
    /// The bank before each of its growths, the latest first.
    earlier: Vec<LoadedStage>,
    encoder: InstructionEncoder,
    /// Which part of each variable's gradient counts, for a bank that grows: 1 for new values, 0 for old ones.
    masks: BTreeMap<String, Tensor>,
}

/// The tensors and settings of a bank at one stage of its growth.
pub(super) struct LoadedStage {
    pub(super) adapter: LoadedAdapter,
    pub(super) config: BankConfig,
}

impl LoadedStage {
    fn frozen(bank: &AtomBank, device: &Device) -> Result<Self> {
        let adapter = LoadedAdapter::frozen(&bank.tensors, bank.scale(), device)?;
        Ok(Self { adapter, config: bank.config.clone() })
    }

    pub(super) fn find(&self, name: &str) -> Option<&Tensor> {
        self.adapter.find(name)
    }

    pub(super) fn get(&self, name: &str) -> &Tensor {
        self.adapter.get(name)
    }

    /// `log pi(e)`, `[B, K]` (step 4), for instruction embeddings `e`, `[B, d_e]`. Uniform where there is no instruction.
    pub(super) fn log_prior(&self, e: &Tensor) -> Result<Tensor> {
        let projected = ops::linear(e, self.get("atom_bank.prior.proj.weight"))?;
        let scores = ops::linear(&projected, self.get("atom_bank.descriptors"))?;
        let scale = (self.config.descriptor_dim as f64).sqrt() * self.config.prior_temperature;
        let mut scores = (scores * (1.0 / scale))?;
        if let Some(bias) = self.find(PRIOR_BIAS) {
            // Without an instruction, the prior is uniform.
            let is_there = has_instruction(e)?.to_dtype(scores.dtype())?;
            scores = (scores + is_there.broadcast_mul(&bias.unsqueeze(0)?)?)?;
        }
        Ok(log_softmax_last(&scores)?)
    }

    /// Whether an atom from number `before` on can take part for one of the instruction embeddings `e`. Without an
    /// instruction, none does.
    fn uses_atoms_from(&self, before: usize, e: &Tensor) -> Result<bool> {
        let factor = (self.config.prior_strength / self.config.temperature) as f32;
        let (priors, there) = (self.log_prior(e)?.to_vec2::<f32>()?, has_instruction(e)?.to_vec2::<u8>()?);
        let can = |prior: &Vec<f32>| prior[before..].iter().any(|log| factor.is_nan() || factor * log >= NO_PART);
        Ok(priors.iter().zip(&there).any(|(prior, there)| there[0] == 1 && can(prior)))
    }
}

/// For each of the embeddings `e`, `[B, d_e]`, whether there is an instruction: `[B, 1]`, 1 or 0.
pub(super) fn has_instruction(e: &Tensor) -> Result<Tensor> {
    Ok(e.abs()?.sum_keepdim(1)?.gt(0.0)?)
}

/// Instruction embeddings `e`, `[B, d_e]`, without `center`, `[d_e]`: unit vectors again. A sequence without an instruction
/// stays zero.
pub(crate) fn centered(e: &Tensor, center: &Tensor) -> Result<Tensor> {
    let moved = e.broadcast_sub(center)?;
    let length = moved.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(1e-12)?;
    let is_there = has_instruction(e)?.to_dtype(e.dtype())?;
    Ok(moved.broadcast_div(&length)?.broadcast_mul(&is_there)?)
}

impl LoadedBank {
    /// Copies the tensors of `bank` to `device`, without gradients.
    ///
    /// # Errors
    /// [`crate::Error::Compute`] where the device has no room; those of [`InstructionEncoder::open`];
    /// [`crate::Error::Mismatch`] for an encoder whose width isn't the bank's `instruction_dim`.
    pub fn frozen(bank: &AtomBank, device: &Device) -> Result<Self> {
        Self::new(bank, LoadedStage::frozen(bank, device)?, BTreeMap::new(), device)
    }

    /// Like [`LoadedBank::frozen`], but as variables for which a backward pass computes gradients.
    ///
    /// # Errors
    /// As [`LoadedBank::frozen`].
    pub fn trainable(bank: &AtomBank, device: &Device) -> Result<Self> {
        let fixed = bank.config.optional_tensors().map(|(name, _)| name);
        let adapter = LoadedAdapter::trainable(&bank.tensors, &fixed, bank.scale(), device)?;
        Self::new(bank, LoadedStage { adapter, config: bank.config.clone() }, BTreeMap::new(), device)
    }

    /// Like [`LoadedBank::trainable`] for a bank that grows: the last atom and the factors are variables, and
    /// [`LoadedBank::masks`] tells their new values from the old ones. A bank that hasn't grown has no variables.
    ///
    /// # Errors
    /// As [`LoadedBank::frozen`].
    pub fn growing(bank: &AtomBank, device: &Device) -> Result<Self> {
        let Some(before) = bank.before_growth() else { return Self::frozen(bank, device) };
        let fixed: Vec<&str> = bank.tensors.keys().map(String::as_str).filter(|name| !AtomBank::grows(name)).collect();
        let adapter = LoadedAdapter::trainable(&bank.tensors, &fixed, bank.scale(), device)?;
        let mut masks = BTreeMap::new();
        for name in adapter.vars().keys() {
            let (old, shape) = (&before.tensors[name].shape, &bank.tensors[name].shape);
            let old = HostTensor { shape: old.clone(), values: vec![1.0; old.iter().product()].into() };
            let mut new: Vec<f32> = padded(&old, shape).values.iter().map(|old| 1.0 - old).collect();
            if let (&[_, r, _], &[atoms, ..]) = (shape.as_slice(), old.shape.as_slice()) {
                // Old atoms keep the zeros with which they are padded.
                new[..atoms * r * r].fill(0.0);
            }
            masks.insert(name.clone(), Tensor::from_vec(new, shape.as_slice(), device)?);
        }
        Self::new(bank, LoadedStage { adapter, config: bank.config.clone() }, masks, device)
    }

    fn new(bank: &AtomBank, current: LoadedStage, masks: BTreeMap<String, Tensor>, device: &Device) -> Result<Self> {
        let encoder = InstructionEncoder::open(&current.config.instruction_encoder, &bank.path, device)?;
        if let Some(dim) = encoder.dim().filter(|dim| *dim != current.config.instruction_dim) {
            return Err(Finding::new(&bank.path, "instruction_dim")
                .expected(format_args!("{dim}, the width of {}", current.config.instruction_encoder))
                .found(current.config.instruction_dim)
                .mismatch());
        }
        let mut earlier = Vec::new();
        let mut before = bank.before_growth();
        while let Some(bank) = before {
            earlier.push(LoadedStage::frozen(&bank, device)?);
            before = bank.before_growth();
        }
        Ok(Self { current, earlier, encoder, masks })
    }

    /// Its settings.
    pub fn config(&self) -> &BankConfig {
        &self.current.config
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
        self.hook_on(base, sequences, &Batch::new(sequences))
    }

    /// As [`LoadedBank::hook`], for a pass over `batch`, in which `sequences` lie.
    ///
    /// # Errors
    /// As [`LoadedBank::hook`].
    pub fn hook_on(&self, base: &ModelWeights, sequences: &[Sequence], batch: &Batch) -> Result<BankHook<'_>> {
        BankHook::new(self, batch, self.embed(base, sequences)?)
    }

    /// The stage that computes a pass with instruction embeddings `e`, `[B, d_e]`: the earliest that has every atom which
    /// can take part. Its bits are those of the bank at that stage.
    pub(super) fn stage(&self, e: &Tensor) -> Result<&LoadedStage> {
        let mut stage = &self.current;
        for before in &self.earlier {
            if stage.uses_atoms_from(before.config.num_atoms, e)? {
                break;
            }
            stage = before;
        }
        Ok(stage)
    }

    /// The stage with all atoms.
    pub(super) fn last_stage(&self) -> &LoadedStage {
        &self.current
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
        let Some(center) = self.current.find(INSTRUCTION_CENTER) else { return Ok(e) };
        centered(&e, center)
    }

    /// Every variable by its tensor's name, sorted; empty if the bank is frozen.
    pub fn vars(&self) -> &BTreeMap<String, Var> {
        self.current.adapter.vars()
    }

    /// For a bank that grows, by the name of a variable, 1 for values that are trained and 0 for the others, in the
    /// variable's shape. Empty where all values are trained.
    pub fn masks(&self) -> &BTreeMap<String, Tensor> {
        &self.masks
    }

    /// Copies the current values to the host.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub fn to_host(&self) -> Result<Tensors> {
        self.current.adapter.to_host()
    }

    /// Chooses whether passes record their computation for the backward pass, as they do at first.
    pub(crate) fn track(&self, is_tracked: bool) {
        self.current.adapter.track(is_tracked);
    }
}
