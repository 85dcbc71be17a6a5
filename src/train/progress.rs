//! The best evaluation of a run, and when to stop for want of a better one.

use serde::{Deserialize, Serialize};

/// An evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The step after which it was done.
    pub step: usize,
    /// The mean of -log p over the tokens that carry loss.
    #[serde(with = "exact")]
    pub loss: f64,
}

/// What a run remembers of its evaluations. Checkpoints keep it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Progress {
    /// The best evaluation. Of two that are equally good, it is the earlier one.
    pub(super) best: Option<Evaluation>,
    /// The number of evaluations since then.
    pub(super) without_progress: usize,
}

impl Progress {
    /// Takes note of an evaluation with a finite loss, and returns whether it is the best so far: better than the best
    /// one by more than `min_delta`.
    pub(super) fn record(&mut self, evaluated: Evaluation, min_delta: f64) -> bool {
        let is_better = self.best.is_none_or(|best| evaluated.loss < best.loss - min_delta);
        match is_better {
            true => *self = Self { best: Some(evaluated), without_progress: 0 },
            false => self.without_progress += 1,
        }
        is_better
    }

    /// Whether there were `patience` evaluations without progress, so that the run ends; never for a patience of 0.
    pub(super) fn is_exhausted(&self, patience: usize) -> bool {
        patience > 0 && self.without_progress >= patience
    }
}

/// A number as text, which is read back to the same bits. JSON's numbers may come back off by one in the last bit.
mod exact {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| de::Error::invalid_value(de::Unexpected::Str(&text), &"a number as text"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases of fixtures/train/early-stopping.json, straight and resumed after each evaluation.
    #[test]
    fn runs_stop_where_the_tables_say() {
        let text = include_str!("../../fixtures/train/early-stopping.json");
        let cases: serde_json::Value = serde_json::from_str(text).unwrap();
        for (name, case) in cases.as_object().unwrap() {
            let patience = case["patience"].as_u64().unwrap() as usize;
            let min_delta = case["smallest_progress"].as_f64().unwrap();
            let table = case["table"].as_array().unwrap();
            let losses = case["eval_losses"].as_array().unwrap();
            let mut progress = Progress::default();
            for (step, (row, loss)) in table.iter().zip(losses).enumerate() {
                progress.record(Evaluation { step, loss: loss.as_f64().unwrap() }, min_delta);
                // As a checkpoint keeps it.
                progress = serde_json::from_str(&serde_json::to_string(&progress).unwrap()).unwrap();
                assert_eq!(progress.best.unwrap().loss, row["best"].as_f64().unwrap(), "{name}: {row}");
                assert_eq!(
                    progress.without_progress as u64,
                    row["without_progress"].as_u64().unwrap(),
                    "{name}: {row}"
                );
                assert_eq!(progress.is_exhausted(patience), row["stop"].as_bool().unwrap(), "{name}: {row}");
            }
        }
    }

    #[test]
    fn losses_keep_their_bits_and_the_earlier_of_two_stays_best() {
        let loss = f64::from_bits(0.1f64.to_bits() + 12_345_677);
        let mut progress = Progress::default();
        assert!(progress.record(Evaluation { step: 1, loss }, 0.0));
        let mut kept: Progress = serde_json::from_str(&serde_json::to_string(&progress).unwrap()).unwrap();
        assert_eq!(kept, progress);
        assert!(!kept.record(Evaluation { step: 2, loss }, 0.0));
        assert_eq!(kept.best.unwrap().step, 1);
    }
}
