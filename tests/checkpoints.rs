//! Tests checkpoints of models that are no transformers: what authors save beside weights, names that share a storage,
//! nested dictionaries, and adapters of their linear layers. The fixtures come from
//! fixtures/checkpoints/make_checkpoints.py.

#[path = "common/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use atombank::DType;
use atombank::formats::pytorch::PytorchFile;
use atombank::formats::safetensors::SafetensorsFile;
use atombank::source::Source;
use program::{INPUT, USAGE, atombank, done, refused, refused_leaving, text};

type Tensors = BTreeMap<String, (DType, Vec<usize>, Vec<u8>)>;

fn fixture(name: &str) -> PathBuf {
    program::fixture("checkpoints").join(name)
}

fn contents(source: &dyn Source) -> Tensors {
    let all = source.tensors().iter().enumerate();
    all.map(|(i, t)| (t.name.clone(), (t.dtype, t.shape.clone(), source.bytes(i).into_owned()))).collect()
}

fn pytorch(path: &Path, key: Option<&str>) -> Tensors {
    contents(&PytorchFile::open(path, key).unwrap())
}

fn safetensors(path: &Path) -> Tensors {
    contents(&SafetensorsFile::open(path).unwrap())
}

fn run(args: &[&dyn AsRef<Path>]) -> String {
    let args: Vec<&str> = args.iter().map(|arg| text(arg.as_ref())).collect();
    done(&args)
}

fn notes(args: &[&str]) -> String {
    let out = atombank(args);
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success(), "{args:?}: {stderr}");
    stderr
}

/// The bytes of the pickle in a file of torch.save.
fn pickle(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    let start = bytes.windows(2).position(|pair| pair == b"\x80\x02").unwrap();
    let end = bytes.windows(4).position(|mark| mark == b"PK\x07\x08").unwrap();
    bytes[start..end].to_vec()
}

#[test]
fn settings_of_any_class_are_described_and_the_weights_are_read() {
    let expected = safetensors(&fixture("settings.safetensors"));
    for (kind, described) in [
        ("easydict", "config (easydict.EasyDict)"),
        ("config-dict", "config (ml_collections.config_dict.config_dict.ConfigDict)"),
        ("namespace", "config (argparse.Namespace)"),
        ("options", "config (project.options.Options, with 1 tensor out of reach)"),
        ("types", "config.type (builtins.int)"),
    ] {
        let file = fixture(&format!("settings-{kind}.pt"));
        assert_eq!(pytorch(&file, Some("model")), expected, "{kind}");
        let shown = run(&[&"inspect", &file]);
        assert!(shown.contains(described), "{shown}");
        let noted = shown.matches("\nnote ").count() + usize::from(shown.starts_with("note "));
        assert_eq!(noted, usize::from(!["namespace", "types"].contains(&kind)), "{shown}");
    }
    let shown = run(&[&"inspect", &fixture("settings-easydict.pt")]);
    assert!(shown.contains("config.b.d (None)"), "{shown}");
    assert!(run(&[&"inspect", &fixture("settings-config-dict.pt")]).contains("config.a (1)"));
}

#[test]
fn a_file_is_what_its_first_bytes_say() {
    let dir = tempfile::tempdir().unwrap();
    let expected = pytorch(&fixture("net.pt"), Some("model"));
    for (name, note) in [
        ("epo20.tar", false),
        ("net.pth.tar", false),
        ("net.pkl", false),
        ("net.model", false),
        ("net", false),
        ("net.safetensors", true),
        ("net.gguf", true),
    ] {
        let (path, out) = (dir.path().join(name), dir.path().join(format!("from-{name}.safetensors")));
        fs::copy(fixture("net.pt"), &path).unwrap();
        let noted = notes(&["convert", text(&path), "--key", "model", "-o", text(&out)]);
        assert_eq!(safetensors(&out), expected, "{name}");
        let line = format!("{}: by its first bytes it is a PyTorch file, and is read as one", path.display());
        assert_eq!(noted.contains(&line), note, "{noted}");
    }
    let (path, out) = (dir.path().join("weights.bin"), dir.path().join("weights.pt"));
    fs::copy(fixture("net.safetensors"), &path).unwrap();
    let noted = notes(&["convert", text(&path), "-o", text(&out)]);
    assert!(noted.contains("weights.bin: by its first bytes it is a safetensors file"), "{noted}");
    assert_eq!(pytorch(&out, None), expected);
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    fs::write(dir.path().join("old.tar"), tar).unwrap();
    let old = dir.path().join("old.tar");
    let line = refused(INPUT, &["inspect", text(&old)]);
    assert!(line.contains("expected a file of torch.save, found the tar form of torch before 0.2"), "{line}");
}

