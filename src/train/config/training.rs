//! `[training]`: the optimizer and the run.

use serde::{Deserialize, Serialize};

use super::TrainConfig;

/// How the learning rate changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Warms up, then falls to `min_learning_rate` along half a cosine.
    Cosine,
    /// Warms up, then stays constant.
    Constant,
}

/// Settings of the optimizer and the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingSettings {
    /// The number of optimizer steps.
    pub steps: usize,
    /// The number of sequences in one forward pass.
    pub batch_size: usize,
    /// The number of forward passes in one optimizer step.
    pub gradient_accumulation: usize,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// The final learning rate of a cosine schedule.
    pub min_learning_rate: f64,
    /// The number of steps over which the learning rate rises from zero.
    pub warmup_steps: usize,
    /// How the learning rate changes after that.
    pub schedule: Schedule,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this total L2 norm; 0 disables it.
    pub clip_norm: f64,
    /// Weight of the divergence of the routing from the language prior.
    pub lambda_prior: f64,
    /// Weight of the load balance over atoms.
    pub lambda_balance: f64,
    /// Number of steps between evaluations; 0 means only at the end.
    pub eval_every: usize,
    /// Number of steps between checkpoints; 0 means only at the end.
    pub checkpoint_every: usize,
    /// How many checkpoints are kept; older ones are deleted.
    pub keep_checkpoints: usize,
    /// Whether the base's matrices are kept in memory in f32. If not, they stay in their file, and are decoded wherever
    /// they are used.
    pub resident: bool,
    /// Whether the backward pass computes the activations of every layer again, which takes less memory and more time.
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
            batch_size: 8,
            gradient_accumulation: 1,
            learning_rate: 1e-3,
            min_learning_rate: 0.0,
            warmup_steps: 50,
            schedule: Schedule::Cosine,
            weight_decay: 0.0,
            clip_norm: 1.0,
            lambda_prior: 0.0,
            lambda_balance: 0.0,
            eval_every: 100,
            checkpoint_every: 200,
            keep_checkpoints: 2,
            resident: false,
            checkpoint_activations: false,
            max_memory: None,
        }
    }
}

impl TrainConfig {
    /// The learning rate of step `step`, counted from 0.
    pub fn learning_rate(&self, step: usize) -> f64 {
        let t = &self.training;
        if step < t.warmup_steps {
            return t.learning_rate * (step + 1) as f64 / t.warmup_steps as f64;
        }
        match t.schedule {
            Schedule::Constant => t.learning_rate,
            Schedule::Cosine => {
                let span = t.steps.saturating_sub(t.warmup_steps).max(1) as f64;
                let done = ((step - t.warmup_steps) as f64 / span).min(1.0);
                let fall = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
                t.min_learning_rate + (t.learning_rate - t.min_learning_rate) * fall
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SHORT, open};

    #[test]
    fn the_rate_warms_up_and_falls_to_its_end() {
        let config =
            open(SHORT, &["training.steps=110", "training.warmup_steps=10", "training.learning_rate=1.0"]).unwrap();
        assert_eq!(config.learning_rate(0), 0.1);
        assert_eq!(config.learning_rate(9), 1.0);
        assert!((config.learning_rate(60) - 0.5).abs() < 1e-12);
        assert!(config.learning_rate(110) < 1e-12);
    }
}
