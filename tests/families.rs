//! Conversion to GGUF of a small model of every family, against what llama.cpp's converter makes of it, and back.
//!
//! The cases of `fixtures/families` have no weights: their values follow from the names of the tensors.

#[path = "common/cases.rs"]
mod cases;
#[path = "common/described.rs"]
mod described;

use std::collections::BTreeMap;
use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use atombank::Result;
use atombank::checkpoint::Checkpoint;
use atombank::convert::{Input, Opening, OutType, families as known, from_gguf, to_gguf};
use atombank::dtype::DType;
use atombank::formats::gguf::{Array, GgufFile, GgufModel, Value, ValueType, layout};
use atombank::output::Destination;
use atombank::plan::{self, PlannedTensor, Staging};
use atombank::source::Source;
use cases::{Case, cases};
use described::{described, sha256};
use serde_json::{Value as Json, json};

/// Tensors whose values differ from the reference's: a case, and what is in their names.
const OTHER_BITS: [(&str, &str); 5] = [
    // The reference gives all heads the norms of the first; here each keeps its own. Published ones are the same.
    ("chameleon", "_norm."),
    // Square roots, sines and cosines are Intel's in the reference, and not rounded correctly.
    ("granite-speech", "conv_norm_var"),
    ("mmproj-lfm2audio", "conv_norm"),
    ("mmproj-qwen25omni", "a.position_embd"),
    ("mmproj-qwen3asr", "a.position_embd"),
];

/// Cases whose folder has other values than the original, with which it computes the same.
const OTHER_VALUES: [&str; 5] = [
    // Its weights are rounded to three values.
    "bitnet",
    // Multipliers of config.json are in the weights.
    "falcon-h1",
    "jais",
    // Adding 1 to norms in F32 rounds.
    "qwen35",
    // A vector has four dimensions in the original, and one in transformers' class.
    "glm5next",
];

/// Cases that don't come back from GGUF, and why.
const NOT_BACK: [(&str, &str); 11] = [
    ("bailingmoe-normhead", "the head's columns are scaled to a length of 1, which rounds"),
    ("sarvam-moe", "the mean of the experts' biases is taken off, which rounds"),
    ("kimik3", "two vectors are stored as their product"),
    ("eurobert", "the case's mask token is beyond its small vocabulary"),
    ("hunyuan-moe", "the case's first token is beyond its small vocabulary"),
    ("llada-moe", "the case's mask token is beyond its small vocabulary"),
    ("qwen4exp", "the tables of n-grams aren't taken on the way back"),
    ("pockettts", "a latent went through a linear layer into the embeddings"),
    ("pockettts-plain", "a latent went through a linear layer into the embeddings"),
    ("qwen3tts", "the embeddings went through two linear layers"),
    ("qwen3tts-relu", "the embeddings went through two linear layers"),
];

/// What a case expects: files of this name, `mmproj-` for the projector.
const EXPECTED: [(&str, OutType); 8] = [
    ("f32", OutType::F32),
    ("f16", OutType::F16),
    ("bf16", OutType::BF16),
    ("q8_0", OutType::Q8_0),
    ("mmproj-f32", OutType::F32),
    ("mmproj-f16", OutType::F16),
    ("mmproj-bf16", OutType::BF16),
    ("mmproj-q8_0", OutType::Q8_0),
];

#[test]
fn every_family_becomes_what_the_reference_makes_of_it() {
    // Every case is looked at, so that one difference doesn't hide another.
    let mut failed = Vec::new();
    for case in cases() {
        let looked_at = catch_unwind(|| {
            let model = case.model();
            let differs = |(name, outtype): &(&str, OutType)| {
                case.expects(name) && catch_unwind(|| equals_reference(&case, model.path(), name, *outtype)).is_err()
            };
            EXPECTED.iter().filter(|expected| differs(expected)).map(|(name, _)| *name).collect::<Vec<_>>()
        });
        match looked_at {
            Ok(differ) => failed.extend(differ.iter().map(|name| format!("{} {name}", case.name))),
            Err(_) => failed.push(case.name),
        }
    }
    assert!(failed.is_empty(), "{} differ: {}", failed.len(), failed.join(", "));
}

#[test]
fn every_family_comes_back_with_its_values() {
    let text_models = || cases().into_iter().filter(|case| case.expects("f32"));
    let comes_back = |case: &Case| catch_unwind(|| comes_back(case)).is_ok();
    let is_listed = |case: &Case| NOT_BACK.iter().any(|(name, _)| *name == case.name);
    let wrong = text_models().filter(|case| comes_back(case) == is_listed(case));
    let wrong: Vec<String> = wrong.map(|case| case.name).collect();
    assert!(wrong.is_empty(), "{} don't come back, or do, but are in NOT_BACK: {}", wrong.len(), wrong.join(", "));
    let unknown = NOT_BACK.iter().filter(|(name, _)| text_models().all(|case| case.name != *name));
    assert_eq!(unknown.count(), 0, "all cases exist");
}