#[test]
fn names_of_one_storage_are_written_as_save_model_writes_them() {
    let dir = tempfile::tempdir().unwrap();
    let every = safetensors(&fixture("every-name.safetensors"));
    let (one, all, back) =
        (dir.path().join("one.safetensors"), dir.path().join("all.safetensors"), dir.path().join("b.pt"));
    let noted = notes(&["convert", text(&fixture("net.pt")), "--key", "model", "-o", text(&one)]);
    assert!(
        noted.contains("7 of 17 names share the storage of another, and stand in the metadata (--expand-shared"),
        "{noted}"
    );
    // The names, and which of them are kept.
    let header = |path: &Path| -> serde_json::Map<String, serde_json::Value> {
        let bytes = fs::read(path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        serde_json::from_slice(&bytes[8..8 + length]).unwrap()
    };
    let (ours, mut theirs) = (header(&one), header(&fixture("net.safetensors")));
    theirs["__metadata__"].as_object_mut().unwrap().insert("format".to_owned(), "pt".into());
    assert_eq!(ours, theirs);
    assert_eq!(safetensors(&one), every);
    assert_eq!(safetensors(&fixture("net.safetensors")), every);
    run(&[&"convert", &one, &"--expand-shared", &"-o", &all]);
    assert_eq!(header(&all).len(), 18);
    assert_eq!(safetensors(&all), every);
    // In a PyTorch file they share a storage again.
    run(&[&"convert", &one, &"-o", &back]);
    assert_eq!(pytorch(&back, None), every);
    assert!(fs::metadata(&back).unwrap().len() < fs::metadata(fixture("net.pt")).unwrap().len());
    for (path, key) in [(&one, None), (&back, None), (&fixture("net.pt"), Some("model"))] {
        let mut args = vec!["inspect", text(path)];
        args.extend(key.into_iter().flat_map(|key| ["--key", key]));
        assert!(done(&args).contains("17 tensors, 10 storages"), "{}", path.display());
    }
    // And in a GGUF, where they are a record.
    let (gguf, restored) = (dir.path().join("g.gguf"), dir.path().join("r.safetensors"));
    run(&[&"convert", &one, &"--generic", &"-o", &gguf]);
    run(&[&"convert", &gguf, &"-o", &restored]);
    assert_eq!(header(&restored), ours);
    assert!(run(&[&"compare", &gguf, &all]).contains("identical            16"));
    run(&[
        &"convert",
        &fixture("net.pt"),
        &"--key",
        &"model",
        &"--to",
        &"safetensors",
        &"-o",
        &dir.path().join("folder"),
    ]);
    assert_eq!(safetensors(&dir.path().join("folder/model.safetensors")), every);
}

#[test]
fn pytorch_to_pytorch_keeps_the_nesting() {
    let dir = tempfile::tempdir().unwrap();
    let (out, again) = (dir.path().join("out.pt"), dir.path().join("again.pt"));
    run(&[&"convert", &fixture("net.pt"), &"-o", &out]);
    assert_eq!(pytorch(&out, None), pytorch(&fixture("net.pt"), None));
    // Keys, numbers and lists lead to the same parts.
    for key in ["model", "optimizers.0.state.3", "ema.shadow_params"] {
        assert_eq!(pytorch(&out, Some(key)), pytorch(&fixture("net.pt"), Some(key)), "{key}");
    }
    // What is written again is the same file.
    run(&[&"convert", &out, &"-o", &again]);
    assert_eq!(fs::read(&out).unwrap(), fs::read(&again).unwrap());
}

#[test]
fn values_are_written_into_a_file_of_which_everything_else_stays() {
    let dir = tempfile::tempdir().unwrap();
    let net = fixture("net.pt");
    let (new, out) = (dir.path().join("new.safetensors"), dir.path().join("out.pt"));
    // The values of another model, with the names of this one's.
    run(&[&"convert", &fixture("merged-lora.safetensors"), &"-o", &new]);
    run(&[&"convert", &new, &"--into", &net, &"--into-key", &"model", &"-o", &out]);
    assert_eq!(pytorch(&out, Some("model")), safetensors(&new));
    let others = |path: &Path| -> Tensors {
        pytorch(path, None).into_iter().filter(|(name, _)| !name.starts_with("model.")).collect()
    };
    assert_eq!(others(&out), others(&net));
    assert_eq!(pickle(&out), pickle(&net));
    // Its own values give the same file, checksums and all.
    let same = dir.path().join("same.pt");
    run(&[&"convert", &fixture("net.safetensors"), &"--into", &net, &"--into-key", &"model", &"-o", &same]);
    assert_eq!(fs::read(&same).unwrap(), fs::read(&net).unwrap());
    // The older form, and an output whose name says nothing.
    let legacy = dir.path().join("checkpoint");
    run(&[&"convert", &new, &"--into", &fixture("legacy.pth"), &"-o", &legacy]);
    assert_eq!(pytorch(&legacy, None), safetensors(&new));
    assert_eq!(fs::metadata(&legacy).unwrap().len(), fs::metadata(fixture("legacy.pth")).unwrap().len());
}

#[test]
fn values_are_written_into_deflated_archives() {
    let dir = tempfile::tempdir().unwrap();
    let (deflated, new, out) =
        (program::fixture("pytorch/deflated.bin"), dir.path().join("new.safetensors"), dir.path().join("out.bin"));
    let values: Vec<u8> = (0..20).flat_map(|i| (i as f32 / 7.0).to_le_bytes()).collect();
    let wide: Vec<u8> = (0..120).flat_map(|i| (f64::from(i) / 7.0).to_le_bytes()).collect();
    let view =
        |dtype, shape: &[usize], bytes| safetensors::tensor::TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
    let tensors = [
        ("transposed", view(safetensors::Dtype::F32, &[5, 4], &values)),
        ("channels_last", view(safetensors::Dtype::F64, &[2, 3, 4, 5], &wide)),
    ];
    safetensors::serialize_to_file(tensors, None, &new).unwrap();
    run(&[&"convert", &new, &"--into", &deflated, &"-o", &out]);
    let (before, found) = (pytorch(&deflated, None), pytorch(&out, None));
    assert_eq!((&found["transposed"].2, &found["channels_last"].2), (&values, &wide));
    assert!(before.keys().eq(found.keys()));
    // The others have storages of their own, but for a view of the whole that the first is a part of.
    assert_ne!(before["permuted"], found["permuted"]);
    for name in ["steps", "expanded", "everywhere", "bytes", "complex"] {
        assert_eq!(before[name], found[name], "{name}");
    }
    // All entries are stored now, and a second time nothing has to be inflated.
    let bytes = fs::read(&out).unwrap();
    assert!(bytes.len() as u64 > fs::metadata(&deflated).unwrap().len());
    let again = dir.path().join("again.bin");
    run(&[&"convert", &new, &"--into", &out, &"-o", &again]);
    assert_eq!(fs::read(&again).unwrap(), bytes);
}

#[test]
fn tensors_that_are_not_read_are_listed_and_stay_in_their_file() {
    let dir = tempfile::tempdir().unwrap();
    for (name, what) in [("sparse", "a sparse tensor, float32 [3, 3] with 3 values"), ("complex128", "complex128 [2]")]
    {
        let file = program::fixture(&format!("pytorch/refused-{name}.bin"));
        let listed = done(&["inspect", text(&file), "--tensors"]);
        assert!(listed.contains(&format!("tensor \"part.bad\" is not read: {what}")), "{listed}");
        assert!(listed.contains("good"), "{listed}");
        for out in ["out.safetensors", "out.gguf"] {
            let more: &[&str] = if out.ends_with("gguf") { &["--generic"] } else { &[] };
            let out = dir.path().join(out);
            let args = [&["convert", text(&file), "-o", text(&out)], more].concat();
            let line = program::refused_leaving(INPUT, dir.path(), &args);
            let expected =
                format!("tensor \"part.bad\": expected a plain tensor of a type that safetensors has, found {what}");
            assert!(line.contains(&expected) && line.contains("--key"), "{line}");
        }
        let (new, out) = (dir.path().join("new.safetensors"), dir.path().join(name));
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &[0, 0, 0, 0x40]).unwrap();
        safetensors::serialize_to_file([("good", view)], None, &new).unwrap();
        run(&[&"convert", &new, &"--into", &file, &"-o", &out]);
        assert_eq!(pickle(&out), pickle(&file));
        assert_eq!(pytorch(&out, Some("good")).into_values().next().unwrap().2, [0, 0, 0, 0x40]);
    }
}

