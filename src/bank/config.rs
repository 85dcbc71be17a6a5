//! Settings of an atom bank: the fields of its `adapter_config.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::BankStage;
use crate::adapter::{Tensors, scale};
use crate::arch::{Linear, LinearLayer, ModelConfig, Module};
use crate::error::{Finding, Result};
use crate::json::Fields;

/// Whether a prompt has one routing, from the mean over its tokens, or every token has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Routing {
    /// One decision per block for instruction and prompt together. Baking it is exact.
    Prompt,
    /// One decision per block and token. Baking uses the mean, which is an approximation.
    Token,
}

/// Settings of an atom bank: the fields of its `adapter_config.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)] // The fields have the file's names; docs/formats/bank.md says what they mean.
pub struct BankConfig {
    pub r: usize,
    pub lora_alpha: f64,
    pub use_rslora: bool,
    pub target_modules: Vec<String>,
    pub num_atoms: usize,
    pub top_k: usize,
    pub block_size: usize,
    pub key_dim: usize,
    pub descriptor_dim: usize,
    pub instruction_dim: usize,
    pub instruction_encoder: String,
    pub routing: Routing,
    pub temperature: f64,
    pub prior_strength: f64,
    pub prior_temperature: f64,
    pub prompt_template: String,
    pub base_model_name_or_path: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub growth: Vec<BankStage>,
}

/// The default of the text that is routed.
pub const DEFAULT_PROMPT_TEMPLATE: &str = "{instruction}\n{prompt}\n";

/// The mean of the embeddings of the training's instructions, which is taken off every instruction's, `[d_e]`.
pub(crate) const INSTRUCTION_CENTER: &str = "atom_bank.instruction_center";

/// What is added to the prior's scores of atoms, `[K]`.
pub(crate) const PRIOR_BIAS: &str = "atom_bank.prior.bias";

/// The name of the instruction encoder that averages the base model's input embeddings.
pub const BASE_EMBEDDINGS: &str = "base-embeddings";

impl BankConfig {
    pub(crate) fn from_json(path: &Path, json: &Map<String, Value>) -> Result<Self> {
        let mut f = Fields::new(path, json);
        if json.get("routing").and_then(Value::as_str) == Some("fixed") {
            let finding = f.finding("routing").expected("prompt or token: a bank that routes");
            return Err(finding
                .found("fixed, a mix for all prompts")
                .hint("`jobs::bake` makes weights of it")
                .mismatch());
        }
        let config = Self {
            r: f.count("r")?,
            lora_alpha: f.need("lora_alpha")?,
            use_rslora: f.get("use_rslora")?.unwrap_or(false),
            target_modules: f.need("target_modules")?,
            num_atoms: f.count("num_atoms")?,
            top_k: f.count("top_k")?,
            block_size: f.count("block_size")?,
            key_dim: f.count("key_dim")?,
            descriptor_dim: f.count("descriptor_dim")?,
            instruction_dim: f.count("instruction_dim")?,
            instruction_encoder: f.get("instruction_encoder")?.unwrap_or_else(|| BASE_EMBEDDINGS.into()),
            routing: f.get("routing")?.unwrap_or(Routing::Prompt),
            temperature: f.get("temperature")?.unwrap_or(1.0),
            prior_strength: f.get("prior_strength")?.unwrap_or(1.0),
            prior_temperature: f.get("prior_temperature")?.unwrap_or(1.0),
            prompt_template: f.get("prompt_template")?.unwrap_or_else(|| DEFAULT_PROMPT_TEMPLATE.into()),
            base_model_name_or_path: f.get("base_model_name_or_path")?.unwrap_or_default(),
            growth: f.get("growth")?.unwrap_or_default(),
        };
        f.only("format_version", &[1.into()])?;
        f.ignore(&["peft_type", "task_type", "inference_mode", "peft_version"]);
        f.finish()?;
        config.check(path)?;
        Ok(config)
    }

    /// Checks the settings alone and against each other. Errors name `path`.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] or [`crate::Error::Unsupported`], naming the field.
    pub fn check(&self, path: &Path) -> Result<()> {
        self.check_as(path, "")
    }

