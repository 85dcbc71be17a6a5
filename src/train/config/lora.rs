//! `[adapter]`: the keys of LoRAs, and the modules that are adapted.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::TrainConfig;
use crate::adapter::peft::patterns;
use crate::adapter::{LoraConfig, Patterns};
use crate::arch::{ModelConfig, Module};
use crate::bank::check_rank;
use crate::error::{Finding, Result};

/// The entry of `target_modules` that stands for all linear layers of a base.
const ALL_LINEAR: &str = "all-linear";

/// Ends of the paths of embeddings and output heads.
const EMBEDDINGS: [&str; 9] = [
    "lm_head",
    "embed_tokens",
    "embed_positions",
    "embed_in",
    "embed_out",
    "wte",
    "wpe",
    "word_embeddings",
    "embedding",
];

/// How the factors of a LoRA begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::train) enum Start {
    /// A Kaiming-uniform, B zero.
    Kaiming,
    /// A normal with deviation 1 / r, B zero.
    Gaussian,
    /// PiSSA: the principal singular vectors of the weights. `iterations` over a random sketch, or the exact ones.
    Principal { iterations: Option<usize> },
}

/// Reads `target_modules`: a list of names, or `"all-linear"`.
pub(super) fn names<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a list of names, or \"all-linear\"")]
    enum Names {
        List(Vec<String>),
        One(String),
    }
    match Names::deserialize(from)? {
        Names::List(list) => Ok(list),
        Names::One(name) if name == ALL_LINEAR => Ok(vec![name]),
        Names::One(_) => Err(serde::de::Error::custom("expected a list of names, or \"all-linear\"")),
    }
}

/// Reads `layers_to_transform`: one number, or a list.
pub(super) fn layers<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Option<Vec<usize>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected the number of a layer, or a list of them")]
    enum Layers {
        List(Vec<usize>),
        One(usize),
    }
    Ok(Option::<Layers>::deserialize(from)?.map(|layers| match layers {
        Layers::List(list) => list,
        Layers::One(layer) => vec![layer],
    }))
}

impl TrainConfig {
    /// The settings of a LoRA. Names in `target_modules` are those of the training file.
    ///
    /// # Errors
    /// [`crate::Error::Format`] and [`crate::Error::Unsupported`] for patterns that can't be used.
    pub fn lora_config(&self) -> Result<LoraConfig> {
        let a = self.adapter.clone();
        let finding = |key: &str| Finding::new(&self.file, format!("adapter.{key}"));
        Ok(LoraConfig {
            r: a.r,
            lora_alpha: a.lora_alpha,
            use_rslora: a.use_rslora,
            use_dora: a.use_dora,
            rank_pattern: Patterns::of(&a.rank_pattern, || finding("rank_pattern"), patterns::rank)?,
            alpha_pattern: Patterns::of(&a.alpha_pattern, || finding("alpha_pattern"), alpha)?,
            target_modules: Some(a.target_modules),
            exclude_modules: a.exclude_modules,
            layers_to_transform: a.layers_to_transform,
            target_parameters: a.target_parameters,
            base_model_name_or_path: self.base_name(),
        })
    }

    /// How the factors of a LoRA begin.
    pub(in crate::train) fn start(&self) -> Result<Start> {
        let value = &self.adapter.init_lora_weights;
        let iterations = |name: &str| name.strip_prefix("pissa_niter_")?.parse().ok().filter(|count| *count <= 64);
        match value {
            Value::Bool(true) => Ok(Start::Kaiming),
            Value::String(name) if name == "gaussian" => Ok(Start::Gaussian),
            Value::String(name) if name == "pissa" => Ok(Start::Principal { iterations: None }),
            Value::String(name) if iterations(name).is_some() => Ok(Start::Principal { iterations: iterations(name) }),
            _ => Err(Finding::new(&self.file, "adapter.init_lora_weights")
                .expected("true, \"gaussian\", \"pissa\" or \"pissa_niter_N\"")
                .found(value)
                .unsupported()),
        }
    }

    /// The names of the modules to be adapted in `base`.
    pub(in crate::train) fn targets(&self, base: &ModelConfig) -> Vec<String> {
        if self.adapter.target_modules != [ALL_LINEAR] {
            return self.adapter.target_modules.clone();
        }
        base.module_names().into_iter().map(str::to_owned).collect()
    }

