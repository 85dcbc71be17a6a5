//! Compares training steps with torch (fixtures/routing: training.json, training.safetensors), and
//! tests whole runs on the demo's base model.

mod common;
#[path = "train/losses.rs"]
mod losses;
#[path = "train/runs.rs"]
mod runs;

use std::sync::atomic::{AtomicBool, Ordering};

use atombank::Error;
use atombank::adapter::Lora;
use atombank::bank::{AtomBank, Regularizer};
use atombank::jobs::{ConvertSettings, convert};
use atombank::model::{Residence, Sequence};
use atombank::train::{AdamW, Event, Objective, Outcome, TrainConfig, Trainable, clip_factor, global_norm, train};
use candle_core::Device;
use common::{CASES, Case, fixtures, ids, read_tensors};

const LEARNING_RATE: f64 = 0.01;
const WEIGHT_DECAY: f64 = 0.01;

fn rows(json: &serde_json::Value) -> Vec<Sequence> {
    let row = |row: &serde_json::Value| {
        let mut all = ids(&row["routed_ids"]);
        let routed = all.len();
        all.extend(ids(&row["completion_ids"]));
        Sequence::completed(all, routed, ids(&row["instruction_ids"]))
    };
    json["rows"].as_array().unwrap().iter().map(row).collect()
}

/// The numbers of steps for which the reference reproduces its own gradient norms, its own losses, and its losses with
/// regularizers to 5e-4 when its start changes by one rounding error (fixtures/routing/sensitivity.py). Beyond them, no
/// other implementation can be held to 1e-3. All other cases are reproducible for all ten steps.
fn reproducible_steps(name: &str) -> (usize, usize, usize) {
    match name {
        "llama-all-linear-rslora" => (4, 7, 5),
        _ => (10, 10, 10),
    }
}

fn relative(found: f64, expected: f64) -> f64 {
    (found - expected).abs() / expected.abs().max(1e-12)
}

