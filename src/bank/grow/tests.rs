use serde_json::json;

use super::*;

fn base() -> ModelConfig {
    let json = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32, "max_position_embeddings": 64
    });
    ModelConfig::from_json(Path::new("config.json"), json.as_object().unwrap()).unwrap()
}

fn bank(descriptor_dim: usize, use_rslora: bool) -> AtomBank {
    let json = json!({
        "r": 4, "lora_alpha": 8.0, "target_modules": ["q_proj", "down_proj"], "num_atoms": 3, "top_k": 3,
        "block_size": 2, "key_dim": 5, "descriptor_dim": descriptor_dim, "instruction_dim": 16, "use_rslora": use_rslora
    });
    let config = BankConfig::from_json(Path::new("adapter_config.json"), json.as_object().unwrap()).unwrap();
    AtomBank::fresh(Path::new("bank"), config, &base(), 1).unwrap()
}

/// Unit vectors of `count` instructions and of a new one, after the mean of the `count` is taken off: those are linearly
/// dependent then.
fn embeddings(count: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    let mut all = Matrix::from_fn(count + 1, 16, |_, _| f64::from(random.normal()));
    let mean = all.rows(0, count).row_sum() / count as f64;
    for mut row in all.row_iter_mut() {
        row -= &mean;
        row.normalize_mut();
    }
    crate::linalg::to_rows(&all)
}

fn addition(count: usize, rank: usize) -> Addition {
    let all = embeddings(count, 3);
    Addition {
        instruction: "new".into(),
        embedding: all[count * 16..].to_vec(),
        others: (0..count).map(|i| i.to_string()).collect(),
        other_embeddings: all[..count * 16].to_vec(),
        rank,
        seed: 5,
    }
}

/// The prior's score of the newest atom for an embedding, by the definition, in f64.
fn score(bank: &AtomBank, e: &[f32]) -> f64 {
    let [d_p, d_e] = [bank.config.descriptor_dim, 16];
    let (p, u) = (&bank.tensors["atom_bank.prior.proj.weight"], &bank.tensors["atom_bank.descriptors"]);
    let projected: Vec<f64> =
        p.values.chunks_exact(d_e).map(|row| row.iter().zip(e).map(|(p, e)| f64::from(p * e)).sum()).collect();
    let u = &u.values[u.values.len() - d_p..];
    let dot: f64 = u.iter().zip(&projected).map(|(u, p)| f64::from(*u) * p).sum();
    let bias = *bank.tensors[PRIOR_BIAS].values.last().unwrap();
    dot / ((d_p as f64).sqrt() * bank.config.prior_temperature) + f64::from(bias)
}

#[test]
fn the_new_atom_has_the_prior_of_its_instruction_alone_with_or_without_a_further_row() {
    // With 6 descriptors for 4 others there is room; with 3 there is none, and P gets a row.
    for (descriptor_dim, expected) in [(6, 6), (3, 4)] {
        let (old, addition) = (bank(descriptor_dim, false), addition(4, 1));
        let new = old.grown(&addition, &base()).unwrap();
        assert_eq!(new.config.descriptor_dim, expected);
        let own = score(&new, &addition.embedding);
        assert!((SCORE - 0.1..SCORE + 20.0).contains(&own), "{own}");
        for e in addition.other_embeddings.chunks_exact(16) {
            assert!((score(&new, e) + SCORE).abs() < 0.1, "{}", score(&new, e));
        }
        let key = &new.tensors["atom_bank.keys"].values;
        assert_eq!(key[key.len() - 5..], [0.0; 5]);
        let divisor = |c: &BankConfig| (c.descriptor_dim as f64).sqrt() * c.prior_temperature;
        assert!((divisor(&new.config) - divisor(&old.config)).abs() < 1e-12);
    }
}

