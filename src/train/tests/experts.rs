//! What is trained is what runs and what is merged, for LoRAs of experts.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use candle_core::{Device, Tensor};

use crate::adapter::peft::Base;
use crate::adapter::{HostTensor, LinearUpdates, Lora};
use crate::arch::{ExpertPart, HfFolder};
use crate::bank::Regularizer;
use crate::checkpoint::Checkpoint;
use crate::jobs::{MergeSettings, merge};
use crate::model::{Batch, Decoder, Hook, LoadedAdapter, LoadedUpdates, LoraHook, NoAdapter, Residence, Sequence};
use crate::train::{Objective, TrainConfig, Trainable, train};

pub(super) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

pub(super) fn config(dir: &Path, base: &Path, targets: &str, more: &[&str]) -> TrainConfig {
    let file = dir.join("train.toml");
    let data = dir.join("rows.jsonl");
    let rows =
        "{\"prompt\": \"one two\", \"completion\": \"three\"}\n{\"prompt\": \"four\", \"completion\": \"five six\"}\n";
    std::fs::write(&data, rows).unwrap();
    let text = format!(
        "kind = 'lora'\nbase = '{}'\noutput = '{}'\n[data]\ntrain = '{}'\n[adapter]\nr = 2\nlora_alpha = 4\n\
         target_modules = ['q_proj']\ntarget_parameters = {targets}\n\
         [training]\nsteps = 3\nbatch_size = 2\nlearning_rate = 0.05\nwarmup_steps = 0\n",
        base.display(),
        dir.join("run").display(),
        data.display()
    );
    std::fs::write(&file, text).unwrap();
    TrainConfig::open(&file, &more.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap()
}

pub(super) fn logits(decoder: &Decoder, hook: &mut dyn Hook) -> Vec<f32> {
    let batch = Batch::new(&[Sequence { ids: vec![5, 9, 33, 12, 7, 40, 41, 8], routed: 8, ..Sequence::default() }]);
    let hidden = decoder.hidden(&batch, None, hook).unwrap();
    decoder.logits_at(&hidden, &[0, 3, 7]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
}

pub(super) fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn experts_that_were_trained_run_and_merge_to_the_same_model() {
    let base = fixture("convert/qwen3moe/model");
    for targets in ["['experts.gate_up_proj', 'experts.down_proj']", "['mlp.experts.down_proj']"] {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), &base, targets, &[]);
        let outcome = train(&config, false, &Device::Cpu, &AtomicBool::new(false), &mut |_| ()).unwrap();
        assert!(outcome.loss.unwrap().is_finite());

        let folder = HfFolder::open(&base).unwrap();
        let decoder = Decoder::open(&folder, Residence::Memory, &Device::Cpu).unwrap();
        let lora = Lora::open(&config.output).unwrap();
        lora.check_base(&folder.config).unwrap();
        let trained = LoadedAdapter::frozen(&lora.tensors, lora.config.scale(), &Device::Cpu).unwrap();
        let trained = logits(&decoder, &mut LoraHook(&trained.with_settings(&lora)));
        let plain = logits(&decoder, &mut NoAdapter);
        assert!(distance(&plain, &trained) > 1e-3, "nothing was learned");

        // As another adapter of PEFT, whose names are resolved in the base.
        let opened = LinearUpdates::open(&config.output, &Base::of(&Checkpoint::open(&base).unwrap()), &folder.config);
        let opened = LoadedUpdates::new(&opened.unwrap(), &Device::Cpu).unwrap();
        let found = logits(&decoder, &mut &opened);
        assert!(distance(&found, &trained) < 1e-5, "{}", distance(&found, &trained));

        let merged = dir.path().join("merged");
        let mut settings = MergeSettings::new(&base, [&config.output], &merged);
        settings.output.r#type = Some("f32".to_owned());
        merge(&settings, &|_| ()).unwrap().output.write(&settings.output.destination, &|_| ()).unwrap();
        let merged = Decoder::open(&HfFolder::open(&merged).unwrap(), Residence::Memory, &Device::Cpu).unwrap();
        let found = logits(&merged, &mut NoAdapter);
        assert!(distance(&found, &trained) < 1e-4, "{}", distance(&found, &trained));
    }
}

