//! Whole runs on a tiny base: resuming inside an epoch, the best checkpoint, early stopping, answers, metrics.

use std::path::{Path, PathBuf};

use atombank::train::{End, TrainConfig, measure};
use candle_core::Device;
use serde_json::Value;

use crate::common::fixtures;
use crate::{run, short_run};

/// A LoRA on a tiny Llama, on ten rows whose numbers of tokens with loss are all different, with `more` settings.
fn config(output: &Path, more: &[&str]) -> TrainConfig {
    let file = output.with_extension("toml");
    let base = fixtures().join("convert/llama/model");
    let data = fixtures().join("train/resume.jsonl");
    let text = format!(
        "kind = 'lora'\nbase = '{}'\noutput = '{}'\n[data]\ntrain = '{}'\n[adapter]\nr = 2\nprompt_template = '{{prompt}}'\n",
        base.display(),
        output.display(),
        data.display()
    );
    std::fs::write(&file, text).unwrap();
    let least = ["training.batch_size=3", "training.warmup_steps=2", "training.eval_every=0"];
    let settings: Vec<String> = least.iter().chain(more).map(|setting| (*setting).to_owned()).collect();
    TrainConfig::open(&file, &settings).unwrap()
}

fn metrics(output: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The values of a field, of the lines that have it.
fn values(output: &Path, field: &str) -> Vec<Value> {
    metrics(output).iter().filter_map(|line| line.get(field).cloned()).collect()
}

fn numbers(output: &Path, field: &str) -> Vec<u64> {
    values(output, field).iter().map(|value| value.as_u64().unwrap()).collect()
}

fn bytes(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("adapter_model.safetensors")).unwrap()
}

fn checkpoints(output: &Path) -> Vec<usize> {
    let names = std::fs::read_dir(output).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut steps: Vec<usize> = names.filter_map(|name| name.strip_prefix("checkpoint-")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}

#[test]
fn weights_that_a_step_made_infinite_are_reported_with_the_step_and_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let settings = [
        "training.steps=5",
        "training.learning_rate=2e38",
        "training.clip_norm=0",
        "training.warmup_steps=0",
        "training.checkpoint_every=1",
    ];
    let error = run(&config(&output, &settings), false, usize::MAX).unwrap_err().to_string();
    assert!(error.contains("weights after step 1: expected a finite number, found"), "{error}");
    assert!(error.contains("lora_") && error.contains("lower training.learning_rate"), "{error}");
    assert_eq!((error.lines().count(), checkpoints(&output).len()), (1, 0));
}

#[test]
fn a_run_resumes_inside_an_epoch_with_the_rows_of_one_that_never_stopped() {
    let dir = tempfile::tempdir().unwrap();
    for (number, settings) in [
        &["training.steps=10", "adapter.lora_dropout=0.3"][..],
        &[
            "training.epochs=3",
            "training.batch_size=2",
            "training.step_ends_with_epoch=true",
            "training.loraplus_lr_ratio=4",
        ],
        &[
            "training.steps=9",
            "training.group_by_length=true",
            "training.gradient_accumulation=2",
            "training.schedule=wsd",
        ],
        &["training.epochs=3", "training.batch_tokens=40", "training.schedule=linear"],
        // A checkpoint exactly at the end of an epoch.
        &["training.epochs=3", "training.batch_size=5", "training.checkpoint_every=2"],
    ]
    .into_iter()
    .enumerate()
    {
        let straight = dir.path().join(format!("straight-{number}"));
        run(&config(&straight, settings), false, usize::MAX).unwrap();
        let targets = numbers(&straight, "completion_tokens");
        if settings[0] != "training.steps=9" {
            // Each of three epochs has each row once: 65 tokens.
            assert_eq!(targets.iter().sum::<u64>(), 195, "{settings:?}");
        }
        let all: [&[usize]; 3] = [&[1, 4], &[5], &[8]];
        for stops in &all[..if number == 0 { 3 } else { 1 }] {
            let broken = dir.path().join(format!("broken-{number}-{}", stops[0]));
            let config = config(&broken, settings);
            for (nth, stop) in stops.iter().enumerate() {
                run(&config, nth > 0, *stop).unwrap_err();
            }
            run(&config, true, usize::MAX).unwrap();
            assert_eq!(numbers(&broken, "completion_tokens"), targets, "{settings:?} {stops:?}");
            for field in ["loss", "learning_rate", "epoch"] {
                assert_eq!(values(&broken, field), values(&straight, field), "{settings:?} {stops:?}: {field}");
            }
            assert!(bytes(&broken) == bytes(&straight), "{settings:?} {stops:?}: the adapter differs");
        }
    }
}

