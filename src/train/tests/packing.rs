//! Rows that share a forward pass, or a sequence, have the loss and the gradients of each alone.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::experts::{config, fixture};
use crate::adapter::{HostTensor, Lora, LoraConfig};
use crate::arch::{HfFolder, LinearLayer};
use crate::bank::{AtomBank, BankHook, LoadedBank, Regularizer};
use crate::error::Result;
use crate::model::{Batch, Decoder, Hook, NoAdapter, Residence, Sequence};
use crate::train::{Event, Gradients, Objective, Trainable, global_norm, train};

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(json: &Value) -> Vec<u32> {
    json.as_array().map_or_else(Vec::new, |all| all.iter().map(|v| v.as_u64().unwrap() as u32).collect())
}

/// A model of fixtures/routing, its bank, and rows of several lengths.
fn case(name: &str) -> (Decoder, AtomBank, Vec<Sequence>) {
    let folder = fixture("routing").join(name);
    let model = HfFolder::open(&folder.join("model")).unwrap();
    let decoder = Decoder::open(&model, Residence::Memory, &Device::Cpu).unwrap();
    let row = |row: &Value| {
        let mut all = ids(&row["routed_ids"]);
        let routed = all.len();
        all.extend(ids(&row["completion_ids"]));
        Sequence::completed(all, routed, ids(&row["instruction_ids"]))
    };
    let mut sequences: Vec<Sequence> =
        json(&folder.join("training.json"))["rows"].as_array().unwrap().iter().map(row).collect();
    let mut short = sequences[0].clone();
    short.ids.truncate(4);
    short.targets.truncate(4);
    short.routed = 2;
    sequences.insert(1, Sequence { targets: vec![false, false, true, true], ..short });
    (decoder, AtomBank::open(&folder.join("adapter")).unwrap(), sequences)
}

/// A LoRA of random values on every linear layer.
fn lora(decoder: &Decoder) -> Lora {
    let base = decoder.config();
    let targets = base.linears().iter().map(|linear| linear.site.module.name().to_owned()).collect();
    let config = LoraConfig { r: 3, lora_alpha: 4.0, target_modules: Some(targets), ..LoraConfig::default() };
    let mut lora = Lora::fresh(Path::new("lora"), config, base, 1).unwrap();
    for (number, tensor) in lora.tensors.values_mut().enumerate() {
        let value = |i: usize| ((i * 37 + number * 11) % 19) as f32 / 95.0 - 0.1;
        *tensor = HostTensor { shape: tensor.shape.clone(), values: (0..tensor.values.len()).map(value).collect() };
    }
    lora
}

fn norm(x: &Tensor) -> f64 {
    f64::from(x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt()
}

fn assert_same(what: &str, found: &Gradients, expected: &Gradients, limit: f64) {
    assert!((found.loss - expected.loss).abs() < limit * expected.loss, "{what}: {} {}", found.loss, expected.loss);
    assert_eq!(found.by_name.keys().collect::<Vec<_>>(), expected.by_name.keys().collect::<Vec<_>>(), "{what}");
    let whole = global_norm(expected).unwrap();
    for (name, gradient) in &found.by_name {
        let gap = norm(&(gradient - &expected.by_name[name]).unwrap());
        let size = norm(&expected.by_name[name]).max(1e-2 * whole);
        assert!(gap <= limit * size, "{what}: {name}: {gap} of {size}");
    }
}

#[test]
fn rows_that_share_a_pass_have_the_gradients_of_each_alone() {
    // Prompt and token routing, windows, positions from a table, norms behind blocks, experts.
    for name in ["llama-prompt", "llama-token", "gemma3-prompt", "gpt2-prompt", "phi3-token", "qwen3moe-token"] {
        let (decoder, bank, sequences) = case(name);
        let bank = Trainable::bank(&bank, &Device::Cpu).unwrap();
        let lora = Trainable::lora(&lora(&decoder), &Device::Cpu).unwrap();
        for (kind, trainable) in [("bank", &bank), ("lora", &lora)] {
            let gradients = |at_once: usize, checkpoint_activations: bool| {
                let regularizer = Regularizer { prior: 0.1, balance: 0.0 };
                let regularizer =
                    if name.ends_with("prompt") { regularizer } else { Regularizer { prior: 0.0, balance: 0.0 } };
                let objective = Objective { decoder: &decoder, trainable, regularizer, checkpoint_activations };
                objective.gradients(&sequences, at_once).unwrap()
            };
            let alone = gradients(1, false);
            assert_same(&format!("{name}, {kind}"), &gradients(sequences.len(), false), &alone, 1e-5);
            assert_same(&format!("{name}, {kind}, again"), &gradients(sequences.len(), true), &alone, 1e-5);
        }
    }
}

/// A bank's hook whose linear layers run one by one, as on a GPU.
struct OneByOne<'a>(BankHook<'a>);

