//! What is trained is what runs, what is written and what is merged, for every variant of LoRA.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use serde_json::Value;

use super::experts::{config, distance, fixture, logits};
use crate::adapter::peft::{Base, Change};
use crate::adapter::{HostTensor, Lora};
use crate::arch::{HfFolder, LinearLayer};
use crate::checkpoint::Checkpoint;
use crate::dtype::DType;
use crate::jobs::{MergeSettings, merge};
use crate::model::{Decoder, NoAdapter, Residence};
use crate::plan::{Expr, PlannedTensor};
use crate::train::adapter::TrainedAdapter;
use crate::train::lora::{TrainedLora, principal_of};
use crate::train::{Event, TrainConfig, Trainable, train};

fn run(config: &TrainConfig, resume: bool, stop_after: usize) -> crate::Result<crate::train::Outcome> {
    let stop = AtomicBool::new(false);
    train(config, resume, &Device::Cpu, &stop, &mut |event| {
        if matches!(event, Event::Step { step, .. } if step == stop_after) {
            stop.store(true, Ordering::Relaxed);
        }
    })
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Logits of `base` with an adapter as it is trained.
fn trained_logits(decoder: &Decoder, adapter: &TrainedAdapter) -> Vec<f32> {
    let trainable = adapter.trainable(&Device::Cpu).unwrap();
    let Trainable::Lora(loaded) = &trainable else { panic!("a LoRA") };
    logits(decoder, &mut crate::model::LoraHook(loaded))
}

#[test]
fn every_variant_starts_as_its_base_and_merges_and_resumes_to_what_was_trained() {
    let patterns = "adapter.rank_pattern={'layers.1.self_attn.q_proj'=3, '[uv]p?_proj'=1}";
    let alphas = "adapter.alpha_pattern={'v_proj'=3.0}";
    let modules = "adapter.target_modules=['q_proj', 'v_proj', 'up_proj', 'down_proj']";
    let cases: [(&str, &[&str]); 7] = [
        ("llama", &["adapter.use_rslora=true", modules, patterns, alphas]),
        ("llama", &["adapter.use_dora=true", modules, patterns, alphas]),
        ("llama", &["adapter.init_lora_weights='pissa'", "adapter.use_rslora=true", modules, patterns, alphas]),
        ("llama", &["adapter.init_lora_weights='pissa_niter_4'", "adapter.use_dora=true", modules]),
        ("llama", &["adapter.init_lora_weights='gaussian'", "adapter.target_modules='all-linear'"]),
        // Weights that are stored as [d_in, d_out], and fused projections.
        (
            "gpt2",
            &["adapter.use_dora=true", "adapter.init_lora_weights='pissa'", "adapter.target_modules='all-linear'"],
        ),
        ("phi3", &["adapter.use_dora=true", "adapter.target_modules=['qkv_proj', 'gate_up_proj']"]),
    ];
    for (name, settings) in cases {
        let what = format!("{name} {settings:?}");
        let base = fixture("convert").join(name).join("model");
        let folder = HfFolder::open(&base).unwrap();
        let decoder = Decoder::open(&folder, Residence::Mapped, &Device::Cpu).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let more = [settings, &["training.checkpoint_every=2", "adapter.lora_alpha=4.0"]].concat();
        let broken = format!("output='{}'", dir.path().join("broken").display());
        let config = config(dir.path(), &base, "[]", &more);
        let broken = super::experts::config(dir.path(), &base, "[]", &[&more[..], &[&broken]].concat());

        let fresh = TrainedAdapter::fresh(&config.output, &config, &folder.config, None).unwrap();
        let fresh = fresh.started(&config, decoder.weights()).unwrap();
        let plain = logits(&decoder, &mut NoAdapter);
        let gap = distance(&plain, &trained_logits(&decoder, &fresh));
        assert!(gap < 1e-4, "{what}: the start: {gap}");

        run(&config, false, usize::MAX).unwrap();
        let checkpoint = config.output.join("checkpoint-000003");
        let adapter = TrainedAdapter::open(&checkpoint, &config).unwrap();
        let trained = trained_logits(&decoder, &adapter);
        assert!(distance(&plain, &trained) > 1e-3, "{what}: nothing was learned");

        let merged = dir.path().join("merged");
        let mut settings = MergeSettings::new(&base, [&config.output], &merged);
        settings.output.r#type = Some("f32".to_owned());
        merge(&settings, &|_| ()).unwrap().output.write(&settings.output.destination, &|_| ()).unwrap();
        let merged = Decoder::open(&HfFolder::open(&merged).unwrap(), Residence::Memory, &Device::Cpu).unwrap();
        let gap = distance(&logits(&merged, &mut NoAdapter), &trained);
        assert!(gap < 1e-4, "{what}: merged: {gap}");

        run(&broken, false, 2).unwrap_err();
        run(&broken, true, usize::MAX).unwrap();
        for file in ["adapter_model.safetensors", "checkpoint-000003/optimizer.safetensors"] {
            let bytes = |config: &TrainConfig| std::fs::read(config.output.join(file)).unwrap();
            assert!(bytes(&config) == bytes(&broken), "{what}: {file} differs after resuming");
        }
        assert_eq!(json(&config.output.join("adapter_config.json")), json(&broken.output.join("adapter_config.json")));
    }
}

/// The same value with every number as a float.
fn floats(value: &Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().into(),
        Value::Object(map) => Value::Object(map.iter().map(|(key, value)| (key.clone(), floats(value))).collect()),
        value => value.clone(),
    }
}

