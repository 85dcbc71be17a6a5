//! Tests merging as a user does it: into folders and GGUFs, with several adapters and whole models,
//! and refusals.

#[path = "common/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use atombank::adapter::{HostTensor, save_tensors};
use program::{INPUT, USAGE, atombank, copy, done, fixture, refused_leaving, text};
use serde_json::{Value, json};

type Tensors = BTreeMap<String, HostTensor>;

/// A Llama with a LoRA of rank 2 on q_proj and down_proj, and other files that tests make.
struct Bench {
    dir: tempfile::TempDir,
    base: PathBuf,
}

/// Pseudorandom numbers between -1 and 1.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn tensor(shape: &[usize], seed: u64) -> HostTensor {
    HostTensor { shape: shape.to_vec(), values: values(shape.iter().product(), seed).into() }
}

/// Numbers that BF16 can represent, because whole tensors are rounded to the base's type.
fn rounded(shape: &[usize], seed: u64) -> HostTensor {
    let tensor = tensor(shape, seed);
    HostTensor { values: tensor.values.iter().map(|v| (v * 128.0).round() / 128.0).collect(), ..tensor }
}

/// Changes the bytes of tensor `name` in a safetensors file.
fn change_bytes(file: &Path, name: &str, change: impl FnOnce(&mut [u8])) {
    let mut bytes = fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let [start, end] = [0, 1].map(|i| header[name]["data_offsets"][i].as_u64().unwrap() as usize + 8 + length);
    change(&mut bytes[start..end]);
    fs::write(file, bytes).unwrap();
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), base: fixture("convert/llama/model") }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A LoRA with its own numbers, changed by `config` and `change`.
    fn lora(&self, name: &str, seed: u64, config: Value, change: impl FnOnce(&mut Tensors)) -> PathBuf {
        let folder = self.at(name);
        let mut tensors = Tensors::new();
        for layer in 0..2 {
            for (module, d_out, d_in) in [("self_attn.q_proj", 256, 256), ("mlp.down_proj", 256, 512)] {
                let name = |factor| format!("base_model.model.model.layers.{layer}.{module}.{factor}.weight");
                tensors.insert(name("lora_A"), tensor(&[2, d_in], seed + layer));
                tensors.insert(name("lora_B"), tensor(&[d_out, 2], seed + 10 + layer));
            }
        }
        change(&mut tensors);
        save_tensors(&tensors, "adapter_model", &folder).unwrap();
        let mut json = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"]});
        json.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        fs::write(folder.join("adapter_config.json"), json.to_string()).unwrap();
        folder
    }

    fn plain(&self, name: &str, seed: u64) -> PathBuf {
        self.lora(name, seed, json!({}), |_| ())
    }

    fn merge(&self, base: &Path, others: &[&str], out: &str, options: &[&str]) -> PathBuf {
        let target = self.at(out);
        done(&[&["merge", text(base)], others, &["-o", text(&target), "--quiet"], options].concat());
        target
    }

    /// The error of a merge, which must be one line on stderr; nothing may be written.
    #[track_caller]
    fn refusal(&self, exit: i32, base: &Path, others: &[&str], options: &[&str]) -> String {
        let target = self.at("never");
        refused_leaving(
            exit,
            self.dir.path(),
            &[&["merge", text(base)], others, &["-o", text(&target)], options].concat(),
        )
    }
}

/// The comparison of two models by `atombank compare`.
fn compared(a: &Path, b: &Path) -> Value {
    serde_json::from_str(&done(&["compare", text(a), text(b), "--json"])).unwrap()
}

fn assert_same(a: &Path, b: &Path) {
    let totals = &compared(a, b)["totals"];
    assert_eq!(totals["compared"], totals["identical"], "{totals}");
    assert!(
        totals["compared"].as_u64().unwrap() > 10 && totals["only_in_a"] == 0 && totals["only_in_b"] == 0,
        "{totals}"
    );
}

fn relative_error(a: &Path, b: &Path) -> f64 {
    compared(a, b)["totals"]["relative_error"].as_f64().unwrap()
}