/// A model's folder; two classes have no config.json.
fn opened(model: &Path) -> Result<Checkpoint> {
    match Input::open(model, Opening::default())? {
        Input::Model(folder) => Ok(folder),
        _ => panic!("{}: no model", model.display()),
    }
}

fn convert(case: &Case, model: &Path, name: &str, outtype: OutType, target: &Path) -> Result<()> {
    let folder = opened(model)?;
    let made = to_gguf(&folder, folder.weights(), &case.options(name, outtype))?;
    let layout = layout(made.metadata().unwrap(), &made.plan.tensors)?;
    let staging = Staging::file(target, false)?;
    plan::execute(&made.plan, &layout, &staging, plan::Options::default(), &|_| {})?;
    staging.commit()
}

fn equals_reference(case: &Case, model: &Path, name: &str, outtype: OutType) {
    let expected: Json = serde_json::from_slice(&fs::read(case.expected(name)).unwrap()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("model.gguf");
    let label = format!("{} {name}", case.name);
    convert(case, &model.join("model"), name, outtype, &target).unwrap_or_else(|e| panic!("{label}: {e}"));
    compare(&label, &GgufFile::open(&target).unwrap(), &expected);
}

/// Converts to GGUF, back, and to GGUF again: the second GGUF has the tensors of the first, byte for byte, and its
/// architecture's keys. Tensors of the folder that have their name again have their values again.
fn comes_back(case: &Case) {
    let model = case.model();
    let (first, second) = (model.path().join("first.gguf"), model.path().join("second.gguf"));
    convert(case, &model.path().join("model"), "f32", OutType::F32, &first)
        .unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let back = from_gguf(&GgufModel::open(&first).unwrap(), None).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let (_, back) = back.unwrap_or_else(|| panic!("{}: no family of that architecture", case.name));
    let folder = opened(&model.path().join("model")).unwrap();
    let is_float = |dtype: DType| matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16);
    let floats = folder.weights().tensors.iter().filter(|tensor| is_float(tensor.dtype));
    let pairs: Vec<(&PlannedTensor, &PlannedTensor)> =
        floats.filter_map(|tensor| Some((tensor, back.plan.get(&tensor.name)?))).collect();
    let differs = |expected: &PlannedTensor, found: &PlannedTensor| {
        expected.shape != found.shape || expected.read().unwrap() != found.read().unwrap()
    };
    let differ: Vec<&str> =
        pairs.iter().filter(|(expected, found)| differs(expected, found)).map(|(t, _)| t.name.as_str()).collect();
    let may_differ = OTHER_VALUES.contains(&case.name.as_str());
    assert!(differ.is_empty() || may_differ, "{}: other values: {}", case.name, differ.join(", "));
    let restored = model.path().join("restored");
    back.write(&Destination::new(&restored), &|_| {}).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    convert(case, &restored, "f32", OutType::F32, &second).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let (first, second) = (GgufFile::open(&first).unwrap(), GgufFile::open(&second).unwrap());
    let keys = |file: &GgufFile| -> BTreeMap<String, String> {
        let architecture = format!("{}.", file.metadata().text("general.architecture").unwrap());
        let own = file.metadata().iter().filter(|(key, _)| key.starts_with(&architecture));
        own.map(|(key, value)| (key.to_owned(), format!("{value:?}"))).collect()
    };
    let tensors = |file: &GgufFile| -> BTreeMap<String, (DType, Vec<usize>, String)> {
        let all = file.tensors().iter().enumerate();
        all.map(|(i, info)| (info.name.clone(), (info.dtype, info.shape.clone(), sha256(&file.bytes(i))))).collect()
    };
    assert_eq!(keys(&first), keys(&second), "{}: keys", case.name);
    assert_eq!(tensors(&first), tensors(&second), "{}: tensors", case.name);
}
/// Keys, their order, types and values; tensors, their order, types, shapes and bytes.
fn compare(case: &str, file: &GgufFile, expected: &Json) {
    let ours: Vec<&str> = file.metadata().iter().map(|(key, _)| key).collect();
    let theirs: Vec<&str> = expected["keys"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(ours, theirs, "{case}: keys");
    for (key, value) in file.metadata().iter() {
        let expected = &expected["keys"][key];
        match value {
            // By number: 1e-7 and 1e-07 are one.
            Value::F32(v) => {
                assert_eq!(expected["type"], json!(["FLOAT32"]), "{case}: {key}");
                assert_eq!(expected["value"].as_f64(), Some(f64::from(*v)), "{case}: {key}");
            }
            Value::Array(Array::Bool(v)) => {
                assert_eq!(json!({"type": ["ARRAY", "BOOL"], "value": v}), *expected, "{case}: {key}");
            }
            Value::Array(Array::U64(v)) => {
                assert_eq!(json!({"type": ["ARRAY", "UINT64"], "value": v}), *expected, "{case}: {key}");
            }
            _ => assert_eq!(described(value), *expected, "{case}: {key}"),
        }
    }
    let ours: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).collect();
    let theirs: Vec<&str> = expected["tensor_order"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    assert_eq!(ours, theirs, "{case}: tensors");
    for (i, info) in file.tensors().iter().enumerate() {
        let shape: Vec<usize> = info.shape.iter().rev().copied().collect();
        let mut expected = expected["tensors"][&info.name].clone();
        let bytes = file.bytes(i);
        let last_rows = expected.as_object_mut().and_then(|about| about.remove("last_rows")).unwrap_or(json!([]));
        let (hashed, last) = bytes.split_at(bytes.len() - 4 * last_rows.as_array().unwrap().len());
        let mut described = json!({"shape": shape, "type": info.dtype.name(), "sha256": sha256(hashed)});
        assert!(are_near(last, &last_rows), "{case}: last rows of {}", info.name);
        if OTHER_BITS.iter().any(|(name, part)| case.starts_with(name) && info.name.contains(part)) {
            described["sha256"] = Json::Null;
            expected["sha256"] = Json::Null;
        }
        assert_eq!(described, expected, "{case}: {}", info.name);
    }
}

/// Whether values in F32 are those expected, but for their last bits: a product of one row is summed by torch in an order
/// that depends on the processor.
fn are_near(bytes: &[u8], expected: &Json) -> bool {
    let values = bytes.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
    let expected: Vec<f64> = expected.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
    let largest = expected.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    values.zip(&expected).all(|(value, expected)| (value - expected).abs() <= 1e-6 * largest)
}

/// The error of converting a case's model, after a change to its folder.
fn error_after(name: &str, expected: &str, change: impl Fn(&Path)) -> String {
    let case = cases().into_iter().find(|case| case.name == name).unwrap();
    let dir = case.model();
    let model = dir.path().join("model");
    change(&model);
    let error = convert(&case, &model, expected, OutType::F32, &dir.path().join("out.gguf")).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error.replace(&model.display().to_string(), "MODEL")
}

/// Leaves a tensor out of a file.
fn without(file: &Path, name: &str) {
    let bytes = fs::read(file).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<String, Json> = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let offsets = |about: &Json, i: usize| about["data_offsets"][i].as_u64().unwrap() as usize;
    let gone = header.remove(name).unwrap();
    let (start, end) = (offsets(&gone, 0), offsets(&gone, 1));
    for (_, about) in header.iter_mut().filter(|(name, _)| *name != "__metadata__") {
        if offsets(about, 0) >= end {
            let moved = [0, 1].map(|i| offsets(about, i) - (end - start));
            about["data_offsets"] = json!(moved);
        }
    }
    let header = serde_json::to_vec(&header).unwrap();
    let data = &bytes[8 + len..];
    let len = (header.len() as u64).to_le_bytes();
    fs::write(file, [&len, header.as_slice(), &data[..start], &data[end..]].concat()).unwrap();
}

#[test]
fn what_is_missing_in_models_of_speech_is_named() {
    let of = |change: &dyn Fn(&Path)| error_after("qwen3tts", "mmproj-f32", change);
    assert_eq!(
        of(&|model| fs::remove_dir_all(model.join("speech_tokenizer")).unwrap()),
        "MODEL: expected what this version can convert, found a folder without speech_tokenizer/config.json, whose \
         decoder is a part of the projector"
    );
    let no_weights = of(&|model| fs::remove_file(model.join("speech_tokenizer/model.safetensors")).unwrap());
    assert!(no_weights.starts_with("MODEL/speech_tokenizer: "), "{no_weights}");
    let missing = "speech_tokenizer/decoder.decoder.3.block.4.act2.beta";
    let file = "speech_tokenizer/model.safetensors";
    assert_eq!(
        of(&|model| without(&model.join(file), "decoder.decoder.3.block.4.act2.beta")),
        format!(
            "MODEL: tensor {missing:?}: expected [any] by config.json, found none of that name; config.json and weights may \
             be of different models"
        )
    );
    let of = |name: &str, gone: &str| error_after(name, "f32", |model| without(&model.join("model.safetensors"), gone));
    assert_eq!(
        of("qwen3tts", "talker.text_projection.linear_fc2.bias"),
        "MODEL: tensor \"text_projection.linear_fc2.bias\": expected [64] by config.json, found none of that name; \
         config.json and weights may be of different models"
    );
    assert_eq!(
        of("pockettts-plain", "flow_lm.input_linear.weight"),
        "MODEL: tensor \"flow_lm.input_linear.weight\": expected [128, 32] by the shapes of others, found none of that name"
    );
}

#[test]
fn a_folder_without_config_is_known_by_a_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let (model, path) = (dir.path().join("model"), dir.path().join("marked.family"));
    fs::create_dir(&model).unwrap();
    let tensor =
        |name: &str, shape: [usize; 2]| json!({"name": name, "dtype": "F32", "shape": shape, "values": "random"});
    let tensors = json!([tensor("layers.0.up.weight", [4, 2]), tensor("marker.weight", [3, 2])]);
    fs::write(model.join("model.safetensors"), cases::safetensors_of(&tensors)).unwrap();
    let family = "from base\nclass MarkedModel\nmodel_type marked\ngguf llama\nvocab none\nset num_attention_heads = 1\n\
                  set num_hidden_layers = many(\"layers.{l}.up.weight\")\nset hidden_size = dim(\"marker.weight\", 1)\n\
                  tensor embedding token_embd.weight = marker.weight [_, hidden]\n\
                  tensor up blk.{l}.ffn_up.weight = layers.{l}.up.weight [_, hidden]\n";
    fs::write(&path, family).unwrap();
    let unknown = known::check(&path, Some(&model)).unwrap_err().to_string();
    assert!(unknown.contains("expected the config of a model's folder"), "{unknown}");
    fs::write(&path, format!("{family}detect marker.weight\n")).unwrap();
    let check = known::check(&path, Some(&model)).unwrap();
    assert_eq!(
        check.tensors,
        ["blk.0.ffn_up.weight [4, 2] F16 = layers.0.up.weight", "token_embd.weight [3, 2] F16 = marker.weight"]
    );
}