#[test]
fn an_atom_leads_over_those_of_earlier_growths_for_its_own_instruction() {
    // The second instruction is nearly the first one, which is far larger for the first new atom.
    let first = addition(4, 1);
    let once = bank(8, false).grown(&first, &base()).unwrap();
    let other = addition(5, 1).embedding;
    let near: Vec<f32> = first.embedding.iter().zip(&other).map(|(a, b)| 2.0 * a + 0.3 * b).collect();
    let second = Addition {
        embedding: near,
        others: first.others.iter().cloned().chain(["new".to_owned()]).collect(),
        other_embeddings: [first.other_embeddings.as_slice(), &first.embedding].concat(),
        ..first.clone()
    };
    let twice = once.grown(&second, &base()).unwrap();
    let earlier = score(&once, &second.embedding);
    assert!(earlier > 2.0 * SCORE, "{earlier}");
    assert!(score(&twice, &second.embedding) > earlier + SCORE - 1.0);
    assert!(score(&twice, &first.embedding) < 1.0 - SCORE);
}

#[test]
fn the_bank_before_its_growth_has_its_bits_after_several() {
    for rank in [0, 1, 3] {
        for use_rslora in [false, true] {
            let old = bank(6, use_rslora);
            let once = old.grown(&addition(4, rank), &base()).unwrap();
            let twice = once.grown(&Addition { instruction: "more".into(), ..addition(5, rank) }, &base()).unwrap();
            assert!((twice.scale() - old.scale()).abs() < 1e-6);
            assert_eq!((twice.config.r, twice.config.num_atoms, twice.config.top_k), (4 + 2 * rank, 5, 5));
            let back = twice.before_growth().unwrap();
            assert_eq!((&back.config, &back.tensors), (&once.config, &once.tensors));
            let back = back.before_growth().unwrap();
            assert_eq!((&back.config, &back.tensors), (&old.config, &old.tensors));
            assert!(back.before_growth().is_none());
            let dir = tempfile::tempdir().unwrap();
            twice.save(&dir.path().join("bank"), false).unwrap();
            let opened = AtomBank::open(&dir.path().join("bank")).unwrap();
            assert_eq!((&opened.config, &opened.tensors), (&twice.config, &twice.tensors));
            assert_eq!(opened.instructions.last().unwrap(), "more");
        }
    }
}

#[test]
fn what_a_bank_cannot_grow_by_is_named() {
    let refused = |bank: &AtomBank, addition: &Addition| bank.grown(addition, &base()).unwrap_err().to_string();
    // The seventeenth direction of a space of sixteen.
    let error = refused(&bank(6, false), &addition(17, 1));
    assert!(error.contains("the new instruction: expected an embedding that isn't a mixture of those"), "{error}");
    let error = refused(&bank(6, false), &addition(4, 1000));
    assert!(
        error.contains("r: expected at most 24, the width of the base's widest linear layer, found 1004"),
        "{error}"
    );
    for strength in [0.0, -1.0, 1e-35] {
        let mut bank = bank(6, false);
        bank.config.prior_strength = strength;
        let error = refused(&bank, &addition(4, 1));
        assert!(error.contains("prior_strength: expected a prior that can choose an atom"), "{error}");
    }
}

#[test]
fn growth_that_makes_no_sense_is_refused() {
    let grown = bank(6, false).grown(&addition(4, 1), &base()).unwrap();
    type Change = fn(&mut AtomBank);
    let cases: [(Change, &str); 4] = [
        (|b| b.config.growth[0].num_atoms = 4, "growth: expected smaller sizes before each growth"),
        (|b| b.config.growth[0].r = 9, "growth: expected smaller sizes before each growth"),
        (|b| b.config.growth[0].top_k = 0, "growth: top_k: expected a count from 1 to 2^31, found 0"),
        (
            |b| drop(b.tensors.remove(PRIOR_BIAS)),
            "atom_bank.prior.bias\": expected a tensor of this name: a bank that has",
        ),
    ];
    for (change, expected) in cases {
        let mut bank = grown.clone();
        change(&mut bank);
        let error = bank.output().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