#[test]
fn a_gguf_base_gives_what_the_folder_gives() {
    let b = Bench::new();
    let lora = b.lora("lora", 1, json!({"modules_to_save": ["norm"]}), |tensors| {
        tensors.insert("base_model.model.model.norm.weight".into(), rounded(&[256], 9));
        for layer in 0..2 {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                tensors.insert(format!("base_model.model.model.layers.{layer}.{norm}.weight"), rounded(&[256], layer));
            }
        }
    });
    let (gguf, lora_gguf) = (b.at("base.gguf"), b.at("plain.gguf"));
    done(&["convert", text(&b.base), "-o", text(&gguf), "--type", "f32", "--quiet"]);
    let from_folder = b.merge(&b.base, &[text(&lora)], "folder.gguf", &["--type", "f32"]);
    let from_gguf = b.merge(&gguf, &[text(&lora)], "gguf.gguf", &[]);
    assert_same(&from_folder, &from_gguf);
    let back = b.merge(&gguf, &[text(&lora)], "back", &["--type", "f32"]);
    assert_same(&back, &from_gguf);
    // An adapter in a GGUF gives the same result as its folder.
    let plain = b.plain("plain", 1);
    done(&["convert", text(&plain), "--base", text(&b.base), "-o", text(&lora_gguf), "--quiet"]);
    let of_folder = b.merge(&b.base, &[text(&plain)], "of-folder", &[]);
    assert_same(&of_folder, &b.merge(&b.base, &[text(&lora_gguf)], "of-gguf", &[]));
    // Merging a folder into a mixture in one pass gives the same result as in two.
    let one = b.merge(&b.base, &[text(&plain)], "one.gguf", &["--type", "Q4_K_M"]);
    let f32 = b.merge(&b.base, &[text(&plain)], "two-f32.gguf", &["--type", "f32"]);
    let two = b.at("two.gguf");
    done(&["quantize", text(&f32), "-o", text(&two), "--type", "Q4_K_M", "--quiet"]);
    assert_eq!(fs::read(one).unwrap(), fs::read(two).unwrap());
}

#[test]
fn an_input_after_the_first_is_not_replaced() {
    let bench = Bench::new();
    let adapter = bench.plain("adapter", 1);
    let base = copy(&bench.base, &bench.at("base"));
    let weights = adapter.join("adapter_model.safetensors");
    let before = fs::read(&weights).unwrap();
    let dotted = bench.dir.path().join("base/../adapter");
    for (output, more) in [(&adapter, &[][..]), (&dotted, &[]), (&weights, &["--to", "safetensors"])] {
        let args = [&["merge", text(&base), text(&adapter), "-o", text(output), "--overwrite"], more].concat();
        let line = refused_leaving(INPUT, bench.dir.path(), &args);
        let expected = format!("{}: output: expected a place apart from {}", text(output), text(&adapter));
        assert!(line.contains(&expected) && line.contains("; --overwrite would delete what was read"), "{line}");
        assert_eq!(fs::read(&weights).unwrap(), before);
    }
    // The base may be replaced by what is made of it.
    let merged = bench.merge(&base, &[text(&adapter)], "merged", &[]);
    assert_eq!(bench.merge(&base, &[text(&adapter)], "base", &["--overwrite"]), base);
    assert_same(&merged, &base);
}

#[test]
fn a_quantized_base_keeps_its_types_and_says_what_that_costs() {
    let b = Bench::new();
    let lora = b.plain("lora", 1);
    let (q4, target) = (b.at("q4.gguf"), b.at("merged.gguf"));
    done(&["convert", text(&b.base), "-o", text(&q4), "--type", "Q4_K_M", "--quiet"]);
    let out = atombank(&["merge", text(&q4), text(&lora), "-o", text(&target)]);
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success(), "{stderr}");
    assert!(
        stderr.contains("note: 4 quantized tensors are changed and quantized again: that adds a relative error of"),
        "{stderr}"
    );
    let comparison = compared(&q4, &target);
    assert_eq!(
        comparison["totals"]["identical"].as_u64().unwrap() + 4,
        comparison["totals"]["compared"].as_u64().unwrap()
    );
    for tensor in comparison["tensors"].as_array().unwrap() {
        assert_eq!(tensor["a"]["dtype"], tensor["b"]["dtype"], "{tensor}");
    }
    let refused = b.refusal(INPUT, &q4, &[text(&lora)], &["--keep-base"]);
    assert!(refused.contains("expected values that are not quantized, found Q"), "{refused}");
    let kept = b.refusal(USAGE, &q4, &[text(&lora)], &["--type", "f16", "--to", "gguf"]);
    assert!(kept.contains("--type: expected source or a mixture, from GGUF to GGUF"), "{kept}");
}

