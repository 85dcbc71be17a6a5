//! Tests merging adapters in the forms in which people have them: names of wrappers and of other classes, folders of
//! mlx-lm, heads for tasks, files beside the adapter, and bases that were quantized while the adapter was trained.

#[path = "common/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use atombank::adapter::{HostTensor, save_tensors};
use program::{INPUT, USAGE, atombank, copy, done, fixture, refused_leaving, text};
use serde_json::{Value, json};

type Tensors = BTreeMap<String, HostTensor>;

const PREFIX: &str = "base_model.model.";

/// Gives a tensor another name.
type Rename = fn(&str) -> String;

/// A folder for a test's files, and a Llama with 256 hidden values and two layers.
struct Bench {
    dir: tempfile::TempDir,
    base: PathBuf,
}

/// Small numbers that BF16 can represent.
fn tensor(shape: &[usize], seed: usize) -> HostTensor {
    let value = |i: usize| ((i * 37 + seed * 101) % 129) as f32 / 1024.0 - 0.0625;
    HostTensor { shape: shape.to_vec(), values: (0..shape.iter().product()).map(value).collect() }
}

/// The transpose of a matrix.
fn turned(of: &HostTensor) -> HostTensor {
    let (rows, columns) = (of.shape[0], of.shape[1]);
    let values = (0..rows * columns).map(|i| of.values[i % rows * columns + i / rows]).collect();
    HostTensor { shape: vec![columns, rows], values }
}

/// Factors of rank 2 for q_proj of the layers before `layers`, without PEFT's prefix.
fn factors(layers: usize) -> Tensors {
    let mut tensors = Tensors::new();
    for layer in 0..layers {
        let name = |factor: &str| format!("model.layers.{layer}.self_attn.q_proj.{factor}.weight");
        tensors.insert(name("lora_A"), tensor(&[2, 256], layer));
        tensors.insert(name("lora_B"), tensor(&[256, 2], layer + 10));
    }
    tensors
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), base: fixture("convert/llama/model") }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An adapter's folder: tensors with PEFT's prefix where `prefix` is true, and settings.
    fn adapter(&self, name: &str, tensors: &Tensors, config: &Value) -> PathBuf {
        let folder = self.at(name);
        save_tensors(tensors, "adapter_model", &folder).unwrap();
        let mut json = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["q_proj"]});
        json.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        fs::write(folder.join("adapter_config.json"), json.to_string()).unwrap();
        folder
    }

    fn plain(&self) -> PathBuf {
        match self.at("plain") {
            folder if folder.exists() => folder,
            _ => self.adapter("plain", &renamed(&factors(2), |name| [PREFIX, name].concat()), &json!({})),
        }
    }

    /// A copy of the base with other fields in config.json.
    fn base_with(&self, name: &str, fields: Value) -> PathBuf {
        let folder = self.at(name);
        copy(&self.base, &folder);
        let path = folder.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        fs::write(path, config.to_string()).unwrap();
        folder
    }

    /// Merges, and returns the output and what was said.
    fn merge(&self, base: &Path, adapter: &Path, out: &str, options: &[&str]) -> (PathBuf, String) {
        let target = self.at(out);
        let ran = atombank(&[&["merge", text(base), text(adapter), "-o", text(&target)], options].concat());
        let said = String::from_utf8(ran.stderr).unwrap();
        assert!(ran.status.success(), "{said}");
        (target, said)
    }

    #[track_caller]
    fn refusal(&self, exit: i32, base: &Path, adapter: &Path, options: &[&str]) -> String {
        let target = self.at("never");
        let args = [&["merge", text(base), text(adapter), "-o", text(&target)], options].concat();
        refused_leaving(exit, self.dir.path(), &args)
    }
}

fn renamed(tensors: &Tensors, name: impl Fn(&str) -> String) -> Tensors {
    tensors.iter().map(|(own, tensor)| (name(own), tensor.clone())).collect()
}

fn compared(a: &Path, b: &Path) -> Value {
    let compared: Value = serde_json::from_str(&done(&["compare", text(a), text(b), "--json"])).unwrap();
    compared["totals"].clone()
}