#[test]
fn every_factor_of_experts_that_are_used_gets_its_gradient() {
    let folder = HfFolder::open(&fixture("convert/qwen3moe/model")).unwrap();
    let decoder = Decoder::open(&folder, Residence::Memory, &Device::Cpu).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), folder.path(), "['experts.gate_up_proj', 'experts.down_proj']", &[]);
    let mut lora = Lora::fresh(dir.path(), config.lora_config().unwrap(), &folder.config, 1).unwrap();
    // B is zero in a fresh LoRA, so that A would get no gradient.
    for (number, tensor) in lora.tensors.values_mut().enumerate() {
        let value = |i: usize| ((i * 37 + number * 11) % 19) as f32 / 95.0 - 0.1;
        *tensor = HostTensor { shape: tensor.shape.clone(), values: (0..tensor.values.len()).map(value).collect() };
    }
    let sequences = [Sequence::completed((3..40).collect(), 2, Vec::new())];
    let gradients = |checkpoint_activations: bool| {
        let trainable = Trainable::lora(&lora, &Device::Cpu).unwrap();
        let objective = Objective {
            decoder: &decoder,
            trainable: &trainable,
            regularizer: Regularizer { prior: 0.0, balance: 0.0 },
            checkpoint_activations,
        };
        objective.gradients(&sequences, 1).unwrap()
    };
    let found = gradients(false);
    assert_eq!(found.by_name.len(), lora.tensors.len());
    let largest = |t: &Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    let again = gradients(true);
    for (name, gradient) in &found.by_name {
        assert!(largest(gradient) > 0.0, "{name}");
        let off = largest(&(gradient - &again.by_name[name]).unwrap());
        assert!(off < 1e-5 * largest(gradient).max(1e-3), "{name}: {off}");
    }
    // Against a central difference, for the value with the largest gradient in each kind of factor.
    for part in [ExpertPart::GateUp, ExpertPart::Down] {
        let names = lora.expert_factors().into_iter().find(|names| names.part == part).unwrap();
        for name in [names.a, names.b] {
            let values = found.by_name[&name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let place = (0..values.len()).max_by(|a, b| values[*a].abs().total_cmp(&values[*b].abs())).unwrap();
            let loss = |change: f32| {
                let mut lora = lora.clone();
                let tensor = lora.tensors.get_mut(&name).unwrap();
                let mut moved = tensor.values.to_vec();
                moved[place] += change;
                tensor.values = moved.into();
                let trainable = Trainable::lora(&lora, &Device::Cpu).unwrap();
                let regularizer = Regularizer { prior: 0.0, balance: 0.0 };
                let objective =
                    Objective { decoder: &decoder, trainable: &trainable, regularizer, checkpoint_activations: false };
                objective.gradients(&sequences, 1).unwrap().loss
            };
            let expected = (loss(2e-3) - loss(-2e-3)) / 4e-3;
            let found = f64::from(values[place]);
            assert!((found - expected).abs() < 0.03 * expected.abs() + 1e-3, "{name}: {found} {expected}");
        }
    }
}

#[test]
fn parameters_that_the_base_lacks_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture("convert/qwen3moe/model");
    let error = |config: &TrainConfig| {
        let error = train(config, false, &Device::Cpu, &AtomicBool::new(false), &mut |_| ()).unwrap_err().to_string();
        assert!(!config.output.exists() && error.lines().count() == 1);
        error
    };
    let found = error(&config(dir.path(), &base, "['experts.up_proj']", &[]));
    assert!(found.contains("experts.gate_up_proj, experts.down_proj, found experts.up_proj"), "{found}");
    let found = error(&config(dir.path(), &fixture("demo/base"), "['experts.down_proj']", &[]));
    assert!(found.contains("none, as the base has no experts"), "{found}");
}
