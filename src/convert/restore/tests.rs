use crate::output::Destination;
use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::*;
use crate::arch::language::{Formula, Unary};
use crate::arch::lookup::{expected, own_spelling};
use crate::arch::{Family, registry};
use crate::checkpoint::Checkpoint;
use crate::convert::{ConvertOptions, OutType, to_gguf};
use crate::formats::safetensors;
use crate::plan::{self, Expr, Staging};

/// Random choices from a seed, so that a failure can be reproduced.
struct Dice(ChaCha8Rng);

impl Dice {
    fn of(&mut self, choices: &[usize]) -> usize {
        choices[self.0.next_u32() as usize % choices.len()]
    }

    fn flip(&mut self) -> bool {
        self.0.next_u32().is_multiple_of(2)
    }
}

/// A config of the table's class with small sizes, and with every flag it may have set at random.
fn random_config(arch: &Family, dice: &mut Dice) -> Config {
    let mut config: Config = arch.defaults.clone();
    let has = |config: &Config, name: &str| config.contains_key(name);
    let heads = dice.of(&[2, 4]);
    let groups = dice.of(if heads == 4 { &[1, 2, 4] } else { &[1, 2] });
    let head = dice.of(&[8, 16]);
    let own_head = has(&config, "head_dim");
    let hidden = if own_head { dice.of(&[16, 24, 40]) } else { heads * head };
    let sizes: [(&[&str], usize); 11] = [
        (&["hidden_size", "n_embd", "dim"], hidden),
        (&["intermediate_size", "ffn_hidden_size", "hidden_dim"], dice.of(&[16, 24])),
        (&["num_hidden_layers", "n_layer", "n_layers"], dice.of(&[1, 2, 3])),
        (&["num_attention_heads", "n_head", "n_heads"], heads),
        (&["num_key_value_heads"], groups),
        (&["head_dim"], head),
        (&["vocab_size"], dice.of(&[11, 32])),
        (&["max_position_embeddings", "n_positions"], dice.of(&[16, 20])),
        (&["num_experts", "num_local_experts"], dice.of(&[2, 3])),
        (&["moe_intermediate_size", "shared_expert_intermediate_size"], dice.of(&[8, 16])),
        (&["num_kv_heads"], groups),
    ];
    for (names, size) in sizes {
        for name in names.iter().filter(|name| has(&config, name)).copied().collect::<Vec<_>>() {
            // An encoder's config doesn't always have this field.
            if arch.gguf != "bert" || name != "num_key_value_heads" {
                config.insert(name.to_owned(), json!(size));
            }
        }
    }
    for row in &arch.rows {
        let field = match &row.when {
            Some(Formula::Name(field)) => field,
            Some(Formula::Unary(Unary::Not, of)) => match &**of {
                Formula::Name(field) => field,
                _ => continue,
            },
            _ => continue,
        };
        if !arch.assumed.iter().any(|assumed| assumed.field == *field)
            && config.get(field).is_some_and(Json::is_boolean)
        {
            config.insert(field.to_owned(), json!(dice.flip()));
        }
    }
    if arch.gguf == "falcon" {
        let new = arch.name == "falcon-new" || groups > 1;
        config.insert("new_decoder_architecture".into(), json!(new));
        config.insert("multi_query".into(), json!(groups == 1));
        if new && arch.name == "falcon" {
            config.insert("num_ln_in_parallel_attn".into(), json!(1));
        }
    }
    for name in config.iter().filter(|(_, value)| *value == "auto").map(|(name, _)| name.clone()).collect::<Vec<_>>() {
        config.remove(&name);
    }
    config.insert("architectures".into(), json!([arch.class()]));
    config.insert("model_type".into(), json!(arch.model_type()));
    config
}

/// Families whose configs [`random_config`] can make.
const NAMES: [&str; 25] = [
    "mixtral",
    "llama",
    "mistral",
    "ministral3",
    "granite",
    "smollm3",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "gemma",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt-neox",
    "falcon-new",
    "falcon",
    "stablelm",
    "starcoder2",
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
];

