//! Banks as they are used: mixtures, weights by hand, many outputs at once, and which rows pick which atoms.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::pair;
use crate::program::{INPUT, USAGE, done, refused, text};

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&done(&[args, &["--json"]].concat())).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn mixtures_stay_on_the_simplex_between_their_parts_and_are_measured_for_each() {
    let p = pair();
    let out = p.dir.path().join("mixed");
    let (one, other) = ("Reverse the letters.", "Set x=1.");
    let route = |instruction: &str| {
        json(&["route", text(&p.base), text(&p.bank), "--instruction", instruction, "--prompt", "garden"])
    };
    let (a, b) = (route(one), route(other));
    let bake = ["bake", text(&p.base), text(&p.bank), "--prompt", "garden", "-o", text(&out)];
    let parts = ["--instruction", "Reverse the letters.=3", "--instruction", "Set x=1.=1"];
    let mixed = json(&[&bake[..], &parts].concat());
    for block in 0..2 {
        let alphas = numbers(&mixed["alphas"][block]);
        assert!((alphas.iter().sum::<f64>() - 1.0).abs() < 1e-6 && alphas.iter().all(|alpha| *alpha >= 0.0));
        let (a, b) = (numbers(&a["alphas"][block]), numbers(&b["alphas"][block]));
        for ((mixed, a), b) in alphas.iter().zip(a).zip(b) {
            assert!((mixed - (0.75 * a + 0.25 * b)).abs() < 1e-6);
        }
    }
    assert_eq!((&mixed["parts"][1]["instruction"], &mixed["parts"][0]["weight"]), (&other.into(), &0.75.into()));
    for part in mixed["parts"].as_array().unwrap() {
        assert!(part["verified"]["mean_kl"].as_f64().unwrap() > 0.0, "a mixture is an approximation: {part}");
    }
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("    0.750  Reverse the letters.\n"), "{card}");
    // One instruction has no weight, whatever its text.
    let single = p.dir.path().join("single");
    let args = ["bake", text(&p.base), text(&p.bank), "-o", text(&single), "--instruction", "Set x=1."];
    assert!(json(&args)["verified"].is_object());
    assert!(fs::read_to_string(single.join("README.md")).unwrap().contains("    Set x=1.\n"));
    let never = p.dir.path().join("never");
    let args = ["bake", text(&p.base), text(&p.bank), "-o", text(&never)];
    let line = refused(USAGE, &[&args[..], &["--instruction", "a=1", "--instruction", "b"]].concat());
    assert!(
        line.contains("--instruction: expected TEXT=WEIGHT for each of several instructions, found \"b\""),
        "{line}"
    );
    let line = refused(USAGE, &[&args[..], &["--instruction", "a=1", "--instruction", "b=-1"]].concat());
    assert!(line.contains("--instruction: expected a weight above 0 for \"b\", found -1"), "{line}");
    assert!(!never.exists());
}

#[test]
fn weights_by_hand_are_baked_for_all_blocks_or_for_one() {
    let p = pair();
    let bake = |name: &str, more: &[&str]| {
        let out = p.dir.path().join(name);
        json(&[&["bake", text(&p.base), text(&p.bank), "-o", text(&out), "--to", "lora"], more].concat())
    };
    let found = bake("hand", &["--alphas", "3=0.7,1=0.3", "--alphas", "1:0=1"]);
    assert_eq!(
        numbers(&found["alphas"][0]).iter().map(|a| (a * 10.0).round()).collect::<Vec<_>>()[..4],
        [0.0, 3.0, 0.0, 7.0]
    );
    assert_eq!(numbers(&found["alphas"][1])[0], 1.0);
    assert!(found["verified"].is_null(), "nothing was routed that it could be compared with");
    // With an instruction, what routing does there is compared.
    let found = bake("both", &["--alphas", "3=1", "--instruction", "Reverse the letters."]);
    assert!(found["verified"]["mean_kl"].as_f64().unwrap() > 0.0);
    // The weights by which a bank routes give the baked bank, but for their digits.
    let never = p.dir.path().join("never");
    let args = ["bake", text(&p.base), text(&p.bank), "-o", text(&never), "--alphas"];
    for (weights, code, expected) in [
        ("9=1", INPUT, "alphas: expected atoms 0 to 7, found atom 9"),
        ("5:1=1", INPUT, "alphas: expected blocks 0 to 1, found block 5"),
        ("0:1=1", INPUT, "alphas: expected weights for every block, found none for block 1"),
        ("1=0.5", USAGE, "--alphas: expected weights that add up to 1, found 0.500"),
    ] {
        let line = refused(code, &[&args[..], &[weights]].concat());
        assert!(line.contains(expected), "{line}");
    }
    assert!(!never.exists());
}