#[test]
fn averages_get_the_names_of_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let list = ["--key", "ema.shadow_params", "--names-from"];
    let net = fixture("net.pt");
    let convert = |part: &str, out: &Path| {
        atombank(&[&["convert", text(&net)][..], &list, &[part, "--overwrite", "-o", text(out)]].concat())
    };
    for out in ["ema.safetensors", "ema.pt"] {
        let notes = String::from_utf8(convert("model", &at(out)).stderr).unwrap();
        assert!(notes.contains("2 names under \"model\" have no tensor in the list: buffers"), "{notes}");
    }
    // The averages are what the weights are, under every name but those of buffers.
    let mut expected = pytorch(&net, Some("model"));
    expected.retain(|name, _| name != "flag" && name != "empty");
    assert_eq!(safetensors(&at("ema.safetensors")), expected);
    assert_eq!(pytorch(&at("ema.pt"), None), expected);
    assert!(done(&["inspect", text(&at("ema.pt"))]).contains("15 tensors, 8 storages"));
    // The names can be those of another file.
    convert(text(&fixture("net.safetensors")), &at("ema.safetensors"));
    assert_eq!(safetensors(&at("ema.safetensors")), expected);
    convert(&format!("{}:state_dict", text(&fixture("wrapped.pt"))), &at("ema.safetensors"));
    assert!(safetensors(&at("ema.safetensors")).keys().all(|name| name.starts_with("module.")));
    let line = String::from_utf8(convert("optimizers.0", &at("x.pt")).stderr).unwrap();
    assert!(line.contains("fits in one way, found several ways among 24 parameters"), "{line}");
    let line = String::from_utf8(convert("model.blocks.0.layers.0", &at("x.pt")).stderr).unwrap();
    assert!(line.contains("expected something under"), "{line}");
    let line = String::from_utf8(convert("ema.collected", &at("x.pt")).stderr).unwrap();
    assert!(line.contains("net.pt: expected tensors, found none"), "{line}");
    let line =
        refused(INPUT, &["convert", text(&net), "--key", "ema.shadow_params", "--names-from", "none", "-o", "z.pt"]);
    assert!(line.contains("expected something under \"none\""), "{line}");
}

