//! Several ranks take the steps of one process, whichever of them has how many rows.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::train::ranks::threads;
use crate::train::{Event, Outcome, Ranks, TrainConfig, train_on};

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

/// Losses, numbers of targets and evaluation losses, by line; adapter and optimizer.
fn results(config: &TrainConfig, last: usize) -> (Vec<Vec<Value>>, Vec<Vec<u8>>) {
    let text = std::fs::read_to_string(config.output.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        ["step", "loss", "completion_tokens", "gradient_norm", "eval_loss"].map(|key| line[key].clone()).to_vec()
    };
    let files = ["adapter_model.safetensors".to_owned(), format!("checkpoint-{last:06}/optimizer.safetensors")];
    let bytes = files.map(|file| std::fs::read(config.output.join(file)).unwrap());
    (text.lines().map(line).collect(), bytes.to_vec())
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
    ] {
        let accumulated = format!("training.gradient_accumulation={ranks}");
        let name = |kind: &str| format!("{kind}-{ranks}-{rows}-{}", more.join("").len());
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
