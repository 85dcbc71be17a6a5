//! Tests comparisons as a user does them: a folder with models made from it, quantized or not.

#[path = "common/program.rs"]
mod program;

use std::fs;
use std::path::Path;

use program::{atombank, done, fixture, text};
use serde_json::Value;

fn convert(from: &Path, to: &Path, options: &[&str]) {
    done(&[&["convert", text(from), "-o", text(to), "--quiet"], options].concat());
}

fn compare(a: &Path, b: &Path) -> Value {
    let json = done(&["compare", text(a), text(b), "--json"]);
    serde_json::from_str(&json).unwrap()
}

/// The error of a comparison, which must be one line on stderr with exit code 1.
fn refusal(a: &Path, b: &Path) -> String {
    let out = atombank(&["compare", text(a), text(b)]);
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "{stderr}");
    assert_eq!((stderr.lines().count(), out.stdout.len()), (1, 0), "{stderr}");
    stderr
}

/// Checks that both sides have the same tensors, bit by bit.
fn assert_same(a: &Path, b: &Path) {
    let found = compare(a, b);
    let totals = &found["totals"];
    let tensors = found["tensors"].as_array().unwrap();
    assert!(!tensors.is_empty());
    assert_eq!(totals["compared"], tensors.len(), "{a:?} {b:?} {totals}");
    assert_eq!(totals["identical"], tensors.len(), "{a:?} {b:?} {found:#}");
    assert_eq!((&totals["relative_error"], &totals["worst"]), (&Value::from(0.0), &Value::Null));
}

fn error(found: &Value, tensor: &str) -> f64 {
    let tensors = found["tensors"].as_array().unwrap();
    let tensor = tensors.iter().find(|t| t["name"] == tensor).unwrap();
    tensor["relative_error"].as_f64().unwrap()
}

#[test]
fn a_folder_is_the_same_as_the_gguf_made_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["llama", "qwen2moe", "gpt2", "falcon", "olmo2", "stablelm", "llama-pytorch"] {
        let model = fixture("convert").join(name).join("model");
        let (wide, own) = (at(&format!("{name}-f32.gguf")), at(&format!("{name}-source.gguf")));
        convert(&model, &wide, &["--type", "f32"]);
        convert(&model, &own, &["--type", "source"]);
        assert_same(&model, &wide);
        assert_same(&own, &model);
        assert_same(&wide, &own);
        assert_same(&model, &model);
    }
    // Gemma's norms have 1 added, which rounds them, so only a record of the original values
    // restores them.
    let gemma = fixture("convert/gemma2/model");
    convert(&gemma, &at("gemma.gguf"), &["--type", "f32"]);
    let found = compare(&gemma, &at("gemma.gguf"));
    assert_eq!((&found["totals"]["compared"], &found["totals"]["identical"]), (&35.into(), &22.into()));
    assert!(found["totals"]["worst"].as_str().unwrap().contains("norm"), "{}", found["totals"]);
    convert(&gemma, &at("gemma-source.gguf"), &["--type", "source"]);
    assert_same(&gemma, &at("gemma-source.gguf"));

    let model = fixture("convert/llama/model");
    convert(&model, &at("m.bin"), &[]);
    assert_same(&at("m.bin"), &at("llama-f32.gguf"));
    convert(&at("m.bin"), &at("generic.gguf"), &["--generic"]);
    assert_same(&at("generic.gguf"), &model);
    assert_same(&at("generic.gguf"), &at("llama-f32.gguf"));
    convert(&at("llama-f32.gguf"), &at("part.gguf"), &["--split-max-tensors", "7"]);
    let first = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).find(|p| text(p).contains("00001-of-"));
    assert_same(&first.unwrap(), &model);
}

