//! Tests banks with a fixed mix of atoms on models of no known class: nets of convolutions and linear layers as tensors
//! alone, which no config describes and no router reads.
#![cfg(feature = "train")] // The command `bake`.

#[path = "common/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use atombank::DType;
use atombank::bank::AtomBank;
use atombank::formats::pytorch::PytorchFile;
use atombank::formats::safetensors::SafetensorsFile;
use atombank::source::Source;
use program::{INPUT, USAGE, atombank, done, fixture, refused, text};
use serde_json::{Value, json};

/// A tensor: shape, values.
type Stored = (Vec<usize>, Vec<f32>);
type Tensors = BTreeMap<String, Stored>;

const R: usize = 2;
const PREFIX: &str = "base_model.model.";

fn contents(source: &dyn Source) -> Tensors {
    let all = source.tensors().iter().enumerate().filter(|(_, info)| info.dtype == DType::F32);
    let read = |(i, info): (usize, &atombank::source::TensorInfo)| {
        let values = source.bytes(i).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (info.name.clone(), (info.shape.clone(), values))
    };
    all.map(read).collect()
}

fn safetensors(path: &Path) -> Tensors {
    contents(&SafetensorsFile::open(path).unwrap())
}

fn pytorch(path: &Path, key: &str) -> Tensors {
    contents(&PytorchFile::open(path, Some(key)).unwrap())
}

fn write(path: &Path, tensors: &Tensors) {
    let bytes: Vec<Vec<u8>> = tensors.values().map(|(_, v)| v.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, (shape, _)), bytes)| {
        (name.as_str(), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views.collect::<Vec<_>>(), None, path).unwrap();
}

