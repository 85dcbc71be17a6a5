//! Tests conversions as a user does them: every input to every possible output, and refusals.

#[path = "common/program.rs"]
mod program;
mod readers;

use std::fs;
use std::path::Path;

use atombank::formats::gguf::{GgufFile, GgufModel};
use atombank::formats::pytorch::PytorchFile;
use atombank::formats::safetensors::SafetensorsFile;
use atombank::source::Source;
use program::{INPUT, USAGE, atombank, copy, fixture, refused_leaving, text};

fn convert(input: &Path, output: &Path, options: &[&str]) -> String {
    let out = atombank(&[&["convert", input.to_str().unwrap(), "-o", output.to_str().unwrap()], options].concat());
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{input:?} -> {output:?} {options:?}: {stderr}");
    stderr
}

/// The error of a conversion, which must be one line on stderr; nothing may be written.
#[track_caller]
fn refusal(exit: i32, input: &Path, output: &Path, options: &[&str]) -> String {
    refused_leaving(exit, output.parent().unwrap(), &[&["convert", text(input), "-o", text(output)], options].concat())
}

/// Name, shape and bytes of every tensor, by name.
fn contents(source: &dyn Source) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let infos = source.tensors().iter().enumerate();
    let mut all: Vec<_> = infos.map(|(i, t)| (t.name.clone(), t.shape.clone(), source.bytes(i).into_owned())).collect();
    all.sort();
    all
}

fn safetensors(path: &Path) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    contents(&SafetensorsFile::open(path).unwrap())
}

#[test]
fn a_folder_becomes_every_form_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = fixture("convert/qwen2moe/model");
    let original = safetensors(&model.join("model.safetensors"));
    convert(&model, &at("m.gguf"), &["--outtype", "source"]);
    readers::another_reader_agrees(&at("m.gguf"), &GgufFile::open(&at("m.gguf")).unwrap());
    convert(&at("m.gguf"), &at("folder"), &[]);
    assert_eq!(safetensors(&at("folder/model.safetensors")), original);
    assert!(at("folder/tokenizer.json").is_file() && at("folder/tokenizer_config.json").is_file());
    convert(&at("folder"), &at("m.bin"), &[]);
    assert_eq!(contents(&PytorchFile::open(&at("m.bin"), None).unwrap()), original);
    convert(&at("m.bin"), &at("again.safetensors"), &[]);
    assert_eq!(safetensors(&at("again.safetensors")), original);
    convert(&at("m.gguf"), &at("pytorch"), &["--to", "pytorch", "--shard-size", "100KB"]);
    assert!(at("pytorch/pytorch_model.bin.index.json").is_file() && at("pytorch/config.json").is_file());
    convert(&at("pytorch"), &at("once-more.gguf"), &["--type", "f16"]);
    convert(&model, &at("straight.gguf"), &["--type", "f16"]);
    let tensors = |name: &str| contents(&GgufFile::open(&at(name)).unwrap());
    assert_eq!(tensors("once-more.gguf"), tensors("straight.gguf"));
}

#[test]
fn shards_are_written_read_joined_and_split_again() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = fixture("convert/llama-pytorch/model");
    convert(&model, &at("whole.gguf"), &[]);
    convert(&model, &at("part.gguf"), &["--split-max-tensors", "7"]);
    let first = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.to_string_lossy().contains("00001-of-"));
    let first = first.unwrap();
    assert!(!at("part.gguf").exists());
    convert(&first, &at("joined.gguf"), &[]);
    assert_eq!(fs::read(at("joined.gguf")).unwrap(), fs::read(at("whole.gguf")).unwrap());
    convert(&first, &at("other.gguf"), &["--split-max-size", "100KB"]);
    let again = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.to_string_lossy().contains("other-00001-of-"));
    let model = GgufModel::open(&again.unwrap()).unwrap();
    assert_eq!(model.tensors().len(), GgufFile::open(&at("whole.gguf")).unwrap().tensors().len());
}

