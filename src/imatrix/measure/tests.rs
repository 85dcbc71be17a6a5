//! Compares with the measurement of llama-imatrix on the same model and text, and checks
//! consistency.

use crate::output::Destination;
use std::path::PathBuf;

use candle_core::Device;

use super::*;
use crate::arch::Module;
use crate::checkpoint::Checkpoint;
use crate::convert::{ConvertOptions, OutType, to_gguf};
use crate::imatrix::tests::saved;
use crate::imatrix::{Form, ImportanceMatrix};
use crate::model::{Residence, TextEncoder};

/// The largest relative difference of a single number from llama-imatrix's. llama-imatrix keeps
/// keys and values in F16, which causes differences of up to 9e-4; if they are rounded like that
/// here, differences are below 1.2e-4.
const TOLERANCE: f32 = 2e-3;

/// The limit for all numbers of a tensor together: the sum of differences divided by the sum of
/// numbers.
const TENSOR_TOLERANCE: f32 = 5e-4;

/// The limit for single numbers that are inputs of the first attention. F16 doesn't affect them;
/// only the order of f32 sums differs.
const FIRST_TOLERANCE: f32 = 1e-5;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn llama() -> PathBuf {
    fixtures().join("convert/llama/model")
}

fn text() -> PathBuf {
    fixtures().join("quant/imatrix/text.txt")
}

fn base(path: &Path) -> LanguageModel {
    LanguageModel::open(path, Residence::Streamed, &Device::Cpu).unwrap().with_special_as_text()
}

fn measured(base: &LanguageModel, text: &str, settings: &Settings) -> Measurement {
    measure(base, text, Path::new("text.txt"), settings, &|_, _| {}).unwrap()
}

const SETTINGS: Settings = Settings { chunk_size: 128, chunks: Some(8), process_output: false };

/// Checks every tensor against its tolerances.
fn assert_close(found: &ImportanceMatrix, expected: &ImportanceMatrix) {
    assert!(found.names().eq(expected.names()));
    for name in found.names() {
        let (a, b) = (found.weights(name).unwrap(), expected.weights(name).unwrap());
        assert_eq!(a.len(), b.len(), "{name}");
        let single = a.iter().zip(b).map(|(a, b)| (a - b).abs() / b).fold(0f32, f32::max);
        let whole = a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f32>() / b.iter().sum::<f32>();
        println!("{name}: single numbers {single:.1e}, all together {whole:.1e}");
        let first = ["q", "k", "v"].iter().any(|module| name == format!("blk.0.attn_{module}.weight"));
        assert!(single <= if first { FIRST_TOLERANCE } else { TOLERANCE }, "{name}: {single:e}");
        assert!(whole <= TENSOR_TOLERANCE, "{name}: {whole:e}");
    }
}

#[test]
fn measures_what_llama_imatrix_measures() {
    // Another model, text and matrix can be given as MODEL:TEXT:MATRIX, measured with -c 128
    // --chunks 8.
    let given = std::env::var("ATOMBANK_IMATRIX_MODEL").ok();
    let given: Option<Vec<PathBuf>> = given.map(|paths| paths.split(':').map(PathBuf::from).collect());
    let [model, text, expected] = match given.as_deref() {
        Some([model, text, expected]) => [model.clone(), text.clone(), expected.clone()],
        _ => [llama(), text(), fixtures().join("quant/imatrix/llama.gguf")],
    };
    let ours = measured(&base(&model), &read_text(&text).unwrap(), &SETTINGS);
    let expected = ImportanceMatrix::open(&expected).unwrap();
    for form in [Form::Gguf, Form::Legacy] {
        let (_dir, path) = saved(&ours, form);
        let found = ImportanceMatrix::open(&path).unwrap();
        assert_eq!((found.datasets(), found.chunk_count()), (expected.datasets(), expected.chunk_count()));
        assert_close(&found, &expected);
    }
}

#[test]
fn a_gguf_is_measured_as_the_folder_it_was_made_of() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let folder = Checkpoint::open(&llama()).unwrap();
    let options = ConvertOptions { outtype: OutType::Auto, pre: Some("gpt-2".into()), ..ConvertOptions::default() };
    let made = to_gguf(&folder, folder.weights(), &options).unwrap();
    made.write(&Destination::new(&path), &|_| {}).unwrap();
    let (text, settings) = (read_text(&text()).unwrap(), Settings { chunks: Some(2), ..SETTINGS });
    assert_eq!(measured(&base(&path), &text, &settings), measured(&base(&llama()), &text, &settings));
}

#[test]
fn chunks_are_texts_of_their_own() {
    let (base, text) = (base(&llama()), read_text(&text()).unwrap());
    let settings = |chunks| Settings { chunk_size: 32, chunks, process_output: true };
    let all = measured(&base, &text, &settings(None));
    let tokens = base.encoder.encode(&text, false).unwrap().len();
    assert_eq!(all.chunk_count as usize, tokens / 32);
    assert_eq!((all.chunk_size, all.datasets.as_slice()), (32, [b"text.txt".to_vec()].as_slice()));
    assert_eq!(all.entries.len(), 2 * 7 + 1);
    let count = u64::from(all.chunk_count) * 32;
    assert!(all.entries.values().all(|sums| sums.counts == [count]));
    assert_eq!(all.entries[OUTPUT].squares.len(), 256);
    // A chunk's contribution doesn't depend on the chunks before it.
    let (one, two) = (measured(&base, &text, &settings(Some(1))), measured(&base, &text, &settings(Some(2))));
    let ids = base.encoder.encode(&text, false).unwrap();
    let rest = base.encoder.decode(&ids[32..64]).unwrap();
    let second = measured(&base, &rest, &settings(Some(1)));
    for (name, sums) in &two.entries {
        for (i, sum) in sums.squares.iter().enumerate() {
            let parts = one.entries[name].squares[i] + second.entries[name].squares[i];
            assert!((sum - parts).abs() <= sum * 1e-5, "{name}: {sum} {parts}");
        }
    }
}

