//! Checks for fuzzing and tests/corpus.rs: readers must return a value or an error for any bytes, and a value must keep
//! its promises. A function panics if one is broken.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use atombank::adapter::{self, peft::Base};
use atombank::arch::ModelConfig;
use atombank::checkpoint::Checkpoint;
use atombank::convert::{self, ConvertOptions};
use atombank::error::{Finding, Result};
use atombank::formats::gguf::{self, GgufFile, GgufModel};
use atombank::formats::pytorch::PytorchFile;
use atombank::formats::safetensors::SafetensorsFile;
use atombank::imatrix::ImportanceMatrix;
use atombank::merge::{self, combine::Weights};
use atombank::plan::{Expr, Plan, PlannedTensor, TensorRef};
use atombank::source::Source;
use atombank::tokenizer::SentencePieceModel;

/// A check of a reader with these bytes.
type Reader = fn(&[u8]) -> Result<()>;

/// The checks, by the names of their corpora.
pub const READERS: [(&str, Reader); 9] = [
    ("gguf", gguf),
    ("safetensors", safetensors),
    ("config", config),
    ("index", index),
    ("sentencepiece", sentencepiece),
    ("pytorch", pytorch),
    ("imatrix", imatrix),
    ("tokenizer", tokenizer),
    ("adapter", adapter),
];

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("room for a small file");
    file.write_all(bytes).expect("room for a small file");
    file
}

/// Checks that every range of rows has the bytes that type and shape require, and that decoding gives values or an
/// error.
fn walk(source: Arc<dyn Source>) -> Plan {
    let mut plan = Plan::default();
    for (i, tensor) in TensorRef::all(&source).enumerate() {
        let info = tensor.info().clone();
        let bytes = source.bytes(i);
        let needed = info.dtype.bytes_of(info.elems() as u64, info.shape.last().map_or(1, |dim| *dim as u64));
        assert_eq!(Some(bytes.len() as u64), needed, "{info:?}");
        if info.shape.len() > 1 && info.rows() > 1 {
            let middle = info.rows() / 2;
            let halves = [source.rows(i, 0..middle), source.rows(i, middle..info.rows())].concat();
            assert_eq!(halves, *bytes, "{info:?}");
        }
        let planned =
            PlannedTensor { name: info.name, dtype: info.dtype, shape: info.shape, expr: Expr::Take(tensor.clone()) };
        let alone = Plan { tensors: vec![planned.clone()] };
        if alone.check().is_ok()
            && let Ok(values) = planned.read()
        {
            assert!(values.iter().all(|value| value.is_finite()), "{planned:?}");
        }
        plan.tensors.push(planned);
    }
    plan
}

/// Checks GGUF files: a file that was read can be laid out again, and then reads the same.
pub fn gguf(bytes: &[u8]) -> Result<()> {
    let input = file(bytes);
    let opened = GgufFile::open(input.path());
    let model = GgufModel::open(input.path());
    assert!(opened.is_ok() || model.is_err(), "a model is made of files");
    let opened = Arc::new(opened?);
    for (_, value) in opened.metadata().iter() {
        assert!(value.to_string().starts_with(&value.kind().to_string()));
    }
    let plan = walk(opened.clone());
    let layout = gguf::layout(opened.metadata(), &plan.tensors).expect("what is read can be written");
    let written = &layout.files[0];
    if written.byte_len < 1 << 20 {
        let output = file(&written.head);
        output.as_file().set_len(written.byte_len).expect("room for a small file");
        let again = GgufFile::open(output.path()).expect("what is written can be read");
        // Compared as text, because NaN isn't equal to itself.
        assert_eq!(
            format!("{:?}", again.metadata().iter().collect::<Vec<_>>()),
            format!("{:?}", opened.metadata().iter().collect::<Vec<_>>())
        );
        assert_eq!(again.tensors(), opened.tensors());
    }
    Ok(())
}