    /// Checks what can be known of the modules without a base.
    pub(super) fn check_targets(&self) -> Result<()> {
        let a = &self.adapter;
        let finding = |key: &str| Finding::new(&self.file, format!("adapter.{key}"));
        let is_known = |target: &&String| {
            let is_all = a.target_modules.len() == 1 && *target == ALL_LINEAR;
            is_all || Module::is_target(target) || is_embedding(target)
        };
        if let Some(module) = a.target_modules.iter().find(|target| !is_known(target)) {
            return Err(finding("target_modules").expected(Module::names().join(", ")).found(module).unsupported());
        }
        match a.bias.as_str() {
            "none" => Ok(()),
            other => Err(finding("bias").expected("none: biases stay as they are").found(other).unsupported()),
        }
    }

    /// Refuses what would train embeddings or the output head.
    pub(super) fn check_embeddings(&self, base: &ModelConfig) -> Result<()> {
        let a = &self.adapter;
        let in_targets = a.target_modules.iter().filter(|target| is_embedding(target)).cloned().collect();
        let indices = a.trainable_token_indices.as_ref().map(|indices| indices.to_string());
        let tying = a.ensure_weight_tying.then(|| "true".to_owned());
        let settings = [
            ("modules_to_save", a.modules_to_save.clone()),
            ("trainable_token_indices", indices.into_iter().collect()),
            ("target_modules", in_targets),
            ("ensure_weight_tying", tying.into_iter().collect()),
        ];
        let Some((key, found)) = settings.into_iter().find(|(_, found)| !found.is_empty()) else { return Ok(()) };
        let found = found.join(", ");
        // Other names of the list may be right.
        let (expected, hint) = match key {
            "target_modules" => {
                ("linear layers of decoder layers: others aren't trained", format!("leave out {found}"))
            }
            _ => ("nothing: only linear layers of decoder layers are trained", "leave the key out".to_owned()),
        };
        let finding = Finding::new(&self.file, format!("adapter.{key}")).expected(expected).hint(hint);
        Err(match base.tie_word_embeddings {
            true => finding.found(format_args!(
                "{found}: the base has tied embeddings, and what is trained for one use would be lost or change the other"
            )),
            false => finding.found(found),
        }
        .unsupported())
    }

    /// Refuses keys of LoRAs in the settings of a bank.
    pub(super) fn check_no_lora_keys(&self) -> Result<()> {
        let a = &self.adapter;
        let is_set = [
            ("use_dora", a.use_dora),
            ("init_lora_weights", a.init_lora_weights != Value::Bool(true)),
            ("rank_pattern", !a.rank_pattern.is_empty()),
            ("alpha_pattern", !a.alpha_pattern.is_empty()),
            ("exclude_modules", !a.exclude_modules.is_empty()),
            ("layers_to_transform", a.layers_to_transform.is_some()),
        ];
        match is_set.into_iter().find(|(_, is_set)| *is_set) {
            None => Ok(()),
            Some((key, _)) => Err(Finding::new(&self.file, format!("adapter.{key}"))
                .expected("nothing: only LoRAs have it")
                .found("a setting")
                .hint("train a LoRA with `kind = \"lora\"`")
                .unsupported()),
        }
    }

