//! `merge search` finds weights whose optimum is known, and goes on where it was ended.
#![cfg(feature = "train")]

#[path = "common/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use atombank::adapter::{HostTensor, save_tensors};
use atombank::arch::HfFolder;
use atombank::jobs::{MergeSettings, SearchSettings, Searched, merge, search};
use candle_core::Device;
use program::{USAGE, copy, done, fixture, refused, text};
use serde_json::Value;

/// The demo's base, and a LoRA for it.
struct Inputs {
    dir: tempfile::TempDir,
    base: PathBuf,
    lora: PathBuf,
    text: PathBuf,
}

fn inputs() -> Inputs {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture("demo/base");
    let lora = fixture("demo/lora");
    let text = dir.path().join("text.txt");
    fs::write(&text, "the red fox saw the blue bird. the old man saw the red fox and ran to the house.").unwrap();
    Inputs { dir, base, lora, text }
}

impl Inputs {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the base with the LoRA, times `weight`.
    fn merged(&self, weight: f64, name: &str) -> PathBuf {
        let path = self.path(name);
        let mut settings = MergeSettings::new(&self.base, [&self.lora], &path);
        settings.others[0].weight = weight;
        let output = merge(&settings, &|_| ()).unwrap().output;
        output.write(&settings.output.destination, &|_| ()).unwrap();
        path
    }

    /// A search that is to find `wanted` again.
    fn settings(&self, others: &[&Path], wanted: &Path, folder: &str) -> SearchSettings {
        let merge = MergeSettings::new(&self.base, others.iter().copied(), "");
        let mut settings = SearchSettings::new(merge, &self.text, self.path(folder));
        settings.kl = Some(wanted.to_owned());
        settings.ctx = 32;
        settings
    }
}

fn run(settings: &SearchSettings) -> Searched {
    search(settings, &Device::Cpu, &|_| ()).unwrap()
}

/// What two runs have in common.
fn taken(searched: &Searched) -> Vec<(String, Option<f64>)> {
    searched.trials.iter().map(|trial| (serde_json::to_string(&trial.parameters).unwrap(), trial.loss)).collect()
}

#[test]
fn the_weight_of_an_adapter_is_found_again() {
    let inputs = inputs();
    let wanted = inputs.merged(1.375, "wanted");
    let settings = inputs.settings(&[&inputs.lora], &wanted, "found");
    let found = run(&settings);
    assert!((found.merge.others[0].weight - 1.375).abs() < 0.04, "{:?}", found.merge.others[0]);
    let losses: Vec<f64> = found.trials.iter().map(|trial| trial.loss.unwrap()).collect();
    let best = losses[found.best - 1];
    assert!(losses.iter().all(|loss| *loss >= best) && best < losses[0] / 10.0, "{losses:?}");
    assert!(fs::read_to_string(settings.folder.join("best.json")).unwrap().contains("\"weight\""));
    assert!(!settings.folder.join("best.yml").exists() && !settings.folder.join("merged").exists());
}

