//! The adapters that are compared on named tasks.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};

use super::lab::{Lab, Rows, TEST_BATCH, TaskRows};
use crate::adapter::{HostTensor, Lora, LoraConfig};
use crate::bank::{
    AtomBank, BASE_EMBEDDINGS, BankConfig, DEFAULT_PROMPT_TEMPLATE, InstructionEncoder, LoadedBank, Routing,
};
use crate::error::Result;
use crate::experiment::baselines::{Mixture, Site, Weighing};
use crate::experiment::tuning::Choice;
use crate::linalg::Random;
use crate::model::{Hook, LoadedAdapter, LoraHook, Sequence};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Bank(Bank),
    /// On q and v, of this rank.
    Lora(usize),
    /// On all linear layers, of this rank.
    LoraEverywhere(usize),
    /// So many LoRAs of rank 1 on q and v, with a router.
    Mixture(usize),
    /// One LoRA of rank 1 on q and v for each task.
    OneEach,
}

/// A bank's sizes, and what is left out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bank {
    pub(super) r: usize,
    pub(super) atoms: usize,
    pub(super) top_k: usize,
    pub(super) routing: Routing,
    pub(super) without: Option<Without>,
}

/// A part that a bank is tried without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Without {
    /// Atoms near the identity in place of orthogonal ones.
    OrthogonalAtoms,
    /// Instruction embeddings as they are.
    Centre,
    /// Both of the above.
    Start,
    Prior,
    Summary,
    /// Neither the state nor the summary, which is made of states.
    State,
}

const QV: [&str; 2] = ["q_proj", "v_proj"];
const EVERYWHERE: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

impl Bank {
    /// The bank that is compared: 16 atoms of rank 4, all of which take part.
    pub(super) const DEFAULT: Self = Self { r: 4, atoms: 16, top_k: 16, routing: Routing::Prompt, without: None };
}

impl Method {
    pub(super) fn name(self) -> String {
        match self {
            Method::Bank(Bank { r, atoms, top_k, routing, without }) => {
                let without = match without {
                    None => "",
                    Some(Without::OrthogonalAtoms) => ", atoms near the identity",
                    Some(Without::Centre) => ", embeddings not centred",
                    Some(Without::Start) => ", atoms near the identity, not centred",
                    Some(Without::Prior) => ", no prior",
                    Some(Without::Summary) => ", no summary",
                    Some(Without::State) => ", no state",
                };
                let chosen = if top_k == atoms { String::new() } else { format!(", top {top_k}") };
                let by_token = if routing == Routing::Token { ", routed by token" } else { "" };
                format!("bank, r {r}, {atoms} atoms{chosen}{by_token}{without}")
            }
            Method::Lora(r) => format!("LoRA, q and v, r {r}"),
            Method::LoraEverywhere(r) => format!("LoRA, all linears, r {r}"),
            Method::Mixture(count) => format!("mixture of {count} LoRAs"),
            Method::OneEach => "one LoRA each".to_owned(),
        }
    }
}

/// An adapter while it is trained.
pub(super) struct Adapted<'a> {
    lab: &'a Lab,
    kind: Kind,
    /// The bank as it was made.
    made: Option<AtomBank>,
    /// What is taken off instruction embeddings, for mixtures; banks have their own.
    centre: Option<Tensor>,
    /// The variables that are trained.
    pub(super) vars: BTreeMap<String, Var>,
}

enum Kind {
    Lora(LoadedAdapter),
    Bank(Box<LoadedBank>),
    Mixture(Mixture),
}

impl<'a> Adapted<'a> {
    pub(super) fn fresh(lab: &'a Lab, method: Method, choice: Choice, rows: &TaskRows, seed: u64) -> Result<Self> {
        let base = lab.model.decoder.config();
        let (device, weights) = (Device::Cpu, lab.model.decoder.weights());
        let distinct: Vec<&[u32]> = rows.instructions.iter().map(Vec::as_slice).collect();
        let centre = InstructionEncoder::BaseEmbeddings.mean(weights, &distinct)?;
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let lora = |r: usize, targets: &[&str]| -> Result<Kind> {
            let config = LoraConfig {
                r,
                lora_alpha: choice.scale * r as f64,
                target_modules: Some(names(targets)),
                ..LoraConfig::default()
            };
            let lora = Lora::fresh(Path::new("experiment"), config, base, seed)?;
            Ok(Kind::Lora(LoadedAdapter::trainable(&lora.tensors, &[], lora.config.scale(), &device)?))
        };
        let mixture = |parts: (usize, usize), weighing: Weighing| -> Result<Kind> {
            let site =
                |linear: crate::arch::Linear| Site { layer: linear.site, d_out: linear.d_out, d_in: linear.d_in };
            let sites: Vec<Site> = base.selected(&names(&QV)).map(site).collect();
            let random = &mut Random::new(seed);
            Ok(Kind::Mixture(Mixture::fresh(&sites, parts, weighing, choice.scale, base.hidden_size, random)?))
        };
        let mut bank_made = None;
        let kind = match method {
            Method::Lora(r) => lora(r, &QV)?,
            Method::LoraEverywhere(r) => lora(r, &EVERYWHERE)?,
            Method::Mixture(count) => mixture((count, 1), Weighing::Router)?,
            Method::OneEach => mixture((rows.instructions.len(), 1), Weighing::Task)?,
            Method::Bank(bank) => {
                let mut made =
                    AtomBank::fresh(Path::new("experiment"), bank.config(choice, base.hidden_size), base, seed)?;
                if !matches!(bank.without, Some(Without::Centre | Without::Start)) {
                    made.center_on(centre.clone());
                }
                bank.leave_out(&mut made, seed);
                let loaded = LoadedBank::trainable(&made, &device)?;
                bank_made = Some(made);
                Kind::Bank(Box::new(loaded))
            }
        };
        let mut vars = match &kind {
            Kind::Lora(lora) => lora.vars().clone(),
            Kind::Bank(bank) => bank.vars().clone(),
            Kind::Mixture(mixture) => mixture.vars.clone(),
        };
        if let Method::Bank(bank) = method {
            vars.retain(|name, _| !bank.left_out().contains(&name.as_str()));
        }
        let centre =
            centre.map(|centre| Tensor::from_slice(&centre.values, centre.shape.as_slice(), &device)).transpose()?;
        Ok(Self { lab, kind, made: bank_made, centre, vars })
    }