#[test]
fn values_are_written_in_the_order_in_which_they_stand_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let (out, new) = (dir.path().join("out.pt"), fixture("strided-new.safetensors"));
    for name in ["strided.pt", "strided-big.pt"] {
        let file = fixture(name);
        run(&[&"convert", &new, &"--into", &file, &"--into-key", &"model", &"--overwrite", &"-o", &out]);
        let (found, before, expected) =
            (pytorch(&out, Some("model")), pytorch(&file, Some("model")), safetensors(&new));
        for (tensor, value) in &found {
            assert_eq!(value, expected.get(tensor).unwrap_or(&before[tensor]), "{name}: {tensor}");
        }
        assert_eq!(found.len(), 5);
        assert_eq!(fs::metadata(&out).unwrap().len(), fs::metadata(&file).unwrap().len());
        // The storage's other elements stay: those of a matrix of which all but the first line is a tensor.
        let changed = fs::read(&out).unwrap().iter().zip(fs::read(&file).unwrap()).filter(|(a, b)| **a != *b).count();
        assert!(changed < 4 * (24 + 48 + 10) + 2 * 6 + 64, "{changed}");
    }
    // A part of a storage with others between is no run of bytes.
    let (one, file) = (dir.path().join("one.safetensors"), fixture("strided.pt"));
    let header = r#"{"part":{"dtype":"F32","shape":[4,2],"data_offsets":[0,32]}}"#;
    fs::write(&one, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 32]].concat()).unwrap();
    let args = ["convert", text(&one), "--into", text(&file), "--into-key", "model", "--overwrite", "-o", text(&out)];
    let line = refused(INPUT, &args);
    assert!(line.contains("tensor \"part\": expected values that fill a run of bytes of the file"), "{line}");
}