/// The families that docs/families.md teaches by are read without a mistake.
#[test]
fn families_of_the_documentation_have_no_mistake() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/families.md")).unwrap();
    let blocks: Vec<&str> = text.split("```family\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 2);
    let dir = tempfile::tempdir().unwrap();
    for (number, block) in blocks.iter().enumerate() {
        let path = dir.path().join(format!("example{number}.family"));
        fs::write(&path, block).unwrap();
        let check = known::check(&path, None).unwrap_or_else(|e| panic!("{e}\n{block}"));
        assert!(!check.family.classes.is_empty());
    }
}

#[test]
fn a_mistake_in_a_family_file_is_named_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.family");
    fs::write(dir.path().join("round.family"), "from new\n").unwrap();
    let deep = format!("let a = 1{}", " + 1".repeat(10_000));
    let start = "from llama\nclass NewForCausalLM\nmodel_type new\n";
    for (line, expected) in [
        ("key u33 a = 1", "line 4, column 5: expected the type of a key"),
        ("tensor q blk.{l}.attn_q.weight = a.{l} [hidden", "line 4, column 47: expected `,`"),
        ("tensor q blk.{l}.x.weight = stack experts a.{l} [hidden]", "line 4, column 43: expected `{e}` in the name"),
        ("let a = (1 +", "line 4, column 13: expected"),
        ("lett a = 1", "line 4, column 1: expected a statement"),
        ("from nobody", "from: expected a family that is built in, or a file nobody.family beside this one"),
        ("from round", "in a circle"),
        // A file may build on the built-in one of its name, which there isn't.
        ("from new", "from: expected a family that is built in"),
        ("no key nothing", "no: expected a line of the family that `from` names, found nothing"),
        ("key str general.architecture = \"x\"", "line 4, column 9: expected another key"),
        ("drop model.{l}.x", "line 4, column 6: expected a name with `*` for numbers"),
        ("detect", "line 4, column 7: expected a tensor's name"),
        (
            "tensor q blk.{l}.x.weight = a.{l} [hidden] | linear b.{e} [hidden]",
            "line 4, column 53: expected a name without `{e}`, outside of a stack",
        ),
        (
            "tensor q blk.{l}.x.weight = a.{l} [hidden] | divide (b.{l} [heads] | divide c.{l} [heads])",
            "line 4, column 70: expected an operation of one tensor",
        ),
        (deep.as_str(), "at most 1000 operators in a statement"),
    ] {
        fs::write(&path, format!("{start}{line}\n")).unwrap();
        let error = known::check(&path, None).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(expected) && error.lines().count() == 1, "{line}: {error}");
    }
}
