//! The adapters that are compared on named tasks.

use std::path::Path;

use crate::adapter::HostTensor;
use crate::arch::ModelConfig;
use crate::bank::{AtomBank, BASE_EMBEDDINGS, BankConfig, DEFAULT_PROMPT_TEMPLATE, Routing};
use crate::error::Result;
use crate::experiment::tuning::Choice;
use crate::linalg::Random;

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
    pub(super) without: Option<Part>,
}

/// A part that the bank is tried without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Both of the following.
    Start,
    /// Orthogonal atoms: in their place some near the identity.
    OrthogonalAtoms,
    /// Centred instruction embeddings: they are as the encoder makes them.
    Centre,
    /// The prior.
    Prior,
    /// The summary of the blocks before.
    Summary,
    /// The state, and with it the summary, which is made of states.
    State,
    /// Atoms that all blocks share: each block has a part of them for itself.
    Sharing,
    /// All atoms in every mix: 1, 2 and 4 are tried.
    TopK,
}

impl Part {
    /// All parts, by their names on the command line.
    pub const ALL: [(&str, Part); 8] = [
        ("start", Part::Start),
        ("orthogonal-atoms", Part::OrthogonalAtoms),
        ("centre", Part::Centre),
        ("prior", Part::Prior),
        ("summary", Part::Summary),
        ("state", Part::State),
        ("sharing", Part::Sharing),
        ("top-k", Part::TopK),
    ];

    /// The banks without it.
    pub(super) fn banks(self) -> Vec<Bank> {
        match self {
            Part::TopK => [1, 2, 4].map(|top_k| Bank { top_k, ..Bank::DEFAULT }).to_vec(),
            part => vec![Bank { without: Some(part), ..Bank::DEFAULT }],
        }
    }
}

pub(super) const QV: [&str; 2] = ["q_proj", "v_proj"];
pub(super) const EVERYWHERE: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

impl Bank {
    /// The bank that is compared: 16 atoms of rank 4, all of which take part.
    pub(super) const DEFAULT: Self = Self { r: 4, atoms: 16, top_k: 16, routing: Routing::Prompt, without: None };
}

