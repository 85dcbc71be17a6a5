//! Commands that run or describe a model: generate, route, imatrix, train, demo, inspect.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::fixtures;
use crate::program::{INPUT, atombank, done, refused, text};
use crate::{edit, pair};

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
        (
            fixtures().join("convert/bert/model"),
            words.clone(),
            "architectures: expected a class that this version runs, found Bert",
        ),
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
    let bank = p.dir.path().join("bank.gguf");
    done(&["convert", text(&p.bank), "-o", text(&bank), "--quiet"]);
    for (path, kind, expected) in [
        (bank.clone(), "bank", "cosine with each atom"),
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
    let of_file: Value = serde_json::from_str(&done(&["inspect", text(&bank), "--json"])).unwrap();
    assert_eq!(of_file, json, "the same as of the folder");
    assert_eq!(json["parameters"], 19752);
    assert_eq!(json["lora_parameters"], 14336);
    assert_eq!(json["atoms"].as_array().unwrap().len(), 8);
}

#[test]
fn rows_are_shown_as_tokens_before_they_are_trained_on() {
    let case = fixtures().join("train/multi-turn-mask");
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("train.toml");
    let settings = format!(
        "base = {:?}\noutput = {:?}\nkind = 'lora'\n[data]\ntrain = {:?}\nchat_template = {:?}\n",
        fixtures().join("convert/llama/model"),
        folder.path().join("run"),
        case.join("rows.jsonl"),
        case.join("chat_template.jinja"),
    );
    fs::write(&config, settings).unwrap();
    let shown = done(&["train", text(&config), "--preview", "1"]);
    assert!(shown.contains("rows.jsonl: line 1: 88 tokens, 11 carry loss, the first 51 route\n"), "{shown}");
    let learned: Vec<&str> = shown.lines().filter(|line| line.starts_with("  > ")).collect();
    assert_eq!(learned.len(), 2, "{shown}");
    assert!(learned[0].starts_with("  > w|h|") && learned[0].ends_with("|e|<|im_end|>|"), "{shown}");
    assert!(shown.ends_with("1 of 3 rows; tokens that carry loss are marked with >\n"), "{shown}");
    let json: Value = serde_json::from_str(&done(&["train", text(&config), "--preview", "9", "--json"])).unwrap();
    let expected: Value = serde_json::from_slice(&fs::read(case.join("expected.json")).unwrap()).unwrap();
    for (row, expected) in json["rows"].as_array().unwrap().iter().zip(expected["rows"].as_array().unwrap()) {
        assert_eq!((&row["ids"], &row["mask"]), (&expected["input_ids"], &expected["mask"]));
    }
    assert!(!folder.path().join("run").exists());
}