    /// Checks the settings of a LoRA without its base.
    pub(super) fn check_lora(&self) -> Result<()> {
        let (config, start) = (self.lora_config()?, self.start()?);
        let finding = |key: &str| Finding::new(&self.file, format!("adapter.{key}"));
        let alphas = config.alpha_pattern.values().map(|alpha| ("alpha_pattern", alpha));
        for (key, alpha) in alphas.chain([("lora_alpha", config.lora_alpha)]) {
            // The smallest divisor is 1.
            if !(alpha as f32).is_finite() {
                let finding = finding(key).expected("a finite number, in float32 too");
                return Err(finding.found(format_args!("{alpha:?}")).mismatch());
            }
            if matches!(start, Start::Principal { .. }) && alpha as f32 == 0.0 {
                let finding = finding(key).expected("an alpha that isn't 0 for PiSSA, whose start is divided by it");
                return Err(finding.found(alpha).mismatch());
            }
        }
        let dropout = self.adapter.lora_dropout;
        let special = [("use_dora", config.use_dora), ("init_lora_weights", matches!(start, Start::Principal { .. }))];
        if let Some((key, _)) = special.into_iter().find(|(_, is_set)| *is_set && dropout > 0.0) {
            // The parts that come from the base would be dropped, too.
            let finding = finding("lora_dropout").expected(format_args!("0 with adapter.{key}"));
            return Err(finding.found(dropout).unsupported());
        }
        let parameters = &self.adapter.target_parameters;
        let has_patterns = !self.adapter.rank_pattern.is_empty() || !self.adapter.alpha_pattern.is_empty();
        let with_experts = [
            ("use_dora", config.use_dora),
            ("init_lora_weights", start != Start::Kaiming),
            ("rank_pattern, adapter.alpha_pattern", has_patterns),
        ];
        match with_experts.into_iter().find(|(_, is_set)| *is_set && !parameters.is_empty()) {
            None => Ok(()),
            Some((key, _)) => Err(finding(key)
                .expected("nothing beside target_parameters: factors of experts have one rank, one scale and one start")
                .found("a setting")
                .unsupported()),
        }
    }

    /// Checks the settings of a LoRA for `base`, before anything is allocated.
    pub(super) fn check_lora_on(&self, base: &ModelConfig) -> Result<()> {
        let config = LoraConfig { target_modules: Some(self.targets(base)), ..self.lora_config()? };
        let finding = |key: &str| Finding::new(&self.file, format!("adapter.{key}"));
        check_rank(&self.file, "adapter.", config.r, base)?;
        for rank in config.rank_pattern.values() {
            check_rank(&self.file, "adapter.rank_pattern: ", rank, base)?;
        }
        let wanted = LoraConfig { exclude_modules: Vec::new(), layers_to_transform: None, ..config.clone() };
        let excluded = |end: &&String| !wanted.selected(base).any(|linear| linear.site.is_selected_by(end));
        if let Some(end) = config.exclude_modules.iter().find(excluded) {
            let finding = finding("exclude_modules").expected("modules that target_modules selects");
            return Err(finding.found(end).mismatch());
        }
        let layers = base.num_hidden_layers;
        let beyond = config.layers_to_transform.iter().flatten().find(|layer| **layer >= layers);
        if let Some(layer) = beyond {
            let finding = finding("layers_to_transform").expected(format_args!("layers below the base's {layers}"));
            return Err(finding.found(layer).mismatch());
        }
        let modules: Vec<String> = config.selected(base).map(|linear| linear.site.to_string()).collect();
        let Some(example) = modules.first() else {
            return match self.adapter.target_parameters.is_empty() {
                true => Err(finding("exclude_modules, adapter.layers_to_transform")
                    .expected("at least one module that is left")
                    .found("none")
                    .mismatch()),
                false => Ok(()),
            };
        };
        let unused = |key: &'static str, pattern: Option<&str>| match pattern {
            Some(pattern) => Err(finding(key)
                .expected(format_args!("patterns for the end of an adapted module's path, such as {example}"))
                .found(format_args!("{pattern:?}, which matches none"))
                .mismatch()),
            None => Ok(()),
        };
        unused("rank_pattern", config.rank_pattern.unused(&modules).next())?;
        unused("alpha_pattern", config.alpha_pattern.unused(&modules).next())
    }
}

/// Whether an entry of `target_modules` names embeddings or an output head.
fn is_embedding(target: &str) -> bool {
    EMBEDDINGS.iter().any(|end| crate::arch::names::ends_path(target, end))
}

/// An alpha in a pattern.
fn alpha(value: &Value) -> Option<f64> {
    value.as_f64().filter(|alpha| *alpha >= 0.0)
}

/// The modules of a bank whose base isn't known yet.
pub(super) fn without_a_base(targets: Vec<String>) -> Vec<String> {
    match targets == [ALL_LINEAR] {
        true => Module::names().into_iter().map(str::to_owned).collect(),
        false => targets,
    }
}

/// The default of `init_lora_weights`.
pub(super) fn kaiming() -> Value {
    Value::Bool(true)
}

/// A pattern's settings, as the training file has them.
pub(super) type PatternSettings = Map<String, Value>;
