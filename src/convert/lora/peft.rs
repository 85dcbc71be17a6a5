//! A LoRA's settings: `adapter_config.json` of PEFT, every field consumed or refused.
//!
//! Reference: huggingface/peft `src/peft/tuners/lora/config.py`, `layer.py` (`update_layer`).

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json, json};

use crate::adapter::peft::patterns::{self, Patterns};
use crate::error::{Finding, Result};
use crate::json::Fields;

/// Fields that don't change what the saved factors compute.
const INERT: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    // Tells how the base keeps its weight; the factors are [r, d_in] and [d_out, r] either way.
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    // The tensors say which modules there are.
    "target_modules",
    "task_type",
];

/// Fields that ask for more than a low-rank update of a weight, and what they ask for.
const REFUSED: &[(&str, &str)] = &[
    ("use_dora", "DoRA rescales whole weights"),
    ("modules_to_save", "whole weights stand beside the update"),
    ("trainable_token_indices", "rows of the embeddings are replaced"),
    ("lora_bias", "biases are changed"),
    ("use_qalora", "inputs are pooled first"),
    ("layer_replication", "layers of the base are repeated"),
    ("target_parameters", "parameters are adapted that are no linear layer's weight"),
    ("use_bdlora", "factors are block-diagonal"),
    ("arrow_config", "several adapters are routed"),
    ("velora_config", "the update is computed in another way"),
    ("monteclora_config", "the update is computed in another way"),
    ("kasa_config", "the update is computed in another way"),
    ("invocation_string", "the tokens that switch the adapter on have to be known"),
];

/// The settings that a LoRA's effect depends on.
#[derive(Debug)]
pub(super) struct PeftConfig {
    path: PathBuf,
    r: usize,
    lora_alpha: f64,
    use_rslora: bool,
    rank_pattern: Patterns<usize>,
    alpha_pattern: Patterns<f64>,
    /// The tokens behind which the adapter is on; always on where there are none.
    pub(super) alora_invocation_tokens: Vec<u32>,
}

impl PeftConfig {
    /// Checks an `adapter_config.json`.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for what a GGUF adapter can't carry, naming the field.
    pub(super) fn from_json(path: &Path, json: &Map<String, Json>) -> Result<Self> {
        let mut f = Fields::new(path, json);
        f.only("peft_type", &[json!("LORA")])?;
        f.need::<String>("peft_type")?;
        for (field, asks) in REFUSED {
            if let Some(value) = f.switched_on(field) {
                return Err(f
                    .finding(field)
                    .expected("a plain low-rank update, all that a GGUF adapter can carry")
                    .found(format_args!("{value}: {asks}"))
                    .hint("merge the adapter into its base and convert the result")
                    .unsupported());
            }
        }
        f.only("bias", &[json!("none")])?;
        // Others change the base as well, so that adding to the plain base is wrong.
        let inits = [json!(true), json!(false), json!("gaussian"), json!("orthogonal"), json!("eva")];
        f.only("init_lora_weights", &inits)?;
        let config = Self {
            path: path.to_owned(),
            r: f.count("r")?,
            lora_alpha: f.need("lora_alpha")?,
            use_rslora: f.get("use_rslora")?.unwrap_or(false),
            rank_pattern: Patterns::read(&mut f, "rank_pattern", patterns::rank)?,
            alpha_pattern: Patterns::read(&mut f, "alpha_pattern", Json::as_f64)?,
            alora_invocation_tokens: f.get("alora_invocation_tokens")?.unwrap_or_default(),
        };
        f.ignore(INERT);
        f.finish()?;
        Ok(config)
    }

    /// The rank that `module` has by the config.
    pub(super) fn rank(&self, module: &str) -> usize {
        self.rank_pattern.first_match(module).unwrap_or(self.r)
    }