/// Numbers that look random, from -1 to 1.
fn numbers(shape: &[usize], seed: u32) -> Stored {
    let next = |i: usize| (i as u32 + 1).wrapping_mul(2654435761).wrapping_add(seed).wrapping_mul(1013904223);
    let count = shape.iter().product();
    (shape.to_vec(), (0..count).map(|i| ((next(i) ^ (next(i) >> 15)) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect())
}

fn named(tensors: &[(&str, Stored)]) -> Tensors {
    tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect()
}

/// A net of two convolutions and three linear layers.
fn net() -> Tensors {
    named(&[
        ("stem.conv.weight", numbers(&[4, 3, 3, 3], 1)),
        ("stem.conv.bias", numbers(&[4], 2)),
        ("stem.mix.weight", numbers(&[6, 4, 1, 1], 3)),
        ("blocks.0.fc.weight", numbers(&[6, 6], 4)),
        ("blocks.3.fc.weight", numbers(&[6, 6], 5)),
        ("head.weight", numbers(&[5, 6], 6)),
    ])
}

/// The modules of a bank, with the shapes of A and B.
fn bank_of(modules: &[(&str, &[usize], &[usize])]) -> Tensors {
    let mut tensors = named(&[("atom_bank.atoms", numbers(&[4, R, R], 9))]);
    for (place, (module, a, b)) in modules.iter().enumerate() {
        tensors.insert(format!("{PREFIX}{module}.lora_A.weight"), numbers(a, 20 + place as u32));
        tensors.insert(format!("{PREFIX}{module}.lora_B.weight"), numbers(b, 40 + place as u32));
    }
    tensors
}

fn linears() -> Tensors {
    bank_of(&[("blocks.0.fc", &[R, 6], &[6, R]), ("blocks.3.fc", &[R, 6], &[6, R]), ("head", &[R, 6], &[5, R])])
}

/// Writes a bank's folder.
fn bank(folder: &Path, tensors: &Tensors, more: Value) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    let mut config = json!({ "peft_type": "QUERYABLE_LORA", "routing": "fixed", "r": R, "lora_alpha": 3, "num_atoms": 4,
        "target_modules": ["fc", "head"] });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    write(&folder.join("adapter_model.safetensors"), tensors);
    folder.to_owned()
}

/// Checks that `found` is `W + s B M A` with the mix that `alpha` gives for each module, and the base's value elsewhere.
#[track_caller]
fn assert_baked(found: &Tensors, base: &Tensors, bank: &Tensors, alpha: impl Fn(&str) -> Vec<f64>) {
    assert!(found.keys().eq(base.keys()));
    let atoms = &bank["atom_bank.atoms"].1;
    for (name, (shape, values)) in base {
        let factor = |end: &str| bank.get(&format!("{PREFIX}{}{end}", name.trim_end_matches("weight")));
        let (Some(a), Some(b)) = (factor("lora_A.weight"), factor("lora_B.weight")) else {
            assert_eq!(&found[name].1, values, "{name}");
            continue;
        };
        let alpha = alpha(name);
        let m = |i: usize, j: usize| -> f64 {
            alpha.iter().enumerate().map(|(k, w)| w * f64::from(atoms[(k * R + i) * R + j])).sum()
        };
        let columns = values.len() / shape[0];
        for (place, value) in values.iter().enumerate() {
            let (row, column) = (place / columns, place % columns);
            let terms = (0..R * R).map(|ij| {
                f64::from(b.1[row * R + ij / R]) * m(ij / R, ij % R) * f64::from(a.1[ij % R * columns + column])
            });
            let expected = f64::from(*value) + 1.5 * terms.sum::<f64>();
            assert!((f64::from(found[name].1[place]) - expected).abs() < 2e-6, "{name}");
        }
    }
}

#[test]
fn a_mix_is_added_to_linear_layers_of_tensors_alone() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(&at("net.safetensors"), &net());
    let bank = bank(&at("bank"), &linears(), json!({}));
    let told = done(&[
        "bake",
        text(&at("net.safetensors")),
        text(&bank),
        "--alphas",
        "3=0.7,1=0.3",
        "-o",
        text(&at("out.safetensors")),
    ]);
    assert!(told.starts_with("block 0   #3 0.70  #1 0.30\n"), "{told}");
    let mix = |_: &str| vec![0.0, 0.3, 0.0, 0.7];
    assert_baked(&safetensors(&at("out.safetensors")), &net(), &linears(), mix);
    // The settings can hold the mix. Then the bank is an adapter like any other, too.
    let bank = self::bank(&at("mixed"), &linears(), json!({"alphas": [0, 0.3, 0, 0.7]}));
    for (command, out) in [("bake", "again.safetensors"), ("merge", "merged.safetensors")] {
        done(&[command, text(&at("net.safetensors")), text(&bank), "-o", text(&at(out)), "--quiet"]);
        assert_eq!(safetensors(&at(out)), safetensors(&at("out.safetensors")));
    }
    // As a LoRA, which gives the same.
    done(&["bake", text(&at("net.safetensors")), text(&bank), "--to", "lora", "-o", text(&at("lora")), "--quiet"]);
    done(&[
        "merge",
        text(&at("net.safetensors")),
        text(&at("lora")),
        "-o",
        text(&at("by-lora.safetensors")),
        "--quiet",
    ]);
    assert_eq!(safetensors(&at("by-lora.safetensors")), safetensors(&at("out.safetensors")));
    let shown = done(&["inspect", text(&bank)]);
    assert!(shown.contains("a fixed mix of 4 atoms") && !shown.contains("atom_bank"), "{shown}");
    let line = refused(INPUT, &["convert", text(&bank), "-o", text(&at("bank.gguf"))]);
    assert!(line.contains("routing: expected prompt or token: a bank that routes, found fixed"), "{line}");
}

#[test]
fn settings_that_change_nothing_are_named_and_those_that_are_no_json_too() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(&at("net.safetensors"), &net());
    let mix = json!({ "alphas": [0.1, 0.2, 0.3, 0.4] });
    let notes = |name: &str, more: Value| {
        let mut settings = mix.clone();
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let bank = bank(&at(name), &linears(), settings);
        let out = at(&format!("{name}.safetensors"));
        let run = atombank(&["bake", text(&at("net.safetensors")), text(&bank), "-o", text(&out)]);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8(run.stderr).unwrap()
    };
    let found = notes("set", json!({ "temperature": 0.5, "growth": [{ "num_atoms": 2 }], "top_k": null }));
    assert!(
        found.contains("the mix of atoms is fixed, so that growth, temperature in its settings change nothing"),
        "{found}"
    );
    assert!(!notes("unset", json!({ "temperature": 1.0, "growth": [] })).contains("change nothing"));
    let broken = bank(&at("broken"), &linears(), mix.clone());
    fs::write(broken.join("adapter_config.json"), "{ \"peft_type\": ").unwrap();
    let (base, out) = (at("net.safetensors"), at("x.safetensors"));
    let line = refused(INPUT, &["bake", text(&base), text(&broken), "-o", text(&out)]);
    assert!(line.contains("adapter_config.json: expected a JSON object"), "{line}");
}

