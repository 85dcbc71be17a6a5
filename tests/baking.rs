//! Tests fixed routings: baked weights and logits compared with the reference, and properties of
//! any bank.

mod common;

use std::path::Path;

use atombank::adapter;
use atombank::adapter::peft::Base;
use atombank::adapter::{HostTensor, Lora};
use atombank::arch::HfFolder;
use atombank::bank::{AtomBank, BankConfig, LoadedBank, Routing, compare};
use atombank::merge::{combine, with_adapters};
use atombank::model::{Batch, Decoder, LoadedAdapter, LoraHook, ModelWeights, NoAdapter, Residence, Sequence};
use candle_core::Device;
use common::{CASES, Case};
use proptest::prelude::*;

fn with_plan(model: &HfFolder, plan: &atombank::plan::Plan) -> Decoder {
    Decoder::new(ModelWeights::open(model.path(), &model.config, plan, Residence::Streamed, &Device::Cpu).unwrap())
}

/// The base with the bank's update for fixed alphas.
fn baked(model: &HfFolder, bank: &AtomBank, alphas: &[Vec<f32>]) -> atombank::plan::Plan {
    let one = combine::Weights::new([1.0]);
    let base = Base::of(model);
    with_adapters(&base, model.weights(), &[bank.changes(alphas, &base, &model.config)], &one).unwrap().plan
}

/// The alphas of one sequence, by block; with token routing, the mean over the routed tokens.
fn alphas(case: &Case, bank: &AtomBank, sequence: &Sequence) -> Vec<Vec<f32>> {
    let decoder = case.decoder(Residence::Streamed);
    let routed = Sequence { ids: sequence.ids[..sequence.routed].to_vec(), ..sequence.clone() };
    let batch = Batch::new(std::slice::from_ref(&routed));
    let loaded = LoadedBank::frozen(bank, &Device::Cpu).unwrap();
    let mut hook = loaded.hook(decoder.weights(), &[routed]).unwrap();
    decoder.hidden(&batch, None, &mut hook).unwrap();
    let k = bank.config.num_atoms;
    let mean = |t: &HostTensor| {
        let rows = t.values.len() / k;
        (0..k).map(|i| t.values.iter().skip(i).step_by(k).sum::<f32>() / rows as f32).collect()
    };
    hook.trace().unwrap().alphas.iter().map(mean).collect()
}

#[test]
fn baked_weights_and_logits_are_the_references() {
    for name in CASES {
        let case = Case::open(name);
        let sequence = case.sequence();
        let alphas = alphas(&case, &case.bank, &sequence);
        case.assert_close("baked alphas", &alphas.concat(), &case.expected["baked_alphas"], case.tolerance("alphas"));
        let plan = baked(&case.model, &case.bank, &alphas);
        for (key, expected) in &case.expected {
            let Some(tensor) = key.strip_prefix("merged.") else { continue };
            let planned = plan.get(tensor).unwrap();
            let found = planned.read().unwrap();
            case.assert_close(tensor, &found, expected, case.tolerance("weights"));
        }
        let decoder = with_plan(&case.model, &plan);
        let batch = Batch::new(&[sequence]);
        let hidden = decoder.hidden(&batch, None, &mut NoAdapter).unwrap();
        let logits = decoder.logits_at(&hidden, &batch.real_places()).unwrap().flatten_all().unwrap();
        let expected = &case.expected["logits_baked"];
        case.assert_close("baked logits", &logits.to_vec1().unwrap(), expected, case.tolerance("logits"));
    }
}

#[test]
fn a_static_lora_is_the_same_update() {
    let case = Case::open("llama-all-linear-rslora");
    let alphas = alphas(&case, &case.bank, &case.sequence());
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("lora");
    case.bank.static_lora(&alphas).save(&folder, false).unwrap();
    let lora = Lora::open(&folder).unwrap();
    lora.check_base(&case.model.config).unwrap();
    let weights = case.model.weights();
    let base = Base::of(&case.model);
    let merged =
        with_adapters(&base, weights, &[adapter::open(&folder, &base).unwrap()], &combine::Weights::new([1.0]))
            .unwrap()
            .plan;
    let baked = baked(&case.model, &case.bank, &alphas);
    for (merged, baked) in merged.tensors.iter().zip(&baked.tensors) {
        assert_eq!(merged.read().unwrap(), baked.read().unwrap(), "{}", merged.name);
    }
}

