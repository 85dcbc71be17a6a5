//! Tests the program as a user sees it: results on stdout, one clear line for an error, exit codes,
//! and no partial outputs.

mod common;
#[path = "common/program.rs"]
mod program;
mod readers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::fixtures;
use program::{INPUT, USAGE, atombank, copy, done, refused, text};
use serde_json::{Value, json};

fn edit(path: &Path, change: impl Fn(&mut Value)) {
    let mut json = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, serde_json::to_vec(&json).unwrap()).unwrap();
}

/// A base with a tokenizer, and a bank with a random B for it, made from the demo's base.
struct Pair {
    dir: tempfile::TempDir,
    base: PathBuf,
    bank: PathBuf,
}

fn pair() -> Pair {
    use atombank::arch::HfFolder;
    use atombank::bank::AtomBank;
    use atombank::train::TrainConfig;
    let dir = tempfile::tempdir().unwrap();
    let base = copy(&fixtures().join("demo/base"), &dir.path().join("base"));
    let folder = HfFolder::open(&base).unwrap();
    let config = TrainConfig::open(&fixtures().join("demo/bank.toml"), &[]).unwrap();
    let config = config.bank_config(&folder.config, None);
    let bank = dir.path().join("bank");
    let mut adapter = AtomBank::fresh(&bank, config, &folder.config, 7).unwrap();
    for (name, tensor) in &mut adapter.tensors {
        if name.ends_with("lora_B.weight") {
            tensor.values = (0..tensor.values.len()).map(|i| ((i * 7919 % 101) as f32 - 50.0) / 800.0).collect();
        }
    }
    adapter.save(&bank, false).unwrap();
    Pair { dir, base, bank }
}

#[test]
fn bakes_every_kind_of_output_and_says_what_it_costs() {
    let p = pair();
    let out = |name: &str| p.dir.path().join(name);
    let request = ["--instruction", "Reverse the letters.", "--prompt", "one", "--prompt", "other"];
    for (name, extra) in [
        ("hf", &["--shard-size", "500KB"][..]),
        ("f32.gguf", &["--type", "f32"]),
        ("q8.gguf", &["--type", "q8_0"]),
        ("q4.gguf", &["--type", "Q4_K_M"]),
        ("lora", &["--to", "lora"]),
    ] {
        let target = out(name);
        let mut args = vec!["bake", text(&p.base), text(&p.bank), "-o", text(&target), "--json"];
        args.extend(request);
        args.extend(extra);
        let json: Value = serde_json::from_str(&done(&args)).unwrap();
        let alphas = json["alphas"].as_array().unwrap();
        assert_eq!(alphas.len(), 2, "two blocks");
        for alpha in alphas {
            let sum: f64 = alpha.as_array().unwrap().iter().map(|a| a.as_f64().unwrap()).sum();
            assert!((sum - 1.0).abs() < 1e-5);
        }
        assert!(json["verified"]["tokens"].as_u64().unwrap() > 10);
        assert!(json["verified"]["top1_agreement"].as_f64().unwrap() > 0.5);
        assert!(target.exists());
        if name.ends_with(".gguf") {
            readers::another_reader_agrees(&target, &atombank::formats::gguf::GgufFile::open(&target).unwrap());
        }
        let refused = refused(INPUT, &args);
        assert!(refused.contains("already exists; choose another name or pass --overwrite"), "{refused}");
        args.push("--overwrite");
        done(&args);
    }
    assert!(out("hf").join("model.safetensors.index.json").is_file());
    assert!(out("hf").join("tokenizer.json").is_file());
    let dry =
        done(&["bake", text(&p.base), text(&p.bank), "-o", text(&out("no.gguf")), "--instruction", "", "--dry-run"]);
    assert!(dry.contains("token_embd.weight") && !out("no.gguf").exists());
    let no = out("no.gguf");
    let dry =
        done(&["bake", text(&p.base), text(&p.bank), "-o", text(&no), "--instruction", "", "--dry-run", "--json"]);
    let dry: Value = serde_json::from_str(&dry).unwrap();
    assert_eq!((&dry["files"][0]["name"], &dry["verified"]), (&json!("no.gguf"), &Value::Null));
    assert!(dry["tensors"].as_array().unwrap().iter().any(|tensor| tensor["name"] == "token_embd.weight"));
    assert!(dry["bytes"].as_u64().unwrap() > 100_000 && dry["alphas"].as_array().unwrap().len() == 2);
    assert!(!no.exists());
}