impl Method {
    pub(super) fn name(self) -> String {
        match self {
            Method::Bank(Bank { r, atoms, top_k, routing, without }) => {
                let without = match without {
                    // Another `top_k` has its own words.
                    None | Some(Part::TopK) => "",
                    Some(Part::OrthogonalAtoms) => ", atoms near the identity",
                    Some(Part::Centre) => ", embeddings not centred",
                    Some(Part::Start) => ", atoms near the identity, not centred",
                    Some(Part::Prior) => ", no prior",
                    Some(Part::Summary) => ", no summary",
                    Some(Part::State) => ", no state",
                    Some(Part::Sharing) => ", half of the atoms for each block",
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

impl Bank {
    /// A fresh bank of this kind for `base`. The mean of its instructions' embeddings is `centre`.
    pub(super) fn fresh(
        self,
        choice: Choice,
        base: &ModelConfig,
        centre: Option<HostTensor>,
        seed: u64,
    ) -> Result<AtomBank> {
        let config = self.config(choice, base.hidden_size);
        let mut bank = AtomBank::fresh(Path::new("experiment"), config, base, seed)?;
        if !matches!(self.without, Some(Part::Centre | Part::Start)) {
            bank.center_on(centre);
        }
        self.leave_out(&mut bank, seed);
        Ok(bank)
    }

    fn config(self, choice: Choice, instruction_dim: usize) -> BankConfig {
        BankConfig {
            r: self.r,
            lora_alpha: choice.scale * self.r as f64,
            use_rslora: false,
            target_modules: QV.iter().map(|name| (*name).to_owned()).collect(),
            num_atoms: self.atoms,
            top_k: self.top_k,
            block_size: 2,
            key_dim: KEY_DIM + usize::from(self.without == Some(Part::Sharing)),
            descriptor_dim: 8,
            instruction_dim,
            instruction_encoder: BASE_EMBEDDINGS.to_owned(),
            routing: self.routing,
            temperature: 1.0,
            prior_strength: if self.without == Some(Part::Prior) { 0.0 } else { 1.0 },
            prior_temperature: 1.0,
            prompt_template: DEFAULT_PROMPT_TEMPLATE.to_owned(),
            base_model_name_or_path: String::new(),
            growth: Vec::new(),
        }
    }

    /// The tensors that stay as they begin.
    pub(super) fn fixed(self) -> &'static [&'static str] {
        match self.without {
            Some(Part::Summary) => &[SUMMARY],
            Some(Part::State) => &[STATE, SUMMARY],
            _ => &[],
        }
    }

    fn leave_out(self, bank: &mut AtomBank, seed: u64) {
        for name in self.fixed() {
            if let Some(tensor) = bank.tensors.get_mut(*name) {
                tensor.values = vec![0.0; tensor.values.len()].into();
            }
        }
        match self.without {
            Some(Part::OrthogonalAtoms | Part::Start) => self.near_the_identity(bank, seed),
            Some(Part::Sharing) => self.split_among_blocks(bank),
            _ => (),
        }
    }

    /// Atoms that are the identity and noise of a deviation of 0.5 / sqrt(r).
    fn near_the_identity(self, bank: &mut AtomBank, seed: u64) {
        let (r, mut random) = (self.r, Random::new(seed ^ 0xa70a));
        let value = |place: usize| {
            let noise = 0.5 / (r as f32).sqrt() * random.normal();
            if (place % (r * r)).is_multiple_of(r + 1) { 1.0 + noise } else { noise }
        };
        let values: Vec<f32> = (0..self.atoms * r * r).map(value).collect();
        let atoms = HostTensor { shape: vec![self.atoms, r, r], values: values.into() };
        bank.tensors.insert("atom_bank.atoms".to_owned(), atoms);
    }

    /// The last dimension of keys and queries, which starts far from zero, parts the atoms: those of even numbers have
    /// weight in even blocks alone, the others in odd ones. What training adds to it is too little to change that.
    fn split_among_blocks(self, bank: &mut AtomBank) {
        let sign = |number: usize| if number.is_multiple_of(2) { FAR } else { -FAR };
        for (name, tensor) in &mut bank.tensors {
            let mut values = tensor.values.to_vec();
            match (name.as_str(), tensor.shape.as_slice()) {
                ("atom_bank.keys" | "atom_bank.router.block_bias", [_, width]) => {
                    values.chunks_mut(*width).enumerate().for_each(|(number, row)| row[width - 1] = sign(number));
                }
                (STATE | SUMMARY | "atom_bank.router.instruction_proj.weight", [height, width]) => {
                    values[(height - 1) * width..].fill(0.0);
                }
                _ => continue,
            }
            tensor.values = values.into();
        }
    }
}

const STATE: &str = "atom_bank.router.state_proj.weight";
const SUMMARY: &str = "atom_bank.router.summary_proj.weight";

/// The dimensions of keys and queries.
const KEY_DIM: usize = 4;

/// A value whose square is so much larger than what routing adds to logits that softmax gives zero.
const FAR: f32 = 40.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bank::{LoadedBank, RoutedBy, route_sequences};
    use crate::experiment::instructions::lab::tests::lab;

    #[test]
    fn blocks_without_sharing_have_other_atoms() {
        let lab = lab();
        let base = lab.model.decoder.config();
        let choice = Choice { learning_rate: 0.01, scale: 2.0 };
        let bank = Bank { without: Some(Part::Sharing), ..Bank::DEFAULT }.fresh(choice, base, None, 0).unwrap();
        let loaded = LoadedBank::frozen(&bank, &candle_core::Device::Cpu).unwrap();
        let sequences = [lab.routed("Small show.", "garden").unwrap()];
        let (routings, _) = route_sequences(&lab.model.decoder, &loaded, &sequences, RoutedBy::Model).unwrap();
        for (block, alphas) in routings[0].iter().enumerate() {
            let own: f32 = alphas.iter().skip(block % 2).step_by(2).sum();
            assert!((own - 1.0).abs() < 1e-6, "block {block}: {alphas:?}");
            assert!(alphas.iter().skip(1 - block % 2).step_by(2).all(|weight| *weight == 0.0), "{alphas:?}");
        }
    }
}
