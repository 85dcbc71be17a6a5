//! The adapters that are compared, on the hidden layers of the net.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};

use super::net::{LAYERS, TARGET, WIDTH, config, site};
use super::tasks::{Data, Rows, Task};
use crate::adapter::{Lora, LoraConfig};
use crate::arch::ModelConfig;
use crate::bank::{AtomBank, BASE_EMBEDDINGS, BankConfig, BankHook, LoadedBank, Routing};
use crate::error::Result;
use crate::experiment::baselines::{Mixture, Site, Weighing};
use crate::experiment::tuning::Choice;
use crate::linalg::Random;
use crate::model::{Batch, Hook, LoadedAdapter, LoraHook, Sequence};

/// An adapter that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Lora,
    Bank,
    Mixture,
    OneEach,
}

impl Method {
    pub(super) fn for_task(task: Task) -> Vec<Method> {
        match task.has_instructions() {
            true => vec![Method::Lora, Method::Bank, Method::Mixture, Method::OneEach],
            false => vec![Method::Lora, Method::Bank],
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Method::Lora => "LoRA",
            Method::Bank => "bank",
            Method::Mixture => "mixture of LoRAs",
            Method::OneEach => "one LoRA each",
        }
    }
}

/// The bank's rank, atoms, and dimensions of keys and descriptors.
const BANK: (usize, usize, usize, usize) = (4, 8, 8, 8);

/// An adapter while it is trained.
pub(super) enum Adapted {
    Lora(LoadedAdapter),
    Bank(Box<LoadedBank>),
    Mixture(Mixture),
}

impl Adapted {
    pub(super) fn fresh(task: Task, method: Method, choice: Choice, seed: u64) -> Result<Self> {
        let (base, path) = (config()?, Path::new("experiment"));
        let device = Device::Cpu;
        let sites: Vec<Site> =
            (0..LAYERS).map(|layer| Site { layer: site(layer), d_out: WIDTH, d_in: WIDTH }).collect();
        Ok(match method {
            Method::Lora => {
                // As many values as the bank has.
                let r = (bank(choice, &base, seed)?.parameters() as f64 / (2 * WIDTH * LAYERS) as f64).round() as usize;
                let config = LoraConfig {
                    r,
                    lora_alpha: choice.scale * r as f64,
                    target_modules: Some(vec![TARGET.to_owned()]),
                    ..LoraConfig::default()
                };
                let lora = Lora::fresh(path, config, &base, seed)?;
                Self::Lora(LoadedAdapter::trainable(&lora.tensors, &[], lora.config.scale(), &device)?)
            }
            Method::Bank => Self::Bank(Box::new(LoadedBank::trainable(&bank(choice, &base, seed)?, &device)?)),
            Method::Mixture => {
                let parts = (BANK.0 * 2, 1);
                Self::Mixture(Mixture::fresh(
                    &sites,
                    parts,
                    Weighing::Router,
                    choice.scale,
                    WIDTH,
                    &mut Random::new(seed),
                )?)
            }
            Method::OneEach => {
                let parts = (task.regimes(), 2);
                Self::Mixture(Mixture::fresh(
                    &sites,
                    parts,
                    Weighing::Task,
                    choice.scale,
                    WIDTH,
                    &mut Random::new(seed),
                )?)
            }
        })
    }

    pub(super) fn vars(&self) -> &BTreeMap<String, Var> {
        match self {
            Self::Lora(lora) => lora.vars(),
            Self::Bank(bank) => bank.vars(),
            Self::Mixture(mixture) => &mixture.vars,
        }
    }

    pub(super) fn parameters(&self) -> usize {
        self.vars().values().map(|var| var.elem_count()).sum()
    }

    /// Calls `with` with the hook for some rows.
    pub(super) fn with_hook<T>(
        &self,
        data: &Data,
        rows: &Rows,
        which: &[usize],
        with: impl FnOnce(&mut dyn Hook) -> Result<T>,
    ) -> Result<T> {
        let tasks: Vec<usize> = which.iter().map(|row| rows.regime[*row]).collect();
        let e = || embeddings(data, &tasks);
        match self {
            Self::Lora(lora) => with(&mut LoraHook(lora)),
            Self::Mixture(mixture) => with(&mut mixture.hook(&e()?, &tasks)?),
            Self::Bank(bank) => {
                let one = Sequence { ids: vec![0], routed: 1, ..Sequence::default() };
                let batch = Batch::new(&vec![one; which.len()]);
                with(&mut BankHook::new(bank, &batch, e()?)?)
            }
        }
    }
}

/// The instruction embeddings of rows, `[n, WIDTH]`, or zeros where the task has no instructions.
fn embeddings(data: &Data, tasks: &[usize]) -> Result<Tensor> {
    let values: Vec<f32> = match data.instructions.is_empty() {
        true => vec![0.0; tasks.len() * WIDTH],
        false => tasks.iter().flat_map(|task| data.instructions[*task].iter().copied()).collect(),
    };
    Ok(Tensor::from_vec(values, (tasks.len(), WIDTH), &Device::Cpu)?)
}

fn bank(choice: Choice, base: &ModelConfig, seed: u64) -> Result<AtomBank> {
    let (r, num_atoms, key_dim, descriptor_dim) = BANK;
    let config = BankConfig {
        r,
        lora_alpha: choice.scale * r as f64,
        use_rslora: false,
        target_modules: vec![TARGET.to_owned()],
        num_atoms,
        top_k: num_atoms,
        block_size: 2,
        key_dim,
        descriptor_dim,
        instruction_dim: WIDTH,
        instruction_encoder: BASE_EMBEDDINGS.to_owned(),
        routing: Routing::Prompt,
        temperature: 1.0,
        prior_strength: 1.0,
        prior_temperature: 1.0,
        prompt_template: String::new(),
        base_model_name_or_path: String::new(),
        growth: Vec::new(),
    };
    AtomBank::fresh(Path::new("experiment"), config, base, seed)
}