#[test]
fn dropout_is_the_same_where_activations_are_computed_again() {
    let dir = tempfile::tempdir().unwrap();
    let loss = |name: &str, settings: &[&str]| {
        let settings = [&["training.steps=4", "training.learning_rate=0.05"], settings].concat();
        run(&config(&dir.path().join(name), &settings), false, usize::MAX).unwrap().loss.unwrap()
    };
    let kept = loss("kept", &["adapter.lora_dropout=0.5"]);
    let again = loss("again", &["adapter.lora_dropout=0.5", "training.checkpoint_activations=true"]);
    assert!((kept - again).abs() < 1e-4 * kept, "{kept} {again}");
    let without = loss("without", &[]);
    assert!((kept - without).abs() > 1e-3 * kept, "{kept} {without}");
}

#[test]
fn the_best_checkpoint_is_kept_and_is_the_result() {
    let dir = tempfile::tempdir().unwrap();
    // Other answers to the same prompts: they get worse while those of the training rows are learned.
    let rows = dir.path().join("eval.jsonl");
    std::fs::write(&rows, "{\"prompt\": \"a\\n\", \"completion\": \"code None str\"}\n").unwrap();
    let eval = format!("data.eval='{}'", rows.display());
    let settings = [
        &*eval,
        "training.steps=12",
        "training.schedule=constant",
        "training.learning_rate=0.05",
        "training.eval_every=2",
    ];
    let more = ["training.checkpoint_every=2", "training.keep_checkpoints=1", "training.load_best_at_end=true"];
    let settings = [&settings[..], &more[..]].concat();
    let output = dir.path().join("run");
    let outcome = run(&config(&output, &settings), false, usize::MAX).unwrap();
    let losses = values(&output, "eval_loss");
    let lowest = losses.iter().map(|loss| loss.as_f64().unwrap()).fold(f64::INFINITY, f64::min);
    let best = outcome.best.unwrap();
    assert_eq!((best.loss, outcome.adapter_step), (lowest, best.step), "{losses:?}");
    assert!(best.step < 12, "{losses:?}");
    assert_eq!(checkpoints(&output), [best.step, 12]);
    let best_bytes = bytes(&output.join(format!("checkpoint-{:06}", best.step)));
    assert!(bytes(&output) == best_bytes && best_bytes != bytes(&output.join("checkpoint-000012")));

    // Stopped after the best evaluation, moved, and resumed: the same.
    let stopped = dir.path().join("stopped");
    run(&config(&stopped, &settings), false, best.step + 1).unwrap_err();
    let moved = dir.path().join("moved");
    std::fs::rename(&stopped, &moved).unwrap();
    let again = run(&config(&moved, &settings), true, usize::MAX).unwrap();
    assert_eq!((again.best, again.adapter_step), (outcome.best, outcome.adapter_step));
    assert_eq!((checkpoints(&moved), bytes(&moved)), (checkpoints(&output), bytes(&output)));
    assert_eq!(values(&moved, "eval_loss"), losses);
    // A finished run that is resumed gives the best adapter again.
    std::fs::remove_file(moved.join("adapter_model.safetensors")).unwrap();
    assert_eq!(run(&config(&moved, &settings), true, usize::MAX).unwrap().loss, None);
    assert!(bytes(&moved) == best_bytes);
}

