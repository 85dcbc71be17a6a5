//! Tests of files written by llama-imatrix in both forms, and of refused files.

use crate::output::Destination;
use std::io::Write;
use std::sync::Arc;

use super::*;
use crate::dtype::DType;
use crate::formats::gguf::{Array, GgufFile, Metadata, layout};
use crate::plan::{Expr, PlannedTensor};
use crate::source::Source;

mod hostile;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/quant/imatrix").join(name)
}

/// All files to check: the fixtures, and others listed in `ATOMBANK_IMATRIX_CASES`, separated by
/// colons. Each is a pair NAME.gguf and NAME.dat, given without the extension.
fn cases() -> Vec<PathBuf> {
    let more = std::env::var("ATOMBANK_IMATRIX_CASES").unwrap_or_default();
    let more = more.split(':').filter(|case| !case.is_empty()).map(PathBuf::from);
    ["llama", "mixtral"].into_iter().map(fixture).chain(more).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn the_gguf_form_gives_sums_over_counts() {
    for case in cases() {
        let path = case.with_extension("gguf");
        let matrix = ImportanceMatrix::open(&path).unwrap();
        let file = GgufFile::open(&path).unwrap();
        let raw = |name: String| {
            let index = file.tensors().iter().position(|tensor| tensor.name == name).unwrap();
            file.bytes(index).chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<f32>>()
        };
        assert_eq!(matrix.len() * 2, file.tensors().len());
        for name in matrix.names() {
            let (sums, counts) = (raw(format!("{name}.in_sum2")), raw(format!("{name}.counts")));
            let row_len = sums.len() / counts.len();
            let expected: Vec<f32> = sums.iter().enumerate().map(|(i, sum)| sum / counts[i / row_len]).collect();
            let found = matrix.weights_for(name, counts.len(), row_len).unwrap().unwrap();
            assert_eq!(bits(found), bits(&expected), "{name}");
        }
        assert_eq!(matrix.datasets(), [b"text.txt"]);
        assert_eq!(matrix.chunk_count(), 8);
        assert_eq!(matrix.path(), path);
    }
}

#[test]
fn both_forms_agree() {
    for case in cases() {
        let new = ImportanceMatrix::open(&case.with_extension("gguf")).unwrap();
        let old = ImportanceMatrix::open(&case.with_extension("dat")).unwrap();
        assert!(new.names().eq(old.names()));
        assert_eq!((new.datasets(), new.chunk_count()), (old.datasets(), old.chunk_count()));
        for name in new.names() {
            let (a, b) = (new.weights(name).unwrap(), old.weights(name).unwrap());
            assert_eq!(a.len(), b.len());
            if name.contains("_exps") {
                // The older form stores the value times the number of calls, which is divided out
                // again. This rounds twice, unless the number is a power of two, as for all other
                // tensors here.
                assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= a * 2.0 * f32::EPSILON), "{name}");
            } else {
                assert_eq!(bits(a), bits(b), "{name}");
            }
        }
    }
}

#[test]
fn experts_have_rows_of_their_own() {
    let matrix = ImportanceMatrix::open(&fixture("mixtral.gguf")).unwrap();
    let name = "blk.0.ffn_down_exps.weight";
    assert_eq!(matrix.weights_for(name, 4, 512).unwrap().unwrap().len(), 4 * 512);
    let message = matrix.weights_for(name, 8, 512).unwrap_err().to_string();
    assert!(
        message.ends_with(
            "entry \"blk.0.ffn_down_exps.weight\": expected 8 x 512 values, found 2048; \
             the importance matrix is another model's"
        ),
        "{message}"
    );
    assert!(matrix.weights_for(name, usize::MAX, 512).is_err());
    assert_eq!(matrix.weights_for("output.weight", 1, 256).unwrap(), None);
}

#[test]
fn an_entry_of_the_embedding_table_may_have_another_size() {
    let file = written(&keys("imatrix", 1), &pair("token_embd.weight", &[1.0, 2.0], &[1.0]));
    let matrix = ImportanceMatrix::open(file.path()).unwrap();
    assert_eq!(matrix.weights_for("token_embd.weight", 1, 3).unwrap(), None);
    assert_eq!(matrix.weights_for("token_embd.weight", 1, 2).unwrap(), Some([1.0, 2.0].as_slice()));
}

