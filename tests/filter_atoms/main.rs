//! Tests banks of filter atoms as a user makes and uses them, against files of the PyTorch reference in
//! fixtures/filter-atoms.

mod convolutions;
#[path = "../common/program.rs"]
mod program;
mod refusals;
mod sources;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use atombank::dtype::DType;
use atombank::formats::safetensors::SafetensorsFile;
use atombank::source::Source;
use half::{bf16, f16};
use program::{atombank, copy, done, fixture, text};
use serde_json::{Value, json};

const CASES: [&str; 3] = ["conv1d", "conv3d", "resnet2d"];

/// A tensor as f32, and the type that it has in its file.
#[derive(Debug, Clone, PartialEq)]
struct Stored {
    dtype: DType,
    shape: Vec<usize>,
    values: Vec<f32>,
}

type Tensors = BTreeMap<String, Stored>;

/// A tensor to be written: name, shape, values.
type Given<'a> = (&'a str, &'a [usize], Vec<f32>);

fn tensors(path: &Path) -> Tensors {
    let file = SafetensorsFile::open(path).unwrap();
    let read = |(i, info): (usize, &atombank::source::TensorInfo)| {
        let mut values = vec![0.0; info.elems()];
        if info.dtype.is_float() {
            atombank::quant::decode(info.dtype, &file.bytes(i), &mut values);
        }
        (info.name.clone(), Stored { dtype: info.dtype, shape: info.shape.clone(), values })
    };
    file.tensors().iter().enumerate().map(read).collect()
}

/// Writes F32 tensors.
fn write(path: &Path, tensors: &[Given]) {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(.., v)| v.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (*name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views.collect::<Vec<_>>(), None, path).unwrap();
}

