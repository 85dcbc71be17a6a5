//! Tests the way back: a checkpoint that is converted to a GGUF and back is the same checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use atombank::checkpoint::Checkpoint;
use atombank::convert::{ConvertOptions, OutType, from_gguf, to_gguf};
use atombank::formats::gguf::{GgufModel, Metadata};
use atombank::output::{Destination, Output};
use atombank::plan::{Expr, Plan, PlannedTensor};
use atombank::{DType, Result};

/// The models in `fixtures/convert`, or in another folder of the same form, given by an environment
/// variable.
fn models() -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/convert");
    let folder = std::env::var_os("ATOMBANK_CONVERT_CASES").map_or(fixtures, PathBuf::from);
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path().join("model"));
    let mut models: Vec<PathBuf> = entries.filter(|model| model.join("config.json").is_file()).collect();
    models.sort();
    models
}

fn written(model: &Checkpoint, options: &ConvertOptions, target: &Path) -> Result<Metadata> {
    let gguf = to_gguf(model, model.weights(), options)?;
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

/// Converts a model to GGUF and back with the source's types: no tensor may change, and a second
/// conversion must give the same keys of the architecture.
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
    let second = to_gguf(&again, again.weights(), &options).unwrap();
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

/// Changes a key of the GGUF at `path` and converts it back. Returns the error; `None` if it
/// succeeds.
fn with_key(path: &Path, key: &str, value: u32) -> Option<String> {
    let model = GgufModel::open(path).unwrap();
    let mut metadata = model.metadata().clone();
    metadata.insert(key, value);
    let dir = tempfile::tempdir().unwrap();
    let changed = dir.path().join("changed.gguf");
    let plan: Plan = model.tensors().iter().cloned().collect();
    Output::gguf(metadata, plan, Vec::new()).write(&Destination::new(&changed), &|_| {}).unwrap();
    let restored = from_gguf(&GgufModel::open(&changed).unwrap(), None);
    restored.err().map(|error| error.to_string())
}

#[test]
fn counts_of_a_gguf_that_its_tensors_do_not_bear_out_are_refused() {
    let sizes = [
        "block_count",
        "expert_count",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "embedding_length",
        "feed_forward_length",
        "expert_feed_forward_length",
        "expert_shared_feed_forward_length",
    ];
    let mut tried = 0;
    for model in models() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let options = ConvertOptions { outtype: OutType::Auto, ..ConvertOptions::default() };
        let metadata = written(&Checkpoint::open(&model).unwrap(), &options, &path).unwrap();
        let prefix = format!("{}.", metadata.text("general.architecture").unwrap());
        let counts = metadata.iter().map(|(key, _)| key).filter(|key| metadata.u32(key).is_ok());
        for key in counts.filter_map(|key| key.strip_prefix(&prefix)) {
            for value in [0, (1 << 31) - 1, u32::MAX] {
                let error = with_key(&path, &format!("{prefix}{key}"), value);
                // For Falcon, a width of 0 means four times the hidden size.
                let is_default = key == "feed_forward_length" && value == 0;
                // If all layers have experts, no tensor has this width.
                let is_unused = key == "feed_forward_length" && prefix.ends_with("moe.");
                assert!(
                    error.is_some() || is_default || is_unused || !sizes.contains(&key),
                    "{} {key} {value}",
                    model.display()
                );
                let error = error.unwrap_or_default();
                assert!(error.lines().count() <= 1 && error.len() < 2000, "{error}");
                tried += 1;
            }
        }
    }
    assert!(tried > 300, "{tried}");
}

#[test]
fn heads_that_do_not_divide_into_groups_are_refused_in_both_directions() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/convert/falcon/model");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let options = ConvertOptions { outtype: OutType::Auto, ..ConvertOptions::default() };
    let metadata = written(&Checkpoint::open(&from).unwrap(), &options, &path).unwrap();
    let groups = metadata.u32("falcon.attention.head_count").unwrap() + 1;
    let error = with_key(&path, "falcon.attention.head_count_kv", groups).unwrap();
    assert!(error.contains("num_kv_heads: expected a divisor of"), "{error}");
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    for file in fs::read_dir(&from).unwrap().map(|file| file.unwrap().path()) {
        fs::copy(&file, model.join(file.file_name().unwrap())).unwrap();
    }
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["num_kv_heads"] = groups.into();
    config["new_decoder_architecture"] = true.into();
    config["num_ln_in_parallel_attn"] = 1.into();
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    let error = written(&Checkpoint::open(&model).unwrap(), &options, &dir.path().join("x.gguf")).unwrap_err();
    assert!(error.to_string().contains("num_kv_heads: expected a divisor of"), "{error}");
}

#[test]
fn projections_of_other_shapes_are_refused() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/convert/falcon/model");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let options = ConvertOptions { outtype: OutType::Auto, ..ConvertOptions::default() };
    written(&Checkpoint::open(&from).unwrap(), &options, &path).unwrap();
    let model = GgufModel::open(&path).unwrap();
    let mut plan: Plan = model.tensors().iter().cloned().collect();
    let tensor = plan.tensors.iter_mut().find(|tensor| tensor.name == "blk.1.attn_qkv.weight").unwrap();
    // The first dimension has the required size, but there are more elements in total.
    tensor.shape.push(1);
    tensor.expr = Expr::Reshape { of: Box::new(tensor.expr.clone()), shape: tensor.shape.clone() };
    let changed = dir.path().join("changed.gguf");
    Output::gguf(model.metadata().clone(), plan, Vec::new()).write(&Destination::new(&changed), &|_| {}).unwrap();
    let error = from_gguf(&GgufModel::open(&changed).unwrap(), None).unwrap_err().to_string();
    assert!(error.contains("tensor \"blk.1.attn_qkv.weight\": expected the values of transformer"), "{error}");
}