#[test]
fn what_does_not_fit_into_a_file_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.pt");
    let every = fixture("every-name.safetensors");
    let into = |input: &Path, original: &Path, more: &[&str]| -> String {
        let mut args = vec!["convert", text(input), "--into", text(original), "-o", text(&out)];
        args.extend(more);
        refused_leaving(INPUT, dir.path(), &args)
    };
    let line = into(&fixture("settings.safetensors"), &fixture("net.pt"), &[]);
    assert!(line.contains("tensor \"lin.bias\": expected a tensor of this name"), "{line}");
    let line = into(&every, &fixture("net.pt"), &["--into-key", "ema"]);
    assert!(line.contains("found none under \"ema\""), "{line}");
    assert!(into(&every, &every, &[]).contains("into: expected a PyTorch file"));
    // Other sizes, and other types.
    let small = dir.path().join("small.safetensors");
    let header = r#"{"blocks.0.out.weight":{"dtype":"F32","shape":[1,4],"data_offsets":[0,16]}}"#;
    fs::write(&small, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 16]].concat()).unwrap();
    let line = into(&small, &fixture("net.pt"), &["--into-key", "model"]);
    let expected =
        "tensor \"blocks.0.out.weight\": expected F32 [1, 8], which its storage has room for, found F32 [1, 4]";
    assert!(line.contains(expected), "{line}");
    // Two different values for one storage.
    let mut bytes = fs::read(&every).unwrap();
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    let two = dir.path().join("two.safetensors");
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let ends = json["edge_emb.weight"]["data_offsets"][1].as_u64().unwrap() as usize;
    bytes[last] ^= 1;
    bytes[8 + length + ends - 3] ^= 1;
    fs::write(&two, &bytes).unwrap();
    let line = into(&two, &fixture("net.pt"), &["--into-key", "model"]);
    assert!(
        line.contains("tensor \"edge_emb.weight\"") || line.contains("tensor \"edge_emb.linear.weight\""),
        "{line}"
    );
    assert!(line.contains("found others: two different changes of one storage"), "{line}");
    for args in [
        &["--into-key", "model"][..],
        &["--into", "x.pt", "--type", "bf16"],
        &["--into", "x.pt", "--to", "safetensors"],
    ] {
        let mut all = vec!["convert", text(&every), "-o", text(&out)];
        all.extend(args);
        refused(USAGE, &all);
    }
}

const KINDS: [&str; 5] = ["lora", "dora", "loha", "lokr", "ia3"];

