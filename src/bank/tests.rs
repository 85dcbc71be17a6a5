use serde_json::json;

use super::*;
use crate::bank::BankReport;
use crate::bank::fill_template;
use crate::error::Error;

fn base() -> ModelConfig {
    let json = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32, "max_position_embeddings": 64
    });
    ModelConfig::from_json(Path::new("config.json"), json.as_object().unwrap()).unwrap()
}

fn config() -> BankConfig {
    let json = json!({
        "r": 4, "lora_alpha": 8.0, "target_modules": ["q_proj", "down_proj"], "num_atoms": 3, "top_k": 2,
        "block_size": 2, "key_dim": 5, "descriptor_dim": 6, "instruction_dim": 16
    });
    BankConfig::from_json(Path::new("adapter_config.json"), json.as_object().unwrap()).unwrap()
}

fn bank() -> AtomBank {
    AtomBank::fresh(Path::new("bank"), config(), &base(), 1).unwrap()
}

#[test]
fn a_saved_bank_opens_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("bank");
    let bank = bank();
    bank.save(&folder, false).unwrap();
    let back = AtomBank::open(&folder).unwrap();
    assert_eq!(back.config, bank.config);
    assert_eq!(back.tensors, bank.tensors);
    assert!(matches!(bank.save(&folder, false), Err(Error::Exists(_))));
}

#[test]
fn sites_come_in_execution_order() {
    let names: Vec<String> = bank().layers().iter().map(LinearLayer::to_string).collect();
    assert_eq!(
        names[..3],
        ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"]
    );
    assert_eq!(names.len(), 6);
}

#[test]
fn an_operator_on_the_simplex_is_no_larger_than_the_largest_atom() {
    let bank = bank();
    let norm = |m: &[f32]| m.iter().map(|v| v * v).sum::<f32>().sqrt();
    let largest = bank.atoms().values.chunks_exact(16).map(norm).fold(0.0, f32::max);
    for alpha in [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]] {
        assert!(norm(&bank.operator(&alpha)) <= largest * 1.000001);
    }
}

#[test]
fn refuses_surplus_missing_and_misshapen_tensors_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let zero = |shape: &[usize]| HostTensor { shape: shape.to_vec(), values: vec![0.0; shape.iter().product()].into() };
    let a = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let b = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
    let k = "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight";
    let cases: [(&str, Option<HostTensor>, &str); 5] = [
        ("atom_bank.keys", None, "tensor \"atom_bank.keys\": expected a tensor of this name, found none"),
        ("atom_bank.keys", Some(zero(&[3, 4])), "tensor \"atom_bank.keys\": expected [3, 5]"),
        ("atom_bank.extra", Some(zero(&[1])), "tensor \"atom_bank.extra\": expected a tensor this kind of adapter has"),
        (b, None, "lora_B.weight\": expected a tensor of this name, found none"),
        (k, Some(zero(&[4, 16])), "k_proj.lora_B.weight\": expected a tensor of this name"),
    ];
    for (i, (name, tensor, expected)) in cases.into_iter().enumerate() {
        let mut bank = bank();
        match tensor {
            Some(tensor) => bank.tensors.insert(name.into(), tensor),
            None => bank.tensors.remove(name),
        };
        let folder = dir.path().join(i.to_string());
        // Saving refuses what the reader refuses, and the reader refuses the same on its own.
        let refused = bank.save(&folder, false).unwrap_err().to_string();
        assert!(refused.contains(expected) && !folder.exists(), "{refused}");
        adapter_output(&bank.config.to_json(), &bank.tensors).write(&Destination::new(&folder), &|_| {}).unwrap();
        let error = AtomBank::open(&folder).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let mut bank = bank();
    bank.tensors.insert(a.into(), zero(&[4, 17]));
    let error = bank.check_base(&base()).unwrap_err().to_string();
    assert!(error.contains("expected [4, 16] for this base model, found [4, 17]"), "{error}");
}

#[test]
fn refuses_a_bank_for_a_base_of_another_depth() {
    let mut deeper = base();
    deeper.num_hidden_layers = 5;
    let error = bank().check_base(&deeper).unwrap_err().to_string();
    assert!(error.contains("expected 3 blocks for a base model of 5 layers, found 2"), "{error}");
    let mut shallower = base();
    shallower.num_hidden_layers = 2;
    assert!(bank().check_base(&shallower).unwrap_err().to_string().contains("found layer 2"));
}

#[test]
fn templates_fill_each_field_once() {
    assert_eq!(fill_template("{instruction}\n{prompt}\n", "say {prompt}", "x"), "say {prompt}\nx\n");
    assert_eq!(fill_template("{other} {prompt}", "i", "p"), "{other} p");
}

#[test]
fn settings_that_the_reader_refuses_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("bank");
    type Change = fn(&mut BankConfig);
    let cases: [(Change, &str); 4] = [
        (|c| c.top_k = 0, "top_k: expected a count from 1 to 2^31, found 0"),
        (|c| c.block_size = 0, "block_size: expected a count"),
        (|c| c.top_k = 4, "top_k: expected at most num_atoms, 3, found 4"),
        (
            |c| c.temperature = 1e-320,
            "temperature: expected a positive number whose inverse is a float32, found 1e-320",
        ),
    ];
    for (change, expected) in cases {
        let mut bank = bank();
        change(&mut bank.config);
        for error in [bank.save(&folder, false).unwrap_err(), bank.save_over(dir.path()).unwrap_err()] {
            assert!(error.to_string().contains(expected), "{error}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut config = config();
        change(&mut config);
        assert!(AtomBank::fresh(Path::new("bank"), config, &base(), 1).is_err());
    }
}

#[test]
fn sizes_that_the_base_cannot_hold_are_refused_before_anything_is_made() {
    type Change = fn(&mut BankConfig);
    let cases: [(Change, &str); 3] = [
        (|c| c.r = 1_000_000_000, "r: expected at most 24, the width of the base's widest linear layer"),
        (|c| c.num_atoms = 1 << 31, "num_atoms: expected a bank that is no larger than its base"),
        (|c| c.descriptor_dim = 1 << 31, "descriptor_dim: expected a bank that is no larger than its base"),
    ];
    for (change, expected) in cases {
        let mut config = config();
        change(&mut config);
        let error = AtomBank::fresh(Path::new("bank"), config, &base(), 1).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_report_says_which_atoms_have_numbers_that_are_not_finite() {
    let mut bank = bank();
    assert!(BankReport::of(&bank).non_finite.is_empty());
    let atoms = bank.tensors.get_mut("atom_bank.atoms").unwrap();
    atoms.values = atoms.values.iter().enumerate().map(|(i, v)| if i / 16 == 1 { 1e30 } else { *v }).collect();
    let report = BankReport::of(&bank);
    assert!(report.non_finite.contains(&1), "{:?}", report.non_finite);
    serde_json::from_str::<serde_json::Value>(&serde_json::to_string(&report).unwrap()).unwrap();
}
