//! Tests GGUF end to end: files of either byte order and split models, compared with the output of
//! llama.cpp's own Python code, and round trips of random files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atombank::DType;
use atombank::arch::HfFolder;
use atombank::checkpoint::Checkpoint;
use atombank::convert::{ConvertOptions, OutType, to_gguf};
use atombank::error::Result;
use atombank::formats::gguf::{Array, GgufFile, GgufModel, Metadata, SplitLimits, Value, layout, split_layout};
use atombank::plan::{self, Expr, Plan, PlannedTensor, Staging, TensorRef};
use atombank::source::Source;
use half::f16;
use proptest::prelude::*;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Writes shards into `folder`, and returns the path of the first.
fn write(folder: &Path, metadata: &Metadata, plan: &Plan, limits: SplitLimits) -> Result<PathBuf> {
    let layout = split_layout(metadata, &plan.tensors, "m", limits)?;
    let staging = Staging::files(folder, layout.files.iter().map(|file| file.name.as_path()), false)?;
    plan::execute(plan, &layout, &staging, plan::Options::default(), &|_| {})?;
    staging.commit()?;
    Ok(folder.join(&layout.files[0].name))
}

fn take(tensors: impl IntoIterator<Item = TensorRef>) -> Plan {
    let planned = |tensor: TensorRef| {
        let info = tensor.info().clone();
        PlannedTensor { name: info.name, dtype: info.dtype, shape: info.shape, expr: Expr::Take(tensor) }
    };
    Plan { tensors: tensors.into_iter().map(planned).collect() }
}

fn values(name: &str, dtype: DType, shape: &[usize], values: Vec<f32>) -> PlannedTensor {
    let expr = Expr::Values { shape: shape.to_vec(), values: Arc::from(values) };
    PlannedTensor { name: name.to_owned(), dtype, shape: shape.to_vec(), expr }
}

fn described(folder: &Path) -> BTreeMap<String, (u64, String)> {
    let describe = |path: PathBuf| {
        let bytes = fs::read(&path).unwrap();
        let sha256 = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), (bytes.len() as u64, sha256))
    };
    fs::read_dir(folder).unwrap().map(|entry| describe(entry.unwrap().path())).collect()
}

fn converted(folder: &Checkpoint, options: &ConvertOptions) -> (Metadata, Plan) {
    let gguf = to_gguf(folder, folder.weights(), options).unwrap();
    (gguf.metadata().unwrap().clone(), gguf.plan)
}

#[test]
fn big_endian_files_hold_what_their_little_endian_twins_hold() {
    for (name, tensors) in [("plain", 8), ("blocks", 9)] {
        let little = GgufFile::open(&fixture(&format!("gguf/{name}-little.gguf"))).unwrap();
        let big = GgufFile::open(&fixture(&format!("gguf/{name}-big.gguf"))).unwrap();
        assert!(big.big_endian() && !little.big_endian());
        assert_eq!((big.version(), big.alignment()), (little.version(), little.alignment()));
        assert_eq!(big.metadata(), little.metadata());
        assert_eq!(big.tensors(), little.tensors());
        assert_eq!(big.tensors().len(), tensors);
        for (i, info) in big.tensors().iter().enumerate() {
            assert_eq!(big.bytes(i), little.bytes(i), "{}", info.name);
            for row in 0..info.rows() {
                assert_eq!(big.rows(i, row..row + 1), little.rows(i, row..row + 1), "{} row {row}", info.name);
            }
        }
    }
    let big = GgufFile::open(&fixture("gguf/plain-big.gguf")).unwrap();
    assert_eq!(big.metadata().get("u64"), Some(&Value::U64(0x0123_4567_89ab_cdef)));
    assert_eq!(big.metadata().get("i64s"), Some(&Value::Array(Array::I64(vec![-(1 << 62)]))));
    assert_eq!(big.tensors().last().unwrap().shape, [0usize; 0], "a scalar has no dimensions");
    assert_eq!(*big.bytes(7), 2.5f32.to_le_bytes());
}

/// Files become their twins of the other byte order, for every type.
#[test]
fn files_are_copied_into_the_other_byte_order() {
    for name in ["plain", "blocks"] {
        for (from, to) in [("big", "little"), ("little", "big"), ("big", "big")] {
            let model = GgufModel::open(&fixture(&format!("gguf/{name}-{from}.gguf"))).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let plan = take(model.tensors().iter().cloned());
            let order = SplitLimits { big_endian: to == "big", ..SplitLimits::default() };
            let path = write(dir.path(), model.metadata(), &plan, order).unwrap();
            assert_eq!(fs::read(path).unwrap(), fs::read(fixture(&format!("gguf/{name}-{to}.gguf"))).unwrap());
        }
    }
}