impl Hook for OneByOne<'_> {
    fn bottleneck(&mut self, site: LinearLayer, x: &Tensor) -> Result<Option<(Tensor, Tensor, f64)>> {
        self.0.bottleneck(site, x)
    }
}

#[test]
fn where_sequences_lie_in_a_batch_changes_no_result() {
    for name in ["llama-prompt", "llama-token", "gpt2-prompt"] {
        let (decoder, bank, sequences) = case(name);
        let loaded = LoadedBank::frozen(&bank, &Device::Cpu).unwrap();
        let hidden = |batch: &Batch, one_by_one: bool| {
            let mut hook = loaded.hook_on(decoder.weights(), &sequences, batch).unwrap();
            let hidden = match one_by_one {
                true => decoder.hidden(batch, None, &mut OneByOne(hook)).unwrap(),
                false => decoder.hidden(batch, None, &mut hook).unwrap(),
            };
            decoder.logits_at(&hidden, &batch.real_places()).unwrap()
        };
        let padded = Batch::new(&sequences);
        let expected = hidden(&padded, false);
        let packed = Batch::packed(&sequences);
        assert!(packed.rows() > 1 && packed.rows() < sequences.len());
        for (what, batch) in [("padded", &padded), ("joined", &Batch::joined(&sequences)), ("packed", &packed)] {
            for one_by_one in [false, true] {
                let gap = norm(&(hidden(batch, one_by_one) - &expected).unwrap()) / norm(&expected);
                assert!(gap < 1e-5, "{name}, {what}, one by one: {one_by_one}: {gap}");
            }
        }
    }
}

/// What transformers and PEFT compute for three chats apart and packed (fixtures/train/packing).
#[test]
fn packed_chats_have_the_loss_and_the_gradient_norm_of_the_chats_apart() {
    let folder = fixture("train/packing");
    let expected = json(&folder.join("expected.json"));
    let base = HfFolder::open(&fixture("convert/llama/model")).unwrap();
    let decoder = Decoder::open(&base, Residence::Mapped, &Device::Cpu).unwrap();
    let row = |row: &Value| {
        let targets = ids(&row["mask"]).into_iter().map(|is_target| is_target == 1).collect();
        Sequence { ids: ids(&row["input_ids"]), targets, ..Sequence::default() }
    };
    let rows = expected["rows"].as_array().unwrap();
    let sequences: Vec<Sequence> = rows.iter().map(row).collect();
    let batch = Batch::joined(&sequences);
    assert_eq!((batch.rows(), batch.width()), (1, expected["packed"]["input_ids"].as_array().unwrap().len()));
    let trainable = Trainable::lora(&Lora::open(&folder.join("adapter")).unwrap(), &Device::Cpu).unwrap();
    let regularizer = Regularizer { prior: 0.0, balance: 0.0 };
    let objective = Objective { decoder: &decoder, trainable: &trainable, regularizer, checkpoint_activations: false };
    let near = |found: f64, expected: &Value| (found / expected.as_f64().unwrap() - 1.0).abs() < 1e-5;
    for (sequence, row) in sequences.iter().zip(rows) {
        assert_eq!(sequence.target_count() as u64, row["targets"].as_u64().unwrap());
        let (mean, tokens) = objective.evaluate(std::slice::from_ref(sequence), 1).unwrap();
        assert!(near(mean * tokens as f64, &row["nll_sum"]), "{mean} of {tokens}");
    }
    for at_once in [1, 3] {
        let gradients = objective.gradients(&sequences, at_once).unwrap();
        assert!(near(gradients.loss, &expected["llama"]["packed_loss"]), "{}", gradients.loss);
        let norm = global_norm(&gradients).unwrap();
        assert!(near(norm, &expected["llama"]["packed_gradient_norm"]), "{norm}");
    }
    // The packed layout of other devices.
    let hidden = decoder.hidden(&Batch::packed(&sequences), None, &mut NoAdapter).unwrap();
    let alone = decoder.hidden(&batch, None, &mut NoAdapter).unwrap();
    let at = |hidden: &Tensor, batch: &Batch| decoder.logits_at(hidden, &batch.real_places()).unwrap();
    let (found, expected) = (at(&hidden, &Batch::packed(&sequences)), at(&alone, &batch));
    assert!(norm(&(found - &expected).unwrap()) < 1e-5 * norm(&expected));
}

