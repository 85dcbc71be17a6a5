//! `[adapter]`: what is trained.

use serde::{Deserialize, Serialize};

use super::TrainConfig;
use crate::adapter::LoraConfig;
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
    pub target_modules: Vec<String>,
    pub target_parameters: Vec<String>,
    pub num_atoms: usize,
    pub top_k: usize,
    pub block_size: usize,
    pub key_dim: usize,
    pub descriptor_dim: usize,
    pub instruction_encoder: String,
    pub routing: Routing,
    pub temperature: f64,
    pub prior_strength: f64,
    pub prior_temperature: f64,
    pub prompt_template: String,
}

impl Default for AdapterSettings {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 16.0,
            use_rslora: false,
            lora_dropout: 0.0,
            target_modules: vec!["q_proj".into(), "v_proj".into()],
            target_parameters: Vec::new(),
            num_atoms: 8,
            top_k: 2,
            block_size: 2,
            key_dim: 16,
            descriptor_dim: 16,
            instruction_encoder: BASE_EMBEDDINGS.into(),
            routing: Routing::Prompt,
            temperature: 1.0,
            prior_strength: 1.0,
            prior_temperature: 1.0,
            prompt_template: DEFAULT_PROMPT_TEMPLATE.into(),
        }
    }
}

impl TrainConfig {
    /// The settings of a bank for `base`. `instruction_dim` is the instruction encoder's width if that differs from the
    /// base's.
    pub fn bank_config(&self, base: &ModelConfig, instruction_dim: Option<usize>) -> BankConfig {
        self.bank_settings(instruction_dim.unwrap_or(base.hidden_size))
    }

    pub(super) fn bank_settings(&self, instruction_dim: usize) -> BankConfig {
        let a = self.adapter.clone();
        BankConfig {
            r: a.r,
            lora_alpha: a.lora_alpha,
            use_rslora: a.use_rslora,
            target_modules: a.target_modules,
            num_atoms: a.num_atoms,
            top_k: a.top_k,
            block_size: a.block_size,
            key_dim: a.key_dim,
            descriptor_dim: a.descriptor_dim,
            instruction_dim,
            instruction_encoder: a.instruction_encoder,
            routing: a.routing,
            temperature: a.temperature,
            prior_strength: a.prior_strength,
            prior_temperature: a.prior_temperature,
            prompt_template: a.prompt_template,
            base_model_name_or_path: self.base_name(),
        }
    }

    /// The settings of a plain LoRA.
    pub fn lora_config(&self) -> LoraConfig {
        let a = self.adapter.clone();
        LoraConfig {
            r: a.r,
            lora_alpha: a.lora_alpha,
            use_rslora: a.use_rslora,
            target_modules: Some(a.target_modules),
            target_parameters: a.target_parameters,
            base_model_name_or_path: self.base_name(),
        }
    }
}