/// A folder with that config and random weights in `dtype`.
fn random_model(folder: &std::path::Path, config: &Config, dtype: DType, dice: &mut Dice) -> Checkpoint {
    fs::write(folder.join("config.json"), serde_json::to_vec(config).unwrap()).unwrap();
    let params = Params::read(folder, config, &mut Vec::new()).unwrap().unwrap();
    let mut tensors = Vec::new();
    for wanted in expected(&params, 1 << 18, |_| false).unwrap() {
        let shape = wanted.whole_shape().unwrap();
        let elems: usize = shape.iter().product();
        // Finite numbers of both signs, from tiny to large, which `dtype` can represent.
        let values = (0..elems).map(|_| half::f16::from_bits((dice.0.next_u32() & 0xbbff) as u16).to_f32());
        let values: std::sync::Arc<[f32]> = values.map(|v| if v.is_finite() { v } else { 0.5 }).collect();
        let expr = Expr::Values { shape: shape.clone(), values };
        let name = own_spelling(params.family, &wanted.name, None);
        tensors.push(PlannedTensor { name, dtype, shape, expr });
    }
    let plan = Plan { tensors };
    let layout = safetensors::layout(&plan.tensors, "model", u64::MAX).unwrap();
    let staging = Staging::file(&folder.join("model.safetensors"), false).unwrap();
    plan::execute(&plan, &layout, &staging, plan::Options::default(), &|_| {}).unwrap();
    staging.commit().unwrap();
    if params.family.rows.iter().any(|row| row.is_trimmed()) {
        let tokens = config["vocab_size"].as_u64().unwrap() - dice.of(&[0, 3]) as u64;
        let vocab: Map<String, Json> = (0..tokens).map(|id| (format!("t{id}"), json!(id))).collect();
        let tokenizer = json!({"added_tokens": [], "model": {"type": "BPE", "vocab": vocab, "merges": []}});
        fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    }
    Checkpoint::open(folder).unwrap()
}

fn contents(plan: &Plan) -> BTreeMap<&str, (DType, &[usize], Vec<u8>)> {
    let bytes = |tensor: &PlannedTensor| {
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        tensor.encode_rows(0..tensor.rows(), &mut scratch, &mut out).unwrap();
        out
    };
    plan.tensors.iter().map(|t| (t.name.as_str(), (t.dtype, t.shape.as_slice(), bytes(t)))).collect()
}

/// Writes `output` as a GGUF file in `folder`.
fn written(folder: &std::path::Path, output: &Output) -> GgufModel {
    let destination = Destination { overwrite: true, ..Destination::new(folder.join("model.gguf")) };
    output.write(&destination, &|_| {}).unwrap();
    GgufModel::open(&destination.path).unwrap()
}

/// A random model of this class in a folder, and its GGUF with the source's types.
fn converted(class: &str, folder: &std::path::Path) -> (Checkpoint, Output) {
    let mut dice = Dice(ChaCha8Rng::seed_from_u64(7));
    let family = registry::of_class(class, &Config::new()).unwrap();
    let config = random_config(family, &mut dice);
    let model = random_model(folder, &config, DType::F32, &mut dice);
    let options = ConvertOptions { outtype: OutType::Source, vocab: false, ..ConvertOptions::default() };
    let gguf = to_gguf(&model, model.weights(), &options).unwrap();
    (model, gguf)
}

#[test]
fn a_first_dimension_of_one_may_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (model, mut gguf) = converted("Qwen2MoeForCausalLM", dir.path());
    let shared = |tensor: &&mut PlannedTensor| tensor.name.ends_with("ffn_gate_inp_shexp.weight");
    for tensor in gguf.plan.tensors.iter_mut().filter(shared) {
        let width = tensor.shape.last().copied().unwrap();
        tensor.shape = vec![width];
        tensor.expr = Expr::Reshape { of: Box::new(tensor.expr.clone()), shape: vec![width] };
    }
    let (_, restored) = from_gguf(&written(dir.path(), &gguf), None).unwrap().unwrap();
    assert!(contents(&restored.plan) == contents(model.weights()));
}

