//! Several ranks take the steps of one process, whichever of them has how many rows.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use serde_json::Value;

use super::experts::fixture;
use crate::adapter::Lora;
use crate::arch::HfFolder;
use crate::bank::Regularizer;
use crate::error::{Error, Result};
use crate::model::{Decoder, Residence, Sequence};
use crate::train::ranks::threads;
use crate::train::{End, Event, Objective, Outcome, Ranks, TrainConfig, Trainable, global_norm, train_on};

/// A run on rows of which row `i` has `i` words and the end of the text as targets.
fn config(dir: &Path, name: &str, rows: usize, settings: &[&str]) -> TrainConfig {
    let (data, file) = (dir.join(format!("{rows}.jsonl")), dir.join("train.toml"));
    let line =
        |row: usize| format!("{{\"prompt\": \"row {row}\", \"completion\": \"{}\"}}\n", "in ".repeat(row).trim_end());
    std::fs::write(&data, (1..=rows).map(line).collect::<String>()).unwrap();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/convert/llama/model");
    let text = format!(
        "kind = 'lora'\nbase = '{}'\noutput = '{}'\n[data]\ntrain = '{}'\n[adapter]\nr = 2\n[training]\nsteps = 6\n\
         batch_size = 2\nlearning_rate = 0.02\nwarmup_steps = 0\neval_every = 2\nschedule = 'constant'\n",
        base.display(),
        dir.join(name).display(),
        data.display()
    );
    std::fs::write(&file, text).unwrap();
    let eval = format!("data.eval='{}'", data.display());
    let settings = settings.iter().map(|s| (*s).to_owned()).chain([eval]).collect::<Vec<_>>();
    TrainConfig::open(&file, &settings).unwrap()
}

fn run(ranks: &Ranks, config: &TrainConfig, resume: bool, stop_after: usize) -> Result<Outcome> {
    let stop = AtomicBool::new(false);
    train_on(ranks, config, resume, &Device::Cpu, &stop, &mut |event| {
        if matches!(event, Event::Step { step, .. } if step == stop_after) {
            stop.store(true, Ordering::Relaxed);
        }
    })
}

/// Losses, numbers of targets and evaluation losses, by line.
fn lines(config: &TrainConfig) -> Vec<Vec<Value>> {
    let text = std::fs::read_to_string(config.output.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        ["step", "loss", "completion_tokens", "gradient_norm", "eval_loss"].map(|key| line[key].clone()).to_vec()
    };
    text.lines().map(line).collect()
}

/// The lines of the metrics; adapter and optimizer.
fn results(config: &TrainConfig, last: usize) -> (Vec<Vec<Value>>, Vec<Vec<u8>>) {
    let files = ["adapter_model.safetensors".to_owned(), format!("checkpoint-{last:06}/optimizer.safetensors")];
    let bytes = files.map(|file| std::fs::read(config.output.join(file)).unwrap());
    (lines(config), bytes.to_vec())
}

#[test]
fn ranks_take_the_steps_of_one_process_with_as_many_forward_passes() {
    let dir = tempfile::tempdir().unwrap();
    for (ranks, rows, more) in [
        (2, 7, &[][..]),
        (3, 7, &[]),
        // Some ranks have fewer rows than others, or none.
        (2, 7, &["training.step_ends_with_epoch=true"]),
        (3, 7, &["training.step_ends_with_epoch=true"]),
        (2, 1, &["training.step_ends_with_epoch=true", "training.batch_size=1"]),
        (2, 7, &["training.batch_tokens=24", "training.group_by_length=true"]),
        (2, 7, &["adapter.lora_dropout=0.2", "training.checkpoint_activations=true"]),
        // Sequences of several rows, of which ranks have different numbers.
        (2, 7, &["training.packing=true", "training.batch_size=1", "data.max_length=24"]),
        (3, 7, &["training.packing=true", "data.max_length=24", "training.step_ends_with_epoch=true"]),
    ] {
        let accumulated = format!("training.gradient_accumulation={ranks}");
        let name = |kind: &str| format!("{kind}-{ranks}-{rows}-{}", more.join("-"));
        let one = config(dir.path(), &name("one"), rows, &[more, &[accumulated.as_str()]].concat());
        let several = config(dir.path(), &name("several"), rows, more);
        let expected = run(&Ranks::alone(), &one, false, usize::MAX).unwrap();
        let found = threads::on(ranks, |ranks| run(ranks, &several, false, usize::MAX).unwrap());
        for outcome in &found {
            assert_eq!(
                (outcome.loss, outcome.eval_loss),
                (expected.loss, expected.eval_loss),
                "{ranks} {rows} {more:?}"
            );
        }
        let (one, several) = (results(&one, 6), results(&several, 6));
        assert_eq!(one.0, several.0, "{ranks} {rows} {more:?}");
        assert!(one.1 == several.1, "{ranks} {rows} {more:?}: files differ");
    }
}