    pub(super) fn parameters(&self) -> usize {
        self.vars.values().map(|var| var.elem_count()).sum()
    }

    /// The loss over some rows, a scalar.
    pub(super) fn loss(&self, rows: &Rows, which: &[usize]) -> Result<Tensor> {
        let sequences: Vec<Sequence> = which.iter().map(|row| rows.sequences[*row].clone()).collect();
        let tasks: Vec<usize> = which.iter().map(|row| rows.tasks[*row]).collect();
        self.with_hook(&sequences, &tasks, |hook| self.lab.loss(&sequences, hook))
    }

    /// The share of rows whose answer is right.
    pub(super) fn exact_match(&self, rows: &Rows) -> Result<f64> {
        let mut right = 0;
        for (sequences, tasks) in rows.sequences.chunks(TEST_BATCH).zip(rows.tasks.chunks(TEST_BATCH)) {
            right += self.with_hook(sequences, tasks, |hook| self.lab.right(sequences, hook))?;
        }
        Ok(right as f64 / rows.sequences.len().max(1) as f64)
    }

    /// The bank as it is now; `None` for another method.
    pub(super) fn bank(&self) -> Result<Option<AtomBank>> {
        let Kind::Bank(loaded) = &self.kind else { return Ok(None) };
        let Some(made) = &self.made else { return Ok(None) };
        Ok(Some(AtomBank { tensors: loaded.to_host()?, ..made.clone() }))
    }

    /// Calls `with` with the hook for rows of these tasks.
    fn with_hook<T>(
        &self,
        sequences: &[Sequence],
        tasks: &[usize],
        with: impl FnOnce(&mut dyn Hook) -> Result<T>,
    ) -> Result<T> {
        let weights = self.lab.model.decoder.weights();
        match &self.kind {
            Kind::Lora(lora) => with(&mut LoraHook(lora)),
            Kind::Bank(bank) => with(&mut bank.hook(weights, sequences)?),
            Kind::Mixture(mixture) => {
                let mut e = InstructionEncoder::BaseEmbeddings.embed(weights, sequences)?;
                if let Some(centre) = &self.centre {
                    e = e.broadcast_sub(centre)?;
                    e = e.broadcast_div(&e.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(1e-12)?)?;
                }
                with(&mut mixture.hook(&e, tasks)?)
            }
        }
    }
}

impl Bank {
    fn config(self, choice: Choice, instruction_dim: usize) -> BankConfig {
        BankConfig {
            r: self.r,
            lora_alpha: choice.scale * self.r as f64,
            use_rslora: false,
            target_modules: QV.iter().map(|name| (*name).to_owned()).collect(),
            num_atoms: self.atoms,
            top_k: self.top_k,
            block_size: 2,
            key_dim: 4,
            descriptor_dim: 8,
            instruction_dim,
            instruction_encoder: BASE_EMBEDDINGS.to_owned(),
            routing: self.routing,
            temperature: 1.0,
            prior_strength: if self.without == Some(Without::Prior) { 0.0 } else { 1.0 },
            prior_temperature: 1.0,
            prompt_template: DEFAULT_PROMPT_TEMPLATE.to_owned(),
            base_model_name_or_path: String::new(),
            growth: Vec::new(),
        }
    }

    /// The tensors that stay at zero.
    fn left_out(self) -> &'static [&'static str] {
        match self.without {
            Some(Without::Summary) => &["atom_bank.router.summary_proj.weight"],
            Some(Without::State) => &["atom_bank.router.state_proj.weight", "atom_bank.router.summary_proj.weight"],
            _ => &[],
        }
    }

    fn leave_out(self, bank: &mut AtomBank, seed: u64) {
        for name in self.left_out() {
            if let Some(tensor) = bank.tensors.get_mut(*name) {
                tensor.values = vec![0.0; tensor.values.len()].into();
            }
        }
        if !matches!(self.without, Some(Without::OrthogonalAtoms | Without::Start)) {
            return;
        }
        // The identity and noise of a deviation of 0.5 / sqrt(r).
        let (r, mut random) = (self.r, Random::new(seed ^ 0xa70a));
        let value = |place: usize| {
            let noise = 0.5 / (r as f32).sqrt() * random.normal();
            if (place % (r * r)).is_multiple_of(r + 1) { 1.0 + noise } else { noise }
        };
        let values: Vec<f32> = (0..self.atoms * r * r).map(value).collect();
        let atoms = HostTensor { shape: vec![self.atoms, r, r], values: values.into() };
        bank.tensors.insert("atom_bank.atoms".to_owned(), atoms);
    }
}
