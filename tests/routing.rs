//! Compares routed forward passes with the PyTorch reference (fixtures/routing).

mod common;

use atombank::bank::{BankConfig, BankHook, InstructionEncoder, LoadedBank, Routing};
use atombank::model::{Batch, NoAdapter, Residence, Sequence, TextEncoder, greedy, prompt_logits};
use candle_core::{Device, Tensor};
use common::{CASES, Case};

/// Combines one tensor per block into `[N_b, ..]`.
fn by_block(tensors: &[atombank::adapter::HostTensor]) -> Vec<f32> {
    tensors.iter().flat_map(|t| t.values.iter().copied()).collect()
}

fn all_logits(decoder: &atombank::model::Decoder, hidden: &Tensor) -> Vec<f32> {
    let places: Vec<u32> = (0..hidden.dim(0).unwrap() * hidden.dim(1).unwrap()).map(|i| i as u32).collect();
    decoder.logits_at(hidden, &places).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn states_alphas_prior_and_logits_are_the_references() {
    for name in CASES {
        for residence in [Residence::Memory, Residence::Streamed] {
            let case = Case::open(name);
            let decoder = case.decoder(residence);
            let sequences = [case.sequence()];
            let batch = Batch::new(&sequences);
            let loaded = LoadedBank::frozen(&case.bank, &Device::Cpu).unwrap();
            let e = loaded.embed(decoder.weights(), &sequences).unwrap();
            if let Some(expected) = case.expected.get("instruction_embedding") {
                let found: Vec<f32> = e.flatten_all().unwrap().to_vec1().unwrap();
                case.assert_close("instruction embedding", &found, expected, 1e-6);
            }
            let base = decoder.hidden(&batch, None, &mut NoAdapter).unwrap();
            let tolerance = case.tolerance("logits");
            case.assert_close("base logits", &all_logits(&decoder, &base), &case.expected["logits_base"], tolerance);

            let mut hook = BankHook::new(&loaded, &batch, e).unwrap();
            let hidden = decoder.hidden(&batch, None, &mut hook).unwrap();
            let trace = hook.trace().unwrap();
            let prior: Vec<f32> = hook.log_prior().unwrap().exp().unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let alphas = case.tolerance("alphas");
            case.assert_close("prior", &prior, &case.expected["prior"], alphas);
            case.assert_close("states", &by_block(&trace.states), &case.expected["states"], alphas);
            case.assert_close("alphas", &by_block(&trace.alphas), &case.expected["alphas"], alphas);
            let routed = all_logits(&decoder, &hidden);
            case.assert_close("routed logits", &routed, &case.expected["logits_routed"], tolerance);
        }
    }
}

#[test]
fn a_padded_batch_gives_each_sequence_what_it_gets_alone() {
    for name in ["llama-prompt", "llama-token", "qwen3-prompt"] {
        let case = Case::open(name);
        let config = &case.bank.config;
        let decoder = case.decoder(Residence::Memory);
        let loaded = LoadedBank::frozen(&case.bank, &Device::Cpu).unwrap();
        let long = case.sequence();
        let mut short = long.clone();
        short.ids.truncate(15);
        short.routed = 12;
        short.instruction.truncate(3);
        let run = |sequences: &[atombank::model::Sequence]| {
            let batch = Batch::new(sequences);
            let e = InstructionEncoder::BaseEmbeddings.embed(decoder.weights(), sequences).unwrap();
            let mut hook = BankHook::new(&loaded, &batch, e).unwrap();
            let hidden = decoder.hidden(&batch, None, &mut hook).unwrap();
            (hidden, hook.trace().unwrap())
        };
        let (together, trace) = run(&[short.clone(), long.clone()]);
        for (row, sequence) in [short, long].into_iter().enumerate() {
            let n = sequence.ids.len();
            let (alone, alone_trace) = run(&[sequence]);
            let padded = together.narrow(0, row, 1).unwrap().narrow(1, 0, n).unwrap();
            let gap: f32 = (padded - alone).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap();
            assert!(gap < 1e-4, "{name}: row {row}: {gap}");
            if config.routing == Routing::Prompt {
                let k = config.num_atoms;
                for (a, b) in trace.alphas.iter().zip(&alone_trace.alphas) {
                    let gap = (0..k).map(|i| (a.values[row * k + i] - b.values[i]).abs()).fold(0.0, f32::max);
                    assert!(gap < 1e-5, "{name}: alphas of row {row}: {gap}");
                }
            }
        }
    }
}

#[test]
fn a_sentence_encoder_gives_what_transformers_gives() {
    let folder = common::fixtures().join("sentence");
    let texts: Vec<String> =
        serde_json::from_str(&std::fs::read_to_string(folder.join("texts.json")).unwrap()).unwrap();
    let expected = common::read_tensors(&folder.join("expected.safetensors"));
    let case = Case::open("llama-prompt");
    let decoder = case.decoder(Residence::Streamed);
    let base = TextEncoder::open(&common::fixtures().join("demo/base")).unwrap();
    // The encoder is found in the bank's folder, for a bank that contains its encoder.
    let encoder = InstructionEncoder::open("encoder", &folder, &Device::Cpu).unwrap();
    assert_eq!(encoder.dim(), Some(24));
    let sequences: Vec<Sequence> = texts
        .iter()
        .map(|t| Sequence { instruction: encoder.tokens(&base, t).unwrap(), ..Sequence::default() })
        .collect();
    let found: Vec<Vec<f32>> = encoder.embed(decoder.weights(), &sequences).unwrap().to_vec2().unwrap();
    for (i, found) in found.iter().enumerate() {
        case.assert_close(&texts[i], found, &expected[&i.to_string()], 1e-5);
    }
}

#[test]
fn encoders_that_are_missing_or_too_narrow_are_named() {
    let case = Case::open("llama-prompt");
    let mut bank = case.bank.clone();
    for (name, expected) in [
        (
            "all-MiniLM-L6-v2",
            "instruction_encoder: expected base-embeddings or the folder of a sentence encoder, found all-MiniLM",
        ),
        ("encoder", "instruction_dim: expected 24, the width of encoder, found 64"),
    ] {
        bank.path = common::fixtures().join("sentence");
        bank.config = BankConfig { instruction_encoder: name.into(), ..case.bank.config.clone() };
        let error = LoadedBank::frozen(&bank, &Device::Cpu).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn generation_with_a_cache_and_in_batches_gives_what_recomputing_gives() {
    for name in ["llama-prompt", "llama-token", "qwen3-prompt"] {
        let case = Case::open(name);
        let decoder = case.decoder(Residence::Memory);
        let loaded = LoadedBank::frozen(&case.bank, &Device::Cpu).unwrap();
        let hook = |sequences: &[Sequence]| loaded.hook(decoder.weights(), sequences).unwrap();
        let long = case.sequence();
        let short = Sequence::completed(long.ids[..9].to_vec(), 9, long.instruction[..2].to_vec());
        let both = [short.clone(), long.clone()];
        let together = greedy(&decoder, &mut hook(&both), &both, 12, true).unwrap();
        for (sequence, cached) in [short, long].into_iter().zip(together) {
            let mut grown = sequence.clone();
            for (step, token) in cached.ids.iter().enumerate() {
                let logits = prompt_logits(&decoder, &mut hook(std::slice::from_ref(&grown)), &grown).unwrap();
                let last = &logits.values[logits.values.len() - logits.shape[1]..];
                let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
                assert_eq!(*token as usize, best, "{name}: step {step}");
                grown.ids.push(*token);
            }
        }
    }
}
