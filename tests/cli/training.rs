//! What `train` does besides training: a commented file, settings of axolotl, a measured step; errors about settings.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::fixtures;
use crate::program::{INPUT, USAGE, atombank, done, refused, text};

/// Settings of a short run on a tiny base, in a file in `dir`.
fn file(dir: &Path, name: &str, training: &str) -> std::path::PathBuf {
    let rows = fixtures().join("train/resume.jsonl");
    let settings = format!(
        "kind = 'lora'\nbase = '{}'\noutput = '{}'\n[data]\ntrain = '{rows}'\neval = '{rows}'\n[training]\n{training}",
        fixtures().join("convert/llama/model").display(),
        dir.join("run").display(),
        rows = rows.display(),
    );
    let path = dir.join(name);
    fs::write(&path, settings).unwrap();
    path
}

#[test]
fn a_commented_file_is_printed_or_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    let printed = done(&["train", "--init"]);
    assert!(printed.contains("# learning_rate = 1e-3\n"), "{printed}");
    assert_eq!(done(&["train", "--init", text(&path)]), "");
    assert_eq!(fs::read_to_string(&path).unwrap().trim_end(), printed.trim_end());
    assert!(refused(INPUT, &["train", "--init", text(&path)]).contains("run.toml: already exists"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let out = atombank(&["train"]);
    assert_eq!(out.status.code(), Some(USAGE), "a file of settings is needed");
}

#[test]
fn settings_of_axolotl_become_a_training_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yml");
    let yaml = "base_model: org/model\noutput_dir: out\nadapter: lora\nlora_r: 4\ndatasets:\n  - path: t.jsonl\n\
                special_tokens:\n  pad_token: x\nmax_steps: 5\nmicro_batch_size: 2\nsequence_len: 64\nwarmup_steps: 1\n";
    fs::write(&path, yaml).unwrap();
    let out = atombank(&["train", "--from-axolotl", text(&path)]);
    let (stdout, stderr) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    assert!(stdout.starts_with("kind = \"lora\"\nbase = \"hf:org/model\"\n"), "{stdout}");
    assert!(
        stdout.contains("[training]\nsteps = 5\nbatch_size = 2\n") && stdout.contains("#   special_tokens: "),
        "{stdout}"
    );
    let expected = "note: without a counterpart: special_tokens: {\"pad_token\":\"x\"}\n\
                    note: not given: excess_length_strategy: axolotl drops rows that are too long, here they are an error\n";
    assert_eq!(stderr, expected);
}

#[test]
fn a_dry_run_measures_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "run.toml", "epochs = 2\nbatch_size = 4\n");
    let json: Value = serde_json::from_str(&done(&["train", text(&path), "--dry-run", "--json"])).unwrap();
    assert_eq!((json["rows"].as_u64(), json["steps"].as_u64()), (Some(10), Some(5)), "{json}");
    assert!(json["seconds_per_step"].as_f64().unwrap() > 0.0 && json["memory_bytes"].is_u64(), "{json}");
    let table = done(&["train", text(&path), "--dry-run"]);
    assert!(table.contains("\nsteps                5, of ") && table.contains("\nmemory "), "{table}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn settings_that_contradict_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    for (training, more, expected) in [
        ("steps = 3\nepochs = 2\n", &[][..], "training.steps, training.epochs: expected one of the two, found both"),
        ("stepz = 3\n", &[], "training: unknown field `stepz`; did you mean training.steps?"),
        ("steps = 3\n", &["--set", "training.metrics=['csv']"], "unknown variant `csv`"),
        ("steps = 3\nmetrics = []\n", &[], "training.metrics: expected \"jsonl\", \"tensorboard\" or both, found none"),
    ] {
        let path = file(dir.path(), "run.toml", training);
        let line = refused(INPUT, &[&["train", text(&path)], more].concat());
        assert!(line.contains(expected), "{line}");
    }
    assert!(!dir.path().join("run").exists());
}

#[test]
fn a_run_that_stops_early_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let training = "steps = 20\neval_every = 1\npatience = 2\nlearning_rate = 0.0\nload_best_at_end = true\n";
    let path = file(dir.path(), "run.toml", training);
    let printed = done(&["train", text(&path), "--quiet"]);
    assert!(printed.starts_with("stopped after step 3: no progress in 2 evaluations\n"), "{printed}");
    assert!(printed.contains("\nthe adapter is the best one, of step 1: evaluation loss "), "{printed}");
    let json: Value = serde_json::from_str(&done(&["train", text(&path), "--resume", "--quiet", "--json"])).unwrap();
    let found = [&json["end"], &json["steps"], &json["best_step"], &json["adapter_step"]];
    assert_eq!(found, [&Value::from("patience"), &3.into(), &1.into(), &1.into()], "{json}");
}

#[test]
fn a_bank_of_chats_is_used_on_texts_of_their_form() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixtures().join("convert/llama/model");
    let at = |name: &str| dir.path().join(name);
    let chat = |system: &str, user: &str| {
        let turn = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
        let turns = [turn("system", system), turn("user", user), turn("assistant", "ok")];
        format!("{}\n", serde_json::json!({ "messages": turns }))
    };
    fs::write(at("chats.jsonl"), chat("Reverse.", "the end") + &chat("Shout.", "one two")).unwrap();
    let alpaca = "{\"instruction\": \"Reverse.\", \"input\": \"the end\", \"output\": \"ok\"}\n";
    fs::write(at("alpaca.jsonl"), alpaca).unwrap();
    for (data, system, user) in [
        ("chats.jsonl", "<|im_start|>system\n{instruction}<|im_end|>\n", "{prompt}"),
        ("alpaca.jsonl", "", "{instruction}\n{prompt}"),
    ] {
        let (config, output) = (at("run.toml"), at(&data.replace(".jsonl", "")));
        let settings = format!(
            "base = {base:?}\noutput = {output:?}\n[data]\ntrain = {:?}\n[adapter]\nr = 2\n[training]\nsteps = 1\n",
            at(data)
        );
        fs::write(&config, settings).unwrap();
        let out = atombank(&["train", text(&config)]);
        let said = String::from_utf8(out.stderr).unwrap();
        assert!(
            said.contains("note: the bank keeps the chats' text before an answer as its prompt_template: "),
            "{said}"
        );
        let bank = atombank::bank::AtomBank::open(&output).unwrap();
        let expected = format!("{system}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n");
        assert_eq!(bank.config.prompt_template, expected);
        // What is generated from and routed is what was trained on.
        let json = |args: &[&str]| serde_json::from_str::<Value>(&done(&[args, &["--json"]].concat())).unwrap();
        let row = json(&["train", text(&config), "--preview", "1"])["rows"][0].clone();
        let routed = row["routed"].as_u64().unwrap() as usize;
        let ask = ["--instruction", "Reverse.", "--prompt", "the end"];
        let generated =
            json(&[&["generate", text(&base), "--adapter", text(&output), "--max-tokens", "1"], &ask[..]].concat());
        assert_eq!(generated["prompt_ids"].as_array().unwrap()[..], row["ids"].as_array().unwrap()[..routed], "{row}");
        let one = json(&[&["route", text(&base), text(&output)], &ask[..]].concat());
        let all = json(&["route", text(&base), text(&output), "--data", text(&at(data))]);
        let first = |alphas: &Value| alphas[0][0].as_f64().unwrap();
        assert!((first(&all["rows"][0]["alphas"]) - first(&one["alphas"])).abs() < 1e-5, "{all} {one}");
        assert_eq!(all["rows"][0]["instruction"], "Reverse.");
    }
}
