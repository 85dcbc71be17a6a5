//! Tests that wrong input is one clear line, and that nothing is written.

use std::path::{Path, PathBuf};

use super::program::{INPUT, USAGE, copy, done, refused_leaving, text};
use super::{Given, case, numbers, write};

/// Runs commands that must be refused: exit code, arguments, a part of the message. The output is added.
fn refuse(dir: &Path, command: &[&str], cases: &[(i32, &[&str], &str)]) {
    let out = dir.join("out");
    for (exit, args, expected) in cases {
        let line = refused_leaving(*exit, dir, &[command, args, &["-o", text(&out)]].concat());
        assert!(line.contains(expected), "{args:?}: {line}");
    }
}

fn resnet(name: &str) -> PathBuf {
    case("resnet2d").join(name)
}

#[test]
fn what_cannot_be_decomposed_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let kernel = &[2, 2, 3, 3][..];
    write(&at("flat.safetensors"), &[("a.weight", &[2, 2], numbers(4, 1)), ("b.weight", &[2, 2, 1], numbers(4, 1))]);
    write(&at("plane.safetensors"), &[("a.weight", kernel, numbers(36, 1)), ("b.c.weight", kernel, numbers(36, 2))]);
    write(&at("line.safetensors"), &[("a.weight", &[2, 2, 3], numbers(12, 1))]);
    write(&at("huge.safetensors"), &[("a.weight", &[1, 1, 65, 64], numbers(65 * 64, 1))]);
    let mut broken = numbers(36, 1);
    broken[7] = f32::NAN;
    write(&at("nan.safetensors"), &[("a.weight", kernel, broken)]);
    let whole = [0i32; 36].map(i32::to_le_bytes).concat();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I32, kernel.to_vec(), &whole).unwrap();
    safetensors::serialize_to_file([("a.weight", view)], None, &at("whole.safetensors")).unwrap();
    let models =
        ["flat", "plane", "line", "huge", "nan", "whole", "none"].map(|name| at(&format!("{name}.safetensors")));
    let [flat, plane, line, huge, nan, whole, none] = models.each_ref().map(|path| text(path));
    let changes_nothing = "expected a kernel of more than one tap in time, found none: the option changes nothing";
    let cases: &[(i32, &[&str], &str)] = &[
        (INPUT, &[flat], "flat.safetensors: convolutions: expected a convolution of more than one tap, found none"),
        (
            INPUT,
            &[plane, "--targets", "x"],
            "plane.safetensors: --targets: expected a convolution of more than one tap that --targets \"x\" selects, \
             found none; these would do: a, b.c",
        ),
        (
            INPUT,
            &[plane, "--exclude", ".*"],
            "--exclude: expected a convolution of more than one tap that --exclude \".*\"",
        ),
        (USAGE, &[plane, "--targets", "("], "--targets: expected a regular expression, found \"("),
        (INPUT, &[plane, "--temporal-atoms", "2"], changes_nothing),
        (
            INPUT,
            &[line, "--spatial-atoms", "2"],
            "--spatial-atoms: expected a kernel of more than one tap in height or width",
        ),
        (USAGE, &[plane, "--spatial-atoms", "0"], "--spatial-atoms: expected a number above 0, found 0"),
        (USAGE, &[plane, "--energy=0"], "--energy: expected a share above 0, and 1 at most, found 0"),
        (USAGE, &[plane, "--energy=1.5"], "and 1 at most, found 1.5"),
        (USAGE, &[plane, "--energy=nan"], "and 1 at most, found NaN"),
        (USAGE, &[plane, "--energy=-1"], "and 1 at most, found -1"),
        (USAGE, &[plane, "--energy", "0.9", "--spatial-atoms", "2"], "--spatial-atoms: expected none with --energy"),
        (USAGE, &[plane, "--type", "q8_0"], "--type: expected f32, f16 or bf16 for a bank, found q8_0"),
        (INPUT, &[whole], "tensor \"a.weight\": expected a kernel of floating-point numbers, found I32"),
        (INPUT, &[nan], "nan.safetensors: tensor \"a.weight\": expected finite numbers, found a NaN or an infinity"),
        (INPUT, &[huge], "tensor \"a.weight\": expected at most 4096 taps"),
        (INPUT, &[none], "none.safetensors: "),
    ];
    refuse(dir.path(), &["bank", "decompose"], cases);
}

