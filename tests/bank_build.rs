//! Tests `atombank bank build`: it turns LoRAs into a bank that selects each by its description and represents it.

#[path = "common/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use atombank::adapter::{HostTensor, Lora, LoraConfig};
use atombank::arch::{HfFolder, LinearLayer};
use atombank::linalg::{Matrix, to_rows};
use program::{atombank, copy, done, fixture, text};
use serde_json::Value;

const TASKS: [(&str, &str, usize); 8] = [
    ("reverse", "Reverse the letters.", 4),
    ("capitals", "Use capital letters.", 6),
    ("double", "Double every letter.", 8),
    ("vowels", "Leave out the vowels.", 10),
    ("rotate", "Put the last letter first.", 12),
    ("dashes", "Spell it with dashes.", 14),
    ("french", "Translate the sentence into French.", 16),
    ("short", "Sum up the whole text in one line.", 16),
];

/// Numbers in -1..1 that are the same on every run.
struct Numbers(u64);

impl Numbers {
    fn matrix(&mut self, rows: usize, cols: usize, scale: f64) -> Matrix {
        Matrix::from_fn(rows, cols, |_, _| {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            scale * ((self.0 >> 33) as f64 / f64::from(1u32 << 30) - 1.0)
        })
    }
}

struct Case {
    dir: tempfile::TempDir,
    base: PathBuf,
    loras: Vec<PathBuf>,
}

/// The demo's base and a LoRA for each task, made as `B_l C_i A_l` with common factors of rank 16, or with separate
/// factors.
fn case(common: bool) -> Case {
    let dir = tempfile::tempdir().unwrap();
    let base = copy(&fixture("demo/base"), &dir.path().join("base"));
    let config = HfFolder::open(&base).unwrap().config.clone();
    let mut numbers = Numbers(1);
    let targets = ["q_proj", "o_proj", "up_proj"].map(str::to_owned);
    let sites: Vec<LinearLayer> = config.selected(&targets).map(|linear| linear.site).collect();
    let factors = |r: usize, numbers: &mut Numbers| -> Vec<(Matrix, Matrix)> {
        let pair = |site: &LinearLayer| {
            let linear = config.linear(*site).unwrap();
            let (d_out, d_in) = (linear.d_out, linear.d_in);
            (numbers.matrix(r, d_in, 0.1), numbers.matrix(d_out, r, 0.1))
        };
        sites.iter().map(pair).collect()
    };
    let shared = factors(16, &mut numbers);
    let mut loras = Vec::new();
    for (name, description, r) in TASKS {
        let (left, right) = (numbers.matrix(16, r, 0.5), numbers.matrix(r, 16, 0.5));
        let own = match common {
            true => shared.iter().map(|(a, b)| (&right * a, b * &left)).collect(),
            false => factors(r, &mut numbers),
        };
        let mut tensors = BTreeMap::new();
        for (site, (a, b)) in sites.iter().zip(own) {
            for (which, m) in [('A', a), ('B', b)] {
                let name = format!("base_model.model.{site}.lora_{which}.weight");
                let shape = vec![m.nrows(), m.ncols()];
                tensors.insert(name, HostTensor { shape, values: to_rows(&m).into() });
            }
        }
        let config = LoraConfig {
            r,
            lora_alpha: 8.0,
            use_rslora: r == 4,
            target_modules: Some(["q_proj", "o_proj", "up_proj"].map(str::to_owned).to_vec()),
            base_model_name_or_path: String::new(),
            ..LoraConfig::default()
        };
        let path = dir.path().join(name);
        Lora { path: path.clone(), config, tensors }.save(&path, false).unwrap();
        let card = match name {
            "reverse" => format!("---\ndescription: {description}\n---\n# A title\n"),
            _ => format!("# A title\n\n{description}\n\nMore about it.\n"),
        };
        fs::write(path.join("README.md"), card).unwrap();
        loras.push(path);
    }
    Case { dir, base, loras }
}

impl Case {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn build<'a>(&'a self, bank: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
        let mut args = vec!["bank", "build", text(&self.base)];
        args.extend(self.loras.iter().map(|lora| text(lora)));
        args.extend(["-o", text(bank)]);
        args.extend(more);
        args
    }
}

fn refusal(args: &[&str]) -> String {
    let out = atombank(args);
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!((out.status.code(), stderr.lines().count()), (Some(1), 1), "{args:?}: {stderr}");
    assert!(out.stdout.is_empty(), "{args:?}");
    stderr
}

/// All weights of a folder, in f32.
fn weights(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let folder = HfFolder::open(folder).unwrap();
    let read = |t: &atombank::plan::PlannedTensor| {
        let t = atombank::plan::PlannedTensor { dtype: atombank::DType::F32, ..t.clone() };
        (t.name.clone(), t.read().unwrap())
    };
    folder.weights().tensors.iter().map(read).collect()
}