#[test]
fn blocks_have_mixes_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(&at("net.safetensors"), &net());
    let mut tensors = linears();
    tensors.retain(|name, _| !name.contains("head"));
    let settings = json!({"block_size": 2, "target_modules": r"blocks\.\d\.fc"});
    let bank = bank(&at("bank"), &tensors, settings);
    let mix = |name: &str| if name.contains(".3.") { vec![0.5, 0.5, 0.0, 0.0] } else { vec![0.0, 0.0, 1.0, 0.0] };
    let bake = |alphas: &[&str], out: &str| {
        let mut args = vec!["bake", "BASE", "BANK", "--quiet", "--json", "-o", "OUT"];
        let (base, out) = (at("net.safetensors"), at(out));
        (args[1], args[2], args[6]) = (text(&base), text(&bank), text(&out));
        args.extend(alphas.iter().flat_map(|alphas| ["--alphas", alphas]));
        let told: Value = serde_json::from_str(&done(&args)).unwrap();
        assert_eq!(told["alphas"], json!({"0": [0.0, 0.0, 1.0, 0.0], "1": [0.5, 0.5, 0.0, 0.0]}));
        safetensors(&out)
    };
    assert_baked(&bake(&["0:2=1", "1:0=0.5,1=0.5"], "a.safetensors"), &net(), &tensors, mix);
    assert_baked(&bake(&["2=1", "1:0=0.5,1=0.5"], "b.safetensors"), &net(), &tensors, mix);
}

#[test]
fn convolutions_and_shared_storages_get_a_mix() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(&at("net.safetensors"), &net());
    let kernels = bank_of(&[("stem.conv", &[R, 3, 3, 3], &[4, R, 1, 1]), ("stem.mix", &[R, 4, 1, 1], &[6, R, 1, 1])]);
    let targets = json!({"target_modules": ["conv", "mix"], "alphas": [[0.25, 0.25, 0.25, 0.25]]});
    let of_kernels = bank(&at("kernels"), &kernels, targets);
    done(&["bake", text(&at("net.safetensors")), text(&of_kernels), "-o", text(&at("out.safetensors")), "--quiet"]);
    assert_baked(&safetensors(&at("out.safetensors")), &net(), &kernels, |_| vec![0.25; 4]);
    done(&[
        "bake",
        text(&at("net.safetensors")),
        text(&of_kernels),
        "--to",
        "lora",
        "-o",
        text(&at("lora")),
        "--quiet",
    ]);
    done(&[
        "merge",
        text(&at("net.safetensors")),
        text(&at("lora")),
        "-o",
        text(&at("by-lora.safetensors")),
        "--quiet",
    ]);
    assert_eq!(safetensors(&at("by-lora.safetensors")), safetensors(&at("out.safetensors")));
    // A PyTorch file in which a weight has four names: all of them change, and everything else stays.
    let base = fixture("checkpoints/net.pt");
    let linears = bank_of(&[
        ("blocks.0.layers.0.linear", &[R, 8], &[8, R]),
        ("blocks.0.layers.1.linear", &[R, 8], &[8, R]),
        ("edge_emb.linear", &[R, 16], &[8, R]),
    ]);
    let settings = json!({"target_modules": ["linear"], "alphas": [1, 0, 0, 0]});
    let of_linears = bank(&at("linears"), &linears, settings);
    done(&["bake", text(&base), text(&of_linears), "--key", "model", "-o", text(&at("out.pt")), "--quiet"]);
    let (found, before) = (pytorch(&at("out.pt"), "model"), pytorch(&base, "model"));
    let own = |tensors: &Tensors| -> Tensors {
        let own =
            |name: &String| name.contains(".layers.") && name.contains("linear") || name.starts_with("edge_emb.l");
        tensors.iter().filter(|(name, _)| own(name)).map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
    };
    assert_baked(&own(&found), &own(&before), &linears, |_| vec![1.0, 0.0, 0.0, 0.0]);
    assert_eq!(found["edge_emb.weight"], found["edge_emb.linear.weight"]);
    assert_eq!(found["blocks.0.seq_energy.1.weight"], found["blocks.0.layers.1.linear.weight"]);
    assert_eq!(pytorch(&at("out.pt"), "optimizers"), pytorch(&base, "optimizers"));
}

