//! One clear line for bad input and bad arguments, and no partial outputs.

use std::fs;

use serde_json::{Value, json};

use crate::common::fixtures;
use crate::program::{INPUT, USAGE, atombank, copy, refused, text};
use crate::{Pair, edit, pair};

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
            &["config.json: architectures: expected a class that this version runs, found FancyForCausalLM"],
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
            "rows.jsonl: line 1: expected at most 2 tokens, by data.max_length",
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
fn usage_errors_exit_with_two() {
    assert_eq!(atombank(&["bake"]).status.code(), Some(2));
    assert_eq!(atombank(&["fly"]).status.code(), Some(2));
    assert_eq!(atombank(&["--help"]).status.code(), Some(0));
}
