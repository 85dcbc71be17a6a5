//! The way back: a checkpoint that became a GGUF is the same checkpoint again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use atombank::checkpoint::Checkpoint;
use atombank::convert::{ConvertOptions, OutType, from_gguf, to_gguf};
use atombank::formats::gguf::{GgufModel, Metadata};
use atombank::output::Destination;
use atombank::plan::{Plan, PlannedTensor};
use atombank::{DType, Result};

/// `fixtures/convert`, or the folder of other cases of the same form that the environment names.
fn models() -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/convert");
    let folder = std::env::var_os("ATOMBANK_CONVERT_CASES").map_or(fixtures, PathBuf::from);
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path().join("model"));
    let mut models: Vec<PathBuf> = entries.filter(|model| model.join("config.json").is_file()).collect();
    models.sort();
    models
}

fn written(model: &Checkpoint, options: &ConvertOptions, target: &Path) -> Result<Metadata> {
    let gguf = to_gguf(model, model.weights(), options)?.unwrap();
    gguf.write(&Destination::new(target), &|_| {})?;
    Ok(gguf.metadata().unwrap().clone())
}

/// The bytes of every tensor by name.
fn contents(plan: &Plan) -> BTreeMap<&str, (DType, &[usize], Vec<u8>)> {
    let bytes = |tensor: &PlannedTensor| {
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        tensor.encode_rows(0..tensor.rows(), &mut scratch, &mut out).unwrap();
        out
    };
    plan.tensors.iter().map(|t| (t.name.as_str(), (t.dtype, t.shape.as_slice(), bytes(t)))).collect()
}

/// There and back, in the source's types: no tensor has changed, and once more there gives the same
/// keys of the architecture.
fn returns(model: &Path, outtype: OutType) {
    let original = Checkpoint::open(model).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("m.gguf");
    let options = ConvertOptions { outtype, ..ConvertOptions::default() };
    let first = written(&original, &options, &target).unwrap();
    let (config, restored) = from_gguf(&GgufModel::open(&target).unwrap(), None).unwrap().unwrap();
    let (before, after) = (contents(original.weights()), contents(&restored.plan));
    let exact = outtype == OutType::Source;
    for (name, (dtype, shape, bytes)) in after.iter().filter(|_| exact) {
        let Some((dtype_before, shape_before, bytes_before)) = before.get(name) else { panic!("{name} is new") };
        assert_eq!((dtype, shape), (dtype_before, shape_before), "{name}");
        assert!(bytes == bytes_before, "{}: {name}: other values", model.display());
    }
    let missing: Vec<_> = before.keys().filter(|name| exact && !after.contains_key(*name)).collect();
    let unused =
        ["pooler.dense.", "cls.", "vocab_", ".attention.bias", ".masked_bias", "rotary_emb.inv_freq", "position_ids"];
    assert!(missing.iter().all(|name| unused.iter().any(|part| name.contains(part))), "missing {missing:?}");
    let folder = dir.path().join("again");
    restored.write(&Destination::new(&folder), &|_| {}).unwrap();
    let again = Checkpoint::open(&folder).unwrap();
    assert_eq!(again.config_json, config, "{}", model.display());
    let second = to_gguf(&again, again.weights(), &options).unwrap().unwrap();
    let of_arch = |metadata: &Metadata| {
        let prefix = format!("{}.", metadata.text("general.architecture").unwrap());
        let keys = metadata.iter().filter(|(key, _)| key.starts_with(&prefix) || key.starts_with("general.sampling"));
        keys.map(|(key, value)| (key.to_owned(), value.clone())).collect::<Vec<_>>()
    };
    assert_eq!(of_arch(&first), of_arch(second.metadata().unwrap()), "{}", model.display());
}

#[test]
fn every_checkpoint_comes_back_bit_by_bit() {
    let failed: Vec<String> = models()
        .into_iter()
        .flat_map(|model| [OutType::Source, OutType::Auto].map(|outtype| (model.clone(), outtype)))
        .filter(|(model, outtype)| std::panic::catch_unwind(|| returns(model, *outtype)).is_err())
        .map(|(model, outtype)| format!("{} {outtype}", model.display()))
        .collect();
    assert!(failed.is_empty(), "changed: {}", failed.join(", "));
}