    /// Like [`BankConfig::check`], for settings whose names have `prefix` in the file at `path`.
    pub(crate) fn check_as(&self, path: &Path, prefix: &str) -> Result<()> {
        let finding = |field: &str| Finding::new(path, format!("{prefix}{field}"));
        let counts = [
            ("r", self.r),
            ("num_atoms", self.num_atoms),
            ("top_k", self.top_k),
            ("block_size", self.block_size),
            ("key_dim", self.key_dim),
            ("descriptor_dim", self.descriptor_dim),
            ("instruction_dim", self.instruction_dim),
        ];
        if let Some((field, found)) = counts.into_iter().find(|(_, count)| !(1..=1 << 31).contains(count)) {
            return Err(finding(field).expected("a count from 1 to 2^31").found(found).mismatch());
        }
        if self.top_k > self.num_atoms {
            let expected = format!("at most num_atoms, {}", self.num_atoms);
            return Err(finding("top_k").expected(expected).found(self.top_k).mismatch());
        }
        // Logits are multiplied by the inverse in f32, which must be finite.
        let scales = [
            ("temperature", self.temperature),
            ("prior_temperature", self.prior_temperature * (self.descriptor_dim as f64).sqrt()),
        ];
        for ((field, scale), value) in scales.into_iter().zip([self.temperature, self.prior_temperature]) {
            if !(value > 0.0 && (scale as f32).is_normal() && ((1.0 / scale) as f32).is_normal()) {
                return Err(finding(field)
                    .expected("a positive number whose inverse is a float32")
                    .found(format_args!("{value:?}"))
                    .mismatch());
            }
        }
        let scale = scale(self.r, self.lora_alpha, self.use_rslora);
        for (field, value, used) in [
            ("lora_alpha", self.lora_alpha, scale as f32),
            ("prior_strength", self.prior_strength, self.prior_strength as f32),
        ] {
            if !used.is_finite() {
                let expected = "a finite number, in float32 too";
                return Err(finding(field).expected(expected).found(format_args!("{value:?}")).mismatch());
            }
        }
        for module in &self.target_modules {
            if !Module::is_target(module) {
                let known = Module::names().join(", ");
                return Err(finding("target_modules").expected(known).found(module).unsupported());
            }
        }
        self.check_growth(path, prefix)
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut json = serde_json::to_value(self).expect("plain values serialize");
        if let Value::Object(map) = &mut json {
            map.insert("peft_type".into(), super::atom_bank::PEFT_TYPE.into());
            map.insert("task_type".into(), "CAUSAL_LM".into());
            map.insert("format_version".into(), 1.into());
        }
        json
    }

    /// The number of blocks in a decoder of `layers` layers.
    pub fn blocks(&self, layers: usize) -> usize {
        layers.div_ceil(self.block_size)
    }

    /// The text that is routed, with instruction and prompt filled in.
    pub fn routed_text(&self, instruction: &str, prompt: &str) -> String {
        fill_template(&self.prompt_template, instruction, prompt)
    }

    /// The bank's own tensors and their shapes. `None` stands for the number of blocks, which depends on the base.
    pub(crate) fn global_tensors(&self) -> Vec<(&'static str, Vec<Option<usize>>)> {
        let (k, r) = (Some(self.num_atoms), Some(self.r));
        // A grown bank's states are those of its first rank, so its router keeps that width.
        let state = Some(self.state_rank());
        let (d_k, d_p, d_e) = (Some(self.key_dim), Some(self.descriptor_dim), Some(self.instruction_dim));
        vec![
            ("atom_bank.atoms", vec![k, r, r]),
            ("atom_bank.keys", vec![k, d_k]),
            ("atom_bank.descriptors", vec![k, d_p]),
            ("atom_bank.router.state_proj.weight", vec![d_k, state]),
            ("atom_bank.router.summary_proj.weight", vec![d_k, state]),
            ("atom_bank.router.summary_query.weight", vec![d_k, state]),
            ("atom_bank.router.summary_key.weight", vec![d_k, state]),
            ("atom_bank.router.instruction_proj.weight", vec![d_k, d_e]),
            ("atom_bank.router.block_bias", vec![None, d_k]),
            ("atom_bank.router.summary_init", vec![state]),
            ("atom_bank.prior.proj.weight", vec![d_p, d_e]),
        ]
    }