/// Checks safetensors files: the format's own reader must read the same.
pub fn safetensors(bytes: &[u8]) -> Result<()> {
    let opened = Arc::new(SafetensorsFile::open(file(bytes).path())?);
    let theirs = ::safetensors::SafeTensors::deserialize(bytes).expect("the reference takes it too");
    assert_eq!(theirs.len(), opened.tensors().len());
    for (i, info) in opened.tensors().iter().enumerate() {
        let tensor = theirs.tensor(&info.name).expect("the reference finds it too");
        assert_eq!((tensor.data(), tensor.shape()), (&*opened.bytes(i), info.shape.as_slice()));
    }
    walk(opened);
    Ok(())
}

/// config.json, checked and typed.
pub fn config(bytes: &[u8]) -> Result<()> {
    let path = Path::new("config.json");
    let json = serde_json::from_slice(bytes).map_err(|e| Finding::new(path, "").found(e).format())?;
    ModelConfig::from_json(path, &json).map(|_| ())
}

/// The index of a folder with the shards `one` (tensor a) and `two` (tensor b).
pub fn index(bytes: &[u8]) -> Result<()> {
    let dir = tempfile::tempdir().expect("room for a small folder");
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).expect("room for a small file");
    put("config.json", b"{}");
    put("model.safetensors.index.json", bytes);
    for (name, tensor) in [("one.safetensors", "a"), ("two.safetensors", "b")] {
        let header = format!(r#"{{"{tensor}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
        put(name, &[&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[1]].concat());
    }
    let opened = Checkpoint::open(dir.path())?;
    assert!(opened.weights().tensors.len() <= 2, "nothing from elsewhere");
    Ok(())
}

/// Checks SentencePiece models: there can't be more pieces and bytes than the file has room for.
pub fn sentencepiece(bytes: &[u8]) -> Result<()> {
    let model = SentencePieceModel::parse(Path::new("tokenizer.model"), bytes)?;
    // Each piece takes at least a tag and a length, and the same again for its text.
    let pieces: usize = model.pieces.iter().map(|piece| piece.text.len() + 4).sum();
    assert!(pieces + model.precompiled_charsmap.len() <= bytes.len());
    assert!(model.pieces.iter().all(|piece| !piece.text.is_empty() && piece.score.is_finite()));
    Ok(())
}

/// Checks a PyTorch file as a whole and by its parts.
pub fn pytorch(bytes: &[u8]) -> Result<()> {
    /// Of larger tensors, only the last row is read: repeated elements can make them huge.
    const WHOLE_BYTES: u64 = 1 << 20;
    let file = file(bytes);
    let mut whole = Ok(());
    for key in [None, Some("state_dict"), Some("a.b.0")] {
        let open = match PytorchFile::open(file.path(), key) {
            Ok(open) => open,
            Err(error) => {
                if key.is_none() {
                    whole = Err(error);
                }
                continue;
            }
        };
        for (i, tensor) in open.tensors().iter().enumerate() {
            let size = tensor.dtype.bytes_of(tensor.elems() as u64, 1).expect("checked when opened");
            if size <= WHOLE_BYTES {
                assert_eq!(open.bytes(i).len() as u64, size, "{tensor:?}");
            } else if tensor.rows() > 0 {
                open.rows(i, tensor.rows() - 1..tensor.rows());
            }
        }
    }
    whole
}

/// Checks importance matrices of both forms: numbers that can't be means of squares are refused, and there can't be
/// more numbers than the file has room for.
pub fn imatrix(bytes: &[u8]) -> Result<()> {
    let file = file(bytes);
    let mut matrix = ImportanceMatrix::open(file.path())?;
    let names: Vec<String> = matrix.names().map(str::to_owned).collect();
    assert!(!names.is_empty() && names.len() == matrix.len());
    let mut room = bytes.len();
    for name in &names {
        let weights = matrix.weights(name).expect("it has this name");
        assert!(!name.is_empty() && !weights.is_empty());
        assert!(weights.iter().all(|weight| weight.is_finite() && *weight >= 0.0), "{name:?}: {weights:?}");
        assert_eq!(matrix.weights_for(name, 1, weights.len()).expect("its own size"), Some(weights));
        room = room.checked_sub(4 * weights.len()).expect("no more numbers than the file has");
    }
    let texts = matrix.keys("name").into_iter().filter_map(|(_, value)| value.as_text().map(str::len));
    assert!(texts.max() <= Some(127), "llama.cpp has no room for more");
    matrix.retain(&[], &names[..1]);
    assert!(matrix.weights(&names[0]).is_none());
    Ok(())
}