#[test]
fn baking_without_anything_to_fix_is_a_usage_error() {
    let p = pair();
    let out = p.dir.path().join("out");
    let line = refused(USAGE, &["bake", text(&p.base), text(&p.bank), "-o", text(&out)]);
    assert_eq!(
        line,
        "error: --instruction: expected an instruction, or --prompt, found neither; an empty --instruction bakes what \
         the bank does without one\n"
    );
    assert!(!out.exists());
    let line = refused(
        USAGE,
        &[
            "bake",
            text(&p.base),
            text(&p.bank),
            "-o",
            text(&p.dir.path().join("out.gguf")),
            "--instruction",
            "",
            "--type",
            "Q4_K_M",
            "--prune-layers",
            "0",
        ],
    );
    assert!(line.starts_with("error: --prune-layers: ") && line.ends_with("pass --no-verify\n"), "{line}");
    let leftovers =
        fs::read_dir(p.dir.path()).unwrap().flatten().filter(|e| e.file_name().to_string_lossy().starts_with('.'));
    assert_eq!(leftovers.count(), 0);
}

#[test]
fn one_prompt_baked_in_f32_is_the_routed_model() {
    let p = pair();
    let baked = p.dir.path().join("baked");
    let request = ["--instruction", "Use capital letters.", "--prompt", "word"];
    let mut args = vec!["bake", text(&p.base), text(&p.bank), "-o", text(&baked), "--json", "--type", "f32"];
    args.extend(request);
    let json: Value = serde_json::from_str(&done(&args)).unwrap();
    assert!(json["verified"]["max_logit_difference"].as_f64().unwrap() < 1e-3, "{json}");
    let card = fs::read_to_string(baked.join("README.md")).unwrap();
    assert!(card.contains("base_model_relation: merge") && card.contains(text(&p.bank)), "{card}");
    assert!(card.contains("\n\n    Use capital letters.\n") && card.contains("\n\n    word\n"), "{card}");
    let generate = |model: &Path, adapter: &[&str]| {
        let mut args = vec!["generate", text(model), "--json", "--max-tokens", "16", "--ignore-eos"];
        args.extend(request);
        args.extend(adapter);
        serde_json::from_str::<Value>(&done(&args)).unwrap()["ids"].clone()
    };
    assert_eq!(generate(&baked, &[]), generate(&p.base, &["--adapter", text(&p.bank)]));
}

#[test]
fn generates_from_a_gguf_and_from_a_prompt_as_it_is() {
    let p = pair();
    let gguf = p.dir.path().join("base.gguf");
    done(&["convert", text(&p.base), "-o", text(&gguf), "--type", "f32"]);
    let generate = |model: &Path, more: &[&str]| -> Value {
        let mut args = vec!["generate", text(model), "--json", "--max-tokens", "8", "--prompt", "garden"];
        args.extend(more);
        serde_json::from_str(&done(&args)).unwrap()
    };
    let plain = generate(&p.base, &[]);
    assert_eq!(plain, generate(&gguf, &[]));
    assert_eq!(plain, generate(&p.base, &["--template", "{prompt}"]));
    let template = "{instruction}\n{prompt}\n";
    let asked = generate(&p.base, &["--instruction", "Reverse."]);
    assert_eq!(asked, generate(&p.base, &["--instruction", "Reverse.", "--template", template]));
    assert_ne!(plain["prompt_ids"], asked["prompt_ids"]);
    let bank = ["--adapter", text(&p.bank)];
    assert_eq!(generate(&gguf, &bank), generate(&p.base, &bank));
    let line = refused(INPUT, &["generate", text(&p.base), "--prompt", "garden", "--template", "Say it."]);
    assert!(line.contains("--template: expected {prompt} in it, found \"Say it.\", which drops \"garden\""), "{line}");
}

