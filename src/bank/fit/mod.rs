//! Makes an atom bank from plain LoRAs of one base, without training: the LoRAs' updates `D_{l,i}` become `B_l C_i
//! A_l`, with factors for every site and one atom for every LoRA (docs/banks-from-loras.md).

mod als;
mod router;
mod site;
mod start;

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;

use crate::adapter::{HostTensor, LinearUpdates, modules_and_layers};
use crate::arch::{LinearLayer, ModelConfig, Module};
use crate::bank::{AtomBank, BankConfig, DEFAULT_PROMPT_TEMPLATE, Routing};
use crate::error::{Finding, Result};
use crate::linalg::{Matrix, to_rows};
use als::{Model, Stop};
use site::SiteCore;

pub use router::{InstructionRouter, TooClose};

/// The rounds for each of the two starts, before they are compared.
const TRIAL: Stop = Stop { rounds: 10, fall: 1e-6 };
/// The rounds for the better start.
const POLISH: Stop = Stop { rounds: 500, fall: 1e-6 };

/// A bank's factors and atoms, and how well they represent the LoRAs.
pub struct BankFit {
    /// The rank of factors and atoms.
    pub rank: usize,
    /// The fit of each LoRA, in the order given: atom i belongs to LoRA i.
    pub loras: Vec<LoraFit>,
    /// The error of all LoRAs together: `|B_l C_i A_l - D_{l,i}| / |D_{l,i}|` in the Frobenius norm over all sites and
    /// LoRAs.
    pub relative_error: f64,
    /// How many rounds of alternating least squares were run.
    pub rounds: usize,
    modules: Vec<String>,
    /// A, `[r, d_in]`, and B, `[d_out, r]`.
    factors: BTreeMap<LinearLayer, (Matrix, Matrix)>,
    atoms: Vec<Matrix>,
}

/// How well a LoRA is represented.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraFit {
    /// Its own rank.
    pub rank: usize,
    /// The relative error in the Frobenius norm over all sites; 0 for a LoRA that changes nothing.
    pub relative_error: f64,
    /// The number of the bank's sites on which it doesn't act; its update there counts as zero.
    pub missing_sites: usize,
}

/// The rank with which a bank represents any such LoRAs exactly: the sum of their ranks.
pub fn exact_rank(loras: &[LinearUpdates]) -> usize {
    loras.iter().map(LinearUpdates::rank).sum()
}

/// Fits factors of `rank` and atoms to `loras`. The default of `rank` is the largest rank among the LoRAs.
///
/// # Errors
/// [`crate::Error::Mismatch`] for fewer than two LoRAs and for a LoRA of another base; [`crate::Error::Setting`] for a
/// rank of 0, or one above the sum of the LoRAs' ranks.
pub fn fit(loras: &[LinearUpdates], base: &ModelConfig, rank: Option<usize>) -> Result<BankFit> {
    let first = loras.first().map_or(Path::new(""), |lora| &lora.path);
    if loras.len() < 2 {
        let finding = Finding::new(first, "LoRAs for a bank").expected("two or more");
        return Err(finding.found(loras.len()).mismatch());
    }
    for lora in loras {
        lora.check_base(base)?;
        if lora.experts().next().is_some() {
            let finding = Finding::new(&lora.path, "target_parameters").expected("updates of linear layers alone");
            return Err(finding.found("updates of experts, on which atoms don't act").unsupported());
        }
    }
    let ranks = || loras.iter().map(LinearUpdates::rank);
    let sum: usize = ranks().sum();
    let rank = rank.unwrap_or_else(|| ranks().max().unwrap_or(1));
    if !(1..=sum).contains(&rank) {
        let finding = Finding::new(first, "rank").expected(format_args!("1 to {sum}, the sum of the LoRAs' ranks"));
        return Err(finding.found(rank).hint("with a rank of that sum, every LoRA is kept exactly").setting());
    }

    let acts = |module: Module| loras.iter().any(|lora| lora.layers().any(|site| site.module == module));
    let sites: Vec<LinearLayer> =
        base.linears().iter().map(|linear| linear.site).filter(|site| acts(site.module)).collect();
    let (modules, _) = modules_and_layers(&sites);
    let cores: Vec<SiteCore> = sites.par_iter().map(|site| site::reduce(loras, *site, base).0).collect();
    let norms_sqr: Vec<f64> = (0..loras.len()).map(|i| cores.iter().map(|core| core.norm_sqr(i)).sum()).collect();
    let (model, errors, rounds) = best(&cores, &norms_sqr, rank);

    let relative = |error: f64, norm: f64| if norm > 0.0 { (error / norm).sqrt() } else { 0.0 };
    let reports = loras.iter().enumerate().map(|(i, lora)| LoraFit {
        rank: lora.rank(),
        relative_error: relative(errors[i], norms_sqr[i]),
        missing_sites: sites.len() - lora.layers().count(),
    });
    let lifted = sites.par_iter().zip(&model.b).zip(&model.a).map(|((site, b), a)| {
        let bases = site::reduce(loras, *site, base).1;
        (*site, (a * bases.right.transpose(), bases.left * b))
    });
    Ok(BankFit {
        rank,
        loras: reports.collect(),
        relative_error: relative(errors.iter().sum(), norms_sqr.iter().sum()),
        rounds,
        modules,
        factors: lifted.collect(),
        atoms: model.c,
    })
}

