//! Tests PyTorch files: those written by torch are read as torch reads them, those written by this crate as well, and
//! dangerous ones are refused by name. The fixtures come from fixtures/pytorch/make_pytorch.py.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atombank::checkpoint::Checkpoint;
use atombank::formats::pytorch::{self, PytorchFile};
use atombank::formats::safetensors::{self, SafetensorsFile};
use atombank::plan::{self, Expr, Plan, PlannedTensor, Staging, TensorRef};
use atombank::source::{Source, TensorInfo};
use atombank::{DType, Error, Result};
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pytorch").join(name)
}

/// Type, shape and bytes of every tensor by name.
fn contents(source: &dyn Source) -> BTreeMap<String, (DType, Vec<usize>, Vec<u8>)> {
    let all = source.tensors().iter().enumerate();
    all.map(|(i, t)| (t.name.clone(), (t.dtype, t.shape.clone(), source.bytes(i).into_owned()))).collect()
}

/// Reads each row of each tensor separately, as plans may do.
fn contents_by_row(source: &dyn Source) -> BTreeMap<String, (DType, Vec<usize>, Vec<u8>)> {
    let rows = |(i, t): (usize, &TensorInfo)| {
        let bytes = (0..t.rows()).flat_map(|row| source.rows(i, row..row + 1).into_owned()).collect();
        (t.name.clone(), (t.dtype, t.shape.clone(), bytes))
    };
    source.tensors().iter().enumerate().map(rows).collect()
}

/// Checks that `NAME.bin` has the same tensors as `NAME.safetensors`, which torch wrote.
fn agrees_with_torch(name: &str) -> PytorchFile {
    let file = PytorchFile::open(&fixture(&format!("{name}.bin")), None).unwrap();
    let expected = contents(&SafetensorsFile::open(&fixture(&format!("{name}.safetensors"))).unwrap());
    let found = contents(&file);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
    for (tensor, values) in &expected {
        assert_eq!(&found[tensor], values, "{name}: {tensor}");
    }
    assert_eq!(contents_by_row(&file), expected, "{name}, row by row");
    file
}

fn refusal(name: &str, key: Option<&str>) -> String {
    match PytorchFile::open(&fixture(name), key) {
        Err(error @ (Error::Unsupported(_) | Error::Format(_) | Error::Mismatch(_))) => error.to_string(),
        Err(other) => panic!("another kind of error: {other}"),
        Ok(_) => panic!("accepted: {name}"),
    }
}

#[test]
fn reads_both_containers_as_torch_does() {
    for name in ["plain", "legacy", "metadata", "alone", "list", "parameters"] {
        agrees_with_torch(name);
    }
    let order = |name| -> Vec<String> {
        let file = PytorchFile::open(&fixture(name), None).unwrap();
        file.tensors().iter().map(|t| t.name.clone()).collect()
    };
    // The order of the dictionary, not of the alphabet.
    assert_eq!(order("plain.bin"), ["layer.weight", "layer.bias", "scale", "empty"]);
    assert_eq!(order("legacy.bin"), order("plain.bin"));
}

/// All types that torch saves and safetensors has, in the order of the fixtures.
const EVERY_TYPE: [DType; 19] = {
    use DType::*;
    [
        F64,
        F32,
        F16,
        BF16,
        I8,
        I16,
        I32,
        I64,
        BOOL,
        C64,
        U8,
        U16,
        U32,
        U64,
        F8_E4M3,
        F8_E5M2,
        F8_E4M3FNUZ,
        F8_E5M2FNUZ,
        F8_E8M0,
    ]
};

#[test]
fn reads_every_type_that_torch_saves() {
    let file = agrees_with_torch("types");
    let types: Vec<DType> = file.tensors().iter().map(|t| t.dtype).collect();
    assert_eq!(types, EVERY_TYPE);
    agrees_with_torch("types-legacy");
}

#[test]
fn turns_numbers_of_big_endian_machines_round() {
    agrees_with_torch("big-endian");
}

#[test]
fn reads_tensors_of_any_stride_and_storages_of_many_tensors() {
    agrees_with_torch("strided");
    agrees_with_torch("shared-legacy");
    let file = agrees_with_torch("shared");
    // A tensor under two names is read as two tensors.
    let names: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["embed.weight", "head.weight", "first", "last", "column", "list.0", "list.1.deep"]);
}

#[test]
fn reads_archives_that_zip_programs_have_made_again() {
    agrees_with_torch("deflated");
    agrees_with_torch("streamed");
}

