//! The training file: TOML or YAML. Every key must be known, and every value is checked before anything is loaded.

mod adapter;
mod axolotl;
mod data;
mod effect;
mod file;
mod growth;
mod lora;
mod schedule;
mod template;
mod training;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::adapter::selected_parameters;
use crate::arch::ModelConfig;
use crate::error::{Finding, Result, counted};

pub use adapter::{AdapterKind, AdapterSettings};
pub use axolotl::{FromAxolotl, from_axolotl};
pub use data::{DataSettings, DataSource, DataSources, Loss, RowFormat, Truncate};
pub(super) use lora::Start;
pub use schedule::{Group, Rates, Schedule};
pub use template::TEMPLATE;
pub use training::{MetricsForm, TrainingSettings};

/// The number of sequences in a forward pass that is allowed even if the data has fewer rows: larger batches would only
/// repeat rows.
const MAX_BATCH: usize = 64;

/// The number of sequences in a step that is allowed even if the data has fewer rows.
const MAX_STEP_SEQUENCES: usize = 1 << 16;

/// A training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The path of the training file, for errors.
    #[serde(skip)]
    pub file: PathBuf,
    /// The base model's folder, or its name on the hub.
    pub base: PathBuf,
    /// The base's folder on this machine, if `base` is its name on the hub.
    #[serde(skip)]
    pub hub_base: Option<HubBase>,
    /// The folder for the adapter, its checkpoints and metrics.
    pub output: PathBuf,
    /// The kind of adapter.
    #[serde(default)]
    pub kind: AdapterKind,
    /// The bank that grows, for `kind = "grow"` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// A file with the instructions of the bank that grows, one a line, if the bank doesn't keep them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<PathBuf>,
    /// The seed for the adapter's initial values and the order of the data.
    #[serde(default)]
    pub seed: u64,
    /// The data.
    pub data: DataSettings,
    /// The adapter's settings.
    #[serde(default)]
    pub adapter: AdapterSettings,
    /// The optimizer's settings.
    #[serde(default)]
    pub training: TrainingSettings,
}

/// A base model from the hub, on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubBase {
    /// Its folder, which has its commit as name.
    pub folder: PathBuf,
    /// Its name on the hub: `org/name`.
    pub id: String,
}

impl TrainConfig {
    /// Reads the file at `path`, which is YAML if its name ends in `.yaml` or `.yml`, else TOML, with `overrides`
    /// ("training.steps=10") applied.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::Format`] for an unknown key or a value of the wrong kind; those of
    /// [`TrainConfig::check`].
    pub fn open(path: &Path, overrides: &[String]) -> Result<Self> {
        let config = file::read(path, overrides)?;
        config.check()?;
        Ok(config)
    }

    /// Checks values that have the right type but may be invalid.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for an invalid value, [`crate::Error::Unsupported`] for an unknown module, naming the
    /// training file and the key.
    pub fn check(&self) -> Result<()> {
        self.check_training()?;
        let finding = |key: &str| Finding::new(&self.file, key);
        let counts = [
            ("data.max_length", self.data.max_length),
            ("adapter.r", self.adapter.r),
            ("adapter.num_atoms", self.adapter.num_atoms.unwrap_or(1)),
            ("adapter.top_k", self.adapter.top_k.unwrap_or(1)),
            ("adapter.block_size", self.adapter.block_size),
            ("adapter.key_dim", self.adapter.key_dim.unwrap_or(1)),
            ("adapter.descriptor_dim", self.adapter.descriptor_dim.unwrap_or(1)),
        ];
        if let Some((key, value)) = counts.into_iter().find(|(_, v)| *v == 0 || *v > 1 << 31) {
            return Err(finding(key).expected("a count from 1 to 2^31").found(value).mismatch());
        }
        let alpha = self.adapter.lora_alpha;
        if !alpha.is_finite() || alpha < 0.0 {
            return Err(finding("adapter.lora_alpha").expected("a number from 0").found(alpha).mismatch());
        }
        let dropout = self.adapter.lora_dropout;
        if !(0.0..1.0).contains(&dropout) {
            return Err(finding("adapter.lora_dropout").expected("a share from 0 up to 1").found(dropout).mismatch());
        }
        if dropout > 0.0 && !self.adapter.target_parameters.is_empty() {
            let finding = finding("adapter.lora_dropout").expected("0 with adapter.target_parameters").found(dropout);
            return Err(finding.unsupported());
        }
        if dropout > 0.0 && self.kind != AdapterKind::Lora {
            let finding = finding("adapter.lora_dropout").expected("0, except for kind = \"lora\"").found(dropout);
            return Err(finding.unsupported());
        }
        self.data.check(&self.file)?;
        if self.adapter.target_modules.is_empty() && self.adapter.target_parameters.is_empty() {
            return Err(finding("adapter.target_modules").expected("at least one module").found("none").mismatch());
        }
        if self.kind == AdapterKind::Bank && !self.adapter.target_parameters.is_empty() {
            return Err(finding("adapter.target_parameters")
                .expected("none: atoms act on linear layers")
                .found(self.adapter.target_parameters.join(", "))
                .hint("train a LoRA of experts with `kind = \"lora\"`")
                .unsupported());
        }
        self.check_targets()?;
        self.check_growth()?;
        self.check_effect()?;
        match self.kind {
            // The dimension of instructions comes from the base or the encoder, which are checked separately.
            AdapterKind::Bank => {
                self.check_no_lora_keys()?;
                self.bank_settings(1).check_as(&self.file, "adapter.")
            }
            AdapterKind::Lora => self.check_lora(),
            AdapterKind::Grow => self.check_no_lora_keys(),
        }
    }