#[test]
fn many_outputs_at_once_are_those_that_single_ones_are() {
    let p = pair();
    let at = |name: &str| p.dir.path().join(name);
    fs::write(at("all.txt"), "Reverse the letters.\nup\tUse capital letters.\n").unwrap();
    let files = |path: &Path| -> Vec<(String, Vec<u8>)> {
        if path.is_file() {
            return vec![(String::new(), fs::read(path).unwrap())];
        }
        let mut files: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        files.iter().map(|path| (name(path), fs::read(path).unwrap())).collect()
    };
    for (ending, options) in [(".gguf", &["--type", "q8_0"][..]), ("", &[]), ("-lora", &["--to", "lora"])] {
        let options = [options, &["--prompt", "garden", "--no-verify"]].concat();
        let pattern = at(&format!("{{name}}{ending}"));
        let all = ["bake", text(&p.base), text(&p.bank), "-o", text(&pattern), "--all"];
        let list = at("all.txt");
        let made = json(&[&all[..], &[text(&list)], &options].concat());
        assert_eq!(made.as_array().unwrap().len(), 2);
        for (name, instruction) in [("reverse-the-letters", "Reverse the letters."), ("up", "Use capital letters.")] {
            let single = at(&format!("single{ending}"));
            let args = ["bake", text(&p.base), text(&p.bank), "-o", text(&single), "--instruction", instruction];
            done(&[&args[..], &options, &["--overwrite"]].concat());
            let of_all = at(&format!("{name}{ending}"));
            // A GGUF's title is its own; there is none for these.
            assert!(files(&of_all) == files(&single), "{name}{ending}");
        }
    }
    let list = at("all.txt");
    let fixed = at("fixed.gguf");
    let line = refused(USAGE, &["bake", text(&p.base), text(&p.bank), "-o", text(&fixed), "--all", text(&list)]);
    assert!(line.contains("--output: expected a path whose last part has {name} in it"), "{line}");
}

#[test]
fn rows_show_which_atoms_they_pick_and_a_gguf_routes_alike() {
    let p = pair();
    let at = |name: &str| p.dir.path().join(name);
    let rows = "{\"instruction\": \"Reverse.\", \"prompt\": \"garden\", \"completion\": \"x\"}\n\
                {\"instruction\": \"Shout.\", \"prompt\": \"window\", \"completion\": \"x\"}\n\
                {\"instruction\": \"Reverse.\", \"prompt\": \"wall\", \"completion\": \"x\"}\n";
    fs::write(at("rows.jsonl"), rows).unwrap();
    let (data, bank) = (at("rows.jsonl"), at("bank.gguf"));
    let found = json(&["route", text(&p.base), text(&p.bank), "--data", text(&data)]);
    let alone = |instruction: &str, prompt: &str| {
        let args = ["route", text(&p.base), text(&p.bank), "--instruction", instruction, "--prompt", prompt];
        json(&args)["alphas"].clone()
    };
    let first = alone("Reverse.", "garden");
    for (a, b) in numbers(&found["rows"][0]["alphas"][1]).iter().zip(numbers(&first[1])) {
        assert!((a - b).abs() < 1e-5, "in a batch a row gets what it gets alone");
    }
    assert_eq!(found["instructions"][0]["rows"], 2);
    let picked = found["blocks"][0]["picked_by"].as_array().unwrap().iter().flat_map(|rows| rows.as_array().unwrap());
    assert_eq!(picked.count(), 3, "each row picks one atom");
    let entropy = found["blocks"][0]["entropy"].as_f64().unwrap();
    assert!((0.0..=8f64.ln()).contains(&entropy));
    done(&["convert", text(&p.bank), "-o", text(&bank)]);
    assert_eq!(found, json(&["route", text(&p.base), text(&bank), "--data", text(&data)]));
    let table = done(&["route", text(&p.base), text(&p.bank), "--data", text(&data)]);
    assert!(table.starts_with("3 rows, 2 instructions\nblock 0: entropy of a row "), "{table}");
    assert!(table.contains("  Reverse.      2 rows  #"), "{table}");

    fs::write(at("prompts.txt"), "garden\nwindow\n").unwrap();
    let prompts = at("prompts.txt");
    let args = ["route", text(&p.base), text(&p.bank), "--prompts", text(&prompts), "--instruction", "Reverse."];
    let of_prompts = json(&args);
    assert_eq!((&of_prompts["rows"][1]["prompt"], of_prompts["rows"].as_array().unwrap().len()), (&"window".into(), 2));
    let line =
        refused(INPUT, &["route", text(&p.base), text(&p.bank), "--prompts", text(&prompts), "--routing", "prior"]);
    assert!(line.contains("expected an instruction, found none in row 1; pass --instruction"), "{line}");

    let generate = ["generate", text(&p.base), "--max-tokens", "2", "--instruction", "Reverse.", "--prompt", "garden"];
    let shown = [&generate[..], &["--show-routing", "--adapter"]].concat();
    let said = done(&[&shown[..], &[text(&bank)]].concat());
    assert!(said.starts_with("block 0   #") && said.contains("\nprior     #"), "{said}");
    assert_eq!(json(&[&shown[..], &[text(&p.bank)]].concat())["routing"]["alphas"], first);
    let lora = crate::common::fixtures().join("demo/lora");
    let line = refused(INPUT, &[&shown[..], &[text(&lora)]].concat());
    assert!(line.contains("--show-routing: expected an atom bank, found an adapter that doesn't route"), "{line}");
}