/// `|a - b|` over all weights.
fn distance(a: &BTreeMap<String, Vec<f32>>, b: &BTreeMap<String, Vec<f32>>) -> f64 {
    let squares = a.iter().flat_map(|(name, a)| a.iter().zip(&b[name]).map(|(a, b)| f64::from(a - b).powi(2)));
    squares.sum::<f64>().sqrt()
}

#[test]
fn loras_of_one_basis_are_picked_by_description_and_come_out_as_they_went_in() {
    let case = case(true);
    let bank = case.path("bank");
    let json: Value = serde_json::from_str(&done(&case.build(&bank, &["--json"]))).unwrap();
    assert_eq!(json["rank"], 16);
    for (lora, (name, description, rank)) in json["loras"].as_array().unwrap().iter().zip(TASKS) {
        assert_eq!((&lora["name"], &lora["rank"]), (&name.into(), &rank.into()));
        assert_eq!(lora["descriptions"][0], description);
        assert!(lora["relative_error"].as_f64().unwrap() < 1e-5, "{lora}");
        assert!(lora["weight"].as_f64().unwrap() > 0.999, "{lora}");
    }
    let base = weights(&case.base);
    for (i, (name, description, _)) in TASKS.iter().enumerate() {
        let request = ["--instruction", *description, "--prompt", "garden", "--json"];
        for routing in ["model", "prior"] {
            let args = [&["route", text(&case.base), text(&bank), "--routing", routing], &request[..]].concat();
            let routes: Value = serde_json::from_str(&done(&args)).unwrap();
            for alpha in routes["alphas"].as_array().unwrap() {
                assert!(alpha[i].as_f64().unwrap() > 0.99, "{name} by {routing}: {alpha}");
            }
        }
        let (baked, merged) = (case.path(&format!("baked-{i}")), case.path(&format!("merged-{i}")));
        let bake = ["bake", text(&case.base), text(&bank), "-o", text(&baked), "--routing", "prior", "--no-verify"];
        done(&[&bake[..], &["--type", "f32"], &request[..2]].concat());
        done(&["merge", text(&case.base), text(&case.loras[i]), "-o", text(&merged), "--type", "f32"]);
        let (baked, merged) = (weights(&baked), weights(&merged));
        let relative = distance(&baked, &merged) / distance(&merged, &base);
        println!("{name}: {relative:.2e}");
        assert!(relative < 1e-3, "{name}: {relative}");
    }
}

#[test]
fn a_sentence_encoder_picks_loras_as_well() {
    let case = case(true);
    let (bank, encoder) = (case.path("bank"), fixture("sentence/encoder"));
    let json: Value =
        serde_json::from_str(&done(&case.build(&bank, &["--encoder", text(&encoder), "--json"]))).unwrap();
    for (i, (lora, (name, description, _))) in json["loras"].as_array().unwrap().iter().zip(TASKS).enumerate() {
        assert!(lora["weight"].as_f64().unwrap() > 0.999, "{lora}");
        let args =
            ["route", text(&case.base), text(&bank), "--instruction", description, "--prompt", "garden", "--json"];
        let routes: Value = serde_json::from_str(&done(&args)).unwrap();
        for alpha in routes["alphas"].as_array().unwrap() {
            assert!(alpha[i].as_f64().unwrap() > 0.99, "{name}: {alpha}");
        }
    }
    let config: Value = serde_json::from_slice(&fs::read(bank.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["instruction_encoder"], &config["instruction_dim"]), (&text(&encoder).into(), &24.into()));
    let nowhere = refusal(&case.build(&case.path("other"), &["--encoder", "nowhere"]));
    assert!(nowhere.contains("found nowhere") && !case.path("other").exists(), "{nowhere}");
}

#[test]
fn the_report_tells_how_much_unrelated_loras_lose() {
    let case = case(false);
    let bank = case.path("bank");
    let out = atombank(&case.build(&bank, &["--describe", "short=Be brief.", "--describe", "short=In a few words."]));
    let (table, notes) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    assert!(table.contains("#7    short") && table.contains("Be brief. | In a few words."), "{table}");
    assert!(notes.contains("of 8 LoRAs are off by more than 5%: they share no basis of rank 16"), "{notes}");
    let args = case.build(&bank, &["--rank", "86", "--json", "--overwrite"]);
    let json: Value = serde_json::from_str(&done(&args)).unwrap();
    assert!(json["relative_error"].as_f64().unwrap() < 1e-5, "{json}");
}

