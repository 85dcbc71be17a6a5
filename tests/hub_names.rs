//! Tests names of models on the hub in every command that takes a model: from a cache on the disk,
//! without a network.

#[path = "common/program.rs"]
mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use program::{copy, fixture, text};
use serde_json::Value;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A cache in huggingface_hub's layout, with the demo's base as `org/base` on its branch `main`.
struct Cache {
    dir: tempfile::TempDir,
}

impl Cache {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("home/hub/models--org--base");
        fs::create_dir_all(model.join("refs")).unwrap();
        fs::write(model.join("refs/main"), COMMIT).unwrap();
        copy(&fixture("demo/base"), &model.join("snapshots").join(COMMIT));
        Self { dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the program with only this cache.
    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_atombank"));
        command.args(args).current_dir(self.dir.path()).env("HF_HOME", self.at("home")).env("HF_HUB_OFFLINE", "1");
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN"] {
            command.env_remove(name);
        }
        command.output().unwrap()
    }

    fn done(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Trains one step into `output`. Also returns the arguments.
    fn train(&self, base: &str, output: &str, more: &[&str]) -> (Vec<String>, Output) {
        let demo = fixture("demo");
        let mut args = vec!["train".to_owned(), text(&demo.join("bank.toml")).to_owned(), "--quiet".to_owned()];
        let set = [
            format!("base='{base}'"),
            format!("output='{}'", self.at(output).display()),
            format!("data.train='{}'", demo.join("heldout.jsonl").display()),
            format!("data.eval='{}'", demo.join("heldout.jsonl").display()),
            "training.steps=1".to_owned(),
            "training.warmup_steps=0".to_owned(),
        ];
        args.extend(set.into_iter().flat_map(|set| ["--set".to_owned(), set]));
        args.extend(more.iter().map(|more| (*more).to_owned()));
        let out = self.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        (args, out)
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn training_records_the_name_and_not_the_place_in_the_cache() {
    let cache = Cache::new();
    for (kind, output) in [("bank", "bank"), ("lora", "lora")] {
        let kind = format!("kind={kind}");
        let (_, out) = cache.train("hf:org/base", output, &["--set", &kind, "--json"]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let printed: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(printed["base"], "hf:org/base");
        assert!(printed["loss"].as_f64().unwrap() > 0.0 && printed["parameters"].as_u64().unwrap() > 0, "{printed}");
        let folder = cache.at(output);
        assert_eq!(json(&folder.join("adapter_config.json"))["base_model_name_or_path"], "org/base");
        let state = json(&folder.join("checkpoint-000001/trainer_state.json"));
        assert_eq!((&state["config"]["base"], &state["base_commit"]), (&"hf:org/base".into(), &COMMIT.into()));
    }
    // Names without hf: work, too; a run only resumes with the same weights.
    let (_, out) = cache.train("org/base", "bank", &["--resume"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let other = COMMIT.replace('0', "f");
    let model = cache.at("home/hub/models--org--base");
    copy(&model.join("snapshots").join(COMMIT), &model.join("snapshots").join(&other));
    fs::write(model.join("refs/main"), &other).unwrap();
    let (_, out) = cache.train("hf:org/base", "bank", &["--resume"]);
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!((out.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.contains("the commit of the base: expected 0123456789abcdef"), "{stderr}");
    let (_, out) = cache.train(&format!("hf:org/base@{COMMIT}"), "bank", &["--resume"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn every_command_that_takes_a_model_takes_its_name() {
    let cache = Cache::new();
    for (output, more) in
        [("bank", &[][..]), ("one", &["--set", "kind=lora"]), ("two", &["--set", "kind=lora", "--set", "seed=5"])]
    {
        let (_, out) = cache.train("hf:org/base", output, more);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let name = "hf:org/base";
    let words = text(&fixture("quant/imatrix/text.txt")).to_owned();
    let commands: [&[&str]; 13] = [
        &["route", name, "bank", "--instruction", "Reverse the letters.", "--json"],
        &["bake", name, "bank", "-o", "baked", "--instruction", "Reverse the letters.", "--no-verify"],
        &["generate", name, "--prompt", "garden", "--adapter", "bank", "--max-tokens", "2"],
        &["generate", name, "--prompt", "garden", "--max-tokens", "2"],
        &["bank", "build", name, "one", "two", "-o", "built"],
        &["convert", "one", "--base", name, "-o", "one.gguf"],
        &["convert", name, "-o", "model.gguf"],
        &["merge", name, "one", "-o", "merged"],
        &["extract", name, "merged", "-o", "extracted"],
        &["imatrix", name, &words, "-o", "imatrix.gguf", "--ctx", "16", "--chunks", "1"],
        &["inspect", name],
        &["compare", name, name],
        &["compare", "org/base", &format!("hf:org/base@{COMMIT}")],
    ];
    for args in commands {
        cache.done(args);
    }
    for folder in ["built", "extracted"] {
        let base = json(&cache.at(folder).join("adapter_config.json"))["base_model_name_or_path"].clone();
        assert_eq!(base, "org/base", "{folder}");
    }
    for args in commands {
        let args: Vec<&str> = args.iter().map(|arg| if *arg == name { "hf:org/other" } else { *arg }).collect();
        if !args.contains(&"hf:org/other") {
            continue;
        }
        let args: Vec<&str> = args.iter().map(|arg| if *arg == "baked" { "baked-again" } else { *arg }).collect();
        let out = cache.run(&[&args[..], &["--quiet"]].concat());
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert_eq!((out.status.code(), stderr.lines().count()), (Some(1), 1), "{args:?}: {stderr}");
        assert!(stderr.contains("hf:org/other") || stderr.contains("already exists"), "{args:?}: {stderr}");
    }
}
