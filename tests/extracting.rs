//! Tests extracting a LoRA as a user does it: merging the LoRA must give the finetuned model, up to the printed error.

#[path = "common/program.rs"]
mod program;

use std::fs;
use std::path::{Path, PathBuf};

use program::{INPUT, USAGE, atombank, copy, done, fixture, refused, text};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Writes `base` with one of the adapters in fixtures/adapters merged, in f32.
fn finetuned(base: &Path, adapter: &str, to: &Path) -> PathBuf {
    done(&["merge", text(base), text(&fixture("adapters").join(adapter)), "-o", text(to), "--quiet"]);
    to.to_owned()
}

fn base(name: &str) -> PathBuf {
    fixture("adapters/base").join(name)
}

/// The comparison of the folders `a` and `b`, relative to the whole model.
fn compared(a: &Path, b: &Path) -> Value {
    json(&done(&["compare", text(a), text(b), "--json"]))
}

/// The error of an extraction, which must be one line on stderr; nothing may be written.
#[track_caller]
fn refusal(exit: i32, base: &Path, finetuned: &Path, out: &Path, options: &[&str]) -> String {
    let args = [&["extract", text(base), text(finetuned), "-o", text(out)], options].concat();
    let line = refused(exit, &args);
    assert!(!out.exists());
    line
}

#[test]
fn what_was_merged_is_extracted_and_merges_to_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // Low rank with patterns; Conv1D with biases; whole head and norm with rows of embeddings, tied or not; experts one by
    // one and in one tensor.
    for (model, adapter) in [
        ("qwen2-float32", "lora"),
        ("gpt2-float32", "lora-conv1d"),
        ("qwen2-float32", "lora-biases"),
        ("qwen2-float32", "lora-saved"),
        ("qwen2-float32", "norms"),
        ("qwen2-float32", "tokens"),
        ("qwen3moe-float32", "lora-experts"),
        ("llama4-float32", "lora-experts-llama4"),
    ] {
        let (base, lora, back) = (base(model), at(&format!("{adapter}-lora")), at(&format!("{adapter}-back")));
        let finetuned = finetuned(&base, adapter, &at(&format!("{adapter}-finetuned")));
        let found = json(&done(&["extract", text(&base), text(&finetuned), "-o", text(&lora), "--json", "--quiet"]));
        for module in found["modules"].as_array().unwrap() {
            assert!(module["relative_error"].as_f64().unwrap() < 1e-5, "{adapter} {module}");
        }
        done(&["merge", text(&base), text(&lora), "-o", text(&back), "--quiet"]);
        let same = compared(&finetuned, &back);
        let totals = &same["totals"];
        assert!(totals["relative_error"].as_f64().unwrap() < 1e-6, "{adapter} {totals}");
        assert_eq!((&totals["only_in_a"], &totals["only_in_b"]), (&0.into(), &0.into()), "{adapter}");
        let whole: Vec<&str> = found["whole"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
        for tensor in
            same["tensors"].as_array().unwrap().iter().filter(|t| whole.contains(&t["name"].as_str().unwrap()))
        {
            assert_eq!(tensor["identical"], true, "{adapter} {tensor}");
        }
    }
}

#[test]
fn a_head_that_is_the_embeddings_stays_that_when_they_are_extracted() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let base = copy(&base("qwen2-float32"), &at("base"));
    let config = fs::read_to_string(base.join("config.json")).unwrap();
    let tied = config.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    assert_ne!(tied, config);
    fs::write(base.join("config.json"), tied).unwrap();
    // Some rows of the embeddings change, and the head with them: the two stay tied.
    let finetuned = finetuned(&base, "tokens", &at("finetuned"));
    let (lora, back) = (at("lora"), at("back"));
    done(&["extract", text(&base), text(&finetuned), "-o", text(&lora), "--quiet"]);
    let config = json(&fs::read_to_string(lora.join("adapter_config.json")).unwrap());
    assert_eq!(config["ensure_weight_tying"], true);
    done(&["merge", text(&base), text(&lora), "-o", text(&back), "--quiet"]);
    let totals = &compared(&finetuned, &back)["totals"];
    assert_eq!(totals["relative_error"].as_f64(), Some(0.0), "{totals}");
    assert_eq!((&totals["only_in_a"], &totals["only_in_b"]), (&0.into(), &0.into()));
    let config = json(&fs::read_to_string(back.join("config.json")).unwrap());
    assert_eq!(config["tie_word_embeddings"], true);
}