#[test]
fn a_merge_into_bare_tensors_has_pefts_state_under_every_name() {
    let dir = tempfile::tempdir().unwrap();
    for kind in KINDS {
        let expected = safetensors(&fixture(&format!("merged-{kind}.safetensors")));
        let out = |end: &str| dir.path().join(format!("{kind}.{end}"));
        // The file with everything in it.
        run(&[&"merge", &fixture("net.pt"), &fixture(kind), &"--key", &"model", &"-o", &out("pt")]);
        assert_eq!(pytorch(&out("pt"), Some("model")), expected, "{kind}");
        assert_eq!(pickle(&out("pt")), pickle(&fixture("net.pt")));
        let rest = pytorch(&out("pt"), Some("optimizers"));
        assert_eq!(rest, pytorch(&fixture("net.pt"), Some("optimizers")));
        // Tensors alone, in every form.
        run(&[&"merge", &fixture("net.safetensors"), &fixture(kind), &"-o", &out("safetensors")]);
        assert_eq!(safetensors(&out("safetensors")), expected, "{kind}");
        run(&[&"merge", &fixture("legacy.pth"), &fixture(kind), &"-o", &out("pth")]);
        assert_eq!(pytorch(&out("pth"), None), expected, "{kind}");
        run(&[&"merge", &fixture("net.safetensors"), &fixture(kind), &"-o", &out("bin")]);
        assert_eq!(pytorch(&out("bin"), None), expected, "{kind}");
    }
    // A prefix before all names.
    let out = dir.path().join("wrapped.pt");
    let (wrapped, lora) = (fixture("wrapped.pt"), fixture("lora"));
    let part = ["--key", "state_dict", "--strip-prefix", "module."];
    done(&[&["merge", text(&wrapped), text(&lora), "-o", text(&out)][..], &part].concat());
    let merged = pytorch(&out, Some("state_dict"));
    let expected = safetensors(&fixture("merged-lora.safetensors"));
    assert_eq!(merged.into_iter().map(|(name, t)| (name.replace("module.", ""), t)).collect::<Tensors>(), expected);
    let line = refused(INPUT, &["inspect", text(&fixture("net.safetensors")), "--strip-prefix", "model."]);
    assert!(line.contains("strip_prefix: expected names that begin with \"model.\""), "{line}");
}

/// A copy of the LoRA with a second set of factors for a module that has another name.
fn with_second_name(dir: &Path, change: bool) -> PathBuf {
    let folder = program::copy(&fixture("lora"), &dir.join(if change { "other" } else { "same" }));
    let file = folder.join("adapter_model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut data = bytes[8 + length..].to_vec();
    for factor in ["A", "B"] {
        let name = format!("base_model.model.blocks.0.layers.0.linear.lora_{factor}.weight");
        let mut entry = header[&name].clone();
        let offsets = [0, 1].map(|i| entry["data_offsets"][i].as_u64().unwrap() as usize);
        let start = data.len();
        data.extend_from_within(offsets[0]..offsets[1]);
        entry["data_offsets"] = serde_json::json!([start, data.len()]);
        header.insert(name.replace("layers", "seq_energy"), entry);
    }
    if change {
        let last = data.len() - 3;
        data[last] ^= 1;
    }
    let header = serde_json::to_string(&header).unwrap();
    fs::write(&file, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()).unwrap();
    folder
}

/// Leaves only the tensors in a safetensors file whose names contain `part`.
fn keep(file: &Path, part: &str) {
    let bytes = fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let (mut kept, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, mut entry) in header.into_iter().filter(|(name, _)| name.contains(part)) {
        let offsets = [0, 1].map(|i| entry["data_offsets"][i].as_u64().unwrap() as usize + 8 + length);
        let start = data.len();
        data.extend_from_slice(&bytes[offsets[0]..offsets[1]]);
        entry["data_offsets"] = serde_json::json!([start, data.len()]);
        kept.insert(name, entry);
    }
    let header = serde_json::to_string(&kept).unwrap();
    fs::write(file, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()).unwrap();
}

#[test]
fn a_storage_has_one_change_under_whatever_names() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.safetensors");
    let same = with_second_name(dir.path(), false);
    run(&[&"merge", &fixture("net.pt"), &same, &"--key", &"model", &"-o", &out]);
    assert_eq!(safetensors(&out), safetensors(&fixture("merged-lora.safetensors")));
    let other = with_second_name(dir.path(), true);
    let again = dir.path().join("again.safetensors");
    let net = fixture("net.pt");
    let args = ["merge", text(&net), text(&other), "--key", "model", "-o", text(&again)];
    let line = refused_leaving(INPUT, dir.path(), &args);
    assert!(line.contains("blocks.0.seq_energy.0.linear.lora_B.weight\": expected what"), "{line}");
    assert!(line.contains("both are names of one storage, found other values: two different changes"), "{line}");
    // PEFT doesn't see a module by its second name: it has no tensors for one that only that name selects.
    let second = program::copy(&fixture("lora"), &dir.path().join("second"));
    let config = fs::read_to_string(second.join("adapter_config.json")).unwrap();
    let selects = config.replace("\"linear\",\n    \"out\"", "\"seq_energy.0\",\n    \"out\"");
    assert_ne!(selects, config);
    fs::write(second.join("adapter_config.json"), selects).unwrap();
    let file = second.join("adapter_model.safetensors");
    keep(&file, ".out.");
    let ran = atombank(&["merge", text(&net), text(&second), "--key", "model", "-o", text(&again)]);
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.success(), "{said}");
    assert!(
        said.contains("1 modules stay as they are that target_modules selects by their second name only"),
        "{said}"
    );
    fs::remove_file(&again).unwrap();
    // An adapter for the second name alone is enough.
    let renamed = program::copy(&fixture("lora"), &dir.path().join("renamed"));
    let file = renamed.join("adapter_model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap().replace("0.layers.", "0.seq_energy.");
    fs::write(&file, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[8 + length..]].concat()).unwrap();
    run(&[&"merge", &fixture("net.pt"), &renamed, &"--key", &"model", &"-o", &again]);
    assert_eq!(safetensors(&again), safetensors(&out));
}