    /// Checks that the sizes in the settings are reasonable for `base` and the data, before anything is allocated.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`], naming the training file and the key.
    pub(super) fn check_size(&self, base: &ModelConfig, instruction_dim: Option<usize>, rows: usize) -> Result<()> {
        let parameters = &self.adapter.target_parameters;
        let is_missing = |target: &&String| selected_parameters(base, std::slice::from_ref(*target)).is_empty();
        if let Some(missing) = parameters.iter().find(is_missing) {
            let mut known: Vec<&str> = Vec::new();
            for parameter in base.expert_parameters() {
                let name = parameter.path.split_once(".mlp.").map_or(parameter.path.as_str(), |(_, name)| name);
                if !known.contains(&name) {
                    known.push(name);
                }
            }
            let known = if known.is_empty() { "none, as the base has no experts".to_owned() } else { known.join(", ") };
            return Err(Finding::new(&self.file, "adapter.target_parameters")
                .expected(format_args!("parameters with experts of the base: {known}"))
                .found(missing)
                .mismatch());
        }
        let is_of_experts = !parameters.is_empty() && self.adapter.target_modules.is_empty();
        self.check_embeddings(base)?;
        let targets = self.targets(base);
        if !is_of_experts && base.selected(&targets).next().is_none() {
            return Err(Finding::new(&self.file, "adapter.target_modules")
                .expected(format_args!("linear layers of the base: {}", base.module_names().join(", ")))
                .found(self.adapter.target_modules.join(", "))
                .mismatch());
        }
        match self.kind {
            AdapterKind::Bank => self.bank_config(base, instruction_dim).check_size(&self.file, "adapter.", base)?,
            AdapterKind::Lora => self.check_lora_on(base)?,
            // The bank has its sizes, and growth checks them.
            AdapterKind::Grow => {}
        }
        let t = &self.training;
        let most = rows.max(MAX_BATCH);
        // Without a number of rows, the number of tokens limits a batch.
        let batch_size = if t.batch_tokens > 0 { 1 } else { t.batch_size };
        if batch_size > most {
            return Err(Finding::new(&self.file, "training.batch_size")
                .expected(format_args!("at most {most}: the data has {}", counted(rows, "row")))
                .found(t.batch_size)
                .hint("`gradient_accumulation` makes a larger step without more memory")
                .mismatch());
        }
        let most = rows.max(MAX_STEP_SEQUENCES);
        match batch_size.checked_mul(t.gradient_accumulation) {
            Some(sequences) if sequences <= most => Ok(()),
            _ => Err(Finding::new(&self.file, "training.batch_size, training.gradient_accumulation")
                .expected(format_args!("at most {most} sequences in a step"))
                .found(format_args!("{batch_size} * {}", t.gradient_accumulation))
                .mismatch()),
        }
    }