/// A bank of any shape with random B for the case's base.
fn random_bank(case: &Case, config: BankConfig, seed: u64) -> AtomBank {
    let mut bank = AtomBank::fresh(Path::new("bank"), config, &case.model.config, seed).unwrap();
    let mut state = seed | 1;
    for (name, tensor) in &mut bank.tensors {
        if name.ends_with("lora_B.weight") {
            let mut random = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.3
            };
            tensor.values = tensor.values.iter().map(|_| random()).collect();
        }
    }
    bank
}

fn any_bank() -> impl Strategy<Value = (BankConfig, u64, bool)> {
    let shape = (1usize..9, 1usize..7, 1usize..6, any::<bool>(), 0.2f64..3.0, 0.0f64..4.0);
    let modules = prop::sample::subsequence(
        vec!["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        1..=7,
    );
    (shape, modules, any::<u64>(), any::<bool>()).prop_flat_map(|(shape, modules, seed, instruction)| {
        let (r, num_atoms, block_size, use_rslora, temperature, prior_strength) = shape;
        (1..=num_atoms).prop_map(move |top_k| {
            let config = BankConfig {
                r,
                lora_alpha: 4.0,
                use_rslora,
                target_modules: modules.iter().map(|m| (*m).to_owned()).collect(),
                num_atoms,
                top_k,
                block_size,
                key_dim: 6,
                descriptor_dim: 5,
                instruction_dim: 64,
                instruction_encoder: "base-embeddings".into(),
                routing: Routing::Prompt,
                temperature,
                prior_strength,
                prior_temperature: 1.0,
                prompt_template: "{instruction}\n{prompt}\n".into(),
                base_model_name_or_path: String::new(),
                growth: Vec::new(),
            };
            (config, seed, instruction)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn for_any_bank_baked_equals_routed_on_the_prompt_and_its_continuations((config, seed, instruction) in any_bank()) {
        let case = Case::open("llama-prompt");
        let bank = random_bank(&case, config, seed);
        let config = &bank.config;
        let mut sequence = case.sequence();
        if !instruction {
            sequence.instruction.clear();
        }
        let alphas = alphas(&case, &bank, &sequence);
        let norm = |m: &[f32]| m.iter().map(|v| v * v).sum::<f32>().sqrt();
        let largest = bank.atoms().values.chunks_exact(config.r * config.r).map(norm).fold(0.0, f32::max);
        for alpha in &alphas {
            prop_assert!((alpha.iter().sum::<f32>() - 1.0).abs() < 1e-5 && alpha.iter().all(|a| *a >= 0.0));
            prop_assert!(alpha.iter().filter(|a| **a > 0.0).count() <= config.top_k);
            prop_assert!(norm(&bank.operator(alpha)) <= largest * 1.00001);
        }
        let decoder = case.decoder(Residence::Memory);
        let baked = with_plan(&case.model, &baked(&case.model, &bank, &alphas));
        let loaded = LoadedBank::frozen(&bank, &Device::Cpu).unwrap();
        let mut hook = loaded.hook(decoder.weights(), std::slice::from_ref(&sequence)).unwrap();
        let agreement = compare((&decoder, &mut hook), (&baked, &mut NoAdapter), std::slice::from_ref(&sequence)).unwrap();
        prop_assert!(agreement.max_logit_difference <= 1e-3, "{agreement:?}");
        prop_assert!(agreement.mean_kl.abs() < 1e-5, "{agreement:?}");

        let lora = bank.static_lora(&alphas);
        let lora = LoadedAdapter::frozen(&lora.tensors, lora.config.scale(), &Device::Cpu).unwrap();
        let agreement = compare((&decoder, &mut LoraHook(&lora)), (&baked, &mut NoAdapter), &[sequence]).unwrap();
        prop_assert!(agreement.max_logit_difference <= 1e-3, "{agreement:?}");
    }

    #[test]
    fn a_fresh_bank_changes_no_logit_at_all((config, seed, _) in any_bank(), token in any::<bool>()) {
        let case = Case::open("llama-prompt");
        let config = BankConfig { routing: if token { Routing::Token } else { Routing::Prompt }, ..config };
        let bank = AtomBank::fresh(Path::new("bank"), config, &case.model.config, seed).unwrap();
        let decoder = case.decoder(Residence::Memory);
        let sequences = [case.sequence()];
        let loaded = LoadedBank::frozen(&bank, &Device::Cpu).unwrap();
        let mut hook = loaded.hook(decoder.weights(), &sequences).unwrap();
        let agreement = compare((&decoder, &mut hook), (&decoder, &mut NoAdapter), &sequences).unwrap();
        prop_assert_eq!(agreement.max_logit_difference, 0.0);
    }
}
