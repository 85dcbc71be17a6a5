//! Conversion to GGUF: whole files against what llama.cpp's converter makes of the same folders.

#[path = "common/described.rs"]
mod described;
mod readers;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use atombank::checkpoint::Checkpoint;
use atombank::convert::{ConvertOptions, OutType};
use atombank::formats::gguf::{Array, GgufFile, GgufModel, Metadata, Value, ValueType, layout};
use atombank::plan::{self, Expr, Plan, PlannedTensor, Staging};
use atombank::source::Source;
use atombank::{Error, Result};
use described::{described, sha256};
use serde_json::{Value as Json, json};

/// `fixtures/convert`, or the folder of other cases of the same form that the environment names.
fn cases() -> (PathBuf, Vec<String>) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/convert");
    let folder = std::env::var_os("ATOMBANK_CONVERT_CASES").map_or(fixtures, PathBuf::from);
    let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap());
    let names = entries.filter(|e| e.path().join("expected").is_dir());
    let mut names: Vec<String> = names.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    (folder, names)
}

const OUTTYPES: [OutType; 4] = [OutType::F32, OutType::F16, OutType::BF16, OutType::Q8_0];

fn to_gguf(folder: &Checkpoint, weights: &Plan, options: &ConvertOptions) -> Result<(Metadata, Plan)> {
    let made = atombank::convert::to_gguf(folder, weights, options)?;
    Ok((made.metadata().unwrap().clone(), made.plan))
}

fn convert(model: &Path, options: &ConvertOptions, target: &Path) -> Result<()> {
    let folder = Checkpoint::open(model)?;
    let (metadata, plan) = to_gguf(&folder, folder.weights(), options)?;
    let layout = layout(&metadata, &plan.tensors)?;
    let staging = Staging::file(target, false)?;
    plan::execute(&plan, &layout, &staging, plan::Options::default(), &|_| {})?;
    staging.commit()
}

#[test]
fn files_equal_the_reference_key_by_key_and_byte_by_byte() {
    let (folder, names) = cases();
    // Every case is looked at, so that one difference doesn't hide another.
    let failed: Vec<String> = names
        .iter()
        .flat_map(|name| OUTTYPES.map(|outtype| (name, outtype)))
        .filter(|(name, outtype)| std::panic::catch_unwind(|| equals_reference(&folder, name, *outtype)).is_err())
        .map(|(name, outtype)| format!("{name} {outtype}"))
        .collect();
    assert!(failed.is_empty(), "differ: {}", failed.join(", "));
}

/// The folders of Mistral's own format.
fn mistral() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/mistral")
}

/// As `convert_hf_to_gguf.py --mistral-format` makes them, but for the order of keys.
#[test]
fn folders_of_mistrals_own_format_become_what_the_reference_makes_of_them() {
    for case in ["tekken", "fp8", "ministral3", "spm"] {
        for outtype in OUTTYPES {
            let out = tempfile::tempdir().unwrap();
            let target = out.path().join("model.gguf");
            let options = ConvertOptions { outtype, ..ConvertOptions::default() };
            convert(&mistral().join(case).join("model"), &options, &target).unwrap();
            let expected = mistral().join(case).join(format!("expected/{outtype}.json"));
            let mut expected: Json = serde_json::from_slice(&fs::read(expected).unwrap()).unwrap();
            let file = GgufFile::open(&target).unwrap();
            let keys = expected["keys"].as_object_mut().unwrap();
            let ours = file.metadata().iter().filter_map(|(key, _)| Some((key.to_owned(), keys.remove(key)?)));
            let sorted: serde_json::Map<String, Json> = ours.collect();
            assert!(keys.is_empty(), "{case} {outtype}: not written: {keys:?}");
            *keys = sorted;
            compare(&format!("{case} {outtype}"), &file, &expected);
            readers::another_reader_agrees(&target, &file);
        }
    }
}