#[test]
fn what_nothing_was_counted_for_weighs_one() {
    let tensors = pair("w", &[3.0, 5.0, f32::NAN, -1.0, 8.0, 0.0], &[2.0, 0.4, 3.5]);
    let file = written(&keys("imatrix", 1), &tensors);
    let matrix = ImportanceMatrix::open(file.path()).unwrap();
    assert_eq!(matrix.weights("w").unwrap(), [1.5, 2.5, 1.0, 1.0, 2.0, 0.0]);
    // With 0 calls, values of the older form stay unchanged.
    let bytes = [1, 1].iter().flat_map(|n: &i32| n.to_le_bytes()).chain(*b"w");
    let bytes = bytes.chain([0, 1].iter().flat_map(|n: &i32| n.to_le_bytes())).chain(7f32.to_le_bytes());
    let matrix = ImportanceMatrix::open(bytes_file(&bytes.collect::<Vec<_>>()).path()).unwrap();
    assert_eq!(matrix.weights("w").unwrap(), [7.0]);
    assert!(matrix.datasets().is_empty());
    assert_eq!(matrix.chunk_count(), 0);
}

#[test]
fn retains_by_parts_of_names() {
    let names = |include: &[&str], exclude: &[&str]| {
        let mut matrix = ImportanceMatrix::open(&fixture("llama.gguf")).unwrap();
        let owned = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
        matrix.retain(&owned(include), &owned(exclude));
        matrix.names().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names(&[], &[]).len(), 14);
    assert_eq!(names(&["attn_q"], &[]), ["blk.0.attn_q.weight", "blk.1.attn_q.weight"]);
    assert_eq!(names(&["attn_q", "0.attn_k"], &[]).len(), 3);
    assert_eq!(names(&[], &["attn", "ffn_g", "blk.0"]), ["blk.1.ffn_down.weight", "blk.1.ffn_up.weight"]);
    assert_eq!(names(&["attn_q"], &["blk.0"]), ["blk.1.attn_q.weight"]);
    // A dot only matches a dot.
    assert!(names(&["attn.q"], &[]).is_empty());
}

#[test]
fn keys_are_those_of_a_quantized_model() {
    let mut matrix = ImportanceMatrix::open(&fixture("mixtral.dat")).unwrap();
    let text = |text: &str| Value::String(text.into());
    assert_eq!(
        matrix.keys("dir/imatrix.dat"),
        [
            ("quantize.imatrix.file", text("dir/imatrix.dat")),
            ("quantize.imatrix.dataset", text("text.txt")),
            ("quantize.imatrix.entries_count", Value::U32(16)),
            ("quantize.imatrix.chunks_count", Value::U32(8)),
        ]
    );
    // The first 127 bytes, even if that cuts a character.
    let long = format!("{}{}", "x".repeat(126), "äöü");
    assert_eq!(matrix.keys(&long)[0].1, Value::String(long.as_bytes()[..127].to_vec()));
    matrix.datasets.clear();
    matrix.chunk_count = 0;
    matrix.retain(&["attn_q".to_owned()], &[]);
    assert_eq!(
        matrix.keys("i"),
        [("quantize.imatrix.file", text("i")), ("quantize.imatrix.entries_count", Value::U32(2))]
    );
    matrix.retain(&["nothing".to_owned()], &[]);
    assert!(matrix.is_empty() && matrix.keys("i").is_empty());
}

fn bytes_file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn keys(kind: &str, chunks: u32) -> Metadata {
    let mut metadata = Metadata::new("imatrix.gguf");
    metadata.insert("general.type", kind);
    metadata.insert(DATASETS, Array::texts(["a.txt", "b.txt"]));
    metadata.insert(CHUNK_COUNT, chunks);
    metadata.insert(CHUNK_SIZE, 512u32);
    metadata
}

fn planned(name: &str, dtype: DType, shape: &[usize], values: &[f32]) -> PlannedTensor {
    let (shape, values) = (shape.to_vec(), Arc::from(values));
    PlannedTensor { name: name.into(), dtype, shape: shape.clone(), expr: Expr::Values { shape, values } }
}

fn pair(name: &str, sums: &[f32], counts: &[f32]) -> Vec<PlannedTensor> {
    vec![
        planned(&format!("{name}.in_sum2"), DType::F32, &[sums.len()], sums),
        planned(&format!("{name}.counts"), DType::F32, &[counts.len()], counts),
    ]
}

