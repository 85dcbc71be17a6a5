//! An adapter while it is trained and tried.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};

use super::BATCH;
use super::lab::{Lab, Rows, TEST_BATCH, TaskRows};
use super::methods::{EVERYWHERE, Method, QV};
use crate::adapter::{Lora, LoraConfig};
use crate::arch::Linear;
use crate::bank::{AtomBank, InstructionEncoder, Regularizer, centered};
use crate::error::Result;
use crate::experiment::baselines::{Mixture, Site, Weighing};
use crate::experiment::tuning::{Choice, gradients};
use crate::linalg::Random;
use crate::model::{Hook, LoraHook, Sequence};
use crate::train::{Gradients, Objective, Trainable};

/// An adapter on the base of a lab.
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
    Trained(Trainable),
    Mixture(Mixture),
}

impl<'a> Adapted<'a> {
    pub(super) fn fresh(lab: &'a Lab, method: Method, choice: Choice, rows: &TaskRows, seed: u64) -> Result<Self> {
        let base = lab.model.decoder.config();
        let distinct: Vec<&[u32]> = rows.instructions.iter().map(Vec::as_slice).collect();
        let centre = InstructionEncoder::BaseEmbeddings.mean(lab.model.decoder.weights(), &distinct)?;
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let lora = |r: usize, targets: &[&str]| -> Result<Kind> {
            let config = LoraConfig {
                r,
                lora_alpha: choice.scale * r as f64,
                target_modules: Some(names(targets)),
                ..LoraConfig::default()
            };
            let lora = Lora::fresh(Path::new("experiment"), config, base, seed)?;
            Ok(Kind::Trained(Trainable::lora(&lora, &Device::Cpu)?))
        };
        let mixture = |parts: (usize, usize), weighing: Weighing| -> Result<Kind> {
            let site = |linear: Linear| Site { layer: linear.site, d_out: linear.d_out, d_in: linear.d_in };
            let sites: Vec<Site> = base.selected(&names(&QV)).map(site).collect();
            let random = &mut Random::new(seed);
            Ok(Kind::Mixture(Mixture::fresh(&sites, parts, weighing, choice.scale, base.hidden_size, random)?))
        };
        let mut made = None;
        let kind = match method {
            Method::Lora(r) => lora(r, &QV)?,
            Method::LoraEverywhere(r) => lora(r, &EVERYWHERE)?,
            Method::Mixture(count) => mixture((count, 1), Weighing::Router)?,
            Method::OneEach => mixture((rows.instructions.len(), 1), Weighing::Task)?,
            Method::Bank(bank) => {
                let bank = bank.fresh(choice, base, centre.clone(), seed)?;
                let trainable = Trainable::bank(&bank, &Device::Cpu)?;
                made = Some(bank);
                Kind::Trained(trainable)
            }
        };
        let centre = centre.map(|c| Tensor::from_slice(&c.values, c.shape.as_slice(), &Device::Cpu)).transpose()?;
        let mut adapted = Self { lab, vars: kind.vars().clone(), kind, made, centre };
        if let Method::Bank(bank) = method {
            adapted.vars.retain(|name, _| !bank.fixed().contains(&name.as_str()));
        }
        Ok(adapted)
    }

    /// A bank that has grown, of which the new part is trained.
    pub(super) fn growing(lab: &'a Lab, bank: AtomBank) -> Result<Self> {
        let kind = Kind::Trained(Trainable::growing(&bank, &Device::Cpu)?);
        Ok(Self { lab, vars: kind.vars().clone(), kind, made: Some(bank), centre: None })
    }

    /// The number of values that are trained.
    pub(super) fn parameters(&self) -> usize {
        match &self.made {
            Some(bank) if bank.grown_parameters() > 0 => bank.grown_parameters(),
            _ => self.vars.values().map(|var| var.elem_count()).sum(),
        }
    }

    /// The loss over some rows, and the gradients of what is trained.
    pub(super) fn gradients(&self, rows: &Rows, which: &[usize]) -> Result<Gradients> {
        let sequences: Vec<Sequence> = which.iter().map(|row| rows.sequences[*row].clone()).collect();
        match &self.kind {
            Kind::Trained(trainable) => {
                let mut found = self.objective(trainable).gradients(&sequences, BATCH)?;
                found.by_name.retain(|name, _| self.vars.contains_key(name));
                Ok(found)
            }
            Kind::Mixture(_) => {
                let tasks: Vec<usize> = which.iter().map(|row| rows.tasks[*row]).collect();
                let loss = self.with_hook(&sequences, &tasks, |hook| self.lab.loss(&sequences, hook))?;
                gradients(&loss, &self.vars)
            }
        }
    }

    fn objective<'b>(&'b self, trainable: &'b Trainable) -> Objective<'b> {
        Objective {
            decoder: &self.lab.model.decoder,
            trainable,
            regularizer: Regularizer { prior: 0.0, balance: 0.0 },
            checkpoint_activations: false,
        }
    }

    /// The share of rows whose answer is right.
    pub(super) fn exact_match(&self, rows: &Rows) -> Result<f64> {
        let track = |is_tracked| match &self.kind {
            Kind::Trained(trainable) => trainable.track(is_tracked),
            Kind::Mixture(_) => (),
        };
        let mut right = 0;
        track(false);
        for (sequences, tasks) in rows.sequences.chunks(TEST_BATCH).zip(rows.tasks.chunks(TEST_BATCH)) {
            right += self.with_hook(sequences, tasks, |hook| self.lab.right(sequences, hook))?;
        }
        track(true);
        Ok(right as f64 / rows.sequences.len().max(1) as f64)
    }

    /// The bank as it is now; `None` for another method.
    pub(super) fn bank(&self) -> Result<Option<AtomBank>> {
        match (&self.kind, &self.made) {
            (Kind::Trained(trainable), Some(made)) => {
                Ok(Some(AtomBank { tensors: trainable.to_host()?, ..made.clone() }))
            }
            _ => Ok(None),
        }
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
            Kind::Trained(Trainable::Lora(lora)) => with(&mut LoraHook(lora)),
            Kind::Trained(Trainable::Bank(bank)) => with(&mut bank.hook(weights, sequences)?),
            Kind::Mixture(mixture) => {
                let mut e = InstructionEncoder::BaseEmbeddings.embed(weights, sequences)?;
                if let Some(centre) = &self.centre {
                    e = centered(&e, centre)?;
                }
                with(&mut mixture.hook(&e, tasks)?)
            }
        }
    }
}

impl Kind {
    fn vars(&self) -> &BTreeMap<String, Var> {
        match self {
            Kind::Trained(trainable) => trainable.vars(),
            Kind::Mixture(mixture) => &mixture.vars,
        }
    }
}
