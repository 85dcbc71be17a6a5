//! Trains an atom bank, or a plain LoRA, as a training file says (docs/training.md):
//! `cargo run --release --example train -- FILE.toml [KEY=VALUE]..`.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use atombank::jobs::{TrainSettings, train};
use atombank::train::{Event, TrainConfig};
use candle_core::Device;

fn main() -> atombank::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((file, overrides)) = arguments.split_first() else {
        eprintln!("usage: train FILE.toml [KEY=VALUE]..");
        std::process::exit(2);
    };
    let config = TrainConfig::open(Path::new(file), overrides)?;
    let output = config.output.clone();
    let mut events = |event: Event| {
        if let Event::Evaluated { step, loss, .. } = event {
            println!("step {step}: evaluation loss {loss:.4}");
        }
    };
    let stop = AtomicBool::new(false);
    let outcome = train(&TrainSettings { config, resume: false }, &Device::Cpu, &stop, &mut events)?;
    println!("{}: loss {:?}", output.display(), outcome.loss);
    Ok(())
}