#[test]
fn reads_every_protocol_that_torch_can_write() {
    for name in ["protocol-1", "protocol-3", "protocol-4", "protocol-5", "protocol-1-legacy", "protocol-4-legacy"] {
        agrees_with_torch(name);
    }
}

#[test]
fn stored_tensors_are_handed_out_without_a_copy() {
    let borrowed = |file: &PytorchFile, name: &str| {
        let index = file.tensors().iter().position(|t| t.name == name).unwrap();
        matches!(file.bytes(index), std::borrow::Cow::Borrowed(_))
    };
    let plain = PytorchFile::open(&fixture("plain.bin"), None).unwrap();
    assert!(borrowed(&plain, "layer.weight"));
    let legacy = PytorchFile::open(&fixture("legacy.bin"), None).unwrap();
    assert!(borrowed(&legacy, "layer.weight"));
    let shared = PytorchFile::open(&fixture("shared.bin"), None).unwrap();
    assert!(borrowed(&shared, "last") && !borrowed(&shared, "column"));
}

#[test]
fn nested_checkpoints_get_dotted_names_and_a_key_chooses_a_part() {
    let file = agrees_with_torch("lightning");
    let others: BTreeMap<&str, &str> = file.others().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(others["epoch"], "3");
    assert_eq!(others["pytorch-lightning_version"], "\"2.4.0\"");
    assert_eq!(others["hyper_parameters.betas"], "a tuple of 2");
    assert_eq!(others["hyper_parameters.dropout"], "None");
    assert_eq!(others["hyper_parameters.wide"], "a whole number past 64 bits");
    assert_eq!(others["loops.fit_loop.progress"], "a list of 3");
    assert_eq!(others["state_dict._metadata"], "attribute of the dictionary, a dictionary of 3");

    let whole = contents(&file);
    for (key, prefix) in [
        ("state_dict", "state_dict."),
        ("optimizer_states.0.state", "optimizer_states.0.state."),
        ("callbacks.ModelCheckpoint{'monitor': 'loss'}", "callbacks.ModelCheckpoint{'monitor': 'loss'}."),
    ] {
        let part = contents(&PytorchFile::open(&fixture("lightning.bin"), Some(key)).unwrap());
        let expected: BTreeMap<_, _> = whole
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone())))
            .collect();
        assert!(!part.is_empty());
        assert_eq!(part, expected, "{key}");
    }
    // Keys may contain dots.
    let one = PytorchFile::open(&fixture("lightning.bin"), Some("state_dict.0.weight")).unwrap();
    assert_eq!(one.tensors().len(), 1);
    let message = refusal("lightning.bin", Some("model"));
    assert!(message.contains("expected something under \"model\", found \"epoch\", \"global_step\""), "{message}");
}

#[test]
fn what_is_no_tensor_is_listed_and_never_made() {
    let file = agrees_with_torch("opaque");
    let others: Vec<(&str, &str)> = file.others().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        others,
        [
            ("args", "argparse.Namespace"),
            ("path", "pathlib.PurePosixPath"),
            ("array", "a numpy array"),
            ("number", "a numpy number"),
            ("set", "builtins.set"),
            ("bytes", "bytes"),
            ("array_of_bytes", "builtins.bytearray"),
            ("complex", "builtins.complex"),
            ("counter.a", "2"),
            ("counter.b", "1"),
            ("default.a", "a list of 1"),
            ("dtype", "torch.bfloat16"),
            ("device", "torch.device"),
            ("size", "a tuple of 2"),
            ("storage", "a storage of 3 uint8"),
            ("(a tuple of 2)", "\"a tuple as key\""),
        ]
    );
}

#[test]
fn pickles_that_run_code_are_refused_by_full_name() {
    for name in ["refused-command.bin", "refused-command-legacy.bin", "refused-command-4.bin"] {
        let message = refusal(name, None);
        assert!(message.contains("found posix.system"), "{message}");
        // The file is refused, even if another part of it is selected.
        assert!(refusal(name, Some("w")).contains("posix.system"));
    }
}

#[test]
fn tensors_of_kinds_that_are_not_read_are_refused_by_name() {
    for (name, found) in [
        ("quantized", "a quantized tensor"),
        ("complex128", "complex128"),
        ("complex32", "complex32"),
        ("sparse", "a sparse tensor"),
        ("conjugated", "a tensor whose conjugation or change of sign is still to be done"),
        ("meta", "a meta tensor, which has no values"),
    ] {
        let file = format!("refused-{name}.bin");
        let message = refusal(&file, None);
        assert!(message.contains("tensor \"part.bad\": expected") && message.contains(found), "{message}");
        // The rest of the file can be read.
        let good = PytorchFile::open(&fixture(&file), Some("good")).unwrap();
        assert_eq!(*good.bytes(0), 1.0f32.to_le_bytes());
    }
    let message = refusal("refused-script.bin", None);
    assert!(message.contains("found a TorchScript program; load it with torch.jit.load"), "{message}");
}

