//! Baking: every kind of output, and what it has in common with the routed model.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::pair;
use crate::program::{INPUT, USAGE, done, refused, text};
use crate::readers;

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
fn a_bank_on_a_gguf_is_baked_as_a_lora_of_it() {
    let p = pair();
    let [base, lora, model] = ["base.gguf", "lora", "model"].map(|name| p.dir.path().join(name));
    done(&["convert", text(&p.base), "-o", text(&base), "--type", "q8_0"]);
    let request = ["--instruction", "Reverse the letters.", "--prompt", "garden"];
    let bake = |target: &Path, more: &[&str]| -> Vec<String> {
        let args = [&["bake", text(&base), text(&p.bank), "-o", text(target)], &request[..], more].concat();
        args.into_iter().map(str::to_owned).collect()
    };
    let args = bake(&lora, &["--to", "lora", "--json"]);
    let said: Value = serde_json::from_str(&done(&args.iter().map(String::as_str).collect::<Vec<_>>())).unwrap();
    assert!(said["verified"]["max_logit_difference"].as_f64().unwrap() < 1e-4, "{said}");
    let generated = |adapter: &Path| {
        let args = ["generate", text(&base), "--adapter", text(adapter), "--json", "--max-tokens", "8"];
        done(&[&args[..], &request[..]].concat())
    };
    assert_eq!(generated(&lora), generated(&p.bank));
    let args = bake(&model, &[]);
    let line = refused(USAGE, &args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(line.contains("expected a Hugging Face folder, for merged weights, found a GGUF"), "{line}");
}