#[test]
fn counts_every_layer_of_every_chunk() {
    let (base, text) = (base(&llama()), read_text(&text()).unwrap());
    let seen = std::cell::RefCell::new(Vec::new());
    let settings = Settings { chunks: Some(3), ..SETTINGS };
    measure(&base, &text, Path::new("t"), &settings, &|done, total| seen.borrow_mut().push((done, total))).unwrap();
    assert_eq!(*seen.borrow(), (1..=6).map(|done| (done, 6)).collect::<Vec<_>>());
}

#[test]
fn every_chunk_starts_with_the_token_that_texts_start_with() {
    let mut base = base(&llama());
    let text = "<|endoftext|> is text here";
    let settings = Settings { chunk_size: 4, chunks: None, process_output: true };
    let plain = base.encoder.encode(text, false).unwrap();
    assert!(!plain.contains(&0) && base.encoder.first_special().unwrap().is_none());
    let chunked = |base: &LanguageModel| chunks(base, text, Path::new("t"), &settings).unwrap();
    assert_eq!(chunked(&base), plain.chunks_exact(4).collect::<Vec<_>>());

    let json = std::fs::read_to_string(llama().join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let (bos, eos) = ("<|endoftext|>", "<|im_end|>");
    let special = |text: &str, id: u32| serde_json::json!({"id": text, "ids": [id], "tokens": [text]});
    let mut with = |template: &[&str]| {
        let piece = |piece: &&str| match *piece {
            "A" => serde_json::json!({"Sequence": {"id": "A", "type_id": 0}}),
            text => serde_json::json!({"SpecialToken": {"id": text, "type_id": 0}}),
        };
        let processor = &mut json["post_processor"];
        processor["single"] = template.iter().map(piece).collect();
        processor["special_tokens"] = serde_json::json!({bos: special(bos, 0), eos: special(eos, 2)});
        let json = serde_json::to_vec(&json).unwrap();
        TextEncoder::from_json(Path::new("t"), &json).unwrap().with_special_as_text()
    };
    base.encoder = with(&["A", eos]);
    assert_eq!(chunked(&base), plain.chunks_exact(4).collect::<Vec<_>>());
    for template in [&[bos, "A"][..], &[bos, "A", eos]] {
        base.encoder = with(template);
        let mut expected: Vec<Vec<u32>> = [&[0], &plain[..]].concat().chunks_exact(4).map(<[u32]>::to_vec).collect();
        expected.iter_mut().for_each(|chunk| chunk[0] = 0);
        assert_eq!(chunked(&base), expected);
    }
}

#[test]
fn a_head_that_is_the_embedding_table_has_no_entry() {
    let base = base(&fixtures().join("convert/qwen2/model"));
    let settings = Settings { chunk_size: 16, chunks: Some(1), process_output: true };
    let measured = measured(&base, &read_text(&text()).unwrap(), &settings);
    assert_eq!(measured.entries.len(), 2 * 7);
}

#[test]
fn bad_texts_and_models_are_refused_by_name() {
    let base = base(&llama());
    let message = |text: &str| measure(&base, text, Path::new("t"), &SETTINGS, &|_, _| {}).unwrap_err().to_string();
    assert!(message("").contains("t: text: expected at least 128 tokens, one chunk, found 0; give a longer text"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    std::fs::write(&path, b"a\xff").unwrap();
    assert!(read_text(&path).unwrap_err().to_string().ends_with("t: text: expected UTF-8, found another byte at 1"));
    std::fs::write(&path, b"a\n\n").unwrap();
    assert_eq!(read_text(&path).unwrap(), "a\n");
    let error = LanguageModel::open(&fixtures().join("convert/mixtral/model"), Residence::Streamed, &Device::Cpu)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("found MixtralForCausalLM"), "{error}");
}

#[test]
fn large_chunks_go_one_by_one() {
    let config = base(&llama()).decoder.config().clone();
    assert_eq!(group_len(&config, 128), MAX_STATE_BYTES / (128 * (256 + 128) * 4));
    assert_eq!(group_len(&config, u32::MAX), 1);
}

#[test]
fn activations_that_are_not_finite_are_refused_where_they_are() {
    let mut sums = SquareSums {
        path: Path::new("m"),
        experts: 0,
        entries: BTreeMap::new(),
        done: 0,
        total: 0,
        progress: &|_, _| {},
    };
    let site = LinearLayer { layer: 1, module: Module::of_path("model.layers.{l}.mlp.gate_proj").unwrap() };
    let mut message = |values: &[f32]| {
        let x = Tensor::from_slice(values, (1, 1, 2), &Device::Cpu).unwrap();
        sums.delta(site, &x).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(message(&[1.0, 2.0]), Ok(()));
    // A sum that overflows f32 is refused, too.
    let expected = "m: activations entering \"blk.1.ffn_gate.weight\": expected finite numbers, \
        found a sum of squares of inf in column 1";
    assert_eq!(message(&[1.0, 3e19]).unwrap_err(), expected);
    assert!(message(&[f32::NAN, 0.0]).unwrap_err().contains("of NaN in column 0"));
}