#[test]
fn all_ranks_stop_together_and_another_number_of_them_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let straight = config(dir.path(), "straight", 7, &[]);
    threads::on(2, |ranks| run(ranks, &straight, false, usize::MAX).unwrap());
    let changed = config(dir.path(), "changed", 7, &[]);
    // A signal to the second rank alone.
    let stopped = threads::on(2, |ranks| {
        let after = if ranks.is_first() { usize::MAX } else { 4 };
        run(ranks, &changed, false, after)
    });
    assert!(stopped.iter().all(|stopped| matches!(stopped, Err(Error::Interrupted { step: 4, .. }))));
    run(&Ranks::alone(), &changed, true, usize::MAX).unwrap();
    assert_eq!(results(&straight, 6).0, results(&changed, 6).0);
    assert!(results(&straight, 6).1 == results(&changed, 6).1);
}

/// The numbers of targets of the steps.
fn targets(config: &TrainConfig) -> Vec<u64> {
    lines(config).iter().filter_map(|line| line[2].as_u64()).collect()
}

#[test]
fn a_step_is_divided_by_the_targets_of_all_ranks() {
    let folder = fixture("train/losses");
    let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("accumulation.json")).unwrap()).unwrap();
    let numbers =
        |list: &Value| list.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect::<Vec<_>>();
    let row = |row: &Value| Sequence {
        ids: numbers(&row["input_ids"]),
        targets: numbers(&row["mask"]).into_iter().map(|marked| marked == 1).collect(),
        ..Sequence::default()
    };
    let rows: Vec<Sequence> = expected["rows"].as_array().unwrap().iter().map(row).collect();
    // The first rank has two rows, with fewer targets than the second one's.
    let step = |ranks: &Ranks| {
        let base = HfFolder::open(&fixture("convert/llama/model")).unwrap();
        let decoder = Decoder::open(&base, Residence::Mapped, &Device::Cpu).unwrap();
        let trainable = Trainable::lora(&Lora::open(&folder.join("adapter")).unwrap(), &Device::Cpu).unwrap();
        let regularizer = Regularizer { prior: 0.0, balance: 0.0 };
        let objective =
            Objective { decoder: &decoder, trainable: &trainable, regularizer, checkpoint_activations: false };
        let gradients = objective.gradients_on(ranks, &[&rows[..2], &rows[2..]], None).unwrap();
        [gradients.loss, global_norm(&gradients).unwrap()]
    };
    let alone = step(&Ranks::alone());
    assert_eq!(threads::on(2, step), [alone, alone]);
    for (found, key) in alone.into_iter().zip(["loss", "gradient_norm"]) {
        let expected = expected[key].as_f64().unwrap();
        assert!((found / expected - 1.0).abs() < 1e-4, "{key}: {found} {expected}");
    }
}