/// llama.cpp's scripts don't say where the numbers of this type are.
#[test]
fn a_type_of_unknown_byte_order_is_refused_in_big_endian_files() {
    let plan = Plan { tensors: vec![values("blk.0.weight", DType::Q5_K, &[1, 256], vec![1.0; 256])] };
    let dir = tempfile::tempdir().unwrap();
    let order = SplitLimits { big_endian: true, ..SplitLimits::default() };
    let error = write(dir.path(), &Metadata::new("m.gguf"), &plan, order).unwrap_err().to_string();
    assert!(error.contains("expected a type whose byte order is known, for a big-endian file, found Q5_K"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

fn limits(json: &Json) -> SplitLimits {
    let number = |name: &str| json.get(name).map(|n| n.as_u64().unwrap());
    SplitLimits {
        max_tensors: number("max_tensors").map(|n| n as usize),
        max_bytes: number("max_bytes"),
        no_tensor_first: json.get("no_tensor_first").is_some_and(|n| n.as_bool().unwrap()),
        big_endian: false,
    }
}

/// The tensors of `synthetic` in fixtures/gguf/make_gguf.py.
fn synthetic() -> (Metadata, Plan) {
    let mut metadata = Metadata::new("m.gguf");
    metadata.insert("general.architecture", "test");
    metadata.insert("general.name", "synthetic");
    metadata.insert("test.block_count", 3u32);
    metadata.insert("test.list", Array::I32(vec![1, 2, 3]));
    let shapes = [[3, 5], [1, 1], [8, 32], [40, 10], [2, 2], [7, 9], [16, 4]];
    let tensor = |(i, shape): (usize, &[usize; 2])| {
        let dtype = if i % 2 == 1 { DType::F16 } else { DType::F32 };
        values(&format!("blk.{i}.weight"), dtype, shape, (0..shape[0] * shape[1]).map(|v| v as f32).collect())
    };
    (metadata, Plan { tensors: shapes.iter().enumerate().map(tensor).collect() })
}

#[test]
fn shards_equal_the_reference_byte_by_byte() {
    let expected: Json = serde_json::from_slice(&fs::read(fixture("gguf/split.json")).unwrap()).unwrap();
    let folder = HfFolder::open(&fixture("convert/llama/model")).unwrap();
    let options = ConvertOptions { outtype: OutType::F16, ..ConvertOptions::default() };
    let models = [("synthetic", synthetic()), ("llama", converted(&folder, &options))];
    for (name, (metadata, plan)) in &models {
        let cases = expected[name].as_array().unwrap();
        assert!(cases.len() >= 3, "{name}");
        for case in cases {
            let dir = tempfile::tempdir().unwrap();
            let first = write(dir.path(), metadata, plan, limits(&case["limits"])).unwrap();
            let files = case["files"].as_object().unwrap().iter();
            let expected: BTreeMap<String, (u64, String)> = files
                .map(|(file, d)| (file.clone(), (d["len"].as_u64().unwrap(), d["sha256"].as_str().unwrap().to_owned())))
                .collect();
            assert_eq!(described(dir.path()), expected, "{name} {}", case["limits"]);
            let joined = GgufModel::open(&first).unwrap();
            assert_eq!(joined.shards().len(), expected.len());
            assert_eq!(joined.metadata(), metadata);
            let names = joined.tensors().iter().map(|tensor| &tensor.info().name);
            assert!(names.eq(plan.tensors.iter().map(|tensor| &tensor.name)));
        }
    }
}

#[test]
fn any_shard_opens_the_whole_model() {
    let (metadata, plan) = synthetic();
    let dir = tempfile::tempdir().unwrap();
    let three = SplitLimits { max_tensors: Some(3), ..SplitLimits::default() };
    let first = write(dir.path(), &metadata, &plan, three).unwrap();
    for no in 1..=3 {
        let path = dir.path().join(format!("m-0000{no}-of-00003.gguf"));
        let model = GgufModel::open(&path).unwrap();
        assert_eq!(model.path(), path);
        assert_eq!((model.shards().len(), model.tensors().len()), (3, 7));
        assert_eq!(model.shards()[0].path(), first);
        assert_eq!(model.metadata().text("general.name").unwrap(), "synthetic");
        assert_eq!(model.metadata().get("split.count"), None);
        let tensor = model.get("blk.5.weight").unwrap();
        assert!(tensor.path().ends_with("m-00002-of-00003.gguf"), "a finding about it names its own file");
        assert_eq!(tensor.rows(0..1)[..4], [f16::from_f32(0.0), f16::from_f32(1.0)].map(f16::to_le_bytes).concat());
        assert!(model.get("blk.7.weight").is_none());
    }
}

fn value() -> impl Strategy<Value = Value> {
    use proptest::collection::vec;
    let text = || vec(any::<u8>(), 0..12);
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        text().prop_map(Value::String),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
        vec(any::<u8>(), 0..9).prop_map(|v| Value::Array(Array::U8(v))),
        vec(any::<i16>(), 0..9).prop_map(|v| Value::Array(Array::I16(v))),
        vec(any::<f32>(), 0..9).prop_map(|v| Value::Array(Array::F32(v))),
        vec(any::<bool>(), 0..9).prop_map(|v| Value::Array(Array::Bool(v))),
        vec(any::<u64>(), 0..9).prop_map(|v| Value::Array(Array::U64(v))),
        vec(text(), 0..5).prop_map(|v| Value::Array(Array::String(v))),
    ]
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let alignment = proptest::option::of((0u32..8).prop_map(|bits| 1u32 << bits));
    (proptest::collection::vec(("[a-zü.]{1,8}", value()), 0..8), alignment).prop_map(|(entries, alignment)| {
        let mut metadata = Metadata::new("m.gguf");
        for (key, value) in entries {
            metadata.insert(key, value);
        }
        if let Some(alignment) = alignment {
            metadata.insert("general.alignment", alignment);
        }
        metadata
    })
}

fn tensors() -> impl Strategy<Value = Plan> {
    let dtype = prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16), Just(DType::Q8_0)];
    let tensor = (dtype, proptest::collection::vec(0usize..4, 0..4), -4.0..4.0f32);
    proptest::collection::vec(tensor, 0..9).prop_map(|described| {
        let tensor = |(i, (dtype, mut shape, scale)): (usize, (DType, Vec<usize>, f32))| {
            if dtype == DType::Q8_0 {
                shape.resize(shape.len().max(2), 1);
                shape.iter_mut().next_back().into_iter().for_each(|last| *last *= 32);
            }
            let elems = shape.iter().product::<usize>();
            values(&format!("tensor.{i}"), dtype, &shape, (0..elems).map(|v| v as f32 * scale).collect())
        };
        Plan { tensors: described.into_iter().enumerate().map(tensor).collect() }
    })
}

