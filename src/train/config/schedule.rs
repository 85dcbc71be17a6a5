//! The learning rates of a run: by step, and by group of variables.

use serde::{Deserialize, Serialize};

use super::{TrainConfig, TrainingSettings};

/// How the learning rate changes after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// It stays constant.
    #[serde(alias = "constant_with_warmup")]
    Constant,
    /// It falls to `min_learning_rate` along a line.
    Linear,
    /// It falls to `min_learning_rate` along half a cosine.
    #[serde(alias = "cosine_with_min_lr")]
    Cosine,
    /// It stays constant, and falls to `min_learning_rate` along a line in the last steps: warm-up, stable, decay.
    #[serde(
        alias = "warmup_stable_decay",
        alias = "warmup-stable-decay",
        alias = "warm-up-stable-decay",
        alias = "trapezoidal"
    )]
    Wsd,
}

/// A group of variables with a learning rate of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// What decides how a bank routes: router, keys, descriptors and prior.
    Router,
    /// The second factors of low-rank updates.
    B,
    /// Everything else.
    Rest,
}

impl Group {
    /// The group of the variable called `name`.
    pub fn of(name: &str) -> Self {
        match name {
            "atom_bank.atoms" => Self::Rest,
            _ if name.starts_with("atom_bank.") => Self::Router,
            _ if name.contains(".lora_B.") => Self::B,
            _ => Self::Rest,
        }
    }
}

/// The learning rates of a run of a known length.
#[derive(Debug, Clone, Copy)]
pub struct Rates<'a> {
    settings: &'a TrainingSettings,
    steps: usize,
}

impl TrainConfig {
    /// The learning rates of a run of `steps` steps.
    pub fn rates(&self, steps: usize) -> Rates<'_> {
        Rates { settings: &self.training, steps }
    }
}

impl Rates<'_> {
    /// The learning rate of step `step`, counted from 0.
    pub fn at(&self, step: usize) -> f64 {
        self.along(step, self.settings.learning_rate, self.settings.min_learning_rate)
    }

    /// The learning rate of a group in step `step`, counted from 0. Its end is the same share of its peak as that of the
    /// other variables.
    pub fn of(&self, group: Group, step: usize) -> f64 {
        let t = self.settings;
        let peak = match group {
            Group::Router => t.router_learning_rate.unwrap_or(t.learning_rate),
            Group::B => t.learning_rate * t.loraplus_lr_ratio,
            Group::Rest => t.learning_rate,
        };
        let end = if t.learning_rate > 0.0 { t.min_learning_rate * (peak / t.learning_rate) } else { 0.0 };
        self.along(step, peak, end)
    }

    /// The rate of a step on the way up to `peak` and from there to `end`.
    fn along(&self, step: usize, peak: f64, end: f64) -> f64 {
        let warmup = self.warmup();
        if step < warmup {
            return peak * (step + 1) as f64 / warmup as f64;
        }
        let left = self.steps.saturating_sub(warmup).max(1);
        let share = |done: usize, of: usize| (done as f64 / of as f64).min(1.0);
        let height = match self.settings.schedule {
            Schedule::Constant => return peak,
            Schedule::Linear => 1.0 - share(step - warmup, left),
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * share(step - warmup, left)).cos()),
            Schedule::Wsd => {
                let decay = self.decay().clamp(1, left);
                1.0 - share(step.saturating_sub(self.steps.saturating_sub(decay)), decay)
            }
        };
        end + (peak - end) * height
    }

    /// The number of steps of the warm-up.
    pub(super) fn warmup(&self) -> usize {
        self.steps_of(self.settings.warmup_steps, self.settings.warmup_ratio, self.settings.warmup_ratio > 0.0)
    }

    /// The number of steps over which the rate of `wsd` falls.
    pub(super) fn decay(&self) -> usize {
        self.steps_of(self.settings.decay_steps, self.settings.decay_ratio, self.settings.decay_steps == 0)
    }

    /// A number of steps that is given itself, or as a share of all steps, which is rounded up.
    fn steps_of(&self, count: usize, ratio: f64, by_ratio: bool) -> usize {
        if by_ratio { (ratio * self.steps as f64).ceil() as usize } else { count }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SHORT, open};
    use super::*;

    fn rates(changes: &[&str], steps: usize, at: &[usize]) -> Vec<f64> {
        let changes = [&["training.learning_rate=1.0"], changes].concat();
        let config = open(SHORT, &changes).unwrap();
        at.iter().map(|step| (config.rates(steps).at(*step) * 1e9).round() / 1e9).collect()
    }

    #[test]
    fn the_rate_warms_up_and_falls_to_its_end() {
        let warmup = "training.warmup_steps=10";
        assert_eq!(rates(&[warmup], 110, &[0, 9, 60, 110]), [0.1, 1.0, 0.5, 0.0]);
        let linear = [warmup, "training.schedule=linear", "training.min_learning_rate=0.2"];
        assert_eq!(rates(&linear, 110, &[9, 10, 60, 110]), [1.0, 1.0, 0.6, 0.2]);
        assert_eq!(rates(&[warmup, "training.schedule=constant"], 110, &[10, 109]), [1.0, 1.0]);
        let shares = ["training.warmup_ratio=0.1", "training.schedule=warm-up-stable-decay"];
        assert_eq!(rates(&shares, 100, &[0, 9, 50, 90, 95, 99]), [0.1, 1.0, 1.0, 1.0, 0.5, 0.1]);
        let decay = [warmup, "training.schedule=wsd", "training.decay_steps=50"];
        assert_eq!(rates(&decay, 100, &[49, 50, 75]), [1.0, 1.0, 0.5]);
    }

    #[test]
    fn groups_have_peaks_of_their_own() {
        let changes = ["training.learning_rate=0.1", "training.router_learning_rate=0.02", "training.warmup_steps=0"];
        let more = ["training.loraplus_lr_ratio=16", "training.min_learning_rate=0.05"];
        let config = open(SHORT, &[&changes[..], &more[..]].concat()).unwrap();
        let rates = config.rates(10);
        let of = |name: &str, step| (rates.of(Group::of(name), step) * 1e9).round() / 1e9;
        for (name, peak) in [
            ("atom_bank.keys", 0.02),
            ("atom_bank.prior.proj.weight", 0.02),
            ("atom_bank.atoms", 0.1),
            ("base_model.model.x.lora_A.weight", 0.1),
            ("base_model.model.x.lora_B.weight", 1.6),
        ] {
            assert_eq!((of(name, 0), of(name, 10)), (peak, peak / 2.0), "{name}");
        }
        let router_alone = open(SHORT, &["training.learning_rate=0", "training.router_learning_rate=0.5"]).unwrap();
        assert_eq!(router_alone.rates(100).of(Group::Router, 49), 0.5);
    }
}