#[test]
fn what_is_no_fixed_mix_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(&at("net.safetensors"), &net());
    let mut without_b = linears();
    without_b.remove(&format!("{PREFIX}head.lora_B.weight"));
    let mut embedding = linears();
    embedding.insert(format!("{PREFIX}emb.lora_embedding_A"), numbers(&[R, 3], 3));
    let mut narrow = linears();
    narrow.insert("atom_bank.atoms".to_owned(), numbers(&[4, R, 3], 3));
    let mut without_head = linears();
    without_head.retain(|name, _| !name.contains("head"));
    // The bank's name, tensors and settings; options; the exit code and a part of the line.
    type Case<'a> = (&'a str, Tensors, Value, &'a [&'a str], i32, &'a str);
    let cases: Vec<Case> = vec![
        (
            "none",
            linears(),
            json!({}),
            &[],
            INPUT,
            "alphas: expected weights of the atoms, in the settings or given, found none",
        ),
        ("atom", linears(), json!({}), &["--alphas", "4=1"], INPUT, "alphas: expected atoms 0 to 3, found atom 4"),
        ("block", linears(), json!({}), &["--alphas", "1:0=1"], INPUT, "expected blocks 0 to 0, found block 1"),
        (
            "sum",
            linears(),
            json!({"alphas": [0.5, 0, 0, 0]}),
            &[],
            INPUT,
            "alphas: expected weights that add up to 1, found 0.500",
        ),
        (
            "given",
            linears(),
            json!({}),
            &["--alphas", "0=0.5"],
            USAGE,
            "alphas: expected weights that add up to 1, found 0.500",
        ),
        (
            "text",
            linears(),
            json!({"alphas": "all"}),
            &[],
            INPUT,
            "alphas: expected a list of weights, one for each atom",
        ),
        (
            "instruction",
            linears(),
            json!({}),
            &["--instruction", "x"],
            USAGE,
            "instruction: expected none: the bank has no router",
        ),
        (
            "numbers",
            linears(),
            json!({"block_size": 2}),
            &["--alphas", "0=1"],
            INPUT,
            "a number in the path of \"base_model.model.head\"",
        ),
        (
            "partner",
            without_b,
            json!({}),
            &["--alphas", "0=1"],
            INPUT,
            "head.lora_B.weight\": expected a tensor of this name, found none",
        ),
        (
            "other",
            embedding,
            json!({}),
            &["--alphas", "0=1"],
            INPUT,
            "expected atoms, lora_A.weight or lora_B.weight, found another",
        ),
        (
            "atoms",
            narrow,
            json!({}),
            &["--alphas", "0=1"],
            INPUT,
            "atom_bank.atoms\": expected [4, 2, 2] by adapter_config.json, found [4, 2, 3]",
        ),
        (
            "target",
            without_head,
            json!({}),
            &["--alphas", "0=1"],
            INPUT,
            "head.lora_A.weight\": expected a tensor of this name, as target_modules asks for",
        ),
        (
            "field",
            linears(),
            json!({"use_dora": true}),
            &["--alphas", "0=1"],
            INPUT,
            "use_dora: expected a field this version knows",
        ),
    ];
    for (name, tensors, settings, more, code, expected) in cases {
        let bank = bank(&at(name), &tensors, settings);
        let (base, out) = (at("net.safetensors"), at("out.safetensors"));
        let line = refused(code, &[&["bake", text(&base), text(&bank), "-o", text(&out)][..], more].concat());
        assert!(line.contains(expected), "{name}: {line}");
        assert!(!out.exists());
    }
}

#[test]
fn a_bank_that_routes_gets_a_mix_by_hand_where_no_model_runs() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (model, bank) = (fixture("routing/llama-prompt/model"), fixture("routing/llama-prompt/adapter"));
    let open = AtomBank::open(&bank).unwrap();
    let blocks = open.tensors["atom_bank.router.block_bias"].shape[0];
    let mut alphas = vec![0.0; open.config.num_atoms];
    (alphas[0], alphas[1]) = (0.5, 0.5);
    open.static_lora(&vec![alphas; blocks]).save(&at("lora"), false).unwrap();
    let weights = model.join("model.safetensors");
    let out = atombank(&[
        "bake",
        text(&weights),
        text(&bank),
        "--alphas",
        "0=0.5,1=0.5",
        "-o",
        text(&at("alone.safetensors")),
    ]);
    let notes = String::from_utf8(out.stderr).unwrap();
    assert!(notes.contains("its router isn't used: the weights of atoms are given"), "{notes}");
    done(&["merge", text(&weights), text(&at("lora")), "-o", text(&at("merged.safetensors")), "--quiet"]);
    assert_eq!(safetensors(&at("alone.safetensors")), safetensors(&at("merged.safetensors")));
    let line =
        refused(INPUT, &["bake", text(&weights), text(&bank), "--instruction", "x", "-o", text(&at("x.safetensors"))]);
    assert!(line.contains("found a safetensors file alone; --alphas gives the weights of atoms"), "{line}");
}
