//! Compares losses and gradients with torch's, however a step's or an evaluation's rows are split
//! (fixtures/train/losses).

use std::path::PathBuf;

use atombank::adapter::Lora;
use atombank::arch::HfFolder;
use atombank::bank::Regularizer;
use atombank::model::{Decoder, Residence, Sequence, TextEncoder};
use atombank::train::{Objective, Trainable, global_norm};
use candle_core::Device;
use serde_json::Value;

use crate::common::{fixtures, ids};
use crate::relative;

fn folder() -> PathBuf {
    fixtures().join("train/losses")
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder().join(name)).unwrap()).unwrap()
}

/// Runs `work` with the objective of the cases: the adapter of the fixtures on a tiny Llama.
fn with_objective(work: impl FnOnce(&Objective)) {
    let base = HfFolder::open(&fixtures().join("convert/llama/model")).unwrap();
    let decoder = Decoder::open(&base, Residence::Mapped, &Device::Cpu).unwrap();
    let lora = Lora::open(&folder().join("adapter")).unwrap();
    let trainable = Trainable::lora(&lora, &Device::Cpu).unwrap();
    let regularizer = Regularizer { prior: 0.0, balance: 0.0 };
    work(&Objective { decoder: &decoder, trainable: &trainable, regularizer, checkpoint_activations: false });
}

/// The rows of a file: prompt and completion, encoded apart, and the token that ends the text.
fn rows(name: &str) -> Vec<Sequence> {
    let encoder = TextEncoder::open(&fixtures().join("convert/llama/model")).unwrap();
    let text = std::fs::read_to_string(folder().join(name)).unwrap();
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let mut all = encoder.encode(row["prompt"].as_str().unwrap(), true).unwrap();
        let routed = all.len();
        all.extend(encoder.encode(row["completion"].as_str().unwrap(), false).unwrap());
        all.push(2);
        Sequence::completed(all, routed, vec![])
    };
    text.lines().map(row).collect()
}

/// Checks loss and gradient norm of a step whose forward passes are `parts`.
fn check(objective: &Objective, parts: &[&[Sequence]], expected: &Value) {
    let gradients = objective.gradients_of(parts).unwrap();
    let found = [("loss", gradients.loss), ("gradient_norm", global_norm(&gradients).unwrap())];
    for (what, found) in found {
        let expected = expected[what].as_f64().unwrap();
        assert!(relative(found, expected) < 1e-4, "{} passes: {what} {found}, expected {expected}", parts.len());
    }
}

#[test]
fn accumulated_passes_give_the_step_of_one() {
    let (expected, rows) = (json("accumulation.json"), rows("accumulation.jsonl"));
    for (row, expected) in rows.iter().zip(expected["rows"].as_array().unwrap()) {
        assert_eq!(row.ids, ids(&expected["input_ids"]));
        let mask: Vec<u32> = row.targets.iter().map(|target| u32::from(*target)).collect();
        assert_eq!(mask, ids(&expected["mask"]));
    }
    with_objective(|objective| {
        for passes in [&[4][..], &[2, 2], &[1, 1, 1, 1], &[1, 3], &[3, 1]] {
            let mut left = &rows[..];
            let mut parts = Vec::new();
            for count in passes {
                let (part, rest) = left.split_at(*count);
                parts.push(part);
                left = rest;
            }
            check(objective, &parts, &expected);
        }
        assert_eq!(
            objective.gradients(&rows, 2).unwrap().loss,
            objective.gradients_of(&[&rows[..2], &rows[2..]]).unwrap().loss
        );
    });
}

#[test]
fn the_last_step_of_an_epoch_is_divided_by_its_own_tokens() {
    let (expected, rows) = (json("last-group.json"), rows("last-group.jsonl"));
    let one_by_one = |picked: &[usize]| picked.iter().map(|row| std::slice::from_ref(&rows[*row])).collect::<Vec<_>>();
    with_objective(|objective| {
        for (row, expected) in rows.iter().zip(expected["rows"].as_array().unwrap()) {
            let (mean, targets) = objective.evaluate(std::slice::from_ref(row), 1).unwrap();
            assert_eq!(targets as u64, expected["targets"].as_u64().unwrap());
            assert!(relative(mean * targets as f64, expected["nll_sum"].as_f64().unwrap()) < 1e-4);
        }
        // Which rows a step takes: train::batches.
        check(objective, &one_by_one(&[4, 5, 6]), &expected["epoch_ends_step"]);
        check(objective, &one_by_one(&[4, 5, 6, 0]), &expected["runs_on"]);
    });
}

#[test]
fn an_evaluation_counts_tokens_whatever_its_batches() {
    let (expected, rows) = (json("evaluation.json"), rows("accumulation.jsonl"));
    with_objective(|objective| {
        let check = |(loss, tokens): (f64, usize)| {
            assert_eq!(tokens as u64, expected["eval_tokens"].as_u64().unwrap());
            assert!(relative(loss, expected["eval_loss"].as_f64().unwrap()) < 1e-4, "{loss}");
        };
        (1..=4).for_each(|batch_size| check(objective.evaluate(&rows, batch_size).unwrap()));
        check(objective.evaluate_of(&[&rows[..1], &rows[1..]]).unwrap());
    });
}