    /// The scale of the update of `module`, times its `rank`: alpha, or alpha * sqrt(rank) with
    /// use_rslora. Dimensionless.
    pub(super) fn alpha(&self, module: &str, rank: usize) -> f64 {
        self.effective(self.alpha_pattern.first_match(module).unwrap_or(self.lora_alpha), rank)
    }

    /// [`PeftConfig::alpha`] of a module that no pattern matches, as GGUF has it.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] where it is no finite float32.
    pub(super) fn file_alpha(&self) -> Result<f32> {
        let alpha = self.effective(self.lora_alpha, self.r) as f32;
        if alpha.is_finite() {
            return Ok(alpha);
        }
        Err(Finding::new(&self.path, "lora_alpha").expected("a finite float32").found(self.lora_alpha).mismatch())
    }

    fn effective(&self, alpha: f64, rank: usize) -> f64 {
        if self.use_rslora { alpha * (rank as f64).sqrt() } else { alpha }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: Json) -> Result<PeftConfig> {
        PeftConfig::from_json(Path::new("adapter_config.json"), json.as_object().unwrap())
    }

    #[test]
    fn the_first_pattern_that_ends_a_path_wins_and_rank_and_alpha_are_looked_up_apart() {
        let config = config(json!({
            "peft_type": "LORA", "r": 8, "lora_alpha": 16,
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "q_proj": 4, "^no": 1},
            "alpha_pattern": {"self_attn.*": 3.5, "q_proj": 5, "model.layers.1.mlp.(up|down)_proj": 7}
        }))
        .unwrap();
        let cases = [
            ("model.layers.0.self_attn.q_proj", 2, 3.5),
            ("model.layers.10.self_attn.q_proj", 4, 3.5),
            ("model.layers.1.mlp.down_proj", 8, 7.0),
            ("model.layers.11.mlp.down_proj", 8, 16.0),
            ("model.layers.0.xq_proj", 8, 16.0),
            ("q_proj", 4, 5.0),
        ];
        for (module, rank, alpha) in cases {
            assert_eq!((config.rank(module), config.alpha(module, rank)), (rank, alpha), "{module}");
        }
    }

    #[test]
    fn rank_stabilized_scales_go_by_the_root_of_the_modules_own_rank() {
        let config =
            config(json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": true, "rank_pattern": {"v": 9}}))
                .unwrap();
        assert_eq!(config.file_alpha().unwrap(), 16.0);
        assert_eq!((config.alpha("q", 4), config.alpha("v", 9)), (16.0, 24.0));
    }

    #[test]
    fn refuses_what_a_gguf_adapter_cannot_carry_by_field() {
        let cases = [
            (json!({"use_dora": true}), "use_dora: expected a plain low-rank update"),
            (json!({"modules_to_save": ["lm_head"]}), "found [\"lm_head\"]: whole weights stand beside the update"),
            (json!({"lora_bias": true}), "lora_bias: "),
            (json!({"bias": "all"}), "bias: expected \"none\", found \"all\""),
            (json!({"init_lora_weights": "pissa"}), "init_lora_weights: "),
            (json!({"use_new_thing": true}), "use_new_thing: expected a field this version knows"),
            (json!({"peft_type": "IA3"}), "peft_type: expected \"LORA\", found \"IA3\""),
            (json!({"rank_pattern": {"q": 0}}), "rank_pattern: expected a number for \"q\", found 0"),
            (json!({"alpha_pattern": {"(?=q)": 1}}), "alpha_pattern: expected regular expressions without look-around"),
            (json!({"r": 0}), "r: expected a count from 1 to 2^31"),
        ];
        for (change, expected) in cases {
            let mut json = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8});
            json.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let error = config(json).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let off = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": false, "modules_to_save": null});
        config(off).unwrap();
        let huge = config(json!({"peft_type": "LORA", "r": 4, "lora_alpha": 1e300})).unwrap();
        assert!(huge.file_alpha().unwrap_err().to_string().contains("lora_alpha: expected a finite float32"));
    }
}