#[test]
fn several_adapters_add_up_and_become_one() {
    let b = Bench::new();
    let (x, y) = (b.plain("x", 1), b.plain("y", 5));
    let (half, more) = (format!("{}=0.5", text(&x)), format!("{}=-2", text(&y)));
    let f32 = &["--type", "f32"][..];
    let both = b.merge(&b.base, &[&half, &more], "both", f32);
    let first = b.merge(&b.base, &[&half], "first", f32);
    assert!(relative_error(&both, &b.merge(&first, &[&more], "second", f32)) < 1e-6);
    // Other weights for some modules: with weight 0, the adapters have no effect on down_proj.
    let only = |name: &str, seed: u64| {
        b.lora(name, seed, json!({"target_modules": ["q_proj"]}), |t| t.retain(|name, _| name.contains("q_proj")))
    };
    let weighted = b.merge(&b.base, &[&half, &more], "weighted", &["--weights", "mlp.*=0,0", "--type", "f32"]);
    let (of_x, of_y) = (format!("{}=0.5", text(&only("only-x", 1))), format!("{}=-2", text(&only("only-y", 5))));
    assert_same(&weighted, &b.merge(&b.base, &[&of_x, &of_y], "only", f32));
    // One LoRA made of both is as exact as its factors; truncated to its full rank, it stays the
    // same.
    let one = b.merge(&b.base, &[&half, &more], "one", &["--to", "lora"]);
    let config: Value = serde_json::from_slice(&fs::read(one.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["r"], &config["target_modules"]), (&json!(4), &json!(["q_proj", "down_proj"])));
    assert_eq!(config["base_model_name_or_path"], text(&b.base), "as the base was named");
    assert!(relative_error(&both, &b.merge(&b.base, &[text(&one)], "by-one", f32)) < 1e-6);
    let cut = b.merge(&b.base, &[&half, &more], "cut", &["--to", "lora", "--rank", "4", "--type", "f32"]);
    assert!(relative_error(&both, &b.merge(&b.base, &[text(&cut)], "by-cut", f32)) < 1e-5);
    // The error of a lower rank is printed, whether a LoRA or a model is written, and it is
    // correct.
    let base = b.merge(&b.base, &[&format!("{}=0", text(&x))], "nothing", f32);
    let printed = |out: &str, options: &[&str]| {
        let out = b.at(out);
        let args = [&["merge", text(&b.base), &half, &more, "-o", text(&out), "--quiet"][..], options].concat();
        let table = done(&args);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("module ") && lines[1].starts_with("model.layers.0.self_attn.q_proj "), "{table}");
        assert_eq!(lines.len(), 6, "{table}");
        let last = lines[5].strip_prefix(&format!("{}: 4 modules cut to a rank; energy ", text(&out))).unwrap();
        let (energy, error) = last.split_once(", error ").unwrap();
        [energy, error].map(|number| number.parse::<f64>().unwrap())
    };
    let [energy, error] = printed("cut-2", &["--to", "lora", "--rank", "2"]);
    let by_two = b.merge(&b.base, &[text(&b.at("cut-2"))], "by-two", f32);
    let lost = relative_error(&both, &by_two) / relative_error(&both, &base);
    assert!(error > 0.1 && (error / lost - 1.0).abs() < 1e-3, "{error} is printed, {lost} is lost");
    assert!((energy + error * error - 1.0).abs() < 1e-3);
    assert_eq!(printed("svd", &["--method", "svd", "--rank", "2", "--type", "f32"]), [energy, error]);
    assert!(relative_error(&by_two, &b.at("svd")) < 1e-6);
    // linear weights factors by roots of the weights, which gives another model.
    let linear = b.merge(&b.base, &[text(&x), text(&y)], "linear", &["--method", "linear", "--type", "f32"]);
    let sum = b.merge(&b.base, &[text(&x), text(&y)], "sum", f32);
    assert!(relative_error(&sum, &linear) > 1e-2);
    let cat = b.merge(&b.base, &[text(&x), text(&y)], "cat", &["--method", "cat", "--type", "f32"]);
    assert!(relative_error(&sum, &cat) < 1e-6);
}