/// A GGUF file with `metadata` and `tensors`, which may contain numbers that the executor would
/// refuse.
fn written(metadata: &Metadata, tensors: &[PlannedTensor]) -> tempfile::NamedTempFile {
    let layout = layout(metadata, tensors).unwrap();
    let mut bytes = layout.files[0].head.clone();
    bytes.resize(layout.files[0].byte_len as usize, 0);
    for (place, tensor) in layout.places.iter().zip(tensors) {
        let Expr::Values { values, .. } = &tensor.expr else { panic!("{}", tensor.name) };
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let at = place.offset as usize;
        bytes[at..at + tensor.byte_len() as usize].copy_from_slice(&data[..tensor.byte_len() as usize]);
    }
    bytes_file(&bytes)
}

/// The measurement in a GGUF file.
fn measurement(path: &Path) -> Measurement {
    let file = GgufFile::open(path).unwrap();
    let mut entries = BTreeMap::new();
    for (index, tensor) in file.tensors().iter().enumerate() {
        let values: Vec<f32> = file.bytes(index).chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let (name, counts) = match tensor.name.strip_suffix(SUMS_SUFFIX) {
            Some(name) => (name, false),
            None => (tensor.name.strip_suffix(COUNTS_SUFFIX).unwrap(), true),
        };
        let entry = entries.entry(name.to_owned()).or_insert(Sums { squares: vec![], counts: vec![] });
        match counts {
            true => entry.counts = values.iter().map(|count| *count as u64).collect(),
            false => entry.squares = values,
        }
    }
    let metadata = file.metadata();
    Measurement {
        entries,
        datasets: metadata.strings(DATASETS).unwrap().to_vec(),
        chunk_count: metadata.u32(CHUNK_COUNT).unwrap(),
        chunk_size: metadata.u32(CHUNK_SIZE).unwrap(),
    }
}

/// Writes a measurement to a file in a temporary folder.
pub(super) fn saved(measured: &Measurement, form: Form) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("imatrix");
    measured.output(&path, form).unwrap().write(&Destination::new(&path), &|_| {}).unwrap();
    (dir, path)
}

fn write(measured: &Measurement, form: Form) -> Vec<u8> {
    let (_dir, path) = saved(measured, form);
    std::fs::read(path).unwrap()
}

#[test]
fn writes_the_bytes_of_llama_imatrix() {
    for case in cases() {
        let measured = measurement(&case.with_extension("gguf"));
        for (form, extension) in [(Form::Gguf, "gguf"), (Form::Legacy, "dat")] {
            let expected = std::fs::read(case.with_extension(extension)).unwrap();
            assert!(write(&measured, form) == expected, "{} {extension}", case.display());
        }
    }
}

#[test]
fn the_older_form_leaves_out_what_it_has_no_count_for() {
    let sums = |squares: &[f32], counts: &[u64]| Sums { squares: squares.to_vec(), counts: counts.to_vec() };
    let entries = [("a", sums(&[9.0], &[0])), ("b", sums(&[6.0, 3.0, 0.0, 0.0], &[3, 0]))];
    let measured = Measurement {
        entries: entries.into_iter().map(|(name, sums)| (name.to_owned(), sums)).collect(),
        datasets: vec![],
        chunk_count: 1,
        chunk_size: 2,
    };
    let file = bytes_file(&write(&measured, Form::Legacy));
    let matrix = ImportanceMatrix::open(file.path()).unwrap();
    assert_eq!(matrix.names().collect::<Vec<_>>(), ["b"]);
    assert_eq!(matrix.weights("b").unwrap(), [2.0, 1.0, 1.0, 1.0]);
    assert!(matrix.datasets().is_empty());
    let matrix = ImportanceMatrix::open(bytes_file(&write(&measured, Form::Gguf)).path()).unwrap();
    assert_eq!((matrix.weights("a").unwrap(), matrix.len()), ([1.0].as_slice(), 2));
}

#[test]
fn what_cannot_be_written_is_refused() {
    let refused = |name: &str, squares: Vec<f32>, form: Form| {
        let entries = BTreeMap::from([(name.to_owned(), Sums { squares, counts: vec![1] })]);
        let measured = Measurement { entries, datasets: vec![], chunk_count: 1, chunk_size: 1 };
        let path = Path::new("i.gguf");
        measured.output(path, form).and_then(|output| output.describe(path)).map(|_| ()).unwrap_err().to_string()
    };
    for form in [Form::Gguf, Form::Legacy] {
        let message = refused("w", vec![1.0, f32::INFINITY], form);
        assert_eq!(message, "i.gguf: entry \"w\": expected finite activations, found inf at 1");
    }
    assert!(refused(&"n".repeat(60), vec![1.0], Form::Gguf).contains("expected a name of 1 to 63 bytes"));
}