#[test]
fn swaps_that_make_no_sense_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (bank, line) = (resnet("bank"), case("conv1d").join("bank"));
    let (energy, atoms) = (resnet("bank-energy"), resnet("atoms"));
    let [bank, line, energy, atoms] = [&bank, &line, &energy, &atoms].map(|path| text(path));
    let in_time = "--dilate-time: expected a bank with kernels of more than one tap in time, found none: the option \
                   changes nothing";
    let cases: &[(i32, &[&str], &str)] = &[
        (INPUT, &[bank, "--dilate-time", "2"], in_time),
        (USAGE, &[bank, "--dilate-space", "0"], "--dilate-space: expected a number above 0, found 0"),
        (USAGE, &[bank, "--resize-space", "1x3"], "--resize-space: expected sizes above 1, found 1x3"),
        (USAGE, &[line, "--resize-time", "1"], "--resize-time: expected a size above 1, found 1"),
        (USAGE, &[line, "--resize-time", "5", "--dilate-time", "2"], "--dilate-time: expected none with --resize-time"),
        (
            USAGE,
            &[bank],
            "expected a swap: --dilate-time, --dilate-space, --resize-time, --resize-space or --atoms-from",
        ),
        (INPUT, &[bank, "--dilate-space", "1000000000000"], "expected a kernel of at most 4096 taps"),
        (INPUT, &[bank, "--atoms-from", energy], "expected 1 temporal and 4 spatial atoms"),
        (INPUT, &[bank, "--atoms-from", line], "expected a layer of this name"),
        (USAGE, &[bank, "--atoms-from", bank, "--dilate-space", "2"], "--atoms-from: expected no other swap with it"),
        (INPUT, &[atoms, "--dilate-space", "2"], "mode: expected replace"),
    ];
    refuse(dir.path(), &["bank", "swap"], cases);
}

#[test]
fn banks_of_other_models_and_wrong_options_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (model, bank, atoms, other) = (resnet("model"), resnet("bank"), resnet("atoms"), case("conv3d").join("model"));
    let other_atoms = case("conv3d").join("atoms");
    let [model, bank, atoms, other] = [&model, &bank, &atoms, &other].map(|path| text(path));
    let cases: &[(i32, &[&str], &str)] = &[
        (INPUT, &[other, bank], "filter_atoms.coefficients\": expected a module of"),
        (USAGE, &[model, bank, "--instruction", "x"], "--instruction: expected none for a bank of filter atoms"),
        (
            USAGE,
            &[model, bank, "--to", "lora"],
            "--to: expected hf, safetensors, pytorch, gguf or three-convolutions for filter atoms, found lora",
        ),
        (INPUT, &[model, atoms], "mode: expected replace"),
    ];
    refuse(dir.path(), &["bake"], cases);
    let alone = "--to: expected another form: this one is of banks of filter atoms alone, found three-convolutions";
    refuse(dir.path(), &["convert"], &[(USAGE, &[model, "--to", "three-convolutions"], alone)]);
    let cases: &[(i32, &[&str], &str)] = &[
        (INPUT, &[model, text(&other_atoms)], "expected a module of the base model"),
        (INPUT, &[model, bank], "mode: expected atoms: other atoms for the base's coefficients, found replace"),
    ];
    refuse(dir.path(), &["merge"], cases);
}

#[test]
fn broken_banks_are_named_by_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(&at("plane.safetensors"), &[("a.weight", &[2, 2, 3, 3], numbers(36, 1))]);
    write(&at("wide.safetensors"), &[("a.weight", &[2, 4, 3, 3], numbers(72, 1))]);
    done(&["bank", "decompose", text(&at("plane.safetensors")), "-o", text(&at("good")), "--quiet"]);
    let out = at("out.safetensors");
    let refused = |model: &str, bank: &str, expected: &str| {
        let line = refused_leaving(INPUT, dir.path(), &["bake", text(&at(model)), text(&at(bank)), "-o", text(&out)]);
        assert!(line.contains(expected), "{line}");
    };
    refused("wide.safetensors", "good", "[2, 4, 3, 3], found [2, 2, _, _]; this bank belongs to another model");
    let own = |end: &str| format!("base_model.model.a.filter_atoms.{end}");
    let (c, s, t) = (own("coefficients"), own("spatial"), own("temporal"));
    let (whole, atoms) = ((&*c, &[2, 2, 9][..], numbers(36, 1)), (&*s, &[9, 3, 3][..], numbers(81, 2)));
    let cases: [(&str, Vec<Given>, &str); 5] = [
        ("missing", vec![whole.clone()], "spatial\": expected a tensor of this name, found none"),
        (
            "surplus",
            vec![whole.clone(), atoms.clone(), (&t, &[1, 1], vec![1.0])],
            "temporal\": expected a tensor that `layers` asks for, found one that nothing uses",
        ),
        (
            "misshapen",
            vec![whole, (&s, &[9, 9], numbers(81, 2))],
            "spatial\": expected [9, 3, 3] by adapter_config.json, found [9, 9]",
        ),
        (
            "counts",
            vec![(&c, &[2, 2, 4], numbers(16, 1)), atoms.clone()],
            "coefficients\": expected [outputs, inputs, 9] by adapter_config.json, found [2, 2, 4]",
        ),
        (
            "infinite",
            vec![(&c, &[2, 2, 9], vec![f32::INFINITY; 36]), atoms],
            "coefficients\": expected finite numbers, found a NaN or an infinity",
        ),
    ];
    for (folder, list, expected) in cases {
        copy(&at("good"), &at(folder));
        write(&at(folder).join("adapter_model.safetensors"), &list);
        refused("plane.safetensors", folder, expected);
    }
}
