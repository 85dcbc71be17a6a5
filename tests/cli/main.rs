//! Tests the program as a user sees it: results on stdout, one clear line for an error, exit codes,
//! and no partial outputs.

mod baking;
#[path = "../common/mod.rs"]
mod common;
mod experiments;
mod growth;
mod killing;
mod mixing;
#[path = "../common/program.rs"]
mod program;
#[path = "../readers/mod.rs"]
mod readers;
mod refusals;
mod running;
mod training;

use std::fs;
use std::path::{Path, PathBuf};

use common::fixtures;
use program::copy;
use serde_json::Value;

fn edit(path: &Path, change: impl Fn(&mut Value)) {
    let mut json = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, serde_json::to_vec(&json).unwrap()).unwrap();
}

/// A base with a tokenizer, and a bank with a random B for it, made from the demo's base.
struct Pair {
    dir: tempfile::TempDir,
    base: PathBuf,
    bank: PathBuf,
}

fn pair() -> Pair {
    use atombank::arch::HfFolder;
    use atombank::bank::AtomBank;
    use atombank::train::TrainConfig;
    let dir = tempfile::tempdir().unwrap();
    let base = copy(&fixtures().join("demo/base"), &dir.path().join("base"));
    let folder = HfFolder::open(&base).unwrap();
    let config = TrainConfig::open(&fixtures().join("demo/bank.toml"), &[]).unwrap();
    let config = config.bank_config(&folder.config, None);
    let bank = dir.path().join("bank");
    let mut adapter = AtomBank::fresh(&bank, config, &folder.config, 7).unwrap();
    for (name, tensor) in &mut adapter.tensors {
        if name.ends_with("lora_B.weight") {
            tensor.values = (0..tensor.values.len()).map(|i| ((i * 7919 % 101) as f32 - 50.0) / 800.0).collect();
        }
    }
    adapter.save(&bank, false).unwrap();
    Pair { dir, base, bank }
}
