//! Tests what models kernels are read from: the authors' own files, names of one storage, convolutions that stay dense.

use std::path::Path;

use atombank::formats::pytorch::PytorchFile;
use atombank::source::Source;

use super::program::{INPUT, USAGE, atombank, done, refused, text};
use super::{Given, Stored, assert_close, case, numbers, parsed, tensors, write};

#[test]
fn the_authors_own_files_are_read_as_dense_kernels() {
    let dir = tempfile::tempdir().unwrap();
    let sum = |coefficients: &[f32], bases: &[f32], count: usize, taps: usize| -> Vec<f32> {
        let of_row = |row: &[f32]| {
            (0..taps).map(|tap| (0..count).map(|m| row[m] * bases[m * taps + tap]).sum()).collect::<Vec<f32>>()
        };
        coefficients.chunks_exact(count).flat_map(of_row).collect()
    };
    let (coefficients, bases, base) = (numbers(4 * 3 * 12, 1), numbers(12 * 9, 2), numbers(4 * 3 * 9, 3));
    let product = sum(&coefficients, &bases, 12, 9);
    let added: Vec<f32> = product.iter().zip(&base).map(|(a, b)| a + b).collect();
    // Blocks of 2 outputs and 3 inputs: the values of an atom are output, height, input, width.
    let (block_coefficients, block_bases) = (numbers(2 * 5, 4), numbers(5 * 2 * 3 * 3 * 3, 5));
    let blocks = sum(&block_coefficients, &block_bases, 5, 54);
    let mut unfolded = base.clone();
    for (place, value) in unfolded.iter_mut().enumerate() {
        let (w, h, i, o) = (place % 3, place / 3 % 3, place / 9 % 3, place / 27);
        *value += blocks[o / 2 * 54 + ((o % 2 * 3 + h) * 3 + i) * 3 + w];
    }
    let bias = numbers(4, 8);
    let swapped: Vec<f32> = numbers(2 * 12 * 9, 6);
    let members = [sum(&coefficients, &swapped[..108], 12, 9), sum(&coefficients, &swapped[108..], 12, 9)];
    let k = &[4, 3, 3, 3][..];
    type Case<'a> = (&'a str, Vec<Given<'a>>, Vec<(&'a str, Vec<f32>)>);
    let cases: Vec<Case> = vec![
        (
            "bases_l1",
            vec![
                ("a.base_layer.weight", k, base.clone()),
                ("a.base_layer.bias", &[4], bias.clone()),
                ("a.coeff", &[4, 3, 12], coefficients.clone()),
                ("a.bases", &[12, 3, 3], bases.clone()),
            ],
            vec![("a.weight", added), ("a.bias", bias.clone())],
        ),
        (
            "coeff_l1",
            vec![
                ("a.base_layer.weight", k, base),
                ("a.coeff", &[2, 1, 5], block_coefficients),
                ("a.bases", &[5, 6, 9], block_bases),
            ],
            vec![("a.weight", unfolded)],
        ),
        (
            "dcf-mode1",
            vec![("a.weight", &[4, 3, 12], coefficients.clone()), ("a.bases", &[12, 3, 3], bases.clone())],
            vec![("a.weight", product.clone())],
        ),
        (
            "dcf-mode0",
            vec![("a.weight", &[4, 36, 1, 1], coefficients.clone()), ("a.bases", &[12, 1, 3, 3], bases)],
            vec![("a.weight", product)],
        ),
        (
            "swapping",
            vec![
                ("coeff_list.0", &[4, 36, 1, 1], coefficients),
                ("branch_list.0.1.conv1.bases", &[2, 12, 3, 3], swapped),
                ("heads.0.bias", &[4], bias.clone()),
            ],
            vec![
                ("branch_list.0.1.conv1.0.weight", members[0].clone()),
                ("branch_list.0.1.conv1.1.weight", members[1].clone()),
                ("heads.0.bias", bias.clone()),
            ],
        ),
    ];
    for (name, given, expected) in cases {
        let at = |end: &str| dir.path().join(format!("{name}{end}"));
        write(&at(".safetensors"), &given);
        let (model, bank, out) = (at(".safetensors"), at("-bank"), at("-dense.safetensors"));
        done(&["bank", "decompose", text(&model), "-o", text(&bank), "--quiet"]);
        done(&["bake", text(&model), text(&bank), "-o", text(&out), "--quiet"]);
        let dense = at("-converted.safetensors");
        done(&["convert", text(&model), "--dense-kernels", "-o", text(&dense), "--quiet"]);
        for (out, tolerance) in [(&out, 2e-6), (&dense, 5e-7)] {
            let found = tensors(out);
            let names: std::collections::BTreeSet<&str> = expected.iter().map(|(name, _)| *name).collect();
            assert!(found.keys().map(String::as_str).eq(names), "{name}: {:?}", found.keys());
            for (tensor, values) in &expected {
                let expected = Stored { values: values.clone(), ..found[*tensor].clone() };
                assert_close(&format!("{name} {tensor}"), &found[*tensor], &expected, tolerance);
            }
        }
    }
}