    /// Tensors that a bank may have besides, and their shapes. They stay as they are while the others are trained.
    pub(crate) fn optional_tensors(&self) -> [(&'static str, Vec<Option<usize>>); 2] {
        [(INSTRUCTION_CENTER, vec![Some(self.instruction_dim)]), (PRIOR_BIAS, vec![Some(self.num_atoms)])]
    }

    /// Checks, before any values are made, that a bank with these settings has no more values than `base`. Names of
    /// settings have `prefix` in the file at `path`.
    pub(crate) fn check_size(&self, path: &Path, prefix: &str, base: &ModelConfig) -> Result<()> {
        check_rank(path, prefix, self.r, base)?;
        let blocks = self.blocks(base.num_hidden_layers) as u128;
        let product = |shape: &[Option<usize>]| shape.iter().map(|d| d.map_or(blocks, |d| d as u128)).product::<u128>();
        let own: u128 = self.global_tensors().iter().map(|(_, shape)| product(shape)).sum();
        let most = base_values(base);
        if own <= most {
            return Ok(());
        }
        let fields = ["num_atoms", "key_dim", "descriptor_dim", "instruction_dim"];
        let largest = [self.num_atoms, self.key_dim, self.descriptor_dim, self.instruction_dim];
        let (_, field) = largest.into_iter().zip(fields).max_by_key(|(count, _)| *count).unwrap_or_default();
        Err(Finding::new(path, format!("{prefix}{field}"))
            .expected(format_args!("a bank that is no larger than its base of {most} values"))
            .found(format_args!("one of {own} values by num_atoms, r, key_dim, descriptor_dim and instruction_dim"))
            .mismatch())
    }

    pub(crate) fn check_base(
        &self,
        file: &Path,
        base: &ModelConfig,
        layers: &[LinearLayer],
        tensors: &Tensors,
    ) -> Result<()> {
        let blocks = self.blocks(base.num_hidden_layers);
        let found = tensors["atom_bank.router.block_bias"].shape[0];
        if found != blocks {
            return Err(Finding::new(file, "tensor \"atom_bank.router.block_bias\"")
                .expected(format_args!("{blocks} blocks for a base model of {} layers", base.num_hidden_layers))
                .found(found)
                .hint("this bank belongs to another base model")
                .mismatch());
        }
        if self.instruction_encoder == BASE_EMBEDDINGS && self.instruction_dim != base.hidden_size {
            return Err(Finding::new(file, "instruction_dim")
                .expected(format_args!("the base model's hidden size, {}", base.hidden_size))
                .found(self.instruction_dim)
                .hint("this bank belongs to another base model")
                .mismatch());
        }
        for Linear { site, .. } in base.selected(&self.target_modules) {
            if layers.binary_search(&site).is_err() {
                return Err(Finding::new(file, format!("tensor {:?}", site.factor_name('A')))
                    .expected("a tensor of this name, by target_modules")
                    .found("nothing")
                    .mismatch());
            }
        }
        Ok(())
    }
}

/// Checks that factors of rank `r` are no larger than the largest linear layer of `base`.
pub(crate) fn check_rank(path: &Path, prefix: &str, r: usize, base: &ModelConfig) -> Result<()> {
    let widest = base.linears().iter().map(|linear| linear.d_out.max(linear.d_in)).max();
    match widest {
        Some(widest) if r > widest => Err(Finding::new(path, format!("{prefix}r"))
            .expected(format_args!("at most {widest}, the width of the base's widest linear layer"))
            .found(r)
            .mismatch()),
        _ => Ok(()),
    }
}

/// The number of values in the weights of `base`, without biases and norms.
fn base_values(base: &ModelConfig) -> u128 {
    let matrix = |rows: usize, cols: usize| rows as u128 * cols as u128;
    let layers: u128 = base.linears().iter().map(|linear| matrix(linear.d_out, linear.d_in)).sum();
    layers + matrix(base.vocab_size, base.hidden_size)
}

/// Fills `{instruction}` and `{prompt}` into `template`. Placeholders inside the filled-in texts are not replaced.
pub fn fill_template(template: &str, instruction: &str, prompt: &str) -> String {
    let mut text = String::with_capacity(template.len() + instruction.len() + prompt.len());
    let mut rest = template;
    while let Some(start) = rest.find('{') {
        text.push_str(&rest[..start]);
        rest = &rest[start..];
        if let Some(after) = rest.strip_prefix("{instruction}") {
            text.push_str(instruction);
            rest = after;
        } else if let Some(after) = rest.strip_prefix("{prompt}") {
            text.push_str(prompt);
            rest = after;
        } else {
            text.push('{');
            rest = &rest[1..];
        }
    }
    text + rest
}