#[test]
fn a_text_has_the_tokens_that_an_adapter_adds() {
    let inputs = inputs();
    let count = |lora: &Path, folder: &str| {
        let text = inputs.path(&format!("{folder}.txt"));
        fs::write(&text, "the red fox <|mine|> saw the blue bird <|mine|>").unwrap();
        let merge = MergeSettings::new(&inputs.base, [lora], "");
        let settings = SearchSettings { trials: 2, ..SearchSettings::new(merge, text, inputs.path(folder)) };
        run(&settings).tokens
    };
    let lora = copy(&inputs.lora, &inputs.path("lora"));
    let plain = count(&lora, "plain");
    fs::copy(inputs.base.join("tokenizer_config.json"), lora.join("tokenizer_config.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(inputs.base.join("tokenizer.json")).unwrap()).unwrap();
    let mut token = tokenizer["added_tokens"][0].clone();
    (token["id"], token["content"]) = (384.into(), "<|mine|>".into());
    tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
    fs::write(lora.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let width = HfFolder::open(&inputs.base).unwrap().config_json["hidden_size"].as_u64().unwrap() as usize;
    let row = HostTensor { shape: vec![1, width], values: vec![0.25; width].into() };
    save_tensors(&BTreeMap::from([("input_embeddings".to_owned(), row)]), "new_embeddings", &inputs.path("new"))
        .unwrap();
    fs::copy(inputs.path("new/new_embeddings.safetensors"), lora.join("new_embeddings.safetensors")).unwrap();
    let whole = count(&lora, "whole");
    assert!(whole + 4 < plain, "{whole} tokens, in place of {plain}");
}

#[test]
fn the_middle_of_two_models_is_found_again() {
    let inputs = inputs();
    let (one, wanted) = (inputs.merged(2.0, "one"), inputs.merged(0.5, "wanted"));
    // A quarter of the way from the base to the model is half of the LoRA.
    let mut settings = inputs.settings(&[&one], &wanted, "found");
    settings.merge.combine.method = Some("slerp".to_owned());
    let found = run(&settings);
    let t = found.merge.combine.t.unwrap();
    assert!((t - 0.25).abs() < 0.05, "{t}");
    let yml = fs::read_to_string(settings.folder.join("best.yml")).unwrap();
    assert!(yml.contains("merge_method: slerp\n") && yml.contains(&format!("\n  t: {t}\n")), "{yml}");
    // mergekit's file makes the same model.
    let (by_file, by_settings) = (inputs.path("by-file"), inputs.path("by-settings"));
    done(&["merge", "--config", text(&settings.folder.join("best.yml")), "-o", text(&by_file)]);
    let mut best = found.merge.clone();
    best.output.destination.path.clone_from(&by_settings);
    merge(&best, &|_| ()).unwrap().output.write(&best.output.destination, &|_| ()).unwrap();
    let (by_file, by_settings) = (HfFolder::open(&by_file).unwrap(), HfFolder::open(&by_settings).unwrap());
    for tensor in &by_settings.weights().tensors {
        let other = by_file.weights().get(&tensor.name).unwrap();
        assert_eq!((tensor.dtype, tensor.read().unwrap()), (other.dtype, other.read().unwrap()), "{}", tensor.name);
    }
    settings.merge.combine.method = Some("linear".to_owned());
    let base = inputs.base.clone();
    settings.merge.others.push(atombank::jobs::MergeInput { path: base, id: None, weight: 1.0 });
    settings.folder = inputs.path("linear");
    let found = run(&settings);
    let weights: Vec<f64> = found.merge.others.iter().map(|other| other.weight).collect();
    let share = weights[0] / (weights[0] + weights[1]);
    assert!((share - 0.25).abs() < 0.05, "{weights:?}");
}

#[test]
fn the_loss_on_a_text_is_as_small_as_on_a_fine_grid() {
    let inputs = inputs();
    let mut settings = inputs.settings(&[&inputs.lora], &inputs.base, "found");
    settings.kl = None;
    let found = run(&settings);
    let best = found.trials[found.best - 1].loss.unwrap();
    for step in 0..=8 {
        let mut one = settings.clone();
        one.trials = 1;
        one.folder = inputs.path(&format!("grid-{step}"));
        one.merge.others[0].weight = f64::from(step) / 4.0;
        let loss = run(&one).trials[0].loss.unwrap();
        assert!(best <= loss + 1e-3, "{best} against {loss} at {step}");
    }
}

#[test]
fn a_search_that_was_ended_goes_on() {
    let inputs = inputs();
    let wanted = inputs.merged(0.6, "wanted");
    let mut settings = inputs.settings(&[&inputs.lora], &wanted, "whole");
    settings.trials = 12;
    let whole = run(&settings);
    assert_eq!((whole.trials.len(), whole.recorded), (12, 0));
    settings.folder = inputs.path("parts");
    settings.trials = 4;
    run(&settings);
    // As after a kill: a line that isn't whole.
    let path = settings.folder.join("trials.jsonl");
    let mut lines = fs::read_to_string(&path).unwrap();
    lines.push_str("{\"trial\": 5, \"par");
    fs::write(&path, lines).unwrap();
    settings.trials = 12;
    let parts = run(&settings);
    assert_eq!(parts.recorded, 4);
    assert_eq!(taken(&parts), taken(&whole));
    let again = run(&settings);
    assert_eq!((again.recorded, taken(&again)), (12, taken(&whole)));
    settings.seed = 1;
    let error = search(&settings, &Device::Cpu, &|_| ()).unwrap_err().to_string();
    assert!(error.contains("line 1: expected the settings of this search, found another seed"), "{error}");
}

#[test]
fn the_program_prints_a_table_and_writes_the_best() {
    let inputs = inputs();
    let wanted = inputs.merged(0.5, "wanted");
    let (folder, out) = (inputs.path("found"), inputs.path("best"));
    let (base, lora, words) = (text(&inputs.base), text(&inputs.lora), text(&inputs.text));
    let start = format!("{lora}=0.75");
    let args = ["merge", "search", base, &start, "--text", words, "--kl", text(&wanted), "--trials", "6", "-o"];
    let args: Vec<&str> = args.into_iter().chain([text(&folder), "--write", text(&out)]).collect();
    let printed = done(&args);
    assert!(printed.starts_with("trial    weight_1        loss\n    1        0.75    0."), "{printed}");
    assert!(printed.contains(&format!("atombank merge {base} {lora}=")) && printed.contains("6 trials"), "{printed}");
    assert!(out.join("config.json").is_file());
    let refused = |more: &[&str]| {
        let args: Vec<&str> = ["merge", "search", base, lora].iter().chain(more).copied().collect();
        refused(USAGE, &[&args[..], &["-o", text(&inputs.path("other"))]].concat())
    };
    assert!(refused(&[]).contains("--text: expected a text or rows (--data) to measure on"), "{}", refused(&[]));
    assert!(refused(&["--text", words, "--search", "densiti"]).contains("did you mean density?"));
    assert!(refused(&["--text", words, "--search", "density"]).contains("expected what the method uses"));
    assert!(refused(&["--text", words, "--range", "weight=1..0"]).contains("larger second number"));
    assert!(!inputs.path("other").exists());
}
