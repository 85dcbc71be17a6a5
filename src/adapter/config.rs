//! Settings of a plain LoRA, from PEFT's `adapter_config.json`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::peft::patterns::{self, Patterns};
use crate::arch::{Linear, LinearLayer, ModelConfig};
use crate::error::Result;
use crate::json::Fields;

/// The config of a plain LoRA.
#[derive(Debug, Clone, PartialEq, Default)]
#[allow(missing_docs)] // The fields carry PEFT's names.
pub struct LoraConfig {
    pub r: usize,
    pub lora_alpha: f64,
    pub use_rslora: bool,
    /// Whether each output of a module has a trained magnitude (DoRA).
    pub use_dora: bool,
    /// Ranks of modules by their paths, instead of `r`.
    pub rank_pattern: Patterns<usize>,
    /// Alphas of modules by their paths, instead of `lora_alpha`.
    pub alpha_pattern: Patterns<f64>,
    /// Names of linear layers. `None` where the config has a pattern: then the adapter's tensors
    /// decide.
    pub target_modules: Option<Vec<String>>,
    /// Ends of the paths of linear layers that `target_modules` selects and that aren't adapted all the same.
    pub exclude_modules: Vec<String>,
    /// The numbers of the decoder layers that are adapted, if not all are.
    pub layers_to_transform: Option<Vec<usize>>,
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
            use_dora: f.get("use_dora")?.unwrap_or(false),
            rank_pattern: Patterns::read(&mut f, "rank_pattern", patterns::rank)?,
            alpha_pattern: Patterns::read(&mut f, "alpha_pattern", Value::as_f64)?,
            // A pattern says nothing that the tensors don't.
            exclude_modules: match f.get::<Value>("exclude_modules")? {
                Some(Value::Array(_)) => f.get("exclude_modules")?.unwrap_or_default(),
                _ => Vec::new(),
            },
            layers_to_transform: match f.get::<Value>("layers_to_transform")? {
                Some(Value::Array(_)) => f.get("layers_to_transform")?,
                Some(_) => f.get("layers_to_transform")?.map(|layer| vec![layer]),
                None => None,
            },
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

    /// The factor of every update for which no pattern gives another: alpha / r, or alpha / sqrt(r) with use_rslora.
    /// Dimensionless.
    pub fn scale(&self) -> f32 {
        scale(self.r, self.lora_alpha, self.use_rslora) as f32
    }

    /// The rank of the update of a linear layer.
    pub fn rank_of(&self, site: LinearLayer) -> usize {
        self.rank_pattern.first_match(&site.to_string()).unwrap_or(self.r)
    }

    /// The factor of the update of a linear layer. Dimensionless.
    pub fn scale_of(&self, site: LinearLayer) -> f32 {
        let alpha = self.alpha_pattern.first_match(&site.to_string()).unwrap_or(self.lora_alpha);
        scale(self.rank_of(site), alpha, self.use_rslora) as f32
    }

    /// The linear layers of `base` that are adapted, in the order in which a forward pass calls them.
    pub fn selected<'a>(&'a self, base: &'a ModelConfig) -> impl Iterator<Item = Linear> + 'a {
        let targets = self.target_modules.as_deref().unwrap_or_default();
        let is_wanted = move |linear: &Linear| {
            let is_in = self.layers_to_transform.as_ref().is_none_or(|layers| layers.contains(&linear.site.layer));
            // As in PEFT, a whole path selects its module whatever the layer.
            let is_in = is_in || targets.contains(&linear.site.to_string());
            is_in && !self.exclude_modules.iter().any(|end| linear.site.is_selected_by(end))
        };
        base.selected(targets).filter(is_wanted)
    }

    /// The settings of an adapter of twice the rank in which every update has the same factor.
    #[cfg(feature = "train")]
    pub(crate) fn doubled(&self) -> Self {
        let factor = if self.use_rslora { std::f64::consts::SQRT_2 } else { 2.0 };
        Self {
            r: 2 * self.r,
            lora_alpha: factor * self.lora_alpha,
            rank_pattern: self.rank_pattern.map(|rank| 2 * rank),
            alpha_pattern: self.alpha_pattern.map(|alpha| factor * alpha),
            ..self.clone()
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let mut json = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": self.r, "lora_alpha": self.lora_alpha,
            "use_rslora": self.use_rslora, "target_modules": self.target_modules, "lora_dropout": 0.0,
            "bias": "none", "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
            "base_model_name_or_path": self.base_model_name_or_path,
        });
        let json_of = |patterns: Value| patterns.as_object().is_some_and(|map| !map.is_empty()).then_some(patterns);
        let optional = [
            ("use_dora", self.use_dora.then_some(json!(true))),
            ("rank_pattern", json_of(self.rank_pattern.to_json())),
            ("alpha_pattern", json_of(self.alpha_pattern.to_json())),
            ("exclude_modules", (!self.exclude_modules.is_empty()).then(|| json!(self.exclude_modules))),
            ("layers_to_transform", self.layers_to_transform.as_ref().map(|layers| json!(layers))),
            ("target_parameters", (!self.target_parameters.is_empty()).then(|| json!(self.target_parameters))),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                json[name] = value;
            }
        }
        json
    }
}

/// The factor of updates of rank `r`. Dimensionless.
pub(crate) fn scale(r: usize, lora_alpha: f64, use_rslora: bool) -> f64 {
    let divisor = if use_rslora { (r as f64).sqrt() } else { r as f64 };
    lora_alpha / divisor
}