#[test]
fn gradients_losses_and_ten_steps_are_torchs() {
    for name in CASES {
        let case = Case::open(name);
        let text = std::fs::read_to_string(case.folder.join("training.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let golden = read_tensors(&case.folder.join("training.safetensors"));
        let without: Vec<&str> =
            json["tensors_without_gradient"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        let sequences = rows(&json);
        let decoder = case.decoder(Residence::Memory);
        for (list, regularizer) in [
            ("losses", Regularizer { prior: 0.0, balance: 0.0 }),
            ("losses_regularized", Regularizer { prior: 0.1, balance: 0.01 }),
        ] {
            let trainable = Trainable::bank(&case.bank, &Device::Cpu).unwrap();
            let objective =
                Objective { decoder: &decoder, trainable: &trainable, regularizer, checkpoint_activations: false };
            let mut optimizer = AdamW::new(trainable.vars()).unwrap();
            let (norm_steps, loss_steps, regularized_steps) = reproducible_steps(name);
            let loss_steps = if list == "losses" { loss_steps } else { regularized_steps };
            for step in 0..loss_steps {
                let gradients = objective.gradients(&sequences, sequences.len()).unwrap();
                let norm = global_norm(&gradients).unwrap();
                let expected = json[list][step].as_f64().unwrap();
                assert!(
                    relative(gradients.loss, expected) < 1e-3,
                    "{name} {list} {step}: {} {expected}",
                    gradients.loss
                );
                if list == "losses" {
                    let expected = json["gradient_norms"][step].as_f64().unwrap();
                    assert!(
                        step >= norm_steps || relative(norm, expected) < 1e-3,
                        "{name} norm {step}: {norm} {expected}"
                    );
                    if step == 0 {
                        check_gradients(name, &gradients, &golden, &without);
                    }
                }
                let factor = clip_factor(norm, 1.0);
                optimizer.step(trainable.vars(), &gradients, factor, |_| LEARNING_RATE, WEIGHT_DECAY).unwrap();
            }
            if list == "losses" && loss_steps == 10 {
                for (tensor, found) in trainable.to_host().unwrap() {
                    // What isn't trained stays as it is.
                    let trained = golden.get(&format!("final.{tensor}"));
                    assert_eq!(trained.is_some(), trainable.vars().contains_key(&tensor), "{name}: {tensor}");
                    let expected = trained.unwrap_or_else(|| &case.bank.tensors[&tensor]);
                    let gap = distance(&found.values, &expected.values);
                    assert!(gap < 1e-3, "{name}: {tensor} after ten steps: {gap}");
                }
            }
        }
    }
}

/// The relative distance |found - expected| / |expected| of vectors.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let gap = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
    gap / norm(&mut expected.iter().map(|x| f64::from(*x))).max(1e-12)
}

fn check_gradients(
    name: &str,
    gradients: &atombank::train::Gradients,
    golden: &std::collections::BTreeMap<String, atombank::adapter::HostTensor>,
    without: &[&str],
) {
    for (key, expected) in golden {
        let Some(tensor) = key.strip_prefix("grad.") else { continue };
        let found = gradients.by_name.get(tensor).map(|g| g.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        if without.contains(&tensor) {
            let largest = found.iter().flatten().fold(0f32, |m, v| m.max(v.abs()));
            assert!(largest == 0.0, "{name}: {tensor} should have no gradient, has {largest}");
            continue;
        }
        let found = found.unwrap_or_else(|| panic!("{name}: {tensor} has no gradient"));
        assert!(found.iter().any(|v| *v != 0.0), "{name}: {tensor} has a zero gradient");
        let gap = distance(&found, &expected.values);
        assert!(gap < 1e-3, "{name}: gradient of {tensor}: {gap}");
    }
}

#[test]
fn padding_and_micro_batches_change_neither_loss_nor_gradients() {
    for name in ["llama-prompt", "llama-token", "qwen2-prompt"] {
        let case = Case::open(name);
        let text = std::fs::read_to_string(case.folder.join("training.json")).unwrap();
        let sequences = rows(&serde_json::from_str(&text).unwrap());
        let decoder = case.decoder(Residence::Memory);
        let trainable = Trainable::bank(&case.bank, &Device::Cpu).unwrap();
        let regularizer = Regularizer { prior: 0.0, balance: 0.0 };
        let objective =
            Objective { decoder: &decoder, trainable: &trainable, regularizer, checkpoint_activations: false };
        let together = objective.gradients(&sequences, 3).unwrap();
        let alone = objective.gradients(&sequences, 1).unwrap();
        assert!(relative(together.loss, alone.loss) < 1e-5, "{name}");
        for (tensor, gradient) in &together.by_name {
            let values = |g: &candle_core::Tensor| g.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let (a, b) = (values(gradient), values(&alone.by_name[tensor]));
            let scale = a.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
            let gap = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(gap < 1e-4 * scale.max(1e-2), "{name}: {tensor}: {gap} of {scale}");
        }
    }
}

#[test]
fn activations_that_are_computed_again_give_the_same_gradients() {
    for name in CASES {
        let case = Case::open(name);
        let text = std::fs::read_to_string(case.folder.join("training.json")).unwrap();
        let sequences = rows(&serde_json::from_str(&text).unwrap());
        let decoder = case.decoder(Residence::Mapped);
        let trainable = Trainable::bank(&case.bank, &Device::Cpu).unwrap();
        let regularizer = Regularizer { prior: 0.1, balance: 0.01 };
        let gradients = |checkpoint_activations| {
            let objective = Objective { decoder: &decoder, trainable: &trainable, regularizer, checkpoint_activations };
            objective.gradients(&sequences, 2).unwrap()
        };
        let (kept, again) = (gradients(false), gradients(true));
        assert!(relative(kept.loss, again.loss) < 1e-6, "{name}: {} {}", kept.loss, again.loss);
        assert_eq!(kept.by_name.keys().collect::<Vec<_>>(), again.by_name.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, gradient) in &kept.by_name {
            let values = |g: &candle_core::Tensor| g.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let gap = distance(&values(&again.by_name[tensor]), &values(gradient));
            assert!(gap < 1e-5, "{name}: gradient of {tensor}: {gap}");
        }
    }
}

/// A short run on the demo's base, with settings changed by `overrides`.
fn short_run(output: &std::path::Path, overrides: &[&str]) -> TrainConfig {
    let demo = fixtures().join("demo");
    let mut all: Vec<String> = ["training.steps=6", "training.batch_size=3", "training.checkpoint_every=2"]
        .into_iter()
        .chain(["training.gradient_accumulation=2", "training.warmup_steps=2", "training.eval_every=0"])
        .chain(overrides.iter().copied())
        .map(str::to_owned)
        .collect();
    for (key, path) in [("base", demo.join("base")), ("output", output.to_owned())] {
        all.push(format!("{key}='{}'", path.display()));
    }
    all.push(format!("data.train='{}'", demo.join("train.jsonl").display()));
    all.push(format!("data.eval='{}'", demo.join("heldout.jsonl").display()));
    TrainConfig::open(&demo.join("bank.toml"), &all).unwrap()
}

fn run(config: &TrainConfig, resume: bool, stop_after: usize) -> Result<Outcome, Error> {
    let stop = AtomicBool::new(false);
    train(config, resume, &Device::Cpu, &stop, &mut |event| {
        if matches!(event, Event::Step { step, .. } if step == stop_after) {
            // The trainer sees this before the next step.
            stop.store(true, Ordering::Relaxed);
        }
    })
}

#[test]
fn memory_that_does_not_suffice_is_refused_before_the_first_step() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let error = run(&short_run(&output, &["training.max_memory='1MiB'"]), false, 9).unwrap_err().to_string();
    assert!(error.contains("training.max_memory: expected at least"), "{error}");
    assert!(error.contains("MiB for batches of") && error.contains("found 1MiB"), "{error}");
    assert!(!output.exists());
    let error = run(&short_run(&output, &["training.max_memory='much'"]), false, 9).unwrap_err().to_string();
    assert!(error.contains("training.max_memory: expected a size like 5GB or 500MiB, found much"), "{error}");
    let config = short_run(&output, &["training.max_memory='4GiB'", "training.steps=1"]);
    assert!(run(&config, false, 9).unwrap().loss.is_some());
}

#[test]
fn an_interrupted_run_leaves_a_usable_bank_and_resumes_to_the_same_bits() {
    for kind in ["bank", "lora"] {
        let dir = tempfile::tempdir().unwrap();
        let (straight, broken) = (dir.path().join("straight"), dir.path().join("broken"));
        let opened = |folder: &std::path::Path| match kind {
            "bank" => AtomBank::open(folder).map(|_| ()),
            _ => Lora::open(folder).map(|_| ()),
        };
        let kind = format!("kind={kind}");
        run(&short_run(&straight, &[&kind]), false, usize::MAX).unwrap();
        let config = short_run(&broken, &[&kind]);
        let stopped = run(&config, false, 3).unwrap_err();
        assert!(matches!(stopped, Error::Interrupted { step: 3, .. }), "{stopped}");
        opened(&broken).unwrap();
        assert!(matches!(run(&config, false, usize::MAX), Err(Error::Exists(_))));
        run(&config, true, usize::MAX).unwrap();
        assert_eq!(run(&config, true, usize::MAX).unwrap().loss, None, "a finished run has no step left");
        for file in ["adapter_model.safetensors", "checkpoint-000006/optimizer.safetensors"] {
            let bytes = |folder: &std::path::Path| std::fs::read(folder.join(file)).unwrap();
            assert!(bytes(&straight) == bytes(&broken), "{kind}: {file} differs");
        }
        let losses = |folder: &std::path::Path| {
            let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
            let line = |l: &str| serde_json::from_str::<serde_json::Value>(l).unwrap();
            text.lines().map(line).map(|v| (v["step"].to_string(), v["loss"].to_string())).collect::<Vec<_>>()
        };
        assert_eq!(losses(&straight), losses(&broken));
        assert!(!broken.join("checkpoint-000002").exists(), "only the last two checkpoints are kept");
    }
}

#[test]
fn a_base_is_the_same_in_memory_in_its_folder_and_in_a_gguf() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = |name: &str, kind: &str| {
        let path = dir.path().join(name);
        let mut settings = ConvertSettings::new(fixtures().join("demo/base"), &path);
        settings.output.r#type = Some(kind.to_owned());
        convert(&settings).unwrap().write(&settings.output.destination, &|_| ()).unwrap();
        path
    };
    let (plain, quantized) = (gguf("f32.gguf", "f32"), gguf("q8.gguf", "q8_0"));
    let loss = |name: &str, settings: &[&str], base: Option<std::path::PathBuf>| {
        let mut config = short_run(&dir.path().join(name), &[&["kind=lora"], settings].concat());
        config.base = base.unwrap_or(config.base);
        run(&config, false, usize::MAX).unwrap().loss.unwrap()
    };
    let expected = loss("folder", &[], None);
    assert!((loss("memory", &["training.resident=true"], None) - expected).abs() < 1e-5 * expected);
    assert!((loss("gguf", &[], Some(plain)) - expected).abs() < 1e-5 * expected);
    // Rounding to 8 bits changes the base, and so the loss, a little.
    let of_q8 = loss("q8", &[], Some(quantized));
    assert!((of_q8 - expected).abs() < 0.02 * expected && of_q8 != expected, "{of_q8} {expected}");
}

#[test]
fn a_bank_can_be_routed_by_a_sentence_encoder() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let encoder = format!("adapter.instruction_encoder='{}'", fixtures().join("sentence/encoder").display());
    let outcome = run(&short_run(&output, &[&encoder, "training.steps=2"]), false, usize::MAX).unwrap();
    assert!(outcome.loss.unwrap().is_finite());
    let bank = AtomBank::open(&output).unwrap();
    assert_eq!(bank.tensors["atom_bank.prior.proj.weight"].shape, [16, 24]);
    let fresh = short_run(&output, &[&encoder]);
    let base = atombank::arch::HfFolder::open(&fresh.base).unwrap();
    let fresh = fresh.bank_config(&base.config, Some(24));
    let fresh = AtomBank::fresh(&output, fresh, &base.config, 0).unwrap();
    assert_ne!(bank.tensors["atom_bank.prior.proj.weight"], fresh.tensors["atom_bank.prior.proj.weight"]);
}

#[test]
fn a_run_does_not_resume_with_other_settings() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let stopped = run(&short_run(&output, &[]), false, 2).unwrap_err();
    assert!(matches!(stopped, Error::Interrupted { .. }));
    let error = run(&short_run(&output, &["training.learning_rate=0.5"]), true, usize::MAX).unwrap_err().to_string();
    assert!(error.contains("training.learning_rate: expected 0.01, as the run began with, found 0.5"), "{error}");
    let error = run(&short_run(&dir.path().join("new"), &[]), true, usize::MAX).unwrap_err().to_string();
    assert!(error.contains("checkpoint: expected one to resume from, found none"), "{error}");
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let config =
        short_run(&output, &["training.learning_rate=1e38", "training.clip_norm=0", "training.warmup_steps=0"]);
    let error = run(&config, false, usize::MAX).unwrap_err();
    assert!(matches!(error, Error::NotFinite(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains("of step 2: expected a finite number, found "), "{text}");
    assert!(text.contains(" in batch 1 of 2, ") && text.contains("train.jsonl: line"), "{text}");
    assert!(text.contains("there is no checkpoint yet"), "{text}");
    assert!(!output.join("adapter_config.json").exists());
}