#[test]
fn quantization_costs_what_its_bits_say() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = fixture("convert/llama/model");
    convert(&model, &at("f32.gguf"), &["--type", "f32"]);
    convert(&model, &at("q8.gguf"), &["--type", "q8_0"]);
    convert(&model, &at("f16.gguf"), &["--type", "f16"]);
    done(&["quantize", text(&at("f32.gguf")), "-o", text(&at("q4.gguf")), "--type", "Q4_K_M", "--quiet"]);
    let overall = |found: &Value| found["totals"]["relative_error"].as_f64().unwrap();
    let (q8, q4) = (compare(&model, &at("q8.gguf")), compare(&model, &at("q4.gguf")));
    assert!((1e-3..1e-2).contains(&overall(&q8)), "{}", q8["totals"]);
    assert!((2e-2..0.12).contains(&overall(&q4)), "{}", q4["totals"]);
    assert!(overall(&compare(&model, &at("f16.gguf"))) < 1e-4);
    let gate = "model.layers.0.mlp.gate_proj.weight";
    assert!(error(&q8, gate) < error(&q4, gate));
    let tensor = q4["tensors"].as_array().unwrap().iter().find(|t| t["name"] == gate).unwrap();
    assert_eq!((&tensor["a"]["dtype"], &tensor["b"]["dtype"]), (&"BF16".into(), &"Q4_K".into()));
    let keys: Vec<&str> = tensor.as_object().unwrap().keys().map(String::as_str).collect();
    let expected =
        ["name", "a", "b", "outcome", "elements", "max_difference", "rms_difference", "relative_error", "identical"];
    assert_eq!(keys, expected);
    let keys: Vec<&str> = q4["totals"].as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "compared",
        "identical",
        "elements",
        "relative_error",
        "max_difference",
        "worst",
        "only_in_a",
        "only_in_b",
        "other_shape",
        "not_decoded",
    ];
    assert_eq!(keys, expected);
    // Norms aren't quantized.
    assert_eq!(error(&q4, "model.norm.weight"), 0.0);

    // Two GGUFs are compared under GGUF's names, with the same numbers.
    let ggufs = compare(&at("f32.gguf"), &at("q4.gguf"));
    assert_eq!(error(&ggufs, "blk.0.ffn_gate.weight"), error(&q4, gate));
    assert!((overall(&ggufs) - overall(&q4)).abs() < 1e-9);
    let one = done(&["compare", text(&model), text(&at("q4.gguf")), "--json", "--threads", "1"]);
    assert_eq!(serde_json::from_str::<Value>(&one).unwrap(), q4);
}

#[test]
fn transposed_and_stacked_matrices_are_decoded_too() {
    let dir = tempfile::tempdir().unwrap();
    let quantized = dir.path().join("q.gguf");
    for (name, tensors) in [
        ("gpt2", ["transformer.h.1.mlp.c_fc.weight", "transformer.h.0.attn.c_attn.weight"]),
        ("qwen2moe", ["model.layers.1.mlp.experts.1.up_proj.weight", "model.layers.0.self_attn.k_proj.weight"]),
        (
            "gpt-neox",
            ["gpt_neox.layers.0.attention.query_key_value.weight", "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"],
        ),
    ] {
        let model = fixture("convert").join(name).join("model");
        convert(&model, &quantized, &["--type", "q8_0", "--overwrite"]);
        let found = compare(&model, &quantized);
        assert_eq!((&found["totals"]["only_in_b"], &found["totals"]["other_shape"]), (&0.into(), &0.into()));
        // GPT-NeoX has masks and rotary frequencies among its tensors, which follow from the
        // config.
        let mut only_in_a = found["tensors"].as_array().unwrap().iter().filter(|t| t["outcome"] == "only-in-a");
        assert!(only_in_a.all(|t| t["name"].as_str().unwrap().contains(".attention.")), "{name}");
        for tensor in tensors {
            assert!((1e-3..1e-2).contains(&error(&found, tensor)), "{name} {tensor} {}", error(&found, tensor));
        }
    }
}

#[test]
fn names_may_have_the_prefix_that_some_checkpoints_leave_out() {
    let dir = tempfile::tempdir().unwrap();
    let (gguf, folder) = (dir.path().join("m.gguf"), dir.path().join("bare"));
    let model = fixture("convert/gpt2/model");
    convert(&model, &gguf, &["--type", "f32"]);
    fs::create_dir(&folder).unwrap();
    fs::copy(model.join("config.json"), folder.join("config.json")).unwrap();
    rename_tensors(&model.join("model.safetensors"), &folder.join("model.safetensors"), |name| {
        name.strip_prefix("transformer.").unwrap_or(name).to_owned()
    });
    assert_same(&folder, &gguf);
    assert_same(&gguf, &folder);
    assert_same(&folder.join("model.safetensors"), &gguf);
    assert_eq!(compare(&gguf, &folder)["tensors"][0]["name"], "wte.weight");
}

/// Copies a safetensors file with its tensors renamed.
fn rename_tensors(from: &Path, to: &Path, name: impl Fn(&str) -> String) {
    let bytes = fs::read(from).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let header: serde_json::Map<String, Value> = header.into_iter().map(|(key, entry)| (name(&key), entry)).collect();
    let header = serde_json::to_vec(&header).unwrap();
    fs::write(to, [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[8 + length..]].concat()).unwrap();
}