#[test]
fn ministral3_goes_back_to_its_class() {
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("model.gguf");
    let options = ConvertOptions { outtype: OutType::BF16, ..ConvertOptions::default() };
    convert(&mistral().join("ministral3/model"), &options, &target).unwrap();
    let model = GgufModel::open(&target).unwrap();
    let (config, folder) = atombank::convert::from_gguf(&model, None).unwrap().unwrap();
    assert_eq!(config["architectures"], json!(["Ministral3ForCausalLM"]));
    let expected = json!({"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1});
    assert_eq!(config["rope_parameters"], expected);
    let original = Checkpoint::open(&mistral().join("ministral3/model")).unwrap();
    for tensor in &original.weights().tensors {
        let back = folder.plan.get(&tensor.name).unwrap();
        assert!(back.read().unwrap() == tensor.read().unwrap(), "{}", tensor.name);
    }
}

/// A mixture, which the reference reads in the format of transformers alone: its tensors are those of that file.
#[test]
fn a_mixture_of_mistrals_own_format_has_the_tensors_of_its_twin() {
    for outtype in OUTTYPES {
        let out = tempfile::tempdir().unwrap();
        let target = out.path().join("model.gguf");
        let options = ConvertOptions { outtype, ..ConvertOptions::default() };
        convert(&mistral().join("mixtral/model"), &options, &target).unwrap();
        let expected = mistral().join(format!("mixtral/expected/tensors-{outtype}.json"));
        let expected: Json = serde_json::from_slice(&fs::read(expected).unwrap()).unwrap();
        let file = GgufFile::open(&target).unwrap();
        let tensors = file.tensors().iter().enumerate().map(|(i, info)| {
            let shape: Vec<usize> = info.shape.iter().rev().copied().collect();
            let described = json!({"shape": shape, "type": info.dtype.name(), "sha256": sha256(&file.bytes(i))});
            (info.name.clone(), described)
        });
        assert_eq!(Json::Object(tensors.collect()), expected["tensors"], "{outtype}");
        assert_eq!(file.metadata().u32("llama.expert_used_count").unwrap(), 2);
    }
}

/// Folders as users have them, each against the reference's one file.
#[test]
fn folders_of_users_become_what_the_reference_makes_of_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/cases");
    let folders = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let mut cases: Vec<PathBuf> = folders.collect();
    cases.sort();
    assert!(!cases.is_empty());
    for case in cases {
        let expected: Json = serde_json::from_slice(&fs::read(case.join("expected.json")).unwrap()).unwrap();
        let out = tempfile::tempdir().unwrap();
        let target = out.path().join("o.gguf");
        let options = ConvertOptions { pre: Some("gpt-2".to_owned()), ..ConvertOptions::default() };
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        convert(&case.join("model"), &options, &target).unwrap_or_else(|e| panic!("{name}: {e}"));
        compare(&name, &GgufFile::open(&target).unwrap(), &expected);
        assert_eq!(sha256(&fs::read(&target).unwrap()), expected["bytes_sha256"], "{name}");
    }
}

/// With the types of the source a model comes back with its names and values, and without them with the window and the
/// head that it had.
#[test]
fn folders_of_users_come_back() {
    for case in ["gemma3-own-head", "gemma3-all-global", "names-language-model", "vlm-gemma3-conditional"] {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/cases").join(case).join("model");
        let folder = Checkpoint::open(&model).unwrap();
        let out = tempfile::tempdir().unwrap();
        let back = |outtype: OutType| {
            let target = out.path().join(format!("{outtype}.gguf"));
            let options = ConvertOptions { pre: Some("gpt-2".to_owned()), outtype, ..ConvertOptions::default() };
            convert(&model, &options, &target).unwrap();
            atombank::convert::from_gguf(&GgufModel::open(&target).unwrap(), None).unwrap().unwrap()
        };
        let (config, made) = back(OutType::Source);
        assert_eq!(config, folder.config_json, "{case}");
        let mut names: Vec<&str> = made.plan.tensors.iter().map(|t| t.name.as_str()).collect();
        let mut expected: Vec<&str> = folder.weights().tensors.iter().map(|t| t.name.as_str()).collect();
        names.sort_unstable();
        expected.sort_unstable();
        assert_eq!(names, expected, "{case}");
        for tensor in &made.plan.tensors {
            let same = tensor.same_values(folder.weights().get(&tensor.name).unwrap()).unwrap();
            assert!(same, "{case}: {}", tensor.name);
        }
        let (config, _) = back(OutType::F16);
        let everything = case == "gemma3-all-global";
        assert_eq!(config.get("sliding_window_pattern"), everything.then(|| json!(1)).as_ref(), "{case}");
        assert_eq!(config["tie_word_embeddings"], json!(case != "gemma3-own-head"), "{case}");
    }
}

/// Gemma 1 and 2 have no head in llama.cpp: it takes the embeddings.
#[test]
fn a_head_that_is_dropped_repeats_the_embeddings() {
    for class in ["gemma", "gemma2"] {
        let model = copied(class);
        let folder = Checkpoint::open(model.path()).unwrap();
        let with_head = |change: fn(Expr) -> Expr| {
            let mut weights = folder.weights().clone();
            let embeddings = weights.get("model.embed_tokens.weight").unwrap().clone();
            let (name, expr) = ("lm_head.weight".to_owned(), change(embeddings.expr.clone()));
            weights.tensors.push(PlannedTensor { name, expr, ..embeddings });
            atombank::convert::to_gguf(&folder, &weights, &ConvertOptions::default())
        };
        let made = with_head(|head| head).unwrap();
        assert!(made.notes.iter().any(|note| note.ends_with("no use for them: lm_head.weight")), "{:?}", made.notes);
        let error = with_head(|of| Expr::Scale { of: Box::new(of), factor: 2.0 }).unwrap_err().to_string();
        let expected = format!(
            "tensor \"lm_head.weight\": expected the values of \"model.embed_tokens.weight\", which llama.cpp takes for \
             {class}'s head, found others"
        );
        assert!(error.contains(&expected), "{error}");
    }
}

/// A wrapper's other parts have no place in the text model's GGUF, and are named.
#[test]
fn parts_for_images_are_left_out_in_one_note() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/cases/vlm-gemma3-conditional/model");
    let folder = Checkpoint::open(&model).unwrap();
    let options = ConvertOptions { pre: Some("gpt-2".to_owned()), ..ConvertOptions::default() };
    let converted = |names: &[&str]| {
        let mut weights = folder.weights().clone();
        let norm = weights.get("language_model.model.norm.weight").unwrap().clone();
        weights.tensors.extend(names.iter().map(|name| PlannedTensor { name: (*name).to_owned(), ..norm.clone() }));
        atombank::convert::to_gguf(&folder, &weights, &options)
    };
    let alone = converted(&[]).unwrap();
    let names = ["vision_tower.a.weight", "vision_tower.b.weight", "model.multi_modal_projector.norm.weight"];
    let made = converted(&names).unwrap();
    let tensors = |plan: &Plan| plan.tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    assert_eq!(tensors(&made.plan), tensors(&alone.plan));
    let note = "left out, because the GGUF holds the text model alone: multi_modal_projector (1 tensor), vision_tower (2 \
                tensors)";
    assert!(made.notes.iter().any(|found| found == note), "{:?}", made.notes);
    let error = converted(&["language_model.model.layers.0.mlp.fancy.weight"]).unwrap_err().to_string();
    assert!(error.contains("expected only tensors that config.json asks for"), "{error}");
}