#[test]
fn a_run_without_progress_stops_and_stays_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let eval = format!("data.eval='{}'", fixtures().join("train/resume.jsonl").display());
    let settings =
        [&*eval, "training.steps=50", "training.learning_rate=0", "training.eval_every=2", "training.patience=2"];
    let output = dir.path().join("run");
    let outcome = run(&config(&output, &settings), false, usize::MAX).unwrap();
    // The first of three equal evaluations is the best one.
    assert_eq!((outcome.end, outcome.steps, outcome.best.unwrap().step), (End::Patience, 6, 2));
    assert_eq!(values(&output, "end"), ["patience"]);
    assert_eq!(checkpoints(&output), [6]);
    let again = run(&config(&output, &settings), true, usize::MAX).unwrap();
    assert_eq!((again.end, again.steps, again.loss), (End::Patience, 6, None));
    assert_eq!(values(&output, "end"), ["patience"]);
    // Stopped and resumed after the second evaluation, it counts on.
    let broken = dir.path().join("broken");
    run(&config(&broken, &settings), false, 4).unwrap_err();
    assert_eq!(run(&config(&broken, &settings), true, usize::MAX).unwrap().steps, 6);
    // At the very last step, too, the reason is that there was no progress.
    let last = [&settings[..], &["training.steps=6"]].concat();
    let outcome = run(&config(&dir.path().join("last"), &last), false, usize::MAX).unwrap();
    assert_eq!((outcome.end, outcome.steps), (End::Patience, 6));
    let error = run(&config(&dir.path().join("no"), &["training.steps=3"]), false, 9).map(|_| ());
    assert!(error.is_ok(), "patience is off without the setting");
}

#[test]
fn answers_are_compared_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let rows = dir.path().join("eval.jsonl");
    // The demo's base spells every word.
    let row = |answer: &str| {
        format!("{{\"instruction\": \"Reverse the letters.\", \"prompt\": \"garden\", \"completion\": \"{answer}\"}}\n")
    };
    std::fs::write(&rows, [row("g-a-r-d-e-n"), row("g-a-r-d-e"), row("nedrag")].concat()).unwrap();
    let settings = ["kind=lora", "training.learning_rate=0", "training.steps=1", "training.batch_size=2"];
    let more = ["training.eval_exact_match=3", "training.eval_samples=1", "training.metrics=['jsonl', 'tensorboard']"];
    let output = dir.path().join("run");
    let mut config = short_run(&output, &[&settings[..], &more[..]].concat());
    config.data.eval = Some(rows.into());
    let outcome = run(&config, false, usize::MAX).unwrap();
    let samples = &values(&output, "samples")[0][0];
    assert_eq!(
        (&samples["generated"], &samples["expected"]),
        (&"g-a-r-d-e-n".into(), &"g-a-r-d-e-n".into()),
        "{samples}"
    );
    assert!(samples["row"].as_str().unwrap().ends_with("eval.jsonl: line 1"), "{samples}");
    assert_eq!(outcome.exact_match, Some(1.0 / 3.0));
    assert_eq!(values(&output, "exact_match_rows"), [3]);
    let events: Vec<PathBuf> = std::fs::read_dir(&output).unwrap().map(|entry| entry.unwrap().path()).collect();
    let events = events.iter().find(|path| path.file_name().unwrap().to_str().unwrap().contains("tfevents")).unwrap();
    let bytes = std::fs::read(events).unwrap();
    for tag in ["eval_loss", "exact_match", "learning_rate"] {
        assert!(bytes.windows(tag.len()).any(|part| part == tag.as_bytes()), "{tag}");
    }
}

#[test]
fn a_step_is_measured_without_writing() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let measured = measure(&config(&output, &["training.epochs=2"]), &Device::Cpu).unwrap();
    assert_eq!((measured.rows, measured.steps, measured.largest_batch.0), ((10, 0), 7, 3));
    assert!(measured.seconds_per_step > 0.0 && measured.memory_bytes.unwrap() > 1 << 20, "{measured:?}");
    assert!(!output.exists());
}

#[test]
fn settings_that_do_not_fit_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    for (setting, expected) in [
        ("training.batch_tokens=8", "training.batch_tokens: expected at least"),
        ("training.gradient_accumulation=40000", "expected at most 65536 sequences in a step, found 3 * 40000"),
    ] {
        let error = run(&config(&output, &[setting]), false, usize::MAX).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!output.exists(), "{setting}");
    }
}
