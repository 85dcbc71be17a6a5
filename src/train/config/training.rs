//! `[training]`: the optimizer and the run.

use serde::{Deserialize, Serialize};

use super::TrainConfig;
use super::schedule::Schedule;
use crate::error::{Finding, Result};

/// A form in which metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricsForm {
    /// metrics.jsonl: a JSON object for each step and evaluation.
    Jsonl,
    /// A file of events that TensorBoard shows.
    TensorBoard,
}

/// Settings of the optimizer and the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingSettings {
    /// The number of optimizer steps; not used with `epochs`.
    pub steps: usize,
    /// The number of times that the run goes through the rows; 0 where `steps` says how long it is.
    #[serde(alias = "num_epochs", alias = "num_train_epochs")]
    pub epochs: usize,
    /// The number of sequences in one forward pass; not used with `batch_tokens`.
    pub batch_size: usize,
    /// The most tokens in one forward pass, padding included; 0 where `batch_size` says how large it is.
    pub batch_tokens: usize,
    /// Whether a sequence has as many rows as fit in `data.max_length` tokens, which don't see each other, and not one.
    pub packing: bool,
    /// The number of forward passes in one optimizer step.
    #[serde(alias = "gradient_accumulation_steps")]
    pub gradient_accumulation: usize,
    /// Whether rows of similar length share a forward pass.
    pub group_by_length: bool,
    /// Whether every epoch has its own order. If not, rows come in the order of their file.
    pub shuffle: bool,
    /// Whether the last step of an epoch ends with it, with fewer rows. If not, it goes on with the next epoch's.
    pub step_ends_with_epoch: bool,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// The peak learning rate of a bank's router; that of all others where it is missing.
    pub router_learning_rate: Option<f64>,
    /// The peak learning rate of every B, divided by that of the others (LoRA+).
    #[serde(alias = "loraplus_ratio")]
    pub loraplus_lr_ratio: f64,
    /// The learning rate at the end of a schedule that falls.
    pub min_learning_rate: f64,
    /// The number of steps over which the learning rate rises from zero; not used with `warmup_ratio`.
    pub warmup_steps: usize,
    /// The share of all steps over which the learning rate rises; 0 where `warmup_steps` says how many.
    pub warmup_ratio: f64,
    /// How the learning rate changes after that.
    #[serde(alias = "lr_scheduler")]
    pub schedule: Schedule,
    /// The number of steps at the end over which the rate of `wsd` falls; 0 where `decay_ratio` says how many.
    pub decay_steps: usize,
    /// The share of all steps over which the rate of `wsd` falls.
    pub decay_ratio: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this total L2 norm; 0 disables it.
    #[serde(alias = "max_grad_norm")]
    pub clip_norm: f64,
    /// Weight of the divergence of the routing from the language prior.
    pub lambda_prior: f64,
    /// Weight of the load balance over atoms.
    pub lambda_balance: f64,
    /// Number of steps between evaluations; 0 means only at the end.
    pub eval_every: usize,
    /// How many rows of an evaluation are answered by generation and compared with the data.
    pub eval_exact_match: usize,
    /// How many generated answers of an evaluation are written to the metrics.
    pub eval_samples: usize,
    /// The most tokens of a generated answer.
    pub eval_max_tokens: usize,
    /// The number of evaluations in a row without progress after which the run ends; 0 disables it.
    #[serde(alias = "early_stopping_patience")]
    pub patience: usize,
    /// By how much an evaluation must be better than the best one to count as progress.
    #[serde(alias = "early_stopping_threshold")]
    pub min_delta: f64,
    /// Whether the checkpoint with the best evaluation is kept, and is the run's result.
    #[serde(alias = "load_best_model_at_end")]
    pub load_best_at_end: bool,
    /// Number of steps between checkpoints; 0 means only at the end.
    pub checkpoint_every: usize,
    /// How many checkpoints are kept; older ones are deleted.
    #[serde(alias = "save_total_limit")]
    pub keep_checkpoints: usize,
    /// The forms in which metrics are written.
    pub metrics: Vec<MetricsForm>,
    /// Whether the base's matrices are kept in memory in f32. If not, they stay in their file, and are decoded wherever
    /// they are used.
    pub resident: bool,
    /// Whether the backward pass computes the activations of every layer again, which takes less memory and more time.
    #[serde(alias = "gradient_checkpointing")]
    pub checkpoint_activations: bool,
    /// The most memory of the run besides the base's file, such as 3GiB. Activations are computed
    /// again if they don't fit otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory: Option<String>,
}