#[test]
fn models_of_other_classes_and_bare_tensors_keep_everything() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    copy(&fixture("sentence/encoder"), &at("model"));
    let config = fs::read_to_string(at("model/config.json")).unwrap().replace("BertModel", "FancyModel");
    fs::write(at("model/config.json"), &config).unwrap();
    let error =
        refused_leaving(INPUT, dir.path(), &["convert", text(&at("model")), "-o", text(&at("fancy.gguf")), "--quiet"]);
    assert!(
        error.contains(
            "model/config.json: architectures: expected a class that this version has a family for, found FancyModel"
        ),
        "{error}"
    );
    assert!(error.contains("atombank convert with --generic keeps names and files"), "{error}");
    let notes = convert(&at("model"), &at("fancy.gguf"), &["--generic"]);
    assert!(notes.contains("written as a generic GGUF"), "{notes}");
    convert(&at("fancy.gguf"), &at("back"), &[]);
    assert_eq!(safetensors(&at("back/model.safetensors")), safetensors(&at("model/model.safetensors")));
    assert_eq!(fs::read_to_string(at("back/config.json")).unwrap(), config);
    let error = refused_leaving(
        INPUT,
        dir.path(),
        &["convert", text(&at("model/model.safetensors")), "-o", text(&at("bare.gguf"))],
    );
    assert!(
        error.contains("expected the config of a model's folder, found tensors alone; atombank convert with --generic"),
        "{error}"
    );
    convert(&at("model/model.safetensors"), &at("bare.gguf"), &["--generic"]);
    convert(&at("bare.gguf"), &at("bare.safetensors"), &[]);
    assert_eq!(safetensors(&at("bare.safetensors")), safetensors(&at("model/model.safetensors")));
}

#[test]
fn what_a_safetensors_file_says_of_itself_goes_along_or_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let header = br#"{"__metadata__":{"author":"Somebody"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat();
    fs::write(at("w.safetensors"), bytes).unwrap();
    let author = |file: &str| {
        let file = SafetensorsFile::open(&at(file)).unwrap();
        file.text_metadata().unwrap()["author"].clone()
    };
    assert_eq!(convert(&at("w.safetensors"), &at("again.safetensors"), &["--quiet"]), "");
    assert_eq!(author("again.safetensors"), "Somebody");
    convert(&at("w.safetensors"), &at("w.gguf"), &["--generic"]);
    convert(&at("w.gguf"), &at("back.safetensors"), &[]);
    assert_eq!(author("back.safetensors"), "Somebody");
    let notes = convert(&at("w.safetensors"), &at("w.bin"), &[]);
    assert!(notes.contains("__metadata__ \"author\" of the weights is left out"), "{notes}");
    let model = copy(&fixture("convert/qwen2moe/model"), &at("model"));
    let old = fs::read(model.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(old[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&old[8..8 + length]).unwrap();
    header["__metadata__"] = serde_json::json!({ "format": "pt", "author": "Somebody" });
    let header = header.to_string();
    let new = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &old[8 + length..]].concat();
    fs::write(model.join("model.safetensors"), new).unwrap();
    let notes = convert(&model, &at("model.gguf"), &[]);
    assert!(notes.contains("__metadata__ \"author\"") && !notes.contains("format"), "{notes}");
    convert(&model, &at("folder"), &[]);
    assert_eq!(author("folder/model.safetensors"), "Somebody");
}

