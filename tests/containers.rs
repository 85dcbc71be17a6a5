//! Tests hostile folders and files: weights that are missing, repeated, or not files at all.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use atombank::checkpoint::Checkpoint;
use atombank::formats::gguf::{GgufFile, GgufModel, Metadata, layout};
use atombank::formats::safetensors::SafetensorsFile;
use atombank::plan::{self, Expr, Plan, PlannedTensor, Staging};
use serde_json::{Value as Json, json};

const INDEX: &str = "model.safetensors.index.json";

/// A safetensors file of F32 tensors with one element each.
fn shard(path: &Path, names: &[&str]) {
    let entry = |(i, name): (usize, &&str)| {
        let offsets = [i * 4, i * 4 + 4];
        ((*name).to_owned(), json!({"dtype": "F32", "shape": [1], "data_offsets": offsets}))
    };
    let header = Json::Object(names.iter().enumerate().map(entry).collect()).to_string();
    let length = (header.len() as u64).to_le_bytes();
    fs::write(path, [length.as_slice(), header.as_bytes(), &vec![0; names.len() * 4]].concat()).unwrap();
}

/// A folder with an index and the shards `one` (tensor a) and `two` (tensor b).
fn sharded(weight_map: Json) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    shard(&dir.path().join("one.safetensors"), &["a"]);
    shard(&dir.path().join("two.safetensors"), &["b"]);
    fs::write(dir.path().join(INDEX), json!({"metadata": {}, "weight_map": weight_map}).to_string()).unwrap();
    dir
}

fn refusal(folder: &Path) -> String {
    Checkpoint::open(folder).err().expect("accepted").to_string()
}

#[test]
fn an_index_that_leads_elsewhere_is_refused() {
    let right = sharded(json!({"a": "one.safetensors", "b": "two.safetensors"}));
    assert_eq!(Checkpoint::open(right.path()).unwrap().weights().tensors.len(), 2);
    let outside = right.path().join("one.safetensors");
    let outside = outside.to_str().unwrap();
    for name in [
        outside,
        "../one.safetensors",
        "/etc/passwd",
        "./one.safetensors",
        "sub//one.safetensors",
        "sub/../one.safetensors",
        "..",
        ".",
        "",
    ] {
        let dir = sharded(json!({"a": name, "b": "two.safetensors"}));
        let message = refusal(dir.path());
        let expected = format!("{INDEX}: weight_map: expected names of files in this folder, found {name:?}");
        assert!(message.ends_with(&expected), "{message}");
    }
    for map in [json!(["one.safetensors"]), json!({"a": 1}), json!({"a": null}), json!({"a": {"b": "c"}}), json!(null)]
    {
        let message = refusal(sharded(map).path());
        assert!(message.contains(&format!("{INDEX}: weight_map")) && !message.contains("invalid"), "{message}");
    }
}

#[test]
fn an_index_that_disagrees_with_its_shards_is_refused_both_ways() {
    let cases = [
        (
            json!({"a": "one.safetensors", "b": "one.safetensors"}),
            "tensor \"b\": expected it in one.safetensors, found it nowhere",
        ),
        (
            json!({"a": "two.safetensors", "b": "one.safetensors"}),
            "tensor \"a\": expected it in two.safetensors, found one.safetensors",
        ),
        (json!({"a": "one.safetensors"}), ""),
        (
            json!({"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}),
            "tensor \"c\": expected it in two.safetensors, found it nowhere",
        ),
        (
            json!({"a": "one.safetensors", "b": "three.safetensors"}),
            "expected the shard three.safetensors beside it, found no such file",
        ),
    ];
    for (map, expected) in cases {
        let dir = sharded(map);
        match expected {
            // A shard that the index doesn't name isn't part of the model.
            "" => assert_eq!(Checkpoint::open(dir.path()).unwrap().weights().tensors.len(), 1),
            expected => {
                let message = refusal(dir.path());
                assert!(message.contains(expected), "{expected}\n{message}");
            }
        }
    }
    let dir = sharded(json!({"a": "one.safetensors", "b": "two.safetensors"}));
    shard(&dir.path().join("two.safetensors"), &["b", "extra"]);
    let message = refusal(dir.path());
    assert!(message.contains("tensor \"extra\": expected every tensor of two.safetensors in the index"), "{message}");
    // A repeated tensor is accepted if both are the same, and refused if they differ.
    shard(&dir.path().join("two.safetensors"), &["b", "a"]);
    let both = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(both.weights().tensors.len(), 2);
    drop(both);
    let mut bytes = fs::read(dir.path().join("two.safetensors")).unwrap();
    *bytes.last_mut().unwrap() = 1;
    fs::write(dir.path().join("two.safetensors"), bytes).unwrap();
    let message = refusal(dir.path());
    let expected = "expected each name in one shard, or the same tensor in all, found it in one.safetensors and \
                    two.safetensors, and they differ";
    assert!(message.contains("tensor \"a\": ") && message.ends_with(expected), "{message}");
}

/// They aren't even opened: opening a pipe without a writer would never end.
#[test]
fn devices_pipes_and_folders_are_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let link = dir.path().join("link");
    symlink("/dev/zero", &link).unwrap();
    let others: [PathBuf; 5] = [pipe, dir.path().into(), "/dev/zero".into(), "/dev/null".into(), link];
    for path in &others {
        let refusals = [
            GgufFile::open(path).err().unwrap(),
            GgufModel::open(path).err().unwrap(),
            SafetensorsFile::open(path).err().unwrap(),
        ];
        for error in refusals {
            assert_eq!(error.to_string(), format!("{}: cannot open: not a regular file", path.display()));
        }
    }
    let missing = GgufModel::open(&dir.path().join("missing")).err().unwrap().to_string();
    assert!(missing.contains("missing: cannot open: No such file"), "{missing}");
}

#[test]
fn deep_nesting_in_json_ends_in_an_error() {
    let deep = format!(r#"{{"weight_map":{}"#, r#"{"a":"#.repeat(200_000));
    for name in ["config.json", INDEX] {
        let dir = sharded(json!({"a": "one.safetensors", "b": "two.safetensors"}));
        fs::write(dir.path().join(name), &deep).unwrap();
        let message = refusal(dir.path());
        assert!(
            message.contains(name) && message.contains("found too many lists or objects inside each other"),
            "{message}"
        );
    }
}

/// The old file stays mapped until the new one gets its name.
#[test]
fn a_file_may_be_rewritten_from_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let expr = Expr::Values { shape: vec![1000], values: values.clone().into() };
    let mut plan = Plan::default();
    plan.tensors.push(PlannedTensor { name: "w".into(), dtype: atombank::DType::F32, shape: vec![1000], expr });
    for _ in 0..2 {
        let layout = layout(&Metadata::new(&path), &plan.tensors).unwrap();
        let staging = Staging::file(&path, true).unwrap();
        plan::execute(&plan, &layout, &staging, plan::Options::default(), &|_| {}).unwrap();
        staging.commit().unwrap();
        let model = GgufModel::open(&path).unwrap();
        plan.tensors[0].expr = Expr::Take(model.tensors()[0].clone());
        assert_eq!(plan.tensors[0].read().unwrap(), values);
    }
}