/// Runs a trial from each of the two starts, refines the better model and balances it. Returns it with the squared
/// error of each LoRA and the number of rounds.
fn best(cores: &[SiteCore], norms_sqr: &[f64], rank: usize) -> (Model, Vec<f64>, usize) {
    let trial = |mut model: Model| {
        let (errors, rounds) = model.refine(cores, norms_sqr, TRIAL);
        (model, errors, rounds)
    };
    let total = |errors: &[f64]| errors.iter().sum::<f64>();
    let [shared, separate] = [trial(start::shared(cores, rank)), trial(start::separate(cores, rank))];
    let (mut model, errors, mut rounds) = if total(&shared.1) <= total(&separate.1) { shared } else { separate };
    if total(&errors) > als::EXACT * total(norms_sqr) {
        rounds += model.refine(cores, norms_sqr, POLISH).1;
    }
    model.balance();
    let errors = model.errors(cores);
    (model, errors, rounds)
}

/// The settings of a bank that the fit doesn't determine.
#[derive(Debug, Clone, PartialEq)]
pub struct BankSettings {
    /// What embeds instructions, as `instruction_encoder` in a bank's config.
    pub instruction_encoder: String,
    /// The largest number of atoms that a routing mixes; all if not given.
    pub top_k: Option<usize>,
    /// The base's name or path.
    pub base_model_name_or_path: String,
    /// The texts that select the atoms.
    pub instructions: Vec<String>,
}

impl BankFit {
    /// The bank of this fit, routed by `router`. It has one block, the whole decoder: its query doesn't contain a
    /// state, so every block would route the same way.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for settings that don't fit each other or the base.
    pub fn into_bank(
        self,
        path: &Path,
        router: &InstructionRouter,
        settings: BankSettings,
        base: &ModelConfig,
    ) -> Result<AtomBank> {
        let (r, atoms) = (self.rank, self.atoms.len());
        let (d_p, d_e) = router.projection.shape();
        let config = BankConfig {
            r,
            // The scale is 1, because the scale of each LoRA is in its atom.
            lora_alpha: r as f64,
            use_rslora: false,
            target_modules: self.modules,
            num_atoms: atoms,
            top_k: settings.top_k.unwrap_or(atoms),
            block_size: base.num_hidden_layers,
            key_dim: d_p,
            descriptor_dim: d_p,
            instruction_dim: d_e,
            instruction_encoder: settings.instruction_encoder,
            routing: Routing::Prompt,
            temperature: 1.0,
            prior_strength: 1.0,
            prior_temperature: router.prior_temperature,
            prompt_template: DEFAULT_PROMPT_TEMPLATE.to_owned(),
            base_model_name_or_path: settings.base_model_name_or_path,
            growth: Vec::new(),
        };
        config.check(path)?;
        let mut tensors = BTreeMap::new();
        for (site, (a, b)) in &self.factors {
            tensors.insert(site.factor_name('A'), host(a));
            tensors.insert(site.factor_name('B'), host(b));
        }
        let values: Vec<f32> = self.atoms.iter().flat_map(to_rows).collect();
        tensors.insert("atom_bank.atoms".to_owned(), HostTensor { shape: vec![atoms, r, r], values: values.into() });
        // With W_e = P, the query's logits equal those of the prior, to which they are added.
        for (name, matrix) in [
            ("atom_bank.descriptors", &router.descriptors),
            ("atom_bank.keys", &router.keys()),
            ("atom_bank.prior.proj.weight", &router.projection),
            ("atom_bank.router.instruction_proj.weight", &router.projection),
            ("atom_bank.router.block_bias", &Matrix::zeros(1, d_p)),
        ] {
            tensors.insert(name.to_owned(), host(matrix));
        }
        for name in ["state_proj", "summary_proj", "summary_query", "summary_key"] {
            tensors.insert(format!("atom_bank.router.{name}.weight"), host(&Matrix::zeros(d_p, r)));
        }
        let zeros = HostTensor { shape: vec![r], values: vec![0.0; r].into() };
        tensors.insert("atom_bank.router.summary_init".to_owned(), zeros);
        let bank = AtomBank { path: path.to_owned(), config, tensors, instructions: settings.instructions };
        bank.check_base(base)?;
        Ok(bank)
    }
}

fn host(matrix: &Matrix) -> HostTensor {
    HostTensor { shape: vec![matrix.nrows(), matrix.ncols()], values: to_rows(matrix).into() }
}

#[cfg(test)]
mod tests;