#[test]
fn names_of_one_storage_are_changed_together() {
    let dir = tempfile::tempdir().unwrap();
    let (model, bank, out) = (case("twins.pth.tar"), dir.path().join("bank"), dir.path().join("out.safetensors"));
    let key = ["--key", "state_dict"];
    let decompose = |more: &[&str]| {
        let args = [
            &["bank", "decompose", text(&model), "-o", text(&bank), "--spatial-atoms", "3", "--json", "--quiet"][..],
            &key,
            more,
        ]
        .concat();
        parsed(&done(&args))
    };
    let both = decompose(&[]);
    // A storage is one row, with its other names.
    assert_eq!(both["layers"].as_array().unwrap().len(), 1);
    let row = &both["layers"][0];
    assert_eq!((&row["module"], &row["also"][0]), (&"first".into(), &"second".into()));
    assert!(row["error"].as_f64().unwrap() > 0.1);
    assert_eq!(both["of"].as_u64().unwrap(), 2 * row["of"].as_u64().unwrap());
    let bake = || {
        done(&[&["bake", text(&model), text(&bank), "-o", text(&out), "--overwrite", "--quiet"][..], &key].concat());
        tensors(&out)
    };
    let baked = bake();
    assert_eq!(baked["first.weight"], baked["second.weight"]);
    // The other name changes, too, where a bank has only one.
    decompose(&["--targets", "first", "--overwrite"]);
    let alone = bake();
    assert_eq!((&alone["first.weight"], &alone["second.weight"]), (&baked["first.weight"], &baked["second.weight"]));
}

#[test]
fn what_has_no_coefficients_is_not_made_dense() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (dir.path().join("m.safetensors"), dir.path().join("out.safetensors"));
    write(&model, &[("a.weight", &[2, 2, 3, 3], numbers(36, 1))]);
    let line = refused(INPUT, &["convert", text(&model), "--dense-kernels", "-o", text(&out)]);
    assert!(line.contains("expected tensors of convnet_finetune, DCFNet-Pytorch or CL_Atom_Swapping"), "{line}");
    let line = refused(USAGE, &["convert", text(&case("resnet2d/model")), "--dense-kernels", "-o", text(&out)]);
    assert!(line.contains("--dense-kernels: expected tensors alone as input"), "{line}");
}

#[test]
fn storages_and_nesting_of_tensors_alone_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (model, at) = (case("twins.pth.tar"), |name: &str| dir.path().join(name));
    done(&["bank", "decompose", text(&model), "-o", text(&at("bank")), "--spatial-atoms", "3", "--quiet"]);
    for (form, module) in [(&[][..], "first.weight"), (&["--to", "three-convolutions"], "first.2.weight")] {
        for out in ["dense.pt", "dense.safetensors"] {
            let (to, bank) = (at(out), at("bank"));
            let bake = [&["bake", text(&model), text(&bank), "-o", text(&to), "--overwrite"][..], form].concat();
            let notes = String::from_utf8(atombank(&bake).stderr).unwrap();
            assert!(notes.contains("no tensor, left out: epoch"), "{notes}");
            let shown = done(&["inspect", text(&to)]);
            let (names, storages) = if form.is_empty() { (3, 2) } else { (5, 3) };
            assert!(shown.contains(&format!("{names} tensors, {storages} storages")), "{shown}");
        }
        // The dictionary is where it was.
        let file = PytorchFile::open(&at("dense.pt"), Some("state_dict")).unwrap();
        assert!(file.tensors().iter().any(|tensor| tensor.name == module));
    }
    // Into the file that it came from, of which everything else stays.
    let (written, bank) = (at("into.pth.tar"), at("bank"));
    done(&["bake", text(&model), text(&bank), "--into", text(&model), "-o", text(&written), "--quiet"]);
    let others = |path: &Path| PytorchFile::open(path, None).unwrap().others().to_vec();
    assert_eq!(others(&written), others(&model));
    assert_eq!(std::fs::metadata(&written).unwrap().len(), std::fs::metadata(&model).unwrap().len());
    assert_ne!(std::fs::read(&written).unwrap(), std::fs::read(&model).unwrap());
}

#[test]
fn what_stays_dense_is_noted() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (dir.path().join("m.safetensors"), dir.path().join("bank"));
    write(
        &model,
        &[
            ("a.weight", &[2, 2, 3, 3], numbers(36, 1)),
            ("b.weight", &[2, 2, 1, 1], numbers(4, 2)),
            ("c.weight_v", &[2, 2, 3], numbers(12, 3)),
            ("c.weight_g", &[2, 1, 1], numbers(2, 4)),
            ("d.parametrizations.weight.original1", &[2, 2, 3], numbers(12, 5)),
            ("zero.weight", &[2, 2, 3, 3], vec![0.0; 36]),
        ],
    );
    let ran = atombank(&["bank", "decompose", text(&model), "-o", text(&out), "--spatial-atoms", "50"]);
    let notes = String::from_utf8(ran.stderr).unwrap();
    let told = String::from_utf8(ran.stdout).unwrap();
    assert!(notes.contains("left dense: 1 convolution of one tap, 2 normed convolutions"), "{notes}");
    assert!(notes.contains("2 layers have fewer taps than atoms were asked for"), "{notes}");
    assert!(told.contains("zero") && told.contains("1.000000  0.000e+00"), "{told}");
    let zeros = &tensors(&out.join("adapter_model.safetensors"))["base_model.model.zero.filter_atoms.coefficients"];
    assert!(zeros.values.iter().all(|value| *value == 0.0));
    let ran =
        done(&["bank", "decompose", text(&model), "-o", text(&out), "--spatial-atoms", "2", "--overwrite", "--quiet"]);
    assert!(
        ran.contains("% of the kernels, in norm, are missing: train the bank before it is used, or use all atoms"),
        "{ran}"
    );
}