fn equals_reference(folder: &Path, name: &str, outtype: OutType) {
    let expected = folder.join(name).join(format!("expected/{outtype}.json"));
    let expected: Json = serde_json::from_slice(&fs::read(&expected).unwrap()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("model.gguf");
    let options = ConvertOptions { outtype, ..ConvertOptions::default() };
    convert(&folder.join(name).join("model"), &options, &target).unwrap_or_else(|e| panic!("{name} {outtype}: {e}"));
    let file = GgufFile::open(&target).unwrap();
    compare(&format!("{name} {outtype}"), &file, &expected);
    readers::another_reader_agrees(&target, &file);
    #[cfg(feature = "train")]
    readers::candle_agrees(&target, &file);
    let end = file.range(file.tensors().len() - 1).end.next_multiple_of(32);
    assert_eq!(fs::metadata(&target).unwrap().len(), end as u64, "{name} {outtype}: padded as upstream");
}

/// Keys, their order, types and values; tensors, their order, types, shapes and bytes.
fn compare(case: &str, file: &GgufFile, expected: &Json) {
    let ours: Vec<&str> = file.metadata().iter().map(|(key, _)| key).collect();
    let theirs: Vec<&str> = expected["keys"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(ours, theirs, "{case}: keys");
    // The reference gives all tokens of a tokenizer.json made of SentencePiece one score: see docs/formats/vocabularies.md.
    let one_score = |key: &str| key == "tokenizer.ggml.scores" && case.starts_with("llama-spm-json ");
    for (key, value) in file.metadata().iter().filter(|(key, _)| !one_score(key)) {
        let expected = &expected["keys"][key];
        match value {
            // By number: 1e-7 and 1e-07 are one.
            Value::F32(v) => {
                assert_eq!(expected["type"], json!(["FLOAT32"]), "{case}: {key}");
                assert_eq!(expected["value"].as_f64(), Some(f64::from(*v)), "{case}: {key}");
            }
            _ => assert_eq!(described(value), *expected, "{case}: {key}"),
        }
    }
    let ours: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).collect();
    let theirs: Vec<&str> = expected["tensor_order"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    assert_eq!(ours, theirs, "{case}: tensors");
    for (i, info) in file.tensors().iter().enumerate() {
        let shape: Vec<usize> = info.shape.iter().rev().copied().collect();
        let described = json!({"shape": shape, "type": info.dtype.name(), "sha256": sha256(&file.bytes(i))});
        assert_eq!(described, expected["tensors"][&info.name], "{case}: {}", info.name);
    }
}

/// A copy of a fixture's model whose files tests may change.
fn copied(case: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/convert").join(case).join("model");
    for entry in fs::read_dir(model).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

fn edit(folder: &Path, file: &str, change: impl Fn(&mut Json)) {
    let path = folder.join(file);
    let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, serde_json::to_vec(&json).unwrap()).unwrap();
}

fn refusal(folder: &Path) -> Error {
    let target = tempfile::tempdir().unwrap();
    let result = convert(folder, &ConvertOptions::default(), &target.path().join("x.gguf"));
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0, "nothing is left behind");
    result.unwrap_err()
}

#[test]
fn weights_of_another_model_are_refused_by_name() {
    let cases = [
        (
            "num_key_value_heads",
            json!(4),
            "model.layers.0.self_attn.k_proj.weight\": expected [256, 256] by config.json, found [128, 256]",
        ),
        ("vocab_size", json!(321), "expected [321, 256] by config.json, found [320, 256]"),
        (
            "num_hidden_layers",
            json!(3),
            "tensor \"model.layers.2.input_layernorm.weight\": expected [256] by config.json, found none",
        ),
        ("num_hidden_layers", json!(1), "expected only tensors that config.json asks for, found this one"),
        (
            "attention_bias",
            json!(true),
            "self_attn.q_proj.bias\": expected [256] by config.json, found none of that name",
        ),
    ];
    for (field, value, expected) in cases {
        let model = copied("llama");
        edit(model.path(), "config.json", |config| config[field] = value.clone());
        let error = refusal(model.path());
        assert!(matches!(error, Error::Mismatch(_)), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn counts_that_the_tensors_do_not_bear_out_are_refused() {
    let cases = [
        ("mixtral", "num_local_experts", (1u64 << 31) - 1, "expected [2147483647, 64] by config.json, found [8, 64]"),
        ("llama", "num_hidden_layers", 65_536, "num_hidden_layers: expected layers for at most the"),
        ("llama", "num_attention_heads", (1 << 31) - 1, "num_key_value_heads: expected a divisor of 2147483647 heads"),
        ("llama-rope-llama3", "head_dim", 1 << 30, "by config.json, found"),
        ("gpt-neox", "num_attention_heads", (1 << 31) - 1, "by config.json, found"),
    ];
    for (case, field, value, expected) in cases {
        let model = copied(case);
        edit(model.path(), "config.json", |config| config[field] = json!(value));
        let error = refusal(model.path()).to_string();
        assert!(error.contains(expected), "{case}: {error}");
    }
}

#[test]
fn scalings_that_the_output_cannot_say_are_refused() {
    let model = copied("qwen3");
    edit(model.path(), "config.json", |config| {
        config["rope_parameters"] =
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
    });
    let error = refusal(model.path()).to_string();
    assert!(
        error.contains("rope_type: expected default, linear or yarn, which GGUF can say of qwen3, found llama3"),
        "{error}"
    );
}

#[test]
fn tokenizers_that_cannot_be_described_are_refused_with_what_to_try() {
    let model = copied("llama");
    fs::write(model.path().join("tokenizer.model"), b"spm").unwrap();
    let error = refusal(model.path()).to_string();
    assert!(error.contains("tokenizer.model: byte 0: expected a protobuf field"), "{error}");

    let model = copied("llama");
    fs::remove_file(model.path().join("tokenizer.json")).unwrap();
    let error = refusal(model.path()).to_string();
    assert!(
        error.contains("expected tokenizer.json, vocab.json with merges.txt, or vocab.txt, found none of them"),
        "{error}"
    );

    let model = copied("llama");
    edit(model.path(), "tokenizer.json", |json| json["pre_tokenizer"] = json!({"type": "Whitespace"}));
    let error = refusal(model.path()).to_string();
    assert!(error.contains("name one of llama.cpp's own with `pre`"), "{error}");
    let folder = Checkpoint::open(model.path()).unwrap();
    let options = ConvertOptions { pre: Some("qwen2".to_owned()), ..ConvertOptions::default() };
    let (metadata, _) = to_gguf(&folder, folder.weights(), &options).unwrap();
    assert_eq!(metadata.text("tokenizer.ggml.pre").unwrap(), "qwen2");
}

#[test]
fn folders_without_a_tokenizer_convert_without_a_vocabulary() {
    let model = copied("llama");
    fs::remove_file(model.path().join("tokenizer.json")).unwrap();
    let folder = Checkpoint::open(model.path()).unwrap();
    let options = ConvertOptions { vocab: false, ..ConvertOptions::default() };
    let (metadata, _) = to_gguf(&folder, folder.weights(), &options).unwrap();
    assert_eq!(metadata.text("tokenizer.ggml.model").unwrap(), "none");
    assert!(metadata.get("tokenizer.ggml.tokens").is_none());
}

#[test]
fn every_tensor_is_used_once_whatever_their_order() {
    let model = copied("llama");
    let folder = Checkpoint::open(model.path()).unwrap();
    let options = ConvertOptions::default();
    let (_, straight) = to_gguf(&folder, folder.weights(), &options).unwrap();
    let mut reversed = folder.weights().clone();
    reversed.tensors.reverse();
    let (_, back) = to_gguf(&folder, &reversed, &options).unwrap();
    let names = |plan: &Plan| plan.tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&straight), names(&back));

    let mut buffers = folder.weights().clone();
    let mut buffer = buffers.tensors[0].clone();
    buffer.name = "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned();
    buffers.tensors.push(buffer);
    assert_eq!(names(&to_gguf(&folder, &buffers, &options).unwrap().1), names(&straight));

    let mut twice = folder.weights().clone();
    twice.tensors.push(twice.tensors[0].clone());
    let error = to_gguf(&folder, &twice, &options).unwrap_err().to_string();
    assert!(error.contains("expected each name once, found it twice"), "{error}");
}

#[test]
fn special_tokens_templates_and_sampling_are_taken_over() {
    let model = copied("llama");
    edit(model.path(), "generation_config.json", |json| {
        json["temperature"] = json!(0.6);
        json["top_k"] = json!(20);
        json["repetition_penalty"] = json!(1.05);
    });
    edit(model.path(), "config.json", |json| json["_name_or_path"] = json!("some-org/Tiny-1.3M-Instruct-v0.3"));
    edit(model.path(), "tokenizer_config.json", |json| {
        json["add_prefix_space"] = json!(false);
        json["chat_template"] = json!([
            {"name": "default", "template": "plain"}, {"name": "tool use", "template": "tools"}
        ]);
    });
    edit(model.path(), "tokenizer.json", |json| {
        json["post_processor"] = json!({"type": "Sequence", "processors": [
            {"type": "ByteLevel"},
            {"type": "TemplateProcessing", "pair": [], "special_tokens": {}, "single": [
                {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
            ]}
        ]});
    });
    let folder = Checkpoint::open(model.path()).unwrap();
    let (metadata, _) = to_gguf(&folder, folder.weights(), &ConvertOptions::default()).unwrap();
    let expected: HashMap<&str, Value> = HashMap::from([
        ("general.sampling.temp", 0.6f32.into()),
        ("general.sampling.top_k", 20i32.into()),
        ("general.sampling.penalty_repeat", 1.05f32.into()),
        ("general.name", "Tiny 1.3M Instruct v0.3".into()),
        ("general.organization", "Some Org".into()),
        ("general.basename", "Tiny".into()),
        ("general.finetune", "Instruct".into()),
        ("general.version", "v0.3".into()),
        ("general.size_label", "1.3M".into()),
        ("tokenizer.ggml.add_space_prefix", false.into()),
        ("tokenizer.ggml.add_bos_token", true.into()),
        ("tokenizer.ggml.add_eos_token", true.into()),
        ("tokenizer.ggml.eos_token_id", 1u32.into()),
        ("tokenizer.ggml.eot_token_id", 2u32.into()),
        ("tokenizer.chat_template", "plain".into()),
        ("tokenizer.chat_template.tool_use", "tools".into()),
        ("tokenizer.chat_templates", Array::texts(["tool_use"]).into()),
    ]);
    for (key, value) in expected {
        assert_eq!(metadata.get(key), Some(&value), "{key}");
    }
}