/// Numbers that look random, from -1 to 1.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let next = |i: usize| (i as u32 + 1).wrapping_mul(2654435761).wrapping_add(seed).wrapping_mul(1013904223);
    (0..count).map(|i| ((next(i) ^ (next(i) >> 15)) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn case(name: &str) -> PathBuf {
    fixture("filter-atoms").join(name)
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn of_file(path: &Path) -> Value {
    parsed(&fs::read_to_string(path).unwrap())
}

/// Checks that kernels agree: to `tolerance` of the largest value, or to one unit in the last place of a narrow type.
#[track_caller]
fn assert_close(what: &str, found: &Stored, expected: &Stored, tolerance: f32) {
    assert_eq!((found.dtype, &found.shape), (expected.dtype, &expected.shape), "{what}");
    let largest = expected.values.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
    let bits = |value: f32| -> i32 {
        let ordered = |bits: u16| if bits & 0x8000 == 0 { i32::from(bits) } else { -i32::from(bits & 0x7fff) };
        ordered(if found.dtype == DType::F16 {
            f16::from_f32(value).to_bits()
        } else {
            bf16::from_f32(value).to_bits()
        })
    };
    for (a, b) in found.values.iter().zip(&expected.values) {
        let near = match found.dtype {
            DType::F16 | DType::BF16 => (bits(*a) - bits(*b)).abs() <= 1,
            _ => (a - b).abs() <= tolerance * largest,
        };
        assert!(near, "{what}: {a} for {b}, largest {largest}");
    }
}

/// Rows times their transpose from the other side: what rows span, whatever their rotation.
fn span(rows: &Stored) -> Vec<f64> {
    let width = rows.values.len() / rows.shape[0];
    let mut found = vec![0.0; width * width];
    for row in rows.values.chunks_exact(width) {
        for i in 0..width {
            for j in 0..width {
                found[i * width + j] += f64::from(row[i]) * f64::from(row[j]);
            }
        }
    }
    found
}

/// The options of a bank of the fixtures.
fn options(case: &str, bank: &str) -> Vec<&'static str> {
    let mut options = match (bank, case) {
        ("bank-full", _) => vec![],
        ("bank-energy", _) => vec!["--energy", "0.95"],
        (_, "conv1d") => vec!["--temporal-atoms", "2"],
        (_, "resnet2d") => vec!["--spatial-atoms", "4"],
        _ => vec!["--temporal-atoms", "2", "--spatial-atoms", "4"],
    };
    if bank == "bank-shared" {
        options.push("--shared");
    }
    options
}

#[test]
fn banks_are_those_of_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    for name in CASES {
        let (folder, model) = (case(name), case(name).join("model"));
        let expected = of_file(&folder.join("expected.json"));
        for bank in ["bank", "bank-shared", "bank-energy", "bank-full"] {
            let out = dir.path().join(format!("{name}-{bank}"));
            let args =
                [&["bank", "decompose", text(&model), "-o", text(&out), "--json", "--quiet"][..], &options(name, bank)]
                    .concat();
            let found = parsed(&done(&args));
            let expected = &expected["banks"][bank];
            let near =
                |found: &Value, expected: &Value| (found.as_f64().unwrap() - expected.as_f64().unwrap()).abs() <= 1e-6;
            assert!(
                near(&found["error"], &expected["error"]),
                "{name} {bank}: {} for {}",
                found["error"],
                expected["error"]
            );
            let rows = (found["layers"].as_array().unwrap(), expected["layers"].as_array().unwrap());
            assert_eq!(rows.0.len(), rows.1.len());
            for expected in rows.1 {
                let row = rows.0.iter().find(|row| row["module"] == expected["module"]).unwrap();
                for field in ["module", "kernel", "temporal", "spatial", "values", "of"] {
                    assert_eq!(row[field], expected[field], "{name} {bank} {field}");
                }
                for field in ["energy", "error", "norm"] {
                    assert!(near(&row[field], &expected[field]), "{name} {bank} {row} {expected}");
                }
            }
            if bank == "bank-full" {
                continue;
            }
            let (ours, theirs) = (
                tensors(&out.join("adapter_model.safetensors")),
                tensors(&folder.join(bank).join("adapter_model.safetensors")),
            );
            assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
            for (tensor, theirs) in &theirs {
                assert_eq!((&ours[tensor].shape, ours[tensor].dtype), (&theirs.shape, theirs.dtype), "{tensor}");
                if !tensor.ends_with(".coefficients") {
                    let far =
                        span(&ours[tensor]).iter().zip(span(theirs)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    assert!(far < 1e-5, "{name} {bank} {tensor}: {far}");
                }
            }
            let (ours, mut theirs) =
                (of_file(&out.join("adapter_config.json")), of_file(&folder.join(bank).join("adapter_config.json")));
            theirs["base_model_name_or_path"] = json!(text(&model));
            assert_eq!(ours, theirs, "{name} {bank}");
        }
    }
}

#[test]
fn baked_kernels_are_those_of_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    for name in CASES {
        let (folder, model) = (case(name), case(name).join("model"));
        let dense = tensors(&model.join("model.safetensors"));
        for bank in ["bank", "bank-shared"] {
            let out = dir.path().join(format!("{name}-{bank}"));
            done(&["bake", text(&model), text(&folder.join(bank)), "-o", text(&out), "--quiet"]);
            let (baked, expected) =
                (tensors(&out.join("model.safetensors")), tensors(&folder.join(format!("baked-{bank}.safetensors"))));
            assert!(out.join("config.json").is_file() && out.join("README.md").is_file());
            assert_eq!(baked.keys().collect::<Vec<_>>(), dense.keys().collect::<Vec<_>>());
            for (tensor, before) in &dense {
                match expected.get(tensor) {
                    Some(expected) => assert_close(&format!("{name} {bank} {tensor}"), &baked[tensor], expected, 1e-6),
                    None => assert_eq!(&baked[tensor], before, "{tensor}"),
                }
            }
        }
        // All atoms give the kernel back.
        let (bank, out) = (dir.path().join(format!("{name}-full")), dir.path().join(format!("{name}.safetensors")));
        done(&["bank", "decompose", text(&model), "-o", text(&bank), "--quiet"]);
        done(&["bake", text(&model), text(&bank), "-o", text(&out), "--type", "f32", "--quiet"]);
        let baked = tensors(&out);
        for (tensor, before) in dense.iter().filter(|(_, tensor)| tensor.dtype.is_float()) {
            assert_close(
                &format!("{name} {tensor}"),
                &baked[tensor],
                &Stored { dtype: DType::F32, ..before.clone() },
                1e-6,
            );
        }
    }
}

#[test]
fn swapped_kernels_are_those_of_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    for name in CASES {
        let (folder, expected) = (case(name), of_file(&case(name).join("expected.json")));
        let module = expected["swaps"]["module"].as_str().unwrap();
        let kernels = tensors(&folder.join("swapped.safetensors"));
        for swap in expected["swaps"]["names"].as_array().unwrap() {
            let swap = swap.as_str().unwrap();
            let (option, value) = swap.rsplit_once('-').unwrap();
            let (bank, out) =
                (dir.path().join(format!("{name}-{swap}")), dir.path().join(format!("{name}-{swap}.safetensors")));
            let told =
                done(&["bank", "swap", text(&folder.join("bank")), "-o", text(&bank), &format!("--{option}"), value]);
            assert!(
                told.contains(&format!("{module}: kernel ")) && told.contains("; build the model with kernel_size "),
                "{told}"
            );
            done(&["bake", text(&folder.join("model")), text(&bank), "-o", text(&out), "--type", "f32", "--quiet"]);
            assert_close(swap, &tensors(&out)[&format!("{module}.weight")], &kernels[swap], 1e-6);
        }
    }
}

