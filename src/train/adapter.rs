//! The adapter that is trained: an atom bank or a plain LoRA, in memory and on a device.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};

use super::dropout::{Dropout, Dropped};
use super::lora::TrainedLora;
use super::{AdapterKind, TrainConfig};
use crate::adapter::{Lora, Tensors};
use crate::arch::ModelConfig;
use crate::bank::{AtomBank, BankHook, LoadedBank, Regularizer};
use crate::error::Result;
use crate::model::{Batch, Hook, LoadedAdapter, LoraHook, ModelWeights, Sequence};
use crate::output::Output;

/// An adapter that is trained, in memory.
#[derive(Debug, Clone)]
pub(super) enum TrainedAdapter {
    Bank(AtomBank),
    /// A bank of which only the newest part is trained.
    Growing(AtomBank),
    Lora(TrainedLora),
}

impl TrainedAdapter {
    /// Makes the untrained adapter that `config` describes; errors name `path`.
    pub(super) fn fresh(
        path: &Path,
        config: &TrainConfig,
        base: &ModelConfig,
        instruction_dim: Option<usize>,
    ) -> Result<Self> {
        match config.kind {
            AdapterKind::Bank | AdapterKind::Grow => {
                let bank = config.bank_config(base, instruction_dim);
                AtomBank::fresh(path, bank, base, config.seed).map(Self::Bank)
            }
            AdapterKind::Lora => TrainedLora::fresh(path, config, base).map(Self::Lora),
        }
    }

    /// The same with what its start takes from the base's weights.
    pub(super) fn started(self, config: &TrainConfig, weights: &ModelWeights) -> Result<Self> {
        match self {
            Self::Lora(lora) => lora.started(config, weights).map(Self::Lora),
            bank => Ok(bank),
        }
    }

    /// Reads the adapter of a checkpoint of a run with these settings.
    pub(super) fn open(folder: &Path, config: &TrainConfig) -> Result<Self> {
        match AtomBank::is_in(folder)? {
            true => AtomBank::open(folder).map(Self::Bank),
            false => TrainedLora::open(folder, config).map(Self::Lora),
        }
    }

    /// The same adapter, as a run of this kind trains it.
    pub(super) fn trained_as(self, kind: AdapterKind) -> Self {
        match (self, kind) {
            (Self::Bank(bank), AdapterKind::Grow) => Self::Growing(bank),
            (adapter, _) => adapter,
        }
    }

    pub(super) fn check_base(&self, base: &ModelConfig) -> Result<()> {
        match self {
            Self::Bank(bank) | Self::Growing(bank) => bank.check_base(base),
            Self::Lora(trained) => trained.lora.check_base(base),
        }
    }

    pub(super) fn tensors(&self) -> &Tensors {
        match self {
            Self::Bank(bank) | Self::Growing(bank) => &bank.tensors,
            Self::Lora(trained) => &trained.lora.tensors,
        }
    }

    /// `config`, with the sizes of a bank that it leaves to the data.
    pub(super) fn sizes_in(&self, config: &TrainConfig) -> TrainConfig {
        let mut config = config.clone();
        if let Self::Bank(bank) = self {
            let (sizes, bank) = (&mut config.adapter, &bank.config);
            sizes.num_atoms = Some(bank.num_atoms);
            sizes.top_k = Some(bank.top_k);
            sizes.key_dim = Some(bank.key_dim);
            sizes.descriptor_dim = Some(bank.descriptor_dim);
        }
        config
    }

    /// The names of the tensors that are trained, at least in part.
    pub(super) fn trained_names(&self) -> Vec<&String> {
        let is_trained = |name: &str| match self {
            Self::Bank(bank) => bank.is_trained(name),
            Self::Growing(_) => AtomBank::grows(name),
            Self::Lora(_) => true,
        };
        self.tensors().keys().filter(|name| is_trained(name)).collect()
    }

    /// The same adapter with other values.
    pub(super) fn with_tensors(&self, tensors: Tensors) -> Self {
        match self.clone() {
            Self::Bank(bank) => Self::Bank(AtomBank { tensors, ..bank }),
            Self::Growing(bank) => Self::Growing(AtomBank { tensors, ..bank }),
            Self::Lora(lora) => Self::Lora(lora.with_tensors(tensors)),
        }
    }

    /// The number of values that are trained.
    pub(super) fn parameters(&self) -> usize {
        match self {
            Self::Bank(bank) => bank.parameters(),
            Self::Growing(bank) => bank.grown_parameters(),
            Self::Lora(trained) => trained.lora.parameters(),
        }
    }

    pub(super) fn save_over(&self, folder: &Path) -> Result<()> {
        match self {
            Self::Bank(bank) | Self::Growing(bank) => bank.save_over(folder),
            Self::Lora(lora) => lora.saved().save_over(folder),
        }
    }