/// The `N` parts of an input that stands for several files, separated by zero bytes.
fn parts<const N: usize>(bytes: &[u8]) -> [&[u8]; N] {
    let mut parts = bytes.splitn(N, |byte| *byte == 0);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// Checks a model's config.json, tokenizer_config.json and tokenizer: `tokenizer.json`, or a SentencePiece model if it
/// isn't JSON. If they give a vocabulary, it can be written, and is converted back to files or refused.
pub fn tokenizer(bytes: &[u8]) -> Result<()> {
    let dir = tempfile::tempdir().expect("room for a small folder");
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).expect("room for a small file");
    let [config, settings, tokenizer] = parts::<3>(bytes);
    put("config.json", config);
    if !settings.is_empty() {
        put("tokenizer_config.json", settings);
    }
    put(if tokenizer.starts_with(b"{") { "tokenizer.json" } else { "tokenizer.model" }, tokenizer);
    let header = br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    put("model.safetensors", &[&(header.len() as u64).to_le_bytes(), &header[..], &[1]].concat());
    let folder = Checkpoint::open(dir.path())?;
    let options = ConvertOptions { vocab_only: true, ..ConvertOptions::default() };
    let made = convert::to_gguf(&folder, folder.weights(), &options)?;
    let layout = gguf::layout(made.metadata().expect("a GGUF"), &[]).expect("what is made can be written");
    let again = GgufFile::open(file(&layout.files[0].head).path()).expect("what is written can be read");
    assert_eq!(again.metadata().len(), made.metadata().expect("a GGUF").len());
    let _ = convert::tokenizer_files(again.metadata(), &mut Vec::new());
    Ok(())
}

/// Checks an adapter for the base in fixtures/adapters: its adapter_config.json and its safetensors file or, without a
/// config, a file of kohya-ss or LyCORIS. It must be merged into finite values with the base's shapes, or refused.
pub fn adapter(bytes: &[u8]) -> Result<()> {
    let dir = tempfile::tempdir().expect("room for a small folder");
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).expect("room for a small file");
    put("config.json", include_bytes!("../../fixtures/adapters/base/qwen2-float32/config.json"));
    put("model.safetensors", include_bytes!("../../fixtures/adapters/base/qwen2-float32/model.safetensors"));
    let folder = Checkpoint::open(dir.path()).expect("a fixture");
    let base = Base::of(&folder);
    let [config, tensors] = parts::<2>(bytes);
    let path = dir.path().join("adapter");
    fs::create_dir(&path).expect("room for a small folder");
    put("adapter/adapter_model.safetensors", tensors);
    let changes = if config.is_empty() {
        adapter::open(&path.join("adapter_model.safetensors"), &base)?
    } else {
        put("adapter/adapter_config.json", config);
        adapter::open(&path, &base)?
    };
    let merged = merge::with_adapters(&base, folder.weights(), &[changes], &Weights::new(vec![1.0]))?;
    merged.plan.check()?;
    for tensor in merged.plan.tensors.iter().filter(|tensor| merged.changed.contains(&tensor.name)) {
        let values = tensor.read()?;
        assert_eq!(values.len(), tensor.shape.iter().product::<usize>(), "{}", tensor.name);
        assert!(values.iter().all(|value| value.is_finite()), "{}", tensor.name);
    }
    Ok(())
}