#[test]
fn a_method_that_makes_nothing_of_a_single_model_s_weight_says_so() {
    let b = Bench::new();
    let lora = b.plain("lora", 1);
    let tuned = b.merge(&b.base, &[text(&lora)], "tuned", &["--type", "f32"]);
    let half = format!("{}=0.5", text(&tuned));
    let said = |model: &str, options: &[&str]| {
        let target = b.at("out");
        let args = [&["merge", text(&b.base), model, "-o", text(&target), "--overwrite"], options].concat();
        let out = atombank(&args);
        assert!(out.status.success(), "{args:?}");
        String::from_utf8(out.stderr).unwrap()
    };
    let linear = said(&half, &["--method", "linear", "--type", "f32"]);
    assert!(linear.contains("note: linear is a mean of the models without the base, and there is one"), "{linear}");
    assert_eq!(relative_error(&tuned, &b.at("out")), 0.0);
    assert!(said(text(&tuned), &["--method", "karcher"]).contains("note: karcher is a mean of the models"));
    let ties = said(&half, &["--method", "ties", "--type", "f32"]);
    assert!(ties.contains("its weight changes nothing, unless --normalize is false"), "{ties}");
    assert!(relative_error(&tuned, &b.at("out")) < 1e-6);
    // Where the weight has an effect, there is no note.
    for options in [
        &["--method", "task_arithmetic"][..],
        &["--method", "linear", "--normalize", "false"],
        &["--method", "ties", "--normalize", "false"],
    ] {
        assert!(!said(&half, options).contains("note: "), "{options:?}");
    }
    assert!(!said(text(&tuned), &["--method", "ties"]).contains("note: "));
}