    /// A warning to the user before training, if there is a reason for one.
    pub fn warning(&self) -> Option<&'static str> {
        let routed =
            self.kind == AdapterKind::Bank && self.adapter.top_k == Some(1) && self.adapter.num_atoms != Some(1);
        let regularized = self.training.lambda_prior > 0.0 || self.training.lambda_balance > 0.0;
        (routed && !regularized).then_some(
            "top_k = 1: the softmax over one logit is constant, so the loss gives the router no gradient; \
             only A, B and the atoms learn unless training.lambda_prior or training.lambda_balance is set",
        )
    }

    /// The base model's folder on this machine.
    pub fn base_folder(&self) -> &Path {
        self.hub_base.as_ref().map_or(&self.base, |base| &base.folder)
    }

    /// The name of the base in the adapter's settings.
    fn base_name(&self) -> String {
        self.hub_base.as_ref().map_or_else(|| self.base.display().to_string(), |base| base.id.clone())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::train) fn open(text: &str, overrides: &[&str]) -> Result<TrainConfig> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        TrainConfig::open(file.path(), &overrides.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    pub(in crate::train) const SHORT: &str = "base = 'b'\noutput = 'o'\n[data]\ntrain = 't.jsonl'\n";

    #[test]
    fn overrides_reach_nested_keys_and_plain_texts() {
        let config = open(SHORT, &["training.steps=7", "kind=lora", "adapter.target_modules=['o_proj']"]).unwrap();
        assert_eq!((config.training.steps, config.kind), (7, AdapterKind::Lora));
        assert_eq!(config.adapter.target_modules, ["o_proj"]);
    }

    #[test]
    fn unknown_keys_and_senseless_values_are_named() {
        for (change, expected) in [
            ("training.step=7", "training: unknown field `step`; did you mean training.steps?"),
            ("learning_rate=7", "unknown field `learning_rate`; did you mean training.learning_rate?"),
            (
                "adapter.use_qalora=true",
                "adapter: unknown field `use_qalora`, which PEFT has and this trainer doesn't; leave",
            ),
            ("training.xyzzy=7", "training: expected one of steps, epochs"),
            ("kind=lara", "kind: unknown variant `lara`; did you mean lora?"),
            ("training.warmup_ratio=2", "training.warmup_ratio: expected a share of all steps from 0 to 1, found 2"),
            ("training.patience=2", "training.patience: expected rows to evaluate on, found none; data.eval"),
            ("training.batch_size=0", "training.batch_size: expected a count"),
            ("training.learning_rate=nan", "training.learning_rate: expected a number"),
            ("adapter.target_modules=['x_proj']", "found x_proj"),
            ("data.eval_fraction=1.5", "data.eval_fraction"),
            ("adapter={num_atoms=8,top_k=9}", "adapter.top_k: expected at most num_atoms, 8, found 9"),
            ("adapter.lora_dropout=1", "adapter.lora_dropout: expected a share from 0 up to 1, found 1"),
            ("adapter.lora_dropout=0.1", "adapter.lora_dropout: expected 0, except for kind = \"lora\", found 0.1"),
            ("adapter.top_k=0", "adapter.top_k: expected a count from 1 to 2^31, found 0"),
            ("adapter.prior_temperature=1e-320", "adapter.prior_temperature: expected a positive number whose inverse"),
            ("adapter.temperature=1e39", "adapter.temperature: expected a positive number whose inverse"),
            ("adapter.prior_strength=1e300", "adapter.prior_strength: expected a finite number, in float32 too"),
            ("adapter.lora_alpha=1e300", "adapter.lora_alpha: expected a finite number, in float32 too"),
        ] {
            let error = open(SHORT, &[change]).unwrap_err().to_string();
            assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
        }
    }

    #[test]
    fn yaml_says_the_same_as_toml() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.yaml");
        let text = "base: b\noutput: o\nkind: lora\ndata: {train: t.jsonl}\ntraining:\n  learning_rate: 2e-4\n  resident: yes\n";
        std::fs::write(&path, text).unwrap();
        let found = TrainConfig::open(&path, &["training.steps=7".to_owned()]).unwrap();
        let toml = format!("kind = 'lora'\n{SHORT}[training]\nlearning_rate = 2e-4\nresident = true\nsteps = 7\n");
        let expected = open(&toml, &[]).unwrap();
        assert_eq!(TrainConfig { file: expected.file.clone(), ..found }, expected);
        std::fs::write(&path, "base: b\noutput: [\n").unwrap();
        let error = TrainConfig::open(&path, &[]).unwrap_err().to_string();
        assert!(error.contains("run.yaml: expected a training file") && error.lines().count() == 1, "{error}");
    }

    #[test]
    fn of_two_ways_to_say_the_same_one_is_allowed() {
        let both = format!("{SHORT}[training]\nsteps = 7\nepochs = 2\n");
        let error = open(&both, &[]).unwrap_err().to_string();
        assert!(error.contains("training.steps, training.epochs: expected one of the two, found both"), "{error}");
        let steps = format!("{SHORT}[training]\nsteps = 7\n");
        assert_eq!(open(&steps, &["training.epochs=2"]).unwrap().training.epochs, 2);
    }

    #[test]
    fn a_router_without_gradient_is_pointed_out() {
        assert!(open(SHORT, &["adapter.top_k=1"]).unwrap().warning().is_some());
        assert!(open(SHORT, &["adapter.top_k=1", "training.lambda_prior=0.1"]).unwrap().warning().is_none());
        assert!(open(SHORT, &[]).unwrap().warning().is_none());
    }
}
