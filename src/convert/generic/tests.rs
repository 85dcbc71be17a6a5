use std::fs;

use crate::output::Destination;
use crate::plan::{self, Staging};
use proptest::prelude::*;

use super::*;
use crate::Error;
use crate::formats::gguf::{self, GgufFile};
use crate::formats::safetensors::SafetensorsFile;

/// All types of safetensors.
const DTYPES: [&str; 19] = [
    "F32",
    "F16",
    "BF16",
    "F64",
    "I8",
    "I16",
    "I32",
    "I64",
    "U8",
    "U16",
    "U32",
    "U64",
    "BOOL",
    "C64",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F8_E4M3FNUZ",
    "F8_E5M2FNUZ",
];

/// Name, type, shape, and a seed for the bytes.
type Tensor = (String, &'static str, Vec<usize>, u8);

fn bytes_of((_, dtype, shape, seed): &Tensor) -> Vec<u8> {
    let len = shape.iter().product::<usize>() * DType::from_safetensors(dtype).unwrap().block_bytes();
    // Bytes below 0x40, with which no float is a NaN or an infinity.
    (0..len).map(|i| (i as u8).wrapping_mul(37).wrapping_add(*seed) & 0x3f).collect()
}

/// A folder with one safetensors file of `tensors`, a config and a tokenizer.
fn checkpoint(tensors: &[Tensor]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut header = Map::new();
    header.insert("__metadata__".into(), serde_json::json!({ "format": "pt", "made by": "a \"test\"" }));
    let mut data = Vec::new();
    for tensor in tensors {
        let start = data.len();
        data.extend(bytes_of(tensor));
        let entry = serde_json::json!({ "dtype": tensor.1, "shape": tensor.2, "data_offsets": [start, data.len()] });
        header.insert(tensor.0.clone(), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    fs::write(dir.path().join("model.safetensors"), file).unwrap();
    fs::write(dir.path().join("config.json"), b"{\"model_type\": \"odd\",\n \"torch_dtype\": \"float32\"}").unwrap();
    fs::write(dir.path().join("tokenizer.model"), b"\x00\xff\xfe").unwrap();
    dir
}

fn opened(folder: &Path) -> Plan {
    let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(&folder.join("model.safetensors")).unwrap());
    Plan::taking(&source)
}

fn write_gguf(metadata: &Metadata, plan: &Plan, path: &Path) -> Result<()> {
    let layout = gguf::layout(metadata, &plan.tensors)?;
    let staging = Staging::file(path, false)?;
    plan::execute(plan, &layout, &staging, plan::Options::default(), &|_| {})?;
    staging.commit()
}

fn read_gguf(path: &Path) -> (Metadata, Plan) {
    let file = Arc::new(GgufFile::open(path).unwrap());
    let metadata = file.metadata().clone();
    let source: Arc<dyn Source> = file;
    (metadata, Plan::taking(&source))
}

/// Converts the folder to GGUF, and that to another folder.
fn round_trip(folder: &Path, outtype: Option<DType>) -> (tempfile::TempDir, Metadata, Plan) {
    let out = tempfile::tempdir().unwrap();
    let weights = opened(folder);
    let (beside, notes) = Sidecars::read(folder, &weights).unwrap();
    assert_eq!(notes, [""; 0]);
    let path = out.path().join("model.gguf");
    to_gguf(folder, &weights, &beside, outtype).unwrap().write(&Destination::new(&path), &|_| {}).unwrap();
    let (metadata, plan) = read_gguf(&path);
    let unpacked = from_gguf(&metadata, &plan).unwrap();
    assert_eq!(unpacked.notes, [""; 0]);
    unpacked.write(&Destination::new(out.path().join("back")), &|_| {}).unwrap();
    (out, metadata, plan)
}

/// The content of a folder: name, type, shape and bytes of each tensor, sorted by name.
fn contents(folder: &Path) -> Vec<(String, DType, Vec<usize>, Vec<u8>)> {
    let file = SafetensorsFile::open(&folder.join("model.safetensors")).unwrap();
    let mut tensors: Vec<_> = file
        .tensors()
        .iter()
        .enumerate()
        .map(|(i, info)| (info.name.clone(), info.dtype, info.shape.clone(), file.bytes(i).to_vec()))
        .collect();
    tensors.sort();
    tensors
}

fn assert_same(folder: &Path, back: &Path) {
    assert_eq!(contents(folder), contents(back));
    for name in ["config.json", "tokenizer.model"] {
        assert_eq!(fs::read(folder.join(name)).unwrap(), fs::read(back.join(name)).unwrap(), "{name}");
    }
    let metadata =
        |folder: &Path| SafetensorsFile::open(&folder.join("model.safetensors")).unwrap().text_metadata().cloned();
    assert_eq!(metadata(folder), metadata(back));
}

fn names() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{1,4}\\.[0-9]{1,2}\\.weight",
        "[a-zA-Z0-9_.]{60,70}",
        Just(String::new()),
        "atombank\\.[0-3]",
        "\\PC{0,24}",
        "[\\x00-\\x1f\"\\\\]{1,3}",
    ]
}