#[test]
fn whole_models_become_one() {
    let b = Bench::new();
    let f32 = &["--type", "f32"][..];
    let model = |name: &str, seed: u64| {
        let lora = b.plain(&format!("lora-{name}"), seed);
        b.merge(&b.base, &[text(&lora)], name, f32)
    };
    let (x, y) = (model("x", 1), model("y", 5));
    let (half, more) = (format!("{}=0.5", text(&x)), format!("{}=-2", text(&y)));
    let task = b.merge(&b.base, &[&half, &more], "task", &["--method", "task_arithmetic", "--type", "f32"]);
    let (lora_x, lora_y) = (format!("{}=0.5", text(&b.at("lora-x"))), format!("{}=-2", text(&b.at("lora-y"))));
    assert!(relative_error(&task, &b.merge(&b.base, &[&lora_x, &lora_y], "sum", f32)) < 1e-6);
    let slerp = b.merge(&x, &[text(&y)], "slerp", &["--method", "slerp", "--t", "1"]);
    assert!(relative_error(&y, &slerp) < 1e-6, "all the way to the other");
    // Combining a model with itself gives the same model, also with differences from another base.
    let twice = b.merge(&b.base, &[text(&x), text(&x)], "twice", &["--method", "nuslerp", "--type", "f32"]);
    assert!(relative_error(&x, &twice) < 1e-6);
    let of_models = b.merge(&b.base, &[text(&x), text(&y)], "of-models", &["--method", "nuslerp", "--type", "f32"]);
    let other_base = b.merge(&x, &[text(&x), text(&y)], "other-base", &["--method", "nuslerp", "--type", "f32"]);
    assert!(relative_error(&of_models, &other_base) < 1e-6, "the base has no share");
    let updates = ["--method", "nuslerp", "--nuslerp-updates", "--type", "f32"];
    let of_updates = b.merge(&b.base, &[text(&x), text(&y)], "of-updates", &updates);
    assert!(relative_error(&of_models, &of_updates) > 1e-3);
    let twice = b.merge(&b.base, &[text(&x)], "scaled", &["--method", "passthrough", "--scale", "2", "--type", "f32"]);
    let sum = b.merge(&b.base, &[text(&x), text(&x)], "doubled", &["--method", "linear", "--normalize", "false"]);
    assert!(relative_error(&sum, &twice) < 1e-2 && relative_error(&x, &twice) > 0.9);
    let near = b.merge(&b.base, &[text(&x)], "near", &["--method", "nearswap", "--t", "1e9", "--type", "f32"]);
    assert_eq!(relative_error(&x, &near), 0.0, "all values are near enough");
    let of_one = ["--method", "arcee_fusion", "--seed", "3", "--type", "f32"];
    b.merge(&b.base, &[text(&x)], "fusion", &of_one);
    for options in [
        &["--method", "ties", "--density", "0.4"][..],
        &["--method", "karcher"],
        &["--method", "multislerp", "--multislerp-updates", "--normalize-weights", "false", "--eps", "1e-6"],
        &["--method", "ram", "--epsilon", "1e-4"],
        &["--method", "ramplus_tl", "--r", "0.2", "--alpha", "0.5"],
        &["--method", "dare_ties", "--density", "0.3", "--seed", "4"],
    ] {
        b.merge(&b.base, &[text(&x), text(&y)], "other.gguf", &[options, &["--type", "Q8_0", "--overwrite"]].concat());
    }
    for (options, expected) in [
        (&["--method", "sce", "--gamma", "0.1"][..], "found sce"),
        (&["--method", "linear", "--rank", "4"], "--rank: expected no such option for models, found linear"),
        (&["--method", "della", "--epsilon", "nan"], "--epsilon: expected a finite number, found NaN"),
        (&["--method", "sce", "--select-topk", "nan"], "--select-topk: expected a number from 0 to 1, found NaN"),
        (&["--method", "breadcrumbs", "--gamma", "7"], "--gamma: expected a number from 0 to 1, found 7"),
        (&["--method", "ties", "--lambda", "inf"], "--lambda: expected a finite number, found inf"),
        (&["--method", "ties", "--density", "nan"], "--density: expected"),
        (&["--method", "ties", "--scale", "2"], "--scale: expected a --method that it says something to: passthrough"),
        (&["--method", "ramplus_tl", "--alpha", "nan"], "--alpha: expected a finite number, found NaN"),
        (&["--method", "nearswap", "--t", "1"], "expected one model beside the base for nearswap, found 2"),
    ] {
        let refused = b.refusal(USAGE, &b.base, &[text(&x), text(&y)], options);
        assert!(refused.contains(expected), "{refused}");
    }
    let refused = b.refusal(INPUT, &b.base, &[&half, text(&y)], &["--method", "karcher"]);
    assert!(refused.contains("its weight: expected none for karcher, found 0.5"), "{refused}");
    let refused = b.refusal(USAGE, &b.base, &[text(&x), text(&y)], &[]);
    assert!(refused.contains("--method: expected a way to make one model of several: linear, slerp"), "{refused}");
    let refused = b.refusal(USAGE, &b.base, &[text(&x)], &["--method", "slerp"]);
    assert!(refused.contains("--t: expected a number from 0 to 1 for slerp, found none"), "{refused}");
    let refused =
        b.refusal(INPUT, &b.base, &[text(&x), text(&fixture("convert/qwen2/model"))], &["--method", "linear"]);
    assert!(refused.contains("qwen2"), "{refused}");
    let refused = b.refusal(USAGE, &b.base, &[text(&x)], &["--method", "tie"]);
    assert!(refused.contains("--method: expected one of linear, slerp"), "{refused}");
}