// Writing.

fn take_all(source: &Arc<dyn Source>) -> Plan {
    let tensors = TensorRef::all(source).map(|tensor| {
        let TensorInfo { name, dtype, shape } = tensor.info().clone();
        PlannedTensor { name, dtype, shape, expr: Expr::Take(tensor) }
    });
    Plan { tensors: tensors.collect() }
}

fn write(plan: &Plan, layout: &plan::Layout, target: &Path) -> Result<()> {
    let staging = Staging::file(target, false)?;
    plan::execute(plan, layout, &staging, plan::Options::default(), &|_| {})?;
    staging.commit()
}

fn to_pytorch(source: Arc<dyn Source>, target: &Path) -> Result<PytorchFile> {
    let plan = take_all(&source);
    write(&plan, &pytorch::layout(&plan.tensors, "pytorch_model", u64::MAX)?, target)?;
    PytorchFile::open(target, None)
}

fn to_safetensors(source: Arc<dyn Source>, target: &Path) -> Result<SafetensorsFile> {
    let plan = take_all(&source);
    write(&plan, &safetensors::layout(&plan.tensors, "model", u64::MAX)?, target)?;
    SafetensorsFile::open(target)
}

#[test]
fn every_type_and_stride_survives_being_written_as_torch_would() {
    for name in ["plain", "types", "strided", "shared", "lightning", "deflated", "big-endian"] {
        let dir = tempfile::tempdir().unwrap();
        let source = Arc::new(PytorchFile::open(&fixture(&format!("{name}.bin")), None).unwrap());
        let expected = contents(&*source);
        let order: Vec<TensorInfo> = source.tensors().to_vec();
        let written = to_pytorch(source, &dir.path().join("model.bin")).unwrap();
        assert_eq!(contents(&written), expected, "{name}");
        assert_eq!(written.tensors(), order, "the order of {name}");
        assert_eq!(written.others(), []);
    }
}

/// Checks all checksums of an archive, because the reader only checks those of deflated entries.
#[test]
fn written_archives_carry_the_right_checksums() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("model.bin");
    let source = Arc::new(PytorchFile::open(&fixture("types.bin"), None).unwrap());
    to_pytorch(source, &target).unwrap();
    let bytes = fs::read(&target).unwrap();
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let short = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()) as usize;
    let end = bytes.len() - 22;
    let mut at = number(end + 16);
    for _ in 0..short(end + 10) {
        let local = number(at + 42);
        let start = local + 30 + short(local + 26) + short(local + 28);
        let name = String::from_utf8_lossy(&bytes[at + 46..at + 46 + short(at + 28)]).into_owned();
        let sum = crc32fast::hash(&bytes[start..start + number(at + 24)]) as usize;
        assert_eq!((number(at + 16), number(local + 14)), (sum, sum), "{name}");
        assert_eq!(start % 64, 0, "{name}");
        at += 46 + short(at + 28) + short(at + 30) + short(at + 32);
    }
    assert_eq!(at, end);
}

#[test]
fn shards_are_written_with_an_index_and_read_as_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let source: Arc<dyn Source> = Arc::new(PytorchFile::open(&fixture("lightning.bin"), Some("state_dict")).unwrap());
    let plan = take_all(&source);
    let layout = pytorch::layout(&plan.tensors, "pytorch_model", 60).unwrap();
    let names: Vec<String> = layout.files.iter().map(|f| f.name.display().to_string()).collect();
    assert_eq!(names.first().unwrap(), "pytorch_model-00001-of-00002.bin");
    assert_eq!(names.last().unwrap(), pytorch::SHARD_INDEX);
    let out = dir.path().join("model");
    let staging = Staging::folder(&out, false).unwrap();
    plan::execute(&plan, &layout, &staging, plan::Options::default(), &|_| {}).unwrap();
    staging.write("config.json", b"{}").unwrap();
    staging.commit().unwrap();

    let folder = Checkpoint::open(&out).unwrap();
    let values = |plan: &Plan| -> BTreeMap<String, Vec<u8>> {
        let bytes = |t: &PlannedTensor| match &t.expr {
            Expr::Take(tensor) => tensor.rows(0..t.rows()).into_owned(),
            _ => panic!("not as it stands in the file"),
        };
        plan.tensors.iter().map(|t| (t.name.clone(), bytes(t))).collect()
    };
    assert_eq!(values(folder.weights()), values(&plan));
    let order = |plan: &Plan| plan.tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    assert_eq!(order(folder.weights()), order(&plan));

    // An index that doesn't agree with its shards, and one that names a file outside the folder.
    let index = out.join(pytorch::SHARD_INDEX);
    let text = fs::read_to_string(&index).unwrap();
    let refused = |text: &str| {
        fs::write(&index, text).unwrap();
        Checkpoint::open(&out).err().expect("refused").to_string()
    };
    assert!(refused(&text.replace("0.weight", "0.w")).contains("tensor \"0.w\": expected it in pytorch_model-0000"));
    assert!(refused(&text.replace("pytorch_model-00002", "../pytorch_model-00002")).contains("names of files in this"));
    assert!(
        refused(
            &text.replace("    \"0.bias\"", "    \"0.bias2\": \"pytorch_model-00001-of-00002.bin\",\n    \"0.bias\"")
        )
        .contains("found it nowhere")
    );
}