#[test]
fn every_row_counts_once_in_an_epoch_however_many_ranks_share_it() {
    let dir = tempfile::tempdir().unwrap();
    let run_on = |ranks: usize, rows: usize, more: &[&str]| {
        let once = ["training.epochs=1", "training.shuffle=false", "training.step_ends_with_epoch=true"];
        let name = format!("{ranks}-{rows}-{}", more.join("-"));
        let config = config(dir.path(), &name, rows, &[&once[..], more].concat());
        threads::on(ranks, |ranks| run(ranks, &config, false, usize::MAX).unwrap());
        (targets(&config), lines(&config).iter().filter_map(|line| line[1].as_f64()).collect::<Vec<_>>())
    };
    // Row i has i words and the end of the text: 2 to 8 targets.
    let (two, of_two) = run_on(2, 7, &[]);
    assert_eq!(two, [2 + 3 + 4 + 5, 6 + 7 + 8]);
    assert_eq!(run_on(3, 7, &[]).0, [2 + 3 + 4 + 5 + 6 + 7, 8]);
    assert_eq!(run_on(2, 1, &["training.batch_size=1"]).0, [2]);
    let packed = run_on(2, 7, &["training.packing=true", "training.batch_size=1", "data.max_length=24"]).0;
    assert_eq!(packed.iter().sum::<u64>(), 35);
    // One process with the same rows in one batch.
    let (one, of_one) = run_on(1, 7, &["training.batch_size=4"]);
    assert_eq!(one, two);
    for (a, b) in of_one.iter().zip(&of_two) {
        assert!((a / b - 1.0).abs() < 1e-5, "{of_one:?} {of_two:?}");
    }
    // Steps that run on take the first row of the next epoch.
    let config = config(dir.path(), "runs-on", 7, &["training.steps=2", "training.shuffle=false"]);
    threads::on(2, |ranks| run(ranks, &config, false, usize::MAX).unwrap());
    assert_eq!(targets(&config), [2 + 3 + 4 + 5, 6 + 7 + 8 + 2]);
}

#[test]
fn ranks_resume_inside_an_epoch_with_the_rows_of_one_that_never_stopped() {
    let dir = tempfile::tempdir().unwrap();
    for (name, more) in [
        ("plain", &["training.steps=6", "training.batch_size=3"][..]),
        ("packed", &["training.steps=6", "training.batch_size=1", "training.packing=true", "data.max_length=24"]),
        // A checkpoint exactly at the end of an epoch.
        ("whole", &["training.steps=6", "training.batch_size=5", "training.checkpoint_every=1"]),
    ] {
        let straight = config(dir.path(), &format!("{name}-straight"), 10, more);
        threads::on(2, |ranks| run(ranks, &straight, false, usize::MAX).unwrap());
        let broken = config(dir.path(), &format!("{name}-broken"), 10, more);
        for (nth, stop) in [1, 4].into_iter().enumerate() {
            let stopped = threads::on(2, |ranks| run(ranks, &broken, nth > 0, stop));
            assert!(stopped.iter().all(|stopped| matches!(stopped, Err(Error::Interrupted { .. }))), "{name}");
        }
        threads::on(2, |ranks| run(ranks, &broken, true, usize::MAX).unwrap());
        assert_eq!(results(&straight, 6).0, results(&broken, 6).0, "{name}");
        assert!(results(&straight, 6).1 == results(&broken, 6).1, "{name}: files differ");
    }
}

#[test]
fn all_ranks_stop_at_the_same_step_for_want_of_progress() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["training.steps=20", "training.learning_rate=0", "training.patience=2"];
    let two = config(dir.path(), "two", 7, &settings);
    let found = threads::on(2, |ranks| run(ranks, &two, false, usize::MAX).unwrap());
    // The first of three equal evaluations is the best one.
    assert!(found.iter().all(|outcome| (outcome.end, outcome.steps) == (End::Patience, 6)), "{found:?}");
    let one = config(dir.path(), "one", 7, &[&settings[..], &["training.gradient_accumulation=2"]].concat());
    assert_eq!(run(&Ranks::alone(), &one, false, usize::MAX).unwrap().steps, 6);
    assert_eq!(results(&one, 6).0, results(&two, 6).0);
    assert!(results(&one, 6).1 == results(&two, 6).1);
    // Stopped after the second evaluation, they count on.
    let broken = config(dir.path(), "broken", 7, &settings);
    threads::on(2, |ranks| run(ranks, &broken, false, 4).unwrap_err().to_string());
    let found = threads::on(2, |ranks| run(ranks, &broken, true, usize::MAX).unwrap());
    assert!(found.iter().all(|outcome| (outcome.end, outcome.steps) == (End::Patience, 6)), "{found:?}");
    assert_eq!(results(&two, 6).0, results(&broken, 6).0);
}