#[test]
fn ranks_types_and_tables_are_as_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let base = base("qwen2-float32");
    let finetuned = finetuned(&base, "lora", &at("finetuned"));
    let extract = |out: &str, options: &[&str]| {
        done(&[&["extract", text(&base), text(&finetuned), "-o", text(&at(out)), "--quiet"], options].concat())
    };
    let table = extract("one", &["--rank", "1", "--type", "bf16"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("module ") && lines[0].ends_with("error"), "{table}");
    assert!(lines[1].starts_with("model.layers.0.self_attn.q_proj "), "{table}");
    assert!(lines.last().unwrap().contains(" modules ("), "{table}");
    let config = json(&fs::read_to_string(at("one/adapter_config.json")).unwrap());
    assert_eq!((&config["r"], &config["lora_alpha"]), (&1.into(), &1.into()));
    let tensors = json(&done(&["inspect", text(&at("one/adapter_model.safetensors")), "--json"])).to_string();
    assert!(tensors.contains("BF16") && !tensors.contains("F32"), "{tensors}");

    // The printed error is that of the change in the merged model.
    let found = json(&extract("json", &["--rank", "1", "--json"]));
    let one = &found["totals"];
    assert!((1e-3..1.0).contains(&one["relative_error"].as_f64().unwrap()), "{one}");
    done(&["merge", text(&base), text(&at("json")), "-o", text(&at("back")), "--quiet"]);
    let distance = |a: &Path, b: &Path| {
        let totals = compared(a, b);
        let of =
            |t: &Value| t["rms_difference"].as_f64().unwrap_or(0.0).powi(2) * t["elements"].as_f64().unwrap_or(0.0);
        totals["tensors"].as_array().unwrap().iter().map(of).sum::<f64>().sqrt()
    };
    let error = distance(&finetuned, &at("back")) / distance(&finetuned, &base);
    assert!((error - one["relative_error"].as_f64().unwrap()).abs() < 1e-4, "{error} {one}");

    let ranks = |found: &Value| -> Vec<u64> {
        found["modules"].as_array().unwrap().iter().map(|m| m["rank"].as_u64().unwrap()).collect()
    };
    let some = json(&extract("energy", &["--energy", "0.8", "--json"]));
    let all = json(&extract("all", &["--json", "--threads", "1", "--seed", "7"]));
    assert!(ranks(&some).iter().zip(ranks(&all)).all(|(some, all)| *some <= all) && ranks(&some) != ranks(&all));
    assert!(some["modules"].as_array().unwrap().iter().all(|m| m["energy"].as_f64().unwrap() >= 0.8));
    extract("again", &["--threads", "3", "--seed", "7"]);
    let file = |name: &str| fs::read(at(name).join("adapter_model.safetensors")).unwrap();
    assert_eq!(file("all"), file("again"), "the seed decides, not the threads");
    assert!(extract("dry", &["--dry-run"]).contains("lora_A.weight"));
    assert!(!at("dry").exists());
}

#[test]
fn modules_are_chosen_and_the_others_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let base = base("qwen2-float32");
    let (lora, saved) = (fixture("adapters/lora"), fixture("adapters/lora-saved"));
    let finetuned = at("finetuned");
    done(&["merge", text(&base), text(&lora), text(&saved), "-o", text(&finetuned), "--quiet"]);
    let extract = |out: &str, options: &[&str]| {
        let target = at(out);
        let args = [&["extract", text(&base), text(&finetuned), "-o", text(&target), "--json"], options].concat();
        let run = atombank(&args);
        assert!(run.status.success(), "{options:?} {}", String::from_utf8_lossy(&run.stderr));
        (json(&String::from_utf8(run.stdout).unwrap()), String::from_utf8(run.stderr).unwrap())
    };
    let names = |found: &Value, list: &str, key: &str| -> Vec<String> {
        found[list].as_array().unwrap().iter().map(|one| one[key].as_str().unwrap().to_owned()).collect()
    };
    let (all, said) = extract("all", &["--max-rank", "4"]);
    assert!(!said.contains("left out"), "{said}");
    let (modules, whole) = (names(&all, "modules", "module"), names(&all, "whole", "name"));
    assert!(modules.len() > 1 && !whole.is_empty(), "{all}");
    let first = format!("^{}$", modules[0]);
    let (one, said) = extract("one", &["--include-regex", &first, "--skip-undecomposable"]);
    assert_eq!(names(&one, "modules", "module"), modules[..1]);
    assert!(said.contains("note: left out 4 changed tensors, not selected: "), "{said}");
    assert!(said.contains(&modules[1]), "{said}");
    let (saved, _) = extract("saved", &["--save-module", &modules[0], "--embed-lora"]);
    assert!(names(&saved, "whole", "name").contains(&format!("{}.weight", modules[0])), "{saved}");
    let refused = refusal(USAGE, &base, &finetuned, &at("out"), &["--sv-epsilon", "nan"]);
    assert!(refused.contains("--sv-epsilon: expected a number from 0 on, found NaN"), "{refused}");
    let refused = refusal(USAGE, &base, &finetuned, &at("out"), &["--exclude-regex", "x_proj"]);
    assert!(refused.contains("--exclude-regex: expected one that a module of the base has"), "{refused}");
}

#[test]
fn what_does_not_fit_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (qwen, gpt2, out) = (base("qwen2-float32"), base("gpt2-float32"), at("out"));
    let other = finetuned(&qwen, "lora", &at("finetuned"));
    assert!(refusal(INPUT, &qwen, &qwen, &out, &[]).contains("there is nothing to extract"));
    assert!(refusal(INPUT, &qwen, &gpt2, &out, &[]).contains("a LoRA needs two models of one architecture and size"));
    assert!(
        refusal(INPUT, &qwen, &at("nothing"), &out, &[])
            .contains("expected a Hugging Face model folder, found nothing")
    );
    assert!(refusal(USAGE, &qwen, &other, &out, &["--to", "hf"]).contains("expected a LoRA's folder"));
    assert!(refusal(USAGE, &qwen, &other, &at("out.gguf"), &[]).contains("expected a LoRA's folder"));
    assert!(refusal(USAGE, &qwen, &other, &out, &["--type", "q8_0"]).contains("f32, f16 or bf16 for a LoRA"));
    let broken = copy(&other, &at("broken"));
    let file = broken.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 4]).unwrap();
    assert!(refusal(INPUT, &qwen, &broken, &out, &[]).contains("model.safetensors"));
    for options in [["--energy", "1.5"], ["--energy", "nan"], ["--rank", "0"]] {
        let args = [&["extract", text(&qwen), text(&other), "-o", text(&out)], &options[..]].concat();
        assert_eq!(atombank(&args).status.code(), Some(2), "{options:?}");
    }
    done(&["extract", text(&qwen), text(&other), "-o", text(&out), "--quiet"]);
    let again = atombank(&["extract", text(&qwen), text(&other), "-o", text(&out)]);
    assert!(String::from_utf8(again.stderr).unwrap().contains("already exists"));
}