/// Learned positions begin at 0 in each row: what transformers computes for the same chats on GPT-2, apart and packed.
#[test]
fn packed_chats_begin_at_the_first_position_of_a_table() {
    let folder = fixture("train/packing");
    let expected = json(&folder.join("expected.json"))["gpt2"].clone();
    let base = fixture("convert/gpt2/model");
    let dir = tempfile::tempdir().unwrap();
    let data = format!("data.train='{}'", folder.join("rows.jsonl").display());
    let template = format!("data.chat_template='{}'", folder.join("chat_template.jinja").display());
    let losses = [("packed_loss", true, 1), ("loss", false, 3)].map(|(key, packing, rows)| {
        let (output, packing) = (format!("output='{}'", dir.path().join(key).display()), packing);
        let [packing, rows] = [format!("training.packing={packing}"), format!("training.batch_size={rows}")];
        let more =
            [&output, &data, &template, &packing, &rows, "training.steps=1", "adapter.target_modules=['c_attn']"];
        let outcome =
            train(&config(dir.path(), &base, "[]", &more), false, &Device::Cpu, &AtomicBool::new(false), &mut |_| ());
        (key, outcome.unwrap().loss.unwrap())
    });
    for (key, loss) in losses {
        let expected = expected[key].as_f64().unwrap();
        assert!((loss / expected - 1.0).abs() < 1e-5, "{key}: {loss} {expected}");
    }
    // The loss of positions that go on counting is far away.
    let wrong = expected["wrong_positions"].as_f64().unwrap();
    assert!((losses[0].1 / wrong - 1.0).abs() > 1e-3);
}

#[test]
fn a_packed_run_takes_every_row_and_resumes_to_the_same_bits() {
    let base = fixture("demo/base");
    let dir = tempfile::tempdir().unwrap();
    let data = format!("data.train='{}'", fixture("demo/train.jsonl").display());
    let settings = |name: &str, packing: bool| {
        let output = format!("output='{}'", dir.path().join(name).display());
        let packing = format!("training.packing={packing}");
        let more =
            [&output, &data, &packing, "training.steps=4", "training.batch_size=2", "training.checkpoint_every=1"];
        config(dir.path(), &base, "[]", &[&more[..], &["data.max_length=96"]].concat())
    };
    let run = |name: &str, packing: bool, resume: bool, stop_after: usize| {
        let stop = AtomicBool::new(false);
        train(&settings(name, packing), resume, &Device::Cpu, &stop, &mut |event| {
            if matches!(event, Event::Step { step, .. } if step == stop_after) {
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        })
    };
    run("straight", true, false, 9).unwrap();
    run("broken", true, false, 2).unwrap_err();
    run("broken", true, true, 9).unwrap();
    let bytes = |name: &str| std::fs::read(dir.path().join(name).join("adapter_model.safetensors")).unwrap();
    assert!(bytes("straight") == bytes("broken"));
    let tokens = |name: &str| -> Vec<u64> {
        let text = std::fs::read_to_string(dir.path().join(name).join("metrics.jsonl")).unwrap();
        let line = |line: &str| serde_json::from_str::<Value>(line).unwrap()["tokens"].as_u64();
        text.lines().filter_map(line).collect()
    };
    // Two sequences of 96 tokens, nearly full.
    assert!(tokens("straight").iter().all(|tokens| (180..=192).contains(tokens)), "{:?}", tokens("straight"));
    let error = run("broken", false, true, 9).unwrap_err().to_string();
    assert!(error.contains("training.packing: expected true"), "{error}");
}