#[test]
fn a_vocabulary_alone_is_named_as_that() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut gguf) = converted("LlamaForCausalLM", dir.path());
    gguf.plan = Plan::default();
    let error = from_gguf(&written(dir.path(), &gguf), None).unwrap_err().to_string();
    assert!(error.contains("model.gguf: tensors: expected those of a model, found none"), "{error}");
}

#[test]
fn a_record_that_cannot_be_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut gguf) = converted("RobertaModel", dir.path());
    let key = "atombank.source";
    let record: Json = serde_json::from_str(gguf.metadata().unwrap().text(key).unwrap()).unwrap();
    assert_eq!(record["version"], 1);
    let with = |change: &dyn Fn(&mut Json)| {
        let mut record = record.clone();
        change(&mut record);
        record.to_string()
    };
    // Records without a version are read as well.
    gguf.metadata_mut().unwrap().insert(key, with(&|record| drop(record.as_object_mut().unwrap().remove("version"))));
    assert!(from_gguf(&written(dir.path(), &gguf), None).unwrap().is_some());
    let cases = [
        ("null".to_owned(), "as JSON, found null"),
        ("{\"config\":".to_owned(), "expected the record of a checkpoint as JSON"),
        (with(&|record| record["types"] = json!(3)), ".types: expected an object, found 3"),
        (with(&|record| record["version"] = json!(2)), "expected version 1 of the record, found 2"),
        (with(&|record| record["main"] = json!("F33")), "expected types of safetensors, found \"F33\""),
    ];
    for (text, expected) in cases {
        gguf.metadata_mut().unwrap().insert(key, text);
        let error = from_gguf(&written(dir.path(), &gguf), None).unwrap_err().to_string();
        assert!(error.contains("model.gguf: key \"atombank.source\"") && error.contains(expected), "{error}");
    }
    gguf.metadata_mut().unwrap().insert(key, record.to_string());
    let rows = "atombank.source.rows.embeddings.position_embeddings.weight";
    assert!(gguf.metadata().unwrap().get(rows).is_some());
    gguf.metadata_mut().unwrap().insert(rows, Value::Array(crate::formats::gguf::Array::U8(vec![0; 3])));
    let error = from_gguf(&written(dir.path(), &gguf), None).unwrap_err().to_string();
    assert!(error.contains(rows) && error.contains("found 3 bytes"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn random_models_of_every_architecture_come_back_bit_by_bit(seed: u64) {
        let mut dice = Dice(ChaCha8Rng::seed_from_u64(seed));
        for arch in NAMES.map(|name| registry::by_name(name).unwrap()) {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let dir = tempfile::tempdir().unwrap();
                let config = random_config(arch, &mut dice);
                let model = random_model(dir.path(), &config, dtype, &mut dice);
                let options = ConvertOptions { outtype: OutType::Source, vocab: false, ..ConvertOptions::default() };
                let converted = to_gguf(&model, model.weights(), &options)
                    .unwrap_or_else(|e| panic!("{} {dtype}: {e}", arch.class()));
                let target = dir.path().join("model.gguf");
                converted.write(&Destination::new(&target), &|_| {}).unwrap();
                let (config_after, restored) = from_gguf(&GgufModel::open(&target).unwrap(), None)
                    .unwrap_or_else(|e| panic!("{} {dtype}: {e}", arch.class()))
                    .unwrap();
                let (before, after) = (contents(model.weights()), contents(&restored.plan));
                prop_assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "{}", arch.class());
                for (name, tensor) in &before {
                    prop_assert!(tensor == &after[name], "{} {dtype}: {name}", arch.class());
                }
                prop_assert_eq!(&config_after, &config);
            }
        }
    }
}
