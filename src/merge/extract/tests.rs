use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::*;
use crate::adapter::peft::WeightLayout;
use crate::linalg::Random;
use crate::plan::Plan;

mod selected;

/// A model in memory.
struct Model {
    config: Map<String, Value>,
    plan: Plan,
}

impl Model {
    fn new(config: Value, tensors: &[(&str, &[usize])]) -> Self {
        let mut random = Random::new(3);
        let mut tensor = |(name, shape): &(&str, &[usize])| {
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| random.normal()).collect();
            planned(name, shape, values)
        };
        Self {
            config: config.as_object().unwrap().clone(),
            plan: Plan { tensors: tensors.iter().map(&mut tensor).collect() },
        }
    }

    fn llama(tied: bool) -> Self {
        let config = json!({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": tied});
        let mut tensors: Vec<(&str, &[usize])> = vec![
            ("model.embed_tokens.weight", &[50, 24]),
            ("model.layers.0.self_attn.q_proj.weight", &[32, 24]),
            ("model.layers.0.mlp.down_proj.weight", &[24, 60]),
            ("model.layers.10.mlp.down_proj.weight", &[24, 60]),
            ("model.layers.2.mlp.down_proj.weight", &[24, 60]),
            ("model.layers.0.input_layernorm.weight", &[24]),
            ("model.norm.weight", &[24]),
        ];
        if !tied {
            tensors.push(("lm_head.weight", &[50, 24]));
        }
        Self::new(config, &tensors)
    }

    fn gpt2() -> Self {
        let config = json!({"architectures": ["GPT2LMHeadModel"]});
        Self::new(
            config,
            &[
                ("wte.weight", &[50, 24]),
                ("wpe.weight", &[16, 24]),
                ("h.0.ln_1.weight", &[24]),
                ("h.0.ln_1.bias", &[24]),
                ("h.0.mlp.c_fc.weight", &[24, 96]),
                ("h.0.mlp.c_fc.bias", &[96]),
                ("h.0.attn.bias", &[1, 1, 16, 16]),
            ],
        )
    }

    fn base(&self, path: &'static str) -> Base<'_> {
        Base::new(Path::new(path), &self.config, &self.plan)
    }

    /// This model with tensor `name` changed by `change`, a function of row and column.
    fn changed(&self, name: &str, change: impl Fn(usize, usize) -> f32) -> Self {
        let mut plan = self.plan.clone();
        let tensor = plan.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap();
        let cols = tensor.row_len();
        let values = tensor.read().unwrap().iter().enumerate().map(|(i, v)| v + change(i / cols, i % cols)).collect();
        *tensor = planned(name, &tensor.shape.clone(), values);
        Self { config: self.config.clone(), plan }
    }
}

fn planned(name: &str, shape: &[usize], values: Vec<f32>) -> PlannedTensor {
    let expr = Expr::Values { shape: shape.to_vec(), values: Arc::from(values) };
    PlannedTensor { name: name.to_owned(), dtype: DType::F32, shape: shape.to_vec(), expr }
}

const OPTIONS: ExtractOptions = ExtractOptions {
    rank: 8,
    energy: None,
    sv_epsilon: 0.0,
    dtype: DType::F32,
    sketch: Sketch { oversampling: 10, power_iterations: 2, seed: 0 },
    max_memory_bytes: 1 << 20,
};

fn extract(base: &Model, finetuned: &Model, options: &ExtractOptions) -> Result<Extraction> {
    Pairs::new(&base.base("base"), &finetuned.base("finetuned"), &Selection::default())?.extract(options, &|| ())
}

/// A change of rank 2 with singular values of very different sizes.
fn rank_two(i: usize, j: usize) -> f32 {
    let (i, j) = (i as f32, j as f32);
    i.sin() * j.cos() + 0.01 * (2.0 * i).cos() * (3.0 * j).sin()
}

#[test]
fn a_change_of_low_rank_comes_back_and_the_rest_is_left_out() {
    let base = Model::llama(false);
    let name = "model.layers.10.mlp.down_proj.weight";
    let finetuned = base.changed(name, rank_two).changed("model.layers.2.mlp.down_proj.weight", rank_two);
    let found = extract(&base, &finetuned, &OPTIONS).unwrap();
    let modules: Vec<&str> = found.modules.iter().map(|module| module.module.as_str()).collect();
    assert_eq!(modules, ["model.layers.2.mlp.down_proj", "model.layers.10.mlp.down_proj"], "in the model's order");
    assert!(found.saved.is_empty());
    for module in &found.modules {
        assert!(module.relative_error < 1e-5 && module.energy > 1.0 - 1e-6, "{module:?}");
    }
    let delta = planned("delta", &[24, 60], vec![0.0; 24 * 60]);
    let delta = PlannedTensor { expr: found.updates[1].1.delta(), ..delta };
    for (i, value) in delta.read().unwrap().into_iter().enumerate() {
        assert!((value - rank_two(i / 60, i % 60)).abs() < 1e-5);
    }
    let totals = &found.totals;
    assert_eq!((totals.modules, totals.unchanged), (2, 2));
    let ranks: usize = found.modules.iter().map(|module| module.rank).sum();
    assert_eq!(totals.values as usize, ranks * (24 + 60));
    assert!(totals.relative_error.unwrap() < 1e-5);
}

#[test]
fn energy_takes_the_smallest_rank_that_keeps_it() {
    let base = Model::llama(false);
    let finetuned = base.changed("model.layers.0.mlp.down_proj.weight", rank_two);
    let with = |energy| {
        let found = extract(&base, &finetuned, &ExtractOptions { energy: Some(energy), ..OPTIONS }).unwrap();
        (found.modules[0].rank, found.modules[0].energy, found.modules[0].relative_error)
    };
    let (rank, energy, error) = with(0.99);
    assert_eq!(rank, 1);
    assert!((0.999..1.0).contains(&energy), "{energy}");
    assert!((error.powi(2) - (1.0 - energy)).abs() < 1e-5, "what is not kept is the error: {error} {energy}");
    assert_eq!(with(0.999999).0, 2);
}

#[test]
fn narrow_factors_have_the_error_of_their_rounding() {
    let base = Model::llama(false);
    let finetuned = base.changed("model.layers.0.self_attn.q_proj.weight", rank_two);
    let error =
        |dtype| extract(&base, &finetuned, &ExtractOptions { dtype, ..OPTIONS }).unwrap().modules[0].relative_error;
    assert!(error(DType::F32) < 1e-5);
    assert!((1e-5..1e-3).contains(&error(DType::F16)));
    assert!((1e-4..1e-2).contains(&error(DType::BF16)));
}

#[test]
fn conv1d_and_biases_and_norms_go_where_peft_has_them() {
    let base = Model::gpt2();
    let finetuned = base
        .changed("h.0.mlp.c_fc.weight", rank_two)
        .changed("h.0.mlp.c_fc.bias", |_, _| 1.0)
        .changed("h.0.ln_1.bias", |_, _| 1.0)
        .changed("h.0.attn.bias", |_, _| 1.0)
        .changed("wpe.weight", rank_two);
    let found = extract(&base, &finetuned, &OPTIONS).unwrap();
    let (name, update) = &found.updates[0];
    assert_eq!(name, "transformer.h.0.mlp.c_fc.weight");
    assert_eq!((update.a.shape()[1], update.b.shape()[0], update.layout), (24, 96, WeightLayout::InputsFirst));
    let delta = PlannedTensor { expr: update.delta(), ..planned("delta", &[24, 96], Vec::new()) };
    for (i, value) in delta.read().unwrap().into_iter().enumerate() {
        assert!((value - rank_two(i / 96, i % 96)).abs() < 1e-5);
    }
    let lora = found.lora(&base.base("base")).unwrap();
    let mut names: Vec<&str> = lora.tensors.tensors.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    let expected = [
        "base_model.model.transformer.h.0.ln_1.bias",
        "base_model.model.transformer.h.0.ln_1.weight",
        "base_model.model.transformer.h.0.mlp.c_fc.base_layer.bias",
        "base_model.model.transformer.h.0.mlp.c_fc.lora_A.weight",
        "base_model.model.transformer.h.0.mlp.c_fc.lora_B.weight",
        "base_model.model.transformer.wpe.weight",
    ];
    assert_eq!(names, expected, "the mask is a buffer");
    assert_eq!(lora.config["modules_to_save"], json!(["transformer.wpe", "transformer.h.0.ln_1"]));
    assert_eq!((&lora.config["bias"], &lora.config["fan_in_fan_out"]), (&json!("all"), &json!(true)));
}

#[test]
fn what_gguf_has_no_place_for_is_not_passed_over() {
    let shapes: &[(&str, &[usize])] =
        &[("embeddings.word_embeddings.weight", &[20, 8]), ("pooler.dense.weight", &[8, 8])];
    let bert = Model::new(json!({"architectures": ["BertModel"], "tie_word_embeddings": true}), shapes);
    let found = extract(&bert, &bert.changed("pooler.dense.weight", rank_two), &OPTIONS).unwrap();
    assert_eq!(found.updates[0].0, "pooler.dense.weight");
    let found = extract(&bert, &bert.changed("embeddings.word_embeddings.weight", rank_two), &OPTIONS).unwrap();
    assert_eq!(found.saved.len(), 1, "an encoder has no head");
    let shapes: &[(&str, &[usize])] = &[("model.embed_tokens.weight", &[20, 8])];
    let gemma = Model::new(json!({"architectures": ["GemmaForCausalLM"]}), shapes);
    let found = extract(&gemma, &gemma.changed("model.embed_tokens.weight", rank_two), &OPTIONS).unwrap();
    assert_eq!(
        found.saved.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(),
        ["model.embed_tokens.weight", "lm_head.weight"]
    );
}

#[test]
fn names_are_those_of_the_class_and_no_embedding_is_taken_for_a_linear_layer() {
    let config =
        json!({"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"], "text_config": {}});
    let (q, qkv) = ("model.layers.0.self_attn.q_proj.weight", "visual.blocks.0.attn.qkv.weight");
    let base = Model::new(config, &[(q, &[8, 8]), (qkv, &[24, 8]), ("model.norm.weight", &[8])]);
    let finetuned = base.changed(q, rank_two).changed(qkv, rank_two).changed("model.norm.weight", |_, _| 1.0);
    let pairs = Pairs::new(&base.base("base"), &finetuned.base("finetuned"), &Selection::default()).unwrap();
    assert!(pairs.notes.is_empty(), "{:?}", pairs.notes);
    let lora = pairs.extract(&OPTIONS, &|| ()).unwrap().lora(&base.base("base")).unwrap();
    let mut names: Vec<&str> = lora.tensors.tensors.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    let expected = [
        "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.weight",
        "base_model.model.model.language_model.norm.weight",
        "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight",
        "base_model.model.model.visual.blocks.0.attn.qkv.lora_B.weight",
    ];
    assert_eq!(names, expected);
    let config =
        json!({"model_type": "other_vl", "architectures": ["OtherForConditionalGeneration"], "text_config": {}});
    let other = |of: Model| Model { config: config.as_object().unwrap().clone(), ..of };
    let (base, finetuned) = (other(base), other(finetuned));
    let pairs = Pairs::new(&base.base("base"), &finetuned.base("finetuned"), &Selection::default()).unwrap();
    assert!(pairs.notes.iter().any(|note| note.contains("OtherForConditionalGeneration may have others")));

    let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    let config = json!({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]});
    let t5 = Model::new(config, &[(bias, &[32, 4]), ("encoder.block.0.layer.0.SelfAttention.q.weight", &[8, 8])]);
    let found = extract(&t5, &t5.changed(bias, rank_two), &OPTIONS).unwrap();
    assert!(found.updates.is_empty());
    let lora = found.lora(&t5.base("base")).unwrap();
    assert_eq!(lora.config["modules_to_save"], json!([bias.strip_suffix(".weight").unwrap()]));
}