/// Ranks and factors as PEFT has them (fixtures/train/scale).
#[test]
fn every_module_has_its_rank_and_its_scale_in_training_merging_and_what_is_written() {
    let base = fixture("convert/llama/model");
    for case in json(&fixture("train/scale/expected.json"))["settings"].as_array().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        let setting = |(key, value): (&String, &Value)| match value {
            // The same value in TOML.
            Value::Object(map) => {
                let pairs: Vec<String> = map.iter().map(|(key, value)| format!("'{key}' = {value}")).collect();
                format!("adapter.{key}={{{}}}", pairs.join(", "))
            }
            value => format!("adapter.{key}={value}"),
        };
        let mut settings: Vec<String> = case["config"].as_object().unwrap().iter().map(setting).collect();
        settings.push("training.steps=1".to_owned());
        let config = config(dir.path(), &base, "[]", &settings.iter().map(String::as_str).collect::<Vec<_>>());
        run(&config, false, usize::MAX).unwrap();
        let written = Lora::open(&config.output).unwrap();
        let resumed = TrainedLora::open(&config.output.join("checkpoint-000001"), &config).unwrap();
        let trained = resumed.trainable(&Device::Cpu).unwrap();
        let changes = crate::adapter::open(&config.output, &Base::of(&Checkpoint::open(&base).unwrap())).unwrap();
        let modules = case["modules"].as_object().unwrap();
        assert_eq!(written.layers().len(), modules.len());
        for (module, expected) in modules {
            let weight = format!("{module}.weight");
            let site = LinearLayer::of_weight(&weight).unwrap();
            let (rank, scale) =
                (expected["r"].as_u64().unwrap() as usize, expected["scaling"].as_f64().unwrap() as f32);
            assert_eq!(written.factors(site).0.shape[0], rank, "{module}");
            for config in [&written.config, &resumed.lora.config] {
                assert_eq!((config.rank_of(site), config.scale_of(site)), (rank, scale), "{module}");
            }
            let hook = crate::model::LoraHook(&trained);
            let low_rank = crate::model::Hook::low_rank(&hook, site).unwrap().unwrap();
            assert_eq!((low_rank.0.dims()[0], low_rank.2 as f32), (rank, scale), "{module}");
            let change = changes.changes.iter().find(|(name, _)| *name == weight).unwrap();
            let Change::LowRank(update) = &change.1 else { panic!("{module}") };
            assert_eq!((update.a.shape()[0], update.scale as f32), (rank, scale), "{module}");
        }
        let saved = json(&config.output.join("adapter_config.json"));
        for (key, value) in case["config"].as_object().unwrap() {
            assert_eq!(floats(&saved[key]), floats(value), "{key}");
        }
    }
}

#[test]
fn settings_of_modules_that_change_nothing_are_named() {
    let base = fixture("convert/llama/model");
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("adapter.rank_pattern={'x_proj'=2}", "adapter.rank_pattern: expected patterns for the end"),
        ("adapter.alpha_pattern={'layers.7.*'=2}", "\"layers.7.*\", which matches none"),
        (
            "adapter.layers_to_transform=[0, 9]",
            "adapter.layers_to_transform: expected layers below the base's 2, found 9",
        ),
        ("adapter.exclude_modules=['o_proj']", "adapter.exclude_modules: expected modules that target_modules selects"),
        ("adapter.exclude_modules=['q_proj']", "expected at least one module that is left"),
    ];
    for (setting, expected) in cases {
        let config = config(dir.path(), &base, "[]", &[setting]);
        let error = run(&config, false, 9).unwrap_err().to_string();
        assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
        assert!(!config.output.exists());
    }
    let config = config(dir.path(), &base, "[]", &["adapter.layers_to_transform=1", "training.steps=1"]);
    run(&config, false, 9).unwrap();
    let layers = Lora::open(&config.output).unwrap().layers();
    assert_eq!(layers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["model.layers.1.self_attn.q_proj"]);
}

#[test]
fn tied_embeddings_are_not_untied() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [
        "adapter.modules_to_save=['embed_tokens']",
        "adapter.modules_to_save=['embed_tokens', 'lm_head']",
        "adapter.target_modules=['q_proj', 'lm_head']",
        "adapter.target_modules=['embed_tokens']",
        "adapter.trainable_token_indices=[6, 7]",
        "adapter.ensure_weight_tying=true",
    ];
    for setting in settings {
        let error = |base: &str| {
            let config = config(dir.path(), &fixture(base), "[]", &[setting]);
            let error = run(&config, false, 9).unwrap_err().to_string();
            let key = setting.split_once('=').unwrap().0;
            assert!(error.contains(key) && error.lines().count() == 1, "{error}");
            let leaves_a_name = setting.contains("'q_proj', 'lm_head'");
            assert_eq!(error.ends_with("; leave out lm_head"), leaves_a_name, "{error}");
            error
        };
        assert!(error("convert/gemma2/model").contains("tied embeddings"), "{setting}");
        assert!(!error("convert/llama/model").contains("tied embeddings"), "{setting}");
    }
}