#[test]
fn everything_that_can_be_converted_can_be_inspected() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let inspect = |path: &Path, options: &[&str]| {
        let out = atombank(&[&["inspect", path.to_str().unwrap()], options].concat());
        assert!(out.status.success(), "{path:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let json = |path: &Path| serde_json::from_str::<serde_json::Value>(&inspect(path, &["--json"])).unwrap();
    for entry in fs::read_dir(fixture("convert")).unwrap() {
        let model = entry.unwrap().path().join("model");
        if model.is_dir() {
            let report = json(&model);
            assert_eq!(report["kind"], "hf-folder");
            assert!(report["problem"].is_null(), "{report}");
            assert_eq!(report["model"]["missing"], serde_json::json!([]), "{model:?}");
            assert_eq!(report["model"]["surplus"], serde_json::json!([]), "{model:?}");
        }
    }
    let model = fixture("convert/llama-pytorch/model");
    convert(&model, &at("part.gguf"), &["--split-max-tensors", "7"]);
    let shard = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let report = json(&shard);
    assert!(report["shards"].as_array().unwrap().len() > 1);
    assert_eq!(
        report["tensors"]["list"].as_array().unwrap().len(),
        json(&model)["tensors"]["list"].as_array().unwrap().len()
    );
    let table = inspect(&fixture("pytorch/lightning.bin"), &["--key", "state_dict", "--tensors"]);
    assert!(table.contains("F32"), "{table}");
    let all = json(&fixture("pytorch/lightning.bin"));
    assert!(all["kind"] == "weights" && !all["others"].as_array().unwrap().is_empty(), "{all}");
    // A missing part isn't reported as an unknown kind of adapter.
    let missing = atombank(&["inspect", text(&fixture("pytorch/lightning.bin")), "--key", "nothing"]);
    assert_eq!(missing.status.code(), Some(1));
    // A model that can't be converted, because of a field or an unknown class, can still be
    // inspected.
    copy(&fixture("convert/qwen2/model"), &at("model"));
    let config = fs::read_to_string(at("model/config.json")).unwrap();
    fs::write(at("model/config.json"), config.replacen('{', "{\"quantization_config\": {\"bits\": 4},", 1)).unwrap();
    let table = inspect(&at("model"), &[]);
    assert!(table.contains("as GGUF") && table.contains("quantization_config.quant_method: expected fp8,"), "{table}");
    fs::write(at("model/config.json"), config.replace("Qwen2ForCausalLM", "FancyModel")).unwrap();
    assert!(inspect(&at("model"), &[]).contains("no family for this class"));
}

#[test]
fn banks_and_adapters_have_forms_in_gguf() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let bank = fixture("routing/llama-prompt/adapter");
    convert(&bank, &at("bank.gguf"), &[]);
    convert(&at("bank.gguf"), &at("bank"), &[]);
    let file = "adapter_model.safetensors";
    assert_eq!(safetensors(&at("bank").join(file)), safetensors(&bank.join(file)));
    let lora = fixture("lora/plain");
    let lora = if lora.join("adapter_config.json").is_file() { lora } else { lora.join("adapter") };
    let refused = refusal(INPUT, &lora, &at("lora.gguf"), &[]);
    assert!(refused.contains("--base: expected the folder or the GGUF of the base model, found none"), "{refused}");
}

#[test]
fn options_of_the_gguf_are_honoured() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = fixture("convert/gpt2/model");
    convert(&model, &at("vocab.gguf"), &["--vocab-only"]);
    let vocab = GgufFile::open(&at("vocab.gguf")).unwrap();
    assert!(vocab.tensors().is_empty() && vocab.metadata().get("tokenizer.ggml.tokens").is_some());
    fs::write(at("metadata.json"), r#"{"general.author": "Somebody"}"#).unwrap();
    let metadata = at("metadata.json");
    let options =
        ["--metadata", metadata.to_str().unwrap(), "--override-key", "gpt2.context_length=77", "--model-name", "Nine"];
    convert(&model, &at("named.gguf"), &options);
    let named = GgufFile::open(&at("named.gguf")).unwrap();
    assert_eq!(named.metadata().text("general.author").unwrap(), "Somebody");
    assert_eq!(named.metadata().text("general.name").unwrap(), "Nine");
    assert_eq!(named.metadata().u32("gpt2.context_length").unwrap(), 77);
    let out = atombank(&["convert", model.to_str().unwrap(), "-o", at("dry.gguf").to_str().unwrap(), "--dry-run"]);
    assert!(out.status.success() && !at("dry.gguf").exists());
    assert!(String::from_utf8(out.stdout).unwrap().contains("token_embd.weight"));
}