#[test]
fn a_folder_with_one_pytorch_file_opens_in_the_files_order() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    fs::copy(fixture("plain.bin"), dir.path().join("pytorch_model.bin")).unwrap();
    let folder = Checkpoint::open(dir.path()).unwrap();
    let names: Vec<&str> = folder.weights().tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["layer.weight", "layer.bias", "scale", "empty"]);
    // safetensors files take precedence if they exist.
    fs::copy(fixture("list.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let folder = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(folder.weights().tensors.len(), 3);
}

#[test]
fn types_that_torch_has_not_are_refused_before_anything_is_written() {
    let expr = Expr::Values { shape: vec![32], values: vec![0.0; 32].into() };
    let tensor = PlannedTensor { name: "w".into(), dtype: DType::Q8_0, shape: vec![32], expr };
    let error = pytorch::layout(&[tensor], "pytorch_model", u64::MAX).unwrap_err().to_string();
    assert_eq!(error, "pytorch_model.bin: tensor \"w\": expected a type of torch, found Q8_0");
}

/// Tensors made on the fly.
#[derive(Debug)]
struct Made {
    tensors: Vec<TensorInfo>,
    bytes: Vec<Vec<u8>>,
}

impl Source for Made {
    fn path(&self) -> &Path {
        Path::new("made")
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn rows(&self, index: usize, rows: std::ops::Range<usize>) -> std::borrow::Cow<'_, [u8]> {
        let (tensor, bytes) = (&self.tensors[index], &self.bytes[index]);
        let row = bytes.len() / tensor.rows().max(1);
        bytes[rows.start * row..rows.end * row].into()
    }
}

fn made() -> impl Strategy<Value = Made> {
    use DType::{BF16, F16, F32, F64};
    let name = "[a-z.\"\\\\é]{1,12}";
    let shape = prop::collection::vec(0usize..5, 0..4);
    let tensor = (name, prop::sample::select(EVERY_TYPE.to_vec()), shape, any::<u64>());
    prop::collection::vec(tensor, 0..8).prop_map(|tensors| {
        let mut names = std::collections::HashSet::new();
        let mut made = Made { tensors: Vec::new(), bytes: Vec::new() };
        for (name, dtype, shape, seed) in tensors.into_iter().filter(|t| names.insert(t.0.clone())) {
            let length = shape.iter().product::<usize>() * dtype.block_bytes();
            // Floats must be finite, so their highest bits are kept low. Other types can have any bits.
            let mask = if matches!(dtype, F64 | F32 | F16 | BF16) { 0x3f } else { 0xff };
            let byte = |i: usize| (seed.wrapping_mul(i as u64 * 2 + 1) >> 23) as u8 & mask;
            made.bytes.push((0..length).map(byte).collect());
            made.tensors.push(TensorInfo { name, dtype, shape });
        }
        made
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn pytorch_to_safetensors_and_back_keeps_every_bit(made in made()) {
        let dir = tempfile::tempdir().unwrap();
        let expected = contents(&made);
        let first = to_pytorch(Arc::new(made), &dir.path().join("a.bin")).unwrap();
        prop_assert_eq!(&contents(&first), &expected);
        let between = to_safetensors(Arc::new(first), &dir.path().join("b.safetensors")).unwrap();
        prop_assert_eq!(&contents(&between), &expected);
        let last = to_pytorch(Arc::new(between), &dir.path().join("c.bin")).unwrap();
        prop_assert_eq!(&contents(&last), &expected);
    }
}