#[test]
fn a_swap_tells_the_size_to_build() {
    let dir = tempfile::tempdir().unwrap();
    let (bank, out) = (case("conv3d").join("bank"), dir.path().join("out"));
    let swap = |options: &[&str]| {
        let args = [&["bank", "swap", text(&bank), "-o", text(&out), "--dry-run"][..], options].concat();
        let ran = atombank(&args);
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        (String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap())
    };
    let (told, notes) = swap(&["--dilate-time", "2"]);
    assert!(
        told.contains(
            "block.0: kernel 3x3x3 -> 5x3x3; build the model with kernel_size (5, 3, 3), padding grows by (1, 0, 0)"
        ),
        "{told}"
    );
    assert!(told.contains("block.1: kernel 1x3x3 as before"), "{told}");
    assert!(notes.contains("note: dilation alone needs no swap: a model with this dilation"), "{notes}");
    let json = parsed(&swap(&["--resize-space", "5x5", "--json"]).0);
    assert_eq!(json["layers"][1]["kernel_size"], json!([3, 5, 5]));
    assert_eq!(
        (&json["layers"][1]["padding_grows_by"], &json["layers"][1]["padding"]),
        (&json!([0, 1, 1]), &json!([1, 2, 2]))
    );
    assert!(!out.exists());
    // Those of a bank with as many atoms; its own give the same file.
    done(&["bank", "swap", text(&bank), "-o", text(&out), "--atoms-from", text(&bank), "--quiet"]);
    let name = "adapter_model.safetensors";
    assert_eq!(tensors(&out.join(name)), tensors(&bank.join(name)));
    let shared = case("conv3d").join("bank-shared");
    done(&["bank", "swap", text(&bank), "-o", text(&out), "--atoms-from", text(&shared), "--overwrite", "--quiet"]);
    assert_eq!(
        tensors(&out.join(name)).keys().collect::<Vec<_>>(),
        tensors(&shared.join(name)).keys().collect::<Vec<_>>()
    );
    let json = of_file(&out.join("adapter_config.json"));
    assert_eq!(json["shared"], json!(true));
}

#[test]
fn adapters_of_atoms_are_merged_as_by_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    for name in CASES {
        let (folder, model) = (case(name), case(name).join("model"));
        let (dense, expected) =
            (tensors(&model.join("model.safetensors")), tensors(&folder.join("baked-atoms.safetensors")));
        let merged = |adapter: &str, to: &str| {
            let out = dir.path().join(format!("{name}-{to}"));
            done(&["merge", text(&model), adapter, "-o", text(&out), "--quiet"]);
            tensors(&out.join("model.safetensors"))
        };
        let adapter = text(&folder.join("atoms")).to_owned();
        let found = merged(&adapter, "whole");
        for (tensor, before) in &dense {
            match expected.get(tensor) {
                Some(expected) => assert_close(&format!("{name} {tensor}"), &found[tensor], expected, 1e-6),
                None => assert_eq!(&found[tensor], before, "{tensor}"),
            }
        }
        assert_eq!(merged(&format!("{adapter}=0"), "none"), dense, "{name}: weight 0");
        // Twice the weight is twice the change, to the types' rounding.
        let twice = merged(&format!("{adapter}=2"), "twice");
        for (tensor, once) in expected.iter().filter(|(_, once)| once.dtype == DType::F32) {
            let change = once.values.iter().zip(&dense[tensor].values).map(|(once, dense)| 2.0 * once - dense);
            let doubled = Stored { values: change.collect(), ..once.clone() };
            assert_close(&format!("{name} {tensor}, twice"), &twice[tensor], &doubled, 3e-6);
        }
        // The base's own atoms change nothing, bit for bit.
        let same = copy(&folder.join("atoms"), &dir.path().join(format!("{name}-same")));
        let atoms = tensors(&same.join("adapter_model.safetensors"));
        let list: Vec<Given> = (atoms.iter())
            .map(|(name, stored)| {
                let base = name
                    .replace(".filter_atoms.base_", ".filter_atoms.")
                    .replace(".filter_atoms.", ".filter_atoms.base_");
                (name.as_str(), stored.shape.as_slice(), atoms[&base].values.clone())
            })
            .collect();
        write(&same.join("adapter_model.safetensors"), &list);
        assert_eq!(merged(text(&same), "equal"), dense, "{name}: equal atoms");
    }
}

#[test]
fn inspect_draws_atoms() {
    let told = done(&["inspect", text(&case("conv3d").join("bank-shared"))]);
    for expected in [
        "bank of filter atoms",
        "shared by layers of a kernel size",
        "block.3",
        "3x3x3, 2 layers: spatial atoms, 3 x 3 taps",
        "cosine with each atom",
    ] {
        assert!(told.contains(expected), "{expected}: {told}");
    }
    let json = parsed(&done(&["inspect", text(&case("conv1d").join("atoms")), "--json"]));
    assert_eq!((&json["kind"], &json["mode"], &json["scale"]), (&json!("filter-atoms"), &json!("atoms"), &json!(0.5)));
    assert_eq!(json["sets"][0]["temporal"].as_array().unwrap().len(), 2);
    assert!(json["sets"][0]["temporal"][0]["change"].as_f64().unwrap() > 0.0);
}