#[test]
fn one_side_of_tied_embeddings_unties_them() {
    let b = Bench::new();
    let base = fixture("convert/qwen2/model");
    let config: Value = serde_json::from_slice(&fs::read(base.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["tie_word_embeddings"], true);
    let (vocab, hidden) =
        (config["vocab_size"].as_u64().unwrap() as usize, config["hidden_size"].as_u64().unwrap() as usize);
    let lora = b.lora("lora", 1, json!({"target_modules": ["lm_head"]}), |tensors| {
        tensors.clear();
        tensors.insert("base_model.model.lm_head.lora_A.weight".into(), tensor(&[2, hidden], 1));
        tensors.insert("base_model.model.lm_head.lora_B.weight".into(), tensor(&[vocab, 2], 2));
    });
    let merged = b.merge(&base, &[text(&lora)], "merged", &[]);
    let config: Value = serde_json::from_slice(&fs::read(merged.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["tie_word_embeddings"], false);
    let totals = &compared(&base, &merged)["totals"];
    assert_eq!((&totals["only_in_b"], &totals["identical"]), (&json!(1), &totals["compared"]), "{totals}");
    let gguf = b.merge(&base, &[text(&lora)], "merged.gguf", &["--type", "f32"]);
    assert_eq!(compared(&merged, &gguf)["totals"]["only_in_a"], 0, "the head is in the GGUF too");
}

#[test]
fn adapters_that_do_not_fit_are_refused_by_name() {
    let b = Bench::new();
    const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";
    type Change = Box<dyn FnOnce(&mut Tensors)>;
    let set = |name: String, value: HostTensor| -> Change { Box::new(move |t| drop(t.insert(name, value))) };
    let drop_one = |name: String| -> Change { Box::new(move |t| drop(t.remove(&name))) };
    let none = || -> Change { Box::new(|_| ()) };
    let cases: Vec<(Value, Change, &str)> = vec![
        (json!({"peft_type": "NEW"}), none(), "peft_type: expected one of the kinds this version merges"),
        (json!({"peft_type": "XLORA"}), none(), "found XLORA, which picks among several for each"),
        (json!({"r": 4}), none(), "lora_A.weight\": expected [4, "),
        (
            json!({"init_lora_weights": "pissa"}),
            none(),
            "init_lora_weights: expected an initialisation that leaves the base",
        ),
        (json!({"use_new": 1}), none(), "use_new: expected a field this version knows"),
        (
            json!({}),
            drop_one(format!("{Q}.lora_B.weight")),
            "q_proj.lora_B.weight\": expected a tensor of this name, found none",
        ),
        (
            json!({"target_modules": ["q_proj", "down_proj", "up_proj"]}),
            none(),
            "up_proj.lora_A.weight\": expected a tensor of this name, as target_modules asks for",
        ),
        (
            json!({}),
            set(format!("{Q}.lora_C.weight"), tensor(&[2], 1)),
            "lora_C.weight\": expected a tensor that this kind of adapter has",
        ),
        (
            json!({}),
            set(format!("{Q}.lora_A.weight"), tensor(&[2, 128], 1)),
            "expected [2, 256] by adapter_config.json and the base model",
        ),
        (
            json!({}),
            set("base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight".into(), tensor(&[2, 256], 1)),
            "expected a module of the base model",
        ),
        (json!({"modules_to_save": ["lm_head"]}), none(), "modules_to_save: expected tensors of \"lm_head\""),
    ];
    for (i, (config, change, expected)) in cases.into_iter().enumerate() {
        let lora = b.lora(&format!("bad-{i}"), 1, config, change);
        let refused = b.refusal(INPUT, &b.base, &[text(&lora)], &[]);
        assert!(refused.contains(expected), "{refused}");
    }
    let nan = b.plain("nan", 1);
    let bytes = f32::NAN.to_le_bytes();
    change_bytes(&nan.join("adapter_model.safetensors"), &format!("{Q}.lora_A.weight"), |a| {
        a[..4].copy_from_slice(&bytes)
    });
    let refused = b.refusal(INPUT, &b.base, &[text(&nan)], &[]);
    assert!(refused.contains("q_proj.lora_A.weight\": expected finite numbers, found a NaN"), "{refused}");
    let saves = |name: &str| {
        b.lora(name, 1, json!({"modules_to_save": ["model.norm"]}), |t| {
            drop(t.insert("base_model.model.model.norm.weight".into(), tensor(&[256], 3)));
        })
    };
    let (x, y) = (saves("x"), saves("y"));
    let refused = b.refusal(INPUT, &b.base, &[text(&x), text(&y)], &[]);
    assert!(
        refused.contains("\"model.norm.weight\": expected at most one adapter that has it whole (modules_to_save)"),
        "{refused}"
    );
    for (options, expected) in [
        (&["--rank", "2"][..], "--rank: expected a --method that it says something to: linear, cat, svd,"),
        (&["--method", "svd", "--density", "0.5"], "--density: expected a --method that it says something to: ties,"),
        (&["--method", "ties", "--gamma", "0.1"], "--gamma: expected no such option for adapters, found ties"),
    ] {
        let refused = b.refusal(USAGE, &b.base, &[text(&x)], options);
        assert!(refused.contains(expected), "{refused}");
    }
    let refused = b.refusal(INPUT, &b.base, &[text(&x)], &["--method", "ties", "--density", "0.5"]);
    assert!(refused.contains("expected nothing but low-rank updates, to combine by ties"), "{refused}");
    let refused = b.refusal(INPUT, &b.base, &[text(&b.at("nowhere"))], &[]);
    assert!(refused.contains("nowhere: expected an adapter's folder or file, or a model, found nothing"), "{refused}");
    assert!(!b.at("never").exists());
}

#[test]
fn outputs_of_zeros_under_dora_are_refused() {
    let b = Bench::new();
    let model = copy(&b.base, &b.at("zeros"));
    // Sets the first row to zeros.
    let q = "model.layers.0.self_attn.q_proj.weight";
    change_bytes(&model.join("model.safetensors"), q, |bytes| bytes[..512].fill(0));
    let lora = b.lora("dora", 1, json!({"use_dora": true}), |tensors| {
        let names: Vec<String> = tensors.keys().filter(|name| name.contains("lora_B")).cloned().collect();
        for name in names {
            let mut b = tensors[&name].values.to_vec();
            b[..2].fill(0.0);
            tensors.insert(name.clone(), HostTensor { shape: vec![256, 2], values: b.into() });
            tensors.insert(name.replace("lora_B.weight", "lora_magnitude_vector"), tensor(&[256], 4));
        }
    });
    let refused = b.refusal(INPUT, &model, &[text(&lora)], &[]);
    assert!(
        refused.contains("q_proj.weight\": expected finite numbers, found an output whose weights are all zero"),
        "{refused}"
    );
}

/// Gives tensor `name` of a safetensors file another type of the same size.
fn retype(file: &Path, name: &str, from: &str, to: &str) {
    let bytes = fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    assert_eq!(header[name]["dtype"], from);
    header[name]["dtype"] = json!(to);
    let header = serde_json::to_vec(&header).unwrap();
    fs::write(file, [&(header.len() as u64).to_le_bytes(), &header[..], &bytes[8 + length..]].concat()).unwrap();
}

#[test]
fn adapters_of_whole_numbers_are_refused_by_file_and_tensor() {
    let b = Bench::new();
    let (good, bad) = (b.plain("good", 1), b.plain("bad", 2));
    let name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight";
    retype(&bad.join("adapter_model.safetensors"), name, "F32", "U32");
    let expected =
        format!("bad/adapter_model.safetensors: tensor \"{name}\": expected floating-point numbers, found U32");
    for options in [
        &[][..],
        &["--to", "lora"],
        &["--to", "lora", "--rank", "2"],
        &["--method", "svd", "--rank", "2"],
        &["--method", "ties", "--density", "0.5"],
        &["--method", "magnitude_prune", "--density", "0.5"],
        &["--method", "ties_svd", "--density", "0.5", "--rank", "2"],
    ] {
        let refused = b.refusal(INPUT, &b.base, &[text(&good), text(&bad)], options);
        assert!(refused.contains(&expected), "{refused}");
    }
    let nan = b.lora("nan", 3, json!({"use_dora": true}), |tensors| {
        let names: Vec<String> = tensors.keys().filter(|name| name.contains("lora_B")).cloned().collect();
        for name in names {
            tensors.insert(name.replace("lora_B.weight", "lora_magnitude_vector"), tensor(&[256], 4));
        }
    });
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector";
    change_bytes(&nan.join("adapter_model.safetensors"), name, |a| a[..4].copy_from_slice(&f32::NAN.to_le_bytes()));
    let refused = b.refusal(INPUT, &b.base, &[text(&nan)], &[]);
    assert!(refused.contains("nan/adapter_model.safetensors: tensor") && refused.contains(name), "{refused}");
    let huge = b.lora("huge", 3, json!({"lora_alpha": 1e300}), |_| ());
    let refused = b.refusal(INPUT, &b.base, &[text(&huge)], &[]);
    assert!(refused.contains("huge/adapter_config.json: lora_alpha: expected a finite float32"), "{refused}");
}

#[test]
fn ranks_that_no_update_has_are_refused_before_anything_is_made() {
    let b = Bench::new();
    let (x, y) = (b.plain("x", 1), b.plain("y", 5));
    for rank in ["257", "1000000", "100000000", "18446744073709551615"] {
        let refused = b.refusal(INPUT, &b.base, &[text(&x), text(&y)], &["--to", "lora", "--rank", rank]);
        assert!(
            refused.contains("rank: expected 1 to 256, the highest rank that an update of these modules can have"),
            "{refused}"
        );
    }
    let pruned = ["--method", "ties_svd", "--density", "0.5", "--rank", "257"];
    let refused = b.refusal(INPUT, &b.base, &[text(&x), text(&y)], &pruned);
    assert!(refused.contains("rank: expected 1 to 256"), "{refused}");
    let settings = b.lora("settings", 1, json!({"r": 1u64 << 31}), |_| ());
    let refused = b.refusal(INPUT, &b.base, &[text(&settings)], &[]);
    assert!(refused.contains("lora_A.weight\": expected [2147483648, "), "{refused}");
}

#[test]
fn tensors_of_whole_numbers_are_taken_where_all_models_have_the_same() {
    let b = Bench::new();
    let norm = "model.norm.weight";
    let whole = |name: &str| {
        let model = copy(&b.base, &b.at(name));
        retype(&model.join("model.safetensors"), norm, "BF16", "I16");
        model
    };
    let (base, x, y) = (whole("base"), whole("x"), whole("y"));
    let methods = [
        "linear",
        "task_arithmetic",
        "ties",
        "dare_ties",
        "della",
        "breadcrumbs",
        "sce",
        "model_stock",
        "karcher",
        "ram",
    ];
    for method in methods {
        let density = ["ties", "dare_ties", "della", "breadcrumbs"].contains(&method);
        let options = if density { &["--method", method, "--density", "0.5"][..] } else { &["--method", method] };
        let merged = b.merge(&base, &[text(&x), text(&y)], &format!("merged-{method}"), options);
        let tensors = &compared(&base, &merged)["tensors"];
        let found = tensors.as_array().unwrap().iter().find(|t| t["name"] == norm);
        assert!(found.is_none_or(|t| t["b"]["dtype"] == "I16"), "{method}: {found:?}");
    }
    change_bytes(&y.join("model.safetensors"), norm, |bytes| bytes[0] ^= 1);
    for method in methods {
        let density = ["ties", "dare_ties", "della", "breadcrumbs"].contains(&method);
        let options = if density { &["--method", method, "--density", "0.5"][..] } else { &["--method", method] };
        let refused = b.refusal(INPUT, &base, &[text(&x), text(&y)], options);
        assert!(refused.contains("y/model.safetensors: tensor \"model.norm.weight\": expected what"), "{refused}");
        assert!(refused.contains("can't be combined, found other values"), "{refused}");
    }
    retype(&y.join("model.safetensors"), norm, "I16", "BF16");
    let refused = b.refusal(INPUT, &base, &[text(&x), text(&y)], &["--method", "linear"]);
    assert!(refused.contains("found BF16 for I16"), "{refused}");
}

#[test]
fn a_merged_folder_has_a_card_of_its_own_and_everything_else_of_its_base() {
    let b = Bench::new();
    let model = copy(&b.base, &b.at("model"));
    fs::write(model.join("README.md"), "---\nlicense: mit\n---\n# The base\n\nIt is what it is.\n").unwrap();
    let lora = b.plain("lora", 1);
    let half = format!("{}=0.5", text(&lora));
    let merged = b.merge(&model, &[&half], "merged", &[]);
    let card = fs::read_to_string(merged.join("README.md")).unwrap();
    let head = format!("---\nbase_model:\n- {:?}\n- {:?}\n", text(&model), text(&lora));
    assert!(card.starts_with(&head) && !card.contains("The base") && card.contains("times 0.5"), "{card}");
    let names = |folder: &Path| -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&merged), names(&model));
    for name in names(&model).iter().filter(|name| !name.ends_with(".safetensors") && *name != "README.md") {
        assert_eq!(fs::read(merged.join(name)).unwrap(), fs::read(model.join(name)).unwrap(), "{name}");
    }
}