#[test]
fn what_is_missing_or_of_another_shape_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = fixture("convert/llama/model");
    convert(&model, &at("all.gguf"), &["--type", "f16"]);
    done(&[
        "quantize",
        text(&at("all.gguf")),
        "-o",
        text(&at("pruned.gguf")),
        "--type",
        "Q8_0",
        "--prune-layers",
        "1",
        "--quiet",
    ]);
    let found = compare(&at("all.gguf"), &at("pruned.gguf"));
    assert_eq!(found["totals"]["only_in_a"], 9, "{}", found["totals"]);
    let table = done(&["compare", text(&at("pruned.gguf")), text(&at("all.gguf"))]);
    assert!(table.contains("only in B            9"), "{table}");
    let line = table.lines().find(|line| line.ends_with("blk.1.ffn_gate.weight")).unwrap();
    assert!(line.starts_with("only in B") && line.contains("F16") && line.contains("[512, 256]"), "{line}");

    // A model of another size: all matrices differ in shape.
    let found = compare(&model, &fixture("convert/qwen2moe/model"));
    assert!(found["totals"]["other_shape"].as_u64().unwrap() > 0, "{}", found["totals"]);
    let tensors = found["tensors"].as_array().unwrap();
    let other = tensors.iter().find(|t| t["outcome"] == "other-shape").unwrap();
    assert_ne!(other["a"]["shape"], other["b"]["shape"]);

    // A GGUF has some config fields as tensors.
    let long = fixture("convert/llama-rope-llama3/model");
    convert(&long, &at("long.gguf"), &["--type", "f32"]);
    let found = compare(&long, &at("long.gguf"));
    let last = found["tensors"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["name"], &last["outcome"]), (&"rope_freqs.weight".into(), &"only-in-b".into()));
    assert_eq!(found["totals"]["identical"], found["totals"]["compared"]);
}

#[test]
fn tables_show_the_worst_or_everything() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = dir.path().join("q.gguf");
    let model = fixture("convert/llama/model");
    convert(&model, &gguf, &["--type", "Q4_K_M"]);
    let short = done(&["compare", text(&model), text(&gguf)]);
    let lines = short.lines().filter(|line| line.contains("BF16 -> ")).count();
    assert!(lines == 10 && short.contains(" more differ (--tensors)"), "{short}");
    assert!(short.contains("worst tensor         model."), "{short}");
    let long = done(&["compare", text(&model), text(&gguf), "--tensors"]);
    let count = compare(&model, &gguf)["tensors"].as_array().unwrap().len();
    assert_eq!(long.lines().filter(|line| line.ends_with(".weight") && line.contains(" [")).count(), count, "{long}");
    assert!(long.lines().any(|line| line.trim_start().starts_with("identical") && line.ends_with("model.norm.weight")));
    let same = done(&["compare", text(&model), text(&model)]);
    assert!(same.contains("relative error       0\n") && !same.contains("worst"), "{same}");
    let help = done(&["compare", "--help"]);
    assert!(help.contains("exit code is 0"), "{help}");
}

#[test]
fn adapters_and_models_without_counterparts_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (lora, model) = (fixture("lora/plain"), fixture("convert/llama/model"));
    for error in [refusal(&lora, &model), refusal(&model, &lora)] {
        assert!(error.contains("lora/plain: expected a model or tensors, found an adapter; bake"), "{error}");
    }
    convert(&fixture("routing/llama-prompt/adapter"), &at("bank.gguf"), &[]);
    assert!(refusal(&at("bank.gguf"), &at("bank.gguf")).contains("bank.gguf: expected a model or tensors"));
    assert!(refusal(&model, &at("nothing")).contains("found nothing"));

    // A GGUF without a table is compared with another GGUF under its own names, and can't be
    // compared with a folder.
    let imatrix = fixture("quant/imatrix/llama.gguf");
    assert_same(&imatrix, &imatrix);
    let error = refusal(&model, &imatrix);
    assert!(error.contains("imatrix/llama.gguf") && error.contains("general.architecture"), "{error}");

    let mut bytes = fs::read(model.join("model.safetensors")).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&[0x80, 0x7f]);
    fs::write(at("bad.safetensors"), bytes).unwrap();
    let error = refusal(&at("bad.safetensors"), &model);
    assert!(error.contains("bad.safetensors: tensor") && error.contains("finite"), "{error}");
}