#[test]
fn a_baked_lora_merges_to_the_baked_model_bit_by_bit() {
    let p = pair();
    let out = |name: &str| p.dir.path().join(name);
    let (lora, instruction) = (out("lora"), ["--instruction", "Reverse the letters.", "--no-verify"]);
    done(&[&["bake", text(&p.base), text(&p.bank), "-o", text(&lora), "--to", "lora"], &instruction[..]].concat());
    for (name, options) in [("f32.gguf", &["--type", "f32"][..]), ("q4.gguf", &["--type", "Q4_K_M"]), ("folder", &[])] {
        let (baked, merged) = (out(&format!("baked-{name}")), out(&format!("merged-{name}")));
        done(&[&["bake", text(&p.base), text(&p.bank), "-o", text(&baked)], &instruction[..], options].concat());
        done(&[&["merge", text(&p.base), text(&lora), "-o", text(&merged)], options].concat());
        let weights = |path: &Path| match path.is_dir() {
            true => fs::read(path.join("model.safetensors")).unwrap(),
            false => fs::read(path).unwrap(),
        };
        assert_eq!(weights(&baked), weights(&merged), "{name}");
    }
    let target = out("never");
    let refused = refused(INPUT, &["merge", text(&p.base), text(&p.bank), "-o", text(&target)]);
    assert!(refused.contains("found QUERYABLE_LORA, an atom bank; fix an instruction with atombank bake"), "{refused}");
    assert!(!target.exists());
}

#[test]
fn routes_by_model_and_by_prior() {
    let p = pair();
    let table = done(&["route", text(&p.base), text(&p.bank), "--instruction", "Reverse the letters."]);
    assert!(table.starts_with("block 0") && table.contains("\nprior "), "{table}");
    let args = ["route", text(&p.base), text(&p.bank), "--routing", "prior", "--json"];
    let with: Vec<&str> = args.iter().copied().chain(["--instruction", "Reverse the letters."]).collect();
    let json: Value = serde_json::from_str(&done(&with)).unwrap();
    assert_eq!(json["alphas"][0], json["alphas"][1], "the prior knows no blocks");
    assert!(
        refused(INPUT, &args).contains("routing by the prior: expected an instruction, found none; pass --instruction")
    );
}

#[test]
fn texts_beyond_the_models_context_are_noted() {
    let p = pair();
    edit(&p.base.join("config.json"), |config| config["max_position_embeddings"] = json!(8));
    let target = p.dir.path().join("baked");
    let (base, bank) = (text(&p.base), text(&p.bank));
    let long = "a garden beyond the wall";
    for args in [
        &["route", base, bank, "--prompt", long][..],
        &["generate", base, "--prompt", long, "--max-tokens", "2"],
        &["bake", base, bank, "--prompt", long, "-o", text(&target), "--no-verify"],
    ] {
        let out = atombank(args);
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.success(), "{args:?}: {stderr}");
        assert!(stderr.contains("and the model's max_position_embeddings is 8: it may not"), "{args:?}: {stderr}");
    }
    let out = atombank(&["generate", base, "--prompt", "a", "--max-tokens", "1"]);
    assert!(out.status.success() && out.stderr.is_empty());
    // A text that would take more memory than any machine has.
    let endless = "x".repeat(70_000);
    let line = refused(INPUT, &["generate", base, "--prompt", &endless]);
    assert!(line.contains("prompt: expected at most 4096 tokens, as memory grows"), "{line}");
}