#[test]
fn what_cannot_be_converted_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = fixture("convert/gpt2/model");
    let cases: [(i32, &Path, &str, &[&str], &str); 6] = [
        (INPUT, &fixture("pytorch/refused-command.bin"), "x.safetensors", &[], "found posix.system"),
        (USAGE, &model, "folder", &["--split-max-tensors", "3"], "expected a GGUF, found another output"),
        (USAGE, &model, "folder", &["--override-key", "a=1"], "--override-key: expected a GGUF"),
        (USAGE, &model, "x.gguf", &["--key", "state_dict"], "--key: expected PyTorch files to choose a part of"),
        (
            INPUT,
            &model.join("model.safetensors"),
            "folder",
            &[],
            "config.json: expected a model folder's config, found tensors alone",
        ),
        (INPUT, &fixture("README.md"), "x.gguf", &[], "found something else"),
    ];
    for (exit, input, output, options, expected) in cases {
        let line = refusal(exit, input, &at(output), options);
        assert!(line.contains(expected), "{line}");
    }
    std::os::unix::fs::symlink(at("nowhere"), at("link.gguf")).unwrap();
    let line = refusal(INPUT, &model, &at("link.gguf"), &[]);
    assert!(line.contains("already exists"), "{line}");
}

#[test]
fn a_folder_of_a_model_and_an_adapter_is_what_as_says() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (base, lora) = (fixture("demo/base"), fixture("demo/lora"));
    let both = copy(&base, &at("both"));
    copy(&lora, &both);
    let adapter = ["--as", "adapter"];
    convert(&lora, &at("lora.gguf"), &["--base", text(&base)]);
    convert(&both, &at("both.gguf"), &[&adapter[..], &["--base", text(&base)]].concat());
    let tensors = |name: &str| contents(&GgufFile::open(&at(name)).unwrap());
    assert!(tensors("both.gguf") == tensors("lora.gguf"));
    let (plain, chosen) = (at("plain"), at("chosen"));
    for (input, output, options) in [(&lora, &plain, &[][..]), (&both, &chosen, &adapter[..])] {
        let merged = atombank(&[&["merge", text(&base), text(input), "-o", text(output), "--quiet"], options].concat());
        assert!(merged.status.success(), "{}", String::from_utf8_lossy(&merged.stderr));
    }
    assert_eq!(safetensors(&plain.join("model.safetensors")), safetensors(&chosen.join("model.safetensors")));
    let shown = |options: &[&str]| {
        let out = atombank(&[&["inspect", text(&both), "--json"], options].concat());
        String::from_utf8(out.stdout).unwrap()
    };
    assert!(shown(&adapter).contains("peft_type") && !shown(&[]).contains("peft_type"));
    let notes = convert(&both, &at("model.gguf"), &["--as", "model"]);
    assert!(!notes.contains("the model is taken"), "{notes}");
    let error =
        refused_leaving(INPUT, dir.path(), &["convert", text(&base), "-o", text(&at("x.gguf")), "--as", "adapter"]);
    assert!(error.contains("expected an adapter: a folder with adapter_config.json, found none"), "{error}");
    let out = atombank(&["convert", text(&base), "-o", text(&at("x.gguf")), "--as", "bank"]);
    assert_eq!(out.status.code(), Some(USAGE));
}

#[test]
fn settings_of_a_merged_adapter_are_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let model = copy(&fixture("demo/base"), &dir.path().join("model"));
    fs::copy(fixture("demo/lora/adapter_config.json"), model.join("adapter_config.json")).unwrap();
    let out = dir.path().join("out");
    convert(&model, &out, &[]);
    assert!(out.join("config.json").is_file() && !out.join("adapter_config.json").exists());
}
