//! Tests of shards that don't make up a model: each is refused with the right message.

use std::fs;
use std::sync::Arc;

use super::*;
use crate::DType;
use crate::formats::gguf::{Value, layout};
use crate::plan::{Expr, PlannedTensor};

type Keys<'a> = &'a [(&'a str, Value)];

fn put(folder: &Path, name: &str, keys: Keys, tensors: &[&str]) -> PathBuf {
    let mut metadata = Metadata::new(name);
    for (key, value) in keys {
        metadata.insert(*key, value.clone());
    }
    let planned = |name: &&str| PlannedTensor {
        name: (*name).to_owned(),
        dtype: DType::F32,
        shape: vec![1],
        expr: Expr::Values { shape: vec![1], values: Arc::from([1.0]) },
    };
    let layout = layout(&metadata, &tensors.iter().map(planned).collect::<Vec<_>>()).unwrap();
    let mut bytes = layout.files[0].head.clone();
    bytes.resize(layout.files[0].byte_len as usize, 0);
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn split(no: u16, count: u16, total: i32) -> [(&'static str, Value); 3] {
    [("split.no", no.into()), ("split.count", count.into()), ("split.tensors.count", total.into())]
}

const FIRST: &str = "m-00001-of-00002.gguf";
const SECOND: &str = "m-00002-of-00002.gguf";

/// Opens a model of two shards with tensors `a` and `b`. The second shard has these keys and
/// tensors.
fn with_second(keys: Keys, tensors: &[&str]) -> Result<GgufModel> {
    let dir = tempfile::tempdir().unwrap();
    let mut first = vec![("general.architecture", Value::from("llama")), ("general.name", "m".into())];
    first.extend(split(0, 2, 2));
    let path = put(dir.path(), FIRST, &first, &["a"]);
    put(dir.path(), SECOND, keys, tensors);
    GgufModel::open(&path)
}

fn refusal(result: Result<GgufModel>) -> String {
    result.err().expect("accepted").to_string()
}

#[test]
fn shards_that_disagree_are_refused_by_name() {
    let with = |extra: (&'static str, Value)| [split(1, 2, 2).as_slice(), &[extra]].concat();
    type Case<'a> = (Vec<(&'a str, Value)>, &'a [&'a str], &'a str);
    let cases: &[Case] = &[
        (
            split(0, 2, 2).to_vec(),
            &["b"],
            "key \"split.no\": expected shard 2 of 2, as the name says, found shard 1 of 2",
        ),
        (split(1, 3, 2).to_vec(), &["b"], "expected shard 2 of 2, as the name says, found shard 2 of 3"),
        (split(2, 2, 2).to_vec(), &["b"], "key \"split.no\": expected a number below 2, the count of shards, found 2"),
        (vec![], &["b"], "expected shard 2 of 2, as the name says, found a whole model"),
        (split(1, 2, 3).to_vec(), &["b"], "key \"split.tensors.count\": expected int32 2, as in "),
        (split(1, 2, 2)[1..].to_vec(), &["b"], "key \"split.no\": expected a value, found none"),
        (split(1, 2, 2)[..2].to_vec(), &["b"], "key \"split.tensors.count\": expected a value, found none"),
        (split(1, 2, 2).to_vec(), &["a"], "tensor \"a\": expected each name in one shard, found it in "),
        (split(1, 2, 2).to_vec(), &["b", "c"], "expected the 3 tensors of all shards, found int32 2"),
        (split(1, 2, 2).to_vec(), &[], "expected the 1 tensors of all shards, found int32 2"),
        (
            with(("general.architecture", "qwen2".into())),
            &["b"],
            "key \"general.architecture\": expected string \"llama\", as in ",
        ),
        (with(("llama.block_count", 1u32.into())), &["b"], "key \"llama.block_count\": expected no key that "),
        (
            vec![("split.no", "1".into()), ("split.count", 2u16.into()), ("split.tensors.count", 2i32.into())],
            &["b"],
            "key \"split.no\": expected a whole number below 2^32, found string \"1\"",
        ),
    ];
    for (keys, tensors, expected) in cases {
        let message = refusal(with_second(keys, tensors));
        assert!(message.contains(expected), "{expected}\n{message}");
    }
    let agreeing =
        [with(("general.name", "m".into())), with(("general.alignment", 64u32.into())), split(1, 2, 2).to_vec()];
    for keys in agreeing {
        assert_eq!(with_second(&keys, &["b"]).unwrap().tensors().len(), 2);
    }
}

#[test]
fn a_missing_shard_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = put(dir.path(), SECOND, &split(1, 2, 2), &["b"]);
    let message = refusal(GgufModel::open(&path));
    let missing = dir.path().join(FIRST);
    let expected = "shard 1 of 2: expected every shard in one folder, found no such file; is the download complete?";
    assert_eq!(message, format!("{}: {expected}", missing.display()));
    // A folder with the shard's name isn't a shard.
    fs::create_dir(&missing).unwrap();
    assert!(refusal(GgufModel::open(&path)).ends_with("cannot open: not a regular file"));
    fs::remove_dir(&missing).unwrap();
    fs::write(&missing, b"GGUF").unwrap();
    assert!(refusal(GgufModel::open(&path)).contains("m-00001-of-00002.gguf: GGUF header: expected 4 bytes"));
}

#[test]
fn the_name_of_a_shard_has_to_say_which_it_is() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["m.gguf", "m-00002-of-00002.gguf", "m-00001-of-00003.gguf", "-00001-of-00002.gguf", "m-1-of-2.gguf"] {
        let message = refusal(GgufModel::open(&put(dir.path(), name, &split(0, 2, 2), &["a"])));
        let expected = "shard 1 of 2: expected a name that ends in \"-00001-of-00002.gguf\", found ";
        assert!(message.contains(expected) && message.contains(&format!("found {name:?}")), "{message}");
    }
    // A huge count of shards ends at the first missing file.
    let keys = [("split.no", 0u32.into()), ("split.count", u32::MAX.into()), ("split.tensors.count", 1i32.into())];
    let message = refusal(GgufModel::open(&put(dir.path(), "m-00001-of-4294967295.gguf", &keys, &["a"])));
    assert!(message.contains("m-00002-of-4294967295.gguf: shard 2 of 4294967295: expected every shard"), "{message}");
}

#[test]
fn a_whole_model_needs_no_others_whatever_its_name() {
    let dir = tempfile::tempdir().unwrap();
    // No keys, the keys that gguf-split leaves when it joins, and a count of one.
    for keys in [vec![], split(0, 0, 1).to_vec(), split(0, 1, 1).to_vec()] {
        let model = GgufModel::open(&put(dir.path(), FIRST, &keys, &["a"])).unwrap();
        assert_eq!((model.shards().len(), model.tensors().len()), (1, 1));
        assert!(model.metadata().is_empty());
    }
}
