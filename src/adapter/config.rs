//! Settings of a plain LoRA, from PEFT's `adapter_config.json`.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::json::Fields;

/// The config of a plain LoRA.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // The fields carry PEFT's names.
pub struct LoraConfig {
    pub r: usize,
    pub lora_alpha: f64,
    pub use_rslora: bool,
    /// Names of linear layers. `None` where the config has a pattern: then the adapter's tensors
    /// decide.
    pub target_modules: Option<Vec<String>>,
    /// Parameters with the experts of a layer, by the ends of their paths: `experts.down_proj`.
    pub target_parameters: Vec<String>,
    pub base_model_name_or_path: String,
}

/// Fields that don't change what the saved tensors compute.
const INERT: &[&str] = &[
    "alora_invocation_tokens",
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "layers_pattern",
    "loftq_config",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "exclude_modules",
    "layers_to_transform",
];

impl LoraConfig {
    /// Checks an `adapter_config.json`.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for a feature whose weights this version would merge wrongly.
    pub(super) fn from_json(path: &Path, json: &Map<String, Value>) -> Result<Self> {
        let mut f = Fields::new(path, json);
        let config = Self {
            r: f.count("r")?,
            lora_alpha: f.need("lora_alpha")?,
            use_rslora: f.get("use_rslora")?.unwrap_or(false),
            target_modules: match f.get::<Value>("target_modules")? {
                Some(Value::Array(_)) => f.get("target_modules")?,
                _ => None,
            },
            target_parameters: f.get("target_parameters")?.unwrap_or_default(),
            base_model_name_or_path: f.get("base_model_name_or_path")?.unwrap_or_default(),
        };
        f.only("bias", &[json!("none")])?;
        f.only("fan_in_fan_out", &[json!(false)])?;
        // Other initialisations change the base as well, so adding to the unchanged base would be
        // wrong.
        f.only("init_lora_weights", &[json!(true), json!(false), json!("gaussian")])?;
        f.ignore(INERT);
        f.finish()?;
        Ok(config)
    }

    /// The factor of every update: alpha / r, or alpha / sqrt(r) with use_rslora. Dimensionless.
    pub fn scale(&self) -> f32 {
        scale(self.r, self.lora_alpha, self.use_rslora)
    }

    pub(super) fn to_json(&self) -> Value {
        let mut json = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": self.r, "lora_alpha": self.lora_alpha,
            "use_rslora": self.use_rslora, "target_modules": self.target_modules, "lora_dropout": 0.0,
            "bias": "none", "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
            "base_model_name_or_path": self.base_model_name_or_path,
        });
        if !self.target_parameters.is_empty() {
            json["target_parameters"] = json!(self.target_parameters);
        }
        json
    }
}

/// The factor of updates of rank `r`. Dimensionless.
pub(crate) fn scale(r: usize, lora_alpha: f64, use_rslora: bool) -> f32 {
    let divisor = if use_rslora { (r as f64).sqrt() } else { r as f64 };
    (lora_alpha / divisor) as f32
}