#[test]
fn tokenizers_that_contradict_themselves_are_refused_in_one_line() {
    type Edit<'a> = &'a dyn Fn(&mut Value);
    let changes: [(&str, Edit); 2] = [
        ("a merge without its prefix", &|json| {
            json["model"]["continuing_subword_prefix"] = json!("a prefix that is long")
        }),
        ("a special token that is not listed", &|json| {
            json["post_processor"] = json!({"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<nowhere>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [], "special_tokens": {}});
        }),
    ];
    for (what, change) in changes {
        let p = pair();
        edit(&p.base.join("tokenizer.json"), change);
        let (base, bank, rows) = (text(&p.base), text(&p.bank), fixtures().join("demo/heldout.jsonl"));
        let base_setting = format!("base='{base}'");
        let (out, data) = (p.dir.path().join("run"), format!("data.train='{}'", rows.display()));
        let output = format!("output='{}'", out.display());
        let config = fixtures().join("demo/bank.toml");
        for args in [
            &["generate", base, "--prompt", "garden"][..],
            &["route", base, bank, "--instruction", "Reverse.", "--prompt", "garden"],
            &["train", text(&config), "--set", &base_setting, "--set", &output, "--set", &data],
        ] {
            // Instructions are encoded without special tokens, and prompts may be empty depending
            // on the template: neither panics.
            let run = atombank(args);
            let stderr = String::from_utf8(run.stderr).unwrap();
            let refused = run.status.code() == Some(1) && stderr.lines().count() == 1;
            match args[0] {
                "generate" => assert!(refused && stderr.contains("tokenizer.json: expected"), "{what}: {stderr}"),
                _ => assert!(refused || run.status.success(), "{what}: {args:?}: {stderr}"),
            }
            assert!(!stderr.contains("panicked"), "{stderr}");
        }
    }
}

#[test]
fn inspects_everything_as_table_and_json() {
    let p = pair();
    let gguf = p.dir.path().join("base.gguf");
    done(&["convert", text(&p.base), "-o", text(&gguf), "--quiet"]);
    let lora = p.dir.path().join("lora");
    done(&[
        "bake",
        text(&p.base),
        text(&p.bank),
        "-o",
        text(&lora),
        "--to",
        "lora",
        "--no-verify",
        "--instruction",
        "",
    ]);
    for (path, kind, expected) in [
        (p.base.clone(), "hf-folder", "LlamaForCausalLM"),
        (p.base.join("model.safetensors"), "weights", "BF16"),
        (gguf, "gguf", "general.architecture"),
        (lora, "lora", "q_proj, v_proj"),
        (p.bank.clone(), "bank", "cosine with each atom"),
    ] {
        let table = done(&["inspect", text(&path), "--tensors"]);
        assert!(table.contains(expected), "{table}");
        let json: Value = serde_json::from_str(&done(&["inspect", text(&path), "--json"])).unwrap();
        assert_eq!(json["kind"], kind);
    }
    let json: Value = serde_json::from_str(&done(&["inspect", text(&p.bank), "--json"])).unwrap();
    assert_eq!(json["parameters"], 19752);
    assert_eq!(json["lora_parameters"], 14336);
    assert_eq!(json["atoms"].as_array().unwrap().len(), 8);
}

#[test]
fn bad_input_gets_one_line_and_leaves_nothing() {
    type Change = fn(&Pair);
    let cases: &[(&str, Change, &[&str])] = &[
        (
            "a missing folder",
            |p| fs::remove_dir_all(&p.base).unwrap(),
            &["base: expected a Hugging Face model folder, found nothing"],
        ),
        (
            "missing weights",
            |p| fs::remove_file(p.base.join("model.safetensors")).unwrap(),
            &["weights: expected model.safetensors"],
        ),
        ("missing config", |p| fs::remove_file(p.base.join("config.json")).unwrap(), &["config.json: cannot read"]),
        (
            "missing tokenizer",
            |p| fs::remove_file(p.base.join("tokenizer.json")).unwrap(),
            &["base: tokenizer: expected tokenizer.json, vocab.json with merges.txt"],
        ),
        (
            "missing adapter",
            |p| fs::remove_file(p.bank.join("adapter_model.safetensors")).unwrap(),
            &["adapter_model.safetensors: cannot open"],
        ),
        (
            "truncated weights",
            |p| {
                let path = p.base.join("model.safetensors");
                let bytes = fs::read(&path).unwrap();
                fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
            },
            &["model.safetensors: tensor \"", "expected offsets inside the", "fetch it again"],
        ),
        (
            "a config that doesn't fit its weights",
            |p| edit(&p.base.join("config.json"), |c| c["intermediate_size"] = json!(512)),
            &["gate_proj.weight\": expected [512, 128] by config.json, found [256, 128]"],
        ),
        (
            "an unknown architecture",
            |p| edit(&p.base.join("config.json"), |c| c["architectures"] = json!(["FancyForCausalLM"])),
            &["config.json: architectures: expected LlamaForCausalLM", "found FancyForCausalLM"],
        ),
        (
            "a quantization that isn't named",
            |p| edit(&p.base.join("config.json"), |c| c["quantization_config"] = json!({"bits": 4})),
            &["config.json: quantization_config.quant_method: expected fp8,", "found none"],
        ),
        (
            "a bank for another hidden size",
            |p| {
                fs::remove_dir_all(&p.base).unwrap();
                copy(&fixtures().join("convert/llama/model"), &p.base);
            },
            &["lora_A.weight\": expected [8, 256] for this base model, found [8, 128]", "another base model"],
        ),
        (
            "a bank for fewer layers",
            |p| edit(&p.bank.join("adapter_config.json"), |c| c["block_size"] = json!(1)),
            &["block_bias\": expected 4 blocks for a base model of 4 layers, found 2"],
        ),
        (
            "a bank that lacks a module of its config",
            |p| {
                edit(&p.bank.join("adapter_config.json"), |c| {
                    c["target_modules"] = json!(["q_proj", "v_proj", "o_proj"])
                })
            },
            &[
                "layers.0.self_attn.o_proj.lora_A.weight\": expected a tensor of this name, by target_modules, found nothing",
            ],
        ),
        (
            "an unknown adapter field",
            |p| edit(&p.bank.join("adapter_config.json"), |c| c["use_dora"] = json!(true)),
            &["adapter_config.json: use_dora: expected a field this version knows, found true"],
        ),
        (
            "an unknown kind of adapter",
            |p| edit(&p.bank.join("adapter_config.json"), |c| c["peft_type"] = json!("XLORA")),
            &["adapter_config.json: peft_type: expected QUERYABLE_LORA or LORA, found XLORA"],
        ),
        (
            "a weight of another type",
            |p| {
                let path = p.base.join("model.safetensors");
                let mut bytes = fs::read(&path).unwrap();
                let at = bytes.windows(6).position(|w| w == b"\"BF16\"").unwrap();
                bytes[at..at + 6].copy_from_slice(b"\"I16\" ");
                fs::write(path, bytes).unwrap();
            },
            &["model.safetensors: tensor \"", "expected a type this version can decode, found I16"],
        ),
        (
            "infinity in a weight",
            |p| {
                let path = p.base.join("model.safetensors");
                let mut bytes = fs::read(&path).unwrap();
                let end = bytes.len();
                bytes[end - 2..].copy_from_slice(&0x7f80u16.to_le_bytes());
                fs::write(path, bytes).unwrap();
            },
            &["tensor \"model.norm.weight\": expected finite numbers, found a NaN or an infinity"],
        ),
    ];
    for (what, change, expected) in cases {
        let p = pair();
        change(&p);
        let target = p.dir.path().join("out.gguf");
        let before = fs::read_dir(p.dir.path()).unwrap().count();
        let line =
            refused(INPUT, &["bake", text(&p.base), text(&p.bank), "-o", text(&target), "--instruction", "Reverse."]);
        for part in *expected {
            assert!(line.contains(part), "{what}: {line}");
        }
        assert_eq!(fs::read_dir(p.dir.path()).unwrap().count(), before, "{what}: something is left behind");
    }
}

#[test]
fn bad_training_input_gets_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let demo = fixtures().join("demo");
    let rows = dir.path().join("rows.jsonl");
    let config = demo.join("bank.toml");
    let output = dir.path().join("run");
    let paths = [
        format!("base='{}'", demo.join("base").display()),
        format!("output='{}'", output.display()),
        format!("data.train='{}'", rows.display()),
        format!("data.eval='{}'", demo.join("heldout.jsonl").display()),
    ];
    for (content, extra, expected) in [
        ("", "seed=0", "rows.jsonl: expected at least one row, found none"),
        ("{\"instruction\": \"x\", \"prompt\": \"y\"}\n", "seed=0", "rows.jsonl: line 1: expected"),
        (
            "{\"completion\": \"y\"}\n",
            "data.max_length=2",
            "rows.jsonl: row 1: expected at most 2 tokens, by data.max_length",
        ),
        ("{\"completion\": \"y\"}\n", "training.speed=9", "unknown field `speed`"),
        (
            "{\"completion\": \"y\"}\n",
            "adapter.top_k=9",
            "bank.toml: adapter.top_k: expected at most num_atoms, 8, found 9",
        ),
        // Sizes beyond any memory are refused before anything is allocated.
        ("{\"completion\": \"y\"}\n", "adapter.r=1000000000", "bank.toml: adapter.r: expected at most 256, the width"),
        ("{\"completion\": \"y\"}\n", "adapter.num_atoms=1000000000", "bank.toml: adapter.num_atoms: expected a bank"),
        ("{\"completion\": \"y\"}\n", "adapter.key_dim=2147483648", "bank.toml: adapter.key_dim: expected a bank"),
        (
            "{\"completion\": \"y\"}\n",
            "training.batch_size=2147483648",
            "bank.toml: training.batch_size: expected at most 64: the data has ",
        ),
        (
            "{\"completion\": \"y\"}\n",
            "training.gradient_accumulation=2147483648",
            "gradient_accumulation: expected at most 65536",
        ),
        (
            "{\"completion\": \"y\"}\n",
            "adapter.prior_temperature=1e-320",
            "bank.toml: adapter.prior_temperature: expected",
        ),
    ] {
        fs::write(&rows, content).unwrap();
        let mut args = vec!["train", text(&config)];
        for path in &paths {
            args.extend(["--set", path]);
        }
        args.extend(["--set", extra]);
        let line = refused(INPUT, &args);
        assert!(line.contains(expected), "{line}");
        assert!(!line.contains("lower the learning rate"), "nothing was trained: {line}");
        assert!(!output.join("adapter_config.json").exists());
    }
}

#[test]
fn a_type_that_the_output_cannot_have_is_refused() {
    let p = pair();
    let target = p.dir.path().join("out");
    for (to, kind, expected) in [
        ("lora", "bf16", "--type: expected none for a LoRA, which is written in f32, found bf16"),
        ("hf", "q8_0", "--type: expected f32, f16, bf16, auto or source for a Hugging Face folder, found q8_0"),
        (
            "gguf",
            "q9",
            "--type: expected f32, f16, bf16, q8_0, tq1_0, tq2_0, auto, source, or a mixture: F32, F16, BF16, Q1_0,",
        ),
    ] {
        let line = refused(
            USAGE,
            &[
                "bake",
                text(&p.base),
                text(&p.bank),
                "-o",
                text(&target),
                "--to",
                to,
                "--type",
                kind,
                "--instruction",
                "",
            ],
        );
        assert!(line.contains(expected), "{line}");
        assert!(!target.exists());
    }
}

#[test]
fn ctrl_c_leaves_a_usable_bank_and_exit_code_one() {
    let dir = tempfile::tempdir().unwrap();
    let demo = fixtures().join("demo");
    let output = dir.path().join("run");
    let mut command = Command::new(env!("CARGO_BIN_EXE_atombank"));
    command.args([
        "train",
        text(&demo.join("bank.toml")),
        "--set",
        "training.batch_size=1",
        "--set",
        "training.steps=100000",
    ]);
    for (key, path) in [
        ("base", demo.join("base")),
        ("output", output.clone()),
        ("data.train", demo.join("train.jsonl")),
        ("data.eval", demo.join("heldout.jsonl")),
    ] {
        command.args(["--set", &format!("{key}='{}'", path.display())]);
    }
    let child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let metrics = output.join("metrics.jsonl");
    let started = std::time::Instant::now();
    while fs::read_to_string(&metrics).unwrap_or_default().lines().count() < 2 {
        assert!(started.elapsed().as_secs() < 120, "no step in two minutes");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(stderr.lines().last().unwrap().contains("interrupted after step"), "{stderr}");
    atombank::bank::AtomBank::open(&output).unwrap();
}

#[test]
fn measures_importance_matrices_in_both_forms() {
    use atombank::imatrix::ImportanceMatrix;
    let dir = tempfile::tempdir().unwrap();
    let (base, words) = (fixtures().join("convert/llama/model"), fixtures().join("quant/imatrix/text.txt"));
    let args = |output: &Path, more: &[&str]| {
        let start = ["imatrix", text(&base), text(&words), "-o", text(output), "--ctx", "128", "--chunks", "2"];
        [start.as_slice(), more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = |output: &Path, more: &[&str]| {
        assert_eq!(done(&args(output, more).iter().map(String::as_str).collect::<Vec<_>>()), "");
        ImportanceMatrix::open(output).unwrap()
    };
    let (gguf, dat) = (dir.path().join("i.gguf"), dir.path().join("i.dat"));
    let (new, old) = (run(&gguf, &["--process-output"]), run(&dat, &["--quiet", "--threads", "1"]));
    assert_eq!((new.len(), old.len()), (15, 14));
    assert_eq!((new.chunk_count(), new.datasets()), (2, [text(&words).as_bytes().to_vec()].as_slice()));
    assert!(fs::read(&gguf).unwrap().starts_with(b"GGUF") && fs::read(&dat).unwrap().starts_with(&[14, 0, 0, 0]));

    let refused_for = |output: &Path, more: &[&str]| {
        refused(INPUT, &args(output, more).iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert!(refused_for(&gguf, &[]).contains("i.gguf: already exists"));
    run(&gguf, &["--overwrite", "--output-format", "dat"]);
    assert!(fs::read(&gguf).unwrap().starts_with(&[14, 0, 0, 0]));
    assert!(
        refused_for(&dir.path().join("no/i.gguf"), &[])
            .contains("no: folder of the output: expected a folder, found nothing")
    );
    for (base, words, expected) in [
        (fixtures().join("convert/mixtral/model"), words.clone(), "found MixtralForCausalLM"),
        (words.clone(), words.clone(), "expected the magic \"GGUF\""),
        (base.clone(), dir.path().join("nothing.txt"), "nothing.txt: cannot read"),
        (
            base.clone(),
            fixtures().join("convert/llama/model/chat_template.jinja"),
            "expected at least 512 tokens, one chunk",
        ),
    ] {
        let output = dir.path().join("new.gguf");
        let line = refused(INPUT, &["imatrix", text(&base), text(&words), "-o", text(&output)]);
        assert!(line.contains(expected), "{line}");
        assert!(!output.exists());
    }
    // A dry run lists the same tensors at the same offsets as are written, without computing them.
    let planned = |output: &Path, more: &[&str]| -> Value {
        let more = [more, &["--dry-run", "--json"]].concat();
        let args = args(output, &more);
        serde_json::from_str(&done(&args.iter().map(String::as_str).collect::<Vec<_>>())).unwrap()
    };
    for (name, more) in [("j.gguf", &["--process-output"][..]), ("j.dat", &[])] {
        let output = dir.path().join(name);
        let plan = planned(&output, more);
        assert!(!output.exists());
        let more = [more, &["--json"]].concat();
        let args = args(&output, &more);
        let written = done(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let written: Value = serde_json::from_str(&written).unwrap();
        assert_eq!((&written["bytes"], &plan["files"][0]["bytes"]), (&plan["bytes"], &plan["bytes"]), "{name}");
        assert_eq!(written["tensors"], plan["tensors"].as_array().unwrap().len(), "{name}");
        assert_eq!(plan["bytes"], fs::metadata(&output).unwrap().len(), "{name}");
    }
    let table = args(&dir.path().join("k.gguf"), &["--dry-run"]);
    assert!(done(&table.iter().map(String::as_str).collect::<Vec<_>>()).contains("blk.0.attn_q.weight.in_sum2"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
}

#[test]
fn the_demo_prints_json_and_replaces_its_own_folder_alone() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("demo");
    let args = ["demo", "-o", text(&out), "--set", "training.steps=2", "--set", "training.warmup_steps=0", "--quiet"];
    let json: Value = serde_json::from_str(&done(&[&args[..], &["--json"]].concat())).unwrap();
    let instructions = json["instructions"].as_array().unwrap();
    assert!(instructions.len() > 2 && json["words"].as_u64().unwrap() > 2, "{json}");
    assert!(instructions.iter().all(|found| found["exact_match"]["routed"].is_number()), "{json}");
    assert!(json["bank"]["parameters"].as_u64().unwrap() > 1000 && out.join("baked-0.gguf").is_file());
    assert!(refused(INPUT, &args).contains("already exists; choose another name or pass --overwrite"));
    let again = [&args[..], &["--overwrite"]].concat();
    fs::write(out.join("mine.txt"), "x").unwrap();
    let line = refused(INPUT, &again);
    assert!(line.contains("expected the folder of a demo, to replace it, found \"mine.txt\" in it"), "{line}");
    fs::remove_file(out.join("mine.txt")).unwrap();
    assert!(done(&again).starts_with("1. train an atom bank"));
    assert!(out.join("baked-0.gguf").is_file());
}

#[test]
fn usage_errors_exit_with_two() {
    assert_eq!(atombank(&["bake"]).status.code(), Some(2));
    assert_eq!(atombank(&["fly"]).status.code(), Some(2));
    assert_eq!(atombank(&["--help"]).status.code(), Some(0));
}