impl Default for TrainingSettings {
    fn default() -> Self {
        Self {
            steps: 1000,
            epochs: 0,
            batch_size: 8,
            batch_tokens: 0,
            packing: false,
            gradient_accumulation: 1,
            group_by_length: false,
            shuffle: true,
            step_ends_with_epoch: false,
            learning_rate: 1e-3,
            router_learning_rate: None,
            loraplus_lr_ratio: 1.0,
            min_learning_rate: 0.0,
            warmup_steps: 50,
            warmup_ratio: 0.0,
            schedule: Schedule::Cosine,
            decay_steps: 0,
            decay_ratio: 0.1,
            weight_decay: 0.0,
            clip_norm: 1.0,
            lambda_prior: 0.0,
            lambda_balance: 0.0,
            eval_every: 100,
            eval_exact_match: 0,
            eval_samples: 0,
            eval_max_tokens: 64,
            patience: 0,
            min_delta: 0.0,
            load_best_at_end: false,
            checkpoint_every: 200,
            keep_checkpoints: 2,
            metrics: vec![MetricsForm::Jsonl],
            resident: false,
            checkpoint_activations: false,
            max_memory: None,
        }
    }
}

/// Settings that say the same in two ways, so that only one of them can be given.
pub(super) const EITHER: [(&str, &str); 4] = [
    ("training.steps", "training.epochs"),
    ("training.batch_size", "training.batch_tokens"),
    ("training.warmup_steps", "training.warmup_ratio"),
    ("training.decay_steps", "training.decay_ratio"),
];

/// The most epochs of a run: the rows of all epochs are counted before the first step.
const MAX_EPOCHS: usize = 100_000;

impl TrainConfig {
    /// Checks `[training]`.
    pub(super) fn check_training(&self) -> Result<()> {
        let t = &self.training;
        let finding = |key: &str| Finding::new(&self.file, format!("training.{key}"));
        let counts = [
            // With epochs, the number of steps follows from the data.
            ("steps", if t.epochs > 0 { 1 } else { t.steps }),
            ("batch_size", t.batch_size),
            ("gradient_accumulation", t.gradient_accumulation),
            ("keep_checkpoints", t.keep_checkpoints),
            ("eval_max_tokens", t.eval_max_tokens),
        ];
        if let Some((key, value)) = counts.into_iter().find(|(_, v)| *v == 0 || *v > 1 << 31) {
            return Err(finding(key).expected("a count from 1 to 2^31").found(value).mismatch());
        }
        let other = [("batch_tokens", t.batch_tokens > 0), ("group_by_length", t.group_by_length)];
        if let Some((key, _)) = other.into_iter().find(|(_, is_set)| t.packing && *is_set) {
            return Err(finding(key)
                .expected("nothing beside training.packing, which fills sequences")
                .found("a setting")
                .mismatch());
        }
        if t.epochs > MAX_EPOCHS {
            return Err(finding("epochs").expected(format_args!("at most {MAX_EPOCHS}")).found(t.epochs).mismatch());
        }
        let amounts = [
            ("learning_rate", t.learning_rate),
            ("router_learning_rate", t.router_learning_rate.unwrap_or(0.0)),
            ("loraplus_lr_ratio", t.loraplus_lr_ratio),
            ("min_learning_rate", t.min_learning_rate),
            ("weight_decay", t.weight_decay),
            ("clip_norm", t.clip_norm),
            ("lambda_prior", t.lambda_prior),
            ("lambda_balance", t.lambda_balance),
            ("min_delta", t.min_delta),
        ];
        if let Some((key, value)) = amounts.into_iter().find(|(_, v)| !v.is_finite() || *v < 0.0) {
            return Err(finding(key).expected("a number from 0").found(value).mismatch());
        }
        let shares = [("warmup_ratio", t.warmup_ratio), ("decay_ratio", t.decay_ratio)];
        if let Some((key, value)) = shares.into_iter().find(|(_, v)| !(0.0..=1.0).contains(v)) {
            return Err(finding(key).expected("a share of all steps from 0 to 1").found(value).mismatch());
        }
        if t.metrics.is_empty() {
            return Err(finding("metrics").expected("\"jsonl\", \"tensorboard\" or both").found("none").mismatch());
        }
        match self.needs_evaluation().filter(|_| !self.evaluates()) {
            Some(key) => Err(self.without_evaluation(key)),
            None => Ok(()),
        }
    }

    /// The first setting that needs rows to evaluate on.
    pub(in crate::train) fn needs_evaluation(&self) -> Option<&'static str> {
        let t = &self.training;
        let needing = [
            ("eval_exact_match", t.eval_exact_match > 0),
            ("eval_samples", t.eval_samples > 0),
            ("patience", t.patience > 0),
            ("load_best_at_end", t.load_best_at_end),
        ];
        needing.into_iter().find(|(_, given)| *given).map(|(key, _)| key)
    }

    /// Whether the settings name rows to evaluate on.
    fn evaluates(&self) -> bool {
        self.data.eval.is_some() || self.data.eval_fraction > 0.0
    }

    /// The error for a setting of evaluations without rows to evaluate on.
    pub(in crate::train) fn without_evaluation(&self, key: &str) -> crate::Error {
        Finding::new(&self.file, format!("training.{key}"))
            .expected("rows to evaluate on")
            .found("none")
            .hint("data.eval names their file, data.eval_fraction holds out a share of the training rows")
            .mismatch()
    }
}