    pub(super) fn output(&self) -> Result<Output> {
        match self {
            Self::Bank(bank) | Self::Growing(bank) => bank.output(),
            Self::Lora(lora) => Ok(lora.saved().output()),
        }
    }

    pub(super) fn trainable(&self, device: &Device) -> Result<Trainable> {
        match self {
            Self::Bank(bank) => Trainable::bank(bank, device),
            Self::Growing(bank) => Trainable::growing(bank, device),
            Self::Lora(lora) => lora.trainable(device).map(Trainable::Lora),
        }
    }
}

/// The variables of an adapter on a device.
pub enum Trainable {
    /// Those of an atom bank.
    Bank(Box<LoadedBank>),
    /// Those of a plain LoRA.
    Lora(LoadedAdapter),
}

impl Trainable {
    /// Copies `bank` to `device` as variables.
    ///
    /// # Errors
    /// As [`LoadedBank::trainable`].
    pub fn bank(bank: &AtomBank, device: &Device) -> Result<Self> {
        LoadedBank::trainable(bank, device).map(|bank| Self::Bank(Box::new(bank)))
    }

    /// Copies `bank`, which has grown, to `device`: what its last growth added are variables.
    ///
    /// # Errors
    /// As [`LoadedBank::growing`].
    pub fn growing(bank: &AtomBank, device: &Device) -> Result<Self> {
        LoadedBank::growing(bank, device).map(|bank| Self::Bank(Box::new(bank)))
    }

    /// Copies `lora` to `device` as variables.
    ///
    /// # Errors
    /// As [`LoadedAdapter::trainable`].
    pub fn lora(lora: &Lora, device: &Device) -> Result<Self> {
        LoadedAdapter::trainable(&lora.tensors, &[], lora.config.scale(), device)
            .map(|adapter| Self::Lora(adapter.with_settings(lora)))
    }

    /// Every variable by its tensor's name, sorted.
    pub fn vars(&self) -> &BTreeMap<String, Var> {
        match self {
            Self::Bank(bank) => bank.vars(),
            Self::Lora(lora) => lora.vars(),
        }
    }

    /// The part of a variable's gradient that counts.
    pub(super) fn masked(&self, name: &str, gradient: Tensor) -> Result<Tensor> {
        match self {
            Self::Bank(bank) => match bank.masks().get(name) {
                Some(mask) => Ok((gradient * mask)?),
                None => Ok(gradient),
            },
            Self::Lora(_) => Ok(gradient),
        }
    }

    /// Copies the current values to the host.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub fn to_host(&self) -> Result<Tensors> {
        match self {
            Self::Bank(bank) => bank.to_host(),
            Self::Lora(lora) => lora.to_host(),
        }
    }

    /// Chooses whether passes record their computation for the backward pass, as they do at first.
    pub(crate) fn track(&self, is_tracked: bool) {
        match self {
            Self::Bank(bank) => bank.track(is_tracked),
            Self::Lora(lora) => lora.track(is_tracked),
        }
    }

    /// Makes the hook for one pass over `batch`, in which `sequences` lie, with dropout for LoRAs alone.
    pub(super) fn hook(
        &self,
        base: &ModelWeights,
        sequences: &[Sequence],
        batch: &Batch,
        dropout: Option<Dropout>,
    ) -> Result<TrainedHook<'_>> {
        Ok(match (self, dropout) {
            (Self::Bank(bank), _) => TrainedHook::Bank(Box::new(bank.hook_on(base, sequences, batch)?)),
            (Self::Lora(lora), None) => TrainedHook::Lora(LoraHook(lora)),
            (Self::Lora(lora), Some(dropout)) => TrainedHook::Dropped(Dropped { hook: LoraHook(lora), dropout }),
        })
    }
}

/// The hook of the trained adapter, of either kind.
pub(super) enum TrainedHook<'a> {
    Bank(Box<BankHook<'a>>),
    Lora(LoraHook<'a>),
    Dropped(Dropped<LoraHook<'a>>),
}

impl TrainedHook<'_> {
    pub(super) fn as_hook(&mut self) -> &mut dyn Hook {
        match self {
            Self::Bank(hook) => &mut **hook,
            Self::Lora(hook) => hook,
            Self::Dropped(hook) => hook,
        }
    }

    /// The regularizers of a bank's routing, after the pass; `None` if there is nothing to
    /// regularize.
    pub(super) fn regularization(&self, strength: Regularizer) -> Result<Option<Tensor>> {
        match self {
            Self::Bank(hook) if strength.prior > 0.0 || strength.balance > 0.0 => {
                hook.regularization(strength).map(Some)
            }
            _ => Ok(None),
        }
    }
}