fn some_limits() -> impl Strategy<Value = SplitLimits> {
    let max_tensors = proptest::option::of(1usize..5);
    let max_bytes = proptest::option::of(1u64..600);
    let all = (max_tensors, max_bytes, any::<bool>(), any::<bool>());
    all.prop_map(|(max_tensors, max_bytes, no_tensor_first, big_endian)| SplitLimits {
        max_tensors,
        max_bytes,
        no_tensor_first,
        big_endian,
    })
}

fn holds(model: &GgufModel, metadata: &Metadata, plan: &Plan) {
    assert_eq!(model.metadata(), metadata);
    assert_eq!(model.tensors().len(), plan.tensors.len());
    for (tensor, planned) in model.tensors().iter().zip(&plan.tensors) {
        let info = tensor.info();
        assert_eq!((&info.name, info.dtype, &info.shape), (&planned.name, planned.dtype, &planned.shape));
        let mut bytes = Vec::new();
        planned.encode_rows(0..planned.rows(), &mut Vec::new(), &mut bytes).unwrap();
        assert_eq!(*tensor.rows(0..info.rows()), bytes, "{}", info.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Files are written, read, split differently, and joined: keys, values, tensors and bytes stay
    /// the same.
    #[test]
    fn what_is_written_is_read_back_however_it_is_split(
        metadata in metadata(),
        plan in tensors(),
        first in some_limits(),
        second in some_limits(),
    ) {
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let model = GgufModel::open(&write(dirs[0].path(), &metadata, &plan, first).unwrap()).unwrap();
        holds(&model, &metadata, &plan);
        let taken = take(model.tensors().iter().cloned());
        let again = GgufModel::open(&write(dirs[1].path(), model.metadata(), &taken, second).unwrap()).unwrap();
        holds(&again, &metadata, &plan);
        // Joining gives the file that was never split.
        let taken = take(again.tensors().iter().cloned());
        let joined = write(dirs[2].path(), again.metadata(), &taken, SplitLimits::default()).unwrap();
        let whole = layout(&metadata, &plan.tensors).unwrap();
        let joined = fs::read(joined).unwrap();
        prop_assert_eq!(joined.len() as u64, whole.files[0].byte_len);
        prop_assert!(joined.starts_with(&whole.files[0].head));
        for (shard, no) in again.shards().iter().zip(0u16..) {
            if again.shards().len() > 1 {
                prop_assert_eq!(shard.metadata().get("split.no"), Some(&Value::U16(no)));
            }
            let bytes: u64 = (0..shard.tensors().len()).map(|i| shard.bytes(i).len() as u64).sum();
            prop_assert!(second.max_tensors.is_none_or(|most| shard.tensors().len() <= most));
            prop_assert!(second.max_bytes.is_none_or(|most| bytes <= most || shard.tensors().len() == 1));
        }
    }
}