#[track_caller]
fn assert_same(a: &Path, b: &Path) {
    let totals = compared(a, b);
    assert_eq!((&totals["compared"], &totals["only_in_a"]), (&totals["identical"], &totals["only_in_b"]), "{totals}");
    assert!(totals["compared"].as_u64().unwrap() > 10, "{totals}");
}

#[test]
fn names_of_what_wrapped_the_model_change_nothing() {
    let b = Bench::new();
    let (expected, _) = b.merge(&b.base, &b.plain(), "expected", &[]);
    let wrapped: [(&str, Rename); 4] = [
        ("compiled", |name| format!("{PREFIX}_orig_mod.{PREFIX}{name}")),
        ("parallel", |name| format!("module.{PREFIX}{}", name.replace(".weight", ".default.weight"))),
        ("checkpointed", |name| {
            format!("{PREFIX}{}", name.replace("self_attn", "_checkpoint_wrapped_module.self_attn"))
        }),
        ("sd", |name| name.replace("lora_A", "lora_down").replace("lora_B", "lora_up")),
    ];
    for (kind, name) in wrapped {
        let adapter = b.adapter(kind, &renamed(&factors(2), name), &json!({}));
        let (found, said) = b.merge(&b.base, &adapter, &format!("out-{kind}"), &[]);
        assert_same(&expected, &found);
        assert_eq!(said.contains("names of tensors are taken without"), kind != "sd", "{said}");
    }
}

#[test]
fn the_first_bytes_of_an_adapters_file_say_what_it_is() {
    let b = Bench::new();
    let (expected, _) = b.merge(&b.base, &b.plain(), "expected", &[]);
    let pickled = b.at("pickled.bin");
    let alone = b.at("alone.safetensors");
    fs::copy(b.plain().join("adapter_model.safetensors"), &alone).unwrap();
    done(&["convert", text(&alone), "-o", text(&pickled)]);
    for (name, file, kind) in
        [("adapter_model.bin", &alone, "a safetensors file"), ("adapter_model.safetensors", &pickled, "a PyTorch file")]
    {
        let folder = b.at(&format!("of-{name}"));
        fs::create_dir(&folder).unwrap();
        fs::copy(b.plain().join("adapter_config.json"), folder.join("adapter_config.json")).unwrap();
        fs::copy(file, folder.join(name)).unwrap();
        let (found, said) = b.merge(&b.base, &folder, &format!("out-{name}"), &[]);
        assert_same(&expected, &found);
        assert!(said.contains(&format!("{name}: by its first bytes it is {kind}, and is read as one")), "{said}");
    }
}

#[test]
fn an_adapter_of_the_inner_model_is_one_of_the_class_around_it() {
    let b = Bench::new();
    // A class without a family, whose names nothing but the base tells.
    let base = b.base_with("own", json!({"architectures": ["OwnForCausalLM"], "model_type": "own"}));
    let (expected, _) = b.merge(&base, &b.plain(), "expected", &[]);
    let inner = |name: &str| format!("{PREFIX}{}", name.strip_prefix("model.").unwrap());
    let adapter = b.adapter("inner", &renamed(&factors(2), inner), &json!({"task_type": "FEATURE_EXTRACTION"}));
    assert_same(&expected, &b.merge(&base, &adapter, "found", &[]).0);
    let wrong = b.adapter("wrong", &renamed(&factors(2), |name| format!("{PREFIX}decoder.{name}x")), &json!({}));
    let refused = b.refusal(INPUT, &base, &wrong, &[]);
    assert!(refused.contains("expected"), "{refused}");
}

#[test]
fn layers_that_the_class_does_not_load_stay_with_a_note() {
    let b = Bench::new();
    let base = b.base_with("short", json!({"num_hidden_layers": 1}));
    let adapter = b.adapter("first", &renamed(&factors(1), |name| [PREFIX, name].concat()), &json!({}));
    let (merged, said) = b.merge(&base, &adapter, "merged", &[]);
    let note = "1 modules that the model's class doesn't load stay as they are, like model.layers.1.self_attn.q_proj";
    assert!(said.contains(note), "{said}");
    assert_eq!(compared(&base, &merged)["compared"].as_u64().unwrap() - 1, compared(&base, &merged)["identical"]);
    // Where the class loads them, they are missing.
    let refused = b.refusal(INPUT, &b.base, &adapter, &[]);
    assert!(refused.contains("expected a tensor of this name, as target_modules asks for, found none"), "{refused}");
}