fn shapes() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        4 => prop::collection::vec(1usize..4, 0..7),
        1 => prop::collection::vec(0usize..3, 1..7),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_checkpoint_comes_back_bit_by_bit(
        tensors in prop::collection::vec((names(), prop::sample::select(&DTYPES[..]), shapes(), any::<u8>()), 1..12)
    ) {
        let mut seen = HashSet::new();
        let tensors: Vec<Tensor> =
            tensors.into_iter().filter(|t| t.0 != "__metadata__" && seen.insert(t.0.clone())).collect();
        let folder = checkpoint(&tensors);
        let (out, _, _) = round_trip(folder.path(), None);
        assert_same(folder.path(), &out.path().join("back"));
    }
}

#[test]
fn what_gguf_can_hold_is_held_as_it_is_and_the_rest_under_types_of_its_size() {
    let long = "x".repeat(64);
    let tensors: Vec<Tensor> = vec![
        ("a".into(), "F16", vec![2, 3], 1),
        ("atombank.0".into(), "U8", vec![4], 2),
        (long.clone(), "C64", vec![2], 3),
        ("scalar".into(), "BF16", vec![], 4),
        ("deep".into(), "F8_E4M3", vec![2, 3, 1, 2, 5], 5),
        ("none".into(), "I64", vec![3, 0], 6),
    ];
    let folder = checkpoint(&tensors);
    let (out, metadata, plan) = round_trip(folder.path(), None);
    assert_same(folder.path(), &out.path().join("back"));
    let stored: Vec<(&str, DType, &[usize])> =
        plan.tensors.iter().map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice())).collect();
    assert_eq!(
        stored,
        [
            ("a", DType::F16, &[2, 3][..]),
            ("atombank.0", DType::I8, &[4]),
            ("atombank.1", DType::I64, &[2]),
            ("scalar", DType::BF16, &[1]),
            ("deep", DType::I8, &[6, 1, 2, 5]),
        ]
    );
    assert_eq!(metadata.text("general.architecture").unwrap(), "generic");
    let records: Vec<Record> = parsed(&metadata, TENSORS_KEY).unwrap().unwrap();
    let recorded: Vec<&str> = records.iter().map(|record| record.name.as_str()).collect();
    assert_eq!(recorded, ["atombank.0", &long, "scalar", "deep", "none"], "a is what it seems");
}

#[test]
fn casting_changes_floating_point_tensors_and_the_config_only() {
    let tensors: Vec<Tensor> = vec![("w".into(), "F32", vec![2, 2], 1), ("ids".into(), "U16", vec![3], 2)];
    let folder = checkpoint(&tensors);
    let (out, _, _) = round_trip(folder.path(), Some(DType::BF16));
    let back = out.path().join("back");
    let (before, after) = (contents(folder.path()), contents(&back));
    assert_eq!(before[0], after[0]);
    assert_eq!((after[1].1, &after[1].2), (DType::BF16, &vec![2, 2]));
    let config: Json = serde_json::from_slice(&fs::read(back.join("config.json")).unwrap()).unwrap();
    assert_eq!(config, serde_json::json!({ "model_type": "odd", "torch_dtype": "bfloat16" }));
    let error = to_gguf(folder.path(), &opened(folder.path()), &Sidecars::default(), Some(DType::Q8_0)).unwrap_err();
    assert!(error.to_string().contains("type: expected f32, f16 or bf16, found Q8_0"), "{error}");
}