#[test]
fn ties_are_kept_or_come_apart_as_the_finetuned_model_has_them() {
    let (tied, untied) = (Model::llama(true), Model::llama(false));
    let embeddings = "model.embed_tokens.weight";
    let saved = |base: &Model, finetuned: &Model| -> (Vec<String>, bool) {
        let found = extract(base, finetuned, &OPTIONS).unwrap();
        let lora = found.lora(&base.base("base")).unwrap();
        let names = found.saved.iter().map(|tensor| tensor.name.clone()).collect();
        (names, lora.config.get("ensure_weight_tying").is_some())
    };
    let both = vec![embeddings.to_owned(), "lm_head.weight".to_owned()];
    assert_eq!(saved(&tied, &tied.changed(embeddings, rank_two)), (both.clone(), true));
    assert_eq!(saved(&untied, &untied.changed(embeddings, rank_two)), (both[..1].to_vec(), false));
    // An untied head where the base's is tied, and the other way round.
    assert_eq!(saved(&tied, &untied), (both[1..].to_vec(), false));
    assert_eq!(saved(&untied, &tied), (both[1..].to_vec(), false));
    assert_eq!(saved(&untied, &tied.changed(embeddings, rank_two)), (both, false));
}

#[test]
fn what_no_lora_holds_is_refused_by_name() {
    let base = Model::llama(false);
    let refusal = |finetuned: &Model| extract(&base, finetuned, &OPTIONS).unwrap_err().to_string();
    assert_eq!(
        refusal(&Model::llama(false)),
        "finetuned: expected weights that differ from those of base, found the same in all tensors; there is \
         nothing to extract"
    );
    let mut other = Model::llama(false);
    other.plan.tensors[0] = planned("model.embed_tokens.weight", &[50, 25], vec![0.0; 50 * 25]);
    assert!(
        refusal(&other).contains("\"model.embed_tokens.weight\": expected [50, 24], as base has it, found [50, 25]")
    );
    let mut other = Model::llama(false);
    other.plan.tensors.remove(1);
    assert!(refusal(&other).contains("q_proj.weight\": expected it in finetuned, too"), "{}", refusal(&other));
    let mut other = Model::llama(false);
    other.plan.tensors.push(planned("model.layers.0.extra", &[3], vec![0.0; 3]));
    assert!(refusal(&other).contains("extra\": expected it in base, too"), "{}", refusal(&other));
    let nan = base.changed("model.norm.weight", |i, _| if i == 3 { f32::NAN } else { 0.0 });
    assert!(refusal(&nan).contains("\"model.norm.weight\": expected finite numbers"), "{}", refusal(&nan));

    let config = json!({"architectures": ["OtherForCausalLM"], "rope_theta": 10.0});
    let names = ["model.layers.0.mlp.experts.0.w1.weight", "model.layers.0.mixer.A_log"];
    let base = Model::new(config.clone(), &[(names[0], &[4, 4]), (names[1], &[4, 4]), ("model.norm.weight", &[4])]);
    for name in names {
        let error = extract(&base, &base.changed(name, |_, _| 1.0), &OPTIONS).unwrap_err().to_string();
        assert!(error.contains(&format!("{name:?}: expected the base's values")), "{error}");
    }
    let mut finetuned = base.changed("model.norm.weight", |_, _| 1.0);
    finetuned.config["rope_theta"] = json!(20.0);
    let pairs = Pairs::new(&base.base("base"), &finetuned.base("finetuned"), &Selection::default()).unwrap();
    assert_eq!(pairs.notes, ["config.json differs in rope_theta, which a LoRA doesn't hold"]);
    let lora = pairs.extract(&OPTIONS, &|| ()).unwrap().lora(&base.base("base")).unwrap();
    assert_eq!(lora.config["target_modules"], "dummy-target-modules", "whole modules alone");
}

#[test]
fn seed_and_not_threads_decide() {
    let base = Model::llama(false);
    let finetuned = ["self_attn.q_proj", "mlp.down_proj"].iter().fold(Model::llama(false), |model, name| {
        model.changed(&format!("model.layers.0.{name}.weight"), |i, j| ((i * 31 + j * 17) as f32).sin())
    });
    let on = |threads, seed| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let options = ExtractOptions { rank: 3, sketch: Sketch { seed, ..OPTIONS.sketch }, ..OPTIONS };
        let found = pool.install(|| extract(&base, &finetuned, &options).unwrap());
        let factors: BTreeMap<String, Vec<f32>> =
            found.updates.iter().map(|(name, update)| (name.clone(), values(&update.a))).collect();
        (factors, found.modules)
    };
    assert_eq!(on(1, 0), on(3, 0));
    assert_ne!(on(1, 0).0, on(1, 1).0);
}

fn values(expr: &Expr) -> Vec<f32> {
    PlannedTensor { name: String::new(), dtype: DType::F32, shape: expr.shape(), expr: expr.clone() }.read().unwrap()
}