/// The same factors as mlx-lm has them.
fn of_mlx(b: &Bench, name: &str, config: &Value) -> PathBuf {
    let mut tensors = Tensors::new();
    for (own, tensor) in factors(2) {
        let own = own.replace(".lora_A.weight", ".lora_a").replace(".lora_B.weight", ".lora_b");
        tensors.insert(own, turned(&tensor));
    }
    let folder = b.at(name);
    save_tensors(&tensors, "adapters", &folder).unwrap();
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    folder
}

#[test]
fn adapters_of_mlx_lm_are_read_and_written() {
    let b = Bench::new();
    let config = json!({"fine_tune_type": "lora", "num_layers": 2, "batch_size": 4,
        "lora_parameters": {"rank": 2, "scale": 1.5, "dropout": 0.0, "keys": ["self_attn.q_proj"]}});
    let mlx = of_mlx(&b, "mlx", &config);
    let (expected, _) = b.merge(&b.base, &b.plain(), "expected", &[]);
    assert_same(&expected, &b.merge(&b.base, &mlx, "found", &[]).0);
    assert_same(&expected, &b.merge(&b.base, &mlx.join("adapters.safetensors"), "by-file", &[]).0);
    let inspected = done(&["inspect", text(&mlx)]);
    assert!(inspected.contains("LoRA of mlx-lm"), "{inspected}");
    // A file of an adapter is the adapter.
    assert_eq!(done(&["inspect", text(&mlx.join("adapters.safetensors"))]), inspected);
    let files = ["adapter_model.safetensors", "adapter_config.json"].map(|name| b.plain().join(name));
    for file in files {
        assert_eq!(done(&["inspect", text(&file)]), done(&["inspect", text(&b.plain())]));
    }
    // Written from PEFT's folder, it is the same file.
    let written = b.at("written");
    done(&["convert", text(&b.plain()), "--base", text(&b.base), "-o", text(&written), "--to", "mlx", "--quiet"]);
    let totals = compared(&mlx.join("adapters.safetensors"), &written.join("adapters.safetensors"));
    assert_eq!((&totals["compared"], &totals["identical"]), (&json!(4), &json!(4)), "{totals}");
    let json: Value = serde_json::from_slice(&fs::read(written.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(json["lora_parameters"], config["lora_parameters"]);
    // Ranks and scales of two LoRAs become one rank and one scale.
    let (plain, half) = (b.plain(), format!("{}=0.5", text(&mlx)));
    let both = b.at("both");
    let args = ["merge", text(&b.base), text(&plain), &half];
    done(&[&args[..], &["-o", text(&both), "--to", "mlx", "--quiet"]].concat());
    let sum = b.at("sum");
    done(&[&args[..], &["-o", text(&sum), "--type", "f32", "--quiet"]].concat());
    let (by_both, _) = b.merge(&b.base, &both, "by-both", &["--type", "f32"]);
    assert!(compared(&sum, &by_both)["relative_error"].as_f64().unwrap() < 1e-6);
    // Experts in three dimensions, and settings that aren't a LoRA's.
    let wrong = of_mlx(&b, "wrong", &json!({"fine_tune_type": "other"}));
    let refused = b.refusal(INPUT, &b.base, &wrong, &[]);
    assert!(refused.contains("fine_tune_type: expected lora, dora or full, found \"other\""), "{refused}");
    let missing = of_mlx(&b, "missing", &json!({}));
    assert!(b.refusal(INPUT, &b.base, &missing, &[]).contains("lora_parameters"));
}

#[test]
fn a_model_that_mlx_lm_tuned_without_factors_has_whole_tensors() {
    let b = Bench::new();
    let folder = b.at("full");
    let tensors = Tensors::from([("model.norm.weight".to_owned(), tensor(&[256], 3))]);
    save_tensors(&tensors, "adapters", &folder).unwrap();
    fs::write(folder.join("adapter_config.json"), json!({"fine_tune_type": "full"}).to_string()).unwrap();
    let (merged, _) = b.merge(&b.base, &folder, "merged", &[]);
    let totals = compared(&b.base, &merged);
    assert_eq!(totals["compared"].as_u64().unwrap() - 1, totals["identical"]);
    assert!(done(&["inspect", text(&folder)]).contains("whole tensors of mlx-lm"));
}

#[test]
fn a_head_for_a_task_makes_the_model_one_of_that_class() {
    let b = Bench::new();
    let mut tensors = renamed(&factors(2), |name| [PREFIX, name].concat());
    tensors.insert(format!("{PREFIX}score.weight"), tensor(&[3, 256], 5));
    let task = json!({"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]});
    let adapter = b.adapter("classifier", &tensors, &task);
    let (merged, said) = b.merge(&b.base, &adapter, "merged", &[]);
    assert!(said.contains("the result is a LlamaForSequenceClassification, with the adapter's head"), "{said}");
    let config: Value = serde_json::from_slice(&fs::read(merged.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"], json!(["LlamaForSequenceClassification"]));
    assert_eq!(config["id2label"]["2"], "LABEL_2");
    let (plain, _) = b.merge(&b.base, &b.plain(), "plain-merged", &[]);
    let totals = compared(&plain, &merged);
    assert_eq!(totals["compared"], totals["identical"]);
    assert_eq!((&totals["only_in_a"], &totals["only_in_b"]), (&json!(1), &json!(1)), "lm_head for score: {totals}");
    // A class without such a head.
    let base = b.base_with("mamba", json!({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}));
    let refused = b.refusal(INPUT, &base, &adapter, &[]);
    assert!(refused.contains("SEQ_CLS, which would need MambaForSequenceClassification"), "{refused}");
}

#[test]
fn what_was_trained_beside_the_adapter_is_merged_or_named() {
    let b = Bench::new();
    let adapter = b.at("beside");
    copy(&b.plain(), &adapter);
    let beside = |name: &str, tensors: &Tensors| {
        let folder = b.at("made");
        save_tensors(tensors, "tensors", &folder).unwrap();
        let target = adapter.join(name);
        done(&["convert", text(&folder.join("tensors.safetensors")), "-o", text(&target), "--quiet", "--overwrite"]);
        fs::remove_dir_all(folder).unwrap();
    };
    let norm = |name: &str| Tensors::from([(format!("{PREFIX}{name}"), tensor(&[256], 3))]);
    beside("non_lora_trainables.bin", &norm("model.norm.weight"));
    let (merged, said) = b.merge(&b.base, &adapter, "merged", &[]);
    assert!(
        said.contains("non_lora_trainables.bin, which was trained with the adapter, is merged: 1 tensors"),
        "{said}"
    );
    let (plain, _) = b.merge(&b.base, &b.plain(), "plain-merged", &[]);
    let totals = compared(&plain, &merged);
    assert_eq!(totals["compared"].as_u64().unwrap() - 1, totals["identical"]);
    // A tensor that the base doesn't have, and a file that nothing is known about.
    beside("non_lora_trainables.bin", &norm("model.mm_projector.0.weight"));
    beside("other.safetensors", &norm("x"));
    let (merged, said) = b.merge(&b.base, &adapter, "named", &[]);
    assert!(said.contains("which are not merged: non_lora_trainables.bin ("), "{said}");
    assert!(said.contains(", other.safetensors"), "{said}");
    assert_same(&plain, &merged);
}

#[test]
fn a_base_is_rounded_as_it_was_while_the_adapter_was_trained() {
    let b = Bench::new();
    let (plain, _) = b.merge(&b.base, &b.plain(), "plain-merged", &[]);
    let mut errors = Vec::new();
    for options in [&["--base-quant", "int8"][..], &["--base-quant", "nf4"], &["--base-quant", "fp4"]] {
        let (merged, said) = b.merge(&b.base, &b.plain(), &options.concat(), options);
        assert!(said.contains("the weights of 14 linear layers are rounded to"), "{said}");
        let totals = compared(&plain, &merged);
        // Norms, embeddings and head stay.
        assert_eq!(totals["compared"].as_u64().unwrap() - 14, totals["identical"], "{totals}");
        errors.push(totals["relative_error"].as_f64().unwrap());
    }
    assert!(errors.is_sorted() && errors[0] > 1e-4 && errors[2] < 0.2, "{errors:?}");
    let twice = ["--base-quant", "nf4", "--double-quant"];
    let (nested, _) = b.merge(&b.base, &b.plain(), "nested", &twice);
    let difference = compared(&b.at("--base-quantnf4"), &nested)["relative_error"].as_f64().unwrap();
    assert!(difference > 0.0 && difference < errors[1], "{difference}");
    let refused = b.refusal(USAGE, &b.base, &b.plain(), &["--base-quant", "int8", "--double-quant"]);
    assert!(refused.contains("--double-quant: expected"), "{refused}");
    let refused = b.refusal(USAGE, &b.base, &b.plain(), &["--base-quant", "nf4", "--to", "lora"]);
    assert!(refused.contains("--base-quant: expected a model as output, found a LoRA"), "{refused}");
}

#[test]
fn factors_of_experts_may_have_the_parameters_name() {
    let b = Bench::new();
    let base = fixture("convert/qwen3moe/model");
    let config: Value = serde_json::from_slice(&fs::read(base.join("config.json")).unwrap()).unwrap();
    let size = |name: &str| config[name].as_u64().unwrap() as usize;
    let (experts, inner, hidden) = (size("num_local_experts"), size("moe_intermediate_size"), size("hidden_size"));
    let mut tensors = Tensors::new();
    tensors.insert("lora_A.weight".to_owned(), tensor(&[experts * 2, inner], 1));
    tensors.insert("lora_B.weight".to_owned(), tensor(&[hidden, experts * 2], 2));
    let module = format!("{PREFIX}model.layers.0.mlp.experts");
    let settings = json!({"target_modules": [], "target_parameters": ["layers.0.mlp.experts.down_proj"]});
    let pefts = b.adapter("pefts", &renamed(&tensors, |name| format!("{module}.{name}")), &settings);
    let others = renamed(&tensors, |name| format!("{module}.down_proj.{name}"));
    let others = b.adapter("others", &others, &json!({"target_modules": []}));
    let (expected, _) = b.merge(&base, &pefts, "expected", &[]);
    assert_same(&expected, &b.merge(&base, &others, "found", &[]).0);
    assert!(compared(&base, &expected)["identical"] != compared(&base, &expected)["compared"]);
}

#[test]
fn models_with_tied_and_untied_heads_and_buffers_are_combined() {
    let b = Bench::new();
    let base = fixture("convert/qwen2/model");
    let (weights, _) = b.merge(&base, &whole_head(&b, &base), "untied", &[]);
    let config: Value = serde_json::from_slice(&fs::read(weights.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["tie_word_embeddings"], false);
    let target = b.at("mean");
    let args = ["merge", text(&base), text(&base), text(&weights), "--method", "linear", "-o", text(&target)];
    let ran = atombank(&args);
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.success(), "{said}");
    assert!(said.contains("there the embeddings are the head, and the result has both"), "{said}");
    let config: Value = serde_json::from_slice(&fs::read(target.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["tie_word_embeddings"], false);
    assert_eq!(compared(&weights, &target)["only_in_a"], 0);
}

/// An adapter that has another head for a tied base.
fn whole_head(b: &Bench, base: &Path) -> PathBuf {
    let config: Value = serde_json::from_slice(&fs::read(base.join("config.json")).unwrap()).unwrap();
    let size = |name: &str| config[name].as_u64().unwrap() as usize;
    let head = tensor(&[size("vocab_size"), size("hidden_size")], 4);
    let tensors = Tensors::from([(format!("{PREFIX}lm_head.weight"), head)]);
    b.adapter("head", &tensors, &json!({"target_modules": [], "modules_to_save": ["lm_head"]}))
}