#[test]
fn what_makes_no_bank_gets_one_line_and_leaves_nothing() {
    let case = case(true);
    let bank = case.path("bank");
    let [base, first, second] = [&case.base, &case.loras[0], &case.loras[1]].map(|path| text(path));
    let two = |more: &[&'static str]| {
        let args = ["bank", "build", base, first, second, "-o", text(&bank)];
        refusal(&[&args[..], more].concat())
    };
    let same = two(&["--describe", "reverse=Do it.", "--describe", "capitals=Do it."]);
    assert!(same.contains("capitals: description: expected another than that of reverse, found \"Do it.\""), "{same}");
    let close = two(&["--describe", "reverse=a b c a", "--describe", "capitals=a c b a"]);
    assert!(
        close.contains("expected one that the encoder tells from \"a b c a\" of reverse, found \"a c b a\""),
        "{close}"
    );
    let unknown = two(&["--describe", "other=Do it."]);
    assert!(unknown.contains("--describe: expected one of reverse, capitals, found other"), "{unknown}");
    let rank = two(&["--rank", "11"]);
    assert!(rank.contains("--rank: expected 1 to 10, the sum of the LoRAs' ranks, found 11"), "{rank}");
    let none = atombank(&["bank", "build", base, first, second, "-o", text(&bank), "--top-k", "0"]);
    assert_eq!(none.status.code(), Some(2), "a bank of no atoms at a time is a usage error");
    let few = refusal(&["bank", "build", base, first, "-o", text(&bank)]);
    assert!(few.contains("LoRAs for a bank: expected two or more, found 1"), "{few}");
    let llama = fixture("convert/llama/model");
    let other = refusal(&["bank", "build", text(&llama), first, second, "-o", text(&bank)]);
    assert!(other.contains("this adapter belongs to another base model"), "{other}");
    assert!(!bank.exists());
    done(&case.build(&bank, &[]));
    let made = case.path("made");
    let bank_given = refusal(&["bank", "build", base, first, text(&bank), "-o", text(&made)]);
    assert!(
        bank_given.contains("peft_type: expected LORA, found an atom bank; atombank bake with --to lora"),
        "{bank_given}"
    );
    assert!(refusal(&case.build(&bank, &[])).contains("already exists"));
    assert!(!made.exists());
}

/// Changes an adapter's settings.
fn set(lora: &Path, fields: Value) {
    let path = lora.join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
}

#[test]
fn loras_of_every_form_are_run_and_made_into_banks_and_others_refused_by_name() {
    let case = case(true);
    let logits = |name: &str, adapter: &Path| {
        let folder = case.path(name);
        let prompt = ["--prompt", "one two", "--max-tokens", "1"];
        let out = ["--save-logits", text(&folder)];
        done(&[&["generate", text(&case.base), "--adapter", text(adapter)][..], &prompt, &out].concat());
        fs::read(folder.join("logits.safetensors")).unwrap()
    };
    let lora = &case.loras[0];
    let before = logits("before", lora);
    let build = |bank: &Path| {
        let [base, one, other] = [&case.base, &case.loras[0], &case.loras[1]].map(|path| text(path));
        done(&["bank", "build", base, one, other, "-o", text(bank)]);
        fs::read(bank.join("adapter_model.safetensors")).unwrap()
    };
    let built = build(&case.path("before-bank"));
    // PEFT saves whole paths for "all-linear"; patterns that give the default rank and alpha change nothing.
    let config: Value = serde_json::from_slice(&fs::read(lora.join("adapter_config.json")).unwrap()).unwrap();
    let (r, alpha) = (config["r"].clone(), config["lora_alpha"].clone());
    let paths: Vec<String> = (0..layers(&case.base))
        .flat_map(|layer| {
            ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"].map(|m| format!("model.layers.{layer}.{m}"))
        })
        .collect();
    set(
        lora,
        serde_json::json!({"target_modules": paths, "rank_pattern": {"q_proj": r}, "alpha_pattern": {"o_proj": alpha}}),
    );
    assert_eq!(logits("paths", lora), before);
    assert_eq!(build(&case.path("again-bank")), built);
    // Another alpha for some modules changes the model.
    set(lora, serde_json::json!({"alpha_pattern": {"o_proj": 3.0 * alpha.as_f64().unwrap()}}));
    assert_ne!(logits("pattern", lora), before);
    set(lora, serde_json::json!({"alora_invocation_tokens": [1, 2]}));
    let bank = case.path("never");
    for args in
        [&["generate", text(&case.base), "--adapter", text(lora), "--prompt", "one"][..], &case.build(&bank, &[])]
    {
        let refused = refusal(args);
        assert!(refused.contains("alora_invocation_tokens: expected a LoRA that is a fixed change"), "{refused}");
    }
    set(lora, serde_json::json!({"alora_invocation_tokens": null, "peft_type": "XLORA"}));
    let refused = refusal(&["generate", text(&case.base), "--adapter", text(lora), "--prompt", "one"]);
    assert!(refused.contains("found XLORA"), "{refused}");
    assert!(!bank.exists());
}

fn layers(base: &Path) -> usize {
    let config: Value = serde_json::from_slice(&fs::read(base.join("config.json")).unwrap()).unwrap();
    config["num_hidden_layers"].as_u64().unwrap() as usize
}