/// What PEFT computes for one linear layer (fixtures/train/pissa).
#[test]
fn a_pissa_start_is_the_base_and_its_result_adds_to_the_untouched_base() {
    let weight = [3f32, 1., 0., 0., 1., 3., 0., 0., 0., 0., 1., 0.5, 0., 0., 0.5, 1.];
    let expr = Expr::Values { shape: vec![4, 4], values: weight.into() };
    let planned = PlannedTensor { name: "w".into(), dtype: DType::F32, shape: vec![4, 4], expr };
    let site = LinearLayer::of_weight("model.layers.0.self_attn.q_proj.weight").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let values = |json: &Value| -> Vec<f32> {
        json.as_array()
            .unwrap()
            .iter()
            .flat_map(|row| row.as_array().unwrap())
            .map(|v| v.as_f64().unwrap() as f32)
            .collect()
    };
    let product = |b: &HostTensor, a: &HostTensor, scale: f32| -> Vec<f32> {
        let (rank, d_in) = (a.shape[0], a.shape[1]);
        let at = |row: usize, col: usize| {
            (0..rank).map(|k| b.values[row * rank + k] * a.values[k * d_in + col]).sum::<f32>()
        };
        (0..b.shape[0])
            .flat_map(|row| (0..d_in).map(move |col| (row, col)))
            .map(|(row, col)| scale * at(row, col))
            .collect()
    };
    for (name, use_rslora) in [("plain", "false"), ("rslora", "true")] {
        let expected = &json(&fixture("train/pissa/expected.json"))[name];
        let rslora = format!("adapter.use_rslora={use_rslora}");
        let settings = ["adapter.r=1", "adapter.lora_alpha=2.0", "adapter.init_lora_weights='pissa'", &rslora];
        let config = config(dir.path(), Path::new("base"), "[]", &settings);
        let scale = config.lora_config().unwrap().scale_of(site);
        assert_eq!(f64::from(scale), expected["scaling"].as_f64().unwrap());
        for is_turned in [false, true] {
            // The weight is symmetric.
            let [mut a, mut b] = principal_of(&planned, is_turned, 1, scale, None).unwrap();
            let start = product(&b, &a, scale);
            let gap = distance(&start, &values(&expected["product_at_start"]));
            assert!(gap < 1e-5, "{gap}");
            // Signs can be the other way round together.
            let wanted = values(&expected["A_trained"]);
            if a.values[0] * wanted[0] < 0.0 {
                for factor in [&mut a, &mut b] {
                    factor.values = factor.values.iter().map(|value| -value).collect();
                }
            }
            let tensors = [(site.factor_name('A'), a.clone()), (site.factor_name('B'), b.clone())];
            let lora = Lora {
                path: "lora".into(),
                config: config.lora_config().unwrap(),
                tensors: tensors.clone().into_iter().collect(),
            };
            let trained = TrainedLora::with_start(lora, Some(tensors.into_iter().collect()));
            a.values = a.values.iter().map(|value| 1.5 * value).collect();
            b.values = b.values.iter().map(|value| value + 0.25).collect();
            assert!(distance(&a.values, &wanted) < 1e-5 && distance(&b.values, &values(&expected["B_trained"])) < 1e-5);
            let moved = [(site.factor_name('A'), a), (site.factor_name('B'), b)].into_iter().collect();
            let saved = trained.with_tensors(moved).saved();
            let converted = &expected["converted"];
            assert_eq!(saved.config.r as u64, converted["r"].as_u64().unwrap());
            assert!((saved.config.lora_alpha - converted["lora_alpha"].as_f64().unwrap()).abs() < 1e-9);
            let (a, b) = saved.factors(site);
            let gap =
                distance(&product(b, a, saved.config.scale()), &values(&converted["update_on_the_original_base"]));
            assert!(gap < 1e-5, "{name}: {gap}");
        }
    }
}

#[test]
fn keys_of_loras_are_refused_for_banks() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture("demo/base");
    let path = dir.path().join("train.toml");
    config(dir.path(), &base, "[]", &[]);
    for (setting, expected) in [
        ("adapter.use_dora=true", "adapter.use_dora: expected nothing: only LoRAs have it"),
        ("adapter.rank_pattern={'q_proj'=2}", "adapter.rank_pattern: expected nothing"),
        ("adapter.bias='all'", "adapter.bias: expected none: biases stay as they are, found all"),
        ("adapter.target_modules='q_proj'", "expected a list of names, or \"all-linear\""),
        ("adapter.init_lora_weights='olora'", "adapter.init_lora_weights: expected"),
    ] {
        let changes = ["kind=bank".to_owned(), setting.to_owned()];
        let error = TrainConfig::open(&path, &changes).unwrap_err().to_string();
        assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
    }
}
