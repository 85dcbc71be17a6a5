//! Ends runs with kill -9 at random moments: no checkpoint is lost, and the result is that of a run that never stopped.
//!
//! `tests/kill.sh` does it sixty times; ATOMBANK_KILLS says how often.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::common::fixtures;
use crate::program::text;

/// The complete checkpoints in a run's folder, oldest first, by their names.
fn checkpoints(output: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(output).into_iter().flatten().map(|entry| entry.unwrap().path());
    let is_one = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("checkpoint-");
    let mut found: Vec<PathBuf> = entries.filter(is_one).collect();
    found.sort();
    found
}

/// Checks that every checkpoint is whole, and that the best one is there. Returns the newest one's step.
fn check(output: &Path) -> usize {
    let mut newest = 0;
    for folder in checkpoints(output) {
        atombank::adapter::Lora::open(&folder).unwrap();
        let state: Value = serde_json::from_slice(&fs::read(folder.join("trainer_state.json")).unwrap()).unwrap();
        let moments = atombank::formats::safetensors::SafetensorsFile::open(&folder.join("optimizer.safetensors"));
        moments.unwrap();
        newest = state["step"].as_u64().unwrap() as usize;
        if let Some(best) = state["progress"]["best"]["step"].as_u64().filter(|best| *best as usize != newest) {
            let of_best = output.join(format!("checkpoint-{best:06}"));
            // An older checkpoint's best one may have been followed by a better one.
            let is_newest = checkpoints(output).last() == Some(&folder);
            assert!(of_best.is_dir() || !is_newest, "{} is missing", of_best.display());
        }
    }
    newest
}

fn start(dir: &Path, output: &Path, steps: usize) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atombank"));
    command.args(["train", text(&dir.join("run.toml")), "--quiet"]);
    command.args(["--set", &format!("output='{}'", output.display()), "--set", &format!("training.steps={steps}")]);
    if !checkpoints(output).is_empty() {
        command.arg("--resume");
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish(child: Child) {
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn killed_runs_lose_no_checkpoint() {
    let kills: usize = std::env::var("ATOMBANK_KILLS").map_or(3, |count| count.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let rows = fixtures().join("train/resume.jsonl");
    let settings = format!(
        "kind = 'lora'\nbase = '{}'\noutput = ''\n[data]\ntrain = '{rows}'\neval = '{rows}'\n[adapter]\nr = 2\n\
         [training]\nbatch_size = 2\ncheckpoint_every = 2\neval_every = 3\nload_best_at_end = true\n\
         schedule = 'constant'\nlearning_rate = 0.01\n",
        fixtures().join("convert/llama/model").display(),
        rows = rows.display(),
    );
    fs::write(dir.path().join("run.toml"), settings).unwrap();
    let steps = 12 + 4 * kills;
    let (straight, killed) = (dir.path().join("straight"), dir.path().join("killed"));
    let started = std::time::Instant::now();
    finish(start(dir.path(), &straight, steps));
    let whole = started.elapsed();

    // A fixed sequence of moments: the start of a run is included, and its middle.
    let mut state = 12_345_u64;
    let mut newest = 0;
    for kill in 0..kills {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = (state >> 40) as f64 / (1u64 << 24) as f64;
        let mut child = start(dir.path(), &killed, steps);
        std::thread::sleep(Duration::from_secs_f64(share * (0.1 + 2.0 * whole.as_secs_f64() / (kills + 1) as f64)));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = check(&killed);
        assert!(now >= newest, "kill {kill}: the checkpoint of step {newest} is gone, {now} is left");
        newest = now;
    }
    finish(start(dir.path(), &killed, steps));
    assert_eq!(check(&killed), steps);
    let read = |folder: &Path, name: &str| fs::read(folder.join(name)).unwrap();
    for file in ["adapter_model.safetensors", &format!("checkpoint-{steps:06}/optimizer.safetensors")] {
        assert!(read(&straight, file) == read(&killed, file), "{file} differs");
    }
    let losses = |folder: &Path| {
        let text = String::from_utf8(read(folder, "metrics.jsonl")).unwrap();
        let line = |line: &str| serde_json::from_str::<Value>(line).unwrap();
        text.lines().map(line).map(|line| (line["step"].clone(), line["loss"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(losses(&straight), losses(&killed));
    let left: Vec<String> =
        fs::read_dir(&killed).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| !name.starts_with(".deleted-")), "{left:?}");
    println!("{kills} kills, the last at step {newest} of {steps}");
}
