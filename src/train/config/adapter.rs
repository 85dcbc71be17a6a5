//! `[adapter]`: what is trained.

use serde::{Deserialize, Serialize};

use super::TrainConfig;
use super::lora::{self, PatternSettings};
use crate::arch::ModelConfig;
use crate::bank::{BASE_EMBEDDINGS, BankConfig, DEFAULT_PROMPT_TEMPLATE, Routing};

/// The kind of adapter that is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterKind {
    /// An atom bank.
    #[default]
    Bank,
    /// A plain LoRA, saved in PEFT's layout.
    Lora,
    /// An atom bank that gets an atom for one more instruction, and stays as it is for the others.
    Grow,
}

/// Settings of the adapter. Those of routing are for banks only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)] // The names are those of adapter_config.json: docs/formats/bank.md.
pub struct AdapterSettings {
    pub r: usize,
    pub lora_alpha: f64,
    pub use_rslora: bool,
    pub lora_dropout: f64,
    pub use_dora: bool,
    pub init_lora_weights: serde_json::Value,
    #[serde(deserialize_with = "lora::names")]
    pub target_modules: Vec<String>,
    pub exclude_modules: Vec<String>,
    #[serde(deserialize_with = "lora::layers", skip_serializing_if = "Option::is_none")]
    pub layers_to_transform: Option<Vec<usize>>,
    pub rank_pattern: PatternSettings,
    pub alpha_pattern: PatternSettings,
    pub target_parameters: Vec<String>,
    pub bias: String,
    pub modules_to_save: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trainable_token_indices: Option<serde_json::Value>,
    pub ensure_weight_tying: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_atoms: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    pub block_size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_dim: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub descriptor_dim: Option<usize>,
    pub instruction_encoder: String,
    pub routing: Routing,
    pub temperature: f64,
    pub prior_strength: f64,
    pub prior_temperature: f64,
    pub prompt_template: String,
    /// The columns of rank that a bank gets when it grows.
    pub grow_rank: usize,
}

/// The fewest atoms of a bank whose settings don't say how many: the shared factors cost far more values.
const FEWEST_ATOMS: usize = 8;

/// The widths of keys and descriptors of a bank whose settings don't say which.
const ROUTER_DIM: usize = 8;

impl AdapterSettings {
    /// The same settings with a number wherever they leave it to the data, which has `instructions` distinct instructions.
    /// docs/training.md has the reason for each.
    #[must_use]
    pub fn sized(&self, instructions: usize) -> Self {
        let atoms = self.num_atoms.unwrap_or_else(|| {
            // More atoms than r x r matrices have entries are combinations of the others.
            let directions = self.r.saturating_mul(self.r);
            instructions.min(directions).max(FEWEST_ATOMS).max(self.top_k.unwrap_or(1))
        });
        Self {
            num_atoms: Some(atoms),
            top_k: Some(self.top_k.unwrap_or(atoms)),
            key_dim: Some(self.key_dim.unwrap_or(ROUTER_DIM)),
            descriptor_dim: Some(self.descriptor_dim.unwrap_or(ROUTER_DIM)),
            ..self.clone()
        }
    }
}

impl Default for AdapterSettings {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 16.0,
            use_rslora: false,
            lora_dropout: 0.0,
            use_dora: false,
            init_lora_weights: lora::kaiming(),
            target_modules: vec!["q_proj".into(), "v_proj".into()],
            exclude_modules: Vec::new(),
            layers_to_transform: None,
            rank_pattern: PatternSettings::new(),
            alpha_pattern: PatternSettings::new(),
            target_parameters: Vec::new(),
            bias: "none".into(),
            modules_to_save: Vec::new(),
            trainable_token_indices: None,
            ensure_weight_tying: false,
            num_atoms: None,
            top_k: None,
            block_size: 2,
            key_dim: None,
            descriptor_dim: None,
            instruction_encoder: BASE_EMBEDDINGS.into(),
            routing: Routing::Prompt,
            temperature: 1.0,
            prior_strength: 1.0,
            prior_temperature: 1.0,
            prompt_template: DEFAULT_PROMPT_TEMPLATE.into(),
            grow_rank: 1,
        }
    }
}

impl TrainConfig {
    /// The same run with the sizes of a bank for `instructions` distinct instructions, wherever its settings leave them to
    /// the data.
    #[must_use]
    pub fn sized(&self, instructions: usize) -> Self {
        Self { adapter: self.adapter.sized(instructions), ..self.clone() }
    }

    /// The settings of a bank for `base`. `instruction_dim` is the instruction encoder's width if that differs from the
    /// base's. Sizes that the settings leave to the data are those for no instruction: see [`TrainConfig::sized`].
    pub fn bank_config(&self, base: &ModelConfig, instruction_dim: Option<usize>) -> BankConfig {
        let config = self.bank_settings(instruction_dim.unwrap_or(base.hidden_size));
        BankConfig { target_modules: self.targets(base), ..config }
    }

    pub(super) fn bank_settings(&self, instruction_dim: usize) -> BankConfig {
        let a = self.adapter.sized(0);
        let [num_atoms, top_k, key_dim, descriptor_dim] =
            [a.num_atoms, a.top_k, a.key_dim, a.descriptor_dim].map(Option::unwrap_or_default);
        BankConfig {
            r: a.r,
            lora_alpha: a.lora_alpha,
            use_rslora: a.use_rslora,
            target_modules: lora::without_a_base(a.target_modules),
            num_atoms,
            top_k,
            block_size: a.block_size,
            key_dim,
            descriptor_dim,
            instruction_dim,
            instruction_encoder: a.instruction_encoder,
            routing: a.routing,
            temperature: a.temperature,
            prior_strength: a.prior_strength,
            prior_temperature: a.prior_temperature,
            prompt_template: a.prompt_template,
            base_model_name_or_path: self.base_name(),
            growth: Vec::new(),
        }
    }
}