#[test]
fn a_nan_is_refused_in_floats_and_bits_of_other_types_pass() {
    let folder = checkpoint(&[("w".into(), "F32", vec![1], 0), ("f8".into(), "F8_E4M3", vec![1], 0)]);
    let path = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let len = bytes.len();
    bytes[len - 1] = 0x7f; // NaN in F8_E4M3
    fs::write(&path, &bytes).unwrap();
    let (out, _, _) = round_trip(folder.path(), None);
    assert_same(folder.path(), &out.path().join("back"));
    bytes[len - 5..len - 1].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let made = to_gguf(folder.path(), &opened(folder.path()), &Sidecars::default(), None).unwrap();
    let (metadata, plan) = (made.metadata().unwrap().clone(), made.plan);
    let error = write_gguf(&metadata, &plan, &out.path().join("nan.gguf")).unwrap_err();
    assert!(matches!(error, Error::NotFinite(_)), "{error}");
}

#[test]
fn refuses_keys_that_contradict_themselves_or_the_tensors_by_name() {
    let folder = checkpoint(&[("w".into(), "U8", vec![4], 1), ("v".into(), "F32", vec![2], 2)]);
    let (_out, good, plan) = round_trip(folder.path(), None);
    let record = |stored: &str, name: &str, dtype: &str, shape: &str| {
        format!(r#"[{{"stored":{stored},"name":"{name}","dtype":"{dtype}","shape":{shape}}}]"#)
    };
    let twice = record("\"w\"", "w", "U8", "[4]");
    let twice = format!("{},{}", twice.strip_suffix(']').unwrap(), twice.strip_prefix('[').unwrap());
    let cases = [
        ("general.architecture", "llama".into(), "expected generic, found \"llama\""),
        (VERSION_KEY, "2".into(), "expected a whole number"),
        (TENSORS_KEY, "{".into(), "expected JSON as this crate writes it"),
        (TENSORS_KEY, r#"[{"name":"w"}]"#.into(), "expected JSON as this crate writes it"),
        (TENSORS_KEY, record("\"gone\"", "w", "U8", "[4]"), "expected tensor \"gone\" in the file, found none of that"),
        (TENSORS_KEY, record("\"w\"", "w", "Q4_K", "[4]"), "expected a type of safetensors, found \"Q4_K\""),
        (TENSORS_KEY, record("\"w\"", "w", "U16", "[4]"), "expected I16 [4] for U16 [4], found I8 [4]"),
        (TENSORS_KEY, record("\"w\"", "w", "U8", "[2,2]"), "expected I8 [2, 2] for U8 [2, 2], found I8 [4]"),
        (TENSORS_KEY, record("\"w\"", "w", "U8", "[9,9,9,9,18446744073709551615]"), "found I8 [4]"),
        (TENSORS_KEY, record("\"w\"", "v", "U8", "[4]"), "tensor \"v\": expected each name once, found it twice"),
        (TENSORS_KEY, record("null", "e", "U8", "[4]"), "expected a shape without elements, found [4]"),
        (TENSORS_KEY, record("null", "e", "U8", "[4294967296,4294967296,0]"), "expected a shape without elements"),
        (TENSORS_KEY, twice, "tensor \"w\": expected each tensor once, found it twice"),
        ("atombank.generic.safetensors_metadata", "[1]".into(), "expected JSON as this crate writes it"),
        ("atombank.generic.file.../x", "x".into(), "expected the name of a file beside weights"),
        ("atombank.generic.more", "x".into(), "expected a key this version knows"),
    ];
    for (key, text, expected) in cases {
        let mut metadata = good.clone();
        metadata.insert(key, text);
        let error = from_gguf(&metadata, &plan).unwrap_err().to_string();
        assert!(error.contains(expected), "{key}: {error}");
    }
    let mut metadata = good.clone();
    metadata.insert("general.license", "mit");
    assert_eq!(
        from_gguf(&metadata, &plan).unwrap().notes,
        ["key \"general.license\" is left out: the folder has no place for it"]
    );
}