#[test]
fn extract_and_compare_take_bare_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let (tuned, lora, back) =
        (dir.path().join("tuned.pt"), dir.path().join("lora"), dir.path().join("back.safetensors"));
    run(&[&"merge", &fixture("net.pt"), &fixture("lora"), &"--key", &"model", &"-o", &tuned]);
    run(&[
        &"extract",
        &fixture("net.pt"),
        &tuned,
        &"--key-a",
        &"model",
        &"--key-b",
        &"model",
        &"--rank",
        &"8",
        &"-o",
        &lora,
    ]);
    let factors = safetensors(&lora.join("adapter_model.safetensors"));
    let names: Vec<&str> = factors.keys().map(String::as_str).filter(|name| name.ends_with("lora_A.weight")).collect();
    assert_eq!(
        names,
        [
            "base_model.model.blocks.0.layers.0.linear.lora_A.weight",
            "base_model.model.blocks.0.layers.1.linear.lora_A.weight",
            "base_model.model.blocks.0.out.lora_A.weight",
            "base_model.model.edge_emb.linear.lora_A.weight",
        ]
    );
    let config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(lora.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(
        (&config["task_type"], &config["target_modules"]),
        (&serde_json::Value::Null, &serde_json::json!(["linear", "out"]))
    );
    run(&[&"merge", &fixture("net.pt"), &lora, &"--key", &"model", &"-o", &back]);
    let shown = done(&["compare", text(&tuned), text(&back), "--key-a", "model"]);
    assert!(shown.contains("tensors compared     16"), "{shown}");
    let error = shown.lines().find_map(|line| line.strip_prefix("relative error")).unwrap().trim().to_owned();
    assert!(error.parse::<f64>().unwrap() < 1e-6, "{shown}");
    let line = refused(INPUT, &["compare", text(&tuned), text(&back), "--key-a", "modle"]);
    assert!(line.contains("expected something under \"modle\""), "{line}");
}

#[test]
fn bare_tensors_are_no_folder_and_no_gguf_of_a_family() {
    let dir = tempfile::tempdir().unwrap();
    let (net, lora) = (fixture("net.safetensors"), fixture("lora"));
    for out in ["folder", "out.gguf"] {
        let out = dir.path().join(out);
        let line = refused_leaving(INPUT, dir.path(), &["merge", text(&net), text(&lora), "-o", text(&out)]);
        assert!(line.contains("config.json: expected the config of a model's folder, found tensors alone"), "{line}");
    }
}
